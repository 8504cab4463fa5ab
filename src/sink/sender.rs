//! [`EventSender`]: sends typed events to a sink.

use std::{error::Error, fmt, panic::Location, sync::Arc, time::Duration};

use crate::{
    error::TrackError,
    registry::SinkSnapshot,
    sink::{flush::Flush, queue::EventQueue},
};

/// Sends typed events to a sink, which gets them in batches.
///
/// From [`SinkBuilder::build`](crate::SinkBuilder::build). A clone is cheap and sends to the same sink. When the last
/// one is dropped, what is pending is delivered, and then the sink is dropped.
///
/// An event is pending from [`send`](Self::send) on, and has completed when the sink has acknowledged it: a drain waits
/// for it. It is sent at once, not when the response is over; to send when it is, call `send` in
/// [an observer](crate::TrackEventsLayer::observe) or in a [tracked](crate::Events::track) event.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use tower_track_events::{Batch, TrackEventsHandle};
///
/// let handle = TrackEventsHandle::new();
/// let store = |batch: Batch<String>| async move {
///     println!("{} rows in one statement", batch.len());
///     std::io::Result::Ok(())
/// };
/// let visits = handle.sink("visit", store).build()?;
/// visits.send("/index.html".to_owned())?;
/// visits.send("/about.html".to_owned())?;
///
/// let report = handle.drain(Duration::from_secs(5)).await?;
/// assert_eq!(report.ended.completed, 2);
/// # Ok(()) }
/// ```
pub struct EventSender<E: Send + Sync + 'static> {
    senders: Arc<Senders<E>>,
}

/// Shared by all senders and permits of one sink.
struct Senders<E: Send + Sync + 'static> {
    queue: Arc<EventQueue<E>>,
}

impl<E: Send + Sync + 'static> Drop for Senders<E> {
    fn drop(&mut self) {
        self.queue.abandon();
    }
}

impl<E: Send + Sync + 'static> EventSender<E> {
    pub(super) fn new(queue: Arc<EventQueue<E>>) -> Self {
        Self { senders: Arc::new(Senders { queue }) }
    }

    /// Sends an event. It never waits.
    ///
    /// # Errors
    ///
    /// The event, in a [`SendError`]: [`TrackError::Full`] when as many wait for the sink as its capacity allows;
    /// [`TrackError::Closed`] while a drain is closing, unless called inside an event, a request or a
    /// [guard's scope](crate::DrainGuard::scope), and after a drain was `Ok`; [`TrackError::NoRuntime`] when the
    /// runtime of the sink has shut down.
    #[inline]
    pub fn send(&self, event: E) -> Result<(), SendError<E>> {
        self.queue().send(event).map_err(|(event, reason)| SendError { event, reason })
    }

    /// Reserves capacity for one event, so that it cannot be rejected when it is sent.
    ///
    /// # Errors
    ///
    /// As for [`send`](Self::send).
    #[track_caller]
    pub fn reserve(&self) -> Result<SendPermit<E>, TrackError> {
        let permit = self.queue().reserve(Location::caller())?;
        Ok(SendPermit { senders: Arc::clone(&self.senders), permit: Some(permit) })
    }

    /// Waits until the events that were sent before its first poll have ended, without waiting for others to make a
    /// full batch.
    ///
    /// An event that has ended may not have been delivered: see [`snapshot`](Self::snapshot). The limit counts from the
    /// first poll. [`Duration::ZERO`] looks once; [`Duration::MAX`] waits for as long as it takes. A failed attempt is
    /// followed by the next at once.
    ///
    /// # Errors
    ///
    /// [`TimedOut`](crate::WaitIdleError::TimedOut) when the limit passed first;
    /// [`InsideItself`](crate::WaitIdleError::InsideItself) when polled inside an event, a handler, a body or a sink of
    /// the same handle; [`NoTimer`](crate::WaitIdleError::NoTimer) when there is no tokio timer to measure the limit
    /// with.
    ///
    /// # Cancel safety
    ///
    /// Dropping it loses nothing.
    pub fn flush(&self, limit: Duration) -> Flush<E> {
        Flush::new(Arc::clone(self.queue()), limit)
    }

    /// Returns the counts of this sink, at one instant.
    pub fn snapshot(&self) -> SinkSnapshot {
        self.queue().snapshot()
    }

    fn queue(&self) -> &Arc<EventQueue<E>> {
        &self.senders.queue
    }
}

impl<E: Send + Sync + 'static> Clone for EventSender<E> {
    fn clone(&self) -> Self {
        Self { senders: Arc::clone(&self.senders) }
    }
}

impl<E: Send + Sync + 'static> fmt::Debug for EventSender<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventSender").field("snapshot", &self.snapshot()).finish_non_exhaustive()
    }
}

/// A reserved capacity slot for one event of a sink, from [`EventSender::reserve`].
///
/// A drain waits for a permit that is held. Dropped unused, it releases its slot and is not counted.
///
/// # Examples
///
/// ```
/// # use tower_track_events::{EventSender, TrackError};
/// # fn charge_card() -> u64 { 7 }
/// struct Receipt(u64);
///
/// fn pay(receipts: &EventSender<Receipt>) -> Result<&'static str, TrackError> {
///     let permit = receipts.reserve()?; // before the money moves
///     permit.send(Receipt(charge_card()));
///     Ok("paid")
/// }
/// ```
#[must_use = "a permit that is dropped releases its slot"]
pub struct SendPermit<E: Send + Sync + 'static> {
    senders: Arc<Senders<E>>,
    /// None when it has been used.
    permit: Option<usize>,
}

impl<E: Send + Sync + 'static> SendPermit<E> {
    /// Sends an event, in the slot of this permit.
    ///
    /// If the runtime of the sink has shut down meanwhile, the event is not delivered:
    /// [`on_undelivered`](crate::SinkBuilder::on_undelivered) says what becomes of it.
    pub fn send(mut self, event: E) {
        if let Some(permit) = self.permit.take() {
            self.senders.queue.send_reserved(permit, event);
        }
    }
}

impl<E: Send + Sync + 'static> Drop for SendPermit<E> {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take() {
            self.senders.queue.release(permit);
        }
    }
}

impl<E: Send + Sync + 'static> fmt::Debug for SendPermit<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendPermit").field("sink", &self.senders.queue.name).finish_non_exhaustive()
    }
}

/// An event that was rejected, and why, from [`EventSender::send`].
///
/// `?` turns it into a [`TrackError`], without the event.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_track_events::{Batch, TrackError, TrackEventsHandle};
///
/// let handle = TrackEventsHandle::new();
/// let store = |_: Batch<&'static str>| async { std::io::Result::Ok(()) };
/// let visits = handle.sink("visit", store).build()?;
/// handle.drain(std::time::Duration::MAX).await?;
///
/// let error = visits.send("/index.html").unwrap_err();
/// assert_eq!((error.event, error.reason), ("/index.html", TrackError::Closed));
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SendError<E> {
    /// The event.
    pub event: E,
    /// Why it was rejected.
    pub reason: TrackError,
}

impl<E> From<SendError<E>> for TrackError {
    fn from(error: SendError<E>) -> Self {
        error.reason
    }
}

/// Writes why the event was rejected; the event itself may be secret.
impl<E> fmt::Display for SendError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason.fmt(f)
    }
}

/// Leaves the event out, which may be secret and need not have a `Debug`.
impl<E> fmt::Debug for SendError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { event: _, reason } = self;
        f.debug_struct("SendError").field("reason", reason).finish_non_exhaustive()
    }
}

impl<E> Error for SendError<E> {}
