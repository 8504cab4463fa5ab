//! [`State`]: the state of a queue. [`Locked`]: its access for the registry.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    mem,
    panic::Location,
    task::Waker,
};

use slab::Slab;
use tokio::time::Instant;

use crate::{
    error::TrackError,
    registry::{
        Detach, Detached, Ending, EventCounts, EventFailures, Flush, Group, Kind, LockedSource, Open, Phase,
        RunningSink, SinkSnapshot, Snapshot, Source, Stage,
    },
    sink::{
        batch::Batch,
        flight::{Ack, Flight, Piece},
        queue::EventQueue,
    },
    util::sync::MutexGuard,
};

pub(super) struct State<E> {
    pub(super) phase: Phase,
    /// The error for senders, when nothing delivers any more.
    pub(super) dead: Option<TrackError>,
    /// Whether all senders and permits have been dropped.
    pub(super) is_abandoned: bool,
    /// The number of owners of user code: the worker, the closure, the deliveries.
    pub(super) owners: usize,
    /// The number of deliveries that run. Some may have been detached.
    pub(super) running: usize,
    /// When the latest of them began.
    pub(super) running_since: Instant,
    /// When the registry was closed.
    pub(super) closed_at: Option<Instant>,

    pub(super) queue: VecDeque<E>,
    /// The sizes of the values in the queue, if batches have a limit in bytes, and their sum.
    pub(super) sizes: VecDeque<usize>,
    pub(super) bytes: u128,
    /// The acknowledgements of queued values that are awaited, with the number of the value.
    pub(super) acks: VecDeque<(u64, Ack)>,
    /// When the first queued value was sent, or earlier.
    pub(super) queue_since: Instant,
    /// The length of `queue` at which the worker is notified. `None` while it need not be.
    pub(super) wake_at: Option<usize>,
    /// The batches that are being delivered.
    pub(super) flights: Vec<Flight<E>>,

    pub(super) pending: u64,
    pub(super) accepted: u64,
    pub(super) ended: EventCounts,
    pub(super) rejected: u64,
    pub(super) rejected_closed: u64,
    /// Whether a rejection was logged. The next one is logged after a quarter of the capacity was free.
    pub(super) full_is_logged: bool,
    pub(super) permits: Slab<(&'static Location<'static>, Instant)>,
    /// The number of permits ever opened.
    pub(super) ever_opened: u64,
    /// Senders that wait for capacity, in the order in which they came. `None` after the waker was called.
    pub(super) waiting_senders: BTreeMap<u64, Option<Waker>>,
    /// Senders that were granted a slot and have not taken it yet.
    pub(super) granted: BTreeSet<u64>,
    pub(super) next_waiter: u64,

    /// For each group of detached values that have not ended, the number of the first one.
    pub(super) detached: Vec<u64>,
    /// Values with a smaller number are due.
    pub(super) flush_to: u64,
    /// The number of drains that have begun. When it changes, waits for the next attempt end.
    pub(super) drains: u64,
    /// The wakers of flushes. Each waits until all values with a smaller number have ended.
    pub(super) waiting: Vec<(u64, Waker)>,
    pub(super) delivered_batches: u64,
    pub(super) failed_attempts: u64,
    pub(super) last_error: Option<String>,
    pub(super) failures: Option<EventFailures>,
    /// The number of values that the metrics have counted as accepted.
    pub(super) metered: u64,
}

/// Values that will not be delivered.
pub(super) struct DetachedValues<E> {
    pub(super) first: u64,
    pub(super) pieces: Vec<Piece<E>>,
    pub(super) ending: Ending,
}

impl<E> DetachedValues<E> {
    pub(super) fn count(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.batch.len() as u64).sum()
    }
}

