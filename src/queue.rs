//! [`EventQueue`]: the events that are sent to one sink, until they are delivered.
//!
//! # Invariants, and why they hold
//!
//! 1. *What is pending is here.* Values and counts change together, under the lock of the queue. A batch that is being
//!    delivered stays here until it is acknowledged: the attempt has a clone. So nothing that the sink does, or does not
//!    do, can lose it.
//! 2. *Each event ends once.* Who ends events has taken them out of here, or out of `aside`, first. An attempt whose batch
//!    was set aside meanwhile finds another generation, and ends nothing.
//! 3. *Events end in order.* While something is set aside nothing is delivered.
//! 4. *Whoever delivers does not sleep through an event.* It looks and sets `wake_at` under the lock; the send that
//!    makes the queue so long notifies it, and a notification that nobody waits for is kept.

use std::{
    collections::VecDeque,
    mem,
    panic::Location,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Waker,
    time::Duration,
    vec,
};

use tokio::sync::Notify;

use crate::{
    batch::{Batch, Undelivered},
    contain::contain,
    entry::Nanos,
    house::Shard,
    inside,
    lane::{Lane, LaneBook, Left, LockedLane},
    metrics,
    refused::Refused,
    snapshot::{Ending, SinkSnapshot},
};

pub(crate) type Taker<E> = Box<dyn Fn(Undelivered<E>) + Send + Sync>;

pub(crate) struct EventQueue<E> {
    pub(crate) shard: Arc<Shard>,
    name: &'static str,
    max_batch: usize,
    max_delay: Duration,
    on_undelivered: Option<Taker<E>>,
    /// Notified when whoever delivers should look.
    changed: Notify,
    state: Mutex<State<E>>,
}

struct State<E> {
    book: LaneBook,
    /// The oldest events: what is being delivered.
    first: Option<Batch<E>>,
    /// Then come those that are left of a queue that was too long for one batch.
    taken: vec::IntoIter<E>,
    /// When the oldest of these two came, or earlier.
    taken_since: Nanos,
    /// Then come those that are sent.
    queue: Vec<E>,
    /// When the first of these came.
    queue_since: Nanos,
    /// The length of `queue` at which whoever delivers is to be notified.
    wake_at: usize,
    aside: VecDeque<Aside<E>>,
    /// How many times something was set aside and has not ended.
    asides_open: usize,
    /// How many times something was set aside.
    generation: u64,
    /// Nobody is left who could send.
    is_abandoned: bool,
    /// Memory of a batch that was delivered, for the next.
    spare: Vec<E>,
    /// Up to this event the metrics know.
    told: u64,
}

/// Events that are not delivered any more.
struct Aside<E> {
    batches: Vec<Batch<E>>,
    count: u64,
    ending: Ending,
}

/// A batch to deliver.
pub(crate) struct Due<E> {
    pub(crate) batch: Batch<E>,
    pub(crate) generation: u64,
}

/// What to do next.
pub(crate) enum Next<E> {
    Deliver(Due<E>),
    /// Until something changes, or so much time has passed.
    Wait(Option<Duration>),
    /// Nothing is left, and nothing will come.
    End,
}

