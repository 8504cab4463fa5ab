//! The drain: when it ends, its result, what it waits for, and where it is an error.

use std::{future::pending, pin::pin, sync::Arc, task::Poll, time::Duration};

use http::{Request, Response};
use tokio::{
    runtime::Builder,
    sync::{Notify, oneshot},
    time::Instant,
};
use tokio_test::{assert_pending, assert_ready, task};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_track_events::{DrainError, DrainReport, Events, OpenKind, TrackError, TrackEventsHandle, TrackEventsLayer};

use crate::support::{Answer, Counter, Script, drain, open_events, poll_once, run_tasks, without_quiet_period};

#[track_caller]
fn timed_out(result: Result<DrainReport, DrainError>) -> DrainReport {
    match result {
        Err(DrainError::TimedOut(report)) => *report,
        other => panic!("timed out: {other:?}"),
    }
}

#[tokio::test]
async fn an_idle_handle_is_drained_at_once_and_stays_drained() {
    let handle = without_quiet_period();
    let report = assert_ready!(task::spawn(handle.drain(Duration::ZERO)).poll()).unwrap();
    assert!(report.all_completed());
    assert_eq!(handle.track("late", async {}), Err(TrackError::Closed));
    assert_eq!(handle.track_blocking("late", || {}), Err(TrackError::Closed));
    assert_eq!(handle.guard().err(), Some(TrackError::Closed));
    assert_eq!(handle.reserve().err(), Some(TrackError::Closed));
    assert_eq!(handle.snapshot().rejected, 4);
    // Another drain has the same result.
    assert!(handle.drain(Duration::MAX).await.is_ok());
    assert!(handle.drain_until(pending::<()>()).await.is_ok());
}

#[tokio::test]
async fn a_drain_is_lazy() {
    let handle = without_quiet_period();
    drop(handle.drain(Duration::ZERO));
    assert!(!handle.is_draining());
    handle.track("still accepted", async {}).unwrap();
}

#[tokio::test]
async fn a_drain_waits_for_a_guard() {
    let handle = without_quiet_period();
    let guard = handle.guard().unwrap();
    let mut drain = task::spawn(handle.drain(Duration::MAX));
    assert_pending!(drain.poll());
    assert!(!drain.is_woken());
    assert_eq!(handle.snapshot().open_guards, 1);
    drop(guard);
    assert!(drain.is_woken());
    assert_ready!(drain.poll()).unwrap();
}

#[tokio::test]
async fn a_drain_waits_for_a_permit_and_then_for_its_event() {
    let handle = without_quiet_period();
    let permit = handle.reserve().unwrap();
    let unused = handle.reserve().unwrap();
    let mut drain = task::spawn(handle.drain(Duration::MAX));
    assert_pending!(drain.poll());
    let (release, gate) = oneshot::channel::<()>();
    permit.track("reserved", gate);
    assert_eq!((handle.snapshot().reserved, handle.snapshot().pending), (1, 1));
    drop(unused);
    assert_pending!(drain.poll());
    release.send(()).unwrap();
    run_tasks().await;
    assert!(drain.is_woken());
    let report = assert_ready!(drain.poll()).unwrap();
    assert_eq!((report.accepted, report.ended.completed), (1, 1));
}

#[tokio::test]
async fn a_drain_waits_for_a_request_and_then_for_its_events() {
    let handle = without_quiet_period();
    let gate = Arc::new(Notify::new());
    let service = {
        let gate = Arc::clone(&gate);
        TrackEventsLayer::new(handle.clone()).layer(service_fn(move |request: Request<()>| {
            let events = Events::from_extensions(request.extensions()).unwrap().clone();
            let gate = Arc::clone(&gate);
            async move {
                events.track("audit", async move { gate.notified().await }).unwrap();
                Answer::Ok(Response::new(Script::empty()))
            }
        }))
    };
    let mut call = task::spawn(service.oneshot(Request::new(())));
    let response = assert_ready!(call.poll()).unwrap();
    drop(call);
    let mut drain = task::spawn(handle.drain(Duration::MAX));
    assert_pending!(drain.poll());
    drop(response);
    run_tasks().await;
    assert_pending!(drain.poll());
    gate.notify_one();
    run_tasks().await;
    assert_eq!(assert_ready!(drain.poll()).unwrap().ended.completed, 1);
}

#[tokio::test]
async fn a_limit_of_zero_checks_once_and_cancels_nothing() {
    let handle = without_quiet_period();
    let gate = Arc::new(Notify::new());
    let opened = Arc::clone(&gate);
    handle.track("slow", async move { opened.notified().await }).unwrap();
    let report = timed_out(handle.drain(Duration::ZERO).await);
    assert_eq!(open_events(&report), [("slow", 1)]);
    assert!(handle.is_draining());
    handle.track("still accepted", async {}).unwrap();
    gate.notify_one();
    let report = drain(&handle).await;
    assert_eq!(report.ended.completed, 2);
}

