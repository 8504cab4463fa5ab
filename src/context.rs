//! [`Context`]: the settings, the runtimes and the drain signal of a handle, which its registry stores.

use std::{
    panic::Location,
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
    time::Duration,
};

use tokio::{
    runtime,
    sync::{Semaphore, watch},
    time::Instant,
};

use crate::{
    error::TrackError,
    metrics,
    registry::{self, EventCounts, NewEvent, Registry, Slot, Stage},
};

pub(crate) type Shard = registry::Shard<Context>;
pub(crate) type Shards = registry::Shards<Context>;
pub(crate) type Ticket = registry::Ticket<Context>;

/// The name under which the rejection of a permit is counted: its event has no name yet.
pub(crate) const PERMIT: &str = "(permit)";

/// The name under which the rejection of a guard is counted.
pub(crate) const GUARD: &str = "(guard)";

/// By default, a drain makes the last call at most this long before its deadline.
const LONGEST_LAST_CALL: Duration = Duration::from_secs(5);

pub(crate) struct Context {
    pub(crate) settings: Settings,
    /// The first runtime in which the handle was used. It runs the events that are tracked outside of a runtime.
    first_runtime: OnceLock<runtime::Handle>,
    draining: watch::Sender<bool>,
    /// One permit for each event that may run at one time, if that is limited.
    pub(crate) turns: Option<Arc<Semaphore>>,
    drain_began: OnceLock<DrainBegan>,
    shards: Mutex<Weak<Shards>>,
}

/// The settings of the handle's builder.
pub(crate) struct Settings {
    pub(crate) capacity: u32,
    pub(crate) quiet_period: Duration,
    pub(crate) event_timeout: Option<Duration>,
    /// How many events may run at one time, if that is limited.
    pub(crate) concurrency_limit: Option<usize>,
    /// How long before its deadline a drain makes the last call, if that was set.
    pub(crate) last_call: Option<Duration>,
    pub(crate) progress: Duration,
    /// The runtime for all events, instead of the runtime in which each is tracked.
    pub(crate) runtime: Option<runtime::Handle>,
}

impl Settings {
    /// How long before its deadline a drain with this limit makes the last call; zero if it makes none.
    pub(crate) fn last_call_before_deadline(&self, limit: Duration) -> Duration {
        self.last_call.unwrap_or((limit / 4).min(LONGEST_LAST_CALL))
    }
}

/// When the drain began, and the endings that were counted by then.
pub(crate) struct DrainBegan {
    pub(crate) at: Instant,
    pub(crate) ended: EventCounts,
}

impl Context {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            first_runtime: OnceLock::new(),
            draining: watch::Sender::new(false),
            turns: settings.concurrency_limit.map(|limit| Arc::new(Semaphore::new(limit))),
            drain_began: OnceLock::new(),
            shards: Mutex::default(),
            settings,
        }
    }

    pub(crate) fn build(settings: Settings) -> Arc<Shards> {
        let context = Self::new(settings);
        let shards = Registry::build(context.settings.capacity, shard_count(), context);
        *shards.registry().context.lock_shards() = Arc::downgrade(&shards);
        shards
    }

    fn lock_shards(&self) -> std::sync::MutexGuard<'_, Weak<Shards>> {
        self.shards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<bool> {
        self.draining.subscribe()
    }
}

/// Returns the number of shards: twice the cores, so that each thread of a runtime and a few others have their own.
fn shard_count() -> usize {
    // Computed once, because counting the cores reads files.
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        (2 * cores).next_power_of_two().clamp(4, 128)
    })
}

impl Shards {
    /// Raises the drain signal, and stores when that happened for the first time.
    pub(crate) fn begin_drain(&self) {
        // Before the signal: events that end because of it count as ended since the drain began.
        self.drain_began();
        let context = &self.registry().context;
        if !context.is_draining() {
            context.draining.send_replace(true);
        }
    }

