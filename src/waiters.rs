//! The drains that wait for the house to be empty.

use std::{mem, task::Waker};

use crate::{
    contain::{contain, wake},
    sync::{AtomicBool, Mutex, MutexGuard, Ordering, lock},
};

/// Their wakers, each under a number.
#[derive(Default)]
pub(crate) struct Waiters {
    /// Whether the list has an entry. Written under its lock, and read without by whoever empties a shard or leaves.
    any: AtomicBool,
    list: Mutex<WaiterList>,
}

#[derive(Default)]
struct WaiterList {
    next_id: u64,
    wakers: Vec<(u64, Waker)>,
}

impl Waiters {
    /// A number for one more.
    pub(crate) fn next_id(&self) -> u64 {
        let mut list = self.lock();
        list.next_id += 1;
        list.next_id
    }

    /// Keeps the waker, in the place of one that came earlier, until it is woken, once, or its owner leaves.
    pub(crate) fn register(&self, id: u64, waker: &Waker) {
        let waker = waker.clone();
        let mut list = self.lock();
        let replaced = list.take(id);
        list.wakers.push((id, waker));
        self.any.store(true, Ordering::Relaxed);
        drop(list);
        let _ = contain(|| drop(replaced));
    }

    pub(crate) fn leave(&self, id: u64) {
        // Relaxed: while its waker is in the list this reads what it has stored itself, or somebody since, and that is true:
        // nobody stores false while the list has an entry.
        if !self.any.load(Ordering::Relaxed) {
            return;
        }
        let mut list = self.lock();
        let left = list.take(id);
        self.any.store(!list.wakers.is_empty(), Ordering::Relaxed);
        drop(list);
        let _ = contain(|| drop(left));
    }

    /// To be called after a shard or a lane was found empty under its lock, or the ledger was closed.
    pub(crate) fn wake_all(&self) {
        // Relaxed: a waiter stores the flag before it looks at shards and lanes under their locks, and the caller has held
        // one of these locks after that look (invariant 5 of the ledger). Without that look it will find the shard empty
        // itself.
        if !self.any.load(Ordering::Relaxed) {
            return;
        }
        let mut list = self.lock();
        let wakers = mem::take(&mut list.wakers);
        self.any.store(false, Ordering::Relaxed);
        drop(list);
        wake(wakers.into_iter().map(|(_, waker)| waker));
    }

    fn lock(&self) -> MutexGuard<'_, WaiterList> {
        lock(&self.list)
    }
}

impl WaiterList {
    fn take(&mut self, id: u64) -> Option<Waker> {
        let place = self.wakers.iter().position(|(other, _)| *other == id)?;
        Some(self.wakers.swap_remove(place).1)
    }
}
