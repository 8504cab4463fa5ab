//! [`Flush`]: the future that ends when the values that were sent to a sink have ended.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    drain::{WaitIdleError, pending},
    sink::queue::EventQueue,
    util::{deadline::Deadline, reentrancy},
};

/// The future of [`EventSender::flush`](crate::EventSender::flush).
///
/// It does nothing until it is polled. The first poll starts the limit.
///
/// # Errors
///
/// - [`WaitIdleError::TimedOut`] when the limit passed first, with the events that were pending.
/// - [`WaitIdleError::InsideItself`] when polled inside a delivery of the same sink.
/// - [`WaitIdleError::NoTimer`] when there is no tokio timer for the limit.
///
/// # Panics
///
/// When polled again after it has ended.
///
/// # Cancel safety
///
/// Dropping it loses nothing. The events are delivered as before.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// use tower_track_events::{TrackEventsHandle, sink::Flush};
///
/// let handle = TrackEventsHandle::new();
/// let lines = handle.sink::<&str>("lines").deliver(|_batch| async { /* write them */ })?;
/// lines.try_send("a line")?;
/// let flush: Flush<&str> = lines.flush(Duration::from_secs(1));
/// flush.await?;
/// assert_eq!(lines.snapshot().ended.completed, 1);
/// # Ok(()) }
/// ```
#[must_use = "a flush does nothing unless it is polled"]
pub struct Flush<E> {
    queue: Arc<EventQueue<E>>,
    deadline: Deadline,
    /// When it was first polled, and the number of the first value that it does not wait for.
    started: Option<(Instant, u64)>,
    has_ended: bool,
}

impl<E: Send + Sync + 'static> Flush<E> {
    pub(super) fn new(queue: Arc<EventQueue<E>>, limit: Duration) -> Self {
        Self { queue, deadline: Deadline::after(limit), started: None, has_ended: false }
    }

    fn poll_flushed(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WaitIdleError>> {
        if reentrancy::is_inside(self.queue.id()) {
            return Poll::Ready(Err(WaitIdleError::InsideItself));
        }
        let Ok(is_late) = self.deadline.poll(cx) else { return Poll::Ready(Err(WaitIdleError::NoTimer)) };
        let (began, target) = *self.started.get_or_insert_with(|| (Instant::now(), self.queue.flush_now()));
        if self.queue.poll_ended(target, cx.waker()) {
            return Poll::Ready(Ok(()));
        }
        if !is_late {
            return Poll::Pending;
        }
        Poll::Ready(Err(WaitIdleError::TimedOut { after: began.elapsed(), open: pending(&self.queue.open()) }))
    }
}

impl<E: Send + Sync + 'static> Future for Flush<E> {
    type Output = Result<(), WaitIdleError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        assert!(!self.has_ended, "a flush was polled after it had ended");
        let flushed = self.poll_flushed(cx);
        self.has_ended = flushed.is_ready();
        flushed
    }
}

impl<E> fmt::Debug for Flush<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { queue, deadline, started, has_ended } = self;
        f.debug_struct("Flush")
            .field("sink", &queue.name)
            .field("limit_left", &deadline.left())
            .field("started", &started.is_some())
            .field("ended", has_ended)
            .finish_non_exhaustive()
    }
}
