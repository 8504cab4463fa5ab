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
//!    is therefore a look at one instant (L1). `accepted` is counted on its own, when an event enters. What never was an
//!    entry counts in one step as accepted and ended: an observer that has panicked, and what a lane has done.
//! 2. *A ticket is an entry.* A ticket is made only by [`ShardRef::ticket`], of an entry that has just been made, has no
//!    `Clone`, and removes its entry exactly once, in its `Drop`, in [`EventTicket::end_and_take`], or for another in
//!    [`PermitTicket::accept`]; the ending is `Aborted` unless [`EventTicket::end_as`] said otherwise. So every event that is
//!    accepted has one ending (L4), also when the runtime drops it. The one exception is a request, whose key has no `Drop`:
//!    the guard of its exchange closes it in its own.
//! 3. *Closing is one instant.* [`Ledger::look`] closes all shards under all locks, and only if none has an entry. Every
//!    admission looks at `closed` under its shard's lock, but for what takes the place of an entry under the same lock: an
//!    event that of its permit, a permit that of the entry whose room it has. So before that instant everything is taken,
//!    after it nothing is, and nothing was open at it (L2, L3).
//! 4. *Room is conserved.* `capacity = pool + room of each shard + permits + pending events`. Room moves between the
//!    pool and a shard only under that shard's lock, so under all locks none is on its way, and "there is none left" is
//!    true when it is said (L5).
//! 5. *A drain cannot sleep through the end.* It registers its waker first and looks under all locks afterwards. A
//!    shard that runs empty after that look took its lock after the look released it, and so sees the registration.
//! 6. *No user code under a lock* (L6): names and locations are `&'static`, wakers are taken out of their list before
//!    they are woken, and what an event owns is dropped by its owner before the ticket. The tasks of events are kept here
//!    until they run, but nothing more is done to them under a lock than to put them together and to move them.
//! 7. *Eras divide the events.* An event belongs to the era in which it was accepted. An abort and the begin of a wait
//!    for idleness each end an era, under all locks, so that "accepted before" is exact.
//! 8. *Room that is waited for is not given away.* A queue is entered under all locks, when there is no room anywhere.
//!    From then on what is given back goes to the first in the queue, as a permit, under the lock of its shard; so no
//!    shard and no pool has room before the queue is empty.
//! 9. *What a request records is beside its entry*, with the keys of the events, which are in the same shard: a permit of
//!    another one moves when it becomes an event. So an abort finds all of it under all locks, and the end of the exchange
//!    starts it under one. Whoever records asks under that lock whether the exchange is over.
//! 10. *A lane is a shard of another kind.* The values that are sent to a sink are counted in its lane, which has a lock of
//!     its own. Looks and closings take it together with the shards, so that 1, 3 and 5 hold for lanes as well.
//!
//! Locks are taken in the order: shards by index, the list of lanes, lanes, then one of the waiters, of the waits for
//! idleness, or of the queue for room. The reference count of the ledger is a line that every thread would write, so a ticket
//! holds a [`ShardRef`] instead: one reference count per shard.

use std::{
    cell::Cell,
    collections::{BTreeMap, HashMap},
    mem,
    panic::Location,
    sync::{Arc, atomic::AtomicUsize},
    task::{Poll, Waker},
    time::Duration,
};

use crate::{
    contain::{contain, wake},
    entry::{Entry, Era, Kind, Nanos, Slots, Stage},
    idle_waits::IdleWaits,
    lane::{self, GivenUp, Lane, Lanes, LockedLane},
    line::Line,
    refused::Refused,
    room_queue::{RoomPlace, RoomQueue},
    snapshot::{Ending, Endings, SinkSnapshot, Snapshot},
    sync::{AtomicU8, AtomicU32, AtomicU64, Mutex, MutexGuard, Ordering, lock},
    waiters::Waiters,
};

/// What the ledger can count: room is a `u32`.
pub(crate) const MAX_CAPACITY: usize = u32::MAX as usize;

/// Room travels in blocks of at most this size.
const MAX_BLOCK: u32 = 256;

/// What the users of a ledger keep beside it, and what they keep in it.
pub(crate) trait Context: Sized {
    /// An event that has been accepted and does not run yet. It has its ticket, and ends the event when it is dropped.
    type Starting: Starts;

    fn now(&self) -> Nanos;

    /// Called, without a lock, when the house was full and has room again.
    fn has_room_again(&self);
}

pub(crate) trait Starts: Sized {
    /// What takes part in the line of a shard.
    type Task;

    /// Gives the task, if it starts where the others of its shard do.
    fn at_home(self) -> Result<Self::Task, Self>;
}

pub(crate) struct Ledger<C: Context> {
    shards: Box<[Shard<C::Starting>]>,
    capacity: u32,
    /// How much room a shard takes from the pool at once.
    block: u32,
    /// Room that no shard holds. Changed only under the lock of the shard it comes from or goes to.
    pool: AtomicU32,
    fullness: AtomicU8,
    /// Events of earlier eras are to be aborted. Changed only under all locks.
    aborted_before: AtomicU64,
    lanes: Mutex<Lanes>,
    waiters: Waiters,
    idle_waits: Mutex<IdleWaits>,
    room_queue: RoomQueue<PermitTicket<C>>,
    pub(crate) context: C,
}

/// Values of `fullness`. A full house stays *full* until a quarter of it is free, so that a house at the brim is one
/// episode and not thousands; while it is full, room goes straight back to the pool, where every shard finds it.
const ROOMY: u8 = 0;
const FULL: u8 = 1;
const FULL_AND_ANNOUNCED: u8 = 2;

/// Two cache lines, because neighbouring lines are fetched in pairs.
#[repr(align(128))]
struct Shard<S: Starts>(Mutex<State<S>>);

struct State<S: Starts> {
    closed: bool,
    /// The same in all shards.
    era: Era,
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
    slots: Slots<Holder<S>>,
    fresh: Fresh,
    line: Line<S::Task>,
}

type TaskOf<C> = <<C as Context>::Starting as Starts>::Task;

type Locked<'a, C> = MutexGuard<'a, State<<C as Context>::Starting>>;

