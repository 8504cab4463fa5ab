//! [`EventQueue`]: the values that are sent to one sink, until they are delivered.
//!
//! # Invariants, and why they hold
//!
//! 1. *Values and counts change together*, under the one lock of the queue. A batch that is being delivered stays here
//!    until it is acknowledged: the attempt has a clone. So nothing that the sink does, or does not do, can lose it.
//! 2. *Each value ends once.* The code that ends values takes them out of here first. An attempt whose batch was
//!    detached meanwhile finds another generation, and ends nothing.
//! 3. *Values end in order.* While detached values have not ended, nothing is delivered.
//! 4. *The worker does not sleep through a value.* It looks at the queue and sets `wake_at` under the lock; the send
//!    that makes the queue so long notifies it, and a notification without a waiter is kept.

use std::{
    mem,
    panic::Location,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::Waker,
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::{
    context::Shard,
    error::TrackError,
    metrics,
    registry::{Ending, EventFailures, Flush, LockedSource, Open, Phase, SinkSnapshot, Source},
    sink::{
        batch::{Batch, Undelivered},
        state::{DetachedBatches, Locked, State},
    },
    util::{
        panic::catch,
        reentrancy,
        text::{OneLine, one_line},
    },
};

/// Takes what is not delivered.
pub(crate) type OnUndelivered<E> = Box<dyn Fn(Undelivered<E>) + Send + Sync>;

/// How values become batches.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Batching {
    pub(crate) max_batch: usize,
    pub(crate) max_delay: Duration,
    pub(crate) capacity: u64,
}

pub(crate) struct EventQueue<E> {
    pub(crate) shard: Arc<Shard>,
    pub(crate) name: &'static str,
    pub(super) location: &'static Location<'static>,
    batching: Batching,
    pub(super) on_undelivered: Option<OnUndelivered<E>>,
    /// Notified when the worker should look.
    pub(super) changed: Notify,
    /// For what ends detached values later.
    pub(super) this: Weak<Self>,
    state: OwnLines<E>,
}

/// Cache lines that hold nothing but the state: what stands before it is read by everybody.
#[repr(align(128))]
struct OwnLines<E>(Mutex<State<E>>);

/// A batch to deliver.
pub(crate) struct Due<E> {
    pub(crate) batch: Batch<E>,
    generation: u64,
}

/// How the delivery of a batch ended.
pub(crate) enum Answer {
    Delivered,
    /// It is not to be attempted again.
    NotDelivered,
    /// It was detached meanwhile.
    Detached,
}

/// What the worker does next.
pub(crate) enum Next<E> {
    Deliver(Due<E>),
    /// Wait until something changes, or so much time has passed.
    Wait(Option<Duration>),
    /// Nothing is left, and nothing will come.
    End,
}

