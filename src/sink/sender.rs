//! [`EventSender`]: sends typed events to a sink. [`SendPermit`], [`TrySendError`] and [`AckError`].

use std::{error::Error, fmt, future::poll_fn, panic::Location, sync::Arc, time::Duration};

use tokio::sync::oneshot;

use crate::{
    error::TrackError,
    registry::SinkSnapshot,
    sink::{flight::Ack, flush::Flush, queue::EventQueue},
    util::{reentrancy, text::OneLine},
};

/// Sends typed events to a sink, which delivers them in batches.
///
/// A [`SinkBuilder`](crate::SinkBuilder) returns it. A clone is cheap and sends to the same sink. When the last clone
/// and the last [permit](SendPermit) are dropped, pending events are delivered, and then the sink is dropped.
///
/// An event is pending after it was sent, and has completed when it was delivered. A drain waits for it. An event is
/// sent at once, not when the response is over. To send it then, call `try_send` in
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
    /// A [`TrySendError`] with the event and one of these reasons:
    ///
    /// - [`TrackError::Full`] at the [capacity of the sink](crate::SinkBuilder::capacity).
    /// - [`TrackError::Closed`] while a drain is closing, unless called inside an event, a request or a
    ///   [guard's scope](crate::DrainGuard::scope); after a drain was `Ok`; and after the service of the sink has
    ///   [failed for good](crate::SinkBuilder::service).
    /// - [`TrackError::NoRuntime`] after the runtime of the sink has shut down.
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
    /// As for [`try_send`](Self::try_send), but [`TrackError::Full`] only inside a delivery of the same sink, which
    /// would wait for itself.
    ///
    /// # Panics
    ///
    /// If the closure of [`max_batch_bytes`](crate::SinkBuilder::max_batch_bytes) panics.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it is ready, the event is dropped and not sent. No slot is lost.
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

    /// Sends an event, and waits until it is delivered.
    ///
    /// It waits for capacity first, as [`send`](Self::send) does. An event that is awaited does not wait for
    /// [`max_delay`](crate::SinkBuilder::max_delay). It is delivered at once. If a batch is being delivered, it is
    /// delivered after it, together with all events that have arrived meanwhile. So many requests share one commit.
    ///
    /// # Errors
    ///
    /// - [`AckError::NotSent`] with the event, as for [`send`](Self::send).
    /// - [`AckError::Undelivered`] if the event was accepted and then not delivered. It was passed to
    ///   [`on_undelivered`](crate::SinkBuilder::on_undelivered), or dropped. The store may contain it, if an attempt
    ///   was dropped before its end.
    /// - [`AckError::InsideItself`] with the event, inside a delivery of the same sink.
    ///
    /// # Panics
    ///
    /// If the closure of [`max_batch_bytes`](crate::SinkBuilder::max_batch_bytes) panics.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before the event was sent, the event is dropped. After that, the event is delivered
    /// nevertheless.
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
    /// The reason alone, as for [`try_send`](Self::try_send).
    #[track_caller]
    pub fn try_reserve(&self) -> Result<SendPermit<E>, TrackError> {
        let permit = self.queue().try_reserve(Location::caller())?;
        Ok(self.permit(permit))
    }

    /// Reserves capacity for one event, and waits until there is some: first come, first served.
    ///
    /// # Errors
    ///
    /// The reason alone, as for [`send`](Self::send).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up its place in the queue. No slot is lost.
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

    /// Waits, at most for `limit`, until the events that were sent before its first poll have ended.
    ///
    /// They are delivered without waiting for a full batch. The times between attempts do not change. An event that has
    /// ended may have failed: [`snapshot`](Self::snapshot) has the counts. The limit counts from the first poll.
    /// [`Duration::ZERO`] looks once; [`Duration::MAX`] waits without a limit. Handlers and events may call it.
    ///
    /// # Errors
    ///
    /// - [`TimedOut`](crate::WaitIdleError::TimedOut) when the limit passed first, with the pending events.
    /// - [`InsideItself`](crate::WaitIdleError::InsideItself) when polled inside a delivery of the same sink.
    /// - [`NoTimer`](crate::WaitIdleError::NoTimer) when there is no tokio timer for the limit.
    ///
    /// # Cancel safety
    ///
    /// Dropping it loses nothing.
    pub fn flush(&self, limit: Duration) -> Flush<E> {
        Flush::new(Arc::clone(self.queue()), limit)
    }

    /// Returns the counts of this sink, at one instant.
    ///
    /// It takes the lock of the sink only.
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
/// A drain waits for a permit that is held. A permit that is dropped unused releases its slot and is not counted.
///
/// # Examples
///
/// ```
/// # use tower_track_events::{EventSender, TrackError};
/// # fn charge_card() -> u64 { 7 }
/// struct Receipt(u64);
///
/// fn pay(receipts: &EventSender<Receipt>) -> Result<&'static str, TrackError> {
///     let permit = receipts.try_reserve()?; // before the card is charged
///     permit.send(Receipt(charge_card()));
///     Ok("paid")
/// }
/// ```
#[must_use = "a permit that is dropped releases its slot"]
pub struct SendPermit<E: Send + Sync + 'static> {
    senders: Arc<Senders<E>>,
    /// `None` after it was used.
    permit: Option<usize>,
}

