//! The ledger: admission, bound, list of what is open, and counters, in one structure.
//!
//! Everything that a drain waits for (a request, a guard, a permit, an event) is an entry in a *shard*, and whoever
//! is responsible for it holds a *ticket*. Dropping the ticket removes the entry. A shard is one mutex on cache lines
//! of its own; each thread has its own shard, and a ticket remembers which one it is in, so in practice no two threads
//! write the same line.
//!
//! # Invariants, and why they hold
//!
//! 1. *An entry and its counters change together*, under the lock of their shard. A look at all shards under all locks
//!    is therefore a look at one instant (L1). `accepted` is counted on its own, when an event enters.
//! 2. *A ticket is an entry.* A ticket is made only by [`ShardRef::admit`], has no `Clone`, and removes its entry exactly
//!    once, in its `Drop`; the ending is `Aborted` unless [`EventTicket::end`] said otherwise. So every event that is
//!    accepted has one ending (L4), also when the runtime drops it.
//! 3. *Closing is one instant.* [`Ledger::look`] closes all shards under all locks, and only if none has an entry. Every
//!    admission looks at `closed` under its shard's lock. So before that instant everything is taken, after it nothing
//!    is, and nothing was open at it (L2, L3).
//! 4. *Room is conserved.* `capacity = pool + room of each shard + permits + pending events`. Room moves between the
//!    pool and a shard only under that shard's lock, so under all locks none is on its way, and "there is none left" is
//!    true when it is said (L5).
//! 5. *A drain cannot sleep through the end.* It registers its waker first and looks under all locks afterwards. A
//!    shard that runs empty after that look took its lock after the look released it, and so sees the registration.
//! 6. *No user code under a lock* (L6): names and locations are `&'static`, wakers are taken out of their list before
//!    they are woken, and what an event owns is dropped by its owner before the ticket.
//!
//! Locks are taken in the order: shards by index, then the list of waiters. The reference count of the ledger is a line
//! that every thread would write, so a ticket holds a [`ShardRef`] instead: one reference count per shard.

use std::{
    cell::Cell,
    collections::{BTreeMap, HashMap},
    panic::Location,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering},
    },
    task::Waker,
};

use crate::{
    contain::contain,
    refused::Refused,
    snapshot::{Ending, Endings, Snapshot},
};

/// What the ledger can count: room is a `u32`.
pub(crate) const MAX_CAPACITY: usize = u32::MAX as usize;

/// Room travels in blocks of at most this size.
const MAX_BLOCK: u32 = 256;

/// Nanoseconds on the clock of whoever uses the ledger, which has none itself.
pub(crate) type Nanos = u64;

/// `C` is what the users of the ledger keep beside it.
pub(crate) struct Ledger<C> {
    shards: Box<[Shard]>,
    capacity: u32,
    /// How much room a shard takes from the pool at once.
    block: u32,
    /// Room that no shard holds. Changed only under the lock of the shard it comes from or goes to.
    pool: AtomicU32,
    fullness: AtomicU8,
    waiters: Waiters,
    pub(crate) context: C,
}

/// Values of `fullness`. A full house stays *full* until a quarter of it is free, so that a house at the brim is one
/// episode and not thousands; while it is full, room goes straight back to the pool, where every shard finds it.
const ROOMY: u8 = 0;
const FULL: u8 = 1;
const FULL_AND_ANNOUNCED: u8 = 2;

/// Two cache lines, because neighbouring lines are fetched in pairs.
#[repr(align(128))]
#[derive(Default)]
struct Shard(Mutex<State>);

#[derive(Default)]
struct State {
    closed: bool,
    room: u32,
    /// Everything that was ever admitted: tells two looks whether anything came in between.
    arrivals: u64,
    open_requests: u64,
    open_guards: u64,
    reserved: u64,
    pending: u64,
    accepted: u64,
    refused: u64,
    endings: Endings,
    /// By event name, for what did not complete.
    wrong: HashMap<&'static str, Endings>,
    slots: Slots,
}

/// A reference to one shard, with a reference count that only the users of this shard touch.
#[repr(align(128))]
pub(crate) struct ShardRef<C> {
    pub(crate) ledger: Arc<Ledger<C>>,
    index: usize,
}

