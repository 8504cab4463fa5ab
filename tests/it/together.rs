//! Events that start together: those of one response, and those of the handle.

use std::{
    convert::Infallible,
    future::pending,
    sync::{Arc, Mutex},
    task::Poll,
    time::Duration,
};

use futures_util::{FutureExt, future::poll_fn};
use http::{Request, Response};
use tokio::{
    runtime,
    sync::{Semaphore, oneshot},
};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_track_events::{
    DrainError, Events, Exchange, OpenKind, Outcome, TrackEventsHandle, TrackEventsLayer, test::TestExchange,
};

use crate::support::{Counter, OnDrop, Script, assert_conserved, drain, open_events, run_tasks, without_quiet_period};

/// An exchange whose handler does this to its events.
async fn exchange(handle: &TrackEventsHandle, handler: impl FnOnce(&Events)) {
    let request = TestExchange::new(handle);
    handler(request.events());
    request.end(Exchange::new(Outcome::Complete));
}

#[test]
fn events_of_a_response_are_polled_first_in_the_order_in_which_they_were_tracked() {
    for workers in [1, 2, 4] {
        let runtime = runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build().unwrap();
        let handle = without_quiet_period();
        let service = TrackEventsLayer::new(handle.clone());
        runtime.block_on(async {
            for request in 0..500 {
                let count = 3 + request % 6;
                let order = Arc::new(Mutex::new(Vec::new()));
                let seen = Arc::clone(&order);
                let handler = service_fn(move |request: Request<()>| {
                    let events = Events::from_extensions(request.extensions()).unwrap();
                    for number in 0..count {
                        let seen = Arc::clone(&seen);
                        events.track("ordered", async move { seen.lock().unwrap().push(number) }).unwrap();
                    }
                    async { Ok::<_, Infallible>(Response::new(Script::empty())) }
                });
                // From a worker of the runtime, as a server would.
                let call = service.layer(handler).oneshot(Request::new(()));
                drop(tokio::spawn(call).await.unwrap().unwrap());
                handle.wait_idle(Duration::from_secs(20)).await.unwrap();
                assert_eq!(*order.lock().unwrap(), (0..count).collect::<Vec<_>>(), "{workers} workers");
            }
        });
    }
}

#[tokio::test]
async fn events_of_a_response_run_concurrently_in_one_task() {
    let handle = without_quiet_period();
    let metrics = runtime::Handle::current().metrics();
    let before = metrics.num_alive_tasks();
    // Each waits for the next one.
    exchange(&handle, |events| {
        let (release, mut released) = oneshot::channel::<()>();
        release.send(()).unwrap();
        let mut waits = Vec::new();
        for _ in 0..5 {
            let (release, next) = oneshot::channel();
            let wait = std::mem::replace(&mut released, next);
            waits.push((wait, release));
        }
        for (wait, release) in waits.into_iter().rev() {
            events
                .track("waits for the next", async move {
                    wait.await.unwrap();
                    let _ = release.send(());
                })
                .unwrap();
        }
    })
    .await;
    assert_eq!(metrics.num_alive_tasks() - before, 1);
    assert_eq!(drain(&handle).await.ended.completed, 5);
    assert_eq!(metrics.num_alive_tasks(), before);
}

#[tokio::test]
async fn a_thousand_events_of_one_response_may_wait() {
    let handle = without_quiet_period();
    let go = Arc::new(Semaphore::new(0));
    exchange(&handle, |events| {
        for number in 0..1_000 {
            let go = Arc::clone(&go);
            events
                .track("waits", async move {
                    drop(go.acquire().await);
                    if number % 100 == 7 { Err("unlucky") } else { Ok(()) }
                })
                .unwrap();
        }
    })
    .await;
    run_tasks().await;
    assert_eq!(handle.snapshot().pending, 1_000);
    go.add_permits(1_000);
    let report = drain(&handle).await;
    assert_eq!((report.ended.completed, report.ended.failed), (990, 10));
}

#[tokio::test(start_paused = true)]
async fn a_sibling_that_panics_times_out_or_fails_takes_no_other_along() {
    let handle = TrackEventsHandle::builder()
        .event_timeout(Duration::from_secs(1))
        .quiet_period(Duration::ZERO)
        .build()
        .unwrap();
    let dropped = Counter::default();
    exchange(&handle, |events| {
        let owned = || OnDrop::counting(&dropped);
        let (one, two, three, four) = (owned(), owned(), owned(), owned());
        events
            .track("panics", async move {
                let _one = one;
                panic!("once");
            })
            .unwrap();
        events
            .track("panics later", async move {
                let _two = two;
                tokio::task::yield_now().await;
                panic!("later");
            })
            .unwrap();
        events
            .track("too long", async move {
                let _three = three;
                pending::<()>().await;
            })
            .unwrap();
        events.track("fails", async { Err::<(), _>("disk full") }).unwrap();
        events
            .track("completes", async move {
                let _four = four;
                tokio::time::sleep(Duration::from_millis(500)).await;
            })
            .unwrap();
        events.track_with("cannot be made", |_| -> std::future::Ready<()> { panic!("in the closure") }).unwrap();
    })
    .await;
    let report = drain(&handle).await;
    let ended = report.ended;
    assert_eq!((ended.completed, ended.failed, ended.panicked, ended.timed_out), (1, 1, 3, 1), "{report}");
    assert_eq!(report.by_name["panics later"].last_error.as_deref(), Some("later"));
    assert_eq!(dropped.get(), 4);
    assert_conserved(&handle.snapshot());
}

