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
/// The largest back-off: jitter doubles it, and timers have a limit.
const MAX_BACKOFF: Duration = Duration::from_secs(24 * 60 * 60);

/// Settings of a sink, from [`TrackEventsHandle::sink`](crate::TrackEventsHandle::sink).
///
/// [`deliver`](Self::deliver), [`deliver_blocking`](Self::deliver_blocking) or [`service`](Self::service) end it: they
/// say where the events go, and return the sender.
///
/// # How often a batch is delivered
///
/// At least once. An error, a panic, and an attempt that takes too long make the batch be tried again, unless the error
/// is a [`SinkError`](crate::sink::SinkError) that says otherwise. A panic and a time limit do not say whether the
/// store has taken the batch: give each event an identity, and let the store ignore duplicates. When a delivery
/// succeeds its events have completed, so it must not return before the store has acknowledged them.
///
/// # Cancel safety of a delivery
///
/// Its future is dropped when it takes longer than its [time limit](Self::deliver_timeout), when a drain that times out
/// or an abort takes the events away, and when its runtime shuts down. After the first of these, and after a panic, the
/// service is called again: it must replace whatever may be half done, such as a connection in the middle of a
/// protocol.
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
#[must_use = "a sink is made by `deliver`, `deliver_blocking` or `service`"]
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
    /// A smaller batch is delivered when [`max_delay`](Self::max_delay) has passed, when the sink has no capacity left,
    /// when an event in it [is awaited](EventSender::send_acked) and no batch is being delivered, and at once during a
    /// [flush](EventSender::flush), a [wait for idleness](crate::TrackEventsHandle::wait_idle) and a drain.
    pub fn max_batch(mut self, events: usize) -> Self {
        self.batching.max_batch = events;
        self
    }

    /// Sets the largest size of a batch in bytes, with the size of an event. Default: no limit.
    ///
    /// The sizes are added up. A single event that is larger is a batch of its own. The closure is called once for each
    /// event, when it is sent and on the thread that sends it.
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
    /// What arrives while as many batches are being delivered as [may be](Self::max_in_flight) is in the next one.
    pub fn max_delay(mut self, delay: Duration) -> Self {
        self.batching.max_delay = delay;
        self
    }

    /// Sets how many events may wait for this sink, be in delivery, or be reserved. Default: 65,536.
    ///
    /// From 1 to 4,294,967,295. What exceeds it is rejected, or waits. The limit is this sink's own, so that a store
    /// that is down does not use up the capacity for other events: the
    /// [capacity of the handle](crate::TrackEventsHandleBuilder::capacity) does not count them.
    pub fn capacity(mut self, events: usize) -> Self {
        self.batching.capacity = events as u64;
        self
    }

    /// Sets how many batches may be delivered at one time. Default: 1, which keeps the events in order.
    ///
    /// With more, a batch may be taken before an earlier one. [`deliver_blocking`](Self::deliver_blocking) has one
    /// thread, and refuses more.
    pub fn max_in_flight(mut self, batches: usize) -> Self {
        self.batching.max_in_flight = batches;
        self
    }

    /// Sets how long one attempt to deliver a batch may take. Default: 30 seconds; [`Duration::MAX`] for no limit.
    ///
    /// It counts from the first poll for the readiness of the service. An attempt that takes longer is dropped, and the
    /// batch is tried again. A future that blocks its thread cannot be stopped; nor can
    /// [`deliver_blocking`](Self::deliver_blocking), which has no time limit.
    pub fn deliver_timeout(mut self, limit: Duration) -> Self {
        self.attempts.timeout = limit;
        self
    }

    /// Sets the time between a failed attempt and the next: `first`, then double that, and so on up to `longest`.
    /// Default: from 100 ms to 10 s.
    ///
    /// A random part is added to each, up to as much again, so that many instances do not retry simultaneously. A
    /// drain cuts it short, and starts again at `first`. Both are at most a day.
    pub fn backoff(mut self, first: Duration, longest: Duration) -> Self {
        self.attempts.first_backoff = first.min(longest).min(MAX_BACKOFF);
        self.attempts.longest_backoff = longest.min(MAX_BACKOFF);
        self
    }

    /// Sets the maximum number of attempts for a batch. Default: no limit.
    ///
    /// A batch that can never be delivered, because of one event in it, delays all that come later. With a maximum it
    /// is halved after its last attempt, and so are the halves that fail, until the events are found that cannot be
    /// delivered: one bad row costs one row. These are passed to [`on_undelivered`](Self::on_undelivered). A half gets
    /// one attempt, without a back-off. When 2·log₂(n) attempts in a row have failed for a batch of n, the store is at
    /// fault, and all that is left of the batch is passed on.
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
    /// - when the service has failed twice in a row before it was called (`poll_ready`): it is given up, and the events
    ///   count as failed;
    /// - and with single events, after their [last attempt](Self::max_attempts), or when a
    ///   [`SinkError`](crate::sink::SinkError) says that they cannot be delivered: they count as failed.
    ///
    /// It is called synchronously, by the poll of the drain or by the call of `abort`: if it takes long, that takes
    /// longer than the limit. An attempt that is under way is dropped, so the store may have taken some of the events.
    /// The closure lives as long as the queue: with a sender of the same sink in it, both would leak. When the limit of
    /// a drain has passed all sinks are asked at that instant, so a second sink for what the first has not delivered
    /// may be closed as well: write to a file instead.
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

    /// Adds a Tower layer around the service: a rate limit, a time limit, a retry of one's own.
    ///
    /// The first layer that is added is the outermost, as in Tower's `ServiceBuilder`. The service is called when it is
    /// ready, so a layer that is not ready holds the sink back: its capacity fills up, and senders wait or are
    /// rejected.
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

    /// Makes the sink, which delivers with an asynchronous closure.
    ///
    /// The closure is cloned for each attempt: what it shares between them, such as a connection pool, is cheap to
    /// clone or in an `Arc`. It returns `()` or a `Result` ([`DeliveryOutput`]). The value of an `Ok` is ignored, and
    /// cannot be a `Result`.
    ///
    /// # Errors
    ///
    /// [`BuildError`] for a setting that is out of its range; [`BuildError::NoRuntime`] if there is no tokio runtime
    /// with timers, neither the [handle's own](crate::TrackEventsHandleBuilder::runtime) nor one in which this is
    /// called.
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

    /// Makes the sink, which delivers with a closure on a blocking thread: for SQLite and files.
    ///
    /// The closure keeps its state, for example a connection. It is called for one batch at a time, and dropped on a
    /// blocking thread. There is no [time limit](Self::deliver_timeout): a thread cannot be stopped. What it returns is
    /// as for [`deliver`](Self::deliver).
    ///
    /// # Errors
    ///
    /// As for [`deliver`](Self::deliver); [`BuildError::MaxInFlight`] if [`max_in_flight`](Self::max_in_flight) is not
    /// 1.
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

    /// Makes the sink, which delivers with a Tower service.
    ///
    /// Its response is ignored, and cannot be a `Result`. `poll_ready` is called when a batch is due, and a service
    /// that is ready is called or dropped. An error of `poll_ready` is a failed attempt; the second in a row is the end
    /// of the sink: what is pending goes to [`on_undelivered`](Self::on_undelivered), and senders get
    /// [`TrackError::Closed`](crate::TrackError::Closed).
    ///
    /// A drain waits until the service and its response futures have been dropped. It cannot see a task that the
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