impl<E> State<E> {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            phase: Phase::Open,
            dead: None,
            is_abandoned: false,
            owners: 0,
            running: 0,
            running_since: now,
            closed_at: None,
            queue: VecDeque::new(),
            sizes: VecDeque::new(),
            bytes: 0,
            acks: VecDeque::new(),
            queue_since: now,
            wake_at: Some(1),
            flights: Vec::new(),
            pending: 0,
            accepted: 0,
            ended: EventCounts::default(),
            rejected: 0,
            rejected_closed: 0,
            full_is_logged: false,
            permits: Slab::new(),
            ever_opened: 0,
            waiting_senders: BTreeMap::new(),
            granted: BTreeSet::new(),
            next_waiter: 0,
            detached: Vec::new(),
            flush_to: 0,
            drains: 0,
            waiting: Vec::new(),
            delivered_batches: 0,
            failed_attempts: 0,
            last_error: None,
            failures: None,
            metered: 0,
        }
    }

    /// Returns the number of slots that are taken.
    #[inline]
    pub(super) fn taken(&self) -> u64 {
        self.pending + (self.permits.len() + self.granted.len()) as u64
    }

    pub(super) fn flight(&self, first: u64) -> Option<&Flight<E>> {
        self.flights.iter().find(|flight| flight.first == first)
    }

    /// Returns the number of the first value in the queue, or of the next value if the queue is empty.
    pub(super) fn first_in_queue(&self) -> u64 {
        self.accepted - self.queue.len() as u64
    }

    /// Returns a number. All values with a smaller number have ended.
    pub(super) fn ended_to(&self) -> u64 {
        let flights = self.flights.iter().filter(|flight| flight.is_open()).map(|flight| flight.first);
        flights.chain(self.detached.iter().copied()).fold(self.first_in_queue(), u64::min)
    }

    pub(super) fn flush(&mut self, flush: Flush) {
        let to = match flush {
            Flush::Now => self.accepted,
            Flush::FromNowOn => {
                self.drains += 1;
                u64::MAX
            }
        };
        self.flush_to = self.flush_to.max(to);
    }

    /// Returns the number of values that the metrics have not counted as accepted. They count as counted then.
    pub(super) fn not_metered(&mut self) -> u64 {
        self.accepted - mem::replace(&mut self.metered, self.accepted)
    }

    /// Grants free slots to the senders that have waited longest. Returns their wakers, to be called without the lock.
    pub(super) fn grant_slots(&mut self, capacity: u64) -> Vec<Waker> {
        let mut wakers = Vec::new();
        while self.taken() < capacity {
            let Some((waiter, waker)) = self.waiting_senders.pop_first() else { break };
            self.granted.insert(waiter);
            wakers.extend(waker);
        }
        wakers
    }

    /// Removes values from the front of the queue: at most `max_len` values and `max_bytes` bytes, but at least one
    /// value.
    pub(super) fn take_from_queue(&mut self, max_len: usize, max_bytes: usize) -> Piece<E> {
        let first = self.first_in_queue();
        let mut count = self.queue.len().min(max_len);
        if !self.sizes.is_empty() {
            let mut bytes = 0;
            let fitting = self.sizes.iter().take(count).take_while(|size| {
                bytes += **size as u128;
                bytes <= max_bytes as u128
            });
            count = fitting.count().max(1);
            self.bytes -= self.sizes.drain(..count).map(|size| size as u128).sum::<u128>();
        }
        let values = self.queue.drain(..count).collect();
        let awaited = self.acks.iter().take_while(|(number, _)| *number < first + count as u64).count();
        let acks = self.acks.drain(..awaited).map(|(number, ack)| ((number - first) as usize, ack)).collect();
        Piece::new(Batch::new(values), acks)
    }

    /// Removes all values, if there are any. The caller ends them.
    pub(super) fn detach(&mut self, ending: Ending) -> Option<DetachedValues<E>> {
        let first = self.ended_to();
        // The worker removes the flights when it has dropped their deliveries.
        self.flights.sort_by_key(|flight| flight.first);
        let mut pieces: Vec<_> = self.flights.iter_mut().flat_map(|flight| mem::take(&mut flight.pieces)).collect();
        if !self.queue.is_empty() {
            pieces.push(self.take_from_queue(usize::MAX, usize::MAX));
        }
        self.detach_pieces(first, pieces, ending)
    }

    pub(super) fn detach_pieces(
        &mut self,
        first: u64,
        pieces: Vec<Piece<E>>,
        ending: Ending,
    ) -> Option<DetachedValues<E>> {
        (!pieces.is_empty()).then(|| {
            self.detached.push(first);
            DetachedValues { first, pieces, ending }
        })
    }

    /// Returns when the oldest value was sent, or earlier.
    pub(super) fn oldest(&self) -> Instant {
        self.flights.iter().map(|flight| flight.since).min().unwrap_or(self.queue_since)
    }
}