#[tokio::test]
async fn an_abort_ends_all_siblings_that_were_accepted_before_it_also_when_one_that_was_registered_has_ended() {
    let handle = without_quiet_period();
    let (release, released) = oneshot::channel::<()>();
    let dropped = Counter::default();
    exchange(&handle, |events| {
        // Pending first, so that the task is woken through its entry.
        events.track("ends", async move { drop(released.await) }).unwrap();
        for _ in 0..3 {
            let owned = OnDrop::counting(&dropped);
            events
                .track("stays", async move {
                    let _owned = owned;
                    pending::<()>().await;
                })
                .unwrap();
        }
    })
    .await;
    run_tasks().await;
    release.send(()).unwrap();
    run_tasks().await;
    assert_eq!((handle.snapshot().ended.completed, handle.snapshot().pending), (1, 3));

    handle.abort();
    run_tasks().await;
    let now = handle.snapshot();
    assert_eq!((now.ended.aborted, now.pending, dropped.get()), (3, 0, 3));
}

#[tokio::test]
async fn events_that_are_tracked_after_an_abort_and_before_the_end_of_their_exchange_run() {
    let handle = without_quiet_period();
    let request = TestExchange::new(&handle);
    request.events().track("before", async {}).unwrap();
    handle.abort();
    assert_eq!((handle.snapshot().ended.aborted, handle.snapshot().pending), (1, 0));
    request.events().track("after", async {}).unwrap();
    request.end(Exchange::new(Outcome::Complete));
    let report = drain(&handle).await;
    assert_eq!((report.ended.aborted, report.ended.completed), (1, 1));
}

#[test]
fn a_runtime_that_is_dropped_aborts_the_events_of_a_response_that_have_started_and_those_that_have_not() {
    let handle = without_quiet_period();
    let runtime = runtime::Builder::new_current_thread().build().unwrap();
    let late = runtime.block_on(async {
        exchange(&handle, |events| (0..3).for_each(|_| events.track("started", pending::<()>()).unwrap())).await;
        run_tasks().await;
        let late = TestExchange::new(&handle);
        late.events().track("not started", async {}).unwrap();
        late
    });
    drop(runtime);
    late.end(Exchange::new(Outcome::Complete));
    let now = handle.snapshot();
    assert_eq!((now.ended.aborted, now.pending), (4, 0));
}

#[tokio::test]
async fn one_that_is_always_ready_leaves_the_others_a_turn() {
    let handle = without_quiet_period();
    let semaphore = Arc::new(Semaphore::new(1));
    let stop = Arc::new(Semaphore::new(0));
    exchange(&handle, |events| {
        let (greedy, stopped) = (Arc::clone(&semaphore), Arc::clone(&stop));
        // It uses up the budget of its task in every poll.
        events
            .track("greedy", async move {
                while stopped.try_acquire().is_err() {
                    drop(greedy.acquire().await);
                }
            })
            .unwrap();
        let (semaphore, stop) = (Arc::clone(&semaphore), Arc::clone(&stop));
        events
            .track("next", async move {
                drop(semaphore.acquire().await);
                stop.add_permits(1);
            })
            .unwrap();
    })
    .await;
    assert_eq!(drain(&handle).await.ended.completed, 2);
}

#[tokio::test]
async fn one_of_the_handle_that_uses_up_the_budget_of_its_task_leaves_the_next_its_own() {
    let handle = without_quiet_period();
    let semaphore = Arc::new(Semaphore::new(1));
    let greedy = Arc::clone(&semaphore);
    handle
        .track("greedy", async move {
            for _ in 0..1_000 {
                drop(greedy.acquire().now_or_never());
            }
        })
        .unwrap();
    handle.track("next", async move { semaphore.acquire().now_or_never().map(drop).ok_or("it is free") }).unwrap();
    assert_eq!(drain(&handle).await.ended.completed, 2);
}

