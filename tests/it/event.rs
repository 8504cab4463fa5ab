//! A single event: its endings, its panics, and the runtime that it runs on.

use std::{fmt, future::pending, panic::panic_any, sync::mpsc, time::Duration};

use http::Request;
use tokio::{runtime::Builder, sync::oneshot};
use tower::{Layer, ServiceExt, service_fn};
use tower_track_events::{Events, Overflow, TrackError, TrackEventsHandle, TrackEventsLayer};

use crate::support::{Counter, Script, assert_conserved, drain, run_tasks};

#[tokio::test]
async fn each_output_has_its_ending() {
    let handle = TrackEventsHandle::new();
    type Nested = Result<Result<(), String>, String>;
    handle.track("unit", async {}).unwrap();
    handle.track("ok", async { Ok::<(), String>(()) }).unwrap();
    handle.track("err", async { Err::<(), _>("disk full") }).unwrap();
    handle.track("nested ok", async { Nested::Ok(Ok(())) }).unwrap();
    handle.track("inner err", async { Nested::Ok(Err("disk full".to_owned())) }).unwrap();
    handle.track("outer err", async { Nested::Err("cancelled".to_owned()) }).unwrap();
    handle.track("never returns", async { panic!("at once") }).unwrap();
    handle.track("joined", async { tokio::task::spawn_blocking(|| Err::<(), _>(fmt::Error)).await }).unwrap();
    let report = drain(&handle).await;
    assert_eq!((report.accepted, report.ended.completed), (8, 3));
    assert_eq!((report.ended.failed, report.ended.panicked), (4, 1));
    let names: Vec<_> = report.by_name.keys().copied().collect();
    assert_eq!(names, ["err", "inner err", "joined", "never returns", "outer err"]);
    assert!(!report.all_completed());
}

struct PanicsWhenDropped(&'static str);

impl Drop for PanicsWhenDropped {
    fn drop(&mut self) {
        panic!("{}", self.0);
    }
}

#[tokio::test]
async fn every_kind_of_panic_is_caught_and_counted() {
    let handle = TrackEventsHandle::new();
    handle.track("text", async { panic!("text") }).unwrap();
    handle.track("payload that panics when dropped", async { panic_any(PanicsWhenDropped("payload")) }).unwrap();
    let owned = PanicsWhenDropped("owned by the future");
    handle
        .track("destructor after the end", async move {
            let _owned = &owned;
        })
        .unwrap();
    handle.track_blocking("blocking", || panic!("blocking")).unwrap();
    #[derive(Debug)]
    struct Unprintable;
    impl std::error::Error for Unprintable {}
    impl fmt::Display for Unprintable {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            panic!("in Display");
        }
    }
    handle.track("error that cannot be displayed", async { Err::<(), _>(Unprintable) }).unwrap();
    let report = drain(&handle).await;
    assert_eq!((report.accepted, report.ended.panicked), (5, 5), "{report}");
}

#[tokio::test]
async fn the_panic_of_one_event_affects_no_other() {
    let handle = TrackEventsHandle::new();
    let ran = Counter::default();
    for index in 0..10 {
        let ran = ran.clone();
        handle
            .track("some panic", async move {
                ran.add();
                assert_ne!(index % 2, 0);
            })
            .unwrap();
    }
    let report = drain(&handle).await;
    assert_eq!((ran.get(), report.ended.completed, report.ended.panicked), (10, 5, 5));
}

#[tokio::test]
async fn blocking_work_is_an_event() {
    let handle = TrackEventsHandle::new();
    let (release, gate) = mpsc::channel::<()>();
    handle.track_blocking("blocked", move || gate.recv().map_err(|error| error.to_string())).unwrap();
    handle.track_blocking("fails", || std::io::Result::<()>::Err(std::io::ErrorKind::StorageFull.into())).unwrap();
    assert!(handle.drain(Duration::ZERO).await.is_err());
    release.send(()).unwrap();
    let report = drain(&handle).await;
    assert_eq!((report.ended.completed, report.ended.failed), (1, 1));
}

#[tokio::test]
async fn an_event_may_track_another_while_a_drain_waits() {
    let handle = TrackEventsHandle::new();
    let ran = Counter::default();
    fn nest(handle: TrackEventsHandle, depth: usize, ran: Counter) -> Result<(), TrackError> {
        let inner = handle.clone();
        handle.track("nested", async move {
            ran.add();
            // The drain is polled meanwhile.
            run_tasks().await;
            if depth > 0 { nest(inner, depth - 1, ran) } else { Ok(()) }
        })
    }
    nest(handle.clone(), 9, ran.clone()).unwrap();
    let report = drain(&handle).await;
    assert_eq!((ran.get(), report.accepted, report.ended.completed), (10, 10, 10));
}

