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
use tracing::{Span, field::display, level_filters::LevelFilter};

use crate::{
    contain::contain,
    entry::Stage,
    house::{Event, EventTask, House, Shard},
    inside,
    ledger::{Begun, EventTicket, NewEvent},
    limit::{Limit, NoTimer},
    metrics::{self, Began},
    output::{EventOutput, sealed::Judge},
    refused::Refused,
    snapshot::Ending,
    start::{Place, begin},
};

/// Accepts an event and starts it, or refuses it. If the runtime is going down the event is dropped instead, and counted as
/// aborted.
#[inline]
pub(crate) fn track<F>(
    shard: &Arc<Shard>,
    name: &'static str,
    location: &'static Location<'static>,
    future: F,
) -> Result<(), Refused>
where
    F: Future + Send + 'static,
    F::Output: EventOutput,
{
    let place = Place::here(shard, name)?;
    let cause = Cause::current();
    let event = NewEvent { name, stage: Stage::Started, location, since: None };
    let mut begun = Begun::default();
    // A refusal is told before the event is dropped, whose destructor is user code.
    let acceptance = shard.accept(&event).inspect_err(|refused| shard.tell_refused(*refused, name))?;
    acceptance.start(event, |ticket| place.of(tracked(ticket, cause, future)), &mut begun);
    begin(shard, begun);
    // Not before it is on its way: a recorder may be slow.
    metrics::accepted(name);
    Ok(())
}

/// An accepted event that is about to be recorded, or to start.
pub(crate) struct Launch {
    pub(crate) ticket: EventTicket<House>,
    pub(crate) place: Place,
}

impl Launch {
    /// Accepts an event, or refuses it.
    pub(crate) fn accept(shard: &Arc<Shard>, place: Place, event: NewEvent) -> Result<Self, Refused> {
        let name = event.name;
        let acceptance = shard.accept(&event).inspect_err(|refused| shard.tell_refused(*refused, name))?;
        let ticket = acceptance.enter(event);
        metrics::accepted(name);
        Ok(Self { ticket, place })
    }

    /// Runs the event as a task. If the runtime is going down the event is dropped instead, and counted as aborted.
    pub(crate) fn start<F>(self, cause: Cause, future: F)
    where
        F: Future + Send + 'static,
        F::Output: EventOutput,
    {
        let Self { ticket, place } = self;
        let shard = Arc::clone(ticket.shard());
        let mut begun = Begun::default();
        shard.start(place.of(tracked(ticket, cause, future)), &mut begun);
        begin(&shard, begun);
    }

    /// Runs the event on a blocking thread. If the runtime is going down it is dropped instead, and counted as aborted.
    /// Until it has a thread it can be aborted.
    pub(crate) fn start_blocking<F, T>(self, cause: Cause, work: F)
    where
        F: FnOnce() -> T + Send + 'static,
        T: EventOutput,
    {
        let Self { ticket, place } = self;
        let shard = Arc::clone(ticket.shard());
        let blocking = blocking(work, Running::new(ticket, cause));
        place.spawn_blocking(&shard, move || blocking.run());
    }

    /// Ends the event as panicked before it could start, because the code that makes it did.
    pub(crate) fn panicked(self, message: String) {
        Running::new(self.ticket, Cause::default()).end(Verdict::Panicked(message));
    }
}

/// The task of an event whose future is there already.
#[inline]
pub(crate) fn tracked<F>(ticket: EventTicket<House>, cause: Cause, future: F) -> EventTask
where
    F: Future + Send + 'static,
    F::Output: EventOutput,
{
    let running = Some(Running::limited(ticket, cause));
    Box::pin(Tracked::<fn() -> F, F> { work: Work::Running { future }, running })
}

/// The span in which an event is tracked, if there is one. A clone is no more than a count, and so can be made under a lock.
#[derive(Clone, Default)]
pub(crate) struct Cause(Option<Arc<Span>>);

