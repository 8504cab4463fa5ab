//! The queue of those who wait for room.

use std::{
    collections::BTreeMap,
    mem,
    sync::Arc,
    task::{Poll, Waker},
};

use crate::{
    contain::{contain, wake},
    entry::Entry,
    sync::{AtomicBool, Mutex, Ordering, lock},
};

/// Places in the order in which they wait, each for a permit `P`. Entered under all locks of shards. Room is given under that
/// of any shard; who waits no longer needs none.
pub(crate) struct RoomQueue<P> {
    /// Whether somebody waits. Relaxed is enough: it is set under all locks of shards, and read under one of them. It is
    /// cleared under that of the places alone, when there is none; whoever does not see that yet looks there.
    any: AtomicBool,
    places: Mutex<RoomPlaces<P>>,
}

struct RoomPlaces<P> {
    next: u64,
    /// With the entry of the permit that is waited for.
    waiting: BTreeMap<u64, (Arc<RoomPlace<P>>, Entry)>,
}

/// Where somebody who waits for room finds it.
pub(crate) struct RoomPlace<P>(Mutex<RoomState<P>>);

enum RoomState<P> {
    Waiting(Option<Waker>),
    Granted(P),
    Left,
}

impl<P> Default for RoomQueue<P> {
    fn default() -> Self {
        Self { any: AtomicBool::new(false), places: Mutex::new(RoomPlaces { next: 0, waiting: BTreeMap::new() }) }
    }
}

impl<P> RoomQueue<P> {
    /// Enters the last place.
    pub(crate) fn push(&self, permit: Entry) -> (u64, Arc<RoomPlace<P>>) {
        let place = Arc::new(RoomPlace(Mutex::new(RoomState::Waiting(None))));
        let mut places = lock(&self.places);
        places.next += 1;
        let number = places.next;
        places.waiting.insert(number, (Arc::clone(&place), permit));
        self.any.store(true, Ordering::Relaxed);
        (number, place)
    }

    /// Takes the first place, and enters its permit.
    #[inline]
    pub(crate) fn pop(&self, enter: impl FnOnce(Entry) -> u32) -> Option<(Arc<RoomPlace<P>>, u32)> {
        if !self.any.load(Ordering::Relaxed) {
            return None;
        }
        let mut places = lock(&self.places);
        let first = places.waiting.pop_first();
        self.any.store(!places.waiting.is_empty(), Ordering::Relaxed);
        let (_, (place, permit)) = first?;
        Some((place, enter(permit)))
    }

    /// Removes a place, if it is still there.
    pub(crate) fn remove(&self, number: u64) {
        let mut places = lock(&self.places);
        places.waiting.remove(&number);
        self.any.store(!places.waiting.is_empty(), Ordering::Relaxed);
    }
}

impl<P> RoomPlace<P> {
    /// Hands a permit over, or gives it back if nobody waits any more.
    pub(crate) fn grant(&self, permit: P) -> Option<P> {
        let mut state = lock(&self.0);
        match &mut *state {
            RoomState::Waiting(waker) => {
                let waker = waker.take();
                *state = RoomState::Granted(permit);
                drop(state);
                wake(waker);
                None
            }
            RoomState::Granted(_) | RoomState::Left => Some(permit),
        }
    }

    /// Gives the permit, once.
    pub(crate) fn poll(&self, waker: &Waker) -> Poll<P> {
        let mut new = Some(waker.clone());
        let mut state = lock(&self.0);
        let answer = match mem::replace(&mut *state, RoomState::Left) {
            RoomState::Granted(permit) => Poll::Ready(permit),
            RoomState::Waiting(mut waker) => {
                mem::swap(&mut waker, &mut new);
                *state = RoomState::Waiting(waker);
                Poll::Pending
            }
            RoomState::Left => Poll::Pending,
        };
        drop(state);
        let _ = contain(|| drop(new));
        answer
    }

    /// Nobody waits any more. Gives a permit that was granted and not taken.
    pub(crate) fn leave(&self) -> Option<P> {
        let left = mem::replace(&mut *lock(&self.0), RoomState::Left);
        // Without the lock: a waker is user code.
        match left {
            RoomState::Granted(permit) => Some(permit),
            RoomState::Waiting(waker) => {
                let _ = contain(|| drop(waker));
                None
            }
            RoomState::Left => None,
        }
    }
}
