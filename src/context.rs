//! What a handle keeps in its registry: settings, runtimes, the drain signal.

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

/// Stands for the name of an event, which is not known yet, when a permit is rejected.
pub(crate) const PERMIT: &str = "(permit)";

/// Stands for the name of an event when a guard is rejected.
pub(crate) const GUARD: &str = "(guard)";

/// The most that a drain keeps for the last call by default.
const LONGEST_LAST_CALL: Duration = Duration::from_secs(5);

pub(crate) struct Context {
    pub(crate) settings: Settings,
    /// The first runtime in which the handle was used: for what is tracked outside of any.
    first_runtime: OnceLock<runtime::Handle>,
    draining: watch::Sender<bool>,
    /// If the number of events that run is limited.
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
    /// The runtime for all events, instead of that in which each is tracked.
    pub(crate) runtime: Option<runtime::Handle>,
}

impl Settings {
    /// How long before its deadline a drain with this limit makes the last call; zero if it makes none.
    pub(crate) fn last_call_before_deadline(&self, limit: Duration) -> Duration {
        self.last_call.unwrap_or((limit / 4).min(LONGEST_LAST_CALL))
    }
}

/// When the drain began, and what had ended by then.
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

/// Twice the cores, so that the threads of a runtime and a few others each have a shard of their own.
fn shard_count() -> usize {
    // Counting the cores reads files.
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        (2 * cores).next_power_of_two().clamp(4, 128)
    })
}

impl Shards {
    /// Raises the drain signal; the first time is remembered.
    pub(crate) fn begin_drain(&self) {
        // Before the signal, in answer to which something may end.
        self.drain_began();
        let context = &self.registry().context;
        if !context.is_draining() {
            context.draining.send_replace(true);
        }
    }

    /// When the drain began; now, if that is the first question. Raises no signal.
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

    /// All shards of this one's registry, shared between handles.
    pub(crate) fn shards(&self) -> Arc<Shards> {
        let mut shared = self.context().lock_shards();
        shared.upgrade().unwrap_or_else(|| {
            let shards = self.registry.shards();
            *shared = Arc::downgrade(&shards);
            shards
        })
    }

    /// The runtime for an event that is tracked here and now. A rejection is counted.
    #[inline]
    pub(crate) fn runtime(&self, name: &'static str) -> Result<runtime::Handle, TrackError> {
        if let Some(runtime) = &self.context().settings.runtime {
            return Ok(runtime.clone());
        }
        let first = &self.context().first_runtime;
        match runtime::Handle::try_current() {
            Ok(current) => {
                if first.get().is_none() {
                    // Another thread may have been first, which is as good.
                    let _ = first.set(current.clone());
                }
                Ok(current)
            }
            Err(_) => first.get().cloned().ok_or_else(|| {
                self.count_rejected(TrackError::NoRuntime);
                self.tell_rejected(TrackError::NoRuntime, name);
                TrackError::NoRuntime
            }),
        }
    }

    /// Lets events that are tracked outside of a runtime later find this one.
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
        let ticket = self.track(event).inspect_err(|error| self.tell_rejected(*error, name))?;
        // Before the event can end.
        metrics::accepted(name);
        Ok(ticket)
    }

    pub(crate) fn reserve_event(self: &Arc<Self>, location: &'static Location<'static>) -> Result<Ticket, TrackError> {
        self.reserve(location, Instant::now()).inspect_err(|error| self.tell_rejected(*error, PERMIT))
    }

    /// Takes a slot for one event, or a place in the queue for it.
    pub(crate) fn event_slot(
        self: &Arc<Self>,
        name: &'static str,
        location: &'static Location<'static>,
    ) -> Result<Slot<Context>, TrackError> {
        self.reserve_or_queue(location, Instant::now()).inspect_err(|error| self.tell_rejected(*error, name))
    }

    /// Rejects an event whose wait for a slot has ended: its limit has passed, or the client has left.
    pub(crate) fn reject_full(&self, name: &'static str) {
        self.count_rejected(TrackError::Full);
        self.tell_rejected(TrackError::Full, name);
    }

    /// Makes a rejection visible that has been counted.
    pub(crate) fn tell_rejected(&self, error: TrackError, name: &'static str) {
        metrics::rejected(name, error);
        if error == TrackError::Full && self.registry.logs_full() {
            tracing::warn!(
                event = name,
                capacity = self.registry.capacity(),
                "events are rejected: as many are pending as the capacity allows; raise it, or see why they do not end"
            );
        }
    }
}

impl Ticket {
    /// Makes an event of a permit.
    pub(crate) fn fill(self, name: &'static str, stage: Stage, location: &'static Location<'static>) -> Self {
        let ticket = self.into_event(NewEvent { name, stage, location, since: Instant::now() });
        metrics::accepted(name);
        ticket
    }
}
