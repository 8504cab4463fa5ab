//! A tracked event as a task: its span, its time limit, its panic, its one ending.

use std::{
    panic::Location,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Wake, Waker, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use smallvec::SmallVec;
use tokio::runtime;
use tracing::{Span, level_filters::LevelFilter};

use crate::{
    contain::contain,
    entry::{Nanos, Stage},
    exchange::Exchange,
    house::{House, Shard},
    inside,
    ledger::EventTicket,
    limit::{Limit, NoTimer},
    metrics::{self, Began},
    output::{EventOutput, sealed::Judge},
    refused::Refused,
    snapshot::Ending,
};

/// An accepted event that is about to be recorded, or to start.
pub(crate) struct Launch {
    pub(crate) ticket: EventTicket<House>,
}

impl Launch {
    /// Accepts an event, or refuses it: the one decision.
    #[inline]
    pub(crate) fn accept(
        shard: &Arc<Shard>,
        name: &'static str,
        stage: Stage,
        location: &'static Location<'static>,
        since: Option<Nanos>,
    ) -> Result<Self, Refused> {
        let ticket = shard.accept_event(name, stage, location, since)?;
        metrics::accepted(name);
        Ok(Self { ticket })
    }

    /// Accepts an event that starts at once, on the runtime of here and now.
    #[inline]
    pub(crate) fn now(
        shard: &Arc<Shard>,
        name: &'static str,
        location: &'static Location<'static>,
    ) -> Result<(Self, runtime::Handle), Refused> {
        let runtime = shard.runtime().inspect_err(|refused| metrics::refused(name, *refused))?;
        Ok((Self::accept(shard, name, Stage::Started, location, None)?, runtime))
    }

    /// Runs the event as a task. If the runtime is going down the event is dropped instead, and counted as aborted.
    pub(crate) fn spawn<F>(self, runtime: &runtime::Handle, cause: &Span, future: F)
    where
        F: Future + Send + 'static,
        F::Output: EventOutput,
    {
        let mut tracked = Tracked::<fn(&Exchange) -> F, F>::new(Work::Running { future });
        let mut running = self.limited();
        running.begin(cause);
        tracked.running = Some(running);
        runtime.spawn(tracked);
    }

    /// Runs the event on a blocking thread. If the runtime is going down it is dropped instead, and counted as aborted.
    /// Until it has a thread it can be aborted.
    pub(crate) fn spawn_blocking<F, T>(self, runtime: &runtime::Handle, cause: &Span, work: F)
    where
        F: FnOnce() -> T + Send + 'static,
        T: EventOutput,
    {
        let mut running = self.unlimited();
        running.begin(cause);
        spawn_blocking(runtime, work, running);
    }

    /// Ends the event as panicked before it could start, because the code that makes it did.
    pub(crate) fn panicked(self, message: String) {
        self.unlimited().end(Verdict::Panicked(message));
    }

    #[inline]
    fn limited(self) -> Running {
        let limit = self.ticket.shard().house().settings.event_timeout;
        let mut running = self.unlimited();
        if let Some(limit) = limit {
            running.extra().limit = Some(Limit::after(limit));
        }
        running
    }

    #[inline]
    fn unlimited(self) -> Running {
        Running { extra: None, ticket: self.ticket, began: Began::not_yet() }
    }
}

/// The span in which an event is tracked. Asked for only if somebody listens.
#[inline]
pub(crate) fn current_span() -> Span {
    if LevelFilter::current() == LevelFilter::OFF { Span::none() } else { Span::current() }
}

/// The span has no parent, since a child would keep the span of its request open.
#[inline]
fn event_span(ticket: &EventTicket<House>, cause: &Span) -> Span {
    if LevelFilter::current() < LevelFilter::INFO {
        return Span::none();
    }
    contain(|| {
        let span = tracing::info_span!(parent: None, "event", name = ticket.name());
        span.follows_from(cause);
        span
    })
    .unwrap_or_else(|_| Span::none())
}

/// What an event that was accepted holds until its end.
struct Running {
    /// Boxed, because most often there is none, and what is small is moved at less cost.
    extra: Option<Box<Extra>>,
    ticket: EventTicket<House>,
    began: Began,
}

#[derive(Default)]
struct Extra {
    span: Option<Span>,
    limit: Option<Limit>,
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
    #[inline]
    fn begin(&mut self, cause: &Span) {
        let span = event_span(&self.ticket, cause);
        if !span.is_none() {
            self.extra().span = Some(span);
        }
        self.began = Began::now();
    }

    fn extra(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }

    fn span(&self) -> Option<&Span> {
        self.extra.as_ref()?.span.as_ref()
    }

    fn limit(&mut self) -> Option<&mut Limit> {
        self.extra.as_mut()?.limit.as_mut()
    }

    fn enter<T>(&self, run: impl FnOnce() -> T) -> Result<T, String> {
        inside::enter(self.ticket.shard().ledger_id(), || {
            contain(|| match self.span() {
                Some(span) => span.in_scope(run),
                None => run(),
            })
        })
    }

    fn log_no_timer(&self) {
        let (event, none) = (self.ticket.name(), Span::none());
        let span = self.span().unwrap_or(&none);
        let _ = contain(|| {
            tracing::warn!(
                parent: span,
                event,
                "event runs without its time limit: the runtime has no timer, which `enable_time` gives it"
            );
        });
    }

    fn abort(self, drop_work: impl FnOnce()) {
        let verdict = self.enter(drop_work).map_or_else(Verdict::Panicked, |()| Verdict::Aborted);
        self.end(verdict);
    }

    /// To be called when all that the event owned is dropped: with the ticket, the drain may go on.
    fn end(self, verdict: Verdict) {
        let Self { extra, ticket, began } = self;
        let span = extra.and_then(|extra| extra.span);
        if !verdict.is_silent() || span.is_some() {
            // A subscriber that panics costs its line, not the count.
            let _ = contain(|| verdict.log(ticket.name(), span.as_ref().unwrap_or(&Span::none())));
            let _ = contain(|| drop(span));
        }
        let ending = verdict.ending();
        metrics::ended(|| ticket.name(), ending, &began);
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

    fn is_silent(&self) -> bool {
        matches!(self, Self::Returned(Ok(())))
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

/// An event that waits for the end of its exchange, and is its future from then on.
pub(crate) trait Recorded: Future<Output = ()> + Send {
    /// Comes before all else: the event has been accepted.
    fn accepted(self: Pin<&mut Self>, launch: Launch);

    /// None when it has ended.
    fn ticket(self: Pin<&mut Self>) -> Option<&mut EventTicket<House>>;

    fn is_aborted(&self) -> bool;

    /// Whether it wants to know how the exchange ended.
    fn asks(&self) -> bool;

    /// Ends the event as aborted before it could start.
    fn abort(self: Pin<&mut Self>);

    /// The exchange is over, and the ticket knows it. False if the event needs no task, because it has been given a thread.
    fn begin(self: Pin<&mut Self>, runtime: &runtime::Handle, cause: &Span, exchange: &Exchange) -> bool;

    /// From now on another task polls the event.
    fn moves_to_another_task(self: Pin<&mut Self>);
}

pub(crate) type RecordedEvent = Pin<Box<dyn Recorded>>;

/// Those of one exchange, mostly few.
pub(crate) type RecordedEvents = SmallVec<[RecordedEvent; 4]>;

/// An event whose future is there already.
pub(crate) fn recorded<F>(future: F) -> RecordedEvent
where
    F: Future + Send + 'static,
    F::Output: EventOutput,
{
    Box::pin(Tracked::<fn(&Exchange) -> F, F>::new(Work::Running { future }))
}

/// An event whose future is made when it is known how the exchange ended.
pub(crate) fn recorded_with<M, F>(make: M) -> RecordedEvent
where
    M: FnOnce(Exchange) -> F + Send + 'static,
    F: Future + Send + 'static,
    F::Output: EventOutput,
{
    // What is called here is ours: the user's function runs inside the event.
    let make = |exchange: &Exchange| {
        let exchange = exchange.clone();
        async move { make(exchange).await }
    };
    Box::pin(Tracked::new(Work::Unmade { make: Some(make) }))
}

/// An event that occupies a blocking thread.
pub(crate) fn recorded_blocking<F, T>(work: F) -> RecordedEvent
where
    F: FnOnce() -> T + Send + 'static,
    T: EventOutput,
{
    Box::pin(RecordedBlocking { work: Some(work), running: None })
}

/// Runs the events of one exchange.
pub(crate) fn spawn_all(runtime: &runtime::Handle, mut events: RecordedEvents) {
    if events.len() == 1 {
        events.pop().map(|event| runtime.spawn(event));
    } else if !events.is_empty() {
        events.reverse();
        runtime.spawn(FirstPolls { events });
    }
}

/// Polls each of a few events once. One that is not ready then gets a task of its own, so that none waits for another
/// after that; the last one stays. Most events of one exchange that are short cost one task together.
struct FirstPolls {
    /// The next one last.
    events: RecordedEvents,
}

impl Future for FirstPolls {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(event) = self.events.last_mut() {
            let is_pending = event.as_mut().poll(cx).is_pending();
            if is_pending && self.events.len() == 1 {
                return Poll::Pending;
            }
            let event = self.events.pop().filter(|_| is_pending);
            if let Some(mut event) = event {
                event.as_mut().moves_to_another_task();
                tokio::spawn(event);
            }
        }
        Poll::Ready(())
    }
}

pin_project! {
    /// What an event does.
    #[project = WorkProjection]
    enum Work<M, F> {
        Unmade { make: Option<M> },
        Running { #[pin] future: F },
        Over,
    }
}

pin_project! {
    /// An event with its ticket.
    struct Tracked<M, F> {
        #[pin]
        work: Work<M, F>,
        // None before it is accepted, and after its end.
        running: Option<Running>,
    }

    impl<M, F> PinnedDrop for Tracked<M, F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            if let Some(running) = this.running.take() {
                let _ = running.enter(|| this.work.set(Work::Over));
                running.end(Verdict::Dropped);
            }
        }
    }
}

impl<M, F> Tracked<M, F> {
    fn new(work: Work<M, F>) -> Self {
        Self { work, running: None }
    }
}

impl<M, F> Future for Tracked<M, F>
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
                let WorkProjection::Running { future } = this.work.as_mut().project() else {
                    return Poll::Pending;
                };
                let result = ready!(future.poll(cx)).judge();
                // What the event owns is dropped before its ending counts.
                this.work.set(Work::Over);
                Poll::Ready(result)
            });
            match returned {
                Ok(Poll::Ready(result)) => Some(Verdict::Returned(result)),
                Ok(Poll::Pending) => None,
                Err(panic) => Some(Verdict::Panicked(panic)),
            }
        };
        if let (None, Some(limit)) = (&verdict, running.limit()) {
            match limit.poll(cx) {
                Ok(true) => verdict = limit.duration().map(Verdict::TimedOut),
                Ok(false) => {}
                Err(NoTimer) => {
                    running.extra().limit = None;
                    running.log_no_timer();
                }
            }
        }
        // Not before it is first pending: most events never are.
        if verdict.is_none() && !running.ticket.hold(cx.waker()) {
            verdict = Some(Verdict::Aborted);
        }
        let Some(mut verdict) = verdict else {
            return Poll::Pending;
        };
        if !matches!(*this.work, Work::Over) {
            // It did not return.
            if let Err(panic) = running.enter(|| this.work.set(Work::Over)) {
                verdict = Verdict::Panicked(panic);
            }
        }
        if let Some(running) = this.running.take() {
            running.end(verdict);
        }
        Poll::Ready(())
    }
}