#[derive(Clone, Copy)]
struct Entry {
    kind: Kind,
    location: &'static Location<'static>,
    since: Nanos,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    Request,
    Guard,
    Permit,
    Event { name: &'static str, started: bool },
}

/// Who has it is responsible for one entry, and removes it by dropping the ticket.
pub(crate) struct Ticket<C> {
    shard: Arc<ShardRef<C>>,
    key: u32,
    ending: Ending,
}

/// The ticket of a permit: room for one event.
pub(crate) struct PermitTicket<C>(Ticket<C>);

/// The ticket of an accepted event.
pub(crate) struct EventTicket<C>(Ticket<C>);

/// What [`Ledger::look`] found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Look {
    Busy,
    Idle { arrivals: u64 },
    Closed,
}

/// What is open, grouped, and the counts of the same instant.
pub(crate) struct Holdings {
    pub(crate) snapshot: Snapshot,
    pub(crate) endings: Endings,
    pub(crate) wrong: BTreeMap<&'static str, Endings>,
    pub(crate) open: BTreeMap<(Kind, &'static Location<'static>), Group>,
}

#[derive(Clone, Copy)]
pub(crate) struct Group {
    pub(crate) count: u64,
    pub(crate) oldest: Nanos,
}

impl<C> Ledger<C> {
    /// The capacity is at least 1.
    pub(crate) fn new(capacity: u32, shards: usize, context: C) -> Arc<Self> {
        let block = (capacity / (4 * shards as u32)).clamp(1, MAX_BLOCK);
        Arc::new(Self {
            shards: (0..shards).map(|_| Shard::default()).collect(),
            capacity,
            block,
            pool: AtomicU32::new(capacity),
            fullness: AtomicU8::new(ROOMY),
            waiters: Waiters::default(),
            context,
        })
    }

    pub(crate) fn shard_refs(self: &Arc<Self>) -> Box<[Arc<ShardRef<C>>]> {
        (0..self.shards.len()).map(|index| Arc::new(ShardRef { ledger: Arc::clone(self), index })).collect()
    }

    /// Looks at one instant: is anything open? If not, `may_close` is told how many arrivals there have been, and
    /// answers whether this is the instant at which the ledger closes.
    pub(crate) fn look(&self, may_close: impl FnOnce(u64) -> bool) -> Look {
        let mut shards = self.lock_all();
        if shards.iter().any(|state| state.closed) {
            return Look::Closed;
        }
        if shards.iter().any(|state| !state.slots.is_empty()) {
            return Look::Busy;
        }
        let arrivals = shards.iter().map(|state| state.arrivals).sum();
        if !may_close(arrivals) {
            return Look::Idle { arrivals };
        }
        for state in &mut shards {
            state.closed = true;
        }
        drop(shards);
        // The other drains end with this one.
        self.waiters.wake_all();
        Look::Closed
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        count(&self.lock_all())
    }

    pub(crate) fn endings(&self) -> Endings {
        total(&self.lock_all())
    }

    pub(crate) fn holdings(&self) -> Holdings {
        let shards = self.lock_all();
        let mut wrong: BTreeMap<_, Endings> = BTreeMap::new();
        let mut open: HashMap<_, Group> = HashMap::new();
        for state in &shards {
            for (name, endings) in &state.wrong {
                *wrong.entry(*name).or_default() += *endings;
            }
            for entry in state.slots.iter() {
                let group = open.entry((entry.kind, entry.location)).or_insert(Group { count: 0, oldest: entry.since });
                group.count += 1;
                group.oldest = group.oldest.min(entry.since);
            }
        }
        Holdings { snapshot: count(&shards), endings: total(&shards), wrong, open: open.into_iter().collect() }
    }

