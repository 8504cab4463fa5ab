//! A tracked event as a task: its span, its time limit, its panic, its one ending.

use std::{
    mem,
    panic::Location,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Wake, Waker, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::runtime;
use tracing::Span;

use crate::{
    contain::contain,
    entry::Stage,
    house::{House, Shard},
    inside,
    ledger::EventTicket,
    limit::{Limit, NoTimer},
    metrics::{self, Began},
    output::{EventOutput, sealed::Judge},
    refused::Refused,
    snapshot::Ending,
};

/// An accepted event that is about to start.
pub(crate) struct Launch {
    pub(crate) name: &'static str,
    pub(crate) ticket: EventTicket<House>,
}

impl Launch {
    /// Accepts an event for the runtime of here and now, or refuses it: the one decision.
    pub(crate) fn accept(
        shard: &Arc<Shard>,
        name: &'static str,
        stage: Stage,
        location: &'static Location<'static>,
        holder: Option<Waker>,
    ) -> Result<(Self, runtime::Handle), Refused> {
        let runtime = shard.runtime().inspect_err(|refused| metrics::refused(name, *refused))?;
        let ticket = shard.accept_event(name, stage, location, holder)?;
        metrics::accepted(name);
        Ok((Self { name, ticket }, runtime))
    }

    /// Runs the event as a task. If the runtime is going down the event is dropped instead, and counted as aborted.
    pub(crate) fn spawn<F>(self, runtime: &runtime::Handle, cause: &Span, future: F)
    where
        F: Future + Send + 'static,
        F::Output: EventOutput,
    {
        let limit = self.ticket.shard().house().settings.event_timeout.map_or(Limit::Never, Limit::after);
        let running = self.begin(cause);
        runtime.spawn(Tracked { future: Some(future), limit, is_held: false, running: Some(running) });
    }

    /// Runs the event on a blocking thread. If the runtime is going down it is dropped instead, and counted as aborted.
    /// Until it has a thread it can be aborted.
    pub(crate) fn spawn_blocking<F, T>(self, runtime: &runtime::Handle, cause: &Span, work: F)
    where
        F: FnOnce() -> T + Send + 'static,
        T: EventOutput,
    {
        let running = self.begin(cause);
        let blocking = Blocking(Queued::new(work, running));
        runtime.spawn_blocking(move || blocking.run());
    }

    fn begin(self, cause: &Span) -> Running {
        let Self { name, ticket } = self;
        Running { name, span: event_span(name, cause), ticket, began: Some(Began::now()) }
    }

    /// Ends the event as aborted before it could start.
    pub(crate) fn abort(self, work: impl Send) {
        self.never_begun().abort(work);
    }

    /// Ends the event as panicked before it could start, because the code that makes it did.
    pub(crate) fn panicked(self, message: String) {
        self.never_begun().end(Verdict::Panicked(message));
    }

    fn never_begun(self) -> Running {
        let Self { name, ticket } = self;
        Running { name, span: Span::none(), ticket, began: None }
    }
}

/// The span has no parent, since a child would keep the span of its request open.
fn event_span(name: &'static str, cause: &Span) -> Span {
    contain(|| {
        let span = tracing::info_span!(parent: None, "event", name);
        span.follows_from(cause);
        span
    })
    .unwrap_or_else(|_| Span::none())
}

/// What an event that has started holds until its end.
struct Running {
    name: &'static str,
    span: Span,
    ticket: EventTicket<House>,
    began: Option<Began>,
}

enum Verdict {
    Returned(Result<(), String>),
    Panicked(String),
    TimedOut(Duration),
    Aborted,
    /// Aborted as well, but not by the handle.
    Dropped,
}

impl Running {
    fn enter<T>(&self, run: impl FnOnce() -> T) -> Result<T, String> {
        inside::enter(self.ticket.shard().ledger_id(), || contain(|| self.span.in_scope(run)))
    }

    fn log_no_timer(&self) {
        let event = self.name;
        let _ = contain(|| {
            tracing::warn!(parent: &self.span, event, "event runs without its time limit: the runtime has no timer");
        });
    }

    fn abort<T>(self, work: T) {
        let verdict = self.enter(|| drop(work)).map_or_else(Verdict::Panicked, |()| Verdict::Aborted);
        self.end(verdict);
    }

    /// To be called when all that the event owned is dropped: with the ticket, the drain may go on.
    fn end(self, verdict: Verdict) {
        let Self { name, span, ticket, began } = self;
        // A subscriber that panics costs its line, not the count.
        let _ = contain(|| verdict.log(name, &span));
        let _ = contain(|| drop(span));
        let ending = verdict.ending();
        metrics::ended(name, ending, began.as_ref());
        ticket.end(ending);
    }
}

impl Verdict {
    fn ending(&self) -> Ending {
        match self {
            Self::Returned(Ok(())) => Ending::Completed,
            Self::Returned(Err(_)) => Ending::Failed,
            Self::Panicked(_) => Ending::Panicked,
            Self::TimedOut(_) => Ending::TimedOut,
            Self::Aborted | Self::Dropped => Ending::Aborted,
        }
    }

    fn log(&self, event: &'static str, span: &Span) {
        match self {
            Self::Returned(Ok(())) => {}
            Self::Returned(Err(error)) => tracing::error!(parent: span, event, error, "event failed"),
            Self::Panicked(panic) => tracing::error!(parent: span, event, panic, "event panicked"),
            Self::TimedOut(limit) => tracing::error!(parent: span, event, ?limit, "event timed out"),
            Self::Aborted => tracing::warn!(parent: span, event, "event aborted"),
            Self::Dropped => {
                tracing::warn!(parent: span, event, "event aborted: its runtime is shutting down");
            }
        }
    }
}

pin_project! {
    /// The future of an event with its ticket.
    struct Tracked<F> {
        #[pin]
        future: Option<F>,
        limit: Limit,
        // Whether an abort wakes the task. Set when it is first pending: most events are not.
        is_held: bool,
        running: Option<Running>,
    }

    impl<F> PinnedDrop for Tracked<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            if let Some(running) = this.running.take() {
                let _ = running.enter(|| this.future.set(None));
                running.end(Verdict::Dropped);
            }
        }
    }
}

