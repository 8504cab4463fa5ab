//! [`WaitIdle`]: the future that ends when what was accepted so far has ended.

use std::{
    error::Error,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use crate::{
    house::{House, Shards},
    inside,
    lane::Lane,
    ledger::IdleWait,
    limit::Limit,
    report::{PendingEvents, Seconds},
};

/// The future of [`TrackEventsHandle::wait_idle`](crate::TrackEventsHandle::wait_idle), and for the events of one sink
/// of [`EventSender::flush`](crate::EventSender::flush).
///
/// It does nothing until it is polled. The first poll starts the limit, and decides which events are waited for: those
/// that have been accepted and have not ended. It closes nothing and raises no signal.
///
/// # Errors
///
/// [`WaitIdleError::TimedOut`] when the limit came first, with what was pending; [`WaitIdleError::InsideItself`] when
/// polled inside an event, a handler or a body of the same handle; [`WaitIdleError::NoTimer`] when there is no tokio
/// timer to measure the limit with.
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
/// # Ok(()) }
/// ```
#[must_use = "a wait does nothing unless it is polled"]
pub struct WaitIdle {
    shards: Arc<Shards>,
    /// If it waits for the events of one lane.
    lane: Option<Arc<dyn Lane>>,
    limit: Limit,
    wait: Option<IdleWait<House>>,
    began: u64,
    ended: bool,
}

/// Why a [`WaitIdle`] did not come to its end.
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
///     Err(WaitIdleError::TimedOut { pending, .. }) => assert_eq!(pending[0].name, "audit"),
///     other => panic!("{other:?}"),
/// }
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WaitIdleError {
    /// The limit came first.
    #[non_exhaustive]
    TimedOut {
        /// How long it has waited.
        after: Duration,
        /// What was pending of the events that were waited for, the oldest group first.
        pending: Vec<PendingEvents>,
    },
    /// It was polled inside an event, a handler or a body of the same handle, and would have waited for itself.
    InsideItself,
    /// There is no tokio runtime with a timer to measure the limit with.
    NoTimer,
}

impl WaitIdle {
    pub(crate) fn new(shards: Arc<Shards>, limit: Duration) -> Self {
        Self { shards, lane: None, limit: Limit::after(limit), wait: None, began: 0, ended: false }
    }

    pub(crate) fn for_lane(shards: Arc<Shards>, lane: Arc<dyn Lane>, limit: Duration) -> Self {
        Self { lane: Some(lane), ..Self::new(shards, limit) }
    }

    fn poll_wait(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WaitIdleError>> {
        let ledger = self.shards.ledger();
        if inside::is_inside(self.shards.mine().ledger_id()) {
            return Poll::Ready(Err(WaitIdleError::InsideItself));
        }
        let Ok(is_over) = self.limit.poll(cx) else {
            return Poll::Ready(Err(WaitIdleError::NoTimer));
        };
        if self.wait.is_none() {
            self.began = ledger.context.now();
        }
        let wait = self.wait.get_or_insert_with(|| match &self.lane {
            Some(lane) => IdleWait::for_lane(ledger, Arc::clone(lane)),
            None => IdleWait::begin(ledger),
        });
        if wait.poll(cx.waker()).is_ready() {
            return Poll::Ready(Ok(()));
        }
        if !is_over {
            return Poll::Pending;
        }
        let pending = PendingEvents::of(ledger, wait);
        // What was pending at the question may have ended since.
        if pending.is_empty() {
            return Poll::Ready(Ok(()));
        }
        Poll::Ready(Err(WaitIdleError::TimedOut { after: ledger.context.age(self.began), pending }))
    }
}

impl Future for WaitIdle {
    type Output = Result<(), WaitIdleError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        assert!(!self.ended, "a wait for idleness was polled after it had ended");
        let answer = self.poll_wait(cx);
        if answer.is_ready() {
            self.ended = true;
            self.wait = None;
        }
        answer
    }
}

impl fmt::Debug for WaitIdle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shards: _, lane: _, limit: _, wait, began: _, ended } = self;
        f.debug_struct("WaitIdle").field("polled", &wait.is_some()).field("ended", ended).finish_non_exhaustive()
    }
}

/// Writes a line that says what was pending, and for how long it was waited for.
impl fmt::Display for WaitIdleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut { after, pending } => {
                write!(f, "events were pending after {}: ", Seconds(*after))?;
                pending.iter().enumerate().try_for_each(|(index, events)| {
                    let separator = if index == 0 { "" } else { ", " };
                    write!(f, "{separator}{events}")
                })
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
