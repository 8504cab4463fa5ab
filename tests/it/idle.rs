//! `wait_idle`: waiting for an instant at which no event is pending.

use std::{future::pending, pin::pin, time::Duration};

use tokio::sync::oneshot;
use tokio_test::{assert_pending, assert_ready, task};
use tower_track_events::{TrackEventsHandle, WaitIdleError};

use crate::support::{drain, run_tasks};

const LIMIT: Duration = Duration::from_secs(5);

#[tokio::test(start_paused = true)]
async fn wait_idle_waits_for_an_instant_without_pending_events() {
    let handle = TrackEventsHandle::new();
    let (release, released) = oneshot::channel::<()>();
    let (release_child, child_released) = oneshot::channel::<()>();
    let child = handle.clone();
    handle
        .track("parent", async move {
            let _ = released.await;
            child.track("its child", async move { drop(child_released.await) }).unwrap();
        })
        .unwrap();
    let mut wait = task::spawn(handle.wait_idle(LIMIT));
    assert_pending!(wait.poll());
    let _guard = handle.guard().unwrap();
    let _permit = handle.reserve().unwrap();

    release.send(()).unwrap();
    run_tasks().await;
    assert_pending!(wait.poll());
    assert_eq!(handle.snapshot().pending, 1);

    release_child.send(()).unwrap();
    run_tasks().await;
    assert!(wait.is_woken());
    assert_ready!(wait.poll()).unwrap();
}

#[tokio::test]
async fn an_event_accepted_during_the_wait_counts() {
    let handle = TrackEventsHandle::new();
    handle.track("first", async {}).unwrap();
    let mut wait = task::spawn(handle.wait_idle(LIMIT));
    assert_pending!(wait.poll());
    handle.track("second", pending::<()>()).unwrap();
    run_tasks().await;
    assert_pending!(wait.poll());
    handle.abort();
    run_tasks().await;
    assert!(wait.is_woken());
    assert_ready!(wait.poll()).unwrap();
}

#[tokio::test]
async fn wait_idle_closes_nothing_and_raises_no_signal() {
    let handle = TrackEventsHandle::new();
    handle.track("one", async {}).unwrap();
    handle.wait_idle(LIMIT).await.unwrap();
    assert!(!handle.is_draining());
    handle.track("two", async {}).unwrap();
    assert_eq!(drain(&handle).await.ended.completed, 2);
    handle.wait_idle(LIMIT).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn wait_idle_times_out_under_steady_load() {
    let handle = TrackEventsHandle::new();
    fn again(handle: TrackEventsHandle) -> impl Future<Output = ()> + Send {
        // Boxed, because it contains itself.
        let next: std::pin::Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            handle.track("again", again(handle.clone())).unwrap();
        });
        next
    }
    handle.track("again", again(handle.clone())).unwrap();
    assert!(matches!(handle.wait_idle(LIMIT).await, Err(WaitIdleError::TimedOut { .. })));
    handle.abort();
}

#[tokio::test(start_paused = true)]
async fn a_timed_out_wait_names_the_pending_events() {
    let handle = TrackEventsHandle::new();
    handle.track("slow", pending::<()>()).unwrap();
    let line = line!() - 1;
    let mut wait = pin!(handle.wait_idle(LIMIT));
    assert!(futures_util::poll!(wait.as_mut()).is_pending());

    let error = wait.await.unwrap_err();

    let expected = format!("events were pending after 5.0 s: slow x1 running (oldest 5.0 s, {}:{line}:12)", file!());
    assert_eq!(error.to_string(), expected);
    let WaitIdleError::TimedOut { open, after, .. } = error else { panic!("{error}") };
    assert_eq!((open.len(), open[0].name.as_deref(), after), (1, Some("slow"), LIMIT));
}

#[tokio::test]
async fn a_limit_of_zero_checks_once_and_the_longest_does_not_overflow() {
    let handle = TrackEventsHandle::new();
    handle.wait_idle(Duration::ZERO).await.unwrap();
    handle.track("pending", async {}).unwrap();
    assert!(handle.wait_idle(Duration::ZERO).await.is_err());
    handle.wait_idle(Duration::MAX).await.unwrap();
}

#[tokio::test]
async fn inside_an_event_of_its_handle_wait_idle_is_an_error() {
    let handle = TrackEventsHandle::new();
    let (sender, receiver) = oneshot::channel();
    let inner = handle.clone();
    handle.track("waits for itself", async move { sender.send(inner.wait_idle(LIMIT).await).unwrap() }).unwrap();
    assert_eq!(receiver.await.unwrap(), Err(WaitIdleError::InsideItself));
}

#[test]
fn without_a_timer_wait_idle_is_an_error() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let handle = TrackEventsHandle::new();
        handle.track("pending", async {}).unwrap();
        assert_eq!(handle.wait_idle(LIMIT).await, Err(WaitIdleError::NoTimer));
        handle.wait_idle(Duration::MAX).await.unwrap();
    });
}

#[tokio::test]
async fn a_dropped_wait_leaves_the_others_waiting() {
    let handle = TrackEventsHandle::new();
    let (release, released) = oneshot::channel::<()>();
    handle.track("held", async move { drop(released.await) }).unwrap();
    let mut first = task::spawn(handle.wait_idle(LIMIT));
    let mut second = task::spawn(handle.wait_idle(LIMIT));
    assert_pending!(first.poll());
    assert_pending!(second.poll());
    drop(first);
    release.send(()).unwrap();
    run_tasks().await;
    assert!(second.is_woken());
    assert_ready!(second.poll()).unwrap();
}

#[tokio::test]
#[should_panic(expected = "polled after it had ended")]
async fn polling_a_wait_that_has_ended_panics() {
    let handle = TrackEventsHandle::new();
    let mut wait = handle.wait_idle(LIMIT);
    (&mut wait).await.unwrap();
    let _ = (&mut wait).await;
}
