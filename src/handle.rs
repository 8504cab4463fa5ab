//! [`TrackEventsHandle`]: the shared side that the application keeps.

use std::{fmt, panic::Location, sync::Arc, time::Duration};

use tokio::runtime;

use crate::{
    batch::EventSink,
    drain::Drain,
    entry::Stage,
    house::{House, Settings, Shard, Shards},
    ledger::{NewEvent, Ticket},
    metrics,
    output::EventOutput,
    permit::Permit,
    refused::Refused,
    setting::InvalidSetting,
    sink::SinkBuilder,
    snapshot::{SinkSnapshot, Snapshot},
    start::Place,
    task::{Cause, Launch, track},
    wait_idle::WaitIdle,
};

/// The handle: tracks events, drains them, and counts them.
///
/// A clone is cheap and refers to the same events. Clones of the handle, the layer and the service keep nothing open:
/// a drain ends while they live.
///
/// There is no `Default`, because a second handle that is made by accident would be drained in place of the first.
///
/// # When not to use it
///
/// Events are kept in this process and run at most once: `SIGKILL`, `process::exit`, a power failure and
/// `panic = "abort"` lose what is pending. Work that must survive these belongs into an outbox or a broker; write to
/// it inside the event, or inside the handler if it must not be lost at all.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use tower_track_events::TrackEventsHandle;
///
/// let handle = TrackEventsHandle::new();
/// handle.track("cache.warm", async { /* .. */ })?;
///
/// let report = handle.drain(Duration::from_secs(5)).await?;
/// assert_eq!(report.endings.completed, 1);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct TrackEventsHandle {
    shards: Arc<Shards>,
}