/// What an abort finds beside an entry.
enum Holder<S> {
    Nothing,
    /// Nothing: the event is [fresh](Fresh).
    Fresh,
    /// Whoever has the event, and ends it.
    Waker(Waker),
    /// The event itself, which starts when its exchange is over, and the key of the one that was recorded next.
    Recorded {
        event: S,
        next: u32,
    },
    /// The keys of the first and the last event that a request has recorded.
    Request {
        first: u32,
        last: u32,
    },
}

/// Events that have started and have neither waited nor ended yet. Most never do but end at once, so the clock is read
/// for the first of them and then for one in a few, and not for each.
#[derive(Default)]
struct Fresh {
    count: u32,
    /// The last reading of the clock, and how many events may still have it.
    since: Nanos,
    left: u8,
}

/// How many events have one reading of the clock at most.
const FRESH_TOGETHER: u8 = 64;

/// A reference to one shard, with a reference count that only the users of this shard touch.
#[repr(align(128))]
pub(crate) struct ShardRef<C: Context> {
    pub(crate) ledger: Arc<Ledger<C>>,
    index: usize,
}

/// What is said of an event when it is accepted.
pub(crate) struct NewEvent {
    pub(crate) name: &'static str,
    pub(crate) stage: Stage,
    pub(crate) location: &'static Location<'static>,
    /// None if it starts now.
    pub(crate) since: Option<Nanos>,
}

/// An open request. Closed once, by [`ShardRef::close_request`].
#[must_use = "a request that is not closed is open for ever"]
pub(crate) struct RequestKey(u32);

/// Who has it is responsible for one entry, and removes it by dropping the ticket.
pub(crate) struct Ticket<C: Context> {
    shard: Arc<ShardRef<C>>,
    key: u32,
    /// Of an event: the era in which it was accepted.
    era: Era,
    ending: Ending,
    /// Whether somebody is woken when the event is to be aborted.
    is_held: bool,
}

/// Says of which event one speaks, without being responsible for it.
#[derive(Clone, Copy)]
pub(crate) struct EventId {
    key: u32,
    era: Era,
}

/// The ticket of a permit: room for one event.
pub(crate) struct PermitTicket<C: Context>(Ticket<C>);

/// The ticket of an accepted event.
pub(crate) struct EventTicket<C: Context>(Ticket<C>);

/// What is to be done for events that begin. Written into its place, because it is slow to move.
pub(crate) struct Begun<S> {
    /// The number of tasks that are to come for those in the line.
    pub(crate) due: usize,
    /// Those that do not start where the others of their shard do.
    pub(crate) elsewhere: Vec<S>,
}

impl<S> Default for Begun<S> {
    fn default() -> Self {
        Self { due: 0, elsewhere: Vec::new() }
    }
}

/// What [`Ledger::look`] found.
pub(crate) enum Look {
    Busy,
    Idle {
        arrivals: u64,
    },
    /// With the account of the same instant.
    Closed(Account),
}

/// The counts of one instant.
pub(crate) struct Account {
    pub(crate) snapshot: Snapshot,
    pub(crate) wrong: BTreeMap<&'static str, Endings>,
    pub(crate) sinks: Vec<SinkSnapshot>,
}

/// What is open, grouped, and the account of the same instant.
pub(crate) struct Holdings {
    pub(crate) open: BTreeMap<(Kind, &'static Location<'static>), Group>,
    pub(crate) account: Account,
}

/// The house at one instant.
struct Instant<'a, S: Starts> {
    shards: Vec<MutexGuard<'a, State<S>>>,
    lanes: Vec<Box<dyn LockedLane + 'a>>,
    /// The lanes, in the same order, and those that are gone.
    list: &'a Lanes,
}

#[derive(Clone, Copy)]
pub(crate) struct Group {
    pub(crate) count: u64,
    pub(crate) oldest: Nanos,
}

impl Group {
    const EMPTY: Self = Self { count: 0, oldest: Nanos::MAX };

    /// The age of the oldest.
    pub(crate) fn age(&self, now: Nanos) -> Duration {
        Duration::from_nanos(now.saturating_sub(self.oldest))
    }

    fn add(&mut self, entry: &Entry) {
        self.add_many(1, entry.since);
    }

    fn add_many(&mut self, count: u64, since: Nanos) {
        self.count += count;
        self.oldest = self.oldest.min(since);
    }
}

impl<C: Context> Ledger<C> {
    /// The capacity is at least 1.
    pub(crate) fn new(capacity: u32, shards: usize, context: C) -> Arc<Self> {
        let block = (capacity / (4 * shards as u32)).clamp(1, MAX_BLOCK);
        Arc::new(Self {
            shards: (0..shards).map(|_| Shard::default()).collect(),
            capacity,
            block,
            pool: AtomicU32::new(capacity),
            fullness: AtomicU8::new(ROOMY),
            aborted_before: AtomicU64::new(0),
            lanes: Mutex::default(),
            waiters: Waiters::default(),
            idle_waits: Mutex::default(),
            room_queue: RoomQueue::default(),
            context,
        })
    }

    pub(crate) fn shard_refs(self: &Arc<Self>) -> Box<[Arc<ShardRef<C>>]> {
        (0..self.shards.len()).map(|index| Arc::new(ShardRef { ledger: Arc::clone(self), index })).collect()
    }

    /// Looks at one instant: is anything open? If not, `may_close` is told how many arrivals there have been, and
    /// answers whether this is the instant at which the ledger closes.
    pub(crate) fn look(&self, may_close: impl FnOnce(u64) -> bool) -> Look {
        let mut closed_lanes = None;
        let look = self.at_one_instant(|now| {
            if now.shards.iter().any(|state| state.closed) {
                return Look::Closed(now.account());
            }
            if now.shards.iter().any(|state| !state.slots.is_empty()) {
                return Look::Busy;
            }
            if now.lanes.iter().any(|lane| !lane.is_empty()) {
                return Look::Busy;
            }
            let arrivals = now.arrivals();
            if !may_close(arrivals) {
                return Look::Idle { arrivals };
            }
            for state in &mut now.shards {
                state.closed = true;
            }
            for lane in &mut now.lanes {
                lane.gate_mut().close(Refused::Drained);
            }
            closed_lanes = Some(now.list.open.clone());
            Look::Closed(now.account())
        });
        if let Some(lanes) = closed_lanes {
            // The other drains end with this one.
            self.waiters.wake_all();
            lanes.iter().for_each(|lane| lane.nudge());
        }
        look
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        self.at_one_instant(|now| now.count())
    }

