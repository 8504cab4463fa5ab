//! Pending work that is kept outside of the shards: the values in the queue of a sink.
//!
//! A source counts its own events, under its own lock, and takes part in every look at all counts and in every closing.
//! Its lock comes after those of the shards.

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

    /// Those that did not complete.
    fn failures(&self) -> Option<&EventFailures>;

    /// How many permits were ever taken.
    fn ever_opened(&self) -> u64;

    /// The sink, if a drain waits for it although nothing is pending: its code still runs for values that were
    /// detached, or it has not been dropped since the registry was closed.
    fn running_sink(&self) -> Option<RunningSink>;

    /// Adds what is pending or reserved.
    fn add_open(&self, open: &mut Open);

    fn set_phase(&mut self, phase: Phase);

    /// Lets what is queued be delivered without waiting for more.
    fn flush(&mut self, flush: Flush);

    /// Takes what is pending away, so that nothing else ends it.
    fn detach(&mut self, reason: Detach) -> Option<Detached>;
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flush {
    /// What is queued now.
    Now,
    /// What is queued now, and what will be.
    FromNowOn,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detach {
    /// An abort: everything that is pending ends.
    Abort,
    /// A drain has timed out: what is pending ends only if something takes what was not delivered.
    TimedOut,
}

/// A sink that a drain waits for although nothing is pending.
pub(crate) struct RunningSink {
    pub(crate) name: &'static str,
    pub(crate) location: &'static Location<'static>,
    /// When its last delivery began, or when the registry was closed.
    pub(crate) since: Instant,
}

/// Events that were taken away from their source.
pub(crate) struct Detached {
    pub(crate) name: &'static str,
    pub(crate) location: &'static Location<'static>,
    pub(crate) group: Group,
    /// Ends them. Runs user code: to be called without a lock.
    pub(crate) end: Box<dyn FnOnce() + Send>,
}

/// The sources of a registry.
#[derive(Default)]
pub(super) struct Sources {
    pub(super) open: Vec<Arc<dyn Source>>,
    /// A drain waits, or has waited.
    pub(super) is_flushing: bool,
    /// What those counted that are gone, by name.
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
    /// Adds the last counts of a source that is gone.
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