impl TrackEventsHandle {
    /// Makes a handle with the defaults of its [builder](Self::builder).
    ///
    /// Outside of a runtime this is fine; an event can be tracked as soon as there is one.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_track_events::{TrackEventsHandle, TrackEventsLayer};
    ///
    /// let handle = TrackEventsHandle::new();
    /// let layer = TrackEventsLayer::new(handle.clone());
    /// ```
    // A `Default` would make a second ledger by accident, which drains nothing.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self { shards: House::build(Self::builder().settings(DEFAULT_CAPACITY)) }
    }

    /// Makes a builder: capacity 65,536, settle time 100 ms, a line about the progress of a drain each second, no event
    /// timeout, events run on the runtime in which they are tracked.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use tower_track_events::TrackEventsHandle;
    ///
    /// let handle = TrackEventsHandle::builder().capacity(10_000).settle(Duration::from_millis(50)).build()?;
    /// # Ok::<(), tower_track_events::InvalidSetting>(())
    /// ```
    pub fn builder() -> TrackEventsHandleBuilder {
        TrackEventsHandleBuilder {
            capacity: DEFAULT_CAPACITY as usize,
            settle: DEFAULT_SETTLE,
            event_timeout: None,
            progress: DEFAULT_PROGRESS,
            runtime: None,
        }
    }

    /// Starts `future` at once as an event called `name`.
    ///
    /// The event runs in a task of the current runtime; those that start together may share one until the first of them has
    /// to wait. A drain waits for it. If it panics, that is caught, counted and logged; if it returns an `Err`, likewise.
    ///
    /// Inside a handler, [`Events::track`](crate::Events::track) starts the event when the response is over.
    ///
    /// # Errors
    ///
    /// [`Refused::Drained`] after a drain was `Ok`, [`Refused::Full`] at capacity, [`Refused::NoRuntime`] if called
    /// outside of a tokio runtime while the handle knows of none.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_track_events::Refused> {
    /// # let handle = tower_track_events::TrackEventsHandle::new();
    /// handle.track("report.nightly", async {
    ///     // ..
    ///     std::io::Result::Ok(())
    /// })?;
    /// # Ok(()) }
    /// ```
    #[track_caller]
    pub fn track<F>(&self, name: &'static str, future: F) -> Result<(), Refused>
    where
        F: Future + Send + 'static,
        F::Output: EventOutput,
    {
        track(self.shard(), name, Location::caller(), future)
    }

    /// Starts `work` at once, on the runtime's blocking threads, as an event called `name`.
    ///
    /// For what blocks: SQLite, files, compression. Work that has begun cannot be stopped, neither by a timeout nor by
    /// a runtime that shuts down: [`event_timeout`](TrackEventsHandleBuilder::event_timeout) does not apply, and a
    /// runtime that is dropped waits for it.
    ///
    /// # Errors
    ///
    /// As for [`track`](Self::track).
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_track_events::Refused> {
    /// # let handle = tower_track_events::TrackEventsHandle::new();
    /// let path = std::env::temp_dir().join("audit.log");
    /// handle.track_blocking("audit", move || std::fs::write(path, "logged in"))?;
    /// # handle.drain(std::time::Duration::MAX).await.unwrap();
    /// # Ok(()) }
    /// ```
    #[track_caller]
    pub fn track_blocking<F, T>(&self, name: &'static str, work: F) -> Result<(), Refused>
    where
        F: FnOnce() -> T + Send + 'static,
        T: EventOutput,
    {
        let (shard, location) = (self.shard(), Location::caller());
        let event = NewEvent { name, stage: Stage::Started, location, since: None };
        Launch::accept(shard, Place::here(shard, name)?, event)?.start_blocking(Cause::current(), work);
        Ok(())
    }

    /// Takes a guard: a drain waits while it lives.
    ///
    /// For what outlives its exchange or never had one: a WebSocket, an upgraded connection, a task of your own.
    /// Guards take no room from the capacity.
    ///
    /// # Errors
    ///
    /// [`Refused::Drained`] after a drain was `Ok`.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_track_events::Refused> {
    /// # let handle = tower_track_events::TrackEventsHandle::new();
    /// let guard = handle.guard()?;
    /// tokio::spawn(async move {
    ///     // serve the socket ..
    ///     drop(guard);
    /// });
    /// # Ok(()) }
    /// ```
    #[track_caller]
    pub fn guard(&self) -> Result<DrainGuard, Refused> {
        let guard = DrainGuard::take(self.shard(), Location::caller());
        guard.inspect_err(|refused| {
            self.shard().count_refused();
            metrics::refused("(guard)", *refused);
        })
    }

    /// Reserves room for one event that will start at once when it is tracked.
    ///
    /// # Errors
    ///
    /// As for [`track`](Self::track).
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_track_events::{Refused, TrackEventsHandle};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let handle = TrackEventsHandle::builder().capacity(1).build()?;
    /// let permit = handle.reserve()?;
    /// assert_eq!(handle.track("other", async {}), Err(Refused::Full));
    /// permit.track("audit", async {});
    /// # Ok(()) }
    /// ```
    #[track_caller]
    pub fn reserve(&self) -> Result<Permit, Refused> {
        Permit::reserve(self.shard(), None, Location::caller())
    }

    /// Raises the drain signal: readiness turns red, endless streams end themselves. It refuses nothing yet.
    ///
    /// Requests still arrive while a load balancer looks away, and their events are taken. Calling it again does
    /// nothing. The first poll of a [`drain`](Self::drain) raises the signal as well.
    ///
    /// # Examples
    ///
    /// ```
    /// # let handle = tower_track_events::TrackEventsHandle::new();
    /// assert!(!handle.is_draining());
    /// handle.begin_drain();
    /// assert!(handle.is_draining());
    /// ```
    pub fn begin_drain(&self) {
        self.shards.begin_drain();
    }

    /// Whether the drain signal has been raised.
    ///
    /// # Examples
    ///
    /// ```
    /// use http::StatusCode;
    /// use tower_track_events::TrackEventsHandle;
    ///
    /// fn readiness(handle: &TrackEventsHandle) -> StatusCode {
    ///     if handle.is_draining() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }
    /// }
    ///
    /// let handle = TrackEventsHandle::new();
    /// assert_eq!(readiness(&handle), 200);
    /// handle.begin_drain();
    /// assert_eq!(readiness(&handle), 503);
    /// ```
    pub fn is_draining(&self) -> bool {
        self.shards.ledger().context.is_draining()
    }

    /// Waits until the drain signal is raised.
    ///
    /// # Cancel safety
    ///
    /// It can be dropped and called again; the signal stays raised.
    ///
    /// # Examples
    ///
    /// An endless stream that ends itself, so that its connection can close:
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// # let handle = tower_track_events::TrackEventsHandle::new();
    /// use futures_util::{StreamExt, stream};
    ///
    /// let ticks = stream::repeat("tick").take_until(Box::pin(handle.draining()));
    /// handle.begin_drain();
    /// assert_eq!(ticks.count().await, 0);
    /// # }
    /// ```
    pub fn draining(&self) -> impl Future<Output = ()> + Send + use<> {
        let ledger = Arc::clone(self.shards.ledger());
        let mut signal = ledger.context.subscribe();
        async move {
            // The sender lives in the ledger, which this future keeps: there is no other way out than the signal.
            let _ = signal.wait_for(|raised| *raised).await;
            drop(ledger);
        }
    }

    /// Waits, at most for `limit`, until no request, guard or permit is open and no event is pending; then closes.
    ///
    /// Poll it when the server has stopped accepting: once it is `Ok`, everything is refused for good. Just before, it
    /// lets the house be idle for the [settle time](TrackEventsHandleBuilder::settle), because a server that has
    /// returned may have request tasks that have not begun. `Ok` means that nothing is left, not that all went well:
    /// that is [`DrainReport::all_completed`](crate::DrainReport::all_completed).
    ///
    /// The limit counts from the first poll. [`Duration::ZERO`] looks once, without settling; [`Duration::MAX`] waits
    /// for as long as it takes. When the limit comes, it looks a last time, without settling.
    ///
    /// What was sent to [sinks](Self::sink) is delivered at once, without waiting for more, and tried again until the
    /// limit. What they have not taken by then is handed to [`on_undelivered`](crate::SinkBuilder::on_undelivered).
    ///
    /// [A page of the guide](crate::guide::shutdown) has the steps around it, and what to do for each server.
    ///
    /// # Errors
    ///
    /// [`CutShort`](crate::DrainError::CutShort) when the limit came first: it cancels nothing and closes nothing, but
    /// takes from sinks what is handed over.
    /// [`InsideItself`](crate::DrainError::InsideItself) when polled from inside an event, a handler or a body of this
    /// handle. This is not seen through a task that such code spawns and awaits, nor when the caller holds a guard or a
    /// permit of its own. [`NoTimer`](crate::DrainError::NoTimer) outside of a tokio runtime with timers.
    ///
    /// # Cancel safety
    ///
    /// Dropping it loses no event; see [`Drain`].
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// # let handle = tower_track_events::TrackEventsHandle::new();
    /// use std::time::Duration;
    ///
    /// // After `axum::serve(..).with_graceful_shutdown(..).await`:
    /// match handle.drain(Duration::from_secs(8)).await {
    ///     Ok(report) => println!("{report}"),
    ///     Err(error) => eprintln!("{error}"),
    /// }
    /// # }
    /// ```
    pub fn drain(&self, limit: Duration) -> Drain {
        Drain::within(Arc::clone(&self.shards), limit)
    }

    /// Like [`drain`](Self::drain), cut short by any future: a deadline, a second Ctrl-C, a cancellation token.
    ///
    /// `stop` is polled when the drain is, and is dropped with it.
    ///
    /// # Errors
    ///
    /// As for [`drain`](Self::drain); `CutShort` when `stop` came first.
    ///
    /// # Cancel safety
    ///
    /// Dropping it loses no event; see [`Drain`].
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// # let handle = tower_track_events::TrackEventsHandle::new();
    /// use std::time::Duration;
    /// use tokio::time::{Instant, sleep_until};
    ///
    /// let deadline = Instant::now() + Duration::from_secs(30); // counted from the signal
    /// // .. stop the server, then give the events what is left:
    /// let drained = handle.drain_until(sleep_until(deadline)).await;
    /// assert!(drained.is_ok());
    /// # }
    /// ```
    pub fn drain_until<S: Future>(&self, stop: S) -> Drain<S> {
        Drain::until(Arc::clone(&self.shards), stop)
    }

    /// Waits until the events that have been accepted before its first poll have ended, and says so.
    ///
    /// Events that are accepted later are not waited for, even if the earlier ones record them; nor are requests, guards
    /// and permits. So it comes to its end while others go on to track events. It closes nothing. What is recorded in an
    /// exchange ends only after that exchange: drop the response first. What was sent to a sink is delivered without
    /// waiting for more.
    ///
    /// The limit counts from the first poll. [`Duration::ZERO`] looks once; [`Duration::MAX`] waits for as long as it
    /// takes.
    ///
    /// # Errors
    ///
    /// [`TimedOut`](crate::WaitIdleError::TimedOut) when the limit came first, with what is pending;
    /// [`InsideItself`](crate::WaitIdleError::InsideItself) when polled inside an event, a handler or a body of this
    /// handle; [`NoTimer`](crate::WaitIdleError::NoTimer) when there is no tokio timer to measure the limit with.
    ///
    /// # Cancel safety
    ///
    /// Dropping it loses nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let handle = tower_track_events::TrackEventsHandle::new();
    /// handle.track("audit", async { /* write a row */ })?;
    /// handle.wait_idle(std::time::Duration::from_secs(1)).await?;
    /// assert_eq!(handle.snapshot().completed, 1);
    /// handle.track("audit", async {})?; // nothing was closed
    /// # Ok(()) }
    /// ```
    pub fn wait_idle(&self, limit: Duration) -> WaitIdle {
        WaitIdle::new(Arc::clone(&self.shards), limit)
    }

    /// Makes a builder for a sender of typed events, which `sink` is given in batches: one task and one statement for many
    /// of them.
    ///
    /// They are events called `name` like all others: pending until the sink has acknowledged them, counted, and waited
    /// for by a drain, which lets them be delivered at once and again until its limit.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use std::time::Duration;
    /// use tower_track_events::{Batch, TrackEventsHandle};
    ///
    /// # async fn insert(rows: &[Audit]) -> std::io::Result<()> { Ok(()) }
    /// struct Audit {
    ///     user: u64,
    ///     action: &'static str,
    /// }
    ///
    /// let handle = TrackEventsHandle::new();
    /// let audit = handle
    ///     .sink("audit", |batch: Batch<Audit>| async move { insert(&batch).await })
    ///     .build()?;
    /// audit.send(Audit { user: 7, action: "login" })?;
    ///
    /// handle.drain(Duration::from_secs(8)).await?; // it is in the table
    /// # Ok(()) }
    /// ```
    #[track_caller]
    pub fn sink<E, S>(&self, name: &'static str, sink: S) -> SinkBuilder<E, S>
    where
        E: Send + Sync + 'static,
        S: EventSink<E>,
    {
        SinkBuilder::new(Arc::clone(self.shard()), name, Location::caller(), sink)
    }

    /// Counts what has been sent to each sink and how it has ended, by name.
    ///
    /// These counts are a part of the [`snapshot`](Self::snapshot), which costs as much.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use tower_track_events::{Batch, TrackEventsHandle};
    /// # use std::time::Duration;
    /// let handle = TrackEventsHandle::new();
    /// let lines = handle.sink("lines", |_batch: Batch<String>| async { Ok::<_, String>(()) }).build()?;
    /// assert_eq!(handle.sinks()[0].name, "lines");
    /// # drop(lines);
    /// # Ok(()) }
    /// ```
    pub fn sinks(&self) -> Vec<SinkSnapshot> {
        self.shards.ledger().sinks()
    }

    /// Ends the events that are pending now, whether they have started or not.
    ///
    /// An event that waits for the end of its exchange ends here, in this call. One that runs is woken, and ends as soon
    /// as its runtime polls it. Each is dropped with its destructors, counted as aborted, and logged; what was sent to a
    /// [sink](Self::sink) is handed to [`on_undelivered`](crate::SinkBuilder::on_undelivered) instead. Exchanges, guards
    /// and permits stay, nothing is closed, and events that are recorded from now on are accepted as before: a later
    /// drain may still wait for all of these, and be cut short by them.
    ///
    /// A [blocking](Self::track_blocking) event that has a thread cannot be aborted: it goes on, and ends as it ends.
    /// One that still waits for a thread is aborted.
    ///
    /// # Which ending wins
    ///
    /// The first of these that is found when an event is polled: it is to be aborted; it returns or panics; its time
    /// limit is over. So an event that returned in the poll during which it was aborted has completed, and one that is
    /// aborted and out of time is aborted. A panic of its destructors is counted before all of them.
    ///
    /// # Examples
    ///
    /// Give up on what a drain could not wait for, and let it run its destructors:
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use std::time::Duration;
    /// # let handle = tower_track_events::TrackEventsHandle::new();
    /// handle.track("webhook.retry", std::future::pending::<()>())?;
    ///
    /// let report = match handle.drain(Duration::from_millis(20)).await {
    ///     Err(cut_short) => {
    ///         eprintln!("{cut_short}");
    ///         handle.abort();
    ///         handle.drain(Duration::from_secs(1)).await?
    ///     }
    ///     Ok(report) => report,
    /// };
    /// assert_eq!(report.endings.aborted, 1);
    /// # Ok(()) }
    /// ```
    pub fn abort(&self) {
        self.shards.ledger().abort();
    }

    /// Counts what is open and what has ended, at one instant.
    ///
    /// It takes all locks of the ledger for the time of a few additions: fit for a metrics endpoint, not for each
    /// request.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_track_events::TrackEventsHandle;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let handle = TrackEventsHandle::new();
    /// handle.track("audit", async {})?;
    /// assert_eq!(handle.snapshot().pending, 1);
    /// # Ok(()) }
    /// ```
    pub fn snapshot(&self) -> Snapshot {
        self.shards.ledger().snapshot()
    }

    pub(crate) fn of(shard: &Shard) -> Self {
        Self { shards: Shards::of(&shard.ledger) }
    }

    pub(crate) fn shard(&self) -> &Arc<Shard> {
        self.shards.mine()
    }
}

impl fmt::Debug for TrackEventsHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shards: _ } = self;
        f.debug_struct("TrackEventsHandle")
            .field("draining", &self.is_draining())
            .field("snapshot", &self.snapshot())
            .finish_non_exhaustive()
    }
}

