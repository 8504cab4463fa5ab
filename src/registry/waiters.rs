//! The drains and the waits for idleness that sleep until something has ended.

use std::{mem, task::Waker};

use crate::util::sync::{
    Mutex,
    atomic::{AtomicBool, Ordering},
    lock, seeded, seeded_gap,
};

/// Their wakers, each under a number.
pub(super) struct Waiters {
    /// Whether the list has an entry. Written under its lock, and read without it by the thread that ends the last of
    /// something.
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

    /// Keeps the waker, instead of an earlier one with this number, until it is woken once or its owner leaves.
    pub(super) fn register(&self, id: u64, waker: &Waker) {
        let waker = waker.clone();
        let mut list = lock(&self.list);
        let replaced = list.take(id);
        self.any.store(true, Ordering::Relaxed);
        seeded_gap!("the flag of the waiters is set before the list is locked", list = lock(&self.list));
        list.wakers.push((id, waker));
        drop(list);
        // Wakers are dropped without the lock, because their destructors may be user code.
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

    /// Whether somebody waits.
    pub(super) fn any(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    /// Wakes all. To be called after a count was seen to reach zero under the lock of its shard or source, or after the
    /// registry was closed.
    pub(super) fn wake_all(&self) {
        // Relaxed: a waiter stores the flag before it looks at all counts under their locks, and the caller has held
        // one of these locks after that look. A waiter that has not looked yet will see the zero itself.
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
