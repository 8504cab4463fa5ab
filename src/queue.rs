//! [`EventQueue`]: the events that are sent to one sink, until they are delivered.
//!
//! It has two locks. Who sends takes that of the *intake*, and nobody holds it for longer than a few instructions. Who
//! delivers works under that of the *outlet*. Where both are needed, the outlet is locked first.
//!
//! # Invariants, and why they hold
//!
//! 1. *What is pending is here.* Values and counts change together: an event enters under the lock of the intake, moves
//!    to the outlet under both, and ends under both. A batch that is being delivered stays here until it is acknowledged:
//!    the attempt has a clone. So nothing that the sink does, or does not do, can lose it.
//! 2. *Each event ends once.* Who ends events has taken them out of here, or out of `aside`, first. An attempt whose batch
//!    was set aside meanwhile finds another generation, and ends nothing.
//! 3. *Events end in order.* While something is set aside nothing is delivered.
//! 4. *Whoever delivers does not sleep through an event.* It looks at the intake and sets `wake_at` under its lock; the
//!    send that makes the queue so long notifies it, and a notification that nobody waits for is kept.

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
    lane::{Gate, GivenUp, Lane, LaneBook, Left, LockedLane},
    metrics,
    refused::Refused,
    snapshot::{Ending, SinkSnapshot},
};

/// Takes what is not delivered.
pub(crate) type Taker<E> = Box<dyn Fn(Undelivered<E>) + Send + Sync>;

pub(crate) struct EventQueue<E> {
    pub(crate) shard: Arc<Shard>,
    name: &'static str,
    max_batch: usize,
    max_delay: Duration,
    on_undelivered: Option<Taker<E>>,
    /// Notified when whoever delivers should look.
    changed: Notify,
    outlet: Mutex<Outlet<E>>,
    intake: OwnLines<E>,
}

/// Cache lines that hold nothing but the intake: what stands before it is read by everybody.
#[repr(align(128))]
struct OwnLines<E>(Mutex<Intake<E>>);

struct Intake<E> {
    /// The newest events, as they are sent.
    queue: Vec<E>,
    /// The length of `queue` at which whoever delivers is to be notified.
    wake_at: usize,
    gate: Gate,
    /// When the first in the queue came.
    since: Nanos,
}

struct Outlet<E> {
    book: LaneBook,
    /// The oldest events: what is being delivered.
    first: Option<Batch<E>>,
    /// Then come those that are left of a queue that was too long for one batch. Then comes the queue of the intake.
    taken: vec::IntoIter<E>,
    /// When the oldest of these two came, or earlier.
    taken_since: Nanos,
    aside: VecDeque<Aside<E>>,
    /// How many times something was set aside and has not ended.
    asides_open: usize,
    /// How many times something was set aside.
    generation: u64,
    /// Nobody is left who could send.
    is_abandoned: bool,
    /// Memory of a batch that was delivered, for a queue to come.
    spare: Vec<E>,
    /// Up to this event the metrics know.
    told: u64,
}

/// Both locks.
struct Locked<'a, E> {
    intake: MutexGuard<'a, Intake<E>>,
    outlet: MutexGuard<'a, Outlet<E>>,
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