impl Cause {
    /// Asked for only if somebody listens.
    #[inline]
    pub(crate) fn current() -> Self {
        if LevelFilter::current() == LevelFilter::OFF {
            return Self::default();
        }
        Self(contain(Span::current).ok().filter(|span| !span.is_none()).map(Arc::new))
    }

    #[inline]
    pub(crate) fn span(&self) -> Option<&Span> {
        self.0.as_deref()
    }
}

/// A subscriber that panics when the span ends takes nothing along.
impl Drop for Cause {
    #[inline]
    fn drop(&mut self) {
        if let Some(span) = self.0.take() {
            let _ = contain(|| drop(span));
        }
    }
}

/// The span has no parent, since a child would keep the span of its request open.
fn event_span(ticket: &EventTicket<House>, cause: &Cause) -> Option<Span> {
    let span = contain(|| {
        let span = wants_span().then(|| tracing::info_span!(parent: None, "event", name = ticket.name()));
        if let (Some(span), Some(cause)) = (&span, cause.span()) {
            span.follows_from(cause);
        }
        span
    });
    span.unwrap_or_default()
}

#[inline]
fn wants_span() -> bool {
    LevelFilter::current() >= LevelFilter::INFO
}

/// What an event that was accepted holds until its end.
struct Running {
    /// Boxed, because most often there is none, and what is small is moved at less cost.
    extra: Option<Box<Extra>>,
    ticket: EventTicket<House>,
    /// None before it begins.
    began: Option<Began>,
}

struct Extra {
    /// Until it begins.
    cause: Cause,
    span: Option<Span>,
    limit: Option<Limit>,
}

impl Extra {
    #[inline]
    fn of(cause: Cause, limit: Option<Duration>) -> Option<Box<Self>> {
        let is_wanted = cause.span().is_some() || limit.is_some() || wants_span();
        is_wanted.then(|| Box::new(Self { cause, span: None, limit: limit.map(Limit::after) }))
    }
}

enum Verdict {
    Failed(String),
    Panicked(String),
    TimedOut(Duration),
    Aborted,
    /// Aborted as well, but not by the handle.
    Dropped,
}

impl Running {
    #[inline]
    fn new(ticket: EventTicket<House>, cause: Cause) -> Self {
        Self { extra: Extra::of(cause, None), ticket, began: None }
    }

    #[inline]
    fn limited(ticket: EventTicket<House>, cause: Cause) -> Self {
        let limit = ticket.shard().house().settings.event_timeout;
        Self { extra: Extra::of(cause, limit), ticket, began: None }
    }

    #[inline]
    fn begin(&mut self) {
        if self.began.is_some() {
            return;
        }
        self.began = Some(Began::now());
        let ticket = &self.ticket;
        if let Some(extra) = &mut self.extra {
            extra.span = event_span(ticket, &mem::take(&mut extra.cause));
        }
    }

    fn span(&self) -> Option<&Span> {
        self.extra.as_ref()?.span.as_ref()
    }

    fn limit(&mut self) -> Option<&mut Limit> {
        self.extra.as_mut()?.limit.as_mut()
    }

    fn enter<T>(&self, run: impl FnOnce() -> T) -> Result<T, String> {
        inside::enter(self.ticket.shard().ledger_id(), || match self.span() {
            Some(span) => {
                // A subscriber that panics costs its span, and not the work.
                let entered = contain(|| span.enter());
                let result = contain(run);
                let _ = contain(|| drop(entered));
                result
            }
            None => contain(run),
        })
    }

    /// It cannot be measured: the event goes on without it, and a line says so.
    fn go_on_without_limit(&mut self) {
        if let Some(extra) = &mut self.extra {
            extra.limit = None;
        }
        let (event, none) = (self.ticket.name(), Span::none());
        let span = self.span().unwrap_or(&none);
        let _ = contain(|| {
            tracing::warn!(
                parent: span,
                event,
                "event runs without its time limit: its runtime has no timer; build it with `enable_time`"
            );
        });
    }

