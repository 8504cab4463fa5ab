//! [`Drain`]: the future that ends when no request is open and no event is pending.

mod draining;
mod progress;
mod report;
mod wait_idle;

use std::{
    fmt,
    future::ready,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep};

use self::progress::Progress;
#[cfg(feature = "sink")]
pub(crate) use self::wait_idle::pending;
pub use self::{
    draining::Draining,
    report::{DrainError, DrainReport, OpenItem, OpenKind},
    wait_idle::{WaitIdle, WaitIdleError},
};
use crate::{
    context::{self, Shards},
    metrics,
    registry::{Flush, Look, MayClose, Waiter},
    util::{
        deadline::{Deadline, NoTimer, poll_sleep, sleep},
        reentrancy,
    },
};

/// The future of [`TrackEventsHandle::drain`](crate::TrackEventsHandle::drain) and
/// [`drain_until`](crate::TrackEventsHandle::drain_until).
///
/// It does nothing until it is polled. The first poll raises the drain signal, if it is not raised yet, and starts the
/// limit. Then the drain goes through these steps:
///
/// 1. It waits until no request, guard or permit has been open for the
///    [quiet period](crate::TrackEventsHandleBuilder::quiet_period).
/// 2. It is *closing*: only code inside an event may track. It waits until no event is pending.
/// 3. It closes the handle, and waits until the sinks have been dropped.
///
/// It is `'static` and `Send`, and can be spawned.
///
/// # Errors
///
/// - [`DrainError::TimedOut`] when the limit passed first.
/// - [`DrainError::Interrupted`] when the future of `drain_until` was ready first.
/// - [`DrainError::InsideItself`] when polled inside an event, a handler or a body of the same handle.
/// - [`DrainError::NoTimer`] when there is no tokio timer for the limit or the quiet period.
///
/// The first two contain a report of everything that was open.
///
/// # Panics
///
/// When polled again after it has ended.
///
/// # Cancel safety
///
/// Dropping a drain loses no event and closes nothing. The signal stays raised. Several drains of one handle may be
/// polled at the same time. When one of them closes the handle, the others end as well.
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
pub struct Drain {
    shards: Arc<Shards>,
    deadline: Deadline,
    /// Interrupts the drain when it is ready.
    stop: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// `Some` when the limit has started: from the first poll on, or earlier.
    waiter: Option<Waiter<context::Context>>,
    is_polled: bool,
    /// When the last call is due. `None` when it was made, or if this drain makes none.
    last_call: Option<Pin<Box<Sleep>>>,
    quiet: Option<Quiet>,
    progress: Option<ProgressTimer>,
    has_ended: bool,
}

/// When the next line about the progress is due.
struct ProgressTimer {
    began: Instant,
    due: Pin<Box<Sleep>>,
}

/// A quiet period that has begun.
struct Quiet {
    /// The number of requests, guards and permits ever opened, when the period began.
    ever_opened: u64,
    over: Pin<Box<Sleep>>,
}

impl Drain {
    pub(crate) fn within(shards: Arc<Shards>, limit: Duration) -> Self {
        Self::new(shards, Deadline::after(limit), None)
    }

    pub(crate) fn until<S>(shards: Arc<Shards>, stop: S) -> Self
    where
        S: Future + Send + 'static,
    {
        Self::new(shards, Deadline::Never, Some(Box::pin(async { drop(stop.await) })))
    }

    /// Makes a drain whose limit counts from `began`, and which can be [interrupted](Self::interrupt).
    pub(crate) fn since(shards: Arc<Shards>, began: Instant, limit: Duration) -> Self {
        Self::new(shards, Deadline::since(began, limit), None)
    }

    /// Ends the drain when it is polled next.
    pub(crate) fn interrupt(&mut self) {
        self.stop = Some(Box::pin(ready(())));
    }

    fn new(shards: Arc<Shards>, deadline: Deadline, stop: Option<Pin<Box<dyn Future<Output = ()> + Send>>>) -> Self {
        let (is_polled, has_ended) = (false, false);
        let (waiter, quiet, progress) = (None, None, None);
        Self { shards, deadline, stop, waiter, is_polled, last_call: None, quiet, progress, has_ended }
    }

