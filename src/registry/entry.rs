//! What a registry keeps of each thing that a drain waits for.

use std::{borrow::Cow, panic::Location, sync::Arc, task::Waker};

use tokio::time::Instant;

use crate::registry::epoch::Epoch;

pub(super) struct Entry {
    pub(super) kind: Kind,
    pub(super) location: &'static Location<'static>,
    /// When it was opened or tracked; of an event of an exchange, when that began, or, once the event runs, when it
    /// ended.
    pub(super) since: Instant,
    pub(super) on_abort: OnAbort,
}

/// How an abort reaches the events behind an entry.
#[derive(Default)]
pub(super) enum OnAbort {
    #[default]
    Nothing,
    /// The task that runs the event looks at the epoch when it is woken. (Work that waits for a blocking thread ends in
    /// the call of its waker.)
    Wake(Waker),
    /// The request keeps its events until its exchange is over.
    Request(Arc<dyn OpenRequest>),
}

/// The exchange of an open request, as the registry sees it.
pub(crate) trait OpenRequest: Send + Sync {
    /// Ends the events that are kept for the end of the exchange and were tracked before `epoch`. Called without a
    /// lock.
    fn abort(&self, epoch: Epoch);

    /// Starts the events that are kept for the end of the exchange, and returns how many these were. Called without a
    /// lock.
    fn last_call(&self) -> usize;

    /// What it is called in reports, if it has a name. Called under the locks of all shards.
    fn label(&self) -> Option<Cow<'static, str>>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    Request,
    Guard,
    Permit,
    Event { name: &'static str, stage: Stage },
}

/// How far an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Stage {
    /// Its exchange is not over.
    Waiting,
    Running,
    /// It waits until fewer events run than the concurrency limit.
    Limited,
    /// It runs on a blocking thread and cannot be aborted.
    Blocking,
    /// It was sent to a sink that has not taken it.
    #[cfg_attr(not(feature = "sink"), allow(dead_code, reason = "only sinks have queues"))]
    Queued,
}

impl Kind {
    #[inline]
    pub(super) fn needs_capacity(self) -> bool {
        matches!(self, Self::Permit | Self::Event { .. })
    }

    /// Requests, guards and permits keep a drain from closing.
    #[inline]
    pub(super) fn is_holder(self) -> bool {
        !matches!(self, Self::Event { .. })
    }
}
