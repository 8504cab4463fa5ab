//! [`Shard`]: the entries and counts of, in practice, one thread. It accepts or rejects events.

use std::{
    cell::Cell,
    collections::HashMap,
    panic::Location,
    sync::{Arc, atomic as std_atomic},
    task::{Poll, Waker},
};

use slab::Slab;
use tokio::time::Instant;

use crate::{
    error::TrackError,
    registry::{
        Phase, Registry,
        capacity::{Place, Released, Waiting},
        counts::{Ending, EventFailures, Snapshot},
        entry::{Entry, Kind, OnAbort, OpenRequest, Stage},
        ticket::Ticket,
    },
    util::{
        reentrancy,
        sync::{Mutex, MutexGuard, lock, seeded, seeded_gap},
    },
};

/// Aligned to two cache lines, because processors fetch neighbouring lines in pairs.
#[repr(align(128))]
pub(super) struct State(Mutex<Counted>);

/// The data that the lock of a shard protects.
pub(super) struct Counted {
    pub(super) phase: Phase,
    pub(super) entries: Slab<Entry>,
    pub(super) counts: Snapshot,
    /// The number of requests, guards and permits ever opened in this shard.
    pub(super) ever_opened: u64,
    pub(super) failures: HashMap<&'static str, EventFailures>,
}

pub(super) type Locked<'a> = MutexGuard<'a, Counted>;

impl State {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Counted {
            phase: Phase::Open,
            entries: Slab::new(),
            counts: Snapshot::default(),
            ever_opened: 0,
            failures: HashMap::new(),
        }))
    }

    #[inline]
    pub(super) fn lock(&self) -> Locked<'_> {
        lock(&self.0)
    }
}

impl Counted {
    #[inline]
    fn enter(&mut self, entry: Entry) -> usize {
        match entry.kind {
            Kind::Request => self.counts.open_requests += 1,
            Kind::Guard => self.counts.open_guards += 1,
            Kind::Permit => self.counts.reserved += 1,
            Kind::Event { .. } => {
                self.counts.pending += 1;
                self.counts.accepted += 1;
            }
        }
        self.ever_opened += u64::from(entry.kind.is_holder());
        self.entries.insert(entry)
    }

    #[inline]
    fn count_removed(&mut self, kind: Kind) {
        *match kind {
            Kind::Request => &mut self.counts.open_requests,
            Kind::Guard => &mut self.counts.open_guards,
            Kind::Permit => &mut self.counts.reserved,
            Kind::Event { .. } => &mut self.counts.pending,
        } -= 1;
    }

    #[inline]
    fn count_ended(
        &mut self,
        name: &'static str,
        location: &'static Location<'static>,
        ending: Ending,
        error: Option<String>,
    ) {
        self.counts.ended.add(ending, 1);
        if ending != Ending::Completed {
            let failures = self.failures.entry(name).or_insert_with(|| EventFailures::new(location));
            failures.counts.add(ending, 1);
            failures.location = location;
            failures.last_error = error.or(failures.last_error.take());
        }
    }

    fn count_rejected(&mut self, error: TrackError) {
        self.counts.rejected += 1;
        self.counts.rejected_closed += u64::from(error == TrackError::Closed);
    }

    /// Returns whether the removed entry was the last holder, or the last pending event, of this shard. Then drains and
    /// waits for idleness look again.
    #[inline]
    fn is_last(&self, kind: Kind) -> bool {
        if kind.is_holder() { self.counts.holders() == 0 } else { self.counts.pending == 0 }
    }
}

/// A reference to one shard. Its reference count is used by the threads of this shard only. A reference count of the
/// registry would be a cache line that all threads write.
#[repr(align(128))]
pub(crate) struct Shard<C> {
    pub(crate) registry: Arc<Registry<C>>,
    index: usize,
}

/// A reference to each shard of a registry.
pub(crate) struct Shards<C>(Box<[Arc<Shard<C>>]>);

impl<C> Shards<C> {
    pub(super) fn new(registry: &Arc<Registry<C>>, count: usize) -> Arc<Self> {
        Arc::new(Self((0..count).map(|index| Arc::new(Shard { registry: Arc::clone(registry), index })).collect()))
    }

    /// Returns the shard of this thread.
    #[inline]
    pub(crate) fn mine(&self) -> &Arc<Shard<C>> {
        // The number of shards is a power of two.
        &self.0[thread_index() & (self.0.len() - 1)]
    }

    pub(crate) fn registry(&self) -> &Arc<Registry<C>> {
        &self.0[0].registry
    }

    #[cfg(all(test, track_events_loom))]
    pub(crate) fn get(&self, index: usize) -> &Arc<Shard<C>> {
        &self.0[index]
    }
}