/// What has become of a batch that was due.
pub(crate) enum Answer {
    Delivered,
    /// It is not to be attempted again.
    Rejected,
    /// It was taken away meanwhile.
    NotAsked,
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
        (name, location): (&'static str, &'static Location<'static>),
        capacity: u32,
        max_batch: usize,
        max_delay: Duration,
        on_undelivered: Option<Taker<E>>,
    ) -> Arc<Self> {
        let intake = Intake { queue: Vec::new(), wake_at: 1, gate: Gate::new(capacity), since: 0 };
        let outlet = Outlet {
            book: LaneBook::new(name, location, capacity),
            first: None,
            taken: vec::IntoIter::default(),
            taken_since: 0,
            aside: VecDeque::new(),
            asides_open: 0,
            generation: 0,
            is_abandoned: false,
            spare: Vec::new(),
            told: 0,
        };
        let queue = Arc::new(Self {
            shard,
            name,
            max_batch,
            max_delay,
            on_undelivered,
            changed: Notify::new(),
            outlet: Mutex::new(outlet),
            intake: OwnLines(Mutex::new(intake)),
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
        self.both().snapshot()
    }

    /// Accepts an event, or gives it back: the one decision.
    #[inline]
    pub(crate) fn send(&self, event: E) -> Result<(), (E, Refused)> {
        let mut intake = self.intake();
        if let Err(refused) = intake.gate.accept() {
            drop(intake);
            self.count_refused(refused);
            return Err((event, refused));
        }
        self.push(intake, event);
        Ok(())
    }

    #[inline]
    fn push(&self, mut intake: MutexGuard<'_, Intake<E>>, event: E) {
        if intake.queue.is_empty() {
            self.note_first(&mut intake);
        }
        intake.queue.push(event);
        let should_notify = intake.queue.len() == intake.wake_at;
        drop(intake);
        if should_notify {
            self.changed.notify_one();
        }
    }

    /// The clock is read for the first event of a queue only.
    #[cold]
    fn note_first(&self, intake: &mut Intake<E>) {
        intake.since = self.shard.house().now();
    }

    #[cold]
    fn count_refused(&self, refused: Refused) {
        metrics::refused(self.name, refused);
        let mut outlet = self.outlet();
        if outlet.book.is_retired {
            drop(outlet);
            self.shard.count_refused();
            return;
        }
        let should_announce = outlet.book.refuse(refused);
        let capacity = outlet.book.capacity();
        drop(outlet);
        if should_announce {
            let sink = self.name;
            let _ = contain(|| {
                tracing::warn!(
                    sink,
                    capacity,
                    "events are refused: as many wait for their sink as its capacity allows; see whether it fails or is slow"
                );
            });
        }
    }

    pub(crate) fn reserve(&self, location: &'static Location<'static>) -> Result<u32, Refused> {
        let since = self.shard.house().now();
        let Locked { mut intake, mut outlet } = self.both();
        let Err(refused) = intake.gate.take_room() else {
            return Ok(outlet.book.reserve(location, since));
        };
        drop((intake, outlet));
        self.count_refused(refused);
        Err(refused)
    }

    /// The permit becomes an event, so neither room nor being open is in question.
    pub(crate) fn send_reserved(self: &Arc<Self>, permit: u32, event: E) {
        let Locked { mut intake, mut outlet } = self.both();
        outlet.book.use_permit(permit);
        intake.gate.accept_reserved();
        let is_dead = outlet.book.is_dead;
        // From here on the event is in the way of a drain, as the permit was.
        drop(outlet);
        self.push(intake, event);
        if is_dead {
            Arc::clone(self).give_up(Ending::Aborted);
        }
    }

    pub(crate) fn release(self: &Arc<Self>, permit: u32) {
        let Locked { mut intake, mut outlet } = self.both();
        let left = outlet.book.release(&mut intake.gate, permit);
        drop((intake, outlet));
        self.after(left, Vec::new());
    }

    /// Nobody is left who could send.
    pub(crate) fn abandon(&self) {
        self.outlet().is_abandoned = true;
        self.changed.notify_one();
    }

    /// To be asked by whoever delivers, when it has nothing in hand.
    pub(crate) fn next(&self) -> Next<E> {
        let now = self.shard.house().now();
        let mut news = 0;
        let mut outlet = self.outlet();
        if outlet.asides_open > 0 {
            return Next::Wait(None);
        }
        if outlet.first.is_none() && outlet.taken.len() == 0 {
            let mut intake = self.intake();
            if intake.queue.is_empty() {
                if outlet.is_abandoned || intake.gate.is_closed() {
                    return Next::End;
                }
                intake.wake_at = 1;
                return Next::Wait(None);
            }
            let age = Duration::from_nanos(now.saturating_sub(intake.since));
            let is_due = intake.queue.len() >= self.max_batch
                || age >= self.max_delay
                || outlet.is_abandoned
                || outlet.book.is_flushing();
            if !is_due {
                intake.wake_at = self.max_batch;
                return Next::Wait(Some(self.max_delay - age));
            }
            intake.wake_at = usize::MAX;
            let spare = mem::take(&mut outlet.spare);
            outlet.taken = mem::replace(&mut intake.queue, spare).into_iter();
            outlet.taken_since = intake.since;
            news = outlet.news(intake.gate.accepted());
        }
        // Without the lock of the intake, since this may copy a batch.
        let batch = outlet.first_batch(self.max_batch);
        let generation = outlet.generation;
        drop(outlet);
        metrics::queued(self.name, news);
        batch.map_or(Next::Wait(None), |batch| Next::Deliver(Due { batch, generation }))
    }

    /// Waits until something may have changed.
    pub(crate) fn changed(&self) -> impl Future<Output = ()> {
        self.changed.notified()
    }

    /// Whether the batch is still to be delivered.
    pub(crate) fn is_due(&self, generation: u64) -> bool {
        self.outlet().generation == generation
    }

    /// How often somebody has asked for delivery at once.
    pub(crate) fn hurries(&self) -> u64 {
        self.outlet().book.hurries
    }

    /// Ends the batch as it was answered, unless it was taken away.
    pub(crate) fn answered(self: &Arc<Self>, due: Due<E>, answer: Answer) {
        let Due { batch, generation } = due;
        let mut locked = self.both();
        let mut rejected = None;
        if locked.outlet.generation == generation {
            match answer {
                Answer::Delivered => {
                    drop(locked.intake);
                    return self.delivered(locked.outlet, batch);
                }
                Answer::Rejected => {
                    let first = locked.outlet.first.take();
                    rejected = locked.outlet.open_aside(first.into_iter().collect(), Ending::Failed);
                }
                Answer::NotAsked => {}
            }
        }
        // Nobody's but its own: who has set something aside ends that, and may tell when it has.
        match rejected {
            Some(aside) => {
                // Not the last clone.
                drop(batch);
                self.end_aside(locked, aside);
            }
            None => {
                drop(locked);
                // It may be the last clone of one that was taken away: its events are dropped here.
                let _ = contain(|| drop(batch));
            }
        }
    }

    fn delivered(self: &Arc<Self>, mut outlet: MutexGuard<'_, Outlet<E>>, batch: Batch<E>) {
        let first = outlet.first.take();
        outlet.book.attempt_succeeded();
        drop(outlet);
        drop(first);
        let count = batch.len() as u64;
        // What the events own is dropped before they count as ended.
        let mut buffer = batch.into_buffer();
        let mut outlet = self.outlet();
        if outlet.spare.capacity() < buffer.capacity() {
            mem::swap(&mut outlet.spare, &mut buffer);
        }
        drop(outlet);
        self.end(count, Ending::Completed);
    }

    /// The sink has not taken the batch.
    pub(crate) fn attempt_failed(&self, error: String) {
        let replaced = self.outlet().book.attempt_failed(error);
        drop(replaced);
    }

    /// Nobody delivers any more.
    pub(crate) fn die(self: &Arc<Self>) {
        let Locked { mut intake, mut outlet } = self.both();
        intake.gate.close(Refused::NoRuntime);
        outlet.book.is_dead = true;
        drop((intake, outlet));
        Arc::clone(self).give_up(Ending::Aborted);
        self.shard.ledger.retire_lane(&self.as_lane());
    }

    fn end(self: &Arc<Self>, count: u64, ending: Ending) {
        metrics::ended_many(self.name, ending, count);
        let Locked { mut intake, mut outlet } = self.both();
        let left = outlet.book.end(&mut intake.gate, count, ending);
        drop(intake);
        let reached = self.shard.ledger.lane_reached(&left);
        drop(outlet);
        self.after(left, reached);
    }

    /// What follows when something has left the queue, without its locks.
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

    /// Hands over, or drops, what its caller alone has.
    fn end_aside(self: &Arc<Self>, locked: Locked<'_, E>, aside: Aside<E>) {
        let Locked { intake, mut outlet } = locked;
        let news = outlet.news(intake.gate.accepted());
        let last_error = outlet.book.last_error();
        drop((intake, outlet));
        metrics::queued(self.name, news);
        let Aside { batches, count, ending } = aside;
        let sink = self.name;
        let is_handed_over = self.on_undelivered.is_some();
        let _ = contain(|| {
            let error = last_error.as_deref();
            let fate =
                if is_handed_over { "given to `on_undelivered`" } else { "dropped, without an `on_undelivered`" };
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
                let _ = contain(|| {
                    tracing::error!(
                        sink,
                        events = count,
                        panic,
                        "`on_undelivered` panicked: what it has not stored is lost"
                    )
                });
                Ending::Panicked
            }
        };
        self.end(count, ending);
        self.outlet().asides_open -= 1;
        self.changed.notify_one();
    }

    fn both(&self) -> Locked<'_, E> {
        let outlet = self.outlet();
        Locked { intake: self.intake(), outlet }
    }

    #[inline]
    fn intake(&self) -> MutexGuard<'_, Intake<E>> {
        // Nothing that runs under the locks is user code.
        self.intake.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn outlet(&self) -> MutexGuard<'_, Outlet<E>> {
        self.outlet.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whoever lets the queue go last, a drain perhaps, is not to pay for what the closure owns.
impl<E> Drop for EventQueue<E> {
    fn drop(&mut self) {
        let on_undelivered = self.on_undelivered.take();
        let _ = contain(|| drop(on_undelivered));
    }
}

impl<E> Outlet<E> {
    /// The oldest events, as they are delivered together.
    fn first_batch(&mut self, max_batch: usize) -> Option<Batch<E>> {
        if self.first.is_none() && self.taken.len() > 0 {
            let events = if self.taken.len() <= max_batch {
                // In place, if nothing was taken of it.
                mem::take(&mut self.taken).collect()
            } else {
                self.taken.by_ref().take(max_batch).collect()
            };
            self.first = Some(Batch::new(events));
        }
        self.first.clone()
    }

    /// How many events there are of which the metrics have not been told.
    fn news(&mut self, accepted: u64) -> u64 {
        accepted - mem::replace(&mut self.told, accepted)
    }

    /// What is taken away from the sink, for its caller to end, if it is anything.
    fn open_aside(&mut self, batches: Vec<Batch<E>>, ending: Ending) -> Option<Aside<E>> {
        let count = batches.iter().map(|batch| batch.len() as u64).sum();
        if count == 0 {
            return None;
        }
        self.asides_open += 1;
        self.generation += 1;
        Some(Aside { batches, count, ending })
    }
}

impl<E: Send + Sync + 'static> Lane for EventQueue<E> {
    fn lock(&self) -> Box<dyn LockedLane + '_> {
        Box::new(self.both())
    }