    /// Raises the drain signal and starts the limit, if that has not been done. From then on, events and other drains
    /// see its deadline, until the drain ends or is dropped.
    pub(crate) fn begin(&mut self) -> Result<(), NoTimer> {
        if self.waiter.is_some() {
            return Ok(());
        }
        self.shards.begin_drain();
        let registry = self.shards.registry();
        self.deadline.start()?;
        if let Deadline::Running { limit, sleep: deadline } = &self.deadline {
            let last_call = registry.context.settings.last_call_before_deadline(*limit);
            let left = deadline.deadline().saturating_duration_since(Instant::now());
            self.last_call = (!last_call.is_zero()).then(|| sleep(left.saturating_sub(last_call))).transpose()?;
        }
        self.waiter = Some(Waiter::for_drain(registry, self.deadline.at()));
        Ok(())
    }

    fn poll_drained(&mut self, cx: &mut Context<'_>) -> Poll<Result<DrainReport, DrainError>> {
        let shards = Arc::clone(&self.shards);
        let registry = shards.registry();
        if reentrancy::is_inside(registry.id()) {
            return Poll::Ready(Err(DrainError::InsideItself));
        }
        let has_begun = self.begin();
        if !mem::replace(&mut self.is_polled, true) {
            // Queued events are delivered without waiting for a full batch.
            registry.flush(Flush::FromNowOn);
        }
        let (Ok(()), Ok(is_late)) = (has_begun, self.deadline.poll(cx)) else {
            return Poll::Ready(Err(DrainError::NoTimer));
        };
        let is_stopped = self.stop.as_mut().is_some_and(|stop| stop.as_mut().poll(cx).is_ready());
        let is_over = is_late || is_stopped;
        self.poll_progress(cx);

        let quiet_period = registry.context.settings.quiet_period;
        let mut is_registered = false;
        loop {
            let (Ok(()), Ok(quiet_since)) = (self.poll_last_call(cx), self.poll_quiet(cx)) else {
                return Poll::Ready(Err(DrainError::NoTimer));
            };
            let look = registry.try_close(|ever_opened| match quiet_since {
                // The last look needs no quiet period. It changes nothing if something is open or pending.
                _ if is_over => MayClose::IfIdle,
                _ if quiet_period.is_zero() => MayClose::Yes,
                QuietSince::Over(before) if before == ever_opened => MayClose::Yes,
                _ => MayClose::No,
            });
            match look {
                Look::Closed(account) if account.running_sinks.is_empty() => {
                    return Poll::Ready(Ok(DrainReport::new(account, Vec::new(), shards.drain_began())));
                }
                _ if is_over => {
                    let report = self.undelivered_and_open();
                    // Everything that was open at the look may have ended since. Then the next look closes.
                    if !report.open.is_empty() {
                        let error = if is_stopped { DrainError::Interrupted } else { DrainError::TimedOut };
                        return Poll::Ready(Err(error(Box::new(report))));
                    }
                }
                _ if !is_registered => {
                    // Then look again: an entry that ended before the registration did not wake this drain.
                    self.waiter.iter().for_each(|waiter| waiter.register(cx.waker()));
                    is_registered = true;
                }
                Look::Open => {
                    self.quiet = None;
                    return Poll::Pending;
                }
                Look::Closing | Look::Closed(_) => return Poll::Pending,
                Look::Quiet { ever_opened } => match quiet_since {
                    QuietSince::Running(before) if before == ever_opened => return Poll::Pending,
                    _ => {
                        // The next round polls the new timer, so that it wakes this task.
                        let Ok(over) = sleep(quiet_period) else { return Poll::Ready(Err(DrainError::NoTimer)) };
                        self.quiet = Some(Quiet { ever_opened, over });
                    }
                },
            }
        }
    }