impl<F> Future for Tracked<F>
where
    F: Future,
    F::Output: EventOutput,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        let Some(running) = this.running else {
            return Poll::Ready(());
        };
        // The order of these questions decides which ending wins.
        let mut verdict = if running.ticket.is_aborted() {
            Some(Verdict::Aborted)
        } else {
            let returned = running.enter(|| {
                let Some(future) = this.future.as_mut().as_pin_mut() else {
                    return Poll::Pending;
                };
                Poll::Ready(ready!(future.poll(cx)).judge())
            });
            match returned {
                Ok(Poll::Ready(result)) => Some(Verdict::Returned(result)),
                Ok(Poll::Pending) => None,
                Err(panic) => Some(Verdict::Panicked(panic)),
            }
        };
        if verdict.is_none() {
            match this.limit.poll(cx) {
                Ok(true) => verdict = this.limit.duration().map(Verdict::TimedOut),
                Ok(false) => {}
                Err(NoTimer) => {
                    *this.limit = Limit::Never;
                    running.log_no_timer();
                }
            }
        }
        if verdict.is_none() && !mem::replace(this.is_held, true) && !running.ticket.hold(cx.waker()) {
            verdict = Some(Verdict::Aborted);
        }
        let Some(mut verdict) = verdict else {
            return Poll::Pending;
        };
        // What the event owns is dropped before its ending counts.
        if let Err(panic) = running.enter(|| this.future.set(None)) {
            verdict = Verdict::Panicked(panic);
        }
        if let Some(running) = this.running.take() {
            running.end(verdict);
        }
        Poll::Ready(())
    }
}

/// The closure of a blocking event with its ticket, until it has a thread.
struct Queued<F>(Mutex<Option<(F, Running)>>);

impl<F: Send + 'static> Queued<F> {
    fn new(work: F, running: Running) -> Arc<Self> {
        let queued = Arc::new(Self(Mutex::new(None)));
        let waker = Waker::from(Arc::clone(&queued));
        // An abort takes this lock after it was told of the waker.
        let mut place = queued.lock();
        if running.ticket.hold(&waker) {
            *place = Some((work, running));
            drop(place);
        } else {
            drop(place);
            running.abort(work);
        }
        queued
    }
}

impl<F> Queued<F> {
    fn take(&self) -> Option<(F, Running)> {
        self.lock().take()
    }

    fn lock(&self) -> MutexGuard<'_, Option<(F, Running)>> {
        // Nothing that runs under the lock is user code.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<F: Send + 'static> Wake for Queued<F> {
    fn wake(self: Arc<Self>) {
        if let Some((work, running)) = self.take() {
            running.abort(work);
        }
    }
}

/// The blocking task of an event.
struct Blocking<F>(Arc<Queued<F>>);

impl<F, T> Blocking<F>
where
    F: FnOnce() -> T,
    T: EventOutput,
{
    fn run(self) {
        let Some((work, running)) = self.0.take() else {
            return;
        };
        running.ticket.block();
        let verdict = match running.enter(|| work().judge()) {
            Ok(result) => Verdict::Returned(result),
            Err(panic) => Verdict::Panicked(panic),
        };
        running.end(verdict);
    }
}

impl<F> Drop for Blocking<F> {
    fn drop(&mut self) {
        if let Some((work, running)) = self.0.take() {
            let _ = running.enter(|| drop(work));
            running.end(Verdict::Dropped);
        }
    }
}
