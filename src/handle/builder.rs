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
    /// From 1 to 4,294,967,295. Events and permits beyond it are rejected. No accepted event is dropped to make space.
    /// A pending event takes some 300 bytes and its captured values. Events that are sent to a
    /// [sink](TrackEventsHandle::sink) count against [the capacity of that sink](crate::SinkBuilder::capacity) instead.
    pub fn capacity(mut self, capacity: usize) -> Self {
        self.capacity = capacity;
        self
    }

    /// Sets how long no request, guard or permit must have been open before a drain starts to close. Default: 100 ms;
    /// zero switches it off.
    ///
    /// A server that has returned may have spawned tasks of HTTP/2 streams that have not called the service yet. If the
    /// drain closed at once, their handlers would run after it. This is a heuristic: ten milliseconds are enough on
    /// idle cores. On a saturated machine such a stream may start too late. Then it is served, and its events are
    /// rejected and counted. On servers built directly on hyper, `TrackEventsHandle::executor` (feature `hyper`) makes
    /// this exact, and the period can be zero.
    ///
    /// The period counts from the last request, guard or permit that was opened or closed, not from the last event.
    pub fn quiet_period(mut self, period: Duration) -> Self {
        self.quiet_period = period;
        self
    }

    /// Sets how long an event may run. Default: no limit.
    ///
    /// Longer than zero. The limit counts from the event's first poll. When it has passed, the event is dropped,
    /// counted as timed out, and logged. An event that returns in the poll in which its limit passes has completed or
    /// failed. The limit does not apply to [`track_blocking`], because a blocking thread cannot be stopped. On a
    /// runtime without timers, events run without the limit, and a warning is logged. With `panic = "abort"` such a
    /// runtime ends the process.
    ///
    /// [`track_blocking`]: TrackEventsHandle::track_blocking
    pub fn event_timeout(mut self, limit: Duration) -> Self {
        self.event_timeout = Some(limit);
        self
    }

    /// Sets how many events may run at one time. Default: no limit.
    ///
    /// Use it for example for a database with ten connections. From 1 to [`Semaphore::MAX_PERMITS`].
    ///
    /// An event takes a turn when it would start, and gives it back when it has ended. If all turns are taken it waits,
    /// first come, first served. Blocking work takes its turn before its thread. While an event waits for its turn it
    /// is pending, counts against the [capacity](Self::capacity), and can be aborted. A drain waits for it, and the
    /// report names it. [`event_timeout`](Self::event_timeout) counts from the turn.
    ///
    /// An event that is tracked inside an event needs no turn: otherwise a parent that waits for it would wait forever.
    /// The limit does not apply to tasks that events spawn, nor to [sinks](TrackEventsHandle::sink).
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
    /// The time must be long enough for the events of the responses that are still open. A drain whose limit is shorter
    /// makes the last call at once.
    pub fn last_call(mut self, before_deadline: Duration) -> Self {
        self.last_call = Some(before_deadline);
        self
    }

    /// Sets how often a drain logs a progress line, at the level `INFO`. Default: 1 second; [`Duration::ZERO`] switches
    /// it off.
    ///
    /// ```text
    /// draining: 2 requests open, 17 events pending (order.created x15, audit x2), 3.2 s of 5.0 s
    /// ```
    ///
    /// The time counts from the first poll of the drain, as its limit does. On a runtime without timers no line is
    /// logged.
    pub fn progress(mut self, every: Duration) -> Self {
        self.progress = every;
        self
    }

    /// Sets the runtime on which all events run. Default: each event runs on the runtime in which it is tracked. An
    /// event that is tracked outside of a runtime runs on the first one in which the handle was used.
    ///
    /// Set it if handlers are called outside of a runtime, if one runtime should be kept free of the work of events, or
    /// if the first runtime may not live longest: an event for a runtime that has shut down is accepted, and counted as
    /// aborted.
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
    /// [`BuildError`] if the capacity is not from 1 to 4,294,967,295, the concurrency limit is not from 1 to
    /// [`Semaphore::MAX_PERMITS`], or the event timeout is zero.
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
