//! [`Ticket`]: responsibility for one entry.

use std::{mem, panic::Location, sync::Arc, task::Waker};

use tokio::time::Instant;

use crate::{
    registry::{
        counts::Ending,
        entry::{Kind, OnAbort, Stage},
        epoch::Epoch,
        shard::{NewEvent, Shard},
    },
    util::sync::{seeded, seeded_gap},
};

/// The key of a ticket whose entry has been removed.
const REMOVED: usize = usize::MAX;

/// Responsibility for one entry. Dropping it removes the entry. An event counts as aborted then.
#[must_use = "the entry is removed when its ticket is dropped"]
pub(crate) struct Ticket<C> {
    shard: Arc<Shard<C>>,
    key: usize,
    epoch: Epoch,
}

impl<C> Ticket<C> {
    #[inline]
    pub(super) fn new(shard: Arc<Shard<C>>, key: usize, epoch: Epoch) -> Self {
        Self { shard, key, epoch }
    }

    #[inline]
    pub(crate) fn shard(&self) -> &Arc<Shard<C>> {
        &self.shard
    }

    /// Removes the entry of an event, and counts its ending.
    #[inline]
    pub(crate) fn end(mut self, ending: Ending, error: Option<String>) {
        self.shard.leave(mem::replace(&mut self.key, REMOVED), ending, error);
    }

    /// Turns a permit into an event. The slot of the permit becomes that of the event.
    pub(crate) fn into_event(mut self, event: NewEvent) -> Self {
        let mut state = self.shard.lock();
        let kind = event.kind();
        if let Some(entry) = state.entries.get_mut(self.key) {
            (entry.kind, entry.location, entry.since) = (kind, event.location, event.since);
            state.counts.reserved -= 1;
            seeded_gap!("a permit becomes an event under two locks", state = self.shard.lock());
            state.counts.pending += 1;
            state.counts.accepted += 1;
        }
        seeded_gap!("a permit that becomes an event reads the epoch under a later lock", state = self.shard.lock());
        // The epoch is read under the lock of the entry, as for every event. So an abort comes either before the permit
        // became an event, or after it.
        self.epoch = self.shard.registry.epoch.load();
        let wakes_nobody = seeded!("the last permit that becomes an event wakes nobody");
        let is_last_holder = state.counts.holders() == 0 && !wakes_nobody;
        drop(state);
        if is_last_holder {
            self.shard.registry.waiters.wake_all();
        }
        self
    }

    /// Returns whether the event was aborted.
    #[inline]
    pub(crate) fn is_aborted(&self) -> bool {
        self.is_before(self.shard.registry.epoch.load())
    }

    #[inline]
    pub(crate) fn is_before(&self, epoch: Epoch) -> bool {
        self.epoch < epoch
    }

    /// Registers the waker that an abort wakes. Returns the current epoch: the waker is not woken for aborts up to that
    /// epoch, so the caller checks it.
    pub(crate) fn wake_on_abort(&self, waker: &Waker) -> Epoch {
        let mut on_abort = OnAbort::Wake(waker.clone());
        let mut state = self.shard.lock();
        let epoch = self.shard.registry.epoch.load();
        seeded_gap!("the epoch is read before a task registers", state = self.shard.lock());
        if let Some(entry) = state.entries.get_mut(self.key) {
            mem::swap(&mut entry.on_abort, &mut on_abort);
        }
        drop(state);
        // The previous waker is dropped without the lock.
        drop(on_abort);
        epoch
    }

    /// Records that the event, which waited for the end of its exchange, has started.
    pub(crate) fn set_running(&self, since: Instant) {
        if let Some(entry) = self.shard.lock().entries.get_mut(self.key) {
            if let Kind::Event { stage, .. } = &mut entry.kind {
                *stage = Stage::Running;
            }
            entry.since = since;
        }
    }

    /// Changes the stage of the event in reports.
    pub(crate) fn set_stage(&self, new: Stage) {
        if let Some(Kind::Event { stage, .. }) =
            self.shard.lock().entries.get_mut(self.key).map(|entry| &mut entry.kind)
        {
            *stage = new;
        }
    }

    /// Records that the event runs on a blocking thread. An abort does not reach it any more.
    pub(crate) fn set_blocking(&self) {
        let mut state = self.shard.lock();
        let on_abort = state.entries.get_mut(self.key).map(|entry| {
            if let Kind::Event { stage, .. } = &mut entry.kind {
                *stage = Stage::Blocking;
            }
            mem::take(&mut entry.on_abort)
        });
        drop(state);
        drop(on_abort);
    }

    /// Returns the name of the event and the source location that tracked it. They are stored in the entry only,
    /// because most events end without a need for them.
    pub(crate) fn name_and_location(&self) -> (&'static str, &'static Location<'static>) {
        match self.shard.lock().entries.get(self.key) {
            Some(entry) => match entry.kind {
                Kind::Event { name, .. } => (name, entry.location),
                _ => ("", entry.location),
            },
            None => ("", Location::caller()),
        }
    }
}

impl<C> Drop for Ticket<C> {
    fn drop(&mut self) {
        if self.key != REMOVED {
            self.shard.leave(self.key, Ending::Aborted, None);
        }
    }
}