    /// Ends the event before it has returned.
    fn abandon(&mut self, drop_work: impl FnOnce()) {
        let verdict = match self.enter(drop_work) {
            Err(panic) => Verdict::Panicked(panic),
            Ok(()) if self.ticket.is_aborted() => Verdict::Aborted,
            Ok(()) => Verdict::Dropped,
        };
        self.end(verdict);
    }

    /// To be called when all that the event owned is dropped: when the ticket is as well, the drain may go on.
    #[cold]
    fn end(&mut self, verdict: Verdict) {
        // A subscriber that panics costs its line, not the count.
        let _ = contain(|| verdict.log(self.ticket.source(), self.span().unwrap_or(&Span::none())));
        self.count(verdict.ending());
    }

    /// The same for one that has done what it was to do, which nothing is said of.
    #[inline]
    fn complete(&mut self) {
        self.count(Ending::Completed);
    }

    #[inline]
    fn count(&mut self, ending: Ending) {
        if let Some(extra) = self.extra.take() {
            let _ = contain(|| drop(extra));
        }
        metrics::ended(|| self.ticket.name(), ending, self.began.take());
        self.ticket.end_as(ending);
    }
}

impl Verdict {
    fn ending(&self) -> Ending {
        match self {
            Self::Failed(_) => Ending::Failed,
            Self::Panicked(_) => Ending::Panicked,
            Self::TimedOut(_) => Ending::TimedOut,
            Self::Aborted | Self::Dropped => Ending::Aborted,
        }
    }

    fn log(&self, (event, location): (&'static str, &'static Location<'static>), span: &Span) {
        let location = display(location);
        match self {
            Self::Failed(error) => tracing::error!(parent: span, event, error, location, "event failed"),
            Self::Panicked(panic) => tracing::error!(parent: span, event, panic, location, "event panicked"),
            Self::TimedOut(limit) => tracing::error!(parent: span, event, ?limit, location, "event timed out"),
            Self::Aborted => {
                tracing::warn!(parent: span, event, location, "event aborted by `TrackEventsHandle::abort`")
            }
            Self::Dropped => {
                tracing::warn!(
                    parent: span,
                    event,
                    location,
                    "event aborted: its runtime went away before it ended; drain before the runtime is dropped"
                );
            }
        }
    }
}

/// An event before it is accepted.
pub(crate) trait Unaccepted: Send {
    /// Gives its task.
    fn accepted(self: Pin<Box<Self>>, ticket: EventTicket<House>, cause: Cause) -> EventTask;
}

pub(crate) type UnacceptedEvent = Pin<Box<dyn Unaccepted>>;

/// An event whose future is made when it begins.
pub(crate) fn unaccepted<M, F>(make: M) -> UnacceptedEvent
where
    M: FnOnce() -> F + Send + 'static,
    F: Future + Send + 'static,
    F::Output: EventOutput,
{
    Box::pin(Tracked { work: Work::Unmade { make: Some(make) }, running: None })
}

/// The task of an event that occupies a blocking thread: it gives itself one.
pub(crate) fn tracked_blocking<F, T>(ticket: EventTicket<House>, cause: Cause, work: F) -> EventTask
where
    F: FnOnce() -> T + Send + 'static,
    T: EventOutput,
{
    Box::pin(ToThread(Some((work, Running::new(ticket, cause)))))
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
            if let (Some(running), false) = (this.running, matches!(*this.work, Work::Over)) {
                running.abandon(|| this.work.set(Work::Over));
            }
        }
    }
}

