//! The registry: everything that one handle counts, and the instant at which it closes.
//!
//! A drain waits for requests, guards, permits and events. Each of them is an *entry* in a *shard*, or is in a *source*
//! such as the queue of a sink. A *ticket* is responsible for one entry: dropping the ticket removes the entry. A shard
//! is one mutex on cache lines of its own. In practice each thread has its own shard, and a ticket has a reference to
//! its shard, so two threads rarely write the same cache line.
//!
//! # Invariants, and why they hold
//!
//! 1. *An entry and its counts change together*, under the lock of their shard. So a look at all shards under all locks
//!    sees the counts of one instant (guarantee 1).
//! 2. *An accepted event ends once.* A ticket is made only for an entry that was just made, has no `Clone`, and removes
//!    its entry in [`Ticket::end`] or in its `Drop`. So an event that its runtime drops is counted as well (guarantee
//!    4).
//! 3. *Closing is one instant.* [`Registry::try_close`] sets the phase of all shards under all locks. Every admission
//!    reads the phase under the lock of its shard. Two steps need not read it, because they have an entry already: a
//!    permit that becomes an event, and a slot that passes from one entry to the next. So everything is accepted before
//!    that instant, nothing is accepted after it, and nothing was open at it (guarantees 2 and 3).
//! 4. *While the phase is `Closing`, no request, guard or permit is open.* An admission of one sets the phase back to
//!    `Open` under all locks first, and so does a slot that passes to a waiting request.
//! 5. *Capacity is conserved*: the number of taken slots is that of permits and pending events. See `capacity`
//!    (guarantee 5).
//! 6. *No lost wake-up.* A drain registers its waker first and looks under all locks afterwards. A thread that ends the
//!    last entry of a shard after that look has taken the lock after it, and so sees the registration.
//! 7. *An abort reaches every event that was accepted before it*, except one that runs on a blocking thread. It
//!    advances the epoch and collects, under all locks, the wakers of tasks and the open requests. A task that has not
//!    registered a waker yet registers it later under the lock of its shard, and sees the new epoch there. An event
//!    that was accepted and is not kept by its exchange yet will be kept under the lock of that exchange. The abort
//!    takes the same lock afterwards: either it finds the event there, or the thread that keeps the event sees the new
//!    epoch.
//! 8. *No user code runs under a lock* (guarantee 6). Names and locations are `&'static`. Wakers and requests are moved
//!    or cloned under a lock, and woken, called and dropped without it.
//! 9. *A source takes part like a shard*: looks, closings and aborts include it. See `source`.
//!
//! # Lock order
//!
//! Shards by index, then the list of sources, then sources, then either the list of waiters or the queue for capacity.
//! The lock of an exchange is never taken under one of these.
//!
//! # Models
//!
//! `scripts/loom` runs the models in `models`. The macros `seeded!` and `seeded_gap!` name a mistake that a model must
//! find. In every other build they are `false`, and the mistake compiles to nothing.

mod capacity;
mod counts;
mod drains;
mod entry;
mod epoch;
#[cfg(all(test, track_events_loom))]
pub(crate) mod models;
mod shard;
mod source;
mod ticket;
mod waiter;
mod waiters;

use std::{
    collections::{BTreeMap, HashMap},
    mem,
    sync::Arc,
};

use tokio::time::Instant;

pub use self::counts::{EventCounts, EventFailures, SinkSnapshot, Snapshot};
pub(crate) use self::{
    counts::{Account, Ending, Group, Open},
    entry::{Kind, OpenRequest, Stage},
    epoch::Epoch,
    shard::{NewEvent, Origin, QueuedSlot, Shard, Shards, Slot},
    source::{Detach, Detached, Flush, LockedSource, RunningSink, Source},
    ticket::Ticket,
    waiter::Waiter,
};

