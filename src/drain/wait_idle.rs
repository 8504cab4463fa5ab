//! [`WaitIdle`]: the future that waits for an instant at which no event is pending.

use std::{
    cmp::Reverse,
    error::Error,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    context::{self, Shards},
    drain::OpenItem,
    registry::{Flush, Kind, Waiter},
    util::{
        deadline::Deadline,
        reentrancy,
        sync::seeded,
        text::{Joined, Seconds},
    },
};

/// The future of [`TrackEventsHandle::wait_idle`](crate::TrackEventsHandle::wait_idle).
///
/// It does nothing until it is polled. The first poll starts the limit. It closes nothing and raises no signal.
///
/// # Errors
///
/// - [`WaitIdleError::TimedOut`] when the limit passed first, with the events that were pending.
/// - [`WaitIdleError::InsideItself`] when polled inside an event, a handler or a body of the same handle.
/// - [`WaitIdleError::NoTimer`] when there is no tokio timer for the limit.
///
/// # Panics
///
/// When polled again after it has ended.
///
/// # Cancel safety
///
/// Dropping it loses nothing. Several may be polled at the same time.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// use tower_track_events::{TrackEventsHandle, WaitIdle};
///
/// let handle = TrackEventsHandle::new();
/// handle.track("audit", async {})?;
/// let idle: WaitIdle = handle.wait_idle(Duration::from_secs(1));
/// idle.await?;
/// assert_eq!(handle.snapshot().pending, 0);
/// handle.track("audit", async {})?; // nothing was closed
/// # Ok(()) }
/// ```
#[must_use = "a wait does nothing unless it is polled"]
pub struct WaitIdle {
    shards: Arc<Shards>,
    deadline: Deadline,
    waiter: Option<Waiter<context::Context>>,
    /// When it was first polled.
    began: Option<Instant>,
    has_ended: bool,
}

/// Why a [`WaitIdle`] or a [`Flush`](crate::sink::Flush) was not `Ok`.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use std::time::Duration;
/// use tower_track_events::{TrackEventsHandle, WaitIdleError};
///
/// let handle = TrackEventsHandle::new();
/// handle.track("audit", std::future::pending::<()>()).unwrap();
///
/// match handle.wait_idle(Duration::ZERO).await {
///     Err(WaitIdleError::TimedOut { open, .. }) => assert_eq!(open[0].name.as_deref(), Some("audit")),
///     other => panic!("{other:?}"),
/// }
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WaitIdleError {
    /// The limit passed first.
    #[non_exhaustive]
    TimedOut {
        /// The time since the first poll.
        after: Duration,
        /// The events that were pending, the oldest group first.
        open: Vec<OpenItem>,
    },
    /// A [`WaitIdle`] was polled inside an event, a handler or a body of the same handle, or a
    /// [`Flush`](crate::sink::Flush) inside a delivery of the same sink. It would wait for itself.
    InsideItself,
    /// There is no tokio runtime with a timer for the limit.
    NoTimer,
}

impl WaitIdle {
    pub(crate) fn new(shards: Arc<Shards>, limit: Duration) -> Self {
        Self { shards, deadline: Deadline::after(limit), waiter: None, began: None, has_ended: false }
    }

    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WaitIdleError>> {
        let registry = self.shards.registry();
        if reentrancy::is_inside(registry.id()) {
            return Poll::Ready(Err(WaitIdleError::InsideItself));
        }
        let Ok(is_late) = self.deadline.poll(cx) else { return Poll::Ready(Err(WaitIdleError::NoTimer)) };
        let began = *self.began.get_or_insert_with(Instant::now);
        let flushes_first = seeded!("a wait for idleness flushes before it looks");
        if flushes_first {
            registry.flush(Flush::Now);
        }
        // Before the look at the counts: an event that ends after the look wakes this task.
        self.waiter.get_or_insert_with(|| Waiter::new(registry)).register(cx.waker());
        if registry.snapshot().pending == 0 {
            return Poll::Ready(Ok(()));
        }
        if !is_late {
            // After the look: the flush includes every value that was pending then, and the last one that ends wakes
            // this task.
            if !flushes_first {
                registry.flush(Flush::Now);
            }
            return Poll::Pending;
        }
        let open = pending(&registry.account().open);
        // The events that were pending at the look may have ended since.
        if open.is_empty() {
            return Poll::Ready(Ok(()));
        }
        Poll::Ready(Err(WaitIdleError::TimedOut { after: began.elapsed(), open }))
    }
}

/// Returns the pending events, the oldest group first.
pub(crate) fn pending(open: &crate::registry::Open) -> Vec<OpenItem> {
    let mut events = open.clone();
    events.retain(|(kind, ..), _| matches!(kind, Kind::Event { .. }));
    let mut events: Vec<_> = OpenItem::all(&events, Instant::now()).collect();
    events.sort_by_key(|item| Reverse(item.oldest));
    events
}

impl Future for WaitIdle {
    type Output = Result<(), WaitIdleError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        assert!(!self.has_ended, "a wait for idleness was polled after it had ended");
        let idle = self.poll_idle(cx);
        if idle.is_ready() {
            self.has_ended = true;
            self.waiter = None;
        }
        idle
    }
}

impl fmt::Debug for WaitIdle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shards: _, deadline, waiter: _, began, has_ended } = self;
        f.debug_struct("WaitIdle")
            .field("started", &began.is_some())
            .field("limit_left", &deadline.left())
            .field("ended", has_ended)
            .finish_non_exhaustive()
    }
}

/// Writes a line: which events were pending, and how long the wait took.
impl fmt::Display for WaitIdleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut { after, open } => {
                write!(f, "events were pending after {}: {}", Seconds(*after), Joined(open.iter()))
            }
            Self::InsideItself => f.write_str(
                "the wait was polled inside an event, a handler or a body of its own handle and would wait for itself: \
                 wait in a task of its own",
            ),
            Self::NoTimer => f.write_str(
                "the wait needs a tokio runtime with timers: enable them with `enable_time`, or pass a limit of zero",
            ),
        }
    }
}

impl Error for WaitIdleError {}