impl<E: Send + Sync + 'static> SendPermit<E> {
    /// Sends an event, in the slot of this permit.
    ///
    /// If the sink has ended meanwhile, because its runtime has shut down or its service has failed for good, the event
    /// counts as aborted: it is passed to [`on_undelivered`](crate::SinkBuilder::on_undelivered), or dropped.
    ///
    /// # Panics
    ///
    /// If the closure of [`max_batch_bytes`](crate::SinkBuilder::max_batch_bytes) panics.
    pub fn send(self, event: E) {
        self.send_with(event, None);
    }

    /// Sends an event. The receiver gets its ending.
    fn send_and_listen(self, event: E) -> oneshot::Receiver<Result<(), Option<String>>> {
        let (ack, acked) = oneshot::channel();
        self.send_with(event, Some(ack));
        acked
    }

    fn send_with(mut self, event: E, ack: Option<Ack>) {
        let queue = &self.senders.queue;
        // The closure may panic. Then the drop of the permit releases its slot.
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

/// An event that was rejected, with the reason. From [`EventSender::try_send`] and [`EventSender::send`].
///
/// It converts into a [`TrackError`], without the event, so `?` works where a handler returns that.
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
    /// The reason why the event was rejected.
    pub reason: TrackError,
}

impl<E> From<TrySendError<E>> for TrackError {
    fn from(error: TrySendError<E>) -> Self {
        error.reason
    }
}

/// Writes the reason, without the event, which may be secret.
impl<E> fmt::Display for TrySendError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason.fmt(f)
    }
}

/// Writes the reason, without the event, which may be secret and need not implement `Debug`.
impl<E> fmt::Debug for TrySendError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { event: _, reason } = self;
        f.debug_struct("TrySendError").field("reason", reason).finish_non_exhaustive()
    }
}

impl<E> Error for TrySendError<E> {}

/// Why an event of [`EventSender::send_acked`] was not delivered.
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
    /// [`on_undelivered`](crate::SinkBuilder::on_undelivered), if the sink has it, and otherwise dropped.
    Undelivered {
        /// The error of the last attempt to deliver, with its causes, in one line. `None` if there was no attempt.
        last_error: Option<String>,
    },
    /// The call was made inside a delivery of the same sink, which would wait for itself. The event was not sent.
    InsideItself(E),
}

/// Writes the reason, without the event, which may be secret.
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

/// Writes the reason, without the event, which may be secret and need not implement `Debug`.
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
