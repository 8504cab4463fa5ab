//! [`Entry`]: the record of a request, guard, permit or event in a registry.

use std::{borrow::Cow, panic::Location, sync::Arc, task::Waker};

use tokio::time::Instant;

use crate::registry::epoch::Epoch;

pub(super) struct Entry {
    pub(super) kind: Kind,
    pub(super) location: &'static Location<'static>,
    /// When it was opened or tracked. For an event of an exchange, when the exchange began, and once the event runs,
    /// when the exchange ended.
    pub(super) since: Instant,
    pub(super) on_abort: OnAbort,
}

/// How an abort reaches the events behind an entry.
#[derive(Default)]
pub(super) enum OnAbort {
    #[default]
    Nothing,
    /// Wakes the task that runs the event. The task then checks the epoch. (Work that waits for a blocking thread ends
    /// in the call of its waker.)
    Wake(Waker),
    /// Calls the request, which keeps its events until its exchange is over.
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

    /// Returns the name of the request for reports, if it has one. Called under the locks of all shards.
    fn label(&self) -> Option<Cow<'static, str>>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    Request,
    Guard,
    Permit,
    Event { name: &'static str, stage: Stage },
}

/// The state of a pending event, for reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Stage {
    /// The event waits for the end of its exchange.
    Waiting,
    /// The event has started.
    Running,
    /// The event waits until the concurrency limit lets it run.
    Limited,
    /// The event runs on a blocking thread and cannot be aborted.
    Blocking,
    /// The event was sent to a sink and has not been delivered.
    #[cfg_attr(not(feature = "sink"), allow(dead_code, reason = "only sinks have queues"))]
    Queued,
}

impl Kind {
    #[inline]
    pub(super) fn needs_capacity(self) -> bool {
        matches!(self, Self::Permit | Self::Event { .. })
    }

    /// Returns whether an entry of this kind keeps a drain from closing: requests, guards and permits do.
    #[inline]
    pub(super) fn is_holder(self) -> bool {
        !matches!(self, Self::Event { .. })
    }
}
