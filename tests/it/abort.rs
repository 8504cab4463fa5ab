//! What an abort ends, and what it leaves.

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
use tower_track_events::{DrainError, Events, TrackEventsHandle, TrackEventsLayer};

use crate::support::{Answer, Counter, OnDrop, Script, assert_conserved, drain, poll_once, settle, unsettled};

#[tokio::test]
async fn events_end_whether_they_run_or_wait_and_exchanges_guards_and_permits_stay() {
    let handle = TrackEventsHandle::new();
    let (dropped, guard, permit) = (Counter::default(), handle.guard().unwrap(), handle.reserve().unwrap());
    let held = OnDrop::counting(&dropped);
    handle.track("runs", async move { drop((pending::<()>().await, held)) }).unwrap();
    settle().await;
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
    assert_eq!(dropped.get(), 1, "what waits for its exchange is dropped in the call");
    assert_conserved(&handle.snapshot());
    settle().await;

    let now = handle.snapshot();
    assert_eq!((dropped.get(), now.pending, now.aborted), (3, 0, 3));
    assert_eq!((now.open_requests, now.open_guards, now.reserved), (1, 1, 1));
    let Err(DrainError::CutShort(left)) = handle.drain(Duration::ZERO).await else { panic!("three are open") };
    assert_eq!((left.open_requests, left.guards.len(), left.permits.len(), left.events.len()), (1, 1, 1, 0));

    // Nothing was closed, not even for the exchange.
    permit.track("after the abort", async {});
    drop((exchange, guard));
    let report = drain(&handle).await;
    assert_eq!((report.endings.aborted, report.endings.completed, report.accepted), (3, 1, 4));
    assert_eq!(report.wrong.len(), 3);
}

#[tokio::test]
async fn an_event_that_is_recorded_after_the_abort_is_not_aborted() {
    let handle = TrackEventsHandle::new();
    let (tell, told) = mpsc::channel::<Events>();
    let exchange = open_exchange(&handle, move |events| {
        events.track("before", async {}).unwrap();
        tell.send(events).unwrap();
    })
    .await;
    let events = told.recv().unwrap();

    handle.abort();
    events.track("after", async {}).unwrap();
    drop((exchange, events));
    let report = drain(&handle).await;

    assert_eq!((report.endings.aborted, report.endings.completed), (1, 1));
    assert_eq!(report.wrong[0].name, "before");
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
    // Each was polled when its turn came: the first aborted the second before that.
    assert_eq!((report.endings.completed, report.endings.aborted), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn an_event_that_is_aborted_and_out_of_time_is_aborted() {
    let limit = Duration::from_secs(1);
    let handle = TrackEventsHandle::builder().event_timeout(limit).build().unwrap();
    handle.track("both", pending::<()>()).unwrap();
    settle().await;
    // Both happen before it is polled again.
    handle.abort();
    tokio::time::advance(limit).await;

    assert_eq!(drain(&handle).await.endings.aborted, 1);
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
    settle().await;
    release.send(()).unwrap();
    handle.abort();

    assert_eq!(drain(&handle).await.endings.aborted, 1);
    assert!(!ran.load(Ordering::Relaxed));
}

#[tokio::test]
async fn a_destructor_that_panics_in_an_abort_is_counted_and_takes_no_other_along() {
    let handle = TrackEventsHandle::new();
    let exchange = open_exchange(&handle, |events| {
        let bomb = OnDrop::new(|| panic!("a destructor"));
        events.track("bomb", async move { drop(bomb) }).unwrap();
        events.track("beside it", async {}).unwrap();
    })
    .await;

    handle.abort();

    let now = handle.snapshot();
    assert_eq!((now.panicked, now.aborted, now.pending), (1, 1, 0));
    drop(exchange);
}

#[test]
fn blocking_work_that_has_a_thread_goes_on_and_the_report_says_so() {
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
        assert_eq!((now.aborted, now.pending, dropped.get()), (1, 1, 1));
        let cut_short = handle.drain(Duration::ZERO).await.unwrap_err();
        let DrainError::CutShort(unfinished) = &cut_short else { panic!("{cut_short}") };
        assert!(unfinished.events[0].blocking);
        assert!(cut_short.to_string().contains("has the thread x1 running on blocking threads"), "{cut_short}");

        release.send(()).unwrap();
        let report = drain(&handle).await;
        assert_eq!((report.endings.completed, report.endings.aborted, ran.get()), (1, 1, 1));
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_event_that_is_accepted_before_an_abort_ends_however_they_meet() {
    for round in 0..200 {
        let handle = unsettled();
        let tracker = {
            let handle = handle.clone();
            tokio::spawn(async move {
                for _ in 0..50 {
                    handle.track("endless", pending::<()>()).unwrap();
                    handle.track("short", tokio::task::yield_now()).unwrap();
                }
            })
        };
        let exchange = open_exchange(&handle, |events| events.track("recorded", pending::<()>()).unwrap()).await;
        handle.abort();
        drop(exchange);
        tracker.await.unwrap();
        handle.abort();

        let report = drain(&handle).await;
        assert_eq!(report.accepted, 101, "round {round}");
    }
}

#[tokio::test]
async fn an_abort_without_events_is_nothing() {
    let handle = TrackEventsHandle::new();
    handle.abort();
    handle.track("after it", async {}).unwrap();
    assert!(drain(&handle).await.all_completed());
    handle.abort();
    assert_eq!(poll_once(handle.drain(Duration::ZERO)).map(|answer| answer.is_ok()), Poll::Ready(true));
}

/// The response of a handler that has recorded something, with its body not polled yet.
async fn open_exchange(handle: &TrackEventsHandle, record: impl Fn(Events) + Clone) -> impl Sized {
    let service = service_fn(move |request: Request<()>| {
        record(Events::from_extensions(request.extensions()).unwrap().clone());
        async { Answer::Ok(http::Response::new(Script::new([]))) }
    });
    TrackEventsLayer::new(handle.clone()).layer(service).oneshot(Request::new(())).await.unwrap()
}