    /// Whether somebody should say that the house is full: once an episode.
    pub(crate) fn should_announce_full(&self) -> bool {
        // Only a flag for one log line; the count of refusals is exact without it.
        self.fullness.compare_exchange(FULL, FULL_AND_ANNOUNCED, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    pub(crate) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// All shards, in the order of their index: the one order in which two locks are held.
    fn lock_all(&self) -> Vec<MutexGuard<'_, State>> {
        self.shards.iter().map(Shard::lock).collect()
    }
}

fn count(shards: &[MutexGuard<'_, State>]) -> Snapshot {
    let Endings { completed, failed, panicked, timed_out, aborted } = total(shards);
    let sum = |count: fn(&State) -> u64| shards.iter().map(|state| count(state)).sum();
    Snapshot {
        open_requests: sum(|state| state.open_requests),
        open_guards: sum(|state| state.open_guards),
        reserved: sum(|state| state.reserved),
        pending: sum(|state| state.pending),
        accepted: sum(|state| state.accepted),
        completed,
        failed,
        panicked,
        timed_out,
        aborted,
        refused: sum(|state| state.refused),
    }
}

fn total(shards: &[MutexGuard<'_, State>]) -> Endings {
    let mut endings = Endings::default();
    for state in shards {
        endings += state.endings;
    }
    endings
}

impl Shard {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that runs under the lock panics half-way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C> ShardRef<C> {
    pub(crate) fn open_request(self: &Arc<Self>, since: Nanos) -> Result<Ticket<C>, Refused> {
        self.admit(Kind::Request, Location::caller(), since)
    }

    pub(crate) fn guard(
        self: &Arc<Self>,
        location: &'static Location<'static>,
        since: Nanos,
    ) -> Result<Ticket<C>, Refused> {
        self.admit(Kind::Guard, location, since)
    }

    pub(crate) fn reserve(
        self: &Arc<Self>,
        location: &'static Location<'static>,
        since: Nanos,
    ) -> Result<PermitTicket<C>, Refused> {
        self.admit(Kind::Permit, location, since).map(PermitTicket)
    }

    /// Accepts an event, or refuses it: the one decision.
    pub(crate) fn accept(
        self: &Arc<Self>,
        name: &'static str,
        started: bool,
        location: &'static Location<'static>,
        since: Nanos,
    ) -> Result<EventTicket<C>, Refused> {
        self.admit(Kind::Event { name, started }, location, since).map(EventTicket)
    }

    /// Counts a refusal that was decided elsewhere.
    pub(crate) fn count_refused(&self) {
        self.lock().refused += 1;
    }

    fn admit(
        self: &Arc<Self>,
        kind: Kind,
        location: &'static Location<'static>,
        since: Nanos,
    ) -> Result<Ticket<C>, Refused> {
        let entry = Entry { kind, location, since };
        let mut state = self.lock();
        let key = if state.closed {
            Err(state.refuse(kind, Refused::Drained))
        } else if !kind.needs_room() || self.ledger.take_room(&mut state) {
            Ok(state.enter(entry))
        } else {
            drop(state);
            self.admit_with_all_room(entry)
        }?;
        Ok(Ticket { shard: Arc::clone(self), key, ending: Ending::Aborted })
    }

    /// Neither this shard nor the pool has room: takes what lies in other shards, or knows that there is none.
    #[cold]
    fn admit_with_all_room(&self, entry: Entry) -> Result<u32, Refused> {
        let ledger = &*self.ledger;
        let mut shards = ledger.lock_all();
        if shards[self.index].closed {
            return Err(shards[self.index].refuse(entry.kind, Refused::Drained));
        }
        let found: u32 = shards.iter_mut().map(|state| std::mem::take(&mut state.room)).sum();
        ledger.pool.fetch_add(found, Ordering::Relaxed);
        let state = &mut *shards[self.index];
        if ledger.take_room(state) {
            return Ok(state.enter(entry));
        }
        // Left alone when it is full already: the episode has been announced, or is about to be.
        let _ = ledger.fullness.compare_exchange(ROOMY, FULL, Ordering::Relaxed, Ordering::Relaxed);
        Err(state.refuse(entry.kind, Refused::Full))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.ledger.shards[self.index].lock()
    }
}

impl<C> Ledger<C> {
    /// Takes room for one event, from the shard or else from the pool. The lock that comes with `state` is what makes
    /// the pool's relaxed ordering enough: all who must agree on it hold at least one lock in common with its writer.
    fn take_room(&self, state: &mut State) -> bool {
        if state.room == 0 {
            let take = |pool: u32| (pool > 0).then(|| pool - pool.min(self.block));
            if let Ok(before) = self.pool.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
                state.room = before.min(self.block);
            }
        }
        let has_room = state.room > 0;
        state.room -= u32::from(has_room);
        has_room
    }

    /// Takes room back, under the lock of the shard that gives it.
    fn give_room(&self, state: &mut State) {
        state.room += 1;
        let is_full = self.fullness.load(Ordering::Relaxed) != ROOMY;
        let surplus = if is_full {
            state.room
        } else if state.room > 2 * self.block {
            self.block
        } else {
            return;
        };
        state.room -= surplus;
        let pool = self.pool.fetch_add(surplus, Ordering::Relaxed) + surplus;
        if is_full && pool >= (self.capacity / 4).max(1) {
            self.fullness.store(ROOMY, Ordering::Relaxed);
        }
    }
}

impl State {
    fn enter(&mut self, entry: Entry) -> u32 {
        self.arrivals += 1;
        match entry.kind {
            Kind::Request => self.open_requests += 1,
            Kind::Guard => self.open_guards += 1,
            Kind::Permit => self.reserved += 1,
            Kind::Event { .. } => {
                self.pending += 1;
                self.accepted += 1;
            }
        }
        self.slots.insert(entry)
    }

    /// Counts what somebody loses by the refusal. A request is served nevertheless, and so is what has no guard.
    fn refuse(&mut self, kind: Kind, refused: Refused) -> Refused {
        self.refused += u64::from(kind.needs_room());
        refused
    }
}

impl Kind {
    fn needs_room(self) -> bool {
        matches!(self, Self::Permit | Self::Event { .. })
    }
}

impl<C> Drop for Ticket<C> {
    fn drop(&mut self) {
        let ledger = &*self.shard.ledger;
        let mut state = self.shard.lock();
        let Some(entry) = state.slots.remove(self.key) else {
            return;
        };
        match entry.kind {
            Kind::Request => state.open_requests -= 1,
            Kind::Guard => state.open_guards -= 1,
            Kind::Permit => state.reserved -= 1,
            Kind::Event { name, .. } => {
                state.pending -= 1;
                state.endings.count(self.ending);
                if self.ending != Ending::Completed {
                    state.wrong.entry(name).or_default().count(self.ending);
                }
            }
        }
        if entry.kind.needs_room() {
            ledger.give_room(&mut state);
        }
        let is_empty = state.slots.is_empty();
        drop(state);
        if is_empty {
            ledger.waiters.wake_all();
        }
    }
}

impl<C> PermitTicket<C> {
    pub(crate) fn shard(&self) -> &Arc<ShardRef<C>> {
        &self.0.shard
    }

    /// The permit becomes an event in its place, so neither room nor the ledger's being open is in question.
    pub(crate) fn accept(
        self,
        name: &'static str,
        started: bool,
        location: &'static Location<'static>,
        since: Nanos,
    ) -> EventTicket<C> {
        let mut state = self.0.shard.lock();
        state.reserved -= 1;
        state.pending += 1;
        state.accepted += 1;
        state.slots.replace(self.0.key, Entry { kind: Kind::Event { name, started }, location, since });
        drop(state);
        EventTicket(self.0)
    }
}

impl<C> EventTicket<C> {
    pub(crate) fn shard(&self) -> &Arc<ShardRef<C>> {
        &self.0.shard
    }

    /// The event's exchange is over and the event begins: from now on its age is its own.
    pub(crate) fn start(&self, now: Nanos) {
        let mut state = self.0.shard.lock();
        if let Some(entry) = state.slots.get_mut(self.0.key) {
            entry.since = now;
            if let Kind::Event { started, .. } = &mut entry.kind {
                *started = true;
            }
        }
    }

    /// Ends the event. Dropping the ticket instead counts it as aborted.
    pub(crate) fn end(mut self, ending: Ending) {
        self.0.ending = ending;
    }
}

/// The index of this thread, from which its shard follows. Threads that live at the same time rarely share one.
fn thread_index() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static INDEX: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    INDEX.with(|index| {
        if index.get() == usize::MAX {
            index.set(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        index.get()
    })
}

/// The shard of this thread.
pub(crate) fn of_this_thread<C>(shards: &[Arc<ShardRef<C>>]) -> &Arc<ShardRef<C>> {
    &shards[thread_index() % shards.len()]
}

/// Entries at stable keys, with a list of free places threaded through them.
#[derive(Default)]
struct Slots {
    slots: Vec<Slot>,
    /// The first free place, if it is not beyond the end.
    free: u32,
    len: u32,
}

enum Slot {
    Vacant { next: u32 },
    Taken(Entry),
}

impl Slots {
    fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn insert(&mut self, entry: Entry) -> u32 {
        let key = self.free;
        match self.slots.get_mut(key as usize) {
            Some(slot) => {
                if let Slot::Vacant { next } = *slot {
                    self.free = next;
                }
                *slot = Slot::Taken(entry);
            }
            None => {
                self.slots.push(Slot::Taken(entry));
                self.free = self.slots.len() as u32;
            }
        }
        self.len += 1;
        key
    }

    fn get_mut(&mut self, key: u32) -> Option<&mut Entry> {
        match self.slots.get_mut(key as usize) {
            Some(Slot::Taken(entry)) => Some(entry),
            _ => None,
        }
    }

    fn replace(&mut self, key: u32, entry: Entry) {
        if let Some(place) = self.get_mut(key) {
            *place = entry;
        }
    }

    fn remove(&mut self, key: u32) -> Option<Entry> {
        let entry = *self.get_mut(key)?;
        self.slots[key as usize] = Slot::Vacant { next: self.free };
        self.free = key;
        self.len -= 1;
        Some(entry)
    }

    fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.slots.iter().filter_map(|slot| match slot {
            Slot::Taken(entry) => Some(entry),
            Slot::Vacant { .. } => None,
        })
    }
}

/// The wakers of the drains that wait for the house to be empty.
#[derive(Default)]
struct Waiters {
    /// Whether the list has an entry; read by whoever empties a shard, without the lock.
    any: AtomicBool,
    list: Mutex<WaiterList>,
}

#[derive(Default)]
struct WaiterList {
    next_id: u64,
    wakers: Vec<(u64, Waker)>,
}

impl Waiters {
    fn wake_all(&self) {
        // Relaxed: a waiter stores the flag before it looks at the shards under their locks, and the caller has held
        // one of these locks after that look (invariant 5). Without that look it will find the shard empty itself.
        if !self.any.load(Ordering::Relaxed) {
            return;
        }
        let mut list = self.lock();
        let wakers = std::mem::take(&mut list.wakers);
        self.any.store(false, Ordering::Relaxed);
        drop(list);
        for (_, waker) in wakers {
            // A waker is user code, and this may run in a destructor.
            let _ = contain(|| waker.wake());
        }
    }

    fn lock(&self) -> MutexGuard<'_, WaiterList> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One place in the list of waiters, left when dropped.
pub(crate) struct Waiter<C> {
    ledger: Arc<Ledger<C>>,
    id: u64,
}

impl<C> Waiter<C> {
    pub(crate) fn new(ledger: &Arc<Ledger<C>>) -> Self {
        let mut list = ledger.waiters.lock();
        list.next_id += 1;
        let id = list.next_id;
        drop(list);
        Self { ledger: Arc::clone(ledger), id }
    }

    /// Is woken, once, when a shard has run empty or the ledger has closed. To be called before each look.
    pub(crate) fn register(&self, waker: &Waker) {
        let waker = waker.clone();
        let mut list = self.ledger.waiters.lock();
        let replaced = list.take(self.id);
        list.wakers.push((self.id, waker));
        self.ledger.waiters.any.store(true, Ordering::Relaxed);
        drop(list);
        let _ = contain(|| drop(replaced));
    }
}

impl<C> Drop for Waiter<C> {
    fn drop(&mut self) {
        let mut list = self.ledger.waiters.lock();
        let left = list.take(self.id);
        self.ledger.waiters.any.store(!list.wakers.is_empty(), Ordering::Relaxed);
        drop(list);
        let _ = contain(|| drop(left));
    }
}

impl WaiterList {
    fn take(&mut self, id: u64) -> Option<Waker> {
        let place = self.wakers.iter().position(|(other, _)| *other == id)?;
        Some(self.wakers.swap_remove(place).1)
    }
}
