//! [`SinkBuilder`]: the settings of a sink.

use std::{fmt, panic::Location, sync::Arc, time::Duration};

use tokio::runtime;
use tower_layer::{Identity, Layer, Stack};
use tower_service::Service;

use crate::{
    context::Shard,
    error::{BuildError, MAX_CAPACITY},
    event::BoxError,
    sink::{
        Batch, Undelivered,
        blocking::DeliverBlocking,
        deliver::{Deliver, DeliveryOutput, Ignored},
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
/// The largest back-off. A timer has a maximum, and jitter doubles the back-off.
const MAX_BACKOFF: Duration = Duration::from_secs(24 * 60 * 60);

/// Settings of a sink, from [`TrackEventsHandle::sink`](crate::TrackEventsHandle::sink).
///
/// [`deliver`](Self::deliver), [`deliver_blocking`](Self::deliver_blocking) and [`service`](Self::service) make the
/// sink, and return its [`EventSender`].
///
/// # How often a batch is delivered
///
/// At least once. After an error, a panic, or an attempt that takes too long, the batch is retried, unless the error is
/// a [`SinkError`](crate::sink::SinkError) that says otherwise. After a panic or a time limit the store may contain the
/// batch: give each event an identity, and let the store ignore duplicates. When a delivery succeeds, its events have
/// completed. So it must not return before the store has acknowledged them.
///
/// # Cancel safety of a delivery
///
/// The future of a delivery is dropped in these cases:
///
/// - It takes longer than its [time limit](Self::deliver_timeout).
/// - A drain times out, and the sink has [`on_undelivered`](Self::on_undelivered).
/// - [`abort`](crate::TrackEventsHandle::abort) is called.
/// - The service has failed for good in another delivery.
/// - The runtime shuts down.
///
/// After a time limit and after a panic, the service is called again. So it must replace state that may be
/// inconsistent, such as a connection in the middle of a protocol.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_track_events::BuildError> {
/// use std::time::Duration;
///
/// use tower_track_events::{EventSender, TrackEventsHandle};
///
/// # #[derive(Clone)] struct Db;
/// # impl Db { async fn insert(&self, orders: &[Order]) -> std::io::Result<u64> { Ok(1) } }
/// # let db = Db;
/// #[derive(Debug)]
/// struct Order {
///     id: u64,
/// }
///
/// let handle = TrackEventsHandle::new();
/// let orders: EventSender<Order> = handle
///     .sink::<Order>("order.created")
///     .max_batch(1_000)
///     .max_delay(Duration::from_millis(5))
///     .on_undelivered(|orders| {
///         for order in orders.iter() {
///             eprintln!("not stored: {order:?}"); // or append it to a file
///         }
///     })
///     .deliver(move |batch| async move { db.insert(&batch).await })?;
/// # Ok(()) }
/// ```
#[must_use = "a builder does nothing until `deliver`, `deliver_blocking` or `service`"]
pub struct SinkBuilder<E, L = Identity> {
    shard: Arc<Shard>,
    name: &'static str,
    location: &'static Location<'static>,
    layer: L,
    batching: Batching<E>,
    attempts: Attempts,
    on_undelivered: Option<OnUndelivered<E>>,
}

impl<E: Send + Sync + 'static> SinkBuilder<E> {
    pub(crate) fn new(shard: Arc<Shard>, name: &'static str, location: &'static Location<'static>) -> Self {
        let attempts = Attempts {
            timeout: DEFAULT_TIMEOUT,
            first_backoff: DEFAULT_FIRST_BACKOFF,
            longest_backoff: DEFAULT_LONGEST_BACKOFF,
            max: None,
        };
        let batching = Batching {
            max_batch: DEFAULT_MAX_BATCH,
            max_bytes: None,
            max_delay: DEFAULT_MAX_DELAY,
            capacity: DEFAULT_CAPACITY as u64,
            max_in_flight: 1,
        };
        let layer = Identity::new();
        Self { shard, name, location, layer, batching, attempts, on_undelivered: None }
    }
}

impl<E: Send + Sync + 'static, L> SinkBuilder<E, L> {
    /// Sets the largest number of events in a batch. Default: 512.
    ///
    /// At least 1. A smaller batch is delivered in these cases:
    ///
    /// - [`max_delay`](Self::max_delay) has passed.
    /// - The sink has no capacity left.
    /// - An event in it [is awaited](EventSender::send_acked), and no batch is being delivered.
    /// - A [flush](EventSender::flush), a [wait for idleness](crate::TrackEventsHandle::wait_idle) or a drain waits.
    /// - All senders have been dropped.
    pub fn max_batch(mut self, events: usize) -> Self {
        self.batching.max_batch = events;
        self
    }

    /// Sets the largest size of a batch in bytes, and a closure that returns the size of an event. Default: no limit.
    ///
    /// At least 1 byte. A single event that is larger is a batch of its own. The closure is called once for each event,
    /// on the thread that sends it.
    pub fn max_batch_bytes<F>(mut self, bytes: usize, size: F) -> Self
    where
        F: Fn(&E) -> usize + Send + Sync + 'static,
    {
        self.batching.max_bytes = Some((bytes, Box::new(size)));
        self
    }

    /// Sets how long an event may wait for others, to be delivered in one batch with them. Default: 10 ms;
    /// [`Duration::ZERO`] delivers at once.
    ///
    /// While [`max_in_flight`](Self::max_in_flight) batches are being delivered, events wait for the next batch.
    pub fn max_delay(mut self, delay: Duration) -> Self {
        self.batching.max_delay = delay;
        self
    }

    /// Sets how many events of this sink may be pending or reserved. Default: 65,536.
    ///
    /// From 1 to 4,294,967,295. Events beyond it are rejected by [`try_send`](EventSender::try_send), and wait in
    /// [`send`](EventSender::send). The limit is separate from the
    /// [capacity of the handle](crate::TrackEventsHandleBuilder::capacity), so that a store that is down does not use
    /// up the capacity for other events.
    pub fn capacity(mut self, events: usize) -> Self {
        self.batching.capacity = events as u64;
        self
    }

    /// Sets how many batches may be delivered at one time. Default: 1, which keeps the events in order.
    ///
    /// At least 1. With more, a batch may be delivered before an earlier one.
    /// [`deliver_blocking`](Self::deliver_blocking) has one thread, and returns an error for more.
    pub fn max_in_flight(mut self, batches: usize) -> Self {
        self.batching.max_in_flight = batches;
        self
    }

    /// Sets how long one attempt to deliver a batch may take. Default: 30 seconds; [`Duration::MAX`] for no limit.
    ///
    /// Longer than zero. It counts from the first call of the service's `poll_ready`. An attempt that takes longer is
    /// dropped, and the batch is retried. It does not stop a future that blocks its thread, and does not apply to
    /// [`deliver_blocking`](Self::deliver_blocking).
    pub fn deliver_timeout(mut self, limit: Duration) -> Self {
        self.attempts.timeout = limit;
        self
    }

    /// Sets the time between a failed attempt and the next: `first`, then double that, and so on up to `longest`.
    /// Default: from 100 ms to 10 s.
    ///
    /// Each time is increased by a random part of up to its own length, so that many instances do not retry
    /// simultaneously. The first poll of a drain ends the wait, and the next one starts at `first` again. Times above
    /// 24 hours are reduced to 24 hours, and `first` to `longest`.
    pub fn backoff(mut self, first: Duration, longest: Duration) -> Self {
        self.attempts.first_backoff = first.min(longest).min(MAX_BACKOFF);
        self.attempts.longest_backoff = longest.min(MAX_BACKOFF);
        self
    }

    /// Sets the maximum number of attempts for a batch. Default: no limit.
    ///
    /// At least 1. Without a maximum, a batch that can never be delivered because of one event delays all later ones.
    /// With a maximum, the batch is halved after its last attempt, and so are halves that fail, until the events are
    /// found that cannot be delivered. These are passed to [`on_undelivered`](Self::on_undelivered): one bad row costs
    /// one row.
    ///
    /// A half gets one attempt, without a back-off. If 2·log₂(n) attempts in a row have failed for a batch of n events,
    /// the store is at fault, and all events of the batch that are left are passed to `on_undelivered`.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.attempts.max = Some(attempts);
        self
    }

    /// Sets a closure that takes events which could not be delivered, for example to write them to a file. Default:
    /// none.
    ///
    /// It is called with all pending events of the sink, in order, in these cases:
    ///
    /// - The limit of a drain has passed. The events count as failed, and the drain's report names them as
    ///   [`UndeliveredEvent`](crate::OpenKind::UndeliveredEvent). Without this closure they stay pending, are retried
    ///   while the process lives, and the report names them as queued.
    /// - [`abort`](crate::TrackEventsHandle::abort) was called, or the runtime of the sink shuts down. The events count
    ///   as aborted. Without this closure they are dropped.
    /// - `poll_ready` of the service has failed twice in a row. The sink is given up, and the events count as failed.
    ///
    /// It is called with some events in these cases. They count as failed:
    ///
    /// - They have had their [last attempt](Self::max_attempts).
    /// - A [`SinkError`](crate::sink::SinkError) says that they cannot be delivered.
    ///
    /// The closure is called synchronously, for example in the poll of the drain or in the call of `abort`. If it takes
    /// long, a drain takes longer than its limit. Attempts that are running are dropped, so the store may contain some
    /// of the events. The closure lives as long as the queue: if it owns a sender of the same sink, both leak. When the
    /// limit of a drain has passed, the events of all sinks are taken at one instant. So do not send them to a second
    /// sink, which may be closed as well: write to a file.
    ///
    /// # Panics
    ///
    /// A panic of the closure is caught and logged, and the events count as panicked. Events that it had not stored by
    /// then are lost.
    pub fn on_undelivered<F>(mut self, take: F) -> Self
    where
        F: Fn(Undelivered<E>) + Send + Sync + 'static,
    {
        self.on_undelivered = Some(Box::new(take));
        self
    }

    /// Adds a Tower layer around the service, for example a rate limit or a time limit.
    ///
    /// The first layer that is added is the outermost, as in Tower's `ServiceBuilder`. The service is called when it is
    /// ready. While a layer is not ready, the queue of the sink grows. When it reaches the [capacity](Self::capacity),
    /// senders wait or are rejected.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_track_events::BuildError> {
    /// use std::time::Duration;
    ///
    /// use tower::ServiceBuilder;
    /// use tower_track_events::TrackEventsHandle;
    ///
    /// # async fn post(rows: &[u32]) -> std::io::Result<()> { Ok(()) }
    /// let handle = TrackEventsHandle::new();
    /// let rows = handle
    ///     .sink::<u32>("row")
    ///     .layer(ServiceBuilder::new().rate_limit(10, Duration::from_secs(1)))
    ///     .deliver(|rows| async move { post(&rows).await })?;
    /// # Ok(()) }
    /// ```
    pub fn layer<T>(self, layer: T) -> SinkBuilder<E, Stack<T, L>> {
        let Self { shard, name, location, layer: outer, batching, attempts, on_undelivered } = self;
        let layer = Stack::new(layer, outer);
        SinkBuilder { shard, name, location, layer, batching, attempts, on_undelivered }
    }

    /// Makes the sink, which delivers through an asynchronous closure.
    ///
    /// The closure is cloned for each attempt. Put state that attempts share, such as a connection pool, in an `Arc`,
    /// or use a type whose clone is cheap. The closure returns `()` or a `Result` ([`DeliveryOutput`]). The value of an
    /// `Ok` is ignored, and cannot be a `Result`.
    ///
    /// # Errors
    ///
    /// - [`BuildError`] for a setting that is out of its range.
    /// - [`BuildError::NoRuntime`] if there is no tokio runtime with timers: neither the
    ///   [handle's own](crate::TrackEventsHandleBuilder::runtime) nor one in which this is called.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_track_events::BuildError> {
    /// use tower_track_events::TrackEventsHandle;
    ///
    /// # #[derive(Clone)] struct Pool;
    /// # impl Pool { async fn insert(&self, rows: &[u32]) -> std::io::Result<usize> { Ok(1) } }
    /// # let pool = Pool;
    /// let handle = TrackEventsHandle::new();
    /// let rows = handle.sink::<u32>("row").deliver(move |rows| async move { pool.insert(&rows).await })?;
    /// # Ok(()) }
    /// ```
    pub fn deliver<D, F, M>(self, deliver: D) -> Result<EventSender<E>, BuildError>
    where
        D: FnOnce(Batch<E>) -> F + Clone + Send + 'static,
        F: Future<Output: DeliveryOutput<M>> + Send + 'static,
        L: Layer<Deliver<E, D, M>>,
        L::Service: Service<Batch<E>, Error: Into<BoxError>, Future: Send> + Send + 'static,
    {
        self.build(|queue, _, layer| layer.layer(Deliver::new(queue, deliver)))
    }

    /// Makes the sink, which delivers through a closure on a blocking thread: for SQLite and files.
    ///
    /// The closure owns its state, for example a connection. It is called for one batch at a time, and dropped on a
    /// blocking thread. There is no [time limit](Self::deliver_timeout), because a thread cannot be stopped. The
    /// closure returns the same types as for [`deliver`](Self::deliver).
    ///
    /// # Errors
    ///
    /// As for [`deliver`](Self::deliver), and [`BuildError::MaxInFlight`] if [`max_in_flight`](Self::max_in_flight) is
    /// not 1.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::{fs::File, io::Write};
    ///
    /// use tower_track_events::TrackEventsHandle;
    ///
    /// # let path = std::env::temp_dir().join(format!("visits-{}", std::process::id()));
    /// let mut file = File::create(path)?;
    /// let handle = TrackEventsHandle::new();
    /// let visits = handle.sink::<String>("visit").deliver_blocking(move |visits| {
    ///     file.write_all((visits.join("\n") + "\n").as_bytes())?;
    ///     file.sync_data()
    /// })?;
    /// visits.send_acked("/index.html".to_owned()).await?;
    /// # Ok(()) }
    /// ```
    pub fn deliver_blocking<D, T, M>(mut self, deliver: D) -> Result<EventSender<E>, BuildError>
    where
        D: FnMut(&[E]) -> T + Send + 'static,
        T: DeliveryOutput<M>,
        L: Layer<DeliverBlocking<E, D, M>>,
        L::Service: Service<Batch<E>, Error: Into<BoxError>, Future: Send> + Send + 'static,
    {
        if self.batching.max_in_flight != 1 {
            return Err(BuildError::MaxInFlight(self.batching.max_in_flight));
        }
        self.attempts.timeout = Duration::MAX;
        self.build(|queue, runtime, layer| layer.layer(DeliverBlocking::new(queue, runtime, deliver)))
    }

    /// Makes the sink, which delivers through a Tower service.
    ///
    /// The response of the service is ignored, and cannot be a `Result`. `poll_ready` is called when a batch is due. An
    /// error of `poll_ready` is a failed attempt. The second one in a row ends the sink: pending events are passed to
    /// [`on_undelivered`](Self::on_undelivered), and senders get [`TrackError::Closed`](crate::TrackError::Closed).
    ///
    /// A drain waits until the service and its response futures have been dropped. It does not wait for a task that the
    /// service spawns.
    ///
    /// # Errors
    ///
    /// As for [`deliver`](Self::deliver).
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_track_events::BuildError> {
    /// use tower::service_fn;
    /// use tower_track_events::{Batch, TrackEventsHandle};
    ///
    /// let handle = TrackEventsHandle::new();
    /// let print = service_fn(|rows: Batch<u32>| async move {
    ///     println!("{rows:?}");
    ///     std::io::Result::Ok(())
    /// });
    /// let rows = handle.sink::<u32>("row").service(print)?;
    /// # Ok(()) }
    /// ```
    pub fn service<S, M>(self, service: S) -> Result<EventSender<E>, BuildError>
    where
        L: Layer<S>,
        L::Service: Service<Batch<E>, Response: Ignored<M>, Error: Into<BoxError>, Future: Send> + Send + 'static,
    {
        self.build(|_, _, layer| layer.layer(service))
    }

    /// Makes the queue, and starts the task that delivers.
    fn build<S>(
        self,
        service: impl FnOnce(Arc<EventQueue<E>>, runtime::Handle, L) -> S,
    ) -> Result<EventSender<E>, BuildError>
    where
        S: Service<Batch<E>, Error: Into<BoxError>, Future: Send> + Send + 'static,
    {
        let Self { shard, name, location, layer, batching, attempts, on_undelivered } = self;
        let capacity = batching.capacity as usize;
        if !(1..=MAX_CAPACITY).contains(&capacity) {
            return Err(BuildError::Capacity(capacity));
        }
        if batching.max_batch == 0 || batching.max_bytes.as_ref().is_some_and(|(bytes, _)| *bytes == 0) {
            return Err(BuildError::MaxBatch);
        }
        if batching.max_in_flight == 0 {
            return Err(BuildError::MaxInFlight(0));
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
        let queue = EventQueue::new(shard, name, location, batching, on_undelivered);
        let sender = EventSender::new(Arc::clone(&queue));
        let service = service(Arc::clone(&queue), runtime.clone(), layer);
        runtime.spawn(Worker::new(queue, service, attempts).run());
        Ok(sender)
    }
}

impl<E, L> fmt::Debug for SinkBuilder<E, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shard: _, name, location: _, layer: _, batching, attempts, on_undelivered } = self;
        f.debug_struct("SinkBuilder")
            .field("name", name)
            .field("max_batch", &batching.max_batch)
            .field("max_batch_bytes", &batching.max_bytes.as_ref().map(|(bytes, _)| bytes))
            .field("max_delay", &batching.max_delay)
            .field("max_in_flight", &batching.max_in_flight)
            .field("capacity", &batching.capacity)
            .field("attempts", attempts)
            .field("on_undelivered", &on_undelivered.is_some())
            .finish_non_exhaustive()
    }
}