const DEFAULT_CAPACITY: u32 = 65_536;
const DEFAULT_PROGRESS: Duration = Duration::from_secs(1);
const DEFAULT_SETTLE: Duration = Duration::from_millis(100);

/// Settings of a [`TrackEventsHandle`], from [`TrackEventsHandle::builder`].
///
/// # Examples
///
/// ```
/// # fn main() -> Result<(), tower_track_events::InvalidSetting> {
/// use std::time::Duration;
/// use tower_track_events::TrackEventsHandle;
///
/// let handle = TrackEventsHandle::builder()
///     .capacity(10_000)
///     .event_timeout(Duration::from_secs(30))
///     .build()?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build`"]
pub struct TrackEventsHandleBuilder {
    capacity: usize,
    settle: Duration,
    event_timeout: Option<Duration>,
    progress: Duration,
    runtime: Option<runtime::Handle>,
}

impl TrackEventsHandleBuilder {
    /// Bounds the number of events that are pending or reserved at one time. Default: 65,536.
    ///
    /// From 1 to 4,294,967,295. What comes beyond is refused; nothing is dropped after it was accepted. A pending event
    /// takes some 250 bytes and what it has captured. What is sent to a [sink](TrackEventsHandle::sink) is bounded by
    /// [its own capacity](SinkBuilder::capacity) and not by this one.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_track_events::TrackEventsHandle;
    ///
    /// assert!(TrackEventsHandle::builder().capacity(10_000).build().is_ok());
    /// assert!(TrackEventsHandle::builder().capacity(0).build().is_err());
    /// ```
    pub fn capacity(mut self, capacity: usize) -> Self {
        self.capacity = capacity;
        self
    }

