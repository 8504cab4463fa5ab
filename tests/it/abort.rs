//! Which events an abort ends, and what stays open.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    task::Poll,
    time::Duration,
};

use http::Request;
use tokio::sync::oneshot;
use tower::{Layer, ServiceExt, service_fn};
use tower_track_events::{DrainError, Events, OpenKind, TrackEventsHandle, TrackEventsLayer, test::TestExchange};

use crate::support::{
    Answer, Counter, OnDrop, Script, assert_conserved, drain, poll_once, run_tasks, without_quiet_period,
};

#[tokio::test]
async fn running_and_waiting_events_end_and_exchanges_guards_and_permits_stay() {
    let handle = TrackEventsHandle::new();
    let (dropped, guard, permit) = (Counter::default(), handle.guard().unwrap(), handle.reserve().unwrap());
    let held = OnDrop::counting(&dropped);
    handle.track("runs", async move { drop((pending::<()>().await, held)) }).unwrap();
    run_tasks().await;
    let held = OnDrop::counting(&dropped);
    handle.track("has not been polled", async move { drop((pending::<()>().await, held)) }).unwrap();
    let exchange = open_exchange(&handle, {
        let dropped = dropped.clone();
        move |events| {
            let held = OnDrop::counting(&dropped);
            events.track("waits for its exchange", async move { drop(held) }).unwrap();
        }
    })
    .await;

    handle.abort();
    assert_eq!(dropped.get(), 1, "an event that waits for its exchange is dropped in the call");
    assert_conserved(&handle.snapshot());
    run_tasks().await;

    let now = handle.snapshot();
    assert_eq!((dropped.get(), now.pending, now.ended.aborted), (3, 0, 3));
    assert_eq!((now.open_requests, now.open_guards, now.reserved), (1, 1, 1));
    let Err(DrainError::TimedOut(report)) = handle.drain(Duration::ZERO).await else { panic!("three are open") };
    let kinds: Vec<_> = report.open.iter().map(|item| (item.kind, item.count)).collect();
    assert_eq!(kinds, [(OpenKind::Request, 1), (OpenKind::Guard, 1), (OpenKind::Permit, 1)]);

    // Nothing was closed, not even for the exchange.
    permit.track("after the abort", async {});
    drop((exchange, guard));
    let report = drain(&handle).await;
    assert_eq!((report.ended.aborted, report.ended.completed, report.accepted), (3, 1, 4));
    assert_eq!(report.by_name.len(), 3);
}

#[tokio::test]
async fn an_event_tracked_after_the_abort_is_not_aborted() {
    let handle = TrackEventsHandle::new();
    let (sender, receiver) = mpsc::channel::<Events>();
    let exchange = open_exchange(&handle, move |events| {
        events.track("before", async {}).unwrap();
        sender.send(events).unwrap();
    })
    .await;
    let events = receiver.recv().unwrap();

    handle.abort();
    events.track("after", async {}).unwrap();
    drop((exchange, events));
    let report = drain(&handle).await;

    assert_eq!((report.ended.aborted, report.ended.completed), (1, 1));
    assert_eq!(report.by_name["before"].counts.aborted, 1);
}

