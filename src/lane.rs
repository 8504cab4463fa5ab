//! What the ledger knows of sinks: each has a *lane*, beside the shards, with a lock of its own.
//!
//! A value in a lane is an event like any other, but it has no ticket: its lane counts it. A lane is locked after the
//! shards and after the list of lanes, so that a look under all locks sees the lanes at the same instant. Its events end
//! in the order in which they were accepted, which is how a number says what was "accepted before".

use std::{collections::BTreeMap, mem, panic::Location, sync::Arc};

use crate::{
    entry::{Entry, Kind, Nanos, Slots, Stage},
    refused::Refused,
    snapshot::{Ending, Endings, SinkSnapshot},
};

pub(crate) trait Lane: Send + Sync {
    fn lock(&self) -> Box<dyn LockedLane + '_>;

    /// Lets whoever delivers look for what has changed.
    fn nudge(&self);

    /// Whether somebody takes what is not delivered.
    fn has_taker(&self) -> bool;

    /// Ends what was set aside. To be called without a lock: it runs user code.
    fn end_what_is_aside(self: Arc<Self>);

    /// Takes what is pending away from the sink, and ends it. It has ended when this returns, for nobody else can take it
    /// meanwhile. To be called without a lock: it runs user code.
    fn give_up(self: Arc<Self>, ending: Ending) -> Option<GivenUp>;
}

/// Events of a lane that its sink has not taken in time.
pub(crate) struct GivenUp {
    pub(crate) name: &'static str,
    pub(crate) location: &'static Location<'static>,
    pub(crate) count: u64,
    pub(crate) last_error: Option<String>,
}

pub(crate) trait LockedLane {
    fn gate(&self) -> &Gate;

    fn gate_mut(&mut self) -> &mut Gate;

    fn book(&self) -> &LaneBook;

    fn book_mut(&mut self) -> &mut LaneBook;

    /// When the oldest of what is pending came, or earlier.
    fn oldest(&self) -> Nanos;

    /// Puts all that is pending where it is not delivered any more, to be ended so.
    fn set_aside(&mut self, ending: Ending);

    fn pending(&self) -> u64 {
        self.book().pending(self.gate())
    }

    /// Nothing is here that a drain waits for.
    fn is_empty(&self) -> bool {
        self.book().is_empty(self.gate())
    }

    /// Tells two looks whether anything came in between.
    fn arrivals(&self) -> u64 {
        self.gate().accepted + self.book().permit_arrivals
    }

    /// Enters a wait until all that is here has ended. Gives the number of events that this takes.
    fn wait(&mut self, id: u64) -> u64 {
        let target = self.gate().accepted;
        self.book_mut().wait(id, target);
        target
    }

    fn snapshot(&self) -> SinkSnapshot {
        self.book().snapshot(self.gate())
    }
}

/// The lanes of a ledger.
#[derive(Default)]
pub(crate) struct Lanes {
    pub(crate) open: Vec<Arc<dyn Lane>>,
    /// A drain waits, or has waited: nothing waits for others that it could be delivered with, in no lane.
    pub(crate) is_flushing: bool,
    /// What those had counted that are gone, by name.
    pub(crate) retired: BTreeMap<&'static str, SinkSnapshot>,
}

impl Lanes {
    pub(crate) fn position(&self, lane: &Arc<dyn Lane>) -> Option<usize> {
        self.open.iter().position(|other| Arc::as_ptr(other).addr() == Arc::as_ptr(lane).addr())
    }
}

/// Admission to a lane: all that a send touches.
pub(crate) struct Gate {
    /// How many more are accepted: `capacity = room + withheld + permits + pending events`.
    room: u64,
    accepted: u64,
    /// The room of a lane that is closed.
    withheld: u64,
    /// Why nothing is accepted any more.
    closed: Option<Refused>,
}

impl Gate {
    pub(crate) fn new(capacity: u32) -> Self {
        Self { room: capacity.into(), accepted: 0, withheld: 0, closed: None }
    }

    /// Accepts an event, or refuses it.
    #[inline]
    pub(crate) fn accept(&mut self) -> Result<(), Refused> {
        self.take_room()?;
        self.accepted += 1;
        Ok(())
    }

    /// Takes room for an event or a permit.
    #[inline]
    pub(crate) fn take_room(&mut self) -> Result<(), Refused> {
        if self.room == 0 {
            return Err(self.closed.unwrap_or(Refused::Full));
        }
        self.room -= 1;
        Ok(())
    }

    /// Accepts the event for which a permit has taken room.
    pub(crate) fn accept_reserved(&mut self) {
        self.accepted += 1;
    }

    pub(crate) fn give_room(&mut self, count: u64) {
        *if self.closed.is_some() { &mut self.withheld } else { &mut self.room } += count;
    }

    pub(crate) fn close(&mut self, refused: Refused) {
        self.closed.get_or_insert(refused);
        self.withheld += mem::take(&mut self.room);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.is_some()
    }

    pub(crate) fn accepted(&self) -> u64 {
        self.accepted
    }
}

/// What a lane counts beside its gate.
pub(crate) struct LaneBook {
    pub(crate) name: &'static str,
    pub(crate) location: &'static Location<'static>,
    capacity: u64,
    /// Nobody delivers any more.
    pub(crate) is_dead: bool,
    pub(crate) is_retired: bool,
    /// The refusal that begins an episode of "full" is announced.
    full_is_announced: bool,
    refused: u64,
    endings: Endings,
    permits: Slots<()>,
    permit_arrivals: u64,
    /// Those who wait until so many events have ended.
    waits: Vec<(u64, u64)>,
    /// Up to this event none waits for others that it could be delivered with.
    flush_to: u64,
    /// How often somebody has asked for delivery at once.
    pub(crate) hurries: u64,
    delivered_batches: u64,
    failed_attempts: u64,
    last_error: Option<String>,
}