    /// Sets how long the house must be idle before a drain closes it. Default: 100 ms; zero switches it off.
    ///
    /// A server that has returned may have spawned tasks of HTTP/2 streams that have not called the service yet. With a
    /// drain that closes at once, their handlers would run after it. The time is a bet on how long such a task waits for
    /// a thread: ten milliseconds are enough on idle cores, and not when other work keeps them all busy. A handler that
    /// starts too late is served, its events are refused and counted. On servers built directly on hyper,
    /// `TrackEventsHandle::executor` (feature `hyper`) makes this exact, and the time can be zero.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use tower_track_events::TrackEventsHandle;
    ///
    /// // In tests, or with `TrackEventsHandle::executor`.
    /// let handle = TrackEventsHandle::builder().settle(Duration::ZERO).build()?;
    /// # Ok::<(), tower_track_events::InvalidSetting>(())
    /// ```
    pub fn settle(mut self, settle: Duration) -> Self {
        self.settle = settle;
        self
    }

    /// Ends an event that runs longer than `limit`. Default: no limit.
    ///
    /// The limit counts from the event's first poll. The event is dropped, counted as timed out, and logged. One that
    /// returns in the same poll in which its limit runs out has returned. [`track_blocking`] is not limited, since a
    /// blocking thread cannot be stopped; nor is an event on a runtime without timers, where this is logged.
    ///
    /// [`track_blocking`]: TrackEventsHandle::track_blocking
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use tower_track_events::TrackEventsHandle;
    ///
    /// let handle = TrackEventsHandle::builder().event_timeout(Duration::from_secs(5)).build()?;
    /// # Ok::<(), tower_track_events::InvalidSetting>(())
    /// ```
    pub fn event_timeout(mut self, limit: Duration) -> Self {
        self.event_timeout = Some(limit);
        self
    }

