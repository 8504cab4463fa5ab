//! [`EventSender`]: sends typed events to a sink.

use std::{error::Error, fmt, future::poll_fn, panic::Location, sync::Arc, time::Duration};

use tokio::sync::oneshot;

use crate::{
    error::TrackError,
    registry::SinkSnapshot,
    sink::{flight::Ack, flush::Flush, queue::EventQueue},
    util::{reentrancy, text::OneLine},
};

/// Sends typed events to a sink, which gets them in batches.
///
/// From a [`SinkBuilder`](crate::SinkBuilder). A clone is cheap and sends to the same sink. When the last
/// one is dropped, what is pending is delivered, and then the sink is dropped.
///
/// An event is pending once it was sent, and has completed when the sink has taken it: a drain waits for it. It is sent
/// at once, not when the response is over; to send when it is, call `try_send` in
/// [an observer](crate::TrackEventsLayer::observe), or `send` in a [tracked](crate::Events::track) event.
///
/// | | waits for capacity | waits for the delivery |
/// |---|---|---|
/// | [`try_send`](Self::try_send), [`try_reserve`](Self::try_reserve) | no | no |
/// | [`send`](Self::send), [`reserve`](Self::reserve) | yes | no |
/// | [`send_acked`](Self::send_acked) | yes | yes |
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use tower_track_events::TrackEventsHandle;
///
/// let handle = TrackEventsHandle::new();
/// let visits = handle.sink::<String>("visit").deliver(|batch| async move {
///     println!("{} rows in one statement", batch.len());
/// })?;
/// visits.try_send("/index.html".to_owned())?;
/// visits.send("/about.html".to_owned()).await?;
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

    /// Sends an event, without waiting.
    ///
    /// # Errors
    ///
    /// The event, in a [`TrySendError`]: [`TrackError::Full`] when as many wait for the sink as its capacity allows;
    /// [`TrackError::Closed`] while a drain is closing, unless called inside an event, a request or a
    /// [guard's scope](crate::DrainGuard::scope), after a drain was `Ok`, and when the service of the sink has failed
    /// for good; [`TrackError::NoRuntime`] when the runtime of the sink has shut down.
    ///
    /// # Panics
    ///
    /// If the closure of [`max_batch_bytes`](crate::SinkBuilder::max_batch_bytes) panics.
    #[inline]
    pub fn try_send(&self, event: E) -> Result<(), TrySendError<E>> {
        self.queue().try_send(event).map_err(|(event, reason)| TrySendError { event, reason })
    }

    /// Sends an event, and waits until there is capacity for it: first come, first served.
    ///
    /// # Errors
    ///
    /// The event, as for [`try_send`](Self::try_send). [`TrackError::Full`] only inside a delivery of the same sink,
    /// which would wait for itself.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped the event is dropped with it, unless it was sent. No slot is lost.
    #[track_caller]
    pub fn send(&self, event: E) -> impl Future<Output = Result<(), TrySendError<E>>> + Send + use<'_, E> {
        let reserve = self.reserve();
        async move {
            match reserve.await {
                Ok(permit) => {
                    permit.send(event);
                    Ok(())
                }
                Err(reason) => Err(TrySendError { event, reason }),
            }
        }
    }

    /// Sends an event, and waits until it is delivered: until a batch with it was taken.
    ///
    /// It waits for capacity first, as [`send`](Self::send) does. An event that is awaited does not wait for
    /// [`max_delay`](crate::SinkBuilder::max_delay): it is delivered at once, or with all that arrive while a batch is
    /// being delivered. That makes one commit for many requests.
    ///
    /// # Errors
    ///
    /// [`AckError::NotSent`] with the event, as for [`send`](Self::send); [`AckError::Undelivered`] when the event was
    /// accepted and then not delivered: it was passed to
    /// [`on_undelivered`](crate::SinkBuilder::on_undelivered), or dropped. The store may have taken it nevertheless, if
    /// an attempt did not come to its end; [`AckError::InsideItself`] inside a delivery of the same sink.
    ///
    /// # Cancel safety
    ///
    /// Dropped before the event was sent, it drops the event. Afterwards the event is delivered all the same.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # async fn insert(rows: &[u32]) -> std::io::Result<()> { Ok(()) }
    /// use tower_track_events::TrackEventsHandle;
    ///
    /// let handle = TrackEventsHandle::new();
    /// let rows = handle.sink::<u32>("row").deliver(|rows| async move { insert(&rows).await })?;
    /// rows.send_acked(7).await?; // the row is stored
    /// assert_eq!(rows.snapshot().ended.completed, 1);
    /// # Ok(()) }
    /// ```
    #[track_caller]
    pub fn send_acked(&self, event: E) -> impl Future<Output = Result<(), AckError<E>>> + Send + use<'_, E> {
        let reserve = self.reserve();
        async move {
            if reentrancy::is_inside(self.queue().id()) {
                return Err(AckError::InsideItself(event));
            }
            match reserve.await {
                Ok(permit) => {
                    let ended = permit.send_and_listen(event).await.unwrap_or(Err(None));
                    ended.map_err(|last_error| AckError::Undelivered { last_error })
                }
                Err(reason) => Err(AckError::NotSent(TrySendError { event, reason })),
            }
        }
    }

    /// Reserves capacity for one event, without waiting, so that it cannot be rejected when it is sent.
    ///
    /// # Errors
    ///
    /// As for [`try_send`](Self::try_send).
    #[track_caller]
    pub fn try_reserve(&self) -> Result<SendPermit<E>, TrackError> {
        let permit = self.queue().try_reserve(Location::caller())?;
        Ok(self.permit(permit))
    }

    /// Reserves capacity for one event, and waits until there is some: first come, first served.
    ///
    /// # Errors
    ///
    /// As for [`send`](Self::send).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up its turn. No slot is lost.
    #[track_caller]
    pub fn reserve(&self) -> impl Future<Output = Result<SendPermit<E>, TrackError>> + Send + use<'_, E> {
        let location = Location::caller();
        async move {
            let mut waiting = Waiting { queue: self.queue(), waiter: None };
            let permit = poll_fn(|cx| waiting.queue.poll_reserve(&mut waiting.waiter, location, cx.waker())).await?;
            Ok(self.permit(permit))
        }
    }

    fn permit(&self, permit: usize) -> SendPermit<E> {
        SendPermit { senders: Arc::clone(&self.senders), permit: Some(permit) }
    }

    /// Waits until the events that were sent before its first poll have ended, without waiting for others to make a
    /// full batch.
    ///
    /// An event that has ended may not have been delivered: see [`snapshot`](Self::snapshot). The limit counts from the
    /// first poll. [`Duration::ZERO`] looks once; [`Duration::MAX`] waits for as long as it takes. It may be called in
    /// handlers and events. It does not change the time between attempts.
    ///
    /// # Errors
    ///
    /// [`TimedOut`](crate::WaitIdleError::TimedOut) when the limit passed first;
    /// [`InsideItself`](crate::WaitIdleError::InsideItself) when polled inside a delivery of the same sink;
    /// [`NoTimer`](crate::WaitIdleError::NoTimer) when there is no tokio timer to measure the limit with.
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