use self::{
    capacity::Capacity,
    drains::Drains,
    entry::OnAbort,
    epoch::CurrentEpoch,
    shard::{Locked, State},
    source::{Retired, Sources},
    waiters::Waiters,
};
use crate::util::sync::{
    Mutex,
    atomic::{AtomicBool, Ordering},
    lock, seeded,
};

/// The shards, the capacity and the sources of one handle. The registry stores a `C` for its users and does not use it.
pub(crate) struct Registry<C> {
    states: Box<[State]>,
    capacity: Capacity<Ticket<C>>,
    epoch: CurrentEpoch,
    sources: Mutex<Sources>,
    /// Whether the last call was made. Written under all locks.
    is_last_call: AtomicBool,
    drains: Drains,
    waiters: Waiters,
    pub(crate) context: C,
}

/// Decides what is accepted. The same in all shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Everything is accepted.
    Open,
    /// Events are accepted that are tracked inside an event, a delivery or an observer. Requests are accepted as well,
    /// and set the phase back to `Open`.
    Closing,
    /// Nothing is accepted. The phase does not change any more.
    Closed,
}

/// The result of [`Registry::try_close`].
pub(crate) enum Look {
    /// Requests, guards or permits are open.
    Open,
    /// No request, guard or permit is open. With the number of those ever opened.
    Quiet { ever_opened: u64 },
    /// No request, guard or permit is open, and the drain waits for the pending events.
    Closing,
    /// The registry is closed. With the counts of the same instant, and the sinks that have not been dropped.
    Closed(Account),
}

/// Whether a drain may close when no request, guard or permit is open.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum MayClose {
    /// No, because the quiet period is not over.
    No,
    /// Yes if no event is pending. Otherwise nothing changes.
    IfIdle,
    /// Yes. While events are pending, the phase is `Closing`.
    Yes,
}

/// The registry under all locks.
struct AllLocked<'a, 'b> {
    shards: &'a mut [Locked<'b>],
    sources: Vec<Box<dyn LockedSource + 'a>>,
    list: &'a Sources,
}

impl<C> Registry<C> {
    /// Makes a registry. The capacity must be at least 1, and the number of shards a power of two.
    pub(crate) fn build(capacity: u32, shards: usize, context: C) -> Arc<Shards<C>> {
        let registry = Arc::new(Self {
            states: (0..shards).map(|_| State::new()).collect(),
            capacity: Capacity::new(capacity),
            epoch: CurrentEpoch::new(),
            sources: Mutex::new(Sources::default()),
            is_last_call: AtomicBool::new(false),
            drains: Drains::new(),
            waiters: Waiters::new(),
            context,
        });
        registry.shards()
    }

    /// Makes references to the shards. They contain only reference counts.
    pub(crate) fn shards(self: &Arc<Self>) -> Arc<Shards<C>> {
        Shards::new(self, self.states.len())
    }

    /// Returns a number that no other live registry has.
    #[inline]
    pub(crate) fn id(&self) -> usize {
        (&raw const *self).addr()
    }

    pub(crate) fn capacity(&self) -> u64 {
        self.capacity.limit()
    }

    /// Returns whether the caller should log a rejection as full: once for each episode.
    pub(crate) fn logs_full(&self) -> bool {
        self.capacity.logs_full()
    }