impl<M, F> Future for Tracked<M, F>
where
    M: FnOnce() -> F,
    F: Future,
    F::Output: EventOutput,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        let Some(running) = this.running else {
            return Poll::Ready(());
        };
        running.begin();
        // The order of these questions decides which ending wins.
        let mut verdict = if running.ticket.is_aborted() {
            Some(Verdict::Aborted)
        } else {
            // Beside what is returned, because most often there is none, and what is small is moved at less cost.
            let mut error = None;
            let returned = running.enter(|| {
                if let WorkProjection::Unmade { make } = this.work.as_mut().project() {
                    if let Some(future) = make.take().map(|make| make()) {
                        this.work.set(Work::Running { future });
                    }
                }
                let WorkProjection::Running { future } = this.work.as_mut().project() else {
                    return Poll::Pending;
                };
                error = ready!(future.poll(cx)).judge().err();
                // What the event owns is dropped before its ending counts.
                this.work.set(Work::Over);
                Poll::Ready(())
            });
            match (returned, error) {
                (Ok(Poll::Ready(())), None) => {
                    running.complete();
                    return Poll::Ready(());
                }
                (Ok(Poll::Ready(())), Some(error)) => Some(Verdict::Failed(error)),
                (Ok(Poll::Pending), _) => None,
                (Err(panic), _) => Some(Verdict::Panicked(panic)),
            }
        };
        if let (None, Some(limit)) = (&verdict, running.limit()) {
            match limit.poll(cx) {
                Ok(true) => verdict = limit.duration().map(Verdict::TimedOut),
                Ok(false) => {}
                Err(NoTimer) => running.go_on_without_limit(),
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
        running.end(verdict);
        Poll::Ready(())
    }
}

impl<M, F> Event for Tracked<M, F>
where
    M: FnOnce() -> F + Send + 'static,
    F: Future + Send + 'static,
    F::Output: EventOutput,
{
    #[inline]
    fn ticket(self: Pin<&mut Self>) -> Option<&mut EventTicket<House>> {
        self.project().running.as_mut().map(|running| &mut running.ticket)
    }
}

impl<M, F> Unaccepted for Tracked<M, F>
where
    M: FnOnce() -> F + Send + 'static,
    F: Future + Send + 'static,
    F::Output: EventOutput,
{
    fn accepted(mut self: Pin<Box<Self>>, ticket: EventTicket<House>, cause: Cause) -> EventTask {
        *self.as_mut().project().running = Some(Running::limited(ticket, cause));
        self
    }
}

/// A blocking event that has not started.
struct ToThread<W>(Option<(W, Running)>);

/// Nothing in it is pinned.
impl<W> Unpin for ToThread<W> {}

impl<W, T> Future for ToThread<W>
where
    W: FnOnce() -> T + Send + 'static,
    T: EventOutput,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<()> {
        if let Some((work, running)) = self.0.take() {
            // If it panics because no thread can be started the event has been dropped, and counted as aborted.
            let _ = contain(|| {
                let blocking = blocking(work, running);
                runtime::Handle::current().spawn_blocking(move || blocking.run())
            });
        }
        Poll::Ready(())
    }
}

impl<W, T> Event for ToThread<W>
where
    W: FnOnce() -> T + Send + 'static,
    T: EventOutput,
{
    fn ticket(self: Pin<&mut Self>) -> Option<&mut EventTicket<House>> {
        None
    }
}

impl<W> Drop for ToThread<W> {
    fn drop(&mut self) {
        if let Some((work, mut running)) = self.0.take() {
            running.abandon(|| drop(work));
        }
    }
}

fn blocking<F: Send + 'static>(work: F, mut running: Running) -> Blocking<F> {
    running.begin();
    Blocking(Queued::new(work, running))
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
            running.abandon(|| drop(work));
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
        if let Some((work, mut running)) = self.take() {
            running.abandon(|| drop(work));
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
        let Some((work, mut running)) = self.0.take() else {
            return;
        };
        running.ticket.block();
        match running.enter(|| work().judge()) {
            Ok(Ok(())) => running.complete(),
            Ok(Err(error)) => running.end(Verdict::Failed(error)),
            Err(panic) => running.end(Verdict::Panicked(panic)),
        }
    }
}

impl<F> Drop for Blocking<F> {
    fn drop(&mut self) {
        if let Some((work, mut running)) = self.0.take() {
            running.abandon(|| drop(work));
        }
    }
}