/// Asserts, in its destructor, that the event that owns it has not ended yet.
struct OwnedByAnEvent {
    handle: TrackEventsHandle,
    dropped: Counter,
}

impl OwnedByAnEvent {
    fn new(handle: &TrackEventsHandle, dropped: &Counter) -> Self {
        Self { handle: handle.clone(), dropped: dropped.clone() }
    }
}

impl Drop for OwnedByAnEvent {
    fn drop(&mut self) {
        if self.handle.snapshot().pending == 1 {
            self.dropped.add();
        }
    }
}

#[test]
fn an_event_ends_after_its_destructors_whichever_way_it_ends() {
    // Owned by the future itself, not by its block: dropped with it, and not when the block ends.
    struct Owner<F>(std::pin::Pin<Box<F>>, #[allow(dead_code, reason = "owned, not read")] OwnedByAnEvent);
    impl<F: Future> Future for Owner<F> {
        type Output = F::Output;
        fn poll(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<F::Output> {
            self.0.as_mut().poll(cx)
        }
    }
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let handle = TrackEventsHandle::builder().event_timeout(Duration::from_secs(1)).build().unwrap();
    let dropped = Counter::default();
    let owned = || OwnedByAnEvent::new(&handle, &dropped);
    runtime.block_on(async {
        let one_at_a_time = || async {
            while handle.snapshot().pending > 0 {
                // The clock is paused: this waits for the limit of an event in no time.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        handle.track("completed", Owner(Box::pin(tokio::task::yield_now()), owned())).unwrap();
        one_at_a_time().await;
        handle.track("timed out", Owner(Box::pin(pending::<()>()), owned())).unwrap();
        one_at_a_time().await;
        handle.track("panicked", Owner(Box::pin(async { panic!("with something owned") }), owned())).unwrap();
        one_at_a_time().await;
        let blocking = owned();
        handle.track_blocking("blocking", move || drop(blocking)).unwrap();
        one_at_a_time().await;
        handle.track("aborted", Owner(Box::pin(pending::<()>()), owned())).unwrap();
    });
    drop(runtime);
    let now = handle.snapshot();
    assert_eq!((now.ended.completed, now.ended.timed_out, now.ended.panicked, now.ended.aborted), (2, 1, 1, 1));
    assert_eq!(dropped.get(), 5);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_runs_longer_than_its_limit_is_ended() {
    let handle = TrackEventsHandle::builder().event_timeout(Duration::from_secs(5)).build().unwrap();
    handle.track("too long", pending::<()>()).unwrap();
    handle.track("in time", tokio::time::sleep(Duration::from_secs(4))).unwrap();
    handle.track("in the same instant", tokio::time::sleep(Duration::from_secs(5))).unwrap();
    let before = tokio::time::Instant::now();
    let report = drain(&handle).await;
    assert_eq!((report.ended.completed, report.ended.timed_out), (2, 1), "an event that returned has returned");
    assert_eq!(report.by_name["too long"].counts.timed_out, 1);
    assert!(before.elapsed() < Duration::from_secs(6));
}

#[test]
fn a_dropped_runtime_aborts_its_events_and_a_drain_on_another_ends() {
    let handle = TrackEventsHandle::builder().quiet_period(Duration::ZERO).build().unwrap();
    let lost = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    for _ in 0..50 {
        let handle = &handle;
        lost.block_on(async move {
            handle.track("started", pending::<()>()).unwrap();
        });
    }
    let idle = Builder::new_current_thread().build().unwrap();
    idle.block_on(async {
        for _ in 0..50 {
            handle.track("never polled", async {}).unwrap();
        }
    });
    assert_eq!(handle.snapshot().pending, 100);

    let other = Builder::new_current_thread().enable_time().build().unwrap();
    let draining = {
        let handle = handle.clone();
        std::thread::spawn(move || other.block_on(async move { drain(&handle).await }))
    };
    drop(lost);
    drop(idle);
    let report = draining.join().unwrap();
    assert_eq!((report.accepted, report.ended.aborted), (100, 100));
    assert_eq!(report.by_name["never polled"].counts.aborted, 50);
    assert_conserved(&handle.snapshot());
}

#[test]
fn an_event_for_a_runtime_that_is_gone_is_accepted_and_aborted() {
    let handle = TrackEventsHandle::new();
    let runtime = Builder::new_current_thread().build().unwrap();
    runtime.block_on(async { handle.track("in time", async {}).unwrap() });
    drop(runtime);
    // Outside of any runtime, an event runs on the first one that was seen.
    handle.track("too late", async {}).unwrap();
    handle.track_blocking("too late", || {}).unwrap();
    let now = handle.snapshot();
    assert_eq!((now.accepted, now.ended.aborted), (3, 3));
}

#[test]
fn without_any_runtime_an_event_is_rejected_and_counted() {
    let handle = TrackEventsHandle::new();
    assert_eq!(handle.track("nowhere", async {}), Err(TrackError::NoRuntime));
    assert_eq!(handle.track_blocking("nowhere", || {}), Err(TrackError::NoRuntime));
    assert_eq!(handle.reserve().err(), Some(TrackError::NoRuntime));
    let now = handle.snapshot();
    assert_eq!((now.accepted, now.rejected, now.reserved), (0, 3, 0));
}

#[test]
fn an_event_tracked_outside_a_runtime_runs_on_the_first_one_seen() {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let handle = TrackEventsHandle::new();
    runtime.block_on(async { handle.track("inside", async {}).unwrap() });
    let (sender, receiver) = oneshot::channel();
    handle
        .track("outside", async move {
            let _ = sender.send(());
        })
        .unwrap();
    runtime.block_on(receiver).unwrap();
    let report = runtime.block_on(async { drain(&handle).await });
    assert_eq!(report.ended.completed, 2);
}

#[test]
fn a_time_limit_on_a_runtime_without_timers_lets_the_event_run() {
    let runtime = Builder::new_current_thread().build().unwrap();
    let handle = TrackEventsHandle::builder().event_timeout(Duration::from_secs(1)).build().unwrap();
    runtime.block_on(async {
        handle.track("unlimited", tokio::task::yield_now()).unwrap();
        run_tasks().await;
    });
    assert_eq!(handle.snapshot().ended.completed, 1);
}

#[test]
fn all_events_run_on_the_runtime_of_the_builder() {
    let build = |name: &str| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name(name).enable_all().build().unwrap()
    };
    let (given, other) = (build("given"), build("other"));
    let handle = TrackEventsHandle::builder().runtime(given.handle().clone()).build().unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    let track = |name: &'static str| {
        let sender = sender.clone();
        let thread = move || sender.send((name, std::thread::current().name().unwrap().to_owned())).unwrap();
        handle.track(name, async move { thread() }).unwrap();
    };

    track("outside of any");
    other.block_on(async { track("inside another") });
    let service = TrackEventsLayer::new(handle.clone())
        .track_from_request("layer", {
            let sender = sender.clone();
            move |_request| {
                let sender = sender.clone();
                move |_exchange| async move {
                    sender.send(("layer", std::thread::current().name().unwrap().to_owned())).map_err(|_| "no receiver")
                }
            }
        })
        .layer(service_fn(|_: Request<()>| async {
            Ok::<_, std::convert::Infallible>(http::Response::new(Script::empty()))
        }));
    drop(other.block_on(service.oneshot(Request::new(()))).unwrap());
    given.block_on(drain(&handle));

    let mut seen: Vec<_> = receiver.try_iter().collect();
    seen.sort();
    let on_given = |name: &'static str| (name, "given".to_owned());
    assert_eq!(seen, ["inside another", "layer", "outside of any"].map(on_given));
}

#[test]
fn without_a_runtime_a_request_is_served_and_its_events_are_rejected() {
    let handle = TrackEventsHandle::new();
    for overflow in [Overflow::Reject, Overflow::Wait(Duration::from_secs(1))] {
        let layer = TrackEventsLayer::new(handle.clone()).track("audit", |_exchange| async {});
        let service = layer.overflow(overflow).layer(service_fn(|request: Request<()>| async move {
            let events = Events::from_extensions(request.extensions()).unwrap();
            assert_eq!(events.track("handler", async {}), Err(TrackError::NoRuntime));
            Ok::<_, std::convert::Infallible>(http::Response::new(Script::empty()))
        }));
        let response = futures_util::future::FutureExt::now_or_never(service.oneshot(Request::new(())));
        drop(response.unwrap().unwrap());
    }
    let now = handle.snapshot();
    assert_eq!((now.rejected, now.accepted, now.open_requests), (4, 0, 0));
}