#[test]
fn events_of_a_response_run_on_the_runtime_on_which_each_was_tracked() {
    let runtimes = [1, 1]
        .map(|workers| runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build().unwrap());
    let handle = without_quiet_period();
    let order = Arc::new(Mutex::new(Vec::new()));
    let request = TestExchange::new(&handle);
    for number in 0..6 {
        let order = Arc::clone(&order);
        let _entered = runtimes[number % 2].enter();
        let event = async move { order.lock().unwrap().push((number, runtime::Handle::current().id())) };
        request.events().track("other runtime", event).unwrap();
    }
    // The body is dropped on a thread without a runtime.
    std::thread::spawn(move || request.end(Exchange::new(Outcome::Complete))).join().unwrap();
    runtimes[0].block_on(drain(&handle));
    let order = order.lock().unwrap();
    for (index, runtime) in runtimes.iter().enumerate() {
        let there: Vec<_> =
            order.iter().filter(|(_, id)| *id == runtime.handle().id()).map(|(number, _)| *number).collect();
        assert_eq!(there, [index, index + 2, index + 4]);
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_is_as_old_as_its_start_once_it_runs() {
    let handle = without_quiet_period();
    let request = TestExchange::new(&handle);
    request.events().track("one", pending::<()>()).unwrap();
    tokio::time::advance(Duration::from_secs(1)).await;
    request.events().track("two", pending::<()>()).unwrap();
    tokio::time::advance(Duration::from_secs(1)).await;
    let ages = |error: DrainError| {
        let report = error.report().unwrap();
        assert_eq!(open_events(report).len(), 2);
        let events = report.open.iter().filter(|item| item.kind != OpenKind::Request);
        events.map(|item| (item.kind, item.oldest.as_secs())).collect::<Vec<_>>()
    };
    let waiting = handle.drain(Duration::ZERO).await.unwrap_err();
    assert_eq!(ages(waiting), [(OpenKind::WaitingEvent, 2), (OpenKind::WaitingEvent, 2)]);
    request.end(Exchange::new(Outcome::Complete));
    run_tasks().await;
    tokio::time::advance(Duration::from_secs(3)).await;
    let running = handle.drain(Duration::ZERO).await.unwrap_err();
    assert_eq!(ages(running), [(OpenKind::RunningEvent, 3), (OpenKind::RunningEvent, 3)]);
    handle.abort();
    drain(&handle).await;
}

#[tokio::test(start_paused = true)]
async fn an_event_that_is_tracked_late_gets_the_times_of_its_exchange() {
    let handle = without_quiet_period();
    let times = Arc::new(Mutex::new(None));
    let kept = Arc::new(Mutex::new(None));
    let mut service = TrackEventsLayer::new(handle.clone()).layer(service_fn(|request: Request<()>| {
        let events = Events::from_extensions(request.extensions()).unwrap().clone();
        *kept.lock().unwrap() = Some(events);
        async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            Ok::<_, Infallible>(Response::new(Script::empty()))
        }
    }));
    let response = service.call(Request::new(())).await.unwrap();
    tokio::time::advance(Duration::from_secs(3)).await;
    let events: Events = kept.lock().unwrap().take().unwrap();
    drop(response);
    let seen = Arc::clone(&times);
    let see = move |exchange: Exchange| async move {
        *seen.lock().unwrap() = Some((exchange.time_to_head.unwrap().as_secs(), exchange.elapsed.as_secs()));
    };
    events.track_with("late", see).unwrap();
    drop(events);
    drain(&handle).await;
    assert_eq!(*times.lock().unwrap(), Some((2, 5)));
}

#[tokio::test]
async fn an_event_may_be_polled_by_hand_in_any_order_after_its_first_poll() {
    let handle = without_quiet_period();
    let polls = Arc::new(Mutex::new(Vec::new()));
    exchange(&handle, |events| {
        for number in 0..3 {
            let (polls, mut left) = (Arc::clone(&polls), 3);
            let event = poll_fn(move |cx| {
                polls.lock().unwrap().push(number);
                left -= 1;
                cx.waker().wake_by_ref();
                if left == 0 { Poll::Ready(()) } else { Poll::Pending }
            });
            events.track("polled", event).unwrap();
        }
    })
    .await;
    drain(&handle).await;
    let polls = polls.lock().unwrap();
    assert_eq!(polls[..3], [0, 1, 2]);
    assert_eq!(polls.len(), 9);
}

#[tokio::test]
async fn an_abort_during_the_first_poll_ends_the_event_that_is_being_polled() {
    fn aborts(handle: &TrackEventsHandle) -> impl Future<Output = ()> + Send + use<> {
        let handle = handle.clone();
        poll_fn(move |_| {
            handle.abort();
            Poll::Pending
        })
    }
    let handle = without_quiet_period();
    handle.track("alone", aborts(&handle)).unwrap();
    assert_eq!(drain(&handle).await.ended.aborted, 1);

    let handle = without_quiet_period();
    exchange(&handle, |events| {
        events.track("before", pending::<()>()).unwrap();
        events.track("aborts", aborts(&handle)).unwrap();
        events.track("after", pending::<()>()).unwrap();
    })
    .await;
    assert_eq!(drain(&handle).await.ended.aborted, 3);
}

/// So that none uses up the budget of the task before all others.
#[tokio::test]
async fn another_event_of_a_response_is_polled_first_at_each_wake() {
    let handle = TrackEventsHandle::new();
    let polled = Arc::new(Mutex::new(Vec::new()));
    exchange(&handle, |events| {
        for number in 0..3 {
            let polled = Arc::clone(&polled);
            let polls_thrice = async move {
                for _ in 0..3 {
                    polled.lock().unwrap().push(number);
                    tokio::task::yield_now().await;
                }
            };
            events.track("ordered", polls_thrice).unwrap();
        }
    })
    .await;
    drain(&handle).await;
    assert_eq!(*polled.lock().unwrap(), [0, 1, 2, 1, 2, 0, 2, 0, 1]);
}
