//! [`Waiters`]: the wakers of drains and waits for idleness.

use std::{mem, task::Waker};

use crate::util::sync::{
    Mutex,
    atomic::{AtomicBool, Ordering},
    lock, seeded, seeded_gap,
};

/// The wakers of drains and waits for idleness, each with the number of its [`Waiter`](super::Waiter).
pub(super) struct Waiters {
    /// Whether the list has a waker. Written under the lock of the list. Read without it by a thread that has removed
    /// the last holder or the last pending event of a shard.
    any: AtomicBool,
    list: Mutex<List>,
}

#[derive(Default)]
struct List {
    next_id: u64,
    wakers: Vec<(u64, Waker)>,
}

impl Waiters {
    pub(super) fn new() -> Self {
        Self { any: AtomicBool::new(false), list: Mutex::new(List::default()) }
    }

    pub(super) fn next_id(&self) -> u64 {
        let mut list = lock(&self.list);
        list.next_id += 1;
        list.next_id
    }

    /// Stores the waker in place of an earlier one with this number. It is woken once, or removed by `leave`.
    pub(super) fn register(&self, id: u64, waker: &Waker) {
        let waker = waker.clone();
        let mut list = lock(&self.list);
        let replaced = list.take(id);
        self.any.store(true, Ordering::Relaxed);
        seeded_gap!("the flag of the waiters is set before the list is locked", list = lock(&self.list));
        list.wakers.push((id, waker));
        drop(list);
        // Without the lock, because the destructor of a waker may be user code.
        drop(replaced);
    }

    pub(super) fn leave(&self, id: u64) {
        let mut list = lock(&self.list);
        let left = list.take(id);
        let is_last = list.wakers.is_empty() || seeded!("a waiter that leaves clears the flag of the others");
        self.any.store(!is_last, Ordering::Relaxed);
        drop(list);
        drop(left);
    }

    /// Returns whether the list has a waker.
    pub(super) fn any(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    /// Wakes all wakers and removes them. To be called after a count has become zero under the lock of its shard or
    /// source, or after the registry was closed.
    pub(super) fn wake_all(&self) {
        // Relaxed: a waiter stores the flag before it looks at all counts under their locks. If the look came first,
        // the caller has held one of these locks after it, and sees the flag. Otherwise the look sees the zero.
        if !self.any() {
            return;
        }
        let mut list = lock(&self.list);
        let wakers = mem::take(&mut list.wakers);
        seeded_gap!("the flag of the waiters is cleared after the list is unlocked", list = lock(&self.list));
        self.any.store(false, Ordering::Relaxed);
        drop(list);
        wakers.into_iter().for_each(|(_, waker)| waker.wake());
    }
}

impl List {
    fn take(&mut self, id: u64) -> Option<Waker> {
        let index = self.wakers.iter().position(|(other, _)| *other == id)?;
        Some(self.wakers.swap_remove(index).1)
    }
}
