//! How the worker takes batches from the queue, and how their values end.

use std::{mem, sync::Arc, task::Waker, time::Duration};

use tokio::time::Instant;

use crate::{
    error::TrackError,
    metrics,
    registry::{Ending, EventFailures, Phase},
    sink::{
        batch::{Batch, Undelivered},
        error::Meaning,
        flight::{Attempted, Flight, Piece, Wait},
        queue::{Batching, EventQueue},
        state::{DetachedValues, State},
    },
    util::{
        panic::catch,
        sync::{MutexGuard, seeded, seeded_gap},
        text::{OneLine, one_line},
    },
};

/// The identifier of a delivery: the number of the first value of its batch.
pub(super) type FlightId = u64;

/// The error of an attempt.
pub(super) struct Failure {
    pub(super) text: String,
    /// `None` if the service has failed for good.
    pub(super) meaning: Option<Meaning>,
}

/// The next step of a delivery after an attempt.
pub(super) enum Next {
    /// All values of the batch have ended, or were detached.
    Over,
    Again {
        /// Whether the piece, or a part of it, will be attempted again.
        is_retried: bool,
        wait: Wait,
        /// The number of attempts of the next piece.
        attempts: u32,
    },
}

/// The next step of the worker.
pub(super) enum Work {
    Deliver(FlightId),
    /// Wait until the queue changes, or this time has passed.
    Wait(Option<Duration>),
    /// No value is left, and no value will come.
    End,
}

