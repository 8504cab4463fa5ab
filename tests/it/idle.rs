//! Waiting for what was accepted so far, while others go on.

use std::{future::pending, pin::pin, time::Duration};

use tokio::sync::oneshot;
use tokio_test::{assert_pending, assert_ready, task};
use tower_track_events::{TrackEventsHandle, WaitIdleError};

use crate::support::{drain, settle};

const LIMIT: Duration = Duration::from_secs(5);

#[tokio::test(start_paused = true)]
async fn it_waits_for_what_was_accepted_before_its_first_poll_and_for_nothing_else() {
    let handle = TrackEventsHandle::new();
    let (release, released) = oneshot::channel::<()>();
    let child = handle.clone();
    handle
        .track("before", async move {
            let _ = released.await;
            child.track("its child", pending::<()>()).unwrap();
        })
        .unwrap();
    let mut early = task::spawn(handle.wait_idle(LIMIT));
    assert_pending!(early.poll());
    handle.track("after", pending::<()>()).unwrap();
    let _guard = handle.guard().unwrap();
    let _permit = handle.reserve().unwrap();
    let mut late = task::spawn(handle.wait_idle(LIMIT));
    assert_pending!(late.poll());

    release.send(()).unwrap();
    settle().await;

    assert!(early.is_woken());
    assert_ready!(early.poll()).unwrap();
    assert!(!late.is_woken());
    assert_pending!(late.poll());
}

#[tokio::test]
async fn an_event_that_was_accepted_after_a_wait_began_does_not_end_it() {
    let handle = TrackEventsHandle::new();
    let (release, released) = oneshot::channel::<()>();
    handle.track("first", pending::<()>()).unwrap();
    let mut first = task::spawn(handle.wait_idle(LIMIT));
    assert_pending!(first.poll());
    handle.track("second", async move { drop(released.await) }).unwrap();
    let mut second = task::spawn(handle.wait_idle(LIMIT));
    assert_pending!(second.poll());

    release.send(()).unwrap();
    settle().await;
    assert!(!first.is_woken());
    assert_pending!(first.poll());
    assert_pending!(second.poll());
    handle.abort();
    settle().await;
    assert_ready!(first.poll()).unwrap();
    assert_ready!(second.poll()).unwrap();
}

#[tokio::test]
async fn it_closes_nothing_and_raises_no_signal() {
    let handle = TrackEventsHandle::new();
    handle.track("one", async {}).unwrap();
    handle.wait_idle(LIMIT).await.unwrap();
    assert!(!handle.is_draining());
    handle.track("two", async {}).unwrap();
    assert_eq!(drain(&handle).await.endings.completed, 2);
    handle.wait_idle(LIMIT).await.unwrap();
}

#[tokio::test]
async fn new_events_do_not_starve_it() {
    let handle = TrackEventsHandle::new();
    fn again(handle: TrackEventsHandle) -> impl Future<Output = ()> + Send {
        // Boxed, because it contains itself.
        let next: std::pin::Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(async move {
            tokio::task::yield_now().await;
            handle.track("again", again(handle.clone())).unwrap();
        });
        next
    }
    handle.track("again", again(handle.clone())).unwrap();
    handle.wait_idle(LIMIT).await.unwrap();
    assert!(handle.snapshot().pending > 0);
}

#[tokio::test(start_paused = true)]
async fn its_limit_names_what_is_pending() {
    let handle = TrackEventsHandle::new();
    handle.track("slow", pending::<()>()).unwrap();
    let line = line!() - 1;
    let mut wait = pin!(handle.wait_idle(LIMIT));
    assert!(futures_util::poll!(wait.as_mut()).is_pending());
    handle.track("newer", pending::<()>()).unwrap();

    let error = wait.await.unwrap_err();

    let expected = format!("events were pending after 5.0 s: slow x1 running (oldest 5.0 s, {}:{line}:12)", file!());
    assert_eq!(error.to_string(), expected);
    let WaitIdleError::TimedOut { pending, after, .. } = error else { panic!("{error}") };
    assert_eq!((pending.len(), pending[0].name, after), (1, "slow", LIMIT));
}

#[tokio::test]
async fn zero_looks_once_and_the_longest_limit_is_no_overflow() {
    let handle = TrackEventsHandle::new();
    handle.wait_idle(Duration::ZERO).await.unwrap();
    handle.track("pending", async {}).unwrap();
    assert!(handle.wait_idle(Duration::ZERO).await.is_err());
    handle.wait_idle(Duration::MAX).await.unwrap();
}

#[tokio::test]
async fn inside_an_event_of_its_own_it_is_an_error() {
    let handle = TrackEventsHandle::new();
    let (tell, told) = oneshot::channel();
    let inner = handle.clone();
    handle.track("waits for itself", async move { tell.send(inner.wait_idle(LIMIT).await).unwrap() }).unwrap();
    assert_eq!(told.await.unwrap(), Err(WaitIdleError::InsideItself));
}

#[test]
fn without_a_timer_it_says_so() {
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
    settle().await;
    assert!(second.is_woken());
    assert_ready!(second.poll()).unwrap();
}

#[tokio::test]
#[should_panic(expected = "polled after it had ended")]
async fn a_wait_that_has_ended_must_not_be_polled() {
    let handle = TrackEventsHandle::new();
    let mut wait = handle.wait_idle(LIMIT);
    (&mut wait).await.unwrap();
    let _ = (&mut wait).await;
}