#[tokio::test(start_paused = true)]
async fn the_limit_counts_from_the_first_poll() {
    let handle = TrackEventsHandle::new();
    let _guard = handle.guard().unwrap();
    let drain = handle.drain(Duration::from_secs(5));
    tokio::time::advance(Duration::from_secs(60)).await;
    let before = Instant::now();
    let report = timed_out(drain.await);
    assert_eq!(before.elapsed().as_secs(), 5);
    assert_eq!(report.open[0].oldest.as_secs(), 65);
    assert_eq!(report.elapsed.as_secs(), 5);
    assert!(report.open[0].location.unwrap().file().ends_with("drain.rs"));
}

#[tokio::test(start_paused = true)]
async fn any_future_interrupts_a_drain() {
    let handle = TrackEventsHandle::new();
    let guard = handle.guard().unwrap();
    let (second_signal, stop) = oneshot::channel::<()>();
    let mut drain = task::spawn(handle.drain_until(stop));
    assert_pending!(drain.poll());
    second_signal.send(()).unwrap();
    assert!(drain.is_woken());
    assert!(matches!(assert_ready!(drain.poll()), Err(DrainError::Interrupted(_))));
    drop(guard);
    // A drain that is interrupted checks once more: nothing is open, and it closes.
    assert!(assert_ready!(task::spawn(handle.drain_until(std::future::ready(()))).poll()).is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_longest_limit_does_not_overflow() {
    let handle = TrackEventsHandle::new();
    for limit in [Duration::MAX, Duration::MAX - Duration::from_nanos(1)] {
        let guard = handle.guard().unwrap();
        let mut drain = task::spawn(handle.drain(limit));
        assert_pending!(drain.poll());
        drop((drain, guard));
    }
    drain(&handle).await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_the_quiet_period_before_it_closes() {
    let handle = TrackEventsHandle::builder().quiet_period(Duration::from_millis(10)).build().unwrap();
    let mut drain = task::spawn(handle.drain(Duration::from_secs(5)));
    assert_pending!(drain.poll());
    // A request whose task was spawned before the drain arrives 9 ms later.
    tokio::time::advance(Duration::from_millis(9)).await;
    assert_pending!(drain.poll());
    drop(handle.guard().unwrap());
    // The quiet period starts again, although the counts are the same as before.
    tokio::time::advance(Duration::from_millis(2)).await;
    assert_pending!(drain.poll());
    handle.track("late and accepted", async {}).unwrap();
    run_tasks().await;
    assert_pending!(drain.poll());
    tokio::time::advance(Duration::from_millis(9)).await;
    assert_pending!(drain.poll());
    tokio::time::advance(Duration::from_millis(2)).await;
    assert!(drain.is_woken());
    assert_eq!(assert_ready!(drain.poll()).unwrap().ended.completed, 1);
    assert_eq!(handle.track("too late", async {}), Err(TrackError::Closed));
}

#[tokio::test(start_paused = true)]
async fn the_quiet_period_ends_with_the_limit() {
    let handle = TrackEventsHandle::builder().quiet_period(Duration::from_secs(60)).build().unwrap();
    let before = Instant::now();
    assert!(handle.drain(Duration::from_secs(1)).await.is_ok());
    assert_eq!(before.elapsed().as_secs(), 1);
}

#[tokio::test]
async fn several_drains_agree() {
    let handle = without_quiet_period();
    let guard = handle.guard().unwrap();
    let mut drains: Vec<_> = (0..5).map(|_| task::spawn(handle.drain(Duration::MAX))).collect();
    for drain in &mut drains {
        assert_pending!(drain.poll());
    }
    drop(drains.remove(2));
    timed_out(handle.drain(Duration::ZERO).await);
    drop(guard);
    assert!(drains.iter().all(|drain| drain.is_woken()));
    for drain in &mut drains {
        assert!(assert_ready!(drain.poll()).unwrap().all_completed());
    }
}

#[tokio::test]
async fn a_waiting_drain_is_woken_when_another_closes() {
    // The first waits for the quiet period; the second closes at once, because its limit has passed.
    let handle = TrackEventsHandle::builder().quiet_period(Duration::from_secs(3600)).build().unwrap();
    let mut waiting = task::spawn(handle.drain(Duration::MAX));
    assert_pending!(waiting.poll());
    assert!(handle.drain(Duration::ZERO).await.is_ok());
    assert!(waiting.is_woken());
    assert!(assert_ready!(waiting.poll()).is_ok());
}

#[tokio::test]
async fn a_drain_may_move_to_another_task() {
    let handle = without_quiet_period();
    let guard = handle.guard().unwrap();
    let mut drain = Box::pin(handle.drain(Duration::MAX));
    assert!(poll_once(drain.as_mut()).is_pending());
    // The waker of the last poll is woken.
    let moved = tokio::spawn(drain);
    run_tasks().await;
    drop(guard);
    assert!(moved.await.unwrap().is_ok());
}

#[tokio::test]
async fn a_dropped_drain_loses_nothing_and_closes_nothing() {
    let handle = without_quiet_period();
    let gate = Arc::new(Notify::new());
    let opened = Arc::clone(&gate);
    handle.track("slow", async move { opened.notified().await }).unwrap();
    let mut dropped = task::spawn(handle.drain(Duration::MAX));
    assert_pending!(dropped.poll());
    drop(dropped);
    handle.track("still accepted", async {}).unwrap();
    gate.notify_one();
    assert_eq!(drain(&handle).await.ended.completed, 2);
}

#[tokio::test]
async fn a_dropped_drain_releases_its_own_waker_only() {
    let handle = without_quiet_period();
    let guard = handle.guard().unwrap();
    let mut tasks = [(); 2].map(|()| task::spawn(()));
    let before = tasks.each_mut().map(|task| task.waker_ref_count());
    let [first, second] = tasks.each_mut().map(|task| {
        let mut drain = Box::pin(handle.drain(Duration::MAX));
        assert_pending!(task.enter(|cx, _| drain.as_mut().poll(cx)));
        (drain, task.waker_ref_count())
    });
    drop(first);
    assert_eq!(tasks.each_mut().map(|task| task.waker_ref_count()), [before[0], second.1]);
    drop(guard);
    assert_eq!(tasks.each_mut().map(|task| task.is_woken()), [false, true]);
    drop(second);
    assert_eq!(tasks.each_mut().map(|task| task.waker_ref_count()), before);
}

#[tokio::test]
async fn begin_drain_raises_the_signal_and_rejects_nothing() {
    let handle = without_quiet_period();
    let mut draining = task::spawn(handle.draining());
    assert_pending!(draining.poll());
    handle.begin_drain();
    handle.begin_drain();
    assert!(draining.is_woken());
    assert_ready!(draining.poll());
    assert_ready!(task::spawn(handle.draining()).poll());
    assert!(handle.is_draining() && handle.clone().is_draining());
    // The handle was idle for a moment, and is not closed.
    drop(handle.guard().unwrap());
    handle.track("accepted", async {}).unwrap();
    drain(&handle).await;
}

#[tokio::test]
async fn the_first_poll_of_a_drain_raises_the_signal() {
    let handle = without_quiet_period();
    let guard = handle.guard().unwrap();
    let mut draining = task::spawn(handle.draining());
    assert_pending!(draining.poll());
    let mut drain = task::spawn(handle.drain(Duration::MAX));
    assert_pending!(drain.poll());
    assert!(draining.is_woken());
    assert_ready!(draining.poll());
    drop(guard);
}

#[tokio::test]
async fn draining_outlives_its_handle_and_keeps_nothing_open() {
    let handle = TrackEventsHandle::new();
    let mut draining = task::spawn(handle.draining());
    drop(handle);
    assert_pending!(draining.poll());
    assert!(!draining.is_woken());
}

#[tokio::test]
async fn clones_of_handle_layer_and_service_keep_nothing_open() {
    let (layer, handle) = TrackEventsLayer::pair();
    let service = layer.layer(service_fn(|_: Request<()>| async { Answer::Ok(Response::new(Script::empty())) }));
    let _copies = (layer.clone(), handle.clone(), service.clone());
    assert!(handle.drain(Duration::ZERO).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_report_counts_events_that_ended_since_the_drain_began() {
    let handle = without_quiet_period();
    handle.track("before", async {}).unwrap();
    run_tasks().await;
    handle.begin_drain();
    handle.track("after", async { Err::<(), _>("no") }).unwrap();
    tokio::time::advance(Duration::from_secs(2)).await;
    let report = drain(&handle).await;
    assert_eq!((report.ended.completed, report.ended.failed), (1, 1));
    assert_eq!((report.since_drain.completed, report.since_drain.failed), (0, 1));
    assert_eq!(report.elapsed.as_secs(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_event_has_its_own_age() {
    let handle = without_quiet_period();
    let service = TrackEventsLayer::new(handle.clone())
        .track("audit", |_| pending::<()>())
        .layer(service_fn(|_: Request<()>| async { Answer::Ok(Response::new(Script::new([]))) }));
    let response = service.oneshot(Request::new(())).await.unwrap();
    tokio::time::advance(Duration::from_secs(3600)).await;
    let report = timed_out(handle.drain(Duration::ZERO).await);
    let ages: Vec<_> = report.open.iter().map(|item| (item.kind, item.oldest.as_secs())).collect();
    assert_eq!(ages, [(OpenKind::Request, 3600), (OpenKind::WaitingEvent, 3600)]);
    drop(response);
    run_tasks().await;
    tokio::time::advance(Duration::from_secs(2)).await;
    let report = timed_out(handle.drain(Duration::ZERO).await);
    assert_eq!((report.open[0].kind, report.open[0].oldest.as_secs()), (OpenKind::RunningEvent, 2));
}

#[tokio::test]
async fn a_drain_inside_an_event_a_handler_or_a_body_is_an_error_before_any_effect() {
    let handle = TrackEventsHandle::new();
    let errors = Counter::default();
    let inside = {
        let (handle, errors) = (handle.clone(), errors.clone());
        move || {
            let (handle, errors) = (handle.clone(), errors.clone());
            async move {
                if matches!(handle.drain(Duration::MAX).await, Err(DrainError::InsideItself)) {
                    errors.add();
                }
            }
        }
    };
    handle.track("event", inside()).unwrap();
    let runtime = tokio::runtime::Handle::current();
    let blocking = inside();
    handle.track_blocking("blocking", move || runtime.block_on(blocking)).unwrap();

    let (in_handler, in_body) = (inside.clone(), inside.clone());
    let mut service = TrackEventsLayer::new(handle.clone()).layer(service_fn(move |_: Request<()>| {
        let (in_handler, in_body) = (in_handler(), in_body());
        async move {
            in_handler.await;
            let body = http_body_util::StreamBody::new(futures_util::stream::once(async move {
                in_body.await;
                Ok::<_, &str>(http_body::Frame::data(bytes::Bytes::new()))
            }));
            Ok::<_, &str>(Response::new(body))
        }
    }));
    let response = service.ready().await.unwrap().call(Request::new(())).await.unwrap();
    assert!(http_body_util::BodyExt::collect(response.into_body()).await.is_ok());
    while errors.get() < 4 {
        tokio::task::yield_now().await;
    }
    assert!(!handle.is_draining());
    drain(&handle).await;
}

#[tokio::test]
async fn the_drain_of_another_handle_is_allowed_inside_an_event_also_when_nested() {
    let (outer, inner) = (without_quiet_period(), without_quiet_period());
    let answers = Arc::new(std::sync::Mutex::new(Vec::new()));
    let service = {
        // An exchange of the inner handle, polled within an event of the outer one.
        let (outer, answers) = (outer.clone(), Arc::clone(&answers));
        TrackEventsLayer::new(inner.clone()).layer(service_fn(move |_: Request<()>| {
            let (outer, answers) = (outer.clone(), Arc::clone(&answers));
            async move {
                let answer = outer.drain(Duration::ZERO).await;
                answers.lock().unwrap().push(matches!(answer, Err(DrainError::InsideItself)));
                Answer::Ok(Response::new(Script::empty()))
            }
        }))
    };
    let drained = inner.clone();
    let event_answers = Arc::clone(&answers);
    outer
        .track("event", async move {
            let _ = service.oneshot(Request::new(())).await;
            let is_drained = drained.drain(Duration::ZERO).await.is_ok();
            event_answers.lock().unwrap().push(is_drained);
        })
        .unwrap();
    drain(&outer).await;
    assert_eq!(*answers.lock().unwrap(), [true, true]);
}

#[test]
fn without_a_timer_a_drain_is_an_error() {
    let handle = TrackEventsHandle::new();
    assert!(matches!(poll_once(handle.drain(Duration::from_secs(1))), Poll::Ready(Err(DrainError::NoTimer))));
    // Without a limit the quiet period still needs a timer.
    assert!(matches!(poll_once(handle.drain(Duration::MAX)), Poll::Ready(Err(DrainError::NoTimer))));
    let runtime = Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        assert!(matches!(handle.drain(Duration::from_secs(1)).await, Err(DrainError::NoTimer)));
    });
    // Without a limit and without a quiet period no timer is needed.
    assert!(matches!(poll_once(handle.drain(Duration::ZERO)), Poll::Ready(Ok(_))));
    assert!(matches!(poll_once(without_quiet_period().drain(Duration::MAX)), Poll::Ready(Ok(_))));
}

#[tokio::test]
#[should_panic = "a drain was polled after it had ended"]
async fn polling_a_drain_that_has_ended_panics() {
    let handle = without_quiet_period();
    let mut drain = pin!(handle.drain(Duration::ZERO));
    let _ = poll_once(drain.as_mut());
    let _ = poll_once(drain.as_mut());
}