impl<E: Send + Sync + 'static> EventQueue<E> {
    /// Returns the next step of the worker, which has `in_flight` deliveries.
    pub(super) fn work(&self, in_flight: usize) -> Work {
        let Batching { max_batch, max_bytes, max_delay, max_in_flight, .. } = &self.batching;
        let mut state = self.lock();
        state.wake_at = None;
        if state.dead.is_some() {
            return Work::End;
        }
        if !state.detached.is_empty() || in_flight >= *max_in_flight {
            return Work::Wait(None);
        }
        if state.queue.is_empty() {
            if in_flight == 0 && (state.is_abandoned || state.phase == Phase::Closed) {
                return Work::End;
            }
            seeded_gap!("the worker looks before it says when to notify it", state = self.lock());
            state.wake_at = Some(1);
            return Work::Wait(None);
        }
        let age = state.queue_since.elapsed();
        if age < *max_delay && !self.is_due(&state) {
            state.wake_at = Some(*max_batch);
            return Work::Wait(Some(*max_delay - age));
        }
        let (first, since) = (state.first_in_queue(), state.queue_since);
        let max_bytes = max_bytes.as_ref().map_or(usize::MAX, |(max, _)| *max);
        let piece = state.take_from_queue(*max_batch, max_bytes);
        // The values that are left in the queue are not older.
        state.flights.push(Flight::new(first, since, piece));
        let not_metered = state.not_metered();
        drop(state);
        metrics::accepted_by_sink(self.name, not_metered);
        Work::Deliver(first)
    }

    /// Waits until the queue may have changed.
    pub(super) fn changed(&self) -> impl Future<Output = ()> {
        self.changed.notified()
    }

    /// Returns whether the batch was detached.
    pub(super) fn is_detached(&self, id: FlightId) -> bool {
        self.lock().flight(id).is_none_or(|flight| flight.pieces.is_empty())
    }

    /// Returns the number of drains that have begun.
    pub(super) fn drains(&self) -> u64 {
        self.lock().drains
    }

    /// Wakes senders that wait for capacity, unless the queue is open: they are rejected.
    pub(super) fn wake_senders_while_closing(&self) {
        let mut state = self.lock();
        let is_open = state.phase == Phase::Open && state.dead.is_none();
        let wakers: Vec<_> =
            if is_open { Vec::new() } else { state.waiting_senders.values_mut().filter_map(Option::take).collect() };
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Returns the next piece to attempt, unless the batch was detached.
    pub(super) fn next_piece(&self, id: FlightId) -> Option<Batch<E>> {
        self.lock().flight(id)?.pieces.front().map(|piece| piece.batch.clone())
    }

    /// Ends the values whose ending an attempt has decided, unless they were detached.
    pub(super) fn answered(
        self: &Arc<Self>,
        id: FlightId,
        answer: Result<(), Failure>,
        max_attempts: Option<u32>,
    ) -> Next {
        let mut state = self.lock();
        let State { flights, delivered_batches, failed_attempts, last_error, .. } = &mut *state;
        let flight = flights.iter_mut().find(|flight| flight.first == id && !flight.pieces.is_empty());
        let Some(flight) = flight else { return Next::Over };
        let (attempted, replaced) = match answer {
            Ok(()) => {
                *delivered_batches += 1;
                (flight.taken(), last_error.take())
            }
            Err(Failure { text, meaning }) => {
                *failed_attempts += 1;
                let replaced = last_error.replace(text);
                let Some(meaning) = meaning else {
                    drop(state);
                    self.give_up();
                    return Next::Over;
                };
                (flight.failed(meaning, max_attempts), replaced)
            }
        };
        let Attempted { taken, undelivered, is_retried, wait } = attempted;
        flight.is_ending = true;
        let undelivered = state.detach_pieces(id, undelivered, Ending::Failed);
        drop(state);
        drop(replaced);
        if !taken.is_empty() {
            self.end_taken(taken);
        }
        if let Some(undelivered) = undelivered {
            self.end_detached(undelivered);
        }
        let mut state = self.lock();
        let Some(flight) = state.flights.iter_mut().find(|flight| flight.first == id) else { return Next::Over };
        flight.is_ending = false;
        let (is_over, attempts) = (flight.pieces.is_empty(), flight.attempts());
        self.after_end(state, false);
        if is_over { Next::Over } else { Next::Again { is_retried, wait, attempts } }
    }

    fn end_taken(self: &Arc<Self>, taken: Vec<Piece<E>>) {
        let (mut count, mut acks) = (0, Vec::new());
        for Piece { batch, acks: awaited, .. } in taken {
            count += batch.len() as u64;
            acks.extend(awaited);
            // Values are dropped before they count as ended.
            let _ = catch(|| drop(batch));
        }
        self.end(count, Ending::Completed, None);
        for (_, ack) in acks {
            let _ = ack.send(Ok(()));
        }
    }

    /// Removes a batch whose delivery is over.
    pub(super) fn forget(self: &Arc<Self>, id: FlightId) {
        let mut state = self.lock();
        state.flights.retain(|flight| flight.first != id);
        self.after_end(state, false);
    }

    /// Ends the sink after its service has failed for good.
    fn give_up(self: &Arc<Self>) {
        self.lock().dead = Some(TrackError::Closed);
        tracing::error!(
            sink = self.name,
            "the sink is given up: `poll_ready` of its service has failed twice in a row"
        );
        self.end_all(Ending::Failed);
        self.changed.notify_one();
    }

    /// Ends all values after the worker was dropped.
    pub(super) fn die(self: &Arc<Self>) {
        self.lock().dead.get_or_insert(TrackError::NoRuntime);
        self.end_all(Ending::Aborted);
        // Their deliveries are gone.
        self.lock().flights.clear();
        self.wake_senders_while_closing();
        self.retire_if_done();
    }

    pub(super) fn end_all(self: &Arc<Self>, ending: Ending) {
        let detached = self.lock().detach(ending);
        detached.into_iter().for_each(|detached| self.end_detached(detached));
    }

    fn end(self: &Arc<Self>, count: u64, ending: Ending, error: Option<&str>) {
        metrics::ended_in_sink(self.name, ending, count);
        let mut state = self.lock();
        state.pending -= count;
        seeded_gap!("the end of a value is counted under a later lock", state = self.lock());
        state.ended.add(ending, count);
        if ending != Ending::Completed {
            let failures = state.failures.get_or_insert_with(|| EventFailures::new(self.location));
            failures.counts.add(ending, count);
            if let Some(error) = error {
                failures.last_error = Some(error.to_owned());
            }
        }
        let is_last = state.pending == 0;
        self.after_end(state, is_last);
    }

    /// Grants free slots, and wakes flushes, drains and waits. Called after values ended or a permit was released.
    pub(super) fn after_end(self: &Arc<Self>, mut state: MutexGuard<'_, State<E>>, is_last: bool) {
        let capacity = self.batching.capacity;
        let is_free = state.phase == Phase::Open && capacity - state.taken() >= capacity.div_ceil(4);
        let should_log = is_free && mem::replace(&mut state.full_is_logged, false);
        let mut wakers =
            if seeded!("a free slot is granted to nobody") { Vec::new() } else { state.grant_slots(capacity) };
        let ended_to = state.ended_to();
        let (reached, waiting) =
            mem::take(&mut state.waiting).into_iter().partition::<Vec<_>, _>(|(target, _)| *target <= ended_to);
        state.waiting = waiting;
        // A wait for idleness looks again when its values have ended, and flushes the values that were sent since.
        let is_flushed = state.flush_to <= ended_to && mem::take(&mut state.flush_to) > 0;
        drop(state);
        if (is_last || is_flushed) && !seeded!("the last value of a source wakes nobody") {
            self.shard.registry.wake_waiters();
        }
        wakers.extend(reached.into_iter().map(|(_, waker)| waker));
        wakers.into_iter().for_each(Waker::wake);
        if should_log {
            tracing::info!(sink = self.name, "events are accepted again: the sink has capacity");
        }
    }

    /// Removes the queue from the registry when no sender and no value is left. Its counts stay.
    pub(super) fn retire_if_done(self: &Arc<Self>) {
        let state = self.lock();
        let is_done = state.is_abandoned && state.dead.is_some() && state.owners == 0 && state.taken() == 0;
        drop(state);
        if is_done {
            self.shard.registry.retire_source(&self.as_source());
        }
    }

    /// Passes detached values to `on_undelivered`, or drops them.
    pub(super) fn end_detached(self: &Arc<Self>, detached: DetachedValues<E>) {
        let count = detached.count();
        let DetachedValues { first, pieces, ending } = detached;
        let mut state = self.lock();
        let not_metered = state.not_metered();
        let last_error = state.last_error.clone();
        drop(state);
        metrics::accepted_by_sink(self.name, not_metered);
        let sink = self.name;
        let error = last_error.as_deref();
        let what_follows = match &self.on_undelivered {
            Some(_) => "are passed to `on_undelivered`",
            None => "are dropped: the sink has no `on_undelivered`",
        };
        tracing::error!(sink, events = count, error, "events were not delivered, and {what_follows}");
        let (mut batches, mut acks) = (Vec::new(), Vec::new());
        for Piece { batch, acks: awaited, .. } in pieces {
            batches.push(batch);
            acks.extend(awaited);
        }
        let ended = self.enter(|| match &self.on_undelivered {
            Some(take) => take(Undelivered::new(sink, batches, last_error.clone())),
            None => drop(batches),
        });
        match ended {
            Ok(()) => self.end(count, ending, error),
            Err(panic) => {
                tracing::error!(
                    sink,
                    events = count,
                    panic = %OneLine(&panic),
                    "`on_undelivered` panicked: events that it has not stored are lost"
                );
                self.end(count, Ending::Panicked, Some(&one_line(&panic)));
            }
        }
        for (_, ack) in acks {
            let _ = ack.send(Err(last_error.clone()));
        }
        let mut state = self.lock();
        if let Some(index) = state.detached.iter().position(|other| *other == first) {
            state.detached.swap_remove(index);
        }
        self.after_end(state, false);
        self.changed.notify_one();
        // The worker may have ended meanwhile.
        self.retire_if_done();
    }
}

/// Keeps a drain waiting while user code of the sink exists: the service, the closure, a response future.
pub(super) struct Owner<E: Send + Sync + 'static>(pub(super) Arc<EventQueue<E>>);

impl<E: Send + Sync + 'static> Owner<E> {
    pub(super) fn new(queue: Arc<EventQueue<E>>) -> Self {
        queue.lock().owners += 1;
        Self(queue)
    }
}

impl<E: Send + Sync + 'static> Drop for Owner<E> {
    fn drop(&mut self) {
        self.0.lock().owners -= 1;
        self.0.shard.registry.wake_waiters();
        self.0.retire_if_done();
    }
}

/// Keeps a drain waiting while an attempt runs, also after its values were detached.
pub(super) struct Running<E: Send + Sync + 'static>(Owner<E>);

impl<E: Send + Sync + 'static> Running<E> {
    pub(super) fn new(queue: Arc<EventQueue<E>>) -> Self {
        let owner = Owner::new(queue);
        let mut state = owner.0.lock();
        state.running += 1;
        state.running_since = Instant::now();
        drop(state);
        Self(owner)
    }
}

impl<E: Send + Sync + 'static> Drop for Running<E> {
    fn drop(&mut self) {
        self.0.0.lock().running -= 1;
    }
}
