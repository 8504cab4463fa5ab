//! [`Epoch`]: the number of aborts so far. An abort ends the events of earlier epochs.

use crate::util::sync::atomic::{AtomicU64, Ordering};

/// A number of aborts: those so far, or those before an event was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Epoch(u64);

/// The epoch of a registry. It changes only under all locks of shards.
pub(super) struct CurrentEpoch(AtomicU64);

impl CurrentEpoch {
    pub(super) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Returns the current epoch.
    ///
    /// Relaxed: a thread that must see an abort synchronises with it in another way. It has taken the lock of a shard,
    /// which the abort held, or the lock of an exchange, which the abort takes next. Or the abort has woken its task,
    /// and a wake happens before the poll that follows.
    #[inline]
    pub(super) fn load(&self) -> Epoch {
        Epoch(self.0.load(Ordering::Relaxed))
    }

    /// Begins the next epoch, and returns it.
    pub(super) fn advance(&self) -> Epoch {
        Epoch(self.0.fetch_add(1, Ordering::Relaxed) + 1)
    }
}
