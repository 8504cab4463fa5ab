//! [`Drain`]: the future that ends when nothing is left.

use std::{
    fmt, future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::{self, Sleep};

use crate::{
    contain::contain,
    house::{House, Shards},
    inside,
    ledger::{Look, Waiter},
    report::{DrainError, DrainReport, Unfinished},
};

pin_project! {
    /// The future of a drain, from [`TrackEventsHandle::drain`](crate::TrackEventsHandle::drain) or
    /// [`TrackEventsHandle::drain_until`](crate::TrackEventsHandle::drain_until).
    ///
    /// It does nothing until it is polled. The first poll raises the drain signal, if nobody has, and starts the limit.
    /// From then on it waits until no request, guard or permit is open and no event is pending, lets the house settle,
    /// and closes the ledger. It is `'static` and `Send`, and can be spawned.
    ///
    /// # Errors
    ///
    /// [`DrainError::CutShort`] when the limit came first, with what was open;
    /// [`DrainError::InsideItself`] when polled inside an event, a handler or a body of the same handle;
    /// [`DrainError::NoTimer`] when there is no tokio timer to measure the limit or the settle time with.
    ///
    /// # Panics
    ///
    /// When polled again after it has ended.
    ///
    /// # Cancel safety
    ///
    /// Dropping a drain loses no event and closes nothing; the signal stays raised. Several drains of one handle may be
    /// polled at the same time, and agree.
    #[must_use = "a drain does nothing unless it is polled"]
    pub struct Drain<S = future::Pending<()>> {
        shards: Arc<Shards>,
        limit: Limit,
        #[pin]
        stop: S,
        waiter: Option<Waiter<House>>,
        quiet: Option<Quiet>,
        ended: bool,
    }
}

enum Limit {
    Never,
    After(Duration),
    Running(Pin<Box<Sleep>>),
    Over,
}

/// A time in which nothing has been open and nothing has come in, so far.
struct Quiet {
    arrivals: u64,
    settled: Pin<Box<Sleep>>,
}

impl Drain {
    pub(crate) fn within(shards: Arc<Shards>, limit: Duration) -> Self {
        Self::new(shards, Limit::After(limit), future::pending())
    }
}

impl<S> Drain<S> {
    pub(crate) fn until(shards: Arc<Shards>, stop: S) -> Self {
        Self::new(shards, Limit::Never, stop)
    }

    fn new(shards: Arc<Shards>, limit: Limit, stop: S) -> Self {
        Self { shards, limit, stop, waiter: None, quiet: None, ended: false }
    }
}

impl<S: Future> Future for Drain<S> {
    type Output = Result<DrainReport, DrainError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        assert!(!*this.ended, "a drain was polled after it had ended");
        let ledger = this.shards.ledger();
        if inside::is_inside(this.shards.mine().ledger_id()) {
            *this.ended = true;
            return Poll::Ready(Err(DrainError::InsideItself));
        }
        let settle = ledger.context.settle;
        let began = this.shards.begin_drain();

        let answer = 'answer: {
            let Ok(mut is_over) = this.limit.poll(cx) else {
                break 'answer Err(DrainError::NoTimer);
            };
            is_over |= this.stop.as_mut().poll(cx).is_ready();

            // Registered before the look, so that whatever empties the house after it is heard of.
            this.waiter.get_or_insert_with(|| Waiter::new(ledger)).register(cx.waker());
            loop {
                let quiet = this.quiet.as_mut();
                let settled = quiet.is_some_and(|quiet| quiet.settled.as_mut().poll(cx).is_ready());
                let arrivals_before = this.quiet.as_ref().map(|quiet| quiet.arrivals);
                let may_close =
                    |arrivals| is_over || settle.is_zero() || (settled && arrivals_before == Some(arrivals));
                match ledger.look(may_close) {
                    Look::Closed => break 'answer Ok(DrainReport::of(ledger, began)),
                    Look::Busy if is_over => {
                        let unfinished = Unfinished::of(ledger, began);
                        // What was open at the look may have ended since: then the next look closes.
                        if !unfinished.is_empty() {
                            break 'answer Err(DrainError::CutShort(Box::new(unfinished)));
                        }
                    }
                    Look::Busy => {
                        *this.quiet = None;
                        return Poll::Pending;
                    }
                    Look::Idle { arrivals } if arrivals_before == Some(arrivals) => return Poll::Pending,
                    Look::Idle { arrivals } => {
                        // Round again, to poll the new timer.
                        let Some(settled) = sleep(settle) else {
                            break 'answer Err(DrainError::NoTimer);
                        };
                        *this.quiet = Some(Quiet { arrivals, settled });
                    }
                }
            }
        };
        *this.ended = true;
        *this.waiter = None;
        Poll::Ready(answer)
    }
}

impl Limit {
    /// Whether the limit is over; an error if it cannot be measured.
    fn poll(&mut self, cx: &mut Context<'_>) -> Result<bool, ()> {
        if let Self::After(limit) = *self {
            *self = match limit {
                Duration::ZERO => Self::Over,
                Duration::MAX => Self::Never,
                limit => Self::Running(sleep(limit).ok_or(())?),
            };
        }
        Ok(match self {
            Self::Running(sleep) => sleep.as_mut().poll(cx).is_ready(),
            Self::Over => true,
            Self::Never | Self::After(_) => false,
        })
    }
}

/// A timer; `None` where there is none, which tokio says only by a panic.
fn sleep(duration: Duration) -> Option<Pin<Box<Sleep>>> {
    contain(|| Box::pin(time::sleep(duration))).ok()
}

impl<S> fmt::Debug for Drain<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shards: _, limit, stop: _, waiter, quiet, ended } = self;
        let limit = match limit {
            Limit::Never => None,
            Limit::After(limit) => Some(*limit),
            Limit::Running(sleep) => Some(sleep.deadline().saturating_duration_since(time::Instant::now())),
            Limit::Over => Some(Duration::ZERO),
        };
        f.debug_struct("Drain")
            .field("polled", &waiter.is_some())
            .field("limit_left", &limit)
            .field("settling", &quiet.is_some())
            .field("ended", ended)
            .finish_non_exhaustive()
    }
}
