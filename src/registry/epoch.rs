//! Epochs: an abort ends the events of the epochs before it.

use crate::util::sync::atomic::{AtomicU64, Ordering};

/// A number of aborts: so far, or before an event was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Epoch(u64);

/// The epoch of a registry. It changes only under all locks of shards.
pub(super) struct CurrentEpoch(AtomicU64);

impl CurrentEpoch {
    pub(super) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Relaxed: a thread that must see an abort has taken a lock after it. That is the lock of a shard, which the abort
    /// held; the lock of an exchange, which the abort takes next; or whatever synchronises a waker with the poll that
    /// follows.
    #[inline]
    pub(super) fn load(&self) -> Epoch {
        Epoch(self.0.load(Ordering::Relaxed))
    }

    pub(super) fn advance(&self) -> Epoch {
        Epoch(self.0.fetch_add(1, Ordering::Relaxed) + 1)
    }
}
