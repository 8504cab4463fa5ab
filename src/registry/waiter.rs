//! [`Waiter`]: the registration of a drain or a wait for idleness.

use std::{sync::Arc, task::Waker};

use tokio::time::Instant;

use crate::{
    registry::{Phase, Registry, drains::Left},
    util::sync::seeded,
};

/// The registration of a drain or a wait for idleness. Dropping it removes the registration.
pub(crate) struct Waiter<C> {
    registry: Arc<Registry<C>>,
    id: u64,
    is_drain: bool,
}

impl<C> Waiter<C> {
    /// Makes the registration of a wait for idleness.
    pub(crate) fn new(registry: &Arc<Registry<C>>) -> Self {
        Self::with(registry, false)
    }

    /// Makes the registration of a drain with this deadline, if the drain has a known one. When the last one of a drain
    /// is dropped, everything is accepted again, unless the registry is closed.
    pub(crate) fn for_drain(registry: &Arc<Registry<C>>, deadline: Option<Instant>) -> Self {
        let waiter = Self::with(registry, true);
        registry.drains.enter(waiter.id, deadline);
        waiter
    }

    fn with(registry: &Arc<Registry<C>>, is_drain: bool) -> Self {
        Self { registry: Arc::clone(registry), id: registry.waiters.next_id(), is_drain }
    }

    /// Registers `waker`. It is woken, once, when a shard or a source has run out of holders or of pending events, or
    /// when the registry has closed. To be called before the look at the counts.
    pub(crate) fn register(&self, waker: &Waker) {
        self.registry.waiters.register(self.id, waker);
    }

    /// Returns whether no other drain has a later deadline.
    pub(crate) fn is_latest_drain(&self) -> bool {
        self.registry.drains.is_latest(self.id)
    }
}

impl<C> Drop for Waiter<C> {
    fn drop(&mut self) {
        self.registry.waiters.leave(self.id);
        if !self.is_drain {
            return;
        }
        match self.registry.drains.leave(self.id) {
            Left::Earlier => {}
            Left::Later if seeded!("a drain that was the latest wakes no other") => {}
            // Another drain is the latest now, and its last call may be due.
            Left::Later => self.registry.wake_waiters(),
            Left::Last => self.reopen(),
        }
    }
}

impl<C> Waiter<C> {
    /// Sets the phase back to `Open` after the last drain has gone.
    fn reopen(&self) {
        if self.registry.states[0].lock().phase == Phase::Closing {
            self.registry.at_one_instant(|all| {
                // Checked again under all locks: a drain that was polled meanwhile needs the phase `Closing`.
                let is_last = self.registry.drains.is_empty();
                let is_last = is_last || seeded!("a drain that is dropped does not look for others again");
                if is_last && all.shards[0].phase == Phase::Closing {
                    all.set_phase(Phase::Open);
                }
            });
        }
    }
}
