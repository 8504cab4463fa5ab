//! While a drain is closing: who is still accepted, what accepts everything again, and when it begins.

use std::{sync::mpsc as std_mpsc, task::Poll, thread, time::Duration};

use http::{Request, Response, StatusCode};
use tokio::{
    sync::{mpsc, oneshot},
    task::{JoinSet, spawn_blocking},
    time::{Instant, advance, interval, sleep},
};
use tokio_test::{
    assert_pending, assert_ready,
    task::{self, Spawn},
};
use tower::{Layer, ServiceExt, service_fn};
use tower_track_events::{
    Batch, Drain, DrainError, DrainReport, EventSender, Events, TrackError, TrackEventsHandle, TrackEventsLayer,
    WaitIdleError, test::TestExchange,
};

use crate::support::{Answer, Counter, OnDrop, Script, assert_conserved, run_tasks, without_quiet_period};

const QUIET_PERIOD: Duration = Duration::from_millis(100);
const LIMIT: Duration = Duration::from_secs(2);

type Job = Box<dyn FnOnce() + Send>;

/// A pending event that runs what it is given, until this is dropped.
struct Inside(mpsc::UnboundedSender<Job>);

impl Inside {
    fn track(handle: &TrackEventsHandle) -> Self {
        let (sender, mut jobs) = mpsc::unbounded_channel::<Job>();
        let event = async move {
            while let Some(job) = jobs.recv().await {
                job();
            }
        };
        handle.track("inside", event).unwrap();
        Self(sender)
    }

    async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (sender, result) = oneshot::channel();
        self.0.send(Box::new(move || drop(sender.send(job())))).ok().unwrap();
        result.await.unwrap()
    }
}

#[track_caller]
fn assert_closing(handle: &TrackEventsHandle) {
    let before = handle.snapshot();
    assert_eq!(handle.track("outside", async {}), Err(TrackError::Closed));
    assert_eq!(handle.track_blocking("outside", || {}), Err(TrackError::Closed));
    assert_eq!(handle.reserve().err(), Some(TrackError::Closed));
    assert_eq!(handle.guard().err(), Some(TrackError::Closed));
    let now = handle.snapshot();
    assert_eq!((now.rejected - before.rejected, now.rejected_closed - before.rejected_closed), (4, 4));
    assert_eq!(now.accepted, before.accepted);
}

#[track_caller]
fn assert_open(handle: &TrackEventsHandle) {
    assert_eq!(handle.track("outside", async {}), Ok(()));
}

/// Polls a drain until it is closing. An event must be pending, and nothing else.
async fn closing(handle: &TrackEventsHandle, limit: Duration) -> Spawn<Drain> {
    let mut drain = task::spawn(handle.drain(limit));
    assert_pending!(drain.poll());
    assert_open(handle);
    advance(QUIET_PERIOD).await;
    assert!(drain.is_woken());
    assert_pending!(drain.poll());
    assert_closing(handle);
    drain
}

/// Polls a drain whenever it is woken, until it is ready, and returns how long that took.
async fn ends_after(drain: Spawn<Drain>) -> (Duration, DrainReport) {
    let before = Instant::now();
    let report = drain.into_inner().await.unwrap();
    (before.elapsed(), report)
}

// Background producers.

#[tokio::test(start_paused = true)]
async fn a_drain_ends_beside_a_heartbeat_whose_events_overlap() {
    for every in [20, 50, 90].map(Duration::from_millis) {
        let handle = TrackEventsHandle::new();
        let (heartbeat, rejected) = (handle.clone(), Counter::default());
        let counted = rejected.clone();
        let task = tokio::spawn(async move {
            let mut ticks = interval(every);
            loop {
                ticks.tick().await;
                // Without closing, one is always pending.
                if let Err(error) = heartbeat.track("heartbeat", sleep(every * 2)) {
                    assert_eq!(error, TrackError::Closed);
                    counted.add();
                }
            }
        });
        sleep(every * 3).await;
        let before = Instant::now();

        let report = handle.drain(LIMIT).await.unwrap();

        let took = before.elapsed();
        assert!(took >= QUIET_PERIOD && took < Duration::from_millis(400), "every {every:?}: took {took:?}");
        assert!(report.all_completed() && report.rejected_closed > 0, "{report}");
        assert_eq!((report.rejected, report.rejected_closed), (rejected.get() as u64, rejected.get() as u64));
        task.abort();
    }
}

