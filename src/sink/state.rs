//! The state of a queue, and how the registry sees it.

use std::{collections::VecDeque, mem, panic::Location, sync::MutexGuard, task::Waker};

use slab::Slab;
use tokio::time::Instant;

use crate::{
    registry::{
        Detach, Detached, Ending, EventCounts, EventFailures, Flush, Group, Kind, LockedSource, Open, Phase,
        RunningSink, SinkSnapshot, Snapshot, Source, Stage,
    },
    sink::{batch::Batch, queue::EventQueue},
};

pub(super) struct State<E> {
    pub(super) phase: Phase,
    /// Nothing delivers any more.
    pub(super) is_dead: bool,
    /// Its counts have been taken over by the registry.
    pub(super) is_retired: bool,
    /// All senders and permits are gone.
    pub(super) is_abandoned: bool,
    /// The batch that is being delivered: the oldest values.
    pub(super) in_flight: Option<Batch<E>>,
    pub(super) in_flight_since: Instant,
    /// Code of the sink runs for a batch, which may have been detached meanwhile.
    pub(super) is_delivering: bool,
    /// When the registry was closed.
    pub(super) closed_at: Option<Instant>,
    pub(super) queue: VecDeque<E>,
    /// When the first in the queue was sent, or earlier.
    pub(super) queue_since: Instant,
    /// The length of `queue` at which the worker is notified.
    pub(super) wake_at: usize,
    pub(super) pending: u64,
    pub(super) accepted: u64,
    pub(super) ended: EventCounts,
    pub(super) rejected: u64,
    pub(super) rejected_closed: u64,
    /// Whether a rejection was logged. Until a quarter of the capacity is free that is one episode, and logged once.
    pub(super) full_is_logged: bool,
    pub(super) permits: Slab<(&'static Location<'static>, Instant)>,
    /// How many permits there ever were.
    pub(super) ever_opened: u64,
    /// How many times values were detached.
    pub(super) generation: u64,
    /// How many of these have not ended.
    pub(super) open_detached: usize,
    /// Up to this value nothing waits for more.
    pub(super) flush_to: u64,
    /// How often a drain, a flush or a wait has asked for delivery at once.
    pub(super) flushes: u64,
    /// Flushes that wait until so many values have ended.
    pub(super) waiting: Vec<(u64, Waker)>,
    pub(super) delivered_batches: u64,
    pub(super) failed_attempts: u64,
    pub(super) last_error: Option<String>,
    pub(super) failures: Option<EventFailures>,
    /// How many values the metrics have counted as accepted.
    pub(super) metered: u64,
}

/// Values that nothing delivers any more.
pub(super) struct DetachedBatches<E> {
    pub(super) batches: Vec<Batch<E>>,
    pub(super) count: u64,
    pub(super) ending: Ending,
}

impl<E> State<E> {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            phase: Phase::Open,
            is_dead: false,
            is_retired: false,
            is_abandoned: false,
            in_flight: None,
            in_flight_since: now,
            is_delivering: false,
            closed_at: None,
            queue: VecDeque::new(),
            queue_since: now,
            wake_at: 1,
            pending: 0,
            accepted: 0,
            ended: EventCounts::default(),
            rejected: 0,
            rejected_closed: 0,
            full_is_logged: false,
            permits: Slab::new(),
            ever_opened: 0,
            generation: 0,
            open_detached: 0,
            flush_to: 0,
            flushes: 0,
            waiting: Vec::new(),
            delivered_batches: 0,
            failed_attempts: 0,
            last_error: None,
            failures: None,
            metered: 0,
        }
    }

    /// How much of the capacity is taken.
    #[inline]
    pub(super) fn taken(&self) -> u64 {
        self.pending + self.permits.len() as u64
    }

    pub(super) fn flush(&mut self, flush: Flush) {
        let to = if flush == Flush::Now { self.accepted } else { u64::MAX };
        self.flush_to = self.flush_to.max(to);
        self.flushes += 1;
    }

    /// How many values the metrics have not counted as accepted.
    pub(super) fn not_metered(&mut self) -> u64 {
        self.accepted - mem::replace(&mut self.metered, self.accepted)
    }

    /// Takes all values out, for the caller to end, if there are any.
    pub(super) fn detach(&mut self, ending: Ending) -> Option<DetachedBatches<E>> {
        let rest: Vec<_> = mem::take(&mut self.queue).into();
        let rest = (!rest.is_empty()).then(|| Batch::new(rest));
        let batches: Vec<_> = self.in_flight.take().into_iter().chain(rest).collect();
        self.detach_batches(batches, ending)
    }

    pub(super) fn detach_in_flight(&mut self, ending: Ending) -> Option<DetachedBatches<E>> {
        let batches: Vec<_> = self.in_flight.take().into_iter().collect();
        self.detach_batches(batches, ending)
    }

    pub(super) fn detach_batches(&mut self, batches: Vec<Batch<E>>, ending: Ending) -> Option<DetachedBatches<E>> {
        let count: u64 = batches.iter().map(|batch| batch.len() as u64).sum();
        (count > 0).then(|| {
            self.open_detached += 1;
            self.generation += 1;
            DetachedBatches { batches, count, ending }
        })
    }

    /// When the oldest value was sent, or earlier.
    pub(super) fn oldest(&self) -> Instant {
        if self.in_flight.is_some() { self.in_flight_since } else { self.queue_since }
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
        let State { is_dead, is_delivering, in_flight, in_flight_since, closed_at, .. } = &*self.state;
        let is_abandoned = *is_delivering && in_flight.is_none();
        let since = if is_abandoned { Some(*in_flight_since) } else { *closed_at };
        let since = since.filter(|_| !is_dead)?;
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
        // The worker ends when the queue is closed.
        self.queue.changed.notify_one();
    }

    fn flush(&mut self, flush: Flush) {
        self.state.flush(flush);
        self.queue.changed.notify_one();
    }

    fn retire(&mut self) {
        self.state.is_retired = true;
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
            group: Group { count: detached.count, oldest },
            end: Box::new(move || queue.end_detached(|_| Some(detached))),
        })
    }
}
