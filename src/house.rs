//! What stands beside the ledger: the clock, the runtime, the drain signal, the settings.

use std::{
    panic::Location,
    pin::Pin,
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
    time::Duration,
};

use tokio::{runtime, sync::watch, time::Instant};

use crate::{
    contain::contain,
    entry::{Nanos, nanos},
    ledger::{self, Context, EventTicket, Ledger, PermitTicket, Room, ShardRef, Starts},
    metrics,
    refused::Refused,
    snapshot::Endings,
};

pub(crate) type Shard = ShardRef<House>;

/// An event that has been accepted, as a future, which accounts for itself also when it is dropped.
pub(crate) trait Event: Future<Output = ()> + Send {
    /// Of one that is ready: its ending counts when that is dropped. None if it has gone elsewhere.
    fn ticket(self: Pin<&mut Self>) -> Option<&mut EventTicket<House>>;
}

pub(crate) type EventTask = Pin<Box<dyn Event>>;

/// An accepted event on its way to its first poll.
pub(crate) struct Starting {
    pub(crate) task: EventTask,
    /// Where it starts, if not where the others of its shard do. Boxed, because it is rare.
    pub(crate) elsewhere: Option<Box<runtime::Handle>>,
}

/// What stands for the name of the event, which is not known yet, when a permit is refused.
pub(crate) const PERMIT: &str = "(permit)";

/// The shards as handles share them. It holds no state but reference counts, so a second one is as good as the first.
pub(crate) struct Shards {
    refs: Box<[Arc<Shard>]>,
}

pub(crate) struct House {
    pub(crate) settings: Settings,
    epoch: Instant,
    /// The first runtime in which the handle was used: for what is recorded outside of any.
    first_runtime: OnceLock<runtime::Handle>,
    draining: watch::Sender<bool>,
    drain_began: OnceLock<DrainBegan>,
    shards: Mutex<Weak<Shards>>,
    /// For each shard the runtime on which its events start: the first on which one did.
    homes: Box<[OnceLock<runtime::Handle>]>,
}

/// What the builder of the handle was told.
pub(crate) struct Settings {
    pub(crate) capacity: u32,
    pub(crate) settle: Duration,
    pub(crate) event_timeout: Option<Duration>,
    pub(crate) progress: Duration,
    /// The runtime for all events, instead of that in which each is tracked.
    pub(crate) runtime: Option<runtime::Handle>,
}

/// The state of the house when its drain began.
pub(crate) struct DrainBegan {
    pub(crate) at: Nanos,
    pub(crate) endings: Endings,
}

impl House {
    pub(crate) fn build(settings: Settings) -> Arc<Shards> {
        let (capacity, shards) = (settings.capacity, shard_count());
        let house = Self {
            settings,
            epoch: Instant::now(),
            first_runtime: OnceLock::new(),
            draining: watch::Sender::new(false),
            drain_began: OnceLock::new(),
            shards: Mutex::default(),
            homes: (0..shards).map(|_| OnceLock::new()).collect(),
        };
        Shards::of(&Ledger::new(capacity, shards, house))
    }

    #[inline]
    pub(crate) fn now(&self) -> Nanos {
        nanos(Instant::now().saturating_duration_since(self.epoch))
    }

    /// The time from `since` until now.
    pub(crate) fn age(&self, since: Nanos) -> Duration {
        Duration::from_nanos(self.now().saturating_sub(since))
    }

    pub(crate) fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<bool> {
        self.draining.subscribe()
    }
}

impl Context for House {
    type Starting = Starting;

    #[inline]
    fn now(&self) -> Nanos {
        self.now()
    }

    /// The end of an episode whose begin was announced.
    fn has_room_again(&self) {
        let _ = contain(|| tracing::info!(capacity = self.settings.capacity, "events are accepted again"));
    }
}

impl Starts for Starting {
    type Task = EventTask;

    #[inline]
    fn at_home(self) -> Result<EventTask, Self> {
        if self.elsewhere.is_none() { Ok(self.task) } else { Err(self) }
    }
}

/// Twice the cores, so that the threads of a runtime and a few others each have a shard of their own.
fn shard_count() -> usize {
    // The answer takes some reading of files.
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        (2 * cores).next_power_of_two().clamp(4, 128)
    })
}