#[tokio::test]
async fn an_event_that_returns_in_the_poll_in_which_it_is_aborted_has_completed() {
    let handle = TrackEventsHandle::new();
    let aborter = handle.clone();
    handle.track("returns", async move { aborter.abort() }).unwrap();
    let aborter = handle.clone();
    handle
        .track("waits", async move {
            aborter.abort();
            pending::<()>().await;
        })
        .unwrap();

    let report = drain(&handle).await;
    // The first event aborts the second before that is polled.
    assert_eq!((report.ended.completed, report.ended.aborted), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn an_event_that_is_aborted_and_out_of_time_is_aborted() {
    let limit = Duration::from_secs(1);
    let handle = TrackEventsHandle::builder().event_timeout(limit).build().unwrap();
    handle.track("both", pending::<()>()).unwrap();
    run_tasks().await;
    // Both happen before it is polled again.
    handle.abort();
    tokio::time::advance(limit).await;

    assert_eq!(drain(&handle).await.ended.aborted, 1);
}

#[tokio::test]
async fn an_event_that_is_ready_when_it_is_aborted_is_not_polled_again() {
    let handle = TrackEventsHandle::new();
    let (release, released) = oneshot::channel::<()>();
    let ran = Arc::new(AtomicBool::new(false));
    let runs = Arc::clone(&ran);
    handle
        .track("late", async move {
            let _ = released.await;
            runs.store(true, Ordering::Relaxed);
        })
        .unwrap();
    run_tasks().await;
    release.send(()).unwrap();
    handle.abort();

    assert_eq!(drain(&handle).await.ended.aborted, 1);
    assert!(!ran.load(Ordering::Relaxed));
}

#[tokio::test]
async fn a_destructor_that_panics_in_an_abort_is_counted_and_affects_no_other_event() {
    let handle = TrackEventsHandle::new();
    let exchange = open_exchange(&handle, |events| {
        let bomb = OnDrop::new(|| panic!("a destructor"));
        events.track("bomb", async move { drop(bomb) }).unwrap();
        events.track("another", async {}).unwrap();
    })
    .await;

    handle.abort();

    let now = handle.snapshot();
    assert_eq!((now.ended.panicked, now.ended.aborted, now.pending), (1, 1, 0));
    drop(exchange);
}

#[test]
fn blocking_work_on_a_thread_continues_and_the_report_names_it() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
    let handle = TrackEventsHandle::new();
    let (started, starts) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let ran = Counter::default();
    let (runs, dropped) = (ran.clone(), Counter::default());
    runtime.block_on(async {
        handle
            .track_blocking("has the thread", move || {
                started.send(()).unwrap();
                released.recv().unwrap();
                runs.add();
            })
            .unwrap();
        let (runs, held) = (ran.clone(), OnDrop::counting(&dropped));
        handle
            .track_blocking("waits for it", move || {
                runs.add();
                drop(held);
            })
            .unwrap();
        starts.recv().unwrap();

        handle.abort();

        let now = handle.snapshot();
        assert_eq!((now.ended.aborted, now.pending, dropped.get()), (1, 1, 1));
        let error = handle.drain(Duration::ZERO).await.unwrap_err();
        let DrainError::TimedOut(report) = &error else { panic!("{error}") };
        assert_eq!(report.open[0].kind, OpenKind::BlockingEvent);
        assert!(error.to_string().contains("has the thread x1 running on blocking threads"), "{error}");

        release.send(()).unwrap();
        let report = drain(&handle).await;
        assert_eq!((report.ended.completed, report.ended.aborted, ran.get()), (1, 1, 1));
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_event_accepted_before_a_concurrent_abort_ends() {
    for round in 0..200 {
        let handle = without_quiet_period();
        let tracker = {
            let handle = handle.clone();
            tokio::spawn(async move {
                for _ in 0..50 {
                    handle.track("endless", pending::<()>()).unwrap();
                    handle.track("short", tokio::task::yield_now()).unwrap();
                }
            })
        };
        let exchange = open_exchange(&handle, |events| events.track("tracked", pending::<()>()).unwrap()).await;
        handle.abort();
        drop(exchange);
        tracker.await.unwrap();
        handle.abort();

        let report = drain(&handle).await;
        assert_eq!(report.accepted, 101, "round {round}");
    }
}

#[tokio::test]
async fn an_abort_without_events_does_nothing() {
    let handle = TrackEventsHandle::new();
    handle.abort();
    handle.track("after it", async {}).unwrap();
    assert!(drain(&handle).await.all_completed());
    handle.abort();
    assert_eq!(poll_once(handle.drain(Duration::ZERO)).map(|answer| answer.is_ok()), Poll::Ready(true));
}

/// The response of a handler that runs `track` on its events, with its body not polled yet.
async fn open_exchange(handle: &TrackEventsHandle, track: impl Fn(Events) + Clone) -> impl Sized {
    let service = service_fn(move |request: Request<()>| {
        track(Events::from_extensions(request.extensions()).unwrap().clone());
        async { Answer::Ok(http::Response::new(Script::new([]))) }
    });
    TrackEventsLayer::new(handle.clone()).layer(service).oneshot(Request::new(())).await.unwrap()
}

#[tokio::test]
async fn a_blocking_event_that_waits_for_its_exchange_is_dropped_in_the_call_and_its_panic_counted() {
    let handle = TrackEventsHandle::new();
    let exchange = TestExchange::new(&handle);
    let bomb = OnDrop::new(|| std::panic::resume_unwind(Box::new("no ink")));
    exchange.events().track_blocking("audit", move || drop(bomb)).unwrap();
    exchange.events().track_blocking("receipt", || {}).unwrap();
    handle.abort();
    let now = handle.snapshot();
    assert_eq!((now.pending, now.ended.panicked, now.ended.aborted), (0, 1, 1));
    drop(exchange);
    drain(&handle).await;
}

#[tokio::test]
async fn a_second_abort_and_a_last_call_reach_the_same_exchange() {
    let handle = TrackEventsHandle::new();
    let exchange = TestExchange::new(&handle);
    for aborted in [1, 2] {
        exchange.events().track("waits", async {}).unwrap();
        handle.abort();
        let now = handle.snapshot();
        assert_eq!((now.pending, now.ended.aborted), (0, aborted));
    }
    exchange.events().track("starts", async {}).unwrap();
    handle.make_last_call();
    run_tasks().await;
    assert_eq!(handle.snapshot().ended.completed, 1);
    drop(exchange);
}
