//! [`Capacity`]: the number of taken slots, and the queue of requests that wait for one.
//!
//! # Invariants, and why they hold
//!
//! 1. *A slot is taken and released under the lock of the shard whose entry has it.* So under all locks the number of
//!    taken slots is the number of permits and pending events.
//! 2. *"Full" is exact.* Slots are taken by compare-and-swap and never beyond the limit. So a rejection has seen that
//!    all of them were taken.
//! 3. *First come, first served, and no lost wake-up.* The flag `QUEUED` is a bit of the atomic with the number of
//!    taken slots. It is set only if all slots are taken, by the operation that reads that number. It is cleared when
//!    the queue is empty. Both happen under the lock of the queue. While the flag is set, no slot is taken: a thread
//!    that releases a slot passes it to the first waiter in the queue.

use std::{
    collections::BTreeMap,
    mem,
    panic::Location,
    sync::Arc,
    task::{Poll, Waker},
};

use tokio::time::Instant;

use crate::util::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU64, Ordering},
    lock, seeded, seeded_gap,
};

/// The bit that is set while the queue is not empty.
const QUEUED: u64 = 1 << 63;

/// Slots for events. A waiter gets its slot as a permit of type `P`.
pub(super) struct Capacity<P> {
    limit: u64,
    /// The number of taken slots, and `QUEUED`.
    taken: AtomicU64,
    queue: Mutex<Queue<P>>,
    /// Whether a rejection was logged. The next one is logged after a quarter of the slots was free (of fewer than
    /// eight slots, all): until then it is the same episode.
    full_is_logged: AtomicBool,
}

struct Queue<P> {
    next: u64,
    waiting: BTreeMap<u64, Waiting<P>>,
}

/// A waiter in the queue, with the location and the age of its future permit.
pub(super) struct Waiting<P> {
    pub(super) place: Arc<Place<P>>,
    pub(super) location: &'static Location<'static>,
    pub(super) since: Instant,
}

/// The result of [`Capacity::release`].
pub(super) enum Released<P> {
    /// The slot is free. `logs` is true if the caller should log that an episode of "full" has ended.
    Free { logs: bool },
    /// The slot passes to this waiter, the first in the queue.
    To(Waiting<P>),
}

impl<P> Capacity<P> {
    /// Makes a capacity. The limit must be at least 1.
    pub(super) fn new(limit: u32) -> Self {
        Self {
            limit: limit.into(),
            taken: AtomicU64::new(0),
            queue: Mutex::new(Queue { next: 0, waiting: BTreeMap::new() }),
            full_is_logged: AtomicBool::new(false),
        }
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Takes a slot, if one is free. Called under the lock of a shard.
    ///
    /// Relaxed, here and below: entries and counts, which must agree with the number, change under locks of shards, and
    /// the queue has a lock of its own.
    #[inline]
    pub(super) fn take(&self) -> bool {
        let take = |taken: u64| (taken < self.limit).then(|| taken + 1);
        if seeded!("a slot is taken in two steps") {
            return take(self.taken()).inspect(|taken| self.taken.store(*taken, Ordering::Relaxed)).is_some();
        }
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    /// Returns whether a slot can be taken. Called under all locks of shards.
    pub(super) fn has_free(&self) -> bool {
        self.taken.load(Ordering::Relaxed) < self.limit
    }

    /// Releases a slot. Called under the lock of the shard whose entry has it.
    #[inline]
    pub(super) fn release(&self) -> Released<P> {
        loop {
            let is_early = seeded!("waiters are looked for before a slot is released") && self.taken() & QUEUED == 0;
            let release = |taken: u64| (taken & QUEUED == 0 || is_early).then(|| taken - 1);
            if seeded!("a slot is released in two steps") && self.taken() & QUEUED == 0 {
                self.taken.store(self.taken() - 1, Ordering::Relaxed);
                return Released::Free { logs: false };
            }
            if let Ok(before) = self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, release) {
                return Released::Free {
                    logs: self.full_is_logged.load(Ordering::Relaxed) && self.ends_full(before - 1),
                };
            }
            // If the queue has become empty meanwhile, the flag is cleared and the next round releases the slot.
            if let Some(first) = self.pop() {
                if seeded!("a slot is free before it is passed on") {
                    self.taken.fetch_sub(1, Ordering::Relaxed);
                    self.taken.fetch_add(1, Ordering::Relaxed);
                }
                return Released::To(first);
            }
        }
    }

    #[cold]
    fn ends_full(&self, taken: u64) -> bool {
        // In a small capacity a quarter is one slot: every release would end an episode.
        let free = if self.limit < 8 { self.limit } else { self.limit / 4 };
        self.limit - taken >= free && self.full_is_logged.swap(false, Ordering::Relaxed)
    }

    /// Returns whether the caller should log a rejection: once for each episode.
    pub(super) fn logs_full(&self) -> bool {
        !self.full_is_logged.swap(true, Ordering::Relaxed)
    }

    /// Takes a slot and returns `None`, or enters the queue. Called under the lock of a shard.
    pub(super) fn take_or_queue(
        &self,
        location: &'static Location<'static>,
        since: Instant,
    ) -> Option<(u64, Arc<Place<P>>)> {
        let was_full = seeded!("a waiter looks for a slot before it locks the queue") && self.taken() >= self.limit;
        let mut queue = lock(&self.queue);
        let is_free = |taken: u64| taken < self.limit && !was_full;
        let take_or_mark = |taken: u64| Some(if is_free(taken) { taken + 1 } else { taken | QUEUED });
        let before = self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take_or_mark);
        if before.is_ok_and(is_free) {
            return None;
        }
        let place = Arc::new(Place(Mutex::new(State::Waiting(None))));
        queue.next += 1;
        let number = queue.next;
        queue.waiting.insert(number, Waiting { place: Arc::clone(&place), location, since });
        Some((number, place))
    }