    /// Logs a line about what is left each time this much of a drain has passed, at the level `INFO`. Default: 1 second;
    /// [`Duration::ZERO`] switches it off.
    ///
    /// ```text
    /// draining: 2 requests open, 17 events pending (order.created x15, audit x2), 3.2 s of 5.0 s
    /// ```
    ///
    /// While nothing is open and the house [settles](Self::settle) it says `nothing open, waiting for stragglers`. The time
    /// counts from the first poll of the drain, as its limit does. A drain without a timer logs none of them.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use tower_track_events::TrackEventsHandle;
    ///
    /// let quiet = TrackEventsHandle::builder().progress(Duration::ZERO).build()?;
    /// # Ok::<(), tower_track_events::InvalidSetting>(())
    /// ```
    pub fn progress(mut self, every: Duration) -> Self {
        self.progress = every;
        self
    }

    /// Lets all events run on this runtime. Default: each runs on that in which it is recorded, or, recorded outside of
    /// any, on the first in which the handle was used.
    ///
    /// For handlers that are not called in a runtime, for one that is to be kept free of the work of events, and where
    /// the runtime that comes first may not be the one that lives longest: an event for a runtime that has shut down is
    /// accepted and counted as aborted.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use tower_track_events::TrackEventsHandle;
    ///
    /// let background = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    /// let handle = TrackEventsHandle::builder().runtime(background.handle().clone()).build()?;
    /// handle.track("audit", async {})?; // from a thread without a runtime
    /// # background.block_on(handle.drain(std::time::Duration::MAX))?;
    /// # Ok(()) }
    /// ```
    pub fn runtime(mut self, runtime: runtime::Handle) -> Self {
        self.runtime = Some(runtime);
        self
    }