impl<E: Send + Sync + 'static> EventQueue<E> {
    pub(crate) fn new(
        shard: Arc<Shard>,
        book: LaneBook,
        max_batch: usize,
        max_delay: Duration,
        on_undelivered: Option<Taker<E>>,
    ) -> Arc<Self> {
        let queue = Arc::new(Self {
            name: book.name,
            max_batch,
            max_delay,
            on_undelivered,
            changed: Notify::new(),
            state: Mutex::new(State {
                book,
                first: None,
                taken: Vec::new().into_iter(),
                taken_since: 0,
                queue: Vec::new(),
                queue_since: 0,
                wake_at: 1,
                aside: VecDeque::new(),
                asides_open: 0,
                generation: 0,
                is_abandoned: false,
                spare: Vec::new(),
                told: 0,
            }),
            shard,
        });
        queue.shard.ledger.add_lane(queue.as_lane());
        queue
    }

    pub(crate) fn as_lane(self: &Arc<Self>) -> Arc<dyn Lane> {
        Arc::clone(self) as Arc<dyn Lane>
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) fn snapshot(&self) -> SinkSnapshot {
        self.state().book.snapshot()
    }

    /// Accepts an event, or gives it back: the one decision.
    pub(crate) fn send(&self, event: E) -> Result<(), (E, Refused)> {
        let mut state = self.state();
        if let Err(refused) = state.book.admit() {
            self.refuse(state, refused);
            return Err((event, refused));
        }
        state.book.accept();
        self.push(state, event);
        Ok(())
    }

    fn push(&self, mut state: MutexGuard<'_, State<E>>, event: E) {
        if state.queue.is_empty() {
            state.queue_since = self.shard.house().now();
        }
        state.queue.push(event);
        let should_notify = state.queue.len() == state.wake_at;
        drop(state);
        if should_notify {
            self.changed.notify_one();
        }
    }

    #[cold]
    fn refuse(&self, mut state: MutexGuard<'_, State<E>>, refused: Refused) {
        if state.book.is_retired {
            drop(state);
            self.shard.count_refused();
            metrics::refused(self.name, refused);
            return;
        }
        let should_announce = state.book.refuse(refused);
        let capacity = state.book.capacity();
        drop(state);
        metrics::refused(self.name, refused);
        if should_announce {
            let sink = self.name;
            let _ = contain(|| {
                tracing::warn!(
                    sink,
                    capacity,
                    "events are refused: as many wait for their sink as its capacity allows"
                );
            });
        }
    }

    pub(crate) fn reserve(&self, location: &'static Location<'static>) -> Result<u32, Refused> {
        let since = self.shard.house().now();
        let mut state = self.state();
        match state.book.admit() {
            Ok(()) => Ok(state.book.reserve(location, since)),
            Err(refused) => {
                self.refuse(state, refused);
                Err(refused)
            }
        }
    }

    /// The permit becomes an event, so neither room nor being open is in question.
    pub(crate) fn send_reserved(self: &Arc<Self>, permit: u32, event: E) {
        let mut state = self.state();
        state.book.accept_reserved(permit);
        let is_dead = state.book.is_dead;
        self.push(state, event);
        if is_dead {
            self.give_up(Ending::Aborted);
        }
    }

    pub(crate) fn release(self: &Arc<Self>, permit: u32) {
        let mut state = self.state();
        let left = state.book.release(permit);
        drop(state);
        self.after(left, Vec::new());
    }

    /// Nobody is left who could send.
    pub(crate) fn abandon(&self) {
        self.state().is_abandoned = true;
        self.changed.notify_one();
    }

    /// To be asked by whoever delivers, when it has nothing in hand.
    pub(crate) fn next(&self) -> Next<E> {
        let now = self.shard.house().now();
        let mut state = self.state();
        state.wake_at = usize::MAX;
        if state.asides_open > 0 {
            return Next::Wait(None);
        }
        if state.first.is_none() && state.taken.len() == 0 {
            if state.queue.is_empty() {
                if state.is_abandoned || state.book.is_closed() {
                    return Next::End;
                }
                state.wake_at = 1;
                return Next::Wait(None);
            }
            let age = Duration::from_nanos(now.saturating_sub(state.queue_since));
            let is_due = state.queue.len() >= self.max_batch
                || age >= self.max_delay
                || state.is_abandoned
                || state.book.is_flushing();
            if !is_due {
                state.wake_at = self.max_batch;
                return Next::Wait(Some(self.max_delay - age));
            }
            state.take_queue();
        }
        let batch = state.first_batch(self.max_batch);
        let generation = state.generation;
        let told = state.untold();
        drop(state);
        metrics::queued(self.name, told);
        Next::Deliver(Due { batch, generation })
    }

    /// Waits until something may have changed.
    pub(crate) fn changed(&self) -> impl Future<Output = ()> {
        self.changed.notified()
    }

    /// Whether the batch is still to be delivered.
    pub(crate) fn is_due(&self, generation: u64) -> bool {
        self.state().generation == generation
    }

    /// How often somebody has asked for delivery at once.
    pub(crate) fn hurries(&self) -> u64 {
        self.state().book.hurries
    }

    /// The sink has taken the batch.
    pub(crate) fn delivered(self: &Arc<Self>, due: Due<E>) {
        let mut state = self.state();
        if state.generation != due.generation {
            return;
        }
        let first = state.first.take();
        drop(state);
        drop(first);
        let count = due.batch.len() as u64;
        // What the events own is dropped before they count as ended.
        let buffer = due.batch.into_buffer();
        let mut state = self.state();
        state.book.attempt_succeeded();
        let unused =
            if state.spare.capacity() < buffer.capacity() { mem::replace(&mut state.spare, buffer) } else { buffer };
        drop(state);
        drop(unused);
        self.end(count, Ending::Completed);
    }

    /// The sink has not taken the batch.
    pub(crate) fn attempt_failed(&self, error: String) {
        let mut state = self.state();
        let replaced = state.book.attempt_failed(error);
        drop(state);
        drop(replaced);
    }

    /// The sink has not taken the batch, and is not asked again.
    pub(crate) fn reject(self: &Arc<Self>, due: Due<E>) {
        let mut state = self.state();
        if state.generation != due.generation {
            return;
        }
        let first = state.first.take();
        state.put_aside(first.into_iter().collect(), Ending::Failed);
        drop(state);
        drop(due);
        Arc::clone(self).end_what_is_aside();
    }

    /// Takes what is pending away from the sink, and ends it.
    pub(crate) fn give_up(self: &Arc<Self>, ending: Ending) {
        self.state().set_aside(ending);
        Arc::clone(self).end_what_is_aside();
    }

    /// Nobody delivers any more.
    pub(crate) fn die(self: &Arc<Self>) {
        let mut state = self.state();
        state.book.close(Refused::NoRuntime);
        state.book.is_dead = true;
        drop(state);
        self.give_up(Ending::Aborted);
        self.shard.ledger.retire_lane(&self.as_lane());
    }

    fn end(self: &Arc<Self>, count: u64, ending: Ending) {
        let mut state = self.state();
        let left = state.book.end(count, ending);
        let reached = self.shard.ledger.lane_reached(&left);
        drop(state);
        metrics::ended_many(self.name, ending, count);
        self.after(left, reached);
    }

    /// What follows when something has left the queue, without its lock.
    fn after(self: &Arc<Self>, left: Left, reached: Vec<Waker>) {
        self.shard.ledger.lane_left(reached, left.is_empty);
        if left.has_room_again {
            let sink = self.name;
            let _ = contain(|| tracing::info!(sink, "events are accepted again: the sink has room"));
        }
        if left.is_done {
            self.shard.ledger.retire_lane(&self.as_lane());
        }
    }

    fn end_aside(self: &Arc<Self>, aside: Aside<E>, last_error: Option<String>) {
        let Aside { batches, count, ending } = aside;
        let sink = self.name;
        let is_handed_over = self.on_undelivered.is_some();
        let _ = contain(|| {
            let error = last_error.as_deref();
            let fate = if is_handed_over { "handed over" } else { "dropped" };
            tracing::error!(sink, events = count, error, "events were not delivered, and are {fate}");
        });
        let ended = inside::enter(self.shard.ledger_id(), || {
            contain(|| match &self.on_undelivered {
                Some(take) => take(Undelivered::new(sink, batches, last_error)),
                None => drop(batches),
            })
        });
        let ending = match ended {
            Ok(()) => ending,
            Err(panic) => {
                let _ = contain(|| tracing::error!(sink, events = count, panic, "events were lost to a panic"));
                Ending::Panicked
            }
        };
        self.end(count, ending);
        self.state().asides_open -= 1;
        self.changed.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State<E>> {
        // Nothing that runs under the lock is user code.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<E> State<E> {
    /// Takes what is queued, to be delivered. A copy under the lock would keep everybody from sending.
    fn take_queue(&mut self) {
        self.taken_since = self.queue_since;
        let spare = mem::take(&mut self.spare);
        self.taken = mem::replace(&mut self.queue, spare).into_iter();
    }

    /// The oldest events, as they are delivered together.
    fn first_batch(&mut self, max_batch: usize) -> Batch<E> {
        let taken = &mut self.taken;
        let first = self.first.get_or_insert_with(|| {
            let events = if taken.len() <= max_batch {
                // In place: nothing has been taken of it.
                mem::take(taken).collect()
            } else {
                taken.take(max_batch).collect()
            };
            Batch::new(events)
        });
        first.clone()
    }

    /// How many events there are of which the metrics have not been told.
    fn untold(&mut self) -> u64 {
        let accepted = self.book.accepted();
        accepted - mem::replace(&mut self.told, accepted)
    }

    fn set_aside(&mut self, ending: Ending) -> u64 {
        let rest: Vec<_> = mem::take(&mut self.taken).chain(mem::take(&mut self.queue)).collect();
        let rest = (!rest.is_empty()).then(|| Batch::new(rest));
        let batches = self.first.take().into_iter().chain(rest).collect();
        self.put_aside(batches, ending)
    }

    fn put_aside(&mut self, batches: Vec<Batch<E>>, ending: Ending) -> u64 {
        let count = batches.iter().map(|batch| batch.len() as u64).sum();
        if count > 0 {
            self.aside.push_back(Aside { batches, count, ending });
            self.asides_open += 1;
            self.generation += 1;
        }
        count
    }
}

impl<E: Send + Sync + 'static> Lane for EventQueue<E> {
    fn lock(&self) -> Box<dyn LockedLane + '_> {
        Box::new(self.state())
    }

    fn nudge(&self) {
        self.changed.notify_one();
    }

    fn has_taker(&self) -> bool {
        self.on_undelivered.is_some()
    }

    fn end_what_is_aside(self: Arc<Self>) {
        loop {
            let mut state = self.state();
            let Some(aside) = state.aside.pop_front() else { return };
            let last_error = state.book.last_error();
            let told = state.untold();
            drop(state);
            metrics::queued(self.name, told);
            self.end_aside(aside, last_error);
        }
    }
}

impl<E> LockedLane for MutexGuard<'_, State<E>> {
    fn book(&self) -> &LaneBook {
        &self.book
    }

    fn book_mut(&mut self) -> &mut LaneBook {
        &mut self.book
    }

    fn oldest(&self) -> Nanos {
        if self.first.is_some() || self.taken.len() > 0 {
            self.taken_since
        } else if !self.queue.is_empty() {
            self.queue_since
        } else {
            Nanos::MAX
        }
    }

    fn set_aside(&mut self, ending: Ending) -> u64 {
        State::set_aside(self, ending)
    }
}