    pub(crate) fn endings(&self) -> Endings {
        self.at_one_instant(|now| now.endings())
    }

    pub(crate) fn holdings(&self) -> Holdings {
        self.at_one_instant(|now| now.holdings())
    }

    pub(crate) fn sinks(&self) -> Vec<SinkSnapshot> {
        self.at_one_instant(|now| now.sinks())
    }

    /// Lets all events that are pending now be aborted by whoever holds them.
    pub(crate) fn abort(&self) {
        let (wakers, recorded, lanes) = self.at_one_instant(|now| {
            let era = next_era(&mut now.shards);
            // Relaxed: whoever has an event looks here under a lock that is taken after its waker was set, or after it
            // was woken or is dropped by this thread.
            self.aborted_before.store(era, Ordering::Relaxed);
            for lane in &mut now.lanes {
                lane.set_aside(Ending::Aborted);
            }
            let (mut wakers, mut recorded) = (Vec::new(), Vec::new());
            for holder in now.shards.iter_mut().flat_map(|state| state.slots.beside_mut()) {
                match mem::replace(holder, Holder::Nothing) {
                    Holder::Waker(waker) => wakers.push(waker),
                    Holder::Recorded { event, next: _ } => recorded.push(event),
                    Holder::Request { .. } | Holder::Nothing => {}
                    Holder::Fresh => *holder = Holder::Fresh,
                }
            }
            (wakers, recorded, now.list.open.clone())
        });
        wake(wakers);
        for event in recorded {
            let _ = contain(|| drop(event));
        }
        for lane in lanes {
            lane.end_what_is_aside();
        }
    }

    /// What is pending of the events that a wait is for.
    pub(crate) fn pending_of(&self, wait: &IdleWait<C>) -> BTreeMap<(Kind, &'static Location<'static>), Group> {
        let mut pending = BTreeMap::new();
        for state in &self.lock_all() {
            for entry in state.slots.iter().filter(|entry| entry.is_event_before(wait.before)) {
                pending.entry((entry.kind, entry.location)).or_insert(Group::EMPTY).add(entry);
            }
        }
        for (lane, target) in &wait.lanes {
            let lane = lane.lock();
            let count = lane.book().pending_of(*target);
            if count > 0 {
                let key = (lane.book().kind(), lane.book().location);
                pending.entry(key).or_insert(Group::EMPTY).add_many(count, lane.oldest());
            }
        }
        pending
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
    fn lock_all(&self) -> Vec<Locked<'_, C>> {
        self.shards.iter().map(Shard::lock).collect()
    }
}

impl<C: Context> Ledger<C> {
    /// Runs `look` under all locks.
    fn at_one_instant<T>(&self, look: impl FnOnce(&mut Instant<'_, C::Starting>) -> T) -> T {
        let shards = self.lock_all();
        let list = lock(&self.lanes);
        let lanes = list.open.iter().map(|lane| lane.lock()).collect();
        look(&mut Instant { shards, lanes, list: &list })
    }

    pub(crate) fn add_lane(&self, lane: Arc<dyn Lane>) {
        let state = self.shards[0].lock();
        let mut lanes = lock(&self.lanes);
        let mut locked = lane.lock();
        if state.closed {
            locked.gate_mut().close(Refused::Drained);
        }
        if lanes.is_flushing {
            locked.book_mut().flush_from_now_on();
        }
        drop(locked);
        lanes.open.push(lane);
    }

    /// Takes over what a lane has counted, if nothing will happen in it any more.
    pub(crate) fn retire_lane(&self, lane: &Arc<dyn Lane>) {
        let mut state = self.shards[0].lock();
        let mut lanes = lock(&self.lanes);
        let mut locked = lane.lock();
        let Some(place) = lanes.position(lane).filter(|_| locked.book().is_done(locked.gate())) else {
            return;
        };
        locked.book_mut().is_retired = true;
        state.arrivals += locked.arrivals();
        state.accepted += locked.gate().accepted();
        let book = locked.book();
        state.refused += book.refused();
        state.endings += book.endings();
        if book.endings().wrong() > 0 {
            *state.wrong.entry(book.name).or_default() += book.endings().without_completed();
        }
        let last = locked.snapshot();
        lanes.retired.entry(last.name).and_modify(|retired| retired.add(&last)).or_insert(last);
        drop(locked);
        lanes.open.swap_remove(place);
    }

    /// Lets what is in the lanes be delivered at once, and what comes.
    pub(crate) fn flush_lanes(&self) {
        let lanes = {
            let mut lanes = lock(&self.lanes);
            lanes.is_flushing = true;
            lanes.open.clone()
        };
        for lane in lanes {
            lane.lock().book_mut().flush_from_now_on();
            lane.nudge();
        }
    }

    /// Hands what is in the lanes to whoever takes what is not delivered.
    pub(crate) fn give_up_lanes(&self) -> Vec<GivenUp> {
        let lanes = lock(&self.lanes).open.clone();
        lanes.into_iter().filter(|lane| lane.has_taker()).filter_map(|lane| lane.give_up(Ending::Failed)).collect()
    }

    /// Goes on from what a lane has said, without its lock.
    pub(crate) fn lane_left(&self, reached: Vec<Waker>, is_empty: bool) {
        if is_empty {
            self.waiters.wake_all();
        }
        wake(reached);
    }

    /// Counts for the waits that a lane has reached, under the lock of the lane.
    pub(crate) fn lane_reached(&self, left: &lane::Left) -> Vec<Waker> {
        if left.reached.is_empty() {
            return Vec::new();
        }
        let mut waits = lock(&self.idle_waits);
        left.reached.iter().filter_map(|id| waits.lane_reached(*id)).collect()
    }
}

impl<S: Starts> Instant<'_, S> {
    fn holdings(&self) -> Holdings {
        Holdings { open: self.open(), account: self.account() }
    }

    fn account(&self) -> Account {
        Account { snapshot: self.count(), wrong: self.wrong(), sinks: self.sinks() }
    }

    fn count(&self) -> Snapshot {
        let mut now = Snapshot::of(self.endings());
        for state in &self.shards {
            now.open_requests += state.open_requests;
            now.open_guards += state.open_guards;
            now.reserved += state.reserved;
            now.pending += state.pending;
            now.accepted += state.accepted;
            now.refused += state.refused;
        }
        for lane in &self.lanes {
            now.reserved += lane.book().reserved();
            now.pending += lane.pending();
            now.accepted += lane.gate().accepted();
            now.refused += lane.book().refused();
        }
        now
    }