    /// Makes the last call, if it is due and no drain with a later deadline will make it.
    fn poll_last_call(&mut self, cx: &mut Context<'_>) -> Result<(), NoTimer> {
        let (Some(due), Some(waiter)) = (&mut self.last_call, &self.waiter) else { return Ok(()) };
        if poll_sleep(due, cx)? && waiter.is_latest_drain() {
            self.last_call = None;
            make_last_call(&self.shards);
        }
        Ok(())
    }

    fn poll_quiet(&mut self, cx: &mut Context<'_>) -> Result<QuietSince, NoTimer> {
        let Some(Quiet { ever_opened, over }) = &mut self.quiet else { return Ok(QuietSince::Never) };
        let is_over = poll_sleep(over, cx)?;
        Ok(if is_over { QuietSince::Over(*ever_opened) } else { QuietSince::Running(*ever_opened) })
    }

    /// Passes undelivered values to `on_undelivered`, and reports what is open then.
    fn undelivered_and_open(&self) -> DrainReport {
        let registry = self.shards.registry();
        let mut undelivered = Vec::new();
        // While a drain with a later deadline waits, the values may still be delivered.
        let is_latest = self.waiter.as_ref().is_some_and(Waiter::is_latest_drain);
        let detached = is_latest.then(|| registry.detach_undelivered());
        for detached in detached.into_iter().flatten() {
            undelivered.push(OpenItem::undelivered(&detached));
            (detached.end)();
        }
        DrainReport::new(registry.account(), undelivered, self.shards.drain_began())
    }

    /// Logs a progress line, each time that one is due.
    pub(crate) fn poll_progress(&mut self, cx: &mut Context<'_>) {
        let registry = self.shards.registry();
        let every = registry.context.settings.progress;
        if every.is_zero() {
            return;
        }
        if self.progress.is_none() {
            // Without a timer no line is logged.
            self.progress = sleep(every).ok().map(|due| ProgressTimer { began: Instant::now(), due });
        }
        let Some(ProgressTimer { began, due }) = &mut self.progress else { return };
        while poll_sleep(due, cx).unwrap_or(false) {
            due.as_mut().reset(Instant::now() + every);
            if tracing::enabled!(tracing::Level::INFO) {
                let progress = Progress::new(registry.account(), began.elapsed(), self.deadline.limit());
                tracing::info!("{progress}");
            }
        }
    }
}

/// Starts the events that wait for the end of their exchange, and logs how many.
pub(crate) fn make_last_call(shards: &Shards) {
    let registry = shards.registry();
    let events = registry.last_call();
    if events > 0 && tracing::enabled!(tracing::Level::INFO) {
        let requests = progress::open_requests(&registry.account().open);
        tracing::info!(events, requests, "last call: events start although their responses are not over");
    }
}

/// The state of the quiet period, with the number of requests, guards and permits ever opened when it began.
#[derive(Clone, Copy)]
enum QuietSince {
    Never,
    Running(u64),
    Over(u64),
}

impl Future for Drain {
    type Output = Result<DrainReport, DrainError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        assert!(!self.has_ended, "a drain was polled after it had ended");
        let drained = self.poll_drained(cx);
        if let Poll::Ready(result) = &drained {
            self.has_ended = true;
            self.waiter = None;
            match result {
                Ok(report) => metrics::drained(report.elapsed, "drained"),
                Err(DrainError::TimedOut(report)) => metrics::drained(report.elapsed, "timed_out"),
                Err(DrainError::Interrupted(report)) => metrics::drained(report.elapsed, "interrupted"),
                Err(DrainError::InsideItself | DrainError::NoTimer) => {}
            }
        }
        drained
    }
}

impl fmt::Debug for Drain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shards: _, deadline, stop, waiter, is_polled: _, last_call, quiet, progress: _, has_ended } = self;
        f.debug_struct("Drain")
            .field("started", &waiter.is_some())
            .field("last_call_is_due", &last_call.is_some())
            .field("limit_left", &deadline.left())
            .field("can_be_interrupted", &stop.is_some())
            .field("quiet", &quiet.is_some())
            .field("ended", has_ended)
            .finish_non_exhaustive()
    }
}
