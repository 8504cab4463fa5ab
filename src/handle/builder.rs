//! [`TrackEventsHandleBuilder`]: the settings of a handle.

use std::time::Duration;

use tokio::{runtime, sync::Semaphore};

use crate::{
    context::{Context, Settings},
    error::BuildError,
    handle::TrackEventsHandle,
};

const DEFAULT_CAPACITY: u32 = 65_536;
const DEFAULT_PROGRESS: Duration = Duration::from_secs(1);
const DEFAULT_QUIET_PERIOD: Duration = Duration::from_millis(100);

/// Settings of a [`TrackEventsHandle`], from [`TrackEventsHandle::builder`].
///
/// # Examples
///
/// ```
/// # fn main() -> Result<(), tower_track_events::BuildError> {
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
    quiet_period: Duration,
    event_timeout: Option<Duration>,
    concurrency_limit: Option<usize>,
    last_call: Option<Duration>,
    progress: Duration,
    runtime: Option<runtime::Handle>,
}

impl TrackEventsHandleBuilder {
    pub(super) fn new() -> Self {
        Self {
            capacity: DEFAULT_CAPACITY as usize,
            quiet_period: DEFAULT_QUIET_PERIOD,
            event_timeout: None,
            concurrency_limit: None,
            last_call: None,
            progress: DEFAULT_PROGRESS,
            runtime: None,
        }
    }

    /// Makes a handle with the defaults, which are all within their ranges.
    pub(super) fn build_default() -> TrackEventsHandle {
        TrackEventsHandle { shards: Context::build(Self::new().settings(DEFAULT_CAPACITY)) }
    }

    /// Sets how many events may be pending or reserved at one time. Default: 65,536.
    ///
    /// From 1 to 4,294,967,295. What exceeds it is rejected; nothing is dropped after it was accepted. A pending event
    /// takes some 300 bytes and what it has captured. What is sent to a [sink](TrackEventsHandle::sink) counts against
    /// [the capacity of that sink](crate::SinkBuilder::capacity) instead.
    pub fn capacity(mut self, capacity: usize) -> Self {
        self.capacity = capacity;
        self
    }

    /// Sets how long no request, guard or permit must have been open before a drain starts to close. Default: 100 ms;
    /// zero switches it off.
    ///
    /// A server that has returned may have spawned tasks of HTTP/2 streams that have not called the service yet. With a
    /// drain that closes at once, their handlers would run after it. This is a heuristic: ten milliseconds are enough
    /// on idle cores; on a saturated machine such a stream may start too late. It is served, its events are rejected
    /// and counted. On servers built directly on hyper, `TrackEventsHandle::executor` (feature `hyper`) makes this
    /// exact, and the period can be zero.
    ///
    /// It counts from the last request, guard or permit that was opened or closed, not from the last event.
    pub fn quiet_period(mut self, period: Duration) -> Self {
        self.quiet_period = period;
        self
    }

    /// Sets how long an event may run. Default: no limit.
    ///
    /// The limit counts from the event's first poll. After it the event is dropped, counted as timed out, and logged.
    /// One that returns in the same poll in which its limit passes has returned. [`track_blocking`] is not limited,
    /// since a blocking thread cannot be stopped; nor is an event on a runtime without timers, where this is logged.
    /// With `panic = "abort"` such a runtime ends the process.
    ///
    /// [`track_blocking`]: TrackEventsHandle::track_blocking
    pub fn event_timeout(mut self, limit: Duration) -> Self {
        self.event_timeout = Some(limit);
        self
    }

    /// Sets how many events may run at one time. Default: no limit.
    ///
    /// For a database with ten connections, for example: events that would only wait for one of them wait here instead,
    /// first come, first served. An event takes its turn when it would start, and gives it back when it has ended; blocking
    /// work takes its turn before its thread. Until then it is pending, counts against the
    /// [capacity](Self::capacity), and can be aborted; [`event_timeout`](Self::event_timeout) counts from its turn. A
    /// drain waits for it, and its report names it.
    ///
    /// What is tracked inside an event needs no turn: an event that waits for it would wait forever. The limit holds for
    /// what these events do themselves, and not for what they spawn. [Sinks](TrackEventsHandle::sink) are not limited.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), tower_track_events::BuildError> {
    /// use tower_track_events::TrackEventsHandle;
    ///
    /// let handle = TrackEventsHandle::builder().concurrency_limit(10).build()?;
    /// # Ok(()) }
    /// ```
    pub fn concurrency_limit(mut self, limit: usize) -> Self {
        self.concurrency_limit = Some(limit);
        self
    }

    /// Sets how long before its deadline a drain makes the [last call](TrackEventsHandle::make_last_call). Default: a
    /// quarter of its limit, at most 5 seconds. [`Duration::ZERO`] switches it off.
    ///
    /// It must be long enough for the events of the responses that are open then. A drain with a shorter limit makes
    /// the last call at once.
    pub fn last_call(mut self, before_deadline: Duration) -> Self {
        self.last_call = Some(before_deadline);
        self
    }

    /// Sets how often a drain logs a line about what is left, at the level `INFO`. Default: 1 second;
    /// [`Duration::ZERO`] switches it off.
    ///
    /// ```text
    /// draining: 2 requests open, 17 events pending (order.created x15, audit x2), 3.2 s of 5.0 s
    /// ```
    ///
    /// The time counts from the first poll of the drain, as its limit does. A drain without a timer logs none of them.
    pub fn progress(mut self, every: Duration) -> Self {
        self.progress = every;
        self
    }

    /// Sets the runtime on which all events run. Default: each runs on that in which it is tracked, or, tracked outside
    /// of any, on the first in which the handle was used.
    ///
    /// For handlers that are not called in a runtime, for one that should be kept free of the work of events, and where
    /// the first runtime may not be the one that lives longest: an event for a runtime that has shut down is accepted
    /// and counted as aborted.
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
    /// [`BuildError`] for a capacity of zero or beyond 4,294,967,295, a concurrency limit of zero, or an event timeout
    /// of zero.
    pub fn build(self) -> Result<TrackEventsHandle, BuildError> {
        let capacity = match u32::try_from(self.capacity) {
            Ok(capacity) if capacity > 0 => capacity,
            _ => return Err(BuildError::Capacity(self.capacity)),
        };
        if self.event_timeout == Some(Duration::ZERO) {
            return Err(BuildError::EventTimeout);
        }
        if let Some(limit) = self.concurrency_limit.filter(|limit| !(1..=Semaphore::MAX_PERMITS).contains(limit)) {
            return Err(BuildError::ConcurrencyLimit(limit));
        }
        Ok(TrackEventsHandle { shards: Context::build(self.settings(capacity)) })
    }

    fn settings(self, capacity: u32) -> Settings {
        let Self { capacity: _, quiet_period, event_timeout, concurrency_limit, last_call, progress, runtime } = self;
        Settings { capacity, quiet_period, event_timeout, concurrency_limit, last_call, progress, runtime }
    }
}