    /// Looks at one instant, and closes if `may_close` allows it and nothing is open or pending. `may_close` is called
    /// if no request, guard or permit is open, with the number of those ever opened.
    pub(crate) fn try_close(&self, may_close: impl FnOnce(u64) -> MayClose) -> Look {
        let early = seeded!("a look counts under earlier locks").then(|| self.snapshot());
        let look = self.at_one_instant(|all| {
            let phase = all.shards[0].phase;
            if phase == Phase::Closed {
                return Look::Closed(all.account());
            }
            let now = early.unwrap_or_else(|| all.snapshot());
            if now.holders() > 0 {
                return Look::Open;
            }
            let ever_opened = all.ever_opened();
            let may_close = if phase == Phase::Closing { MayClose::Yes } else { may_close(ever_opened) };
            let is_idle = now.pending == 0 && all.running_sinks().is_empty();
            match (may_close, is_idle) {
                (MayClose::Yes | MayClose::IfIdle, true) => {
                    all.set_phase(Phase::Closed);
                    Look::Closed(all.account())
                }
                (MayClose::Yes, _) => {
                    all.set_phase(Phase::Closing);
                    Look::Closing
                }
                (MayClose::No | MayClose::IfIdle, _) => Look::Quiet { ever_opened },
            }
        });
        if matches!(look, Look::Closed(_)) && !seeded!("a drain that closes wakes nobody") {
            // Other drains end as well.
            self.waiters.wake_all();
        }
        look
    }

    /// Sets the phase back to `Open` for an entry that is to be admitted, if the phase is `Closing` and the entry needs
    /// no slot or one is free. Returns the lock of one shard.
    fn reopen(&self, index: usize, needs_slot: bool) -> Locked<'_> {
        let mut shards = self.lock_shards();
        let list = lock(&self.sources);
        let has_slot = !needs_slot || self.capacity.has_free();
        if shards[index].phase == Phase::Closing && has_slot || seeded!("what is closed is opened again") {
            AllLocked::new(&mut shards, &list).set_phase(Phase::Open);
        }
        shards.swap_remove(index)
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        if seeded!("shards are counted one after the other") {
            let mut now = Snapshot::default();
            self.states.iter().for_each(|state| now += &state.lock().counts);
            return now;
        }
        self.at_one_instant(|all| all.snapshot())
    }

    pub(crate) fn account(&self) -> Account {
        self.at_one_instant(|all| all.account())
    }

    pub(crate) fn sinks(&self) -> Vec<SinkSnapshot> {
        self.at_one_instant(|all| all.sinks())
    }

    /// Aborts the events that are pending now. Those that run are ended by their tasks, which are woken.
    pub(crate) fn abort(&self) {
        let is_late = seeded!("an abort advances the epoch without locks");
        let (epoch, reached, detached) = self.at_one_instant(|all| {
            let epoch = (!is_late).then(|| self.epoch.advance());
            let reached: Vec<_> = all.on_abort().collect();
            (epoch, reached, all.detach(Detach::Abort))
        });
        let epoch = epoch.unwrap_or_else(|| self.epoch.advance());
        for on_abort in reached {
            match on_abort {
                OnAbort::Wake(waker) => waker.wake(),
                OnAbort::Request(request) => request.abort(epoch),
                OnAbort::Nothing => {}
            }
        }
        detached.into_iter().for_each(|detached| (detached.end)());
    }

    /// Starts the events that wait for the end of a request, and ends the waits of requests for a slot. Returns the
    /// number of events.
    ///
    /// A request that is opened later checks [`is_last_call`](Self::is_last_call) when its head is ready.
    pub(crate) fn last_call(&self) -> usize {
        let is_late = seeded!("the last call is marked without locks");
        let (requests, places) = self.at_one_instant(|all| {
            self.is_last_call.store(!is_late, Ordering::Relaxed);
            (all.requests(), self.capacity.dismiss())
        });
        if is_late {
            self.is_last_call.store(true, Ordering::Relaxed);
        }
        places.into_iter().for_each(|place| place.dismiss());
        requests.into_iter().map(|request| request.last_call()).sum()
    }

    /// Returns whether the last call was made.
    ///
    /// Relaxed: a thread that must see the flag has taken the lock of a shard after it was set.
    #[inline]
    pub(crate) fn is_last_call(&self) -> bool {
        self.is_last_call.load(Ordering::Relaxed)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.states[0].lock().phase == Phase::Closed
    }

    /// Returns the latest deadline of the drains that have begun, if it is known.
    pub(crate) fn drain_deadline(&self) -> Option<Instant> {
        self.drains.latest_deadline()
    }

    /// Detaches the pending values of sources that have `on_undelivered`.
    pub(crate) fn detach_undelivered(&self) -> Vec<Detached> {
        self.at_one_instant(|all| all.detach(Detach::TimedOut))
    }

    /// Makes the values in sources due, so that they are delivered without waiting for a full batch.
    pub(crate) fn flush(&self, flush: Flush) {
        let mut list = lock(&self.sources);
        list.is_flushing |= flush == Flush::FromNowOn;
        list.open.iter().for_each(|source| source.lock().flush(flush));
    }

    #[cfg_attr(not(feature = "sink"), allow(dead_code, reason = "only sinks are sources"))]
    pub(crate) fn add_source(&self, source: Arc<dyn Source>) {
        let state = self.states[0].lock();
        let phase = state.phase;
        if seeded!("a source is added without the lock of a shard") {
            drop(state);
        }
        let mut list = lock(&self.sources);
        let mut locked = source.lock();
        locked.set_phase(phase);
        if list.is_flushing {
            locked.flush(Flush::FromNowOn);
        }
        drop(locked);
        list.open.push(source);
    }

    #[cfg_attr(not(feature = "sink"), allow(dead_code, reason = "only sinks are sources"))]
    /// Removes a source whose counts will not change any more, and keeps these counts.
    pub(crate) fn retire_source(&self, source: &Arc<dyn Source>) {
        // With the lock of a shard, no look at one instant runs meanwhile.
        let state = self.states[0].lock();
        let mut list = lock(&self.sources);
        let Some(index) = list.position(source) else { return };
        let locked = source.lock();
        let retired = Retired {
            snapshot: locked.snapshot(),
            failures: locked.failures().cloned(),
            ever_opened: locked.ever_opened(),
        };
        drop(locked);
        list.open.swap_remove(index);
        if seeded!("the counts of a source are taken over under a later lock") {
            drop((list, state));
            list = lock(&self.sources);
        }
        list.retire(retired);
    }

    /// Wakes drains and waits for idleness, because a source has run out of permits or of pending values.
    pub(crate) fn wake_waiters(&self) {
        self.waiters.wake_all();
    }

    #[cfg_attr(not(feature = "sink"), allow(dead_code, reason = "only sinks are sources"))]
    /// Sets the phase back to `Open` and calls `enter`, which opens a permit of a source, in one step.
    pub(crate) fn reopen_and<T>(&self, enter: impl FnOnce() -> T) -> T {
        let state = self.reopen(0, false);
        if seeded!("a permit of a source is taken after the registry was opened again") {
            drop(state);
        }
        enter()
    }

    fn at_one_instant<T>(&self, look: impl FnOnce(&mut AllLocked<'_, '_>) -> T) -> T {
        let mut shards = self.lock_shards();
        let list = lock(&self.sources);
        look(&mut AllLocked::new(&mut shards, &list))
    }

    /// Locks all shards, by index. Two shards are locked in this order only.
    fn lock_shards(&self) -> Vec<Locked<'_>> {
        self.states.iter().map(State::lock).collect()
    }
}