/// A reserved capacity slot for one event of a sink, from [`EventSender::reserve`] and [`EventSender::try_reserve`].
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
///     let permit = receipts.try_reserve()?; // before the money moves
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
    pub fn send(self, event: E) {
        self.send_with(event, None);
    }

    /// The receiver gets the ending of the event.
    fn send_and_listen(self, event: E) -> oneshot::Receiver<Result<(), Option<String>>> {
        let (ack, acked) = oneshot::channel();
        self.send_with(event, Some(ack));
        acked
    }

    fn send_with(mut self, event: E, ack: Option<Ack>) {
        let queue = &self.senders.queue;
        // It may panic. Then the permit releases its slot.
        let size = queue.size(&event);
        if let Some(permit) = self.permit.take() {
            queue.send_reserved(permit, event, size, ack);
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

/// A sender that waits for capacity. When it is dropped, a slot that it was granted and has not taken passes on.
struct Waiting<'a, E: Send + Sync + 'static> {
    queue: &'a EventQueue<E>,
    waiter: Option<u64>,
}

impl<E: Send + Sync + 'static> Drop for Waiting<'_, E> {
    fn drop(&mut self) {
        if let Some(waiter) = self.waiter {
            self.queue.stop_waiting(waiter);
        }
    }
}

/// An event that was rejected, and why, from [`EventSender::try_send`] and [`EventSender::send`].
///
/// `?` turns it into a [`TrackError`], without the event.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_track_events::{TrackError, TrackEventsHandle};
///
/// let handle = TrackEventsHandle::new();
/// let visits = handle.sink::<&str>("visit").deliver(|_| async { /* store it */ })?;
/// handle.drain(std::time::Duration::MAX).await?;
///
/// let error = visits.try_send("/index.html").unwrap_err();
/// assert_eq!((error.event, error.reason), ("/index.html", TrackError::Closed));
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TrySendError<E> {
    /// The event.
    pub event: E,
    /// Why it was rejected.
    pub reason: TrackError,
}

impl<E> From<TrySendError<E>> for TrackError {
    fn from(error: TrySendError<E>) -> Self {
        error.reason
    }
}

/// Writes why the event was rejected; the event itself may be secret.
impl<E> fmt::Display for TrySendError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason.fmt(f)
    }
}