    /// Returns when the drain began. The first call sets that to now. Raises no signal.
    pub(crate) fn drain_began(&self) -> &DrainBegan {
        let registry = self.registry();
        registry.context.drain_began.get_or_init(|| DrainBegan { at: Instant::now(), ended: registry.snapshot().ended })
    }
}

impl Shard {
    #[inline]
    pub(crate) fn context(&self) -> &Context {
        &self.registry.context
    }

    /// Returns all shards of the registry, which all handles share.
    pub(crate) fn shards(&self) -> Arc<Shards> {
        let mut shared = self.context().lock_shards();
        shared.upgrade().unwrap_or_else(|| {
            let shards = self.registry.shards();
            *shared = Arc::downgrade(&shards);
            shards
        })
    }

    /// Returns the runtime for an event that is tracked on this thread. A rejection is counted.
    #[inline]
    pub(crate) fn runtime(&self, name: &'static str) -> Result<runtime::Handle, TrackError> {
        if let Some(runtime) = &self.context().settings.runtime {
            return Ok(runtime.clone());
        }
        let first = &self.context().first_runtime;
        match runtime::Handle::try_current() {
            Ok(current) => {
                if first.get().is_none() {
                    // An error means that another thread was first. Its runtime is as good.
                    let _ = first.set(current.clone());
                }
                Ok(current)
            }
            Err(_) => first.get().cloned().ok_or_else(|| {
                self.count_rejected(TrackError::NoRuntime);
                self.report_rejected(TrackError::NoRuntime, name);
                TrackError::NoRuntime
            }),
        }
    }

    /// Stores the current runtime, for events that are tracked outside of a runtime later.
    #[inline]
    pub(crate) fn remember_runtime(&self) {
        let first = &self.context().first_runtime;
        if first.get().is_none() {
            if let Ok(current) = runtime::Handle::try_current() {
                let _ = first.set(current);
            }
        }
    }

    /// Accepts an event or rejects it.
    #[inline]
    pub(crate) fn track_event(
        self: &Arc<Self>,
        name: &'static str,
        stage: Stage,
        location: &'static Location<'static>,
        since: Instant,
    ) -> Result<Ticket, TrackError> {
        let event = NewEvent { name, stage, location, since };
        let ticket = self.track(event).inspect_err(|error| self.report_rejected(*error, name))?;
        // Before the event is spawned and can end.
        metrics::accepted(name);
        Ok(ticket)
    }

    pub(crate) fn reserve_event(self: &Arc<Self>, location: &'static Location<'static>) -> Result<Ticket, TrackError> {
        self.reserve(location, Instant::now()).inspect_err(|error| self.report_rejected(*error, PERMIT))
    }

    /// Takes a slot for one event, or enters the queue for one.
    pub(crate) fn event_slot(
        self: &Arc<Self>,
        name: &'static str,
        location: &'static Location<'static>,
    ) -> Result<Slot<Context>, TrackError> {
        self.reserve_or_queue(location, Instant::now()).inspect_err(|error| self.report_rejected(*error, name))
    }

    /// Rejects an event whose wait for a slot has ended: its limit has passed, or the client has left.
    pub(crate) fn reject_full(&self, name: &'static str) {
        self.count_rejected(TrackError::Full);
        self.report_rejected(TrackError::Full, name);
    }

    /// Passes a rejection that the registry has counted to the metrics, and logs it if it begins an episode of `Full`.
    pub(crate) fn report_rejected(&self, error: TrackError, name: &'static str) {
        metrics::rejected(name, error);
        if error == TrackError::Full && self.registry.logs_full() {
            tracing::warn!(
                event = name,
                capacity = self.registry.capacity(),
                "events are rejected: the handle is at capacity; raise it, or see why pending events do not end"
            );
        }
    }
}

impl Ticket {
    /// Turns a permit into an event.
    pub(crate) fn fill(self, name: &'static str, stage: Stage, location: &'static Location<'static>) -> Self {
        let ticket = self.into_event(NewEvent { name, stage, location, since: Instant::now() });
        metrics::accepted(name);
        ticket
    }
}
