//! The concurrency limit: how many events run at one time, and what waits for its turn.

use std::{
    future::pending,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use tokio::{sync::oneshot, time::sleep};
use tower_track_events::{BuildError, DrainError, OpenKind, TrackEventsHandle, test::TestExchange};

use crate::support::{Counter, OnDrop, drain, run_tasks};

fn limited(limit: usize) -> TrackEventsHandle {
    TrackEventsHandle::builder().concurrency_limit(limit).quiet_period(Duration::ZERO).build().unwrap()
}

/// Tracks events that wait for a signal each, and returns the signals and the numbers of those that have started.
fn track(handle: &TrackEventsHandle, count: usize) -> (Vec<oneshot::Sender<()>>, Arc<Mutex<Vec<usize>>>) {
    let started = Arc::new(Mutex::new(Vec::new()));
    let signals = (0..count).map(|number| {
        let (signal, signalled) = oneshot::channel::<()>();
        let started = Arc::clone(&started);
        let event = async move {
            started.lock().unwrap().push(number);
            let _ = signalled.await;
        };
        handle.track("limited", event).unwrap();
        signal
    });
    (signals.collect(), started)
}

#[tokio::test]
async fn events_of_the_handle_take_turns_in_the_order_in_which_they_were_tracked() {
    let handle = limited(2);
    let (signals, started) = track(&handle, 5);
    run_tasks().await;
    assert_eq!(*started.lock().unwrap(), [0, 1]);
    let mut signals = signals.into_iter();
    let first = signals.next();
    drop(signals.next());
    run_tasks().await;
    assert_eq!(*started.lock().unwrap(), [0, 1, 2]);
    drop(first);
    run_tasks().await;
    assert_eq!(*started.lock().unwrap(), [0, 1, 2, 3]);
    drop(signals);
    drain(&handle).await;
    assert_eq!(*started.lock().unwrap(), [0, 1, 2, 3, 4]);
}

#[tokio::test]
async fn events_of_responses_and_of_the_handle_share_the_turns() {
    let handle = limited(1);
    let order = Arc::new(Mutex::new(Vec::new()));
    let add = |name: &'static str| {
        let order = Arc::clone(&order);
        async move {
            order.lock().unwrap().push(name);
            tokio::task::yield_now().await;
            order.lock().unwrap().push("end");
        }
    };
    let exchange = TestExchange::new(&handle);
    exchange.events().track("of a response", add("first")).unwrap();
    exchange.events().track("of a response", add("second")).unwrap();
    drop(exchange);
    handle.track("of the handle", add("third")).unwrap();
    drain(&handle).await;
    assert_eq!(*order.lock().unwrap(), ["first", "end", "second", "end", "third", "end"]);
}

#[tokio::test]
async fn an_event_that_waits_for_one_that_it_tracks_does_not_wait_forever() {
    let handle = limited(1);
    let tracks = handle.clone();
    let parent = async move {
        let (done, is_done) = oneshot::channel::<()>();
        let grandchild = tracks.clone();
        let child = async move { grandchild.track("grandchild", async { drop(done) }) };
        tracks.track("child", child).unwrap();
        let _ = is_done.await;
    };
    handle.track("parent", parent).unwrap();
    assert_eq!(drain(&handle).await.ended.completed, 3);
}

/// A handler is no event, whatever runs on its thread.
#[tokio::test]
async fn an_event_that_a_handler_tracks_needs_a_turn() {
    let handle = limited(1);
    let (signals, _) = track(&handle, 1);
    run_tasks().await;
    let (tracks, ran) = (handle.clone(), Counter::default());
    let counts = ran.clone();
    let service = tower::service_fn(move |_: http::Request<()>| {
        let counts = counts.clone();
        tracks.track("of a handler", async move { counts.add() }).unwrap();
        async { Ok::<_, std::convert::Infallible>(http::Response::new(http_body_util::Empty::<bytes::Bytes>::new())) }
    });
    let service = tower::Layer::layer(&handle.layer(), service);
    drop(tower::ServiceExt::oneshot(service, http::Request::new(())).await.unwrap());
    run_tasks().await;
    assert_eq!(ran.get(), 0);
    drop(signals);
    drain(&handle).await;
    assert_eq!(ran.get(), 1);
}

