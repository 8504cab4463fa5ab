//! A source for the models.

use std::{
    mem,
    panic::Location,
    sync::{Arc, Weak},
};

use tokio::time::Instant;

use crate::{
    error::TrackError,
    registry::{
        Detach, Detached, Ending, EventCounts, EventFailures, Flush, Group, LockedSource, Open, Phase, Registry,
        RunningSink, SinkSnapshot, Snapshot, Source,
        models::{OBSERVED, World},
    },
    util::{
        reentrancy,
        sync::{Mutex, MutexGuard, lock, seeded, seeded_gap},
    },
};

/// A queue of values, of which only the number is kept. It does what `sink::queue` does.
pub(super) struct Queue {
    this: Weak<Self>,
    registry: Arc<Registry<()>>,
    state: Mutex<State>,
}

struct State {
    phase: Phase,
    queued: u64,
    in_flight: u64,
    pending: u64,
    permits: u64,
    ever_opened: u64,
    generation: u64,
    accepted: u64,
    ended: EventCounts,
    rejected: u64,
}

/// A batch that is being delivered.
pub(super) struct Delivery {
    generation: u64,
}

impl Queue {
    pub(super) fn new(world: &World) -> Arc<Self> {
        let queue = Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            registry: Arc::clone(&world.registry),
            state: Mutex::new(State {
                phase: Phase::Open,
                queued: 0,
                in_flight: 0,
                pending: 0,
                permits: 0,
                ever_opened: 0,
                generation: 0,
                accepted: 0,
                ended: EventCounts::default(),
                rejected: 0,
            }),
        });
        world.registry.add_source(queue.as_source());
        queue
    }

    pub(super) fn as_source(self: &Arc<Self>) -> Arc<dyn Source> {
        Arc::clone(self) as Arc<dyn Source>
    }

    fn may_enter(&self, state: &State) -> bool {
        let is_inside = || reentrancy::is_inside(self.registry.id());
        state.phase == Phase::Open || (state.phase == Phase::Closing && is_inside())
    }

    pub(super) fn send(&self, world: &World) -> Result<(), TrackError> {
        let was_drained = world.is_drained();
        let mut state = lock(&self.state);
        if !self.may_enter(&state) {
            state.rejected += 1;
            return Err(TrackError::Closed);
        }
        seeded_gap!("a value is counted under a later lock than the phase is looked at", state = lock(&self.state));
        state.accepted += 1;
        state.pending += 1;
        state.queued += 1;
        drop(state);
        world.expect(!was_drained, "something was accepted after the drain");
        world.expect(!world.is_drained(), "the drain was over while something was open");
        world.accepted.fetch_add(1, OBSERVED);
        Ok(())
    }

    pub(super) fn reserve(&self) -> Result<(), TrackError> {
        let state = lock(&self.state);
        if state.phase == Phase::Closing && self.may_enter(&state) {
            drop(state);
            return self.registry.reopen_and(|| self.take_permit(lock(&self.state)));
        }
        self.take_permit(state)
    }

    fn take_permit(&self, mut state: MutexGuard<'_, State>) -> Result<(), TrackError> {
        if !self.may_enter(&state) {
            state.rejected += 1;
            return Err(TrackError::Closed);
        }
        state.permits += 1;
        state.ever_opened += 1;
        Ok(())
    }

    pub(super) fn send_reserved(&self, world: &World) {
        let mut state = lock(&self.state);
        state.permits -= 1;
        state.accepted += 1;
        state.pending += 1;
        state.queued += 1;
        let is_last = state.permits == 0;
        drop(state);
        world.accepted.fetch_add(1, OBSERVED);
        world.expect(!world.is_drained(), "the drain was over while something was open");
        if is_last && !seeded!("the last permit of a source wakes nobody") {
            self.registry.wake_waiters();
        }
    }

    /// Takes a batch for delivery.
    pub(super) fn next(&self) -> Option<Delivery> {
        let mut state = lock(&self.state);
        if state.queued == 0 {
            return None;
        }
        state.in_flight = mem::take(&mut state.queued);
        Some(Delivery { generation: state.generation })
    }

    /// A batch was delivered.
    pub(super) fn answered(&self, delivery: &Delivery) {
        let mut state = lock(&self.state);
        if state.generation != delivery.generation {
            return;
        }
        let count = mem::take(&mut state.in_flight);
        drop(state);
        self.end(count, Ending::Completed);
    }

    pub(super) fn deliver(&self) {
        while let Some(delivery) = self.next() {
            self.answered(&delivery);
        }
    }

    fn end(&self, count: u64, ending: Ending) {
        let mut state = lock(&self.state);
        state.pending -= count;
        seeded_gap!("the end of a value is counted under a later lock", state = lock(&self.state));
        state.ended.add(ending, count);
        let is_last = state.pending == 0;
        drop(state);
        if is_last && !seeded!("the last value of a source wakes nobody") {
            self.registry.wake_waiters();
        }
    }

    pub(super) fn ended(&self) -> EventCounts {
        lock(&self.state).ended
    }
}

impl Source for Queue {
    fn lock(&self) -> Box<dyn LockedSource + '_> {
        Box::new(Locked { queue: self, state: lock(&self.state) })
    }
}

struct Locked<'a> {
    queue: &'a Queue,
    state: MutexGuard<'a, State>,
}

impl LockedSource for Locked<'_> {
    fn counts(&self) -> Snapshot {
        self.snapshot().counts()
    }

    fn snapshot(&self) -> SinkSnapshot {
        let State { permits, pending, accepted, ended, rejected, .. } = *self.state;
        SinkSnapshot {
            name: "source",
            reserved: permits,
            pending,
            accepted,
            ended,
            rejected,
            rejected_closed: rejected,
            delivered_batches: 0,
            failed_attempts: 0,
            last_error: None,
        }
    }

    fn failures(&self) -> Option<&EventFailures> {
        None
    }

    fn ever_opened(&self) -> u64 {
        self.state.ever_opened
    }

    fn running_sink(&self) -> Option<RunningSink> {
        None
    }

    fn add_open(&self, _: &mut Open) {}

    fn set_phase(&mut self, phase: Phase) {
        self.state.phase = phase;
    }

    fn flush(&mut self, _: Flush) {}

    fn detach(&mut self, reason: Detach) -> Option<Detached> {
        let queue = self.queue.this.upgrade()?;
        let count = mem::take(&mut self.state.queued) + mem::take(&mut self.state.in_flight);
        if count == 0 {
            return None;
        }
        self.state.generation += 1;
        let ending = if reason == Detach::Abort { Ending::Aborted } else { Ending::Failed };
        Some(Detached {
            name: "source",
            location: Location::caller(),
            group: Group { count, oldest: Instant::now() },
            end: Box::new(move || queue.end(count, ending)),
        })
    }
}