    /// Makes the handle.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] for a capacity of zero or beyond 4,294,967,295, or an event timeout of zero.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_track_events::TrackEventsHandle;
    ///
    /// let error = TrackEventsHandle::builder().capacity(0).build().unwrap_err();
    /// println!("{error}");
    /// ```
    pub fn build(self) -> Result<TrackEventsHandle, InvalidSetting> {
        let capacity = match u32::try_from(self.capacity) {
            Ok(capacity) if capacity > 0 => capacity,
            _ => return Err(InvalidSetting::Capacity(self.capacity)),
        };
        if self.event_timeout == Some(Duration::ZERO) {
            return Err(InvalidSetting::EventTimeout);
        }
        Ok(TrackEventsHandle { shards: House::build(self.settings(capacity)) })
    }

    fn settings(self, capacity: u32) -> Settings {
        let Self { capacity: _, settle, event_timeout, progress, runtime } = self;
        Settings { capacity, settle, event_timeout, progress, runtime }
    }
}

/// Keeps a drain waiting for as long as it lives, from [`TrackEventsHandle::guard`].
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use std::time::Duration;
/// use tower_track_events::TrackEventsHandle;
///
/// let handle = TrackEventsHandle::new();
/// let guard = handle.guard().unwrap();
/// assert!(handle.drain(Duration::ZERO).await.is_err());
/// drop(guard);
/// assert!(handle.drain(Duration::ZERO).await.is_ok());
/// # }
/// ```
#[must_use = "a drain does not wait for a guard that is dropped"]
pub struct DrainGuard {
    _ticket: Ticket<House>,
}

impl DrainGuard {
    /// A refusal is not counted: it is for the caller to know whether anybody loses by it.
    pub(crate) fn take(shard: &Arc<Shard>, location: &'static Location<'static>) -> Result<Self, Refused> {
        let ticket = shard.guard(location, shard.house().now())?;
        Ok(Self { _ticket: ticket })
    }
}

impl fmt::Debug for DrainGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { _ticket } = self;
        f.debug_struct("DrainGuard").finish_non_exhaustive()
    }
}
