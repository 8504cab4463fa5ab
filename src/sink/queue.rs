//! [`EventQueue`]: the values that are sent to one sink, until they are delivered.
//!
//! # Invariants, and why they hold
//!
//! 1. *Values and counts change together*, under the one lock of the queue. A batch that is being delivered stays here
//!    until its delivery is acknowledged: the attempt has a clone. So an attempt cannot lose a value.
//! 2. *Each value ends once.* The code that ends values removes them from the queue or the flight first. An attempt
//!    whose batch was detached meanwhile finds no values, and ends none.
//! 3. *Detached values end before another batch is delivered.*
//! 4. *No lost wake-up.* The worker looks at the queue and sets `wake_at` under one lock. The send that makes the queue
//!    that long notifies the worker. `Notify` keeps a notification for which nobody waits yet.
//! 5. *No sender waits while a slot is free.* The code that frees a slot grants it to the sender that has waited
//!    longest, under the same lock. A slot that was granted and is not taken passes on to the next sender.

use std::{
    mem,
    panic::Location,
    sync::{Arc, Weak},
    task::{Poll, Waker},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::{
    context::Shard,
    error::TrackError,
    metrics,
    registry::{Ending, Flush, LockedSource, Open, Phase, SinkSnapshot, Source},
    sink::{
        batch::Undelivered,
        flight::Ack,
        state::{Locked, State},
    },
    util::{
        panic::catch,
        reentrancy,
        sync::{self, Mutex, MutexGuard, seeded, seeded_gap},
    },
};

/// The closure that takes values which were not delivered.
pub(super) type OnUndelivered<E> = Box<dyn Fn(Undelivered<E>) + Send + Sync>;

/// Returns the size of a value in bytes.
pub(super) type Size<E> = Box<dyn Fn(&E) -> usize + Send + Sync>;

/// The settings by which values become batches.
pub(super) struct Batching<E> {
    pub(super) max_batch: usize,
    pub(super) max_bytes: Option<(usize, Size<E>)>,
    pub(super) max_delay: Duration,
    pub(super) capacity: u64,
    pub(super) max_in_flight: usize,
}

pub(super) struct EventQueue<E> {
    pub(super) shard: Arc<Shard>,
    pub(super) name: &'static str,
    pub(super) location: &'static Location<'static>,
    pub(super) batching: Batching<E>,
    pub(super) on_undelivered: Option<OnUndelivered<E>>,
    /// Notified when the worker should look.
    pub(super) changed: Notify,
    /// For the closure that ends detached values later.
    pub(super) this: Weak<Self>,
    state: OwnLines<E>,
}

/// Cache lines that hold nothing but the state: the fields before it are read by all threads.
#[repr(align(128))]
struct OwnLines<E>(Mutex<State<E>>);

impl<E: Send + Sync + 'static> EventQueue<E> {
    pub(super) fn new(
        shard: Arc<Shard>,
        name: &'static str,
        location: &'static Location<'static>,
        batching: Batching<E>,
        on_undelivered: Option<OnUndelivered<E>>,
    ) -> Arc<Self> {
        let queue = Arc::new_cyclic(|this| Self {
            shard,
            name,
            location,
            batching,
            on_undelivered,
            changed: Notify::new(),
            this: Weak::clone(this),
            state: OwnLines(Mutex::new(State::new())),
        });
        queue.shard.registry.add_source(queue.as_source());
        queue
    }

    pub(super) fn as_source(self: &Arc<Self>) -> Arc<dyn Source> {
        Arc::clone(self) as Arc<dyn Source>
    }

    /// Returns the number with which code of this sink is marked, see [`reentrancy`].
    pub(super) fn id(&self) -> usize {
        (&raw const *self).addr()
    }

    pub(super) fn snapshot(&self) -> SinkSnapshot {
        Locked { queue: self, state: self.lock() }.snapshot()
    }

    // Sending.

    /// Accepts a value, or returns it.
    #[inline]
    pub(super) fn try_send(&self, event: E) -> Result<(), (E, TrackError)> {
        let size = self.size(&event);
        let mut state = self.lock();
        if let Err(error) = self.admit(&state) {
            self.reject(state, error);
            return Err((event, error));
        }
        seeded_gap!("a value is counted under a later lock than the phase is looked at", state = self.lock());
        self.push(state, event, size, None);
        Ok(())
    }

    /// Returns the size of a value, if batches have a limit in bytes. Runs a closure of the user, so without the lock.
    #[inline]
    pub(super) fn size(&self, event: &E) -> Option<usize> {
        self.batching.max_bytes.as_ref().map(|(_, size)| size(event))
    }

    #[inline]
    fn admit(&self, state: &State<E>) -> Result<(), TrackError> {
        self.admit_phase(state)?;
        if state.taken() >= self.batching.capacity { Err(TrackError::Full) } else { Ok(()) }
    }

    #[inline]
    fn admit_phase(&self, state: &State<E>) -> Result<(), TrackError> {
        if state.phase != Phase::Open || state.dead.is_some() { self.admit_not_open(state) } else { Ok(()) }
    }

    #[cold]
    fn admit_not_open(&self, state: &State<E>) -> Result<(), TrackError> {
        match (state.phase, state.dead) {
            (Phase::Closed, _) => Err(TrackError::Closed),
            (_, Some(error)) => Err(error),
            (Phase::Closing, _) if !reentrancy::is_inside(self.shard.registry.id()) => Err(TrackError::Closed),
            (Phase::Open | Phase::Closing, None) => Ok(()),
        }
    }

    #[inline]
    fn push(&self, mut state: MutexGuard<'_, State<E>>, event: E, size: Option<usize>, ack: Option<Ack>) {
        if state.queue.is_empty() {
            // Only for the first value in the queue, because reading the clock is slow.
            state.queue_since = Instant::now();
        }
        let number = state.accepted;
        state.accepted += 1;
        state.pending += 1;
        state.queue.push_back(event);
        if let Some(size) = size {
            state.sizes.push_back(size);
            state.bytes += size as u128;
        }
        if let Some(ack) = ack {
            state.acks.push_back((number, ack));
        }
        let should_notify = state.wake_at.is_some_and(|len| state.queue.len() >= len || self.is_due(&state));
        if should_notify {
            state.wake_at = None;
        }
        drop(state);
        if should_notify {
            self.changed.notify_one();
        }
    }

    #[cold]
    fn reject(&self, mut state: MutexGuard<'_, State<E>>, error: TrackError) {
        state.rejected += 1;
        // A sink whose service has failed for good rejects with `Closed` as well, and no drain is the reason.
        state.rejected_closed += u64::from(error == TrackError::Closed && state.phase != Phase::Open);
        let should_log = error == TrackError::Full && !mem::replace(&mut state.full_is_logged, true);
        drop(state);
        metrics::rejected(self.name, error);
        if should_log {
            tracing::warn!(
                sink = self.name,
                capacity = self.batching.capacity,
                "events are rejected: the sink is at capacity; see whether its deliveries fail or are slow"
            );
        }
    }

    pub(super) fn try_reserve(&self, location: &'static Location<'static>) -> Result<usize, TrackError> {
        let open = |state: &mut State<E>| self.admit(state).map(|()| self.take_permit(state, location));
        let permit = self.reopen_and(|state| self.admit(state).is_ok(), open);
        permit.inspect_err(|error| self.reject(self.lock(), *error))
    }

    /// Takes a slot, or waits for one. `waiter` is the number of this sender, from an earlier poll.
    pub(super) fn poll_reserve(
        &self,
        waiter: &mut Option<u64>,
        location: &'static Location<'static>,
        waker: &Waker,
    ) -> Poll<Result<usize, TrackError>> {
        // Wakers are cloned, dropped and woken without the lock: that is code of their executor.
        let (mut waker, mut replaced, mut to_wake) = (Some(waker.clone()), None, Vec::new());
        let before = *waiter;
        let has_slot = |state: &State<E>| {
            self.admit_phase(state).is_ok()
                && (state.taken() < self.batching.capacity
                    || before.is_some_and(|waiter| state.granted.contains(&waiter)))
        };
        let permit = self.reopen_and(has_slot, |state| {
            if has_slot(state) {
                waiter.take().map(|waiter| state.granted.remove(&waiter));
                return Ok(Some(self.take_permit(state, location)));
            }
            let is_inside = || reentrancy::is_inside(self.id()).then_some(TrackError::Full);
            if let Some(error) = self.admit_phase(state).err().or_else(is_inside) {
                if let Some(waiter) = waiter.take() {
                    replaced = state.waiting_senders.remove(&waiter).flatten();
                    state.granted.remove(&waiter);
                }
                to_wake = state.grant_slots(self.batching.capacity);
                return Err(error);
            }
            let waiter = *waiter.get_or_insert_with(|| {
                state.next_waiter += 1;
                state.next_waiter
            });
            replaced = state.waiting_senders.insert(waiter, waker.take()).flatten();
            Ok(None)
        });
        drop(replaced);
        to_wake.into_iter().for_each(Waker::wake);
        match permit.inspect_err(|error| self.reject(self.lock(), *error)) {
            Ok(Some(permit)) => Poll::Ready(Ok(permit)),
            Ok(None) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// Runs `open` under the lock. If it opens a permit while a drain is closing, the phase is set back to `Open` in
    /// the same step, because a permit keeps a drain from closing.
    fn reopen_and<T>(&self, has_slot: impl Fn(&State<E>) -> bool, open: impl FnOnce(&mut State<E>) -> T) -> T {
        let mut state = self.lock();
        if state.phase == Phase::Closing && has_slot(&state) {
            // The lock of a shard is taken before that of the queue.
            drop(state);
            return self.shard.registry.reopen_and(|| open(&mut self.lock()));
        }
        open(&mut state)
    }

    fn take_permit(&self, state: &mut State<E>, location: &'static Location<'static>) -> usize {
        state.ever_opened += 1;
        let permit = state.permits.insert((location, Instant::now()));
        if state.wake_at.is_some() && self.is_due(state) {
            self.changed.notify_one();
        }
        permit
    }

    /// Removes a sender that waited. A slot that it was granted passes on.
    pub(super) fn stop_waiting(&self, waiter: u64) {
        let mut state = self.lock();
        let waker = state.waiting_senders.remove(&waiter);
        let has_slot = state.granted.remove(&waiter) && !seeded!("a slot that is not taken is lost");
        let wakers = if has_slot { state.grant_slots(self.batching.capacity) } else { Vec::new() };
        drop(state);
        drop(waker);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Makes a value of the permit. That needs neither capacity nor an open queue.
    pub(super) fn send_reserved(self: &Arc<Self>, permit: usize, event: E, size: Option<usize>, ack: Option<Ack>) {
        let mut state = self.lock();
        state.permits.remove(permit);
        let (is_dead, is_last) = (state.dead.is_some(), state.permits.is_empty());
        self.push(state, event, size, ack);
        if is_dead {
            self.end_all(Ending::Aborted);
        }
        if is_last && !seeded!("the last permit of a source wakes nobody") {
            self.shard.registry.wake_waiters();
        }
    }

    pub(super) fn release(self: &Arc<Self>, permit: usize) {
        let mut state = self.lock();
        state.permits.remove(permit);
        let is_last = state.permits.is_empty();
        self.after_end(state, is_last);
    }

    /// Called when all senders and permits have been dropped.
    pub(super) fn abandon(self: &Arc<Self>) {
        self.lock().is_abandoned = true;
        self.changed.notify_one();
        self.retire_if_done();
    }

    /// Returns whether a batch is due before `max_delay`.
    pub(super) fn is_due(&self, state: &State<E>) -> bool {
        let Batching { max_batch, max_bytes, max_delay: _, capacity, max_in_flight: _ } = &self.batching;
        !state.queue.is_empty()
            && (state.queue.len() >= *max_batch
                || max_bytes.as_ref().is_some_and(|(max, _)| state.bytes >= *max as u128)
                || state.taken() >= *capacity
                || !state.acks.is_empty() && state.flights.is_empty()
                || state.flush_to > state.first_in_queue()
                || state.is_abandoned)
    }

    /// Runs code of the user, under the mark of this sink: calls that would wait for the sink return an error instead.
    pub(super) fn enter<T>(&self, run: impl FnOnce() -> T) -> Result<T, String> {
        reentrancy::enter(self.shard.registry.id(), || reentrancy::enter(self.id(), || catch(run)))
    }

    // Waiting.

    /// Makes the queued values due. Returns the number of the next value, which does not belong to them.
    pub(super) fn flush_now(&self) -> u64 {
        let mut state = self.lock();
        state.flush(Flush::Now);
        let target = state.accepted;
        drop(state);
        self.changed.notify_one();
        target
    }

    /// Returns whether all values with a smaller number have ended. If not, it registers the waker.
    pub(super) fn poll_ended(&self, target: u64, waker: &Waker) -> bool {
        let waker = waker.clone();
        let mut state = self.lock();
        let has_ended = state.ended_to() >= target;
        seeded_gap!("a flush registers after its look", state = self.lock());
        // A flush that is polled many times registers one waker for each task.
        if !has_ended && !state.waiting.iter().any(|(at, other)| *at == target && other.will_wake(&waker)) {
            state.waiting.push((target, waker));
        }
        has_ended
    }

    /// Returns the pending values, for the report of a flush.
    pub(super) fn open(&self) -> Open {
        let mut open = Open::new();
        Locked { queue: self, state: self.lock() }.add_open(&mut open);
        open
    }
}

impl<E> EventQueue<E> {
    #[inline]
    pub(super) fn lock(&self) -> MutexGuard<'_, State<E>> {
        sync::lock(&self.state.0)
    }
}

/// A drain may drop the queue. A destructor of the user that panics must not end that drain.
impl<E> Drop for EventQueue<E> {
    fn drop(&mut self) {
        let on_undelivered = self.on_undelivered.take();
        let _ = catch(|| drop(on_undelivered));
    }
}