    fn arrivals(&self) -> u64 {
        let in_lanes: u64 = self.lanes.iter().map(|lane| lane.arrivals()).sum();
        self.shards.iter().map(|state| state.arrivals).sum::<u64>() + in_lanes
    }

    fn endings(&self) -> Endings {
        let mut endings = Endings::default();
        self.shards.iter().for_each(|state| endings += state.endings);
        self.lanes.iter().for_each(|lane| endings += lane.book().endings());
        endings
    }

    fn wrong(&self) -> BTreeMap<&'static str, Endings> {
        let mut wrong: BTreeMap<_, Endings> = BTreeMap::new();
        for (name, endings) in self.shards.iter().flat_map(|state| &state.wrong) {
            *wrong.entry(*name).or_default() += *endings;
        }
        for book in self.lanes.iter().map(|lane| lane.book()).filter(|book| book.endings().wrong() > 0) {
            *wrong.entry(book.name).or_default() += book.endings().without_completed();
        }
        wrong
    }

    fn open(&self) -> BTreeMap<(Kind, &'static Location<'static>), Group> {
        if self.shards.iter().all(|state| state.slots.is_empty()) && self.lanes.is_empty() {
            return BTreeMap::new();
        }
        // Hashed first: there may be very many.
        let mut open: HashMap<_, Group> = HashMap::new();
        for entry in self.shards.iter().flat_map(|state| state.slots.iter()) {
            open.entry((entry.kind, entry.location)).or_insert(Group::EMPTY).add(entry);
        }
        for lane in &self.lanes {
            let book = lane.book();
            for permit in book.permits() {
                open.entry((permit.kind, permit.location)).or_insert(Group::EMPTY).add(permit);
            }
            if lane.pending() > 0 {
                let key = (book.kind(), book.location);
                open.entry(key).or_insert(Group::EMPTY).add_many(lane.pending(), lane.oldest());
            }
        }
        open.into_iter().collect()
    }

    fn sinks(&self) -> Vec<SinkSnapshot> {
        let mut by_name = self.list.retired.clone();
        for lane in &self.lanes {
            let snapshot = lane.snapshot();
            by_name.entry(snapshot.name).and_modify(|sink| sink.add(&snapshot)).or_insert(snapshot);
        }
        by_name.into_values().collect()
    }
}

/// Ends the era, and gives the next one.
fn next_era<S: Starts>(shards: &mut [MutexGuard<'_, State<S>>]) -> Era {
    for state in shards.iter_mut() {
        state.era += 1;
    }
    shards[0].era
}

impl<S: Starts> Default for Shard<S> {
    fn default() -> Self {
        Self(Mutex::new(State {
            closed: false,
            era: Era::default(),
            room: 0,
            arrivals: 0,
            open_requests: 0,
            open_guards: 0,
            reserved: 0,
            pending: 0,
            accepted: 0,
            refused: 0,
            endings: Endings::default(),
            wrong: HashMap::new(),
            slots: Slots::default(),
            fresh: Fresh::default(),
            line: Line::default(),
        }))
    }
}

impl<S: Starts> Shard<S> {
    #[inline]
    fn lock(&self) -> MutexGuard<'_, State<S>> {
        lock(&self.0)
    }
}

impl<C: Context> ShardRef<C> {
    /// Opens a request. It is refused when the house is drained: then it is served nevertheless, and counted nowhere.
    ///
    /// No ticket, because whoever opens it keeps the reference to the shard for longer anyway.
    #[inline]
    pub(crate) fn open_request(&self, since: Nanos) -> Result<RequestKey, Refused> {
        let entry = Entry { kind: Kind::Request, location: Location::caller(), since, era: 0 };
        let mut state = self.lock();
        if state.closed {
            return Err(state.refuse(Kind::Request, Refused::Drained));
        }
        Ok(RequestKey(state.enter(entry, Holder::Nothing).0))
    }

    /// Keeps an event of an open request until its exchange is over. If it is over, or the event is to be aborted, then it
    /// starts now.
    pub(crate) fn record(
        &self,
        request: Option<&RequestKey>,
        is_over: impl FnOnce() -> bool,
        id: EventId,
        event: C::Starting,
        begun: &mut Begun<C::Starting>,
    ) {
        let mut state = self.lock();
        let request = request.filter(|_| !self.ledger.is_aborted(id.era) && !is_over());
        self.keep(&mut state, request, id.key, event, begun);
    }