/// Returns the index of this thread, which selects its shard. Threads are numbered, so few of them share a shard.
#[inline]
fn thread_index() -> usize {
    // An atomic of std also in the models, which choose their shards themselves.
    static NEXT: std_atomic::AtomicUsize = std_atomic::AtomicUsize::new(0);
    std::thread_local! {
        static INDEX: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    INDEX.with(|index| {
        if index.get() == usize::MAX {
            index.set(NEXT.fetch_add(1, std_atomic::Ordering::Relaxed));
        }
        index.get()
    })
}

/// The origin of an admission, which decides whether it is accepted while a drain is closing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A server that has a request, or spawns a task that will have one. Always accepted. It sets the phase to `Open`.
    Server,
    /// Any code. Accepted inside an event, a delivery, a request or the scope of a guard.
    Anywhere,
}

/// An event that is to be accepted or rejected.
pub(crate) struct NewEvent {
    pub(crate) name: &'static str,
    pub(crate) stage: Stage,
    pub(crate) location: &'static Location<'static>,
    pub(crate) since: Instant,
}

impl NewEvent {
    #[inline]
    pub(super) fn kind(&self) -> Kind {
        Kind::Event { name: self.name, stage: self.stage }
    }
}

impl<C> Shard<C> {
    /// Accepts an event or rejects it.
    #[inline]
    pub(crate) fn track(self: &Arc<Self>, event: NewEvent) -> Result<Ticket<C>, TrackError> {
        self.admit(event.kind(), event.location, event.since, OnAbort::Nothing, Origin::Anywhere)
    }

    /// Opens a request. `None` if the registry is closed: the request is served nevertheless, and not counted.
    #[inline]
    pub(crate) fn open_request(self: &Arc<Self>, since: Instant, request: Arc<dyn OpenRequest>) -> Option<Ticket<C>> {
        self.admit(Kind::Request, Location::caller(), since, OnAbort::Request(request), Origin::Server).ok()
    }

    pub(crate) fn guard(
        self: &Arc<Self>,
        location: &'static Location<'static>,
        since: Instant,
        origin: Origin,
    ) -> Result<Ticket<C>, TrackError> {
        self.admit(Kind::Guard, location, since, OnAbort::Nothing, origin)
    }

    pub(crate) fn reserve(
        self: &Arc<Self>,
        location: &'static Location<'static>,
        since: Instant,
    ) -> Result<Ticket<C>, TrackError> {
        self.admit(Kind::Permit, location, since, OnAbort::Nothing, Origin::Anywhere)
    }

    /// Takes a slot for one event, or enters the queue for one. After the last call a full capacity rejects instead.
    pub(crate) fn reserve_or_queue(
        self: &Arc<Self>,
        location: &'static Location<'static>,
        since: Instant,
    ) -> Result<Slot<C>, TrackError> {
        let was_last_call = self.registry.is_last_call();
        let mut state = self.lock_open(Kind::Permit, Origin::Anywhere)?;
        let is_early = seeded!("a request looks for the last call before the shard is locked");
        let is_last_call = if is_early { was_last_call } else { self.registry.is_last_call() };
        if is_last_call && !seeded!("a request waits for a slot after the last call") {
            drop(state);
            return self.reserve(location, since).map(Slot::Granted);
        }
        seeded_gap!("a slot is waited for without the lock of the shard", state = self.lock());
        if let Some((number, place)) = self.registry.capacity.take_or_queue(location, since) {
            drop(state);
            return Ok(Slot::Queued(QueuedSlot { registry: Arc::clone(&self.registry), number, place }));
        }
        let key = state.enter(Entry { kind: Kind::Permit, location, since, on_abort: OnAbort::Nothing });
        Ok(Slot::Granted(self.ticket(key)))
    }

    #[inline]
    fn admit(
        self: &Arc<Self>,
        kind: Kind,
        location: &'static Location<'static>,
        since: Instant,
        on_abort: OnAbort,
        origin: Origin,
    ) -> Result<Ticket<C>, TrackError> {
        let mut state = self.lock_open(kind, origin)?;
        seeded_gap!("the phase is looked at under an earlier lock", state = self.lock());
        if kind.needs_capacity() && !self.registry.capacity.take() {
            state.count_rejected(TrackError::Full);
            return Err(TrackError::Full);
        }
        seeded_gap!("a slot is taken under an earlier lock than its entry", state = self.lock());
        let key = state.enter(Entry { kind, location, since, on_abort });
        if seeded!("the epoch of an event is read without the lock of its entry") {
            drop(state);
        }
        Ok(self.ticket(key))
    }