/// Leaves the event out, which may be secret and need not have a `Debug`.
impl<E> fmt::Debug for TrySendError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { event: _, reason } = self;
        f.debug_struct("TrySendError").field("reason", reason).finish_non_exhaustive()
    }
}

impl<E> Error for TrySendError<E> {}

/// Why [`EventSender::send_acked`] has not delivered an event.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_track_events::{TrackEventsHandle, sink::{AckError, SinkError}};
///
/// let handle = TrackEventsHandle::new();
/// let rows = handle
///     .sink::<u32>("row")
///     .deliver(|_| async { Err::<(), _>(SinkError::permanent("there is no such table")) })?;
/// let error = rows.send_acked(7).await.unwrap_err();
/// assert!(matches!(error, AckError::Undelivered { .. }));
/// assert_eq!(error.to_string(), "not delivered: there is no such table");
/// # Ok(()) }
/// ```
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum AckError<E> {
    /// The event was not accepted.
    NotSent(TrySendError<E>),
    /// The event was accepted and not delivered. It was passed to
    /// [`on_undelivered`](crate::SinkBuilder::on_undelivered), if there is one.
    Undelivered {
        /// The error of the last attempt to deliver, if there was one.
        last_error: Option<String>,
    },
    /// Called inside a delivery of the same sink, which would wait for itself. The event was not accepted.
    InsideItself(E),
}

/// Leaves the event out, which may be secret.
impl<E> fmt::Display for AckError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSent(error) => error.fmt(f),
            Self::Undelivered { last_error: None } => f.write_str("not delivered"),
            Self::Undelivered { last_error: Some(error) } => write!(f, "not delivered: {}", OneLine(error)),
            Self::InsideItself(_) => f.write_str("not sent: a delivery cannot wait for a later one of the same sink"),
        }
    }
}

/// Leaves the event out, which may be secret and need not have a `Debug`.
impl<E> fmt::Debug for AckError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSent(error) => f.debug_tuple("NotSent").field(error).finish(),
            Self::Undelivered { last_error } => f.debug_struct("Undelivered").field("last_error", last_error).finish(),
            Self::InsideItself(_) => f.debug_tuple("InsideItself").finish_non_exhaustive(),
        }
    }
}

impl<E> Error for AckError<E> {}