    /// Empties the queue. Called under all locks of shards. The caller [dismisses](Place::dismiss) each place without
    /// them.
    pub(super) fn dismiss(&self) -> Vec<Arc<Place<P>>> {
        let mut queue = lock(&self.queue);
        let waiting = mem::take(&mut queue.waiting);
        self.clear_if_empty(queue);
        waiting.into_values().map(|waiting| waiting.place).collect()
    }

    fn pop(&self) -> Option<Waiting<P>> {
        let mut queue = lock(&self.queue);
        let (_, first) = if seeded!("the last in the queue is the first") {
            queue.waiting.pop_last()?
        } else {
            queue.waiting.pop_first()?
        };
        self.clear_if_empty(queue);
        Some(first)
    }

    /// Removes a place from the queue, if it is still there.
    pub(super) fn remove(&self, number: u64) {
        let mut queue = lock(&self.queue);
        if queue.waiting.remove(&number).is_some() {
            self.clear_if_empty(queue);
        }
    }

    fn clear_if_empty(&self, queue: MutexGuard<'_, Queue<P>>) {
        let is_empty = queue.waiting.is_empty();
        if seeded!("the mark of the waiters is cleared without the lock of the queue") {
            drop(queue);
        }
        if is_empty {
            self.taken.fetch_and(!QUEUED, Ordering::Relaxed);
        }
    }
}

/// The place of one waiter, which receives its permit.
pub(super) struct Place<P>(Mutex<State<P>>);

enum State<P> {
    Waiting(Option<Waker>),
    Granted(P),
    /// The last call has ended the wait. There will be no permit.
    Dismissed,
    Left,
}

impl<P> Place<P> {
    /// Passes a permit to the waiter, or returns it if the waiter has left.
    pub(super) fn grant(&self, permit: P) -> Option<P> {
        let mut state = lock(&self.0);
        match &mut *state {
            State::Waiting(waker) => {
                let waker = waker.take();
                seeded_gap!("a permit is granted under a later lock", state = lock(&self.0));
                *state = State::Granted(permit);
                drop(state);
                waker.into_iter().for_each(Waker::wake);
                None
            }
            State::Granted(_) | State::Dismissed | State::Left
                if seeded!("a grant to a waiter that has left is forgotten") =>
            {
                mem::forget(permit);
                None
            }
            State::Granted(_) | State::Dismissed | State::Left => Some(permit),
        }
    }

    /// Ends the wait without a permit, unless one was granted.
    pub(super) fn dismiss(&self) {
        let mut state = lock(&self.0);
        if let State::Waiting(waker) = &mut *state {
            let waker = waker.take();
            *state = State::Dismissed;
            drop(state);
            waker.into_iter().for_each(Waker::wake);
        }
    }

    /// Returns the permit, once. `None` if there will be none.
    pub(super) fn poll(&self, waker: &Waker) -> Poll<Option<P>> {
        let mut new = Some(waker.clone());
        let mut state = lock(&self.0);
        let polled = match mem::replace(&mut *state, State::Left) {
            State::Granted(permit) => Poll::Ready(Some(permit)),
            State::Dismissed => Poll::Ready(None),
            State::Waiting(mut waker) => {
                mem::swap(&mut waker, &mut new);
                seeded_gap!("a waiter registers under a later lock", state = lock(&self.0));
                *state = State::Waiting(waker);
                Poll::Pending
            }
            State::Left => Poll::Pending,
        };
        drop(state);
        // The previous waker is dropped without the lock.
        drop(new);
        polled
    }