/// Calls `produce` every millisecond until it is rejected, and returns the rejection and when it came.
fn producer(
    mut produce: impl FnMut() -> Result<(), TrackError> + Send + 'static,
) -> tokio::task::JoinHandle<(TrackError, Instant)> {
    tokio::spawn(async move {
        let mut ticks = interval(Duration::from_millis(1));
        loop {
            ticks.tick().await;
            if let Err(error) = produce() {
                return (error, Instant::now());
            }
        }
    })
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_beside_a_producer_that_tracks_every_millisecond() {
    let handle = TrackEventsHandle::new();
    let tracks = handle.clone();
    let producer = producer(move || tracks.track("busy", sleep(Duration::from_millis(30))));
    sleep(Duration::from_millis(10)).await;
    let before = Instant::now();

    let report = handle.drain(LIMIT).await.unwrap();

    let took = before.elapsed();
    assert!(took >= QUIET_PERIOD && took <= Duration::from_millis(132), "took {took:?}");
    let (error, at) = producer.await.unwrap();
    assert_eq!(error, TrackError::Closed);
    assert!(at - before >= QUIET_PERIOD && at - before <= Duration::from_millis(102), "{:?}", at - before);
    assert!(report.all_completed() && report.accepted >= 105, "{report}");
    assert_eq!((report.rejected, report.rejected_closed), (1, 1));
    let text = report.to_string();
    assert!(text.ends_with("; 1 rejected, 1 of them because a drain was closing or had ended"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_beside_a_producer_that_sends_every_millisecond() {
    let handle = TrackEventsHandle::new();
    let store = |_: Batch<u64>| async {
        sleep(Duration::from_millis(30)).await;
        Ok::<_, std::io::Error>(())
    };
    let sender = handle.sink("busy").max_batch(1000).service(service_fn(store)).unwrap();
    let sends = sender.clone();
    let mut next = 0..;
    let producer = producer(move || sends.try_send(next.next().unwrap()).map_err(|error| error.reason));
    sleep(Duration::from_millis(10)).await;
    let before = Instant::now();

    let report = handle.drain(LIMIT).await.unwrap();

    // One batch is under way when it begins to close, and one follows.
    let took = before.elapsed();
    assert!(took >= QUIET_PERIOD && took <= Duration::from_millis(170), "took {took:?}");
    assert_eq!(producer.await.unwrap().0, TrackError::Closed);
    assert!(report.all_completed() && report.accepted >= 105, "{report}");
    assert_eq!((report.rejected, report.rejected_closed), (1, 1));
    assert_eq!((report.sinks[0].rejected, report.sinks[0].rejected_closed), (1, 1));
    assert!(
        report.to_string().contains("; 1 rejected, 1 of them because a drain was closing or had ended"),
        "{report}"
    );
    let error = sender.try_send(7).unwrap_err();
    assert_eq!((error.event, error.reason), (7, TrackError::Closed));
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_times_out_while_closing_reports_what_it_has_rejected() {
    let handle = TrackEventsHandle::new();
    handle.track("stuck", std::future::pending::<()>()).unwrap();
    let mut drain = closing(&handle, Duration::from_millis(150)).await;
    advance(Duration::from_millis(50)).await;
    let Poll::Ready(Err(error @ DrainError::TimedOut(_))) = drain.poll() else { panic!("it times out") };
    assert_eq!(error.report().unwrap().rejected_closed, 4);
    assert!(error.to_string().ends_with("; 4 rejected, 4 of them because a drain was closing or had ended"), "{error}");
}

// Requests, guards and permits.

#[tokio::test(start_paused = true)]
async fn subtasks_of_a_handler_are_accepted_while_its_request_is_open() {
    let handle = TrackEventsHandle::new();
    let service = service_fn(|request: Request<()>| async move {
        let events = Events::from_extensions(request.extensions()).unwrap().clone();
        let handle = events.handle();
        // Far beyond the quiet period.
        sleep(Duration::from_millis(500)).await;
        let spawned = handle.clone();
        tokio::spawn(async move { spawned.track("spawned", async {}) }).await.unwrap().unwrap();
        let blocking = handle.clone();
        spawn_blocking(move || blocking.track("from a blocking thread", async {})).await.unwrap().unwrap();
        let mut set = JoinSet::new();
        for _ in 0..3 {
            let (handle, events) = (handle.clone(), events.clone());
            set.spawn(async move {
                handle.track("joined", async {})?;
                events.reserve()?.track("joined", async {});
                events.track("joined", async {})
            });
        }
        while let Some(tracked) = set.join_next().await {
            tracked.unwrap().unwrap();
        }
        Answer::Ok(Response::new(Script::empty()))
    });
    let service = TrackEventsLayer::new(handle.clone()).layer(service);
    // The task drops the response.
    let request = tokio::spawn(async { service.oneshot(Request::new(())).await.map(drop) });
    run_tasks().await;

    let (took, report) = ends_after(task::spawn(handle.drain(LIMIT))).await;

    assert!(request.await.unwrap().is_ok());
    assert_eq!((report.accepted, report.ended.completed, report.rejected), (11, 11, 0));
    assert!(took >= Duration::from_millis(600), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_task_that_holds_a_guard_is_accepted_after_its_request_has_ended() {
    let handle = TrackEventsHandle::new();
    let exchange = TestExchange::new(&handle);
    let (guard, tracks) = (handle.guard().unwrap(), handle.clone());
    let socket = tokio::spawn(async move {
        for _ in 0..5 {
            sleep(Duration::from_millis(150)).await;
            tracks.track("message", async {}).unwrap();
            let subtask = tracks.clone();
            tokio::spawn(async move { subtask.track("message", async {}) }).await.unwrap().unwrap();
        }
        drop(guard);
    });
    exchange.complete(StatusCode::SWITCHING_PROTOCOLS);

    let (took, report) = ends_after(task::spawn(handle.drain(LIMIT))).await;

    socket.await.unwrap();
    assert_eq!((report.ended.completed, report.rejected), (10, 0));
    assert_eq!(took.as_millis(), 850);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_rejected_while_a_request_a_guard_or_a_permit_is_open() {
    let handle = TrackEventsHandle::new();
    let sender = handle.sink("row").service(service_fn(|_: Batch<u8>| async { Ok::<_, std::io::Error>(()) })).unwrap();
    let mut drain = task::spawn(handle.drain(Duration::MAX));
    assert_pending!(drain.poll());
    let request = TestExchange::new(&handle);
    let holders: [Box<dyn std::any::Any>; 4] = [
        Box::new(request),
        Box::new(handle.guard().unwrap()),
        Box::new(handle.reserve().unwrap()),
        Box::new(sender.try_reserve().unwrap()),
    ];
    let mut sent = 0;
    for holder in holders {
        for _ in 0..3 {
            advance(QUIET_PERIOD * 2).await;
            run_tasks().await;
            assert_pending!(drain.poll());
            assert_open(&handle);
            sender.try_send(1).unwrap();
            sent += 1;
        }
        drop(holder);
    }
    run_tasks().await;
    assert_pending!(drain.poll());
    advance(QUIET_PERIOD).await;
    run_tasks().await;
    assert_pending!(drain.poll());
    assert!(handle.is_drained(), "it waits until the sink has been dropped");
    run_tasks().await;
    let report = assert_ready!(drain.poll()).unwrap();
    assert_eq!((report.ended.completed, report.rejected), (2 * sent, 0));
}

// The quiet period.

/// Polls a drain and checks that it is ready after exactly `expected`, polled when it is woken.
async fn drains_in(handle: &TrackEventsHandle, expected: u64) {
    let (took, report) = ends_after(task::spawn(handle.drain(LIMIT))).await;
    assert_eq!(took.as_millis(), u128::from(expected), "{report}");
    assert_eq!(report.rejected, 0);
}

fn later(run: impl FnOnce() + Send + 'static) {
    tokio::spawn(async {
        sleep(Duration::from_millis(50)).await;
        run();
    });
}

#[tokio::test(start_paused = true)]
async fn the_quiet_period_counts_from_the_last_request() {
    let handle = TrackEventsHandle::new();
    let request = TestExchange::new(&handle);
    later(|| request.complete(StatusCode::OK));
    drains_in(&handle, 150).await;

    let handle = TrackEventsHandle::new();
    let comes = handle.clone();
    later(move || TestExchange::new(&comes).complete(StatusCode::OK));
    drains_in(&handle, 150).await;
}

#[tokio::test(start_paused = true)]
async fn the_quiet_period_counts_from_the_last_guard() {
    let handle = TrackEventsHandle::new();
    let guard = handle.guard().unwrap();
    later(|| drop(guard));
    drains_in(&handle, 150).await;

    let handle = TrackEventsHandle::new();
    let comes = handle.clone();
    later(move || drop(comes.guard().unwrap()));
    drains_in(&handle, 150).await;
}

#[tokio::test(start_paused = true)]
async fn the_quiet_period_counts_from_the_last_permit() {
    let handle = TrackEventsHandle::new();
    let permit = handle.reserve().unwrap();
    later(|| permit.track("reserved", async {}));
    drains_in(&handle, 150).await;

    let handle = TrackEventsHandle::new();
    let comes = handle.clone();
    later(move || drop(comes.reserve().unwrap()));
    drains_in(&handle, 150).await;

    let handle = TrackEventsHandle::new();
    let sender = handle.sink("row").service(service_fn(|_: Batch<u8>| async { Ok::<_, std::io::Error>(()) })).unwrap();
    let permit = sender.try_reserve().unwrap();
    later(|| permit.send(1));
    drains_in(&handle, 150).await;

    let handle = TrackEventsHandle::new();
    let sender = handle.sink("row").service(service_fn(|_: Batch<u8>| async { Ok::<_, std::io::Error>(()) })).unwrap();
    later(move || drop(sender.try_reserve().unwrap()));
    drains_in(&handle, 150).await;
}

#[tokio::test(start_paused = true)]
async fn the_quiet_period_does_not_count_from_an_event() {
    let handle = TrackEventsHandle::new();
    let (comes, nested) = (handle.clone(), handle.clone());
    handle.track("ends late", sleep(Duration::from_millis(99))).unwrap();
    later(move || comes.track("comes late", async move { nested.track("nested", async {}) }).unwrap());
    drains_in(&handle, 100).await;
}

#[tokio::test(start_paused = true)]
async fn a_quiet_period_of_zero_closes_at_once() {
    let handle = without_quiet_period();
    let inside = Inside::track(&handle);
    let mut drain = task::spawn(handle.drain(LIMIT));
    assert_pending!(drain.poll());
    assert_closing(&handle);
    drop(inside);
    run_tasks().await;
    assert!(drain.is_woken());
    let report = assert_ready!(drain.poll()).unwrap();
    assert_eq!((report.ended.completed, report.rejected_closed), (1, 4));
}

#[tokio::test(start_paused = true)]
async fn with_a_quiet_period_of_zero_an_open_guard_keeps_everything_accepted() {
    let handle = without_quiet_period();
    let (inside, guard) = (Inside::track(&handle), handle.guard().unwrap());
    let mut drain = task::spawn(handle.drain(LIMIT));
    assert_pending!(drain.poll());
    assert_open(&handle);
    drop(guard);
    assert_open(&handle);
    assert!(drain.is_woken());
    assert_pending!(drain.poll());
    assert_closing(&handle);
    drop(inside);
    run_tasks().await;
    assert_ready!(drain.poll()).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_look_closes_only_an_idle_handle() {
    let handle = TrackEventsHandle::new();
    let inside = Inside::track(&handle);
    assert!(matches!(handle.drain(Duration::ZERO).await, Err(DrainError::TimedOut(_))));
    assert_open(&handle);
    // Beside a drain that is closing it changes nothing either.
    let drain = closing(&handle, LIMIT).await;
    assert!(matches!(handle.drain(Duration::ZERO).await, Err(DrainError::TimedOut(_))));
    assert_closing(&handle);
    drop((inside, drain));
    run_tasks().await;
    assert!(handle.drain(Duration::ZERO).await.is_ok());
}

// Inside an event, a delivery or a scope.

#[tokio::test(start_paused = true)]
async fn a_chain_of_events_is_accepted_while_closing() {
    let handle = TrackEventsHandle::new();
    let inside = Inside::track(&handle);
    let drain = closing(&handle, LIMIT).await;
    let first = handle.clone();
    let tracked = inside
        .run(move || {
            let second = first.clone();
            first.track("first", async move {
                sleep(Duration::from_millis(10)).await;
                let third = second.clone();
                second.track("second", async move {
                    sleep(Duration::from_millis(10)).await;
                    third.track("third", sleep(Duration::from_millis(10)))
                })
            })
        })
        .await;
    assert_eq!(tracked, Ok(()));
    assert_closing(&handle);
    drop(inside);

    let (took, report) = ends_after(drain).await;

    assert_eq!(took.as_millis(), 30);
    assert!(report.all_completed(), "{report}");
    // The event that runs the chain, the three of it, and the one of `assert_open`.
    assert_eq!((report.accepted, report.rejected, report.rejected_closed), (5, 8, 8));
}

#[tokio::test(start_paused = true)]
async fn an_event_on_a_blocking_thread_tracks_while_closing() {
    let handle = TrackEventsHandle::new();
    let (release, released) = std_mpsc::channel::<()>();
    let (tracks, (sender, result)) = (handle.clone(), oneshot::channel());
    handle
        .track_blocking("blocking", move || {
            released.recv().unwrap();
            sender.send(tracks.track("child", async {})).unwrap();
        })
        .unwrap();
    let drain = closing(&handle, LIMIT).await;
    release.send(()).unwrap();
    assert_eq!(result.await.unwrap(), Ok(()));
    assert!(ends_after(drain).await.1.all_completed());
}

#[tokio::test(start_paused = true)]
async fn the_destructor_of_an_event_tracks_while_closing() {
    let handle = TrackEventsHandle::new();
    let (tracks, (sender, result)) = (handle.clone(), oneshot::channel());
    let owned = OnDrop::new(move || sender.send(tracks.track("child", async {})).unwrap());
    handle
        .track("owner", async move {
            let _owned = owned;
            std::future::pending::<()>().await;
        })
        .unwrap();
    let drain = closing(&handle, LIMIT).await;
    handle.abort();
    assert_eq!(result.await.unwrap(), Ok(()));
    let (_, report) = ends_after(drain).await;
    assert_eq!((report.ended.completed, report.ended.aborted), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_delivery_sends_and_tracks_while_closing() {
    let handle = TrackEventsHandle::new();
    let audit = handle.sink("audit").service(service_fn(|_: Batch<u8>| async { Ok::<_, std::io::Error>(()) })).unwrap();
    let (release, gate) = oneshot::channel::<()>();
    let (tracks, sends, mut gate) = (handle.clone(), audit.clone(), Some(gate));
    let store = move |batch: Batch<u8>| {
        let (gate, tracks, sends) = (gate.take(), tracks.clone(), sends.clone());
        async move {
            if let Some(gate) = gate {
                gate.await.unwrap();
            }
            tracks.track("delivered", async {}).unwrap();
            sends.try_send(batch[0]).unwrap();
            Ok::<_, std::io::Error>(())
        }
    };
    let orders = handle.sink("order").service(service_fn(store)).unwrap();
    orders.try_send(1).unwrap();
    let drain = closing(&handle, LIMIT).await;
    let error = orders.try_send(2).unwrap_err();
    assert_eq!((error.event, error.reason), (2, TrackError::Closed));
    assert_eq!(audit.try_reserve().err(), Some(TrackError::Closed));
    release.send(()).unwrap();

    let (_, report) = ends_after(drain).await;

    assert!(report.all_completed(), "{report}");
    let by_sink: Vec<_> = report.sinks.iter().map(|sink| (sink.name, sink.accepted, sink.rejected_closed)).collect();
    assert_eq!(by_sink, [("audit", 1, 1), ("order", 1, 1)]);
    assert_eq!((report.accepted, report.rejected_closed), (4, 6));
}

/// A task that tracks an event for each request that it gets, and returns the result.
fn actor<T: Send + 'static>(
    handle: &TrackEventsHandle,
) -> mpsc::UnboundedSender<(T, oneshot::Sender<Result<(), TrackError>>)> {
    let (sender, mut requests) = mpsc::unbounded_channel::<(T, oneshot::Sender<_>)>();
    let handle = handle.clone();
    tokio::spawn(async move {
        while let Some((carried, result)) = requests.recv().await {
            sleep(Duration::from_millis(10)).await;
            let _ = result.send(handle.track("by the actor", async {}));
            drop(carried);
        }
    });
    sender
}

#[tokio::test(start_paused = true)]
async fn an_actor_tracks_for_an_event_while_closing_if_a_guard_goes_with_the_request() {
    let handle = TrackEventsHandle::new();
    let actor = actor(&handle);
    let (asks, (sender, result), (release, gate)) = (handle.clone(), oneshot::channel(), oneshot::channel::<()>());
    let event = async move {
        gate.await.unwrap();
        actor.send((asks.guard().unwrap(), sender)).ok().unwrap();
    };
    handle.track("asks", event).unwrap();
    let drain = closing(&handle, LIMIT).await;
    release.send(()).unwrap();
    let (took, report) = ends_after(drain).await;
    assert_eq!(result.await.unwrap(), Ok(()));
    assert!(report.all_completed(), "{report}");
    assert_eq!((report.accepted, report.rejected), (3, 4));
    // The quiet period starts again when the guard is dropped.
    assert_eq!(took.as_millis(), 110);
}

#[tokio::test(start_paused = true)]
async fn an_actor_does_not_track_for_an_event_while_closing_without_a_guard() {
    let handle = TrackEventsHandle::new();
    let actor = actor(&handle);
    let ((sender, result), (release, gate)) = (oneshot::channel(), oneshot::channel::<()>());
    let (answer, answered) = oneshot::channel();
    let event = async move {
        gate.await.unwrap();
        actor.send(((), sender)).ok().unwrap();
        answer.send(result.await.unwrap()).unwrap();
    };
    handle.track("asks", event).unwrap();
    let drain = closing(&handle, LIMIT).await;
    release.send(()).unwrap();
    let (took, report) = ends_after(drain).await;
    assert_eq!(answered.await.unwrap(), Err(TrackError::Closed));
    assert_eq!((report.accepted, report.rejected_closed), (2, 5));
    assert_eq!(took.as_millis(), 10);
}

#[tokio::test(start_paused = true)]
async fn what_an_event_spawns_is_not_inside() {
    let handle = TrackEventsHandle::new();
    let inside = Inside::track(&handle);
    let drain = closing(&handle, LIMIT).await;
    let spawns = handle.clone();
    let spawned = inside.run(move || tokio::spawn(async move { spawns.track("spawned", async {}) })).await;
    assert_eq!(spawned.await.unwrap(), Err(TrackError::Closed));
    drop(inside);
    ends_after(drain).await;
}

#[tokio::test(start_paused = true)]
async fn a_scope_tracks_and_its_drain_is_inside_itself() {
    let handle = TrackEventsHandle::new();
    let sender = handle.sink("row").service(service_fn(|_: Batch<u8>| async { Ok::<_, std::io::Error>(()) })).unwrap();
    let tracks = handle.clone();
    let scope = handle.guard().unwrap().scope(async move {
        sleep(Duration::from_millis(500)).await;
        tracks.track("in a scope", async {}).unwrap();
        tracks.reserve().unwrap().track("in a scope", async {});
        drop(tracks.guard().unwrap());
        sender.try_send(1).unwrap();
        assert!(matches!(tracks.drain(LIMIT).await, Err(DrainError::InsideItself)));
        assert_eq!(tracks.wait_idle(LIMIT).await, Err(WaitIdleError::InsideItself));
        "done"
    });
    let scope = tokio::spawn(scope);

    let (took, report) = ends_after(task::spawn(handle.drain(LIMIT))).await;

    assert_eq!(scope.await.unwrap(), "done");
    assert_eq!((report.ended.completed, report.rejected), (3, 0));
    assert_eq!(took.as_millis(), 600);
}

#[tokio::test(start_paused = true)]
async fn a_scope_of_another_handle_is_not_inside() {
    let (handle, other) = (TrackEventsHandle::new(), TrackEventsHandle::new());
    let inside = Inside::track(&handle);
    let drain = closing(&handle, LIMIT).await;
    let tracks = handle.clone();
    let scope = other.guard().unwrap().scope(async move { tracks.track("in the scope of another", async {}) });
    assert_eq!(scope.await, Err(TrackError::Closed));
    drop(inside);
    ends_after(drain).await;
}

// What accepts everything again.

#[tokio::test(start_paused = true)]
async fn a_request_that_comes_while_closing_is_served_and_waited_for() {
    let handle = TrackEventsHandle::new();
    let inside = Inside::track(&handle);
    let mut drain = closing(&handle, LIMIT).await;
    let service = service_fn(|request: Request<()>| async move {
        let events = Events::from_extensions(request.extensions()).unwrap().clone();
        events.track("by the handler", sleep(Duration::from_millis(5))).unwrap();
        sleep(Duration::from_millis(50)).await;
        tokio::spawn(async move { events.handle().track("by a subtask", async {}) }).await.unwrap().unwrap();
        Answer::Ok(Response::new(Script::empty()))
    });
    let service = TrackEventsLayer::new(handle.clone())
        .track("of the layer", |_exchange| sleep(Duration::from_millis(1)))
        .layer(service);
    // The task drops the response.
    let request = tokio::spawn(async { service.oneshot(Request::new(())).await.map(drop) });
    run_tasks().await;
    assert_open(&handle);
    drop(inside);
    run_tasks().await;
    // Nothing else is pending; the request is open.
    assert_pending!(drain.poll());

    let (took, report) = ends_after(drain).await;

    assert!(request.await.unwrap().is_ok());
    assert!(report.all_completed(), "{report}");
    assert_eq!((report.accepted, report.rejected), (6, 4));
    assert_eq!(took.as_millis(), 150);
}

#[tokio::test(start_paused = true)]
async fn the_quiet_period_starts_again_when_a_late_request_has_ended() {
    let handle = TrackEventsHandle::new();
    let inside = Inside::track(&handle);
    let mut drain = closing(&handle, LIMIT).await;
    TestExchange::new(&handle).complete(StatusCode::OK);
    assert_open(&handle);
    assert!(drain.is_woken());
    assert_pending!(drain.poll());
    advance(QUIET_PERIOD - Duration::from_millis(1)).await;
    assert_pending!(drain.poll());
    assert_open(&handle);
    advance(Duration::from_millis(1)).await;
    assert_pending!(drain.poll());
    assert_closing(&handle);
    drop(inside);
    ends_after(drain).await;
}

#[tokio::test(start_paused = true)]
async fn a_guard_or_a_permit_that_is_taken_inside_accepts_everything_again() {
    let handle = TrackEventsHandle::new();
    let sender = handle.sink("row").service(service_fn(|_: Batch<u8>| async { Ok::<_, std::io::Error>(()) })).unwrap();
    let inside = Inside::track(&handle);
    let mut drain = closing(&handle, LIMIT).await;
    let (guards, permits, send_permits) = (handle.clone(), handle.clone(), sender.clone());
    let closed_again = async |drain: &mut Spawn<Drain>| {
        assert!(drain.is_woken());
        assert_pending!(drain.poll());
        assert_open(&handle);
        run_tasks().await;
        advance(QUIET_PERIOD).await;
        assert_pending!(drain.poll());
        assert_closing(&handle);
    };

    let guard = inside.run(move || guards.guard().unwrap()).await;
    assert_open(&handle);
    drop(guard);
    closed_again(&mut drain).await;

    let permit = inside.run(move || permits.reserve().unwrap()).await;
    assert_open(&handle);
    permit.track("reserved", async {});
    closed_again(&mut drain).await;

    let permit = inside.run(move || send_permits.try_reserve().unwrap()).await;
    assert_open(&handle);
    sender.try_send(1).unwrap();
    permit.send(2);
    closed_again(&mut drain).await;
    assert_eq!(sender.try_send(3).unwrap_err().reason, TrackError::Closed);

    drop(inside);
    let (_, report) = ends_after(drain).await;
    assert!(report.all_completed(), "{report}");
}

#[tokio::test(start_paused = true)]
async fn a_permit_that_finds_no_capacity_keeps_a_drain_closing() {
    let handle = TrackEventsHandle::builder().capacity(2).build().unwrap();
    let (release, gate) = oneshot::channel::<()>();
    let mut gate = Some(gate);
    let store = move |_: Batch<u8>| {
        let gate = gate.take();
        async { gate.unwrap().await.map_err(|error| error.to_string()) }
    };
    let sender = handle.sink("row").capacity(1).service(service_fn(store)).unwrap();
    sender.try_send(1).unwrap();
    let inside = Inside::track(&handle);
    let drain = closing(&handle, LIMIT).await;
    run_tasks().await;
    let tracks = handle.clone();
    let full = inside.run(move || {
        tracks.track("the second", std::future::pending::<()>()).unwrap();
        tracks.reserve().err()
    });
    assert_eq!(full.await, Some(TrackError::Full));
    assert_eq!(handle.guard().err(), Some(TrackError::Closed), "a permit that was rejected changes nothing");
    let (sends, guards) = (sender.clone(), handle.clone());
    assert_eq!(inside.run(move || sends.try_reserve().err()).await, Some(TrackError::Full));
    assert_eq!(guards.guard().err(), Some(TrackError::Closed), "a permit that was rejected changes nothing");
    handle.abort();
    drop((release, inside));
    ends_after(drain).await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_times_out_while_closing_accepts_everything_again() {
    let handle = TrackEventsHandle::new();
    let inside = Inside::track(&handle);
    let mut drain = closing(&handle, Duration::from_millis(150)).await;
    advance(Duration::from_millis(50)).await;
    assert!(matches!(assert_ready!(drain.poll()), Err(DrainError::TimedOut(_))));
    // Though the drain itself is not dropped.
    assert_open(&handle);
    run_tasks().await;
    assert_closing_again_and_end(&handle, inside).await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_is_interrupted_while_closing_accepts_everything_again() {
    let handle = TrackEventsHandle::new();
    let inside = Inside::track(&handle);
    let (interrupt, interrupted) = oneshot::channel::<()>();
    let mut drain = task::spawn(handle.drain_until(interrupted));
    assert_pending!(drain.poll());
    advance(QUIET_PERIOD).await;
    assert_pending!(drain.poll());
    assert_closing(&handle);
    interrupt.send(()).unwrap();
    assert!(matches!(assert_ready!(drain.poll()), Err(DrainError::Interrupted(_))));
    assert_open(&handle);
    run_tasks().await;
    assert_closing_again_and_end(&handle, inside).await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_is_dropped_while_closing_accepts_everything_again() {
    let handle = TrackEventsHandle::new();
    let sender = handle.sink("row").service(service_fn(|_: Batch<u8>| async { Ok::<_, std::io::Error>(()) })).unwrap();
    let inside = Inside::track(&handle);
    drop(closing(&handle, LIMIT).await);
    assert_open(&handle);
    sender.try_send(1).unwrap();
    run_tasks().await;
    sender.flush(LIMIT).await.unwrap();
    assert_closing_again_and_end(&handle, inside).await;
}

/// Another drain closes as the first one did.
async fn assert_closing_again_and_end(handle: &TrackEventsHandle, inside: Inside) {
    let drain = closing(handle, LIMIT).await;
    drop(inside);
    let (_, report) = ends_after(drain).await;
    assert!(report.all_completed(), "{report}");
    assert_conserved(&handle.snapshot());
    assert_eq!(handle.track("late", async {}), Err(TrackError::Closed));
}

#[tokio::test(start_paused = true)]
async fn of_two_drains_one_that_is_dropped_leaves_the_other_closing() {
    let handle = TrackEventsHandle::new();
    let inside = Inside::track(&handle);
    let mut second = task::spawn(handle.drain(LIMIT));
    assert_pending!(second.poll());
    let first = closing(&handle, LIMIT).await;
    drop(handle.drain(LIMIT));
    drop(first);
    assert_closing(&handle);
    drop(second);
    assert_open(&handle);
    run_tasks().await;
    assert_closing_again_and_end(&handle, inside).await;
}

#[tokio::test(start_paused = true)]
async fn of_two_drains_one_that_times_out_leaves_the_other_closing() {
    let handle = TrackEventsHandle::new();
    let inside = Inside::track(&handle);
    let mut second = task::spawn(handle.drain(Duration::from_millis(120)));
    assert_pending!(second.poll());
    let first = closing(&handle, LIMIT).await;
    advance(Duration::from_millis(20)).await;
    assert!(matches!(assert_ready!(second.poll()), Err(DrainError::TimedOut(_))));
    assert_closing(&handle);
    drop(inside);
    assert!(ends_after(first).await.1.all_completed());
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_is_built_while_closing_is_closing_too() {
    let handle = TrackEventsHandle::new();
    let inside = Inside::track(&handle);
    let drain = closing(&handle, LIMIT).await;
    let sink = || handle.sink("row");
    let sender = sink().service(service_fn(|_: Batch<u8>| async { Ok::<_, std::io::Error>(()) })).unwrap();
    assert_eq!(sender.try_send(1).unwrap_err().reason, TrackError::Closed);
    let sends = sender.clone();
    assert!(inside.run(move || sends.try_send(2)).await.is_ok());
    drop(inside);
    let (_, report) = ends_after(drain).await;
    assert!(report.all_completed(), "{report}");
    assert_eq!((report.sinks[0].ended.completed, report.sinks[0].rejected_closed), (1, 1));
}

#[test]
fn a_permit_of_a_dead_sink_is_rejected_inside_an_event_while_closing() {
    // A sink belongs to the shard of the thread that builds it. There are at most 128 shards.
    for _ in 0..128 {
        let (finished, finish) = std_mpsc::channel();
        thread::spawn(move || {
            reserve_from_a_dead_sink_while_closing();
            finished.send(()).unwrap();
        });
        finish.recv_timeout(Duration::from_secs(20)).expect("the permit is rejected, and nothing waits for a lock");
    }
}

fn reserve_from_a_dead_sink_while_closing() {
    let build = || tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let (runtime, of_sink) = (build(), build());
    let handle = without_quiet_period();
    let sender: EventSender<u8> = {
        let _entered = of_sink.enter();
        handle.sink("row").service(service_fn(|_: Batch<u8>| async { Ok::<_, std::io::Error>(()) })).unwrap()
    };
    runtime.block_on(async {
        let inside = Inside::track(&handle);
        let mut drain = task::spawn(handle.drain(LIMIT));
        assert_pending!(drain.poll());
        assert_closing(&handle);
        // On a thread, since a runtime cannot be dropped in another.
        thread::spawn(|| drop(of_sink)).join().unwrap();
        let reserves = sender.clone();
        assert_eq!(inside.run(move || reserves.try_reserve().err()).await, Some(TrackError::NoRuntime));
        drop(inside);
        run_tasks().await;
        assert_ready!(drain.poll()).unwrap();
    });
}

/// Threads open requests, guards and permits while a drain closes again and again. The instant at which one is opened
/// is the instant at which everything is accepted.
#[test]
fn what_is_opened_by_one_thread_while_another_closes_accepts_everything() {
    const ROUNDS: u64 = 500;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    // The producer is faster than the events.
    let handle = TrackEventsHandle::builder().capacity(1 << 30).quiet_period(Duration::ZERO).build().unwrap();
    let _entered = runtime.enter();
    let inside = Inside::track(&handle);
    let drain = runtime.spawn(handle.drain(Duration::MAX));
    let (mut accepted, mut rejected) = (1, 0);
    thread::scope(|scope| {
        let runtime = runtime.handle();
        let of_requests = scope.spawn(|| {
            let _entered = runtime.enter();
            for _ in 0..ROUNDS {
                let request = TestExchange::new(&handle);
                handle.track("of a request", async {}).unwrap();
                request.events().track("of a request", async {}).unwrap();
                request.complete(StatusCode::OK);
            }
            ROUNDS * 2
        });
        let of_events = scope.spawn(|| {
            for _ in 0..ROUNDS {
                let opens = handle.clone();
                let opened = inside.run(move || (opens.guard().unwrap(), opens.reserve().unwrap()));
                let (guard, permit) = runtime.block_on(opened);
                let _entered = runtime.enter();
                permit.track("of an event", async {});
                handle.track("of an event", async {}).unwrap();
                drop(guard);
            }
            ROUNDS * 2
        });
        // Until both have ended, and the drain is seen to close.
        let _entered = runtime.enter();
        let began = Instant::now();
        while rejected == 0 || !of_requests.is_finished() || !of_events.is_finished() {
            assert!(began.elapsed() < Duration::from_secs(60), "the drain never closes");
            match handle.track("of a producer", async {}) {
                Ok(()) => accepted += 1,
                Err(error) => {
                    assert_eq!(error, TrackError::Closed);
                    rejected += 1;
                }
            }
            thread::yield_now();
        }
        accepted += of_requests.join().unwrap() + of_events.join().unwrap();
    });
    drop(inside);
    let report = runtime.block_on(drain).unwrap().unwrap();
    assert!(report.all_completed(), "{report}");
    assert_eq!((report.accepted, report.rejected, report.rejected_closed), (accepted, rejected, rejected));
}