pub(super) struct Locked<'a, E> {
    pub(super) queue: &'a EventQueue<E>,
    pub(super) state: MutexGuard<'a, State<E>>,
}

impl<E: Send + Sync + 'static> Source for EventQueue<E> {
    fn lock(&self) -> Box<dyn LockedSource + '_> {
        Box::new(Locked { queue: self, state: self.lock() })
    }
}

impl<E: Send + Sync + 'static> LockedSource for Locked<'_, E> {
    fn counts(&self) -> Snapshot {
        let State { pending, accepted, ended, rejected, rejected_closed, permits, .. } = &*self.state;
        Snapshot {
            reserved: permits.len() as u64,
            pending: *pending,
            accepted: *accepted,
            ended: *ended,
            rejected: *rejected,
            rejected_closed: *rejected_closed,
            ..Snapshot::default()
        }
    }

    fn snapshot(&self) -> SinkSnapshot {
        let Snapshot { reserved, pending, accepted, ended, rejected, rejected_closed, .. } = self.counts();
        let State { delivered_batches, failed_attempts, last_error, .. } = &*self.state;
        SinkSnapshot {
            name: self.queue.name,
            reserved,
            pending,
            accepted,
            ended,
            rejected,
            rejected_closed,
            delivered_batches: *delivered_batches,
            failed_attempts: *failed_attempts,
            last_error: last_error.clone(),
        }
    }

    fn running_sink(&self) -> Option<RunningSink> {
        let State { owners, running, flights, running_since, closed_at, .. } = &*self.state;
        let is_detached = *running > 0 && flights.iter().all(|flight| flight.pieces.is_empty());
        let since = if is_detached { Some(*running_since) } else { *closed_at };
        let since = since.filter(|_| *owners > 0)?;
        Some(RunningSink { name: self.queue.name, location: self.queue.location, since })
    }

    fn failures(&self) -> Option<&EventFailures> {
        self.state.failures.as_ref()
    }

    fn ever_opened(&self) -> u64 {
        self.state.ever_opened
    }

    fn add_open(&self, open: &mut Open) {
        let mut add = |kind, location, group| {
            open.entry((kind, location, None)).and_modify(|sum: &mut Group| sum.add(group)).or_insert(group);
        };
        for (_, &(location, oldest)) in &self.state.permits {
            add(Kind::Permit, location, Group { count: 1, oldest });
        }
        if self.state.pending > 0 {
            let kind = Kind::Event { name: self.queue.name, stage: Stage::Queued };
            add(kind, self.queue.location, Group { count: self.state.pending, oldest: self.state.oldest() });
        }
    }

    fn set_phase(&mut self, phase: Phase) {
        self.state.phase = phase;
        if phase == Phase::Closed {
            self.state.closed_at = Some(Instant::now());
        }
        // The worker wakes the senders that wait for capacity, and ends when the queue is closed.
        self.queue.changed.notify_one();
    }

    fn flush(&mut self, flush: Flush) {
        self.state.flush(flush);
        self.queue.changed.notify_one();
    }

    fn detach(&mut self, reason: Detach) -> Option<Detached> {
        let ending = match reason {
            Detach::Abort => Ending::Aborted,
            Detach::TimedOut if self.queue.on_undelivered.is_some() => Ending::Failed,
            Detach::TimedOut => return None,
        };
        let queue = self.queue.this.upgrade()?;
        let oldest = self.state.oldest();
        let detached = self.state.detach(ending)?;
        self.queue.changed.notify_one();
        Some(Detached {
            name: queue.name,
            location: queue.location,
            group: Group { count: detached.count(), oldest },
            end: Box::new(move || queue.end_detached(detached)),
        })
    }
}