impl<'a, 'b> AllLocked<'a, 'b> {
    fn new(shards: &'a mut [Locked<'b>], list: &'a Sources) -> Self {
        Self { shards, sources: list.lock_all(), list }
    }

    fn set_phase(&mut self, phase: Phase) {
        let skipped = usize::from(seeded!("a change of the phase leaves a shard out"));
        self.shards.iter_mut().skip(skipped).for_each(|state| state.phase = phase);
        if seeded!("sources change their phase under later locks") {
            self.sources.clear();
            self.sources = self.list.lock_all();
        }
        self.sources.iter_mut().for_each(|source| source.set_phase(phase));
    }

    fn snapshot(&self) -> Snapshot {
        let mut now = Snapshot::default();
        self.shards.iter().for_each(|state| now += &state.counts);
        self.sources.iter().for_each(|source| now += &source.counts());
        self.list.retired.values().for_each(|retired| now += &retired.snapshot.counts());
        now
    }

    fn running_sinks(&self) -> Vec<RunningSink> {
        self.sources.iter().filter_map(|source| source.running_sink()).collect()
    }

    fn ever_opened(&self) -> u64 {
        let in_shards: u64 = self.shards.iter().map(|state| state.ever_opened).sum();
        let in_sources: u64 = self.sources.iter().map(|source| source.ever_opened()).sum();
        in_shards + in_sources + self.list.retired.values().map(|retired| retired.ever_opened).sum::<u64>()
    }

    fn account(&self) -> Account {
        let snapshot = self.snapshot();
        Account {
            is_unused: self.ever_opened() + snapshot.accepted + snapshot.rejected == 0,
            snapshot,
            by_name: self.by_name(),
            sinks: self.sinks(),
            open: self.open(),
            running_sinks: self.running_sinks(),
        }
    }

    fn by_name(&self) -> BTreeMap<&'static str, EventFailures> {
        let in_shards = self.shards.iter().flat_map(|state| &state.failures).map(|(name, failures)| (*name, failures));
        let in_sources = self.sources.iter().filter_map(|source| Some((source.snapshot().name, source.failures()?)));
        let retired = self.list.retired.iter().filter_map(|(name, retired)| Some((*name, retired.failures.as_ref()?)));
        let mut by_name: BTreeMap<_, EventFailures> = BTreeMap::new();
        for (name, failures) in retired.chain(in_shards).chain(in_sources) {
            by_name.entry(name).and_modify(|sum| sum.add(failures)).or_insert_with(|| failures.clone());
        }
        by_name
    }

    fn sinks(&self) -> Vec<SinkSnapshot> {
        let retired = self.list.retired.iter().map(|(name, retired)| (*name, retired.snapshot.clone()));
        let mut by_name: BTreeMap<_, SinkSnapshot> = retired.collect();
        for snapshot in self.sources.iter().map(|source| source.snapshot()) {
            by_name.entry(snapshot.name).and_modify(|sum| sum.add(&snapshot)).or_insert(snapshot);
        }
        by_name.into_values().collect()
    }

    fn open(&self) -> Open {
        // A hash map first, because there may be very many entries.
        let mut open: HashMap<_, Group> = HashMap::new();
        for (_, entry) in self.shards.iter().flat_map(|state| &state.entries) {
            let group = Group { count: 1, oldest: entry.since };
            let label = match &entry.on_abort {
                OnAbort::Request(request) => request.label(),
                OnAbort::Wake(_) | OnAbort::Nothing => None,
            };
            open.entry((entry.kind, entry.location, label)).and_modify(|sum| sum.add(group)).or_insert(group);
        }
        let mut open = open.into_iter().collect();
        self.sources.iter().for_each(|source| source.add_open(&mut open));
        open
    }

    /// Returns the wakers and requests through which the pending events are aborted.
    fn on_abort(&mut self) -> impl Iterator<Item = OnAbort> {
        self.shards.iter_mut().flat_map(|state| &mut state.entries).map(|(_, entry)| match &entry.on_abort {
            OnAbort::Request(request) => OnAbort::Request(Arc::clone(request)),
            _ => mem::take(&mut entry.on_abort),
        })
    }

    fn requests(&self) -> Vec<Arc<dyn OpenRequest>> {
        let entries = self.shards.iter().flat_map(|state| &state.entries);
        let requests = entries.filter_map(|(_, entry)| match &entry.on_abort {
            OnAbort::Request(request) => Some(Arc::clone(request)),
            OnAbort::Wake(_) | OnAbort::Nothing => None,
        });
        requests.collect()
    }

    fn detach(&mut self, reason: Detach) -> Vec<Detached> {
        self.sources.iter_mut().filter_map(|source| source.detach(reason)).collect()
    }
}