    /// Accepts an event, or refuses it: the one decision.
    #[inline(always)]
    pub(crate) fn accept(self: &Arc<Self>, event: &NewEvent) -> Result<Acceptance<'_, C>, Refused> {
        Ok(Acceptance { shard: self, state: self.admit(event.kind())? })
    }

    #[inline]
    fn keep(
        &self,
        state: &mut State<C::Starting>,
        request: Option<&RequestKey>,
        key: u32,
        event: C::Starting,
        begun: &mut Begun<C::Starting>,
    ) {
        let Some((_, holder)) = request.and_then(|request| state.slots.get_mut(request.0)) else {
            self.begin(state, begun, key, event, None);
            begun.due = state.line.due();
            return;
        };
        let before = match holder {
            Holder::Request { last, .. } => mem::replace(last, key),
            other => {
                *other = Holder::Request { first: key, last: key };
                GONE
            }
        };
        if let Some((_, Holder::Recorded { next, .. })) = state.slots.get_mut(before) {
            *next = key;
        }
        if let Some((_, holder)) = state.slots.get_mut(key) {
            *holder = Holder::Recorded { event, next: GONE };
        }
    }

    /// The exchange of a request is over, and its events begin: from now on the age of each is its own.
    pub(crate) fn start_recorded(&self, request: &RequestKey, now: Option<Nanos>, begun: &mut Begun<C::Starting>) {
        let mut state = self.lock();
        let mut key = match state.slots.get_mut(request.0) {
            Some((_, holder @ Holder::Request { .. })) => match mem::replace(holder, Holder::Nothing) {
                Holder::Request { first, .. } => first,
                _ => GONE,
            },
            _ => GONE,
        };
        while let Some((_, holder)) = state.slots.get_mut(key) {
            let Holder::Recorded { event, next } = mem::replace(holder, Holder::Nothing) else { break };
            self.begin(&mut state, begun, key, event, now);
            key = next;
        }
        begun.due = state.line.due();
    }

    #[inline]
    fn begin(
        &self,
        state: &mut State<C::Starting>,
        begun: &mut Begun<C::Starting>,
        key: u32,
        event: C::Starting,
        now: Option<Nanos>,
    ) {
        state.line_up(event, begun);
        let since = now.unwrap_or_else(|| self.ledger.time_of_fresh(state));
        if let Some((entry, holder)) = state.slots.get_mut(key) {
            entry.since = since;
            entry.advance(Stage::Started);
            *holder = if now.is_some() { Holder::Nothing } else { Holder::Fresh };
        }
    }

    /// Starts an event that has been accepted.
    pub(crate) fn start(&self, event: C::Starting, begun: &mut Begun<C::Starting>) {
        self.lock().start(event, begun);
    }

    /// Changes the line of the events that start here, under the lock of the shard.
    #[inline]
    pub(crate) fn with_line<T>(&self, change: impl FnOnce(&mut Line<TaskOf<C>>) -> T) -> T {
        change(&mut self.lock().line)
    }

    #[inline]
    pub(crate) fn close_request(&self, request: &RequestKey) {
        let mut state = self.lock();
        let removed = state.exit(request.0);
        let is_empty = state.slots.is_empty();
        drop(state);
        if is_empty {
            self.ledger.waiters.wake_all();
        }
        if let Some((_, _, holder)) = removed {
            drop_holder(holder);
        }
    }

    pub(crate) fn guard(
        self: &Arc<Self>,
        location: &'static Location<'static>,
        since: Nanos,
    ) -> Result<Ticket<C>, Refused> {
        let mut state = self.admit(Kind::Guard)?;
        let (key, era) = state.enter(Entry { kind: Kind::Guard, location, since, era: 0 }, Holder::Nothing);
        Ok(self.ticket(key, era))
    }

    pub(crate) fn reserve(
        self: &Arc<Self>,
        location: &'static Location<'static>,
        since: Nanos,
    ) -> Result<PermitTicket<C>, Refused> {
        let mut state = self.admit(Kind::Permit)?;
        let (key, era) = state.enter(Entry { kind: Kind::Permit, location, since, era: 0 }, Holder::Nothing);
        Ok(PermitTicket(self.ticket(key, era)))
    }

    /// Takes room for one event, or a place in the queue for it.
    pub(crate) fn reserve_or_queue(
        self: &Arc<Self>,
        location: &'static Location<'static>,
        since: Nanos,
    ) -> Result<Room<C>, Refused> {
        let entry = Entry { kind: Kind::Permit, location, since, era: 0 };
        let mut state = self.lock();
        if state.closed {
            return Err(state.refuse(Kind::Permit, Refused::Drained));
        }
        if self.ledger.take_room(&mut state) {
            let (key, era) = state.enter(entry, Holder::Nothing);
            return Ok(Room::Granted(PermitTicket(self.ticket(key, era))));
        }
        drop(state);
        let mut shards = self.ledger.lock_all();
        if shards[self.index].closed {
            return Err(shards[self.index].refuse(Kind::Permit, Refused::Drained));
        }
        if self.ledger.take_any_room(&mut shards, self.index) {
            let (key, era) = shards[self.index].enter(entry, Holder::Nothing);
            return Ok(Room::Granted(PermitTicket(self.ticket(key, era))));
        }
        let (number, place) = self.ledger.room_queue.push(entry);
        Ok(Room::Queued(RoomWait { ledger: Arc::clone(&self.ledger), number, place }))
    }

    /// Counts a refusal that was decided elsewhere.
    pub(crate) fn count_refused(&self) {
        self.lock().refused += 1;
    }

    /// Counts an event that was never pending, because it runs in place and only its panic is of interest.
    pub(crate) fn count_panicked(&self, name: &'static str) {
        let mut state = self.lock();
        state.accepted += 1;
        state.endings.count(Ending::Panicked);
        state.wrong.entry(name).or_default().count(Ending::Panicked);
    }

    /// Lets something in, and keeps the lock for its entry. If it needs room that is taken.
    #[inline(always)]
    fn admit(&self, kind: Kind) -> Result<Locked<'_, C>, Refused> {
        let mut state = self.lock();
        if state.closed {
            return Err(state.refuse(kind, Refused::Drained));
        }
        if kind.needs_room() && !self.ledger.take_room(&mut state) {
            drop(state);
            state = self.admit_with_all_room(kind)?;
        }
        Ok(state)
    }

    /// Neither this shard nor the pool has room: takes what lies in other shards, or knows that there is none.
    #[cold]
    fn admit_with_all_room(&self, kind: Kind) -> Result<Locked<'_, C>, Refused> {
        let mut shards = self.ledger.lock_all();
        if shards[self.index].closed {
            return Err(shards[self.index].refuse(kind, Refused::Drained));
        }
        if self.ledger.take_any_room(&mut shards, self.index) {
            return Ok(shards.swap_remove(self.index));
        }
        Err(shards[self.index].refuse(kind, Refused::Full))
    }

    /// Which of the shards it is.
    #[inline]
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    #[inline]
    fn ticket(self: &Arc<Self>, key: u32, era: Era) -> Ticket<C> {
        Ticket { shard: Arc::clone(self), key, era, ending: Ending::Aborted, is_held: false }
    }

    #[inline]
    fn lock(&self) -> Locked<'_, C> {
        self.ledger.shards[self.index].lock()
    }
}

/// Room for an event that is accepted and has to enter, under the lock of its shard: what is done with it is one step with
/// that.
#[must_use = "the room is lost if nothing enters"]
pub(crate) struct Acceptance<'a, C: Context> {
    shard: &'a Arc<ShardRef<C>>,
    state: Locked<'a, C>,
}