    /// Locks the shard for an admission. Returns an error if the phase rejects it.
    #[inline]
    fn lock_open(&self, kind: Kind, origin: Origin) -> Result<Locked<'_>, TrackError> {
        let state = self.lock();
        if state.phase == Phase::Open { Ok(state) } else { self.lock_closing(state, kind, origin) }
    }

    #[cold]
    fn lock_closing<'a>(&'a self, mut state: Locked<'a>, kind: Kind, origin: Origin) -> Result<Locked<'a>, TrackError> {
        let may_enter = origin == Origin::Server || reentrancy::is_inside(self.registry.id());
        if state.phase == Phase::Closing && may_enter {
            if !kind.is_holder() {
                return Ok(state);
            }
            drop(state);
            state = self.registry.reopen(self.index, kind.needs_capacity());
            seeded_gap!("a request opens the registry again under an earlier lock", state = self.lock());
            if state.phase == Phase::Closing {
                state.count_rejected(TrackError::Full);
                return Err(TrackError::Full);
            }
        }
        if state.phase == Phase::Open || seeded!("a request does not look at the phase again") {
            return Ok(state);
        }
        if kind.needs_capacity() {
            state.count_rejected(TrackError::Closed);
        }
        Err(TrackError::Closed)
    }

    /// Counts a rejection that the caller has decided.
    pub(crate) fn count_rejected(&self, error: TrackError) {
        self.lock().count_rejected(error);
    }

    /// Counts a panic of an observer, as an event that was accepted and has panicked. It was never pending.
    pub(crate) fn count_panicked(&self, name: &'static str, location: &'static Location<'static>, panic: String) {
        let mut state = self.lock();
        // The counts do not change after the registry was closed.
        if state.phase != Phase::Closed {
            state.counts.accepted += 1;
            state.count_ended(name, location, Ending::Panicked, Some(panic));
        }
    }

    /// Removes an entry. If it is that of an event, counts the ending.
    pub(super) fn leave(self: &Arc<Self>, key: usize, ending: Ending, error: Option<String>) {
        let wakes = !seeded!("waiters are looked for before an entry is removed") || self.registry.waiters.any();
        let mut state = self.lock();
        let Some(Entry { kind, location, since: _, on_abort }) = state.entries.try_remove(key) else { return };
        state.count_removed(kind);
        seeded_gap!("an ending is counted under a later lock", state = self.lock());
        if let Kind::Event { name, .. } = kind {
            state.count_ended(name, location, ending, error);
        }
        seeded_gap!("a slot is released under a later lock than its entry", state = self.lock());
        let released = kind.needs_capacity().then(|| self.registry.capacity.release());
        seeded_gap!("a slot is passed on under a later lock than it is released", state = self.lock());
        let released = released.map(|released| match released {
            Released::Free { logs } => Freed::Free { logs },
            Released::To(Waiting { place, location, since }) => {
                let key = state.enter(Entry { kind: Kind::Permit, location, since, on_abort: OnAbort::Nothing });
                Freed::To(place, self.ticket(key))
            }
        });
        let is_last = state.is_last(kind);
        let is_closing = state.phase == Phase::Closing;
        drop(state);
        match released {
            Some(Freed::To(place, permit)) => {
                if is_closing {
                    // The permit keeps a drain from closing.
                    drop(self.registry.reopen(self.index, false));
                }
                // If the waiter has left the queue meanwhile, the permit is returned. Its drop releases the slot.
                drop(place.grant(permit));
            }
            Some(Freed::Free { logs: true }) => {
                tracing::info!(capacity = self.registry.capacity(), "events are accepted again");
            }
            Some(Freed::Free { logs: false }) | None => {}
        }
        if is_last && wakes && !seeded!("the last one wakes nobody") {
            self.registry.waiters.wake_all();
        }
        // Without the lock: it may be the last reference to an exchange, which owns values of the user.
        drop(on_abort);
    }

    #[inline]
    pub(super) fn ticket(self: &Arc<Self>, key: usize) -> Ticket<C> {
        Ticket::new(Arc::clone(self), key, self.registry.epoch.load())
    }

    #[inline]
    pub(super) fn lock(&self) -> Locked<'_> {
        self.registry.states[self.index].lock()
    }
}

enum Freed<C> {
    Free { logs: bool },
    To(Arc<Place<Ticket<C>>>, Ticket<C>),
}

/// The result of [`Shard::reserve_or_queue`].
pub(crate) enum Slot<C> {
    Granted(Ticket<C>),
    Queued(QueuedSlot<C>),
}

/// A request in the queue for a slot. Dropping it leaves the queue.
pub(crate) struct QueuedSlot<C> {
    registry: Arc<Registry<C>>,
    number: u64,
    place: Arc<Place<Ticket<C>>>,
}

impl<C> QueuedSlot<C> {
    /// Returns the permit, once. `None` after a last call: there will be no permit.
    pub(crate) fn poll(&mut self, waker: &Waker) -> Poll<Option<Ticket<C>>> {
        self.place.poll(waker)
    }
}

impl<C> Drop for QueuedSlot<C> {
    fn drop(&mut self) {
        let granted = self.place.leave();
        self.registry.capacity.remove(self.number);
        if seeded!("a permit that was not taken is forgotten") {
            return std::mem::forget(granted);
        }
        // A permit that was granted and not taken releases its slot to the next.
        drop(granted);
    }
}