#[tokio::test]
async fn blocking_work_waits_for_its_turn_without_a_thread() {
    let handle = limited(1);
    let (signals, _) = track(&handle, 1);
    let (send, ran) = mpsc::channel();
    let sends = send.clone();
    handle.track_blocking("of the handle", move || sends.send("handle").unwrap()).unwrap();
    let exchange = TestExchange::new(&handle);
    exchange.events().track_blocking("of a response", move || send.send("response").unwrap()).unwrap();
    drop(exchange);
    run_tasks().await;
    assert!(ran.try_recv().is_err());
    let Err(DrainError::TimedOut(report)) = handle.drain(Duration::ZERO).await else { panic!("events are pending") };
    let mut kinds: Vec<_> = report.open.iter().map(|item| (item.name.as_deref().unwrap(), item.kind)).collect();
    kinds.sort_by_key(|(name, _)| *name);
    let expected = [
        ("limited", OpenKind::RunningEvent),
        ("of a response", OpenKind::LimitedEvent),
        ("of the handle", OpenKind::LimitedEvent),
    ];
    assert_eq!(kinds, expected);
    drop(signals);
    drain(&handle).await;
    assert_eq!([ran.recv().unwrap(), ran.recv().unwrap()], ["handle", "response"]);
}

/// Ten events of 100 ms behind a limit of two, and a time limit of 250 ms.
#[tokio::test(start_paused = true)]
async fn the_time_limit_counts_from_the_turn() {
    let builder = TrackEventsHandle::builder().concurrency_limit(2).event_timeout(Duration::from_millis(250));
    let handle = builder.build().unwrap();
    for _ in 0..10 {
        handle.track("query", sleep(Duration::from_millis(100))).unwrap();
    }
    assert_eq!(drain(&handle).await.ended.completed, 10);
}

#[tokio::test]
async fn an_abort_ends_what_waits_and_turns_pass_on() {
    let handle = limited(1);
    let dropped = Counter::default();
    for _ in 0..3 {
        let held = OnDrop::counting(&dropped);
        handle.track("async", async move { drop((pending::<()>().await, held)) }).unwrap();
    }
    let held = OnDrop::counting(&dropped);
    handle.track_blocking("blocking", move || drop(held)).unwrap();
    run_tasks().await;
    handle.abort();
    run_tasks().await;
    let now = handle.snapshot();
    assert_eq!((dropped.get(), now.pending, now.ended.aborted), (4, 0, 4));
    // The turn is free.
    handle.track("later", async {}).unwrap();
    assert_eq!(drain(&handle).await.ended.completed, 1);
}

#[test]
fn a_runtime_that_is_dropped_lets_go_of_the_turns() {
    let handle = limited(1);
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime().block_on(async {
        handle.track("runs", pending::<()>()).unwrap();
        handle.track("waits", pending::<()>()).unwrap();
        run_tasks().await;
    });
    assert_eq!(handle.snapshot().ended.aborted, 2);
    runtime().block_on(async {
        handle.track("later", async {}).unwrap();
        assert_eq!(drain(&handle).await.ended.completed, 1);
    });
}

#[tokio::test]
async fn a_panic_gives_the_turn_back() {
    let handle = limited(1);
    handle.track("panics", async { std::panic::resume_unwind(Box::new("no ink")) }).unwrap();
    handle.track("later", async {}).unwrap();
    let report = drain(&handle).await;
    assert_eq!((report.ended.panicked, report.ended.completed), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_drain_and_its_progress_name_what_waits() {
    let (lines, _guard) = crate::observing::Lines::capture();
    let handle = limited(1);
    let (signals, _) = track(&handle, 3);
    let error = handle.drain(Duration::from_millis(1_500)).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("limited x1 running (") && text.contains("limited x2 waiting for a turn ("), "{text}");
    let lines = lines.take();
    let progress =
        "draining: 0 requests open, 3 events pending (limited x3), 2 of them waiting for a turn, 1.0 s of 1.5 s";
    assert!(lines.iter().any(|line| line.contains(progress)), "{lines:#?}");
    assert!(handle.wait_idle(Duration::ZERO).await.is_err());
    drop(signals);
    drain(&handle).await;
}

#[tokio::test]
async fn events_that_wait_count_against_the_capacity() {
    let builder = TrackEventsHandle::builder().concurrency_limit(1).capacity(2).quiet_period(Duration::ZERO);
    let handle = builder.build().unwrap();
    let (signals, _) = track(&handle, 2);
    run_tasks().await;
    assert!(handle.track("third", async {}).is_err());
    drop(signals);
    assert_eq!(drain(&handle).await.rejected, 1);
}

#[test]
fn a_limit_of_zero_is_an_error() {
    let error = TrackEventsHandle::builder().concurrency_limit(0).build().unwrap_err();
    assert_eq!(error, BuildError::ConcurrencyLimit(0));
    assert!(error.to_string().starts_with("the concurrency limit must be from 1 to "), "{error}");
}
