//! [`EventSender`]: typed events on their way to a sink, and the builder of both.

use std::{error::Error, fmt, panic::Location, sync::Arc, time::Duration};

use tokio::runtime;

use crate::{
    batch::{EventSink, Undelivered},
    deliver::{Attempts, Delivery},
    house::{Shard, Shards},
    limit::sleep,
    queue::{EventQueue, Taker},
    refused::Refused,
    setting::InvalidSetting,
    snapshot::SinkSnapshot,
    wait_idle::WaitIdle,
};

const DEFAULT_MAX_BATCH: usize = 512;
const DEFAULT_MAX_DELAY: Duration = Duration::from_millis(10);
const DEFAULT_CAPACITY: usize = 65_536;
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
const DEFAULT_FIRST_WAIT: Duration = Duration::from_millis(100);
const DEFAULT_LONGEST_WAIT: Duration = Duration::from_secs(10);
/// A timer cannot be set for ever, and jitter doubles what it is set to.
const MAX_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

/// Settings of a sink, from [`TrackEventsHandle::sink`](crate::TrackEventsHandle::sink).
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_track_events::InvalidSetting> {
/// use std::time::Duration;
/// use tower_track_events::{Batch, EventSender, TrackEventsHandle, Undelivered};
///
/// # async fn insert(orders: &[Order]) -> std::io::Result<()> { Ok(()) }
/// #[derive(Debug)]
/// struct Order {
///     id: u64,
/// }
///
/// let handle = TrackEventsHandle::new();
/// let orders: EventSender<Order> = handle
///     .sink("order.created", |batch: Batch<Order>| async move { insert(&batch).await })
///     .max_batch(1_000)
///     .max_delay(Duration::from_millis(5))
///     .on_undelivered(|orders: Undelivered<Order>| {
///         for order in orders.iter() {
///             eprintln!("not stored: {order:?}"); // or append it to a file
///         }
///     })
///     .build()?;
/// # Ok(()) }
/// ```
#[must_use = "a builder does nothing until `build`"]
pub struct SinkBuilder<E, S> {
    shard: Arc<Shard>,
    name: &'static str,
    location: &'static Location<'static>,
    sink: S,
    max_batch: usize,
    max_delay: Duration,
    capacity: usize,
    attempts: Attempts,
    on_undelivered: Option<Taker<E>>,
}

impl<E, S> SinkBuilder<E, S>
where
    E: Send + Sync + 'static,
    S: EventSink<E>,
{
    pub(crate) fn new(shard: Arc<Shard>, name: &'static str, location: &'static Location<'static>, sink: S) -> Self {
        let attempts = Attempts {
            timeout: DEFAULT_TIMEOUT,
            first_wait: DEFAULT_FIRST_WAIT,
            longest_wait: DEFAULT_LONGEST_WAIT,
            max: None,
        };
        Self {
            shard,
            name,
            location,
            sink,
            max_batch: DEFAULT_MAX_BATCH,
            max_delay: DEFAULT_MAX_DELAY,
            capacity: DEFAULT_CAPACITY,
            attempts,
            on_undelivered: None,
        }
    }

    /// Bounds the number of events in a batch. Default: 512.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use tower_track_events::{Batch, TrackEventsHandle};
    /// # use std::time::Duration;
    /// let handle = TrackEventsHandle::new();
    /// let lines = handle
    ///     .sink("lines", |_batch: Batch<String>| async { Ok::<_, String>(()) })
    ///     .max_batch(1_000)
    ///     .build()?;
    /// # let _ = lines;
    /// # Ok(()) }
    /// ```
    pub fn max_batch(mut self, events: usize) -> Self {
        self.max_batch = events;
        self
    }

    /// Bounds how long an event waits for others that it could be delivered with. Default: 10 ms;
    /// [`Duration::ZERO`] delivers at once.
    ///
    /// What arrives while a batch is being delivered makes the next one in any case. A drain, a
    /// [flush](EventSender::flush) and a [wait for idleness](crate::TrackEventsHandle::wait_idle) do not wait for this
    /// time.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use tower_track_events::{Batch, TrackEventsHandle};
    /// # use std::time::Duration;
    /// let handle = TrackEventsHandle::new();
    /// let lines = handle
    ///     .sink("lines", |_batch: Batch<String>| async { Ok::<_, String>(()) })
    ///     .max_delay(Duration::from_millis(50))
    ///     .build()?;
    /// # let _ = lines;
    /// # Ok(()) }
    /// ```
    pub fn max_delay(mut self, delay: Duration) -> Self {
        self.max_delay = delay;
        self
    }

    /// Bounds the number of events that wait for this sink, in delivery or not, or are reserved. Default: 65,536.
    ///
    /// From 1 to 4,294,967,295. What comes beyond is refused. The bound is this sink's own, so that a store that is down
    /// does not take the room of other events: the [capacity of the handle](crate::TrackEventsHandleBuilder::capacity)
    /// does not count them.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use tower_track_events::{Batch, TrackEventsHandle};
    /// # use std::time::Duration;
    /// let handle = TrackEventsHandle::new();
    /// let lines = handle
    ///     .sink("lines", |_batch: Batch<String>| async { Ok::<_, String>(()) })
    ///     .capacity(100_000)
    ///     .build()?;
    /// # let _ = lines;
    /// # Ok(()) }
    /// ```
    pub fn capacity(mut self, events: usize) -> Self {
        self.capacity = events;
        self
    }

    /// Bounds the time of one attempt to deliver a batch. Default: 30 seconds; [`Duration::MAX`] for no bound.
    ///
    /// An attempt that takes longer is dropped, and the batch is tried again. A sink that blocks its thread cannot be
    /// stopped.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use tower_track_events::{Batch, TrackEventsHandle};
    /// # use std::time::Duration;
    /// let handle = TrackEventsHandle::new();
    /// let lines = handle
    ///     .sink("lines", |_batch: Batch<String>| async { Ok::<_, String>(()) })
    ///     .deliver_timeout(Duration::from_secs(2))
    ///     .build()?;
    /// # let _ = lines;
    /// # Ok(()) }
    /// ```
    pub fn deliver_timeout(mut self, limit: Duration) -> Self {
        self.attempts.timeout = limit;
        self
    }

    /// Sets the time between an attempt that failed and the next: `first`, then double that, and so on up to `longest`.
    /// Default: from 100 ms to 10 s.
    ///
    /// To each a random part is added, up to as much again, so that many instances do not come back in step. A drain, a
    /// flush and a wait for idleness cut the time short and begin again at `first`. Both are at most a day.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use tower_track_events::{Batch, TrackEventsHandle};
    /// # use std::time::Duration;
    /// let handle = TrackEventsHandle::new();
    /// let lines = handle
    ///     .sink("lines", |_batch: Batch<String>| async { Ok::<_, String>(()) })
    ///     .backoff(Duration::from_millis(10), Duration::from_secs(1))
    ///     .build()?;
    /// # let _ = lines;
    /// # Ok(()) }
    /// ```
    pub fn backoff(mut self, first: Duration, longest: Duration) -> Self {
        self.attempts.first_wait = first.min(longest).min(MAX_WAIT);
        self.attempts.longest_wait = longest.min(MAX_WAIT);
        self
    }

    /// Gives a batch up after so many attempts: it fails. Default: no limit.
    ///
    /// A batch that can never be delivered, because of one event in it, holds up all that come later. With this it is
    /// given to [`on_undelivered`](Self::on_undelivered) as a whole, and the next one has its turn.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use tower_track_events::{Batch, TrackEventsHandle};
    /// # use std::time::Duration;
    /// let handle = TrackEventsHandle::new();
    /// let lines = handle
    ///     .sink("lines", |_batch: Batch<String>| async { Ok::<_, String>(()) })
    ///     .max_attempts(5)
    ///     .build()?;
    /// # let _ = lines;
    /// # Ok(()) }
    /// ```
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.attempts.max = Some(attempts);
        self
    }

    /// Takes what could not be delivered: to spill it to a file, for example. Default: nobody does.
    ///
    /// It is called with all that is pending, in order,
    ///
    /// - when the limit of a drain came first. The events count as failed, and the drain names them:
    ///   [`Unfinished::undelivered`](crate::Unfinished::undelivered). Without this closure they stay pending, are tried
    ///   again for as long as the process lives, and the drain names them as unfinished;
    /// - when [`abort`](crate::TrackEventsHandle::abort) ends them, or their runtime shuts down: they count as aborted.
    ///   Without this closure they are dropped;
    /// - and with one batch, when it has been [attempted](Self::max_attempts) for the last time: its events count as
    ///   failed.
    ///
    /// It is called in place, by the poll of the drain or by the call of `abort`: what takes long there takes longer than
    /// the limit. An attempt that is under way is dropped, so the store may have taken some of the events nevertheless.
    /// The closure lives as long as the queue: with a sender of the same sink in it neither would ever go.
    ///
    /// # Panics
    ///
    /// If it panics, that is caught and logged, and the events count as panicked: what it had not stored by then is
    /// lost.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use tower_track_events::{Batch, TrackEventsHandle};
    ///
    /// let handle = TrackEventsHandle::new();
    /// let lines = handle
    ///     .sink("lines", |_: Batch<String>| async { Err("the store is gone") })
    ///     .on_undelivered(|lines| lines.iter().for_each(|line| eprintln!("{line}")))
    ///     .build()?;
    /// # drop(lines);
    /// # Ok(()) }
    /// ```
    pub fn on_undelivered<F>(mut self, take: F) -> Self
    where
        F: Fn(Undelivered<E>) + Send + Sync + 'static,
    {
        self.on_undelivered = Some(Box::new(take));
        self
    }

    /// Makes the queue in front of the sink, and starts the task that delivers.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] for a capacity of zero or beyond 4,294,967,295, a batch of zero events, zero attempts, or a
    /// time limit of zero; [`InvalidSetting::NoRuntime`] if there is no tokio runtime with timers, neither the
    /// [handle's own](crate::TrackEventsHandleBuilder::runtime) nor one in which this is called.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use tower_track_events::{Batch, TrackEventsHandle};
    /// # use std::time::Duration;
    /// let handle = TrackEventsHandle::new();
    /// let sink = |_batch: Batch<String>| async { Ok::<_, String>(()) };
    /// assert!(handle.sink("lines", sink).max_batch(0).build().is_err());
    /// assert!(handle.sink("lines", sink).build().is_ok());
    /// # Ok(()) }
    /// ```
    pub fn build(self) -> Result<EventSender<E>, InvalidSetting> {
        let Self { shard, name, location, sink, max_batch, max_delay, capacity, attempts, on_undelivered } = self;
        let capacity = match u32::try_from(capacity) {
            Ok(capacity) if capacity > 0 => capacity,
            _ => return Err(InvalidSetting::Capacity(capacity)),
        };
        if max_batch == 0 {
            return Err(InvalidSetting::MaxBatch);
        }
        if attempts.timeout.is_zero() {
            return Err(InvalidSetting::DeliverTimeout);
        }
        if attempts.max == Some(0) {
            return Err(InvalidSetting::MaxAttempts);
        }
        let runtime = match &shard.house().settings.runtime {
            Some(runtime) => runtime.clone(),
            None => runtime::Handle::try_current().map_err(|_| InvalidSetting::NoRuntime)?,
        };
        let _entered = runtime.enter();
        if sleep(Duration::ZERO).is_err() {
            return Err(InvalidSetting::NoRuntime);
        }
        let queue = EventQueue::new(shard, (name, location), capacity, max_batch, max_delay, on_undelivered);
        runtime.spawn(Delivery::new(Arc::clone(&queue), sink, attempts).run());
        Ok(EventSender { senders: Arc::new(Senders { queue }) })
    }
}

