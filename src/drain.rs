//! [`Drain`]: the future that ends when nothing is left.

use std::{
    fmt, future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};

use crate::{
    contain::contain,
    entry::Nanos,
    house::{House, Shards},
    inside,
    ledger::{Ledger, Look, Waiter},
    limit::{Limit, poll_sleep, sleep},
    metrics,
    report::{DrainError, DrainReport, Progress, Unfinished},
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
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    ///
    /// use tower_track_events::{Drain, TrackEventsHandle};
    ///
    /// let handle = TrackEventsHandle::new();
    /// let drain: Drain = handle.drain(Duration::from_secs(8));
    /// let report = tokio::spawn(drain).await??;
    /// assert!(report.all_completed());
    /// # Ok(()) }
    /// ```
    #[must_use = "a drain does nothing unless it is polled"]
    pub struct Drain<S = future::Pending<()>> {
        shards: Arc<Shards>,
        limit: Limit,
        #[pin]
        stop: S,
        waiter: Option<Waiter<House>>,
        quiet: Option<Quiet>,
        progress: Option<ProgressTimer>,
        ended: bool,
    }
}

/// When the next line about the progress is due.
struct ProgressTimer {
    began: Nanos,
    due: Pin<Box<Sleep>>,
}

/// A time in which nothing has been open and nothing has come in, so far.
struct Quiet {
    arrivals: u64,
    settled: Pin<Box<Sleep>>,
}

impl Drain {
    pub(crate) fn within(shards: Arc<Shards>, limit: Duration) -> Self {
        Self::new(shards, Limit::after(limit), future::pending())
    }
}

impl<S> Drain<S> {
    pub(crate) fn until(shards: Arc<Shards>, stop: S) -> Self {
        Self::new(shards, Limit::Never, stop)
    }

    fn new(shards: Arc<Shards>, limit: Limit, stop: S) -> Self {
        Self { shards, limit, stop, waiter: None, quiet: None, progress: None, ended: false }
    }
}

impl<S: Future> Drain<S> {
    /// The answer, once. After a poll that is pending there is a waiter.
    fn poll_answer(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<DrainReport, DrainError>> {
        let mut this = self.project();
        let ledger = this.shards.ledger();
        if inside::is_inside(this.shards.mine().ledger_id()) {
            return Poll::Ready(Err(DrainError::InsideItself));
        }
        let is_first_poll = this.waiter.is_none();
        if is_first_poll {
            this.shards.begin_drain();
        }
        let settle = ledger.context.settings.settle;
        let began = this.shards.drain_began();

        let Ok(mut is_over) = this.limit.poll(cx) else {
            return Poll::Ready(Err(DrainError::NoTimer));
        };
        is_over |= this.stop.as_mut().poll(cx).is_ready();

        poll_progress(this.progress, ledger, this.limit, cx);

        if is_first_poll {
            // What is queued for a sink need not wait for more: nothing will come.
            ledger.flush_lanes();
        }
        let mut is_registered = false;
        loop {
            let settled = match this.quiet {
                Some(quiet) => poll_sleep(&mut quiet.settled, cx),
                None => Ok(false),
            };
            let Ok(settled) = settled else {
                return Poll::Ready(Err(DrainError::NoTimer));
            };
            let arrivals_before = this.quiet.as_ref().map(|quiet| quiet.arrivals);
            let may_close = |arrivals| is_over || settle.is_zero() || (settled && arrivals_before == Some(arrivals));
            match ledger.look(may_close) {
                Look::Closed(account) => {
                    let now = ledger.context.now();
                    return Poll::Ready(Ok(DrainReport::new(account, began, now)));
                }
                Look::Busy if is_over => {
                    let given_up = ledger.give_up_lanes();
                    let unfinished = Unfinished::of(ledger, began, given_up);
                    // What was open at the look may have ended since: then the next look closes.
                    if !unfinished.is_empty() {
                        return Poll::Ready(Err(DrainError::CutShort(Box::new(unfinished))));
                    }
                }
                Look::Busy | Look::Idle { .. } if !is_registered => {
                    // And a look after it, so that whatever empties the house is heard of.
                    this.waiter.get_or_insert_with(|| Waiter::new(ledger)).register(cx.waker());
                    is_registered = true;
                }
                Look::Busy => {
                    *this.quiet = None;
                    return Poll::Pending;
                }
                Look::Idle { arrivals } if arrivals_before == Some(arrivals) => return Poll::Pending,
                Look::Idle { arrivals } => {
                    // Round again, to poll the new timer.
                    let Ok(settled) = sleep(settle) else {
                        return Poll::Ready(Err(DrainError::NoTimer));
                    };
                    *this.quiet = Some(Quiet { arrivals, settled });
                }
            }
        }
    }
}

impl<S: Future> Future for Drain<S> {
    type Output = Result<DrainReport, DrainError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        assert!(!self.ended, "a drain was polled after it had ended");
        let answer = self.as_mut().poll_answer(cx);
        if let Poll::Ready(ready) = &answer {
            let this = self.project();
            *this.ended = true;
            *this.waiter = None;
            match ready {
                Ok(report) => metrics::drained(report.elapsed, "drained"),
                Err(DrainError::CutShort(unfinished)) => metrics::drained(unfinished.report.elapsed, "cut_short"),
                Err(DrainError::InsideItself | DrainError::NoTimer) => {}
            }
        }
        answer
    }
}

/// Logs what is left, each time that a line about it is due.
fn poll_progress(timer: &mut Option<ProgressTimer>, ledger: &Ledger<House>, limit: &Limit, cx: &mut Context<'_>) {
    let house = &ledger.context;
    let every = house.settings.progress;
    if every.is_zero() {
        return;
    }
    if timer.is_none() {
        let began = house.now();
        // Without a timer there is no progress to tell of.
        *timer = sleep(every).ok().map(|due| ProgressTimer { began, due });
    }
    let Some(ProgressTimer { began, due }) = timer else { return };
    while poll_sleep(due, cx).unwrap_or(false) {
        due.as_mut().reset(Instant::now() + every);
        let _ = contain(|| {
            if tracing::enabled!(tracing::Level::INFO) {
                let progress = Progress::of(ledger, house.age(*began), limit.duration());
                tracing::info!("{progress}");
            }
        });
    }
}

impl<S> fmt::Debug for Drain<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shards: _, limit, stop: _, waiter, quiet, progress: _, ended } = self;
        f.debug_struct("Drain")
            .field("polled", &waiter.is_some())
            .field("limit_left", &limit.left())
            .field("settling", &quiet.is_some())
            .field("ended", ended)
            .finish_non_exhaustive()
    }
}
