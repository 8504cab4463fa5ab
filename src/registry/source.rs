//! [`Source`]: pending work that is stored outside of the shards, such as the queue of a sink.
//!
//! A source counts its own events, under its own lock, and takes part in every look at all counts and in every closing.
//! Its lock is taken after those of the shards.

use std::{collections::BTreeMap, panic::Location, sync::Arc};

use tokio::time::Instant;

use crate::registry::{
    Phase,
    counts::{EventFailures, Group, Open, SinkSnapshot, Snapshot},
};

pub(crate) trait Source: Send + Sync {
    fn lock(&self) -> Box<dyn LockedSource + '_>;
}

pub(crate) trait LockedSource {
    fn counts(&self) -> Snapshot;

    fn snapshot(&self) -> SinkSnapshot;

    /// Returns the counts of the events that did not complete.
    fn failures(&self) -> Option<&EventFailures>;

    /// Returns the number of permits ever opened.
    fn ever_opened(&self) -> u64;

    /// Returns the sink, if a drain waits for it although nothing is pending. Then its code still runs for values that
    /// were detached, or it has not been dropped since the registry was closed.
    fn running_sink(&self) -> Option<RunningSink>;

    /// Adds the pending values and the permits to `open`.
    fn add_open(&self, open: &mut Open);

    fn set_phase(&mut self, phase: Phase);

    /// Makes queued values due, so that they are delivered without waiting for a full batch.
    fn flush(&mut self, flush: Flush);

    /// Removes the pending values, so that only the returned `Detached` ends them. `None` if there are none, or if they
    /// stay for this reason.
    fn detach(&mut self, reason: Detach) -> Option<Detached>;
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flush {
    /// The values that are queued now.
    Now,
    /// The values that are queued now, and all later ones.
    FromNowOn,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detach {
    /// An abort: all pending values end.
    Abort,
    /// A drain has timed out: the pending values end only if the sink has `on_undelivered`.
    TimedOut,
}

/// A sink that a drain waits for although nothing is pending.
pub(crate) struct RunningSink {
    pub(crate) name: &'static str,
    pub(crate) location: &'static Location<'static>,
    /// When the last delivery began, or when the registry was closed.
    pub(crate) since: Instant,
}

/// Values that were removed from their source and have not ended.
pub(crate) struct Detached {
    pub(crate) name: &'static str,
    pub(crate) location: &'static Location<'static>,
    pub(crate) group: Group,
    /// Ends the values. It runs user code, and is to be called without a lock.
    pub(crate) end: Box<dyn FnOnce() + Send>,
}

/// The sources of a registry.
#[derive(Default)]
pub(super) struct Sources {
    pub(super) open: Vec<Arc<dyn Source>>,
    /// Whether a drain has been polled.
    pub(super) is_flushing: bool,
    /// The counts of the sources that were removed, by name.
    pub(super) retired: BTreeMap<&'static str, Retired>,
}

pub(super) struct Retired {
    pub(super) snapshot: SinkSnapshot,
    pub(super) failures: Option<EventFailures>,
    pub(super) ever_opened: u64,
}

impl Sources {
    #[cfg_attr(not(feature = "sink"), allow(dead_code, reason = "only sinks are sources"))]
    pub(super) fn position(&self, source: &Arc<dyn Source>) -> Option<usize> {
        self.open.iter().position(|other| Arc::as_ptr(other).addr() == Arc::as_ptr(source).addr())
    }

    pub(super) fn lock_all(&self) -> Vec<Box<dyn LockedSource + '_>> {
        self.open.iter().map(|source| source.lock()).collect()
    }

    #[cfg_attr(not(feature = "sink"), allow(dead_code, reason = "only sinks are sources"))]
    /// Adds the last counts of a source that was removed.
    pub(super) fn retire(&mut self, last: Retired) {
        match self.retired.get_mut(last.snapshot.name) {
            Some(retired) => {
                retired.snapshot.add(&last.snapshot);
                retired.ever_opened += last.ever_opened;
                match (&mut retired.failures, last.failures) {
                    (Some(failures), Some(last)) => failures.add(&last),
                    (failures, last) => *failures = failures.take().or(last),
                }
            }
            None => drop(self.retired.insert(last.snapshot.name, last)),
        }
    }
}