impl<C: Context> Acceptance<'_, C> {
    /// Enters it, and lets the lock go.
    #[inline]
    pub(crate) fn enter(mut self, event: NewEvent) -> EventTicket<C> {
        self.ticket(event)
    }

    /// Keeps what `task` makes of its ticket, as [`ShardRef::record`] does.
    #[inline(always)]
    pub(crate) fn record(
        mut self,
        event: NewEvent,
        request: Option<&RequestKey>,
        is_over: impl FnOnce() -> bool,
        task: impl FnOnce(EventTicket<C>) -> C::Starting,
        begun: &mut Begun<C::Starting>,
    ) {
        let ticket = self.ticket(event);
        let key = ticket.0.key;
        let event = task(ticket);
        self.shard.keep(&mut self.state, request.filter(|_| !is_over()), key, event, begun);
    }

    /// Starts what `task` makes of its ticket.
    #[inline(always)]
    pub(crate) fn start(
        mut self,
        event: NewEvent,
        task: impl FnOnce(EventTicket<C>) -> C::Starting,
        begun: &mut Begun<C::Starting>,
    ) {
        let event = task(self.ticket(event));
        self.state.start(event, begun);
    }

    #[inline(always)]
    fn ticket(&mut self, event: NewEvent) -> EventTicket<C> {
        let (key, era) = self.shard.ledger.enter(&mut self.state, event.entry());
        EventTicket(self.shard.ticket(key, era))
    }
}

/// In the place of the key of an entry that was removed.
const GONE: u32 = u32::MAX;

/// In the place of a time that is not known yet.
const STARTS_NOW: Nanos = Nanos::MAX;

impl NewEvent {
    #[inline]
    fn kind(&self) -> Kind {
        Kind::Event { name: self.name, stage: self.stage }
    }

    #[inline]
    fn entry(self) -> Entry {
        Entry { kind: self.kind(), location: self.location, since: self.since.unwrap_or(STARTS_NOW), era: 0 }
    }
}