    /// Ends the wait. Returns a permit that was granted and not taken.
    pub(super) fn leave(&self) -> Option<P> {
        let state = mem::replace(&mut *lock(&self.0), State::Left);
        match state {
            State::Granted(permit) => Some(permit),
            State::Waiting(_) | State::Dismissed | State::Left => None,
        }
    }
}

#[cfg(all(test, not(track_events_loom)))]
mod tests {
    use std::{
        panic::Location,
        task::{Poll, Waker},
    };

    use tokio::time::Instant;

    use super::{Capacity, Released};

    fn queue(capacity: &Capacity<()>) -> Option<u64> {
        capacity.take_or_queue(Location::caller(), Instant::now()).map(|(number, _)| number)
    }

    fn is_free(released: Released<()>) -> bool {
        matches!(released, Released::Free { .. })
    }

    #[test]
    fn as_many_slots_are_taken_as_there_are() {
        let capacity = Capacity::<()>::new(2);
        assert!(capacity.take() && capacity.take() && !capacity.take());
        assert!(is_free(capacity.release()));
        assert!(capacity.take() && !capacity.take());
    }

    #[test]
    fn a_free_slot_needs_no_queue() {
        let capacity = Capacity::new(1);
        assert_eq!(queue(&capacity), None);
        assert!(!capacity.take());
    }

    #[test]
    fn a_released_slot_goes_to_the_first_in_the_queue_only() {
        let capacity = Capacity::new(1);
        assert!(capacity.take());
        let (first, place) = capacity.take_or_queue(Location::caller(), Instant::now()).expect("all slots are taken");
        let second = queue(&capacity).expect("all slots are taken");
        assert!(second > first);
        let Released::To(waiting) = capacity.release() else { panic!("two are waiting") };
        assert!(!capacity.take(), "the slot is that of the first");
        assert!(waiting.place.grant(()).is_none());
        assert!(place.poll(Waker::noop()).is_ready());
        assert!(matches!(capacity.release(), Released::To(_)), "the second waits");
        assert!(is_free(capacity.release()));
        assert!(capacity.take());
    }

    #[test]
    fn an_empty_queue_leaves_no_mark() {
        let capacity = Capacity::new(1);
        assert!(capacity.take());
        let number = queue(&capacity).expect("all slots are taken");
        capacity.remove(number);
        capacity.remove(number);
        assert!(is_free(capacity.release()));
        assert!(capacity.take());
    }

    #[test]
    fn who_has_left_is_granted_nothing() {
        let capacity = Capacity::new(1);
        assert!(capacity.take());
        let (_, place) = capacity.take_or_queue(Location::caller(), Instant::now()).expect("all slots are taken");
        assert!(place.leave().is_none());
        assert_eq!(place.grant(()), Some(()));
        let (_, place) = capacity.take_or_queue(Location::caller(), Instant::now()).expect("all slots are taken");
        assert!(place.grant(()).is_none());
        assert_eq!(place.leave(), Some(()));
    }

    #[test]
    fn who_is_dismissed_waits_no_longer_and_the_slots_stay_taken() {
        let capacity = Capacity::new(1);
        assert!(capacity.take());
        let (_, place) = capacity.take_or_queue(Location::caller(), Instant::now()).expect("all slots are taken");
        assert!(place.poll(Waker::noop()).is_pending());
        capacity.dismiss().iter().for_each(|place| place.dismiss());
        assert_eq!(place.poll(Waker::noop()), Poll::Ready(None));
        assert!(!capacity.take());
        assert!(is_free(capacity.release()), "nobody waits");
    }

    #[test]
    fn who_was_granted_a_permit_keeps_it_when_the_queue_is_dismissed() {
        let capacity = Capacity::new(1);
        assert!(capacity.take());
        let (_, place) = capacity.take_or_queue(Location::caller(), Instant::now()).expect("all slots are taken");
        let Released::To(waiting) = capacity.release() else { panic!("one is waiting") };
        assert!(capacity.dismiss().is_empty());
        assert!(waiting.place.grant(()).is_none());
        place.dismiss();
        assert_eq!(place.poll(Waker::noop()), Poll::Ready(Some(())));
    }

    #[test]
    fn an_episode_of_full_is_logged_once_and_ends_with_a_quarter_of_the_slots() {
        let capacity = Capacity::<()>::new(8);
        (0..8).for_each(|_| assert!(capacity.take()));
        assert!(capacity.logs_full() && !capacity.logs_full());
        assert!(matches!(capacity.release(), Released::Free { logs: false }));
        assert!(matches!(capacity.release(), Released::Free { logs: true }));
        assert!(matches!(capacity.release(), Released::Free { logs: false }));
        assert!(capacity.logs_full());
    }
}