    fn nudge(&self) {
        self.changed.notify_one();
    }

    fn has_taker(&self) -> bool {
        self.on_undelivered.is_some()
    }

    fn end_what_is_aside(self: Arc<Self>) {
        loop {
            let mut locked = self.both();
            let Some(aside) = locked.outlet.aside.pop_front() else { return };
            self.end_aside(locked, aside);
        }
    }

    fn give_up(self: Arc<Self>, ending: Ending) -> Option<GivenUp> {
        let mut locked = self.both();
        let aside = locked.take_all(ending)?;
        let book = &locked.outlet.book;
        let (name, location, last_error) = (book.name, book.location, book.last_error());
        let given_up = GivenUp { name, location, count: aside.count, last_error };
        self.end_aside(locked, aside);
        Some(given_up)
    }
}

impl<E> Locked<'_, E> {
    /// Takes all that is pending away from the sink, if anything is.
    fn take_all(&mut self, ending: Ending) -> Option<Aside<E>> {
        let taken = mem::take(&mut self.outlet.taken);
        let rest: Vec<_> = taken.chain(mem::take(&mut self.intake.queue)).collect();
        let rest = (!rest.is_empty()).then(|| Batch::new(rest));
        let batches = self.outlet.first.take().into_iter().chain(rest).collect();
        self.outlet.open_aside(batches, ending)
    }
}

impl<E> LockedLane for Locked<'_, E> {
    fn gate(&self) -> &Gate {
        &self.intake.gate
    }

    fn gate_mut(&mut self) -> &mut Gate {
        &mut self.intake.gate
    }

    fn book(&self) -> &LaneBook {
        &self.outlet.book
    }

    fn book_mut(&mut self) -> &mut LaneBook {
        &mut self.outlet.book
    }

    fn oldest(&self) -> Nanos {
        if self.outlet.first.is_some() || self.outlet.taken.len() > 0 {
            self.outlet.taken_since
        } else if !self.intake.queue.is_empty() {
            self.intake.since
        } else {
            Nanos::MAX
        }
    }

    fn set_aside(&mut self, ending: Ending) {
        let aside = self.take_all(ending);
        self.outlet.aside.extend(aside);
    }
}
