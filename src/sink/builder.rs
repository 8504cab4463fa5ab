//! [`SinkBuilder`]: the settings of a sink.

use std::{fmt, panic::Location, sync::Arc, time::Duration};

use tokio::runtime;

use crate::{
    context::Shard,
    error::{BuildError, MAX_CAPACITY},
    sink::{
        EventSink, Undelivered,
        queue::{Batching, EventQueue, OnUndelivered},
        sender::EventSender,
        worker::{Attempts, Worker},
    },
    util::deadline::sleep,
};

const DEFAULT_MAX_BATCH: usize = 512;
const DEFAULT_MAX_DELAY: Duration = Duration::from_millis(10);
const DEFAULT_CAPACITY: usize = 65_536;
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
const DEFAULT_FIRST_BACKOFF: Duration = Duration::from_millis(100);
const DEFAULT_LONGEST_BACKOFF: Duration = Duration::from_secs(10);
/// The largest back-off: jitter doubles it, and timers have a limit.
const MAX_BACKOFF: Duration = Duration::from_secs(24 * 60 * 60);

/// Settings of a sink, from [`TrackEventsHandle::sink`](crate::TrackEventsHandle::sink).
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_track_events::BuildError> {
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
    on_undelivered: Option<OnUndelivered<E>>,
}

impl<E, S> SinkBuilder<E, S>
where
    E: Send + Sync + 'static,
    S: EventSink<E>,
{
    pub(crate) fn new(shard: Arc<Shard>, name: &'static str, location: &'static Location<'static>, sink: S) -> Self {
        let attempts = Attempts {
            timeout: DEFAULT_TIMEOUT,
            first_backoff: DEFAULT_FIRST_BACKOFF,
            longest_backoff: DEFAULT_LONGEST_BACKOFF,
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

    /// Sets the largest number of events in a batch. Default: 512.
    pub fn max_batch(mut self, events: usize) -> Self {
        self.max_batch = events;
        self
    }

    /// Sets how long an event may wait for others, to be delivered in one batch with them. Default: 10 ms;
    /// [`Duration::ZERO`] delivers at once.
    ///
    /// What arrives while a batch is being delivered is in the next one. A drain, a [flush](EventSender::flush) and a
    /// [wait for idleness](crate::TrackEventsHandle::wait_idle) do not wait for this time.
    pub fn max_delay(mut self, delay: Duration) -> Self {
        self.max_delay = delay;
        self
    }

    /// Sets how many events may wait for this sink, be in delivery, or be reserved. Default: 65,536.
    ///
    /// From 1 to 4,294,967,295. What exceeds it is rejected. The limit is this sink's own, so that a store that is down
    /// does not use up the capacity for other events: the
    /// [capacity of the handle](crate::TrackEventsHandleBuilder::capacity) does not count them.
    pub fn capacity(mut self, events: usize) -> Self {
        self.capacity = events;
        self
    }

    /// Sets how long one attempt to deliver a batch may take. Default: 30 seconds; [`Duration::MAX`] for no limit.
    ///
    /// An attempt that takes longer is dropped, and the batch is retried. A sink that blocks its thread cannot be
    /// stopped.
    pub fn deliver_timeout(mut self, limit: Duration) -> Self {
        self.attempts.timeout = limit;
        self
    }

    /// Sets the time between a failed attempt and the next: `first`, then double that, and so on up to `longest`.
    /// Default: from 100 ms to 10 s.
    ///
    /// A random part is added to each, up to as much again, so that many instances do not retry simultaneously. A
    /// drain, a flush and a wait for idleness end the back-off, and start again at `first`. Both are at most a day.
    pub fn backoff(mut self, first: Duration, longest: Duration) -> Self {
        self.attempts.first_backoff = first.min(longest).min(MAX_BACKOFF);
        self.attempts.longest_backoff = longest.min(MAX_BACKOFF);
        self
    }

    /// Sets the maximum number of attempts for a batch, after which it fails. Default: no limit.
    ///
    /// A batch that can never be delivered, because of one event in it, delays all that come later. With a maximum it
    /// is passed to [`on_undelivered`](Self::on_undelivered) as a whole, and the next batch is delivered.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.attempts.max = Some(attempts);
        self
    }

    /// Sets a closure that takes what could not be delivered, for example to write it to a file. Default: none.
    ///
    /// It is called with all that is pending, in order,
    ///
    /// - when the limit of a drain has passed. The events count as failed, and the drain's report names them as
    ///   [`UndeliveredEvent`](crate::OpenKind::UndeliveredEvent). Without this closure they stay pending, are retried
    ///   for as long as the process lives, and the report names them as queued;
    /// - when [`abort`](crate::TrackEventsHandle::abort) ends them, or their runtime shuts down: they count as aborted.
    ///   Without this closure they are dropped;
    /// - and with one batch, after its [last attempt](Self::max_attempts): its events count as failed.
    ///
    /// It is called synchronously, by the poll of the drain or by the call of `abort`: if it takes long, that takes
    /// longer than the limit. An attempt that is under way is dropped, so the store may have taken some of the events.
    /// The closure lives as long as the queue: with a sender of the same sink in it, both would leak.
    ///
    /// # Panics
    ///
    /// If it panics, that is caught and logged, and the events count as panicked: what it had not stored by then is
    /// lost.
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
    /// [`BuildError`] for a capacity of zero or beyond 4,294,967,295, a batch of zero events, zero attempts, or a
    /// time limit of zero; [`BuildError::NoRuntime`] if there is no tokio runtime with timers, neither the
    /// [handle's own](crate::TrackEventsHandleBuilder::runtime) nor one in which this is called.
    pub fn build(self) -> Result<EventSender<E>, BuildError> {
        let Self { shard, name, location, sink, max_batch, max_delay, capacity, attempts, on_undelivered } = self;
        if !(1..=MAX_CAPACITY).contains(&capacity) {
            return Err(BuildError::Capacity(capacity));
        }
        if max_batch == 0 {
            return Err(BuildError::MaxBatch);
        }
        if attempts.timeout.is_zero() {
            return Err(BuildError::DeliverTimeout);
        }
        if attempts.max == Some(0) {
            return Err(BuildError::MaxAttempts);
        }
        let runtime = match &shard.context().settings.runtime {
            Some(runtime) => runtime.clone(),
            None => runtime::Handle::try_current().map_err(|_| BuildError::NoRuntime)?,
        };
        let _entered = runtime.enter();
        if sleep(Duration::ZERO).is_err() {
            return Err(BuildError::NoRuntime);
        }
        let batching = Batching { max_batch, max_delay, capacity: capacity as u64 };
        let queue = EventQueue::new(shard, name, location, batching, on_undelivered);
        runtime.spawn(Worker::new(Arc::clone(&queue), sink, attempts).run());
        Ok(EventSender::new(queue))
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