impl<C: Context> Ledger<C> {
    /// Takes room for one event, from the shard or else from the pool. The lock that comes with `state` is what makes
    /// the pool's relaxed ordering enough: all who must agree on it hold at least one lock in common with its writer.
    #[inline]
    fn take_room(&self, state: &mut State<C::Starting>) -> bool {
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

    /// Takes room for one event from wherever there is some. Under all locks, so that an answer of no is true.
    fn take_any_room(&self, shards: &mut [Locked<'_, C>], index: usize) -> bool {
        let found: u32 = shards.iter_mut().map(|state| mem::take(&mut state.room)).sum();
        self.pool.fetch_add(found, Ordering::Relaxed);
        let has_room = self.take_room(&mut shards[index]);
        if !has_room {
            // Left alone when it is full already: the episode has been announced, or is about to be.
            let _ = self.fullness.compare_exchange(ROOMY, FULL, Ordering::Relaxed, Ordering::Relaxed);
        }
        has_room
    }

    /// Takes room back, under the lock of the shard that gives it. Whether this ends an episode that was announced.
    #[inline]
    fn give_room(&self, state: &mut State<C::Starting>) -> bool {
        state.room += 1;
        let is_full = self.fullness.load(Ordering::Relaxed) != ROOMY;
        let surplus = if is_full {
            state.room
        } else if state.room > 2 * self.block {
            self.block
        } else {
            return false;
        };
        state.room -= surplus;
        let pool = self.pool.fetch_add(surplus, Ordering::Relaxed) + surplus;
        // In a small house a quarter is one event, and each would be an episode of its own.
        let enough = if self.capacity < 8 { self.capacity } else { self.capacity / 4 };
        is_full && pool >= enough && self.fullness.swap(ROOMY, Ordering::Relaxed) == FULL_AND_ANNOUNCED
    }

    /// The time of an event that starts now: at most that of the first fresh one too early.
    #[inline]
    fn time_of_fresh(&self, state: &mut State<C::Starting>) -> Nanos {
        let fresh = &mut state.fresh;
        if fresh.count == 0 || fresh.left == 0 {
            fresh.since = self.context.now();
            fresh.left = FRESH_TOGETHER;
        }
        fresh.count += 1;
        fresh.left -= 1;
        fresh.since
    }

    /// Enters what has been admitted.
    #[inline(always)]
    fn enter(&self, state: &mut State<C::Starting>, mut entry: Entry) -> (u32, Era) {
        if entry.since != STARTS_NOW {
            return state.enter(entry, Holder::Nothing);
        }
        entry.since = self.time_of_fresh(state);
        state.enter(entry, Holder::Fresh)
    }

    /// Whether an event of this era is to be aborted.
    #[inline]
    fn is_aborted(&self, era: Era) -> bool {
        era < self.aborted_before.load(Ordering::Relaxed)
    }
}

impl<S: Starts> State<S> {
    #[inline]
    fn start(&mut self, event: S, begun: &mut Begun<S>) {
        self.line_up(event, begun);
        begun.due = self.line.due();
    }

    #[inline]
    fn line_up(&mut self, event: S, begun: &mut Begun<S>) {
        match event.at_home() {
            Ok(task) => self.line.push(task),
            Err(event) => begun.elsewhere.push(event),
        }
    }
}

impl<S: Starts> State<S> {
    /// Gives the key of the entry, and the era in which it enters.
    #[inline(always)]
    fn enter(&mut self, mut entry: Entry, holder: Holder<S>) -> (u32, Era) {
        self.arrivals += 1;
        entry.era = self.era;
        match entry.kind {
            Kind::Request => self.open_requests += 1,
            Kind::Guard => self.open_guards += 1,
            Kind::Permit => self.reserved += 1,
            Kind::Event { .. } => {
                self.pending += 1;
                self.accepted += 1;
            }
        }
        (self.slots.insert(entry, holder), self.era)
    }

    /// Removes an entry, and gives what it was and whoever holds it.
    #[inline(always)]
    fn exit(&mut self, key: u32) -> Option<(Kind, Era, Holder<S>)> {
        let (&mut Entry { kind, era, .. }, holder) = self.slots.get_mut(key)?;
        let holder = mem::replace(holder, Holder::Nothing);
        self.slots.remove(key);
        match kind {
            Kind::Request => self.open_requests -= 1,
            Kind::Guard => self.open_guards -= 1,
            Kind::Permit => self.reserved -= 1,
            Kind::Event { .. } => self.pending -= 1,
        }
        self.fresh.count -= u32::from(matches!(holder, Holder::Fresh));
        Some((kind, era, holder))
    }

    /// Counts what somebody loses by the refusal. A request is served nevertheless, and so is what has no guard.
    fn refuse(&mut self, kind: Kind, refused: Refused) -> Refused {
        self.refused += u64::from(kind.needs_room());
        refused
    }
}

impl<C: Context> Drop for Ticket<C> {
    fn drop(&mut self) {
        if self.key != GONE {
            self.shard.leave(self.key, self.ending);
        }
    }
}

/// What is left to do, without a lock, when an entry has been removed. Written into its place, because it is slow to move.
struct Left<C: Context> {
    holder: Holder<C::Starting>,
    /// Who has waited for the room of the entry, and the key of the permit that is theirs.
    granted: Option<(Arc<RoomPlace<PermitTicket<C>>>, u32)>,
    has_room_again: bool,
    /// The waits that have come to their end.
    idle: Vec<Waker>,
    is_empty: bool,
}

impl<C: Context> Default for Left<C> {
    #[inline]
    fn default() -> Self {
        Self { holder: Holder::Nothing, granted: None, has_room_again: false, idle: Vec::new(), is_empty: false }
    }
}

impl<C: Context> Left<C> {
    #[inline]
    fn runs_user_code(&self) -> bool {
        let Self { holder, granted, has_room_again, idle, is_empty } = self;
        let is_held = matches!(holder, Holder::Waker(_) | Holder::Recorded { .. });
        is_held || granted.is_some() || *has_room_again || !idle.is_empty() || *is_empty
    }
}

impl<C: Context> ShardRef<C> {
    fn leave(self: &Arc<Self>, key: u32, ending: Ending) {
        let mut left = Left::default();
        self.remove(&mut self.lock(), key, ending, &mut left);
        self.finish(left);
    }

    /// Removes an entry, counts the ending if it is an event's, and hands on its room.
    #[inline(always)]
    fn remove(&self, state: &mut State<C::Starting>, key: u32, ending: Ending, left: &mut Left<C>) {
        let ledger = &*self.ledger;
        let Some((kind, era, holder)) = state.exit(key) else { return };
        left.holder = holder;
        if let Kind::Event { name, .. } = kind {
            state.endings.count(ending);
            if ending != Ending::Completed {
                state.wrong.entry(name).or_default().count(ending);
            }
            if era != state.era {
                left.idle = lock(&ledger.idle_waits).event_ended(era);
            }
        }
        if kind.needs_room() {
            left.granted = ledger.room_queue.pop(|permit| state.enter(permit, Holder::Nothing).0);
            if left.granted.is_none() {
                left.has_room_again = ledger.give_room(state);
            }
        }
        left.is_empty = state.slots.is_empty();
    }

    #[inline(always)]
    fn finish(self: &Arc<Self>, left: Left<C>) {
        let Left { holder, granted, has_room_again, idle, is_empty } = left;
        if let Some((place, key)) = granted {
            // Whoever has left the queue meanwhile gives it back, and the next one has it.
            drop(place.grant(PermitTicket(self.ticket(key, 0))));
        }
        if is_empty {
            self.ledger.waiters.wake_all();
        }
        if !idle.is_empty() {
            wake(idle);
        }
        drop_holder(holder);
        if has_room_again {
            self.ledger.context.has_room_again();
        }
    }
}

impl<C: Context> PermitTicket<C> {
    pub(crate) fn shard(&self) -> &Arc<ShardRef<C>> {
        &self.0.shard
    }

    /// The permit becomes an event of this shard. It has its room, so neither that nor the ledger's being open is in
    /// question. A permit that was waited for may be in another shard: then both are locked, in their order.
    pub(crate) fn accept(mut self, shard: &Arc<ShardRef<C>>, event: NewEvent) -> EventTicket<C> {
        let from = &self.0.shard;
        let mut first = (from.index < shard.index).then(|| from.lock());
        let mut state = shard.lock();
        let mut last = (from.index > shard.index).then(|| from.lock());
        first.as_mut().or(last.as_mut()).unwrap_or(&mut state).exit(self.0.key);
        let (key, era) = shard.ledger.enter(&mut state, event.entry());
        drop((first, state, last));
        self.0.shard = Arc::clone(shard);
        (self.0.key, self.0.era) = (key, era);
        EventTicket(self.0)
    }
}

impl<C: Context> EventTicket<C> {
    pub(crate) fn shard(&self) -> &Arc<ShardRef<C>> {
        &self.0.shard
    }

    #[inline]
    pub(crate) fn id(&self) -> EventId {
        EventId { key: self.0.key, era: self.0.era }
    }

    /// Ends the event and takes the next one from the line of its shard, as dropping the ticket and
    /// [`with_line`](ShardRef::with_line) would. That is called under the lock of the shard.
    #[inline]
    pub(crate) fn end_and_take<T>(&mut self, take: impl FnOnce(&mut Line<TaskOf<C>>) -> T) -> T {
        let Ticket { shard, key, ending, .. } = &mut self.0;
        let mut left = Left::default();
        let mut state = shard.lock();
        shard.remove(&mut state, mem::replace(key, GONE), *ending, &mut left);
        if !left.runs_user_code() {
            return take(&mut state.line);
        }
        // That comes before the next event is taken, which would wait for it.
        drop(state);
        shard.finish(left);
        shard.with_line(take)
    }

    /// The event has a thread of its own: nobody can abort it any more.
    pub(crate) fn block(&self) {
        let mut state = self.0.shard.lock();
        let holder = state.slots.get_mut(self.0.key).map(|(entry, holder)| {
            entry.advance(Stage::Blocking);
            mem::replace(holder, Holder::Nothing)
        });
        drop(state);
        if let Some(holder) = holder {
            drop_holder(holder);
        }
    }

    /// Whether the event is to be aborted. If it is not when asked with a lock that the holder takes when it is woken,
    /// the holder will be woken for it.
    #[inline]
    pub(crate) fn is_aborted(&self) -> bool {
        self.0.shard.ledger.is_aborted(self.0.era)
    }

    pub(crate) fn name(&self) -> &'static str {
        self.source().0
    }

    /// The name of the event, and where it was recorded. They are in the entry alone, because most events end without being
    /// asked for them.
    pub(crate) fn source(&self) -> (&'static str, &'static Location<'static>) {
        match self.0.shard.lock().slots.get_mut(self.0.key) {
            Some((&mut Entry { kind: Kind::Event { name, .. }, location, .. }, _)) => (name, location),
            _ => ("", Location::caller()),
        }
    }

    /// Lets `waker` be woken when the event is to be aborted; false if it is already. Nothing is to be done if somebody
    /// holds the event.
    pub(crate) fn hold(&mut self, waker: &Waker) -> bool {
        if mem::replace(&mut self.0.is_held, true) {
            return true;
        }
        let waker = waker.clone();
        let mut state = self.0.shard.lock();
        // An abort stores its era under this lock before it takes the wakers.
        let may_hold = !self.is_aborted();
        let mut unused = Holder::Waker(waker);
        if let Some((_, holder)) = state.slots.get_mut(self.0.key).filter(|_| may_hold) {
            mem::swap(holder, &mut unused);
        }
        state.fresh.count -= u32::from(matches!(unused, Holder::Fresh));
        drop(state);
        drop_holder(unused);
        may_hold
    }

    /// The event has ended so, which is counted when the ticket is dropped. If nothing was said it counts as aborted.
    #[inline]
    pub(crate) fn end_as(&mut self, ending: Ending) {
        self.0.ending = ending;
    }
}

/// What [`ShardRef::reserve_or_queue`] gives.
pub(crate) enum Room<C: Context> {
    Granted(PermitTicket<C>),
    Queued(RoomWait<C>),
}

/// A place in the queue for room, left when dropped.
pub(crate) struct RoomWait<C: Context> {
    ledger: Arc<Ledger<C>>,
    number: u64,
    place: Arc<RoomPlace<PermitTicket<C>>>,
}

impl<C: Context> RoomWait<C> {
    /// Gives the permit, once.
    pub(crate) fn poll(&mut self, waker: &Waker) -> Poll<PermitTicket<C>> {
        self.place.poll(waker)
    }
}

impl<C: Context> Drop for RoomWait<C> {
    fn drop(&mut self) {
        let left = self.place.leave();
        self.ledger.room_queue.remove(self.number);
        // A permit that was granted and not taken gives its room to the next.
        let _ = contain(|| drop(left));
    }
}

/// A wait until the events that were accepted before it began have ended; given up when dropped.
pub(crate) struct IdleWait<C: Context> {
    ledger: Arc<Ledger<C>>,
    id: u64,
    before: Era,
    /// The lanes that are waited for, each until so many of its events have ended.
    lanes: Vec<(Arc<dyn Lane>, u64)>,
}

impl<C: Context> IdleWait<C> {
    /// For all events.
    pub(crate) fn begin(ledger: &Arc<Ledger<C>>) -> Self {
        ledger
            .at_one_instant(|now| {
                let before = next_era(&mut now.shards);
                let in_shards: u64 = now.shards.iter().map(|state| state.pending).sum();
                let mut waits = lock(&ledger.idle_waits);
                let id = waits.next_id();
                let lanes = now.lanes.iter_mut().zip(&now.list.open);
                let lanes: Vec<_> = lanes.filter_map(|(locked, lane)| wait_for(lane, &mut **locked, id)).collect();
                waits.begin(id, before, in_shards + lanes.len() as u64);
                Self { ledger: Arc::clone(ledger), id, before, lanes }
            })
            .hurried()
    }