impl<E, S> fmt::Debug for SinkBuilder<E, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shard: _, name, location: _, sink: _, max_batch, max_delay, capacity, attempts, on_undelivered } =
            self;
        f.debug_struct("SinkBuilder")
            .field("name", name)
            .field("max_batch", max_batch)
            .field("max_delay", max_delay)
            .field("capacity", capacity)
            .field("attempts", attempts)
            .field("on_undelivered", &on_undelivered.is_some())
            .finish_non_exhaustive()
    }
}

/// Sends typed events to a sink, which is given them in batches.
///
/// From [`SinkBuilder::build`]. A clone is cheap and sends to the same sink. When the last one is dropped, what is
/// pending is delivered, and then the sink is dropped.
///
/// An event is pending from [`send`](Self::send) on, and has completed when the sink has acknowledged it: a drain waits
/// for it. It is sent at once, not when the response is over; to send when it is, call `send` in
/// [an observer](crate::TrackEventsLayerBuilder::observe) or in a [tracked](crate::Events::track) event.
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
/// assert_eq!(report.endings.completed, 2);
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
    /// Sends an event. It never waits.
    ///
    /// # Errors
    ///
    /// The event, in a [`SendError`]: [`Refused::Full`] when as many wait for the sink as its capacity allows;
    /// [`Refused::Drained`] after a drain was `Ok`; [`Refused::NoRuntime`] when the runtime of the sink has shut down.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use tower_track_events::{Batch, TrackEventsHandle};
    /// # use std::time::Duration;
    /// let handle = TrackEventsHandle::new();
    /// let lines = handle.sink("lines", |_batch: Batch<String>| async { Ok::<_, String>(()) }).build()?;
    /// lines.send("a line".to_owned()).map_err(|error| error.refused)?;
    /// assert_eq!(handle.snapshot().pending, 1);
    /// # Ok(()) }
    /// ```
    #[inline]
    pub fn send(&self, event: E) -> Result<(), SendError<E>> {
        self.queue().send(event).map_err(|(event, refused)| SendError { event, refused })
    }

    /// Reserves room for one event, so that sending it cannot be refused any more.
    ///
    /// # Errors
    ///
    /// As for [`send`](Self::send).
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use tower_track_events::{Batch, TrackEventsHandle};
    /// # use std::time::Duration;
    /// let handle = TrackEventsHandle::new();
    /// let lines = handle.sink("lines", |_batch: Batch<String>| async { Ok::<_, String>(()) }).build()?;
    /// let permit = lines.reserve()?; // refused here, or not at all
    /// permit.send("a line".to_owned());
    /// # Ok(()) }
    /// ```
    #[track_caller]
    pub fn reserve(&self) -> Result<SendPermit<E>, Refused> {
        let permit = self.queue().reserve(Location::caller())?;
        Ok(SendPermit { senders: Arc::clone(&self.senders), permit: Some(permit) })
    }

    /// Waits until the events that have been sent before its first poll have ended, without waiting for others that
    /// they could be delivered with.
    ///
    /// An event that has ended may have been given up: see [`snapshot`](Self::snapshot). The limit counts from the first
    /// poll. [`Duration::ZERO`] looks once; [`Duration::MAX`] waits for as long as it takes. An attempt that failed is
    /// followed by the next at once.
    ///
    /// # Errors
    ///
    /// [`TimedOut`](crate::WaitIdleError::TimedOut) when the limit came first;
    /// [`InsideItself`](crate::WaitIdleError::InsideItself) when polled inside an event, a handler, a body or a sink of
    /// the same handle; [`NoTimer`](crate::WaitIdleError::NoTimer) when there is no tokio timer to measure the limit
    /// with.
    ///
    /// # Cancel safety
    ///
    /// Dropping it loses nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use tower_track_events::{Batch, TrackEventsHandle};
    /// # use std::time::Duration;
    /// let handle = TrackEventsHandle::new();
    /// let lines = handle.sink("lines", |_batch: Batch<String>| async { Ok::<_, String>(()) }).build()?;
    /// lines.send("a line".to_owned()).map_err(|error| error.refused)?;
    /// lines.flush(Duration::from_secs(1)).await?;
    /// assert_eq!(lines.snapshot().endings.completed, 1);
    /// # Ok(()) }
    /// ```
    pub fn flush(&self, limit: Duration) -> WaitIdle {
        let queue = self.queue();
        WaitIdle::for_lane(Shards::of(&queue.shard.ledger), queue.as_lane(), limit)
    }

    /// Counts what has been sent to this sink, at one instant.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use tower_track_events::{Batch, TrackEventsHandle};
    /// # use std::time::Duration;
    /// let handle = TrackEventsHandle::new();
    /// let lines = handle.sink("lines", |_batch: Batch<String>| async { Ok::<_, String>(()) }).build()?;
    /// assert_eq!(lines.snapshot().delivered_batches, 0);
    /// # Ok(()) }
    /// ```
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