impl<E: Send + Sync + 'static> EventQueue<E> {
    pub(crate) fn new(
        shard: Arc<Shard>,
        name: &'static str,
        location: &'static Location<'static>,
        batching: Batching,
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

    fn as_source(self: &Arc<Self>) -> Arc<dyn Source> {
        Arc::clone(self) as Arc<dyn Source>
    }

    pub(crate) fn snapshot(&self) -> SinkSnapshot {
        Locked { queue: self, state: self.lock() }.snapshot()
    }

    /// Accepts a value, or returns it.
    #[inline]
    pub(crate) fn send(&self, event: E) -> Result<(), (E, TrackError)> {
        let mut state = self.lock();
        if let Err(error) = self.admit(&state) {
            self.reject(state, error);
            return Err((event, error));
        }
        state.accepted += 1;
        state.pending += 1;
        self.push(state, event);
        Ok(())
    }

    #[inline]
    fn admit(&self, state: &State<E>) -> Result<(), TrackError> {
        if state.phase != Phase::Open || state.is_dead {
            self.admit_not_open(state)?;
        }
        if state.taken() >= self.batching.capacity { Err(TrackError::Full) } else { Ok(()) }
    }

    #[cold]
    fn admit_not_open(&self, state: &State<E>) -> Result<(), TrackError> {
        match state.phase {
            Phase::Closed => Err(TrackError::Closed),
            _ if state.is_dead => Err(TrackError::NoRuntime),
            Phase::Closing if !reentrancy::is_inside(self.shard.registry.id()) => Err(TrackError::Closed),
            Phase::Open | Phase::Closing => Ok(()),
        }
    }

    #[inline]
    fn push(&self, mut state: MutexGuard<'_, State<E>>, event: E) {
        if state.queue.is_empty() {
            // The clock is read for the first value of a queue only.
            state.queue_since = Instant::now();
        }
        state.queue.push_back(event);
        let should_notify = state.queue.len() == state.wake_at;
        drop(state);
        if should_notify {
            self.changed.notify_one();
        }
    }

    #[cold]
    fn reject(&self, mut state: MutexGuard<'_, State<E>>, error: TrackError) {
        state.rejected += 1;
        state.rejected_closed += u64::from(error == TrackError::Closed);
        let should_log = error == TrackError::Full && !mem::replace(&mut state.full_is_logged, true);
        let is_retired = state.is_retired;
        drop(state);
        if is_retired {
            self.shard.count_rejected(error);
        }
        metrics::rejected(self.name, error);
        if should_log {
            tracing::warn!(
                sink = self.name,
                capacity = self.batching.capacity,
                "events are rejected: as many wait for their sink as its capacity allows; see whether it fails or is slow"
            );
        }
    }

    pub(crate) fn reserve(&self, location: &'static Location<'static>) -> Result<usize, TrackError> {
        let mut state = self.lock();
        let permit = if state.phase == Phase::Closing && self.admit(&state).is_ok() {
            // A permit keeps a drain from closing, so it opens the registry again. The lock of a shard comes first.
            drop(state);
            let permit = self.shard.registry.reopen_and(|| self.take_permit(&mut self.lock(), location));
            state = self.lock();
            permit
        } else {
            self.take_permit(&mut state, location)
        };
        if let Err(error) = permit {
            self.reject(state, error);
        }
        permit
    }

    fn take_permit(&self, state: &mut State<E>, location: &'static Location<'static>) -> Result<usize, TrackError> {
        self.admit(state)?;
        state.ever_opened += 1;
        Ok(state.permits.insert((location, Instant::now())))
    }

    /// The permit becomes a value, which needs neither capacity nor an open queue.
    pub(crate) fn send_reserved(self: &Arc<Self>, permit: usize, event: E) {
        let mut state = self.lock();
        state.permits.remove(permit);
        state.accepted += 1;
        state.pending += 1;
        let (is_dead, is_last) = (state.is_dead, state.permits.is_empty());
        self.push(state, event);
        if is_dead {
            self.end_detached(|state| state.detach(Ending::Aborted));
        }
        if is_last {
            self.shard.registry.wake_waiters();
        }
    }

    pub(crate) fn release(self: &Arc<Self>, permit: usize) {
        let mut state = self.lock();
        state.permits.remove(permit);
        let is_last = state.permits.is_empty();
        self.after_end(state, is_last, Vec::new());
    }

    /// All senders and permits are gone.
    pub(crate) fn abandon(&self) {
        self.lock().is_abandoned = true;
        self.changed.notify_one();
    }

    /// For the worker, when it delivers nothing.
    pub(crate) fn next(&self) -> Next<E> {
        let Batching { max_batch, max_delay, .. } = self.batching;
        let mut state = self.lock();
        if state.open_detached > 0 {
            return Next::Wait(None);
        }
        if state.queue.is_empty() {
            if state.is_abandoned || state.phase == Phase::Closed {
                return Next::End;
            }
            state.wake_at = 1;
            return Next::Wait(None);
        }
        let age = state.queue_since.elapsed();
        let is_due = state.queue.len() >= max_batch
            || age >= max_delay
            || state.is_abandoned
            || state.flush_to > state.ended.total();
        if !is_due {
            state.wake_at = max_batch;
            return Next::Wait(Some(max_delay - age));
        }
        state.wake_at = usize::MAX;
        let count = state.queue.len().min(max_batch);
        let batch = Batch::new(state.queue.drain(..count).collect());
        // What is left in the queue is as old at most.
        state.in_flight_since = state.queue_since;
        state.in_flight = Some(batch.clone());
        state.is_delivering = true;
        let due = Due { batch, generation: state.generation };
        let not_metered = state.not_metered();
        drop(state);
        metrics::accepted_by_sink(self.name, not_metered);
        Next::Deliver(due)
    }

    /// Waits until something may have changed.
    pub(crate) fn changed(&self) -> impl Future<Output = ()> {
        self.changed.notified()
    }

    /// Whether the batch is still to be delivered.
    pub(crate) fn is_due(&self, due: &Due<E>) -> bool {
        self.lock().generation == due.generation
    }

    /// How often a drain, a flush or a wait has asked for delivery at once.
    pub(crate) fn flushes(&self) -> u64 {
        self.lock().flushes
    }

    /// Ends the batch, unless it was detached.
    pub(crate) fn answered(self: &Arc<Self>, due: Due<E>, answer: Answer) {
        let Due { batch, generation } = due;
        let mut state = self.lock();
        if state.generation != generation {
            drop(state);
            // It may be the last clone of a batch that has ended: its values are dropped here.
            let _ = catch(|| drop(batch));
            // A drain waits for a delivery that was abandoned.
            self.lock().is_delivering = false;
            self.shard.registry.wake_waiters();
            return;
        }
        state.is_delivering = false;
        match answer {
            Answer::Detached => {}
            Answer::NotDelivered => {
                let detached = state.detach_in_flight(Ending::Failed);
                drop(state);
                drop(batch);
                self.end_detached(|_| detached);
            }
            Answer::Delivered => {
                let in_flight = state.in_flight.take();
                state.delivered_batches += 1;
                let last_error = state.last_error.take();
                drop(state);
                let count = batch.len() as u64;
                // What the values own is dropped before they count as ended.
                let _ = catch(|| drop((in_flight, batch)));
                drop(last_error);
                self.end(count, Ending::Completed, None);
            }
        }
    }

    /// The sink has not taken the batch.
    pub(crate) fn attempt_failed(&self, error: String) {
        let mut state = self.lock();
        state.failed_attempts += 1;
        let replaced = state.last_error.replace(error);
        drop(state);
        drop(replaced);
    }

    /// Nothing delivers any more.
    pub(crate) fn die(self: &Arc<Self>) {
        self.lock().is_dead = true;
        self.end_detached(|state| state.detach(Ending::Aborted));
        self.retire_if_done();
        // A drain waits until the sink has been dropped.
        self.shard.registry.wake_waiters();
    }

    fn end(self: &Arc<Self>, count: u64, ending: Ending, error: Option<&str>) {
        metrics::ended_in_sink(self.name, ending, count);
        let mut state = self.lock();
        state.pending -= count;
        state.ended.add(ending, count);
        if ending != Ending::Completed {
            let failures = state.failures.get_or_insert_with(|| EventFailures::new(self.location));
            failures.counts.add(ending, count);
            if let Some(error) = error {
                failures.last_error = Some(error.to_owned());
            }
        }
        let ended = state.ended.total();
        let (reached, waiting) = mem::take(&mut state.waiting).into_iter().partition(|(target, _)| *target <= ended);
        state.waiting = waiting;
        // A wait for idleness whose values have ended looks again, and flushes what was sent since.
        let is_flushed = state.flush_to <= ended && mem::take(&mut state.flush_to) > 0;
        let is_last = state.pending == 0 || is_flushed;
        self.after_end(state, is_last, reached);
    }

    /// What follows when values have ended or a permit has gone.
    fn after_end(self: &Arc<Self>, mut state: MutexGuard<'_, State<E>>, is_last: bool, reached: Vec<(u64, Waker)>) {
        let capacity = self.batching.capacity;
        let is_free = state.phase == Phase::Open && capacity - state.taken() >= capacity.div_ceil(4);
        let should_log = is_free && mem::replace(&mut state.full_is_logged, false);
        drop(state);
        if is_last {
            self.shard.registry.wake_waiters();
        }
        reached.into_iter().for_each(|(_, waker)| waker.wake());
        if should_log {
            tracing::info!(sink = self.name, "events are accepted again: the sink has capacity");
        }
        self.retire_if_done();
    }

    fn retire_if_done(self: &Arc<Self>) {
        let state = self.lock();
        let is_done = state.is_dead && state.taken() == 0 && !state.is_retired;
        drop(state);
        if is_done {
            self.shard.registry.retire_source(&self.as_source());
        }
    }

    /// Passes detached values to `on_undelivered`, or drops them.
    pub(super) fn end_detached(self: &Arc<Self>, detach: impl FnOnce(&mut State<E>) -> Option<DetachedBatches<E>>) {
        let mut state = self.lock();
        let Some(DetachedBatches { batches, count, ending }) = detach(&mut state) else { return };
        let not_metered = state.not_metered();
        let last_error = state.last_error.clone();
        drop(state);
        metrics::accepted_by_sink(self.name, not_metered);
        let sink = self.name;
        let error = last_error.as_deref();
        if self.on_undelivered.is_some() {
            tracing::error!(
                sink,
                events = count,
                error,
                "events were not delivered, and are passed to `on_undelivered`"
            );
        } else {
            tracing::error!(
                sink,
                events = count,
                error,
                "events were not delivered, and are dropped: the sink has no `on_undelivered`"
            );
        }
        let ended = reentrancy::enter(self.shard.registry.id(), || {
            catch(|| match &self.on_undelivered {
                Some(take) => take(Undelivered::new(sink, batches, last_error.clone())),
                None => drop(batches),
            })
        });
        match ended {
            Ok(()) => self.end(count, ending, error),
            Err(panic) => {
                tracing::error!(
                    sink,
                    events = count,
                    panic = %OneLine(&panic),
                    "`on_undelivered` panicked: what it has not stored is lost"
                );
                self.end(count, Ending::Panicked, Some(&one_line(&panic)));
            }
        }
        self.lock().open_detached -= 1;
        self.changed.notify_one();
    }

    /// Lets what is queued be delivered at once. Returns how many values have ended when all of it has.
    pub(crate) fn flush_now(&self) -> u64 {
        let mut state = self.lock();
        state.flush(Flush::Now);
        let target = state.accepted;
        drop(state);
        self.changed.notify_one();
        target
    }

    /// Whether so many values have ended. If not, the waker is kept until they have.
    pub(crate) fn poll_ended(&self, target: u64, waker: &Waker) -> bool {
        let waker = waker.clone();
        let mut state = self.lock();
        let has_ended = state.ended.total() >= target;
        // A flush that is polled again and again leaves one waker of each task.
        if !has_ended && !state.waiting.iter().any(|(at, other)| *at == target && other.will_wake(&waker)) {
            state.waiting.push((target, waker));
        }
        has_ended
    }

    /// What is pending, for the report of a flush.
    pub(crate) fn open(&self) -> Open {
        let mut open = Open::new();
        Locked { queue: self, state: self.lock() }.add_open(&mut open);
        open
    }
}

impl<E> EventQueue<E> {
    #[inline]
    pub(super) fn lock(&self) -> MutexGuard<'_, State<E>> {
        // No user code runs under the lock.
        self.state.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The queue may be dropped by a drain, to which a panic in what the closure owns must not go.
impl<E> Drop for EventQueue<E> {
    fn drop(&mut self) {
        let on_undelivered = self.on_undelivered.take();
        let _ = catch(|| drop(on_undelivered));
    }
}