    /// For the events of one lane.
    pub(crate) fn for_lane(ledger: &Arc<Ledger<C>>, lane: Arc<dyn Lane>) -> Self {
        let mut locked = lane.lock();
        let mut waits = lock(&ledger.idle_waits);
        let id = waits.next_id();
        let lanes: Vec<_> = wait_for(&lane, &mut *locked, id).into_iter().collect();
        // No event of a shard is before the first era.
        waits.begin(id, 0, lanes.len() as u64);
        drop(waits);
        drop(locked);
        Self { ledger: Arc::clone(ledger), id, before: 0, lanes }.hurried()
    }

    fn hurried(self) -> Self {
        self.lanes.iter().for_each(|(lane, _)| lane.nudge());
        self
    }

    pub(crate) fn poll(&self, waker: &Waker) -> Poll<()> {
        let mut new = Some(waker.clone());
        let answer = lock(&self.ledger.idle_waits).poll(self.id, &mut new);
        let _ = contain(|| drop(new));
        answer
    }
}

impl<C: Context> Drop for IdleWait<C> {
    fn drop(&mut self) {
        for (lane, _) in &self.lanes {
            lane.lock().book_mut().forget_wait(self.id);
        }
        let left = lock(&self.ledger.idle_waits).end(self.id);
        let _ = contain(|| drop(left));
    }
}

/// Enters a wait into a lane in which something is pending, under the lock of the lane.
fn wait_for(lane: &Arc<dyn Lane>, locked: &mut dyn LockedLane, id: u64) -> Option<(Arc<dyn Lane>, u64)> {
    (locked.pending() > 0).then(|| (Arc::clone(lane), locked.wait(id)))
}

/// A waker is user code, and so is its destructor.
#[inline]
fn drop_holder<S>(holder: Holder<S>) {
    if matches!(holder, Holder::Waker(_) | Holder::Recorded { .. }) {
        let _ = contain(|| drop(holder));
    }
}

/// The index of this thread, from which its shard follows. Threads that live at the same time rarely share one.
#[inline]
fn thread_index() -> usize {
    // Not one of the atomics of the ledger: its models choose their shards.
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

/// The shard of this thread. Their number is a power of two.
#[inline]
pub(crate) fn of_this_thread<C: Context>(shards: &[Arc<ShardRef<C>>]) -> &Arc<ShardRef<C>> {
    &shards[thread_index() & (shards.len() - 1)]
}

/// One place in the list of waiters, left when dropped.
pub(crate) struct Waiter<C: Context> {
    ledger: Arc<Ledger<C>>,
    id: u64,
}

impl<C: Context> Waiter<C> {
    pub(crate) fn new(ledger: &Arc<Ledger<C>>) -> Self {
        Self { ledger: Arc::clone(ledger), id: ledger.waiters.next_id() }
    }

    /// Is woken, once, when a shard has run empty or the ledger has closed. To be called before the look after which
    /// one waits.
    pub(crate) fn register(&self, waker: &Waker) {
        self.ledger.waiters.register(self.id, waker);
    }
}

impl<C: Context> Drop for Waiter<C> {
    fn drop(&mut self) {
        self.ledger.waiters.leave(self.id);
    }
}