impl Shards {
    /// The shards of a ledger, shared with whoever has them.
    pub(crate) fn of(ledger: &Arc<Ledger<House>>) -> Arc<Self> {
        let mut shared = ledger.context.shards.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let shards = Arc::new(Self { refs: ledger.shard_refs() });
            *shared = Arc::downgrade(&shards);
            shards
        })
    }

    #[inline]
    pub(crate) fn mine(&self) -> &Arc<Shard> {
        ledger::of_this_thread(&self.refs)
    }

    pub(crate) fn ledger(&self) -> &Arc<Ledger<House>> {
        &self.refs[0].ledger
    }

    /// Raises the signal; the first one is remembered.
    pub(crate) fn begin_drain(&self) {
        // Before the signal, which somebody may answer by ending something.
        self.drain_began();
        let house = &self.ledger().context;
        if !house.is_draining() {
            house.draining.send_replace(true);
        }
    }

    /// When the drain began, and what had ended by then; now, if it has not begun yet. Raises no signal.
    pub(crate) fn drain_began(&self) -> &DrainBegan {
        let ledger = self.ledger();
        let house = &ledger.context;
        house.drain_began.get_or_init(|| DrainBegan { at: house.now(), endings: ledger.endings() })
    }
}

impl Shard {
    #[inline]
    pub(crate) fn house(&self) -> &House {
        &self.ledger.context
    }

    /// The runtime on which its events start, as soon as one has.
    #[inline]
    pub(crate) fn home(&self) -> &OnceLock<runtime::Handle> {
        &self.house().homes[self.index()]
    }

    /// Tells ledgers apart while they live.
    #[inline]
    pub(crate) fn ledger_id(&self) -> usize {
        Arc::as_ptr(&self.ledger).addr()
    }

    /// The runtime for an event that is recorded here and now. A refusal is counted.
    #[inline]
    pub(crate) fn runtime(&self) -> Result<runtime::Handle, Refused> {
        if let Some(runtime) = &self.house().settings.runtime {
            return Ok(runtime.clone());
        }
        let first = &self.house().first_runtime;
        match runtime::Handle::try_current() {
            Ok(current) => {
                if first.get().is_none() {
                    // Another thread may have been first, which is as good.
                    let _ = first.set(current.clone());
                }
                Ok(current)
            }
            Err(_) => first.get().cloned().ok_or_else(|| {
                self.count_refused();
                Refused::NoRuntime
            }),
        }
    }

    /// Lets events that are recorded outside of a runtime later find this one.
    #[inline]
    pub(crate) fn remember_runtime(&self) {
        let first = &self.house().first_runtime;
        if first.get().is_none() {
            if let Ok(current) = runtime::Handle::try_current() {
                let _ = first.set(current);
            }
        }
    }

    /// Refuses an event that has waited for room for long enough.
    pub(crate) fn shed(&self, name: &'static str) {
        self.count_refused();
        self.tell_refused(Refused::Full, name);
    }

    /// Takes room for one event, or a place in the queue for it.
    pub(crate) fn room(
        self: &Arc<Self>,
        name: &'static str,
        location: &'static Location<'static>,
    ) -> Result<Room<House>, Refused> {
        self.reserve_or_queue(location, self.house().now()).inspect_err(|refused| self.tell_refused(*refused, name))
    }

    pub(crate) fn reserve_event(
        self: &Arc<Self>,
        location: &'static Location<'static>,
    ) -> Result<PermitTicket<House>, Refused> {
        self.reserve(location, self.house().now()).inspect_err(|refused| self.tell_refused(*refused, PERMIT))
    }

    /// Tells of a refusal that the ledger has counted; that the house is full, once an episode.
    pub(crate) fn tell_refused(&self, refused: Refused, name: &'static str) {
        metrics::refused(name, refused);
        if refused == Refused::Full && self.ledger.should_announce_full() {
            let _ = contain(|| {
                tracing::warn!(
                    event = name,
                    capacity = self.ledger.capacity(),
                    "events are refused: as many are pending as the capacity allows; raise it, or see why they do not end"
                );
            });
        }
    }
}