impl<M, F> Recorded for Tracked<M, F>
where
    M: FnOnce(&Exchange) -> F + Send,
    F: Future + Send,
    F::Output: EventOutput,
{
    fn accepted(self: Pin<&mut Self>, launch: Launch) {
        *self.project().running = Some(launch.limited());
    }

    fn ticket(self: Pin<&mut Self>) -> Option<&mut EventTicket<House>> {
        self.project().running.as_mut().map(|running| &mut running.ticket)
    }

    fn is_aborted(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.ticket.is_aborted())
    }

    fn asks(&self) -> bool {
        matches!(self.work, Work::Unmade { .. })
    }

    fn abort(self: Pin<&mut Self>) {
        let mut this = self.project();
        if let Some(running) = this.running.take() {
            running.abort(|| this.work.set(Work::Over));
        }
    }

    fn begin(self: Pin<&mut Self>, _runtime: &runtime::Handle, cause: &Span, exchange: &Exchange) -> bool {
        let mut this = self.project();
        let Some(running) = this.running else {
            return false;
        };
        running.begin(cause);
        let make = match this.work.as_mut().project() {
            WorkProjection::Unmade { make } => make.take(),
            WorkProjection::Running { .. } | WorkProjection::Over => None,
        };
        if let Some(make) = make {
            this.work.set(Work::Running { future: make(exchange) });
        }
        true
    }

    fn moves_to_another_task(self: Pin<&mut Self>) {
        if let Some(running) = self.project().running {
            running.ticket.release();
        }
    }
}