/// Room for one event of a sink, from [`EventSender::reserve`].
///
/// A drain waits for a permit that is held. Dropped unused, it gives its room back and is nothing.
///
/// # Examples
///
/// ```
/// # use tower_track_events::{EventSender, Refused};
/// # fn charge_card() -> u64 { 7 }
/// struct Receipt(u64);
///
/// fn pay(receipts: &EventSender<Receipt>) -> Result<&'static str, Refused> {
///     let permit = receipts.reserve()?; // before the money moves
///     permit.send(Receipt(charge_card()));
///     Ok("paid")
/// }
/// ```
#[must_use = "a permit that is dropped gives its room back"]
pub struct SendPermit<E: Send + Sync + 'static> {
    senders: Arc<Senders<E>>,
    /// None when it has been used.
    permit: Option<u32>,
}

impl<E: Send + Sync + 'static> SendPermit<E> {
    /// Sends an event, in the room that this permit holds.
    ///
    /// If the runtime of the sink has shut down meanwhile, the event is given up at once, as
    /// [`on_undelivered`](SinkBuilder::on_undelivered) says.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use tower_track_events::{Batch, TrackEventsHandle};
    /// # use std::time::Duration;
    /// let handle = TrackEventsHandle::new();
    /// let lines = handle.sink("lines", |_batch: Batch<String>| async { Ok::<_, String>(()) }).build()?;
    /// lines.reserve()?.send("a line".to_owned());
    /// assert_eq!(lines.snapshot().pending, 1);
    /// # Ok(()) }
    /// ```
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
        f.debug_struct("SendPermit").field("sink", &self.senders.queue.name()).finish_non_exhaustive()
    }
}

/// An event that was refused, and why, from [`EventSender::send`].
///
/// `?` turns it into a [`Refused`], without the event.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_track_events::{Batch, Refused, TrackEventsHandle};
///
/// let handle = TrackEventsHandle::new();
/// let store = |_: Batch<&'static str>| async { std::io::Result::Ok(()) };
/// let visits = handle.sink("visit", store).build()?;
/// handle.drain(std::time::Duration::MAX).await?;
///
/// let error = visits.send("/index.html").unwrap_err();
/// assert_eq!((error.event, error.refused), ("/index.html", Refused::Drained));
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SendError<E> {
    /// The event.
    pub event: E,
    /// Why it was refused.
    pub refused: Refused,
}

impl<E> From<SendError<E>> for Refused {
    fn from(error: SendError<E>) -> Self {
        error.refused
    }
}

/// Writes why the event was refused; the event itself may be secret.
impl<E> fmt::Display for SendError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.refused.fmt(f)
    }
}

/// Leaves the event out, which may be secret and need not have a `Debug`.
impl<E> fmt::Debug for SendError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { event: _, refused } = self;
        f.debug_struct("SendError").field("refused", refused).finish_non_exhaustive()
    }
}

impl<E> Error for SendError<E> {}