/// What follows when events of a lane have ended, or a permit has gone.
#[derive(Default)]
pub(crate) struct Left {
    /// The waits for idleness that this lane has reached.
    pub(crate) reached: Vec<u64>,
    pub(crate) is_empty: bool,
    pub(crate) is_done: bool,
    /// An episode of "full" that was announced is over.
    pub(crate) has_room_again: bool,
}

impl LaneBook {
    pub(crate) fn new(name: &'static str, location: &'static Location<'static>, capacity: u32) -> Self {
        Self {
            capacity: capacity.into(),
            name,
            location,
            is_dead: false,
            is_retired: false,
            full_is_announced: false,
            refused: 0,
            endings: Endings::default(),
            permits: Slots::default(),
            permit_arrivals: 0,
            waits: Vec::new(),
            flush_to: 0,
            hurries: 0,
            delivered_batches: 0,
            failed_attempts: 0,
            last_error: None,
        }
    }

    /// Counts a refusal, and tells whether somebody should say that the lane is full: once an episode.
    pub(crate) fn refuse(&mut self, refused: Refused) -> bool {
        self.refused += 1;
        refused == Refused::Full && !mem::replace(&mut self.full_is_announced, true)
    }

    pub(crate) fn reserve(&mut self, location: &'static Location<'static>, since: Nanos) -> u32 {
        self.permit_arrivals += 1;
        self.permits.insert(Entry { kind: Kind::Permit, era: 0, location, since }, ())
    }

    pub(crate) fn use_permit(&mut self, permit: u32) {
        self.permits.remove(permit);
    }

    pub(crate) fn release(&mut self, gate: &mut Gate, permit: u32) -> Left {
        self.permits.remove(permit);
        gate.give_room(1);
        self.left(gate)
    }

    /// Ends the oldest events.
    pub(crate) fn end(&mut self, gate: &mut Gate, count: u64, ending: Ending) -> Left {
        gate.give_room(count);
        self.endings.count_many(ending, count);
        let ended = self.endings.total();
        let mut left = self.left(gate);
        self.waits.retain(|&(target, id)| {
            let is_reached = target <= ended;
            left.reached.extend(is_reached.then_some(id));
            !is_reached
        });
        left
    }

    fn left(&mut self, gate: &Gate) -> Left {
        // An episode ends when a quarter is free, so that a lane at the brim is one episode and not thousands.
        let has_room_again = self.full_is_announced && gate.room >= self.capacity.div_ceil(4);
        self.full_is_announced &= !has_room_again;
        Left { reached: Vec::new(), is_empty: self.is_empty(gate), is_done: self.is_done(gate), has_room_again }
    }

    fn is_empty(&self, gate: &Gate) -> bool {
        self.pending(gate) == 0 && self.permits.is_empty()
    }

    /// Nothing will be counted here any more, but refusals.
    pub(crate) fn is_done(&self, gate: &Gate) -> bool {
        self.is_dead && self.is_empty(gate)
    }

    fn pending(&self, gate: &Gate) -> u64 {
        self.capacity - gate.room - gate.withheld - self.reserved()
    }

    pub(crate) fn kind(&self) -> Kind {
        Kind::Event { name: self.name, stage: Stage::Queued }
    }

    pub(crate) fn capacity(&self) -> u64 {
        self.capacity
    }

    pub(crate) fn reserved(&self) -> u64 {
        self.permits.len()
    }

    pub(crate) fn refused(&self) -> u64 {
        self.refused
    }

    pub(crate) fn endings(&self) -> Endings {
        self.endings
    }

    pub(crate) fn permits(&self) -> impl Iterator<Item = &Entry> {
        self.permits.iter()
    }

    /// How many of the first `count` events are pending.
    pub(crate) fn pending_of(&self, count: u64) -> u64 {
        count.saturating_sub(self.endings.total())
    }

    /// Lets all that is here, and all that comes, be delivered at once.
    pub(crate) fn flush_from_now_on(&mut self) {
        self.flush_to = u64::MAX;
        self.hurries += 1;
    }

    pub(crate) fn is_flushing(&self) -> bool {
        self.flush_to > self.endings.total()
    }

    fn wait(&mut self, id: u64, target: u64) {
        self.waits.push((target, id));
        self.flush_to = self.flush_to.max(target);
        self.hurries += 1;
    }

    pub(crate) fn forget_wait(&mut self, id: u64) {
        self.waits.retain(|(_, other)| *other != id);
    }

    pub(crate) fn attempt_succeeded(&mut self) {
        self.delivered_batches += 1;
        self.last_error = None;
    }

    /// Gives back what it replaces, to be dropped without a lock.
    pub(crate) fn attempt_failed(&mut self, error: String) -> Option<String> {
        self.failed_attempts += 1;
        self.last_error.replace(error)
    }

    pub(crate) fn last_error(&self) -> Option<String> {
        self.last_error.clone()
    }

    fn snapshot(&self, gate: &Gate) -> SinkSnapshot {
        SinkSnapshot {
            name: self.name,
            reserved: self.reserved(),
            pending: self.pending(gate),
            accepted: gate.accepted,
            endings: self.endings,
            refused: self.refused,
            delivered_batches: self.delivered_batches,
            failed_attempts: self.failed_attempts,
            last_error: self.last_error(),
        }
    }
}