/// A blocking event that has not started.
struct RecordedBlocking<W> {
    work: Option<W>,
    running: Option<Running>,
}

/// Nothing in it is pinned.
impl<W> Unpin for RecordedBlocking<W> {}

/// It has nothing to poll: when it begins it is given a thread.
impl<W> Future for RecordedBlocking<W> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }
}

impl<W, T> Recorded for RecordedBlocking<W>
where
    W: FnOnce() -> T + Send + 'static,
    T: EventOutput,
{
    fn accepted(mut self: Pin<&mut Self>, launch: Launch) {
        self.running = Some(launch.unlimited());
    }

    fn ticket(self: Pin<&mut Self>) -> Option<&mut EventTicket<House>> {
        self.get_mut().running.as_mut().map(|running| &mut running.ticket)
    }

    fn is_aborted(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.ticket.is_aborted())
    }

    fn asks(&self) -> bool {
        false
    }

    fn abort(mut self: Pin<&mut Self>) {
        let work = self.work.take();
        if let Some(running) = self.running.take() {
            running.abort(|| drop(work));
        }
    }

    fn begin(mut self: Pin<&mut Self>, runtime: &runtime::Handle, cause: &Span, _exchange: &Exchange) -> bool {
        if let (Some(mut running), Some(work)) = (self.running.take(), self.work.take()) {
            running.begin(cause);
            // If it panics because no thread can be started the event has been dropped, and counted as aborted.
            let _ = contain(|| spawn_blocking(runtime, work, running));
        }
        false
    }

    fn moves_to_another_task(self: Pin<&mut Self>) {}
}

impl<W> Drop for RecordedBlocking<W> {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            let work = self.work.take();
            let _ = running.enter(|| drop(work));
            running.end(Verdict::Dropped);
        }
    }
}

fn spawn_blocking<F, T>(runtime: &runtime::Handle, work: F, running: Running)
where
    F: FnOnce() -> T + Send + 'static,
    T: EventOutput,
{
    let blocking = Blocking(Queued::new(work, running));
    runtime.spawn_blocking(move || blocking.run());
}

/// The closure of a blocking event with its ticket, until it has a thread.
struct Queued<F>(Mutex<Option<(F, Running)>>);

impl<F: Send + 'static> Queued<F> {
    fn new(work: F, mut running: Running) -> Arc<Self> {
        let queued = Arc::new(Self(Mutex::new(None)));
        let waker = Waker::from(Arc::clone(&queued));
        // An abort takes this lock after it was told of the waker.
        let mut place = queued.lock();
        if running.ticket.hold(&waker) {
            *place = Some((work, running));
            drop(place);
        } else {
            drop(place);
            running.abort(|| drop(work));
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
            running.abort(|| drop(work));
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
