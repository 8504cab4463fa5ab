//! A tracked event as a future: its span, its time limit, its panic boundary, its ending.
//!
//! An event of the handle is a tokio task of its own ([`track`]). The events of a response share one task
//! ([`together`]). Blocking events run on a blocking thread ([`blocking`]).

pub(crate) mod blocking;
mod output;
pub(crate) mod together;
mod turn;

use std::{
    panic::Location,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tokio::time::Instant;
use tracing::{Span, level_filters::LevelFilter};

#[cfg(feature = "sink")]
pub(crate) use self::output::BoxError;
pub use self::output::EventOutput;
pub(crate) use self::output::sealed::IntoResult;
use self::turn::Turn;
use crate::{
    context::{Shard, Ticket},
    error::TrackError,
    metrics::{self, Started},
    registry::{Ending, Stage},
    util::{
        deadline::{Deadline, NoTimer},
        panic::catch,
        reentrancy,
        text::{error_chain, one_line},
    },
};

/// Tracks `future` and spawns it, or rejects it. If the runtime is shutting down, the event is dropped and counts as
/// aborted.
#[inline]
pub(crate) fn track<F>(
    shard: &Arc<Shard>,
    name: &'static str,
    location: &'static Location<'static>,
    future: F,
) -> Result<(), TrackError>
where
    F: Future<Output: EventOutput> + Send + 'static,
{
    let runtime = shard.runtime(name)?;
    let span = event_span(name);
    // A rejection is counted and logged before the future is dropped, whose destructor is user code.
    let ticket = shard.track_event(name, Stage::Running, location, Instant::now())?;
    run(&runtime, ticket, span, future);
    Ok(())
}

/// Spawns an event that was accepted.
#[inline]
pub(crate) fn run<F>(runtime: &tokio::runtime::Handle, ticket: Ticket, span: Option<Span>, future: F)
where
    F: Future<Output: EventOutput> + Send + 'static,
{
    runtime.spawn(Alone::new(accepted(ticket, span, future)));
}

/// Makes the span of an event, which follows from the span in which the event is tracked. `None` if it would be
/// disabled.
///
/// It has no parent, because a child would keep the span of its request open.
#[inline]
pub(crate) fn event_span(name: &'static str) -> Option<Span> {
    (LevelFilter::current() >= LevelFilter::INFO).then(|| {
        let span = tracing::info_span!(parent: None, "event", name);
        span.follows_from(Span::current());
        span
    })
}

/// An event that runs when it is polled. Dropped before it has returned, it counts as aborted.
pub(crate) trait Event: Future<Output = ()> + Send {
    /// Sets the ticket of an event that was accepted. Called before the first poll.
    fn accept(self: Pin<&mut Self>, ticket: Ticket, span: Option<Span>);

    /// Returns the ticket. `None` before the event is accepted, and after it has ended or moved to a blocking thread.
    fn ticket(&self) -> Option<&Ticket>;
}

pub(crate) type BoxedEvent = Pin<Box<dyn Event>>;

impl Event for BoxedEvent {
    fn accept(self: Pin<&mut Self>, ticket: Ticket, span: Option<Span>) {
        self.get_mut().as_mut().accept(ticket, span);
    }

    #[inline]
    fn ticket(&self) -> Option<&Ticket> {
        (**self).ticket()
    }
}

/// Makes an event of a future.
pub(crate) fn boxed<F>(future: F) -> BoxedEvent
where
    F: Future<Output: EventOutput> + Send + 'static,
{
    Box::pin(Tracked::<fn() -> F, F> { work: Work::Running { future }, run: None })
}

/// Makes an event whose first poll makes the future.
pub(crate) fn boxed_with<M, F>(make: M) -> BoxedEvent
where
    M: FnOnce() -> F + Send + 'static,
    F: Future<Output: EventOutput> + Send + 'static,
{
    Box::pin(Tracked { work: Work::NotMade { make: Some(make) }, run: None })
}

#[inline]
fn accepted<F>(ticket: Ticket, span: Option<Span>, future: F) -> Tracked<fn() -> F, F> {
    Tracked { work: Work::Running { future }, run: Some(Run::new(ticket, span)) }
}

/// Ends an event whose hook has panicked before the event was made.
pub(crate) fn end_panicked(ticket: Ticket, span: Option<Span>, panic: &str) {
    Run::new(ticket, span).end(End::Panicked(one_line(panic)));
}

/// The ticket, span, limits and start time of an accepted event, until it ends.
pub(crate) struct Run {
    ticket: Ticket,
    started: Option<Started>,
    /// Boxed, because most events have none.
    extra: Option<Box<Extra>>,
}

struct Extra {
    span: Option<Span>,
    deadline: Option<Deadline>,
    /// `Some` if the number of events that run is limited and the event needs a turn.
    turn: Option<Turn>,
}

impl Extra {
    #[inline(never)]
    fn new(ticket: &Ticket, span: Option<Span>) -> Box<Self> {
        let context = ticket.shard().context();
        let turn = context.turns.as_ref().and_then(|turns| Turn::of(ticket, turns));
        Box::new(Self { span, deadline: context.settings.event_timeout.map(Deadline::after), turn })
    }
}

/// How an event ended.
enum End {
    Completed,
    /// With the error and its causes, in one line.
    Failed(String),
    /// With the message, in one line.
    Panicked(String),
    TimedOut,
    Aborted,
}

impl Run {
    #[inline]
    fn new(ticket: Ticket, span: Option<Span>) -> Self {
        let context = ticket.shard().context();
        let is_needed = span.is_some() || context.settings.event_timeout.is_some() || context.turns.is_some();
        let extra = if is_needed { Some(Extra::new(&ticket, span)) } else { None };
        Self { ticket, started: None, extra }
    }

    fn needs_turn(&self) -> bool {
        self.extra.as_ref().is_some_and(|extra| extra.turn.is_some())
    }

    /// Returns whether the concurrency limit lets the event run. Otherwise the task is woken when it does.
    #[inline]
    fn has_turn(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(turn) = self.extra.as_mut().and_then(|extra| extra.turn.as_mut()) else { return true };
        turn.poll(&self.ticket, cx)
    }

    fn span(&self) -> Option<&Span> {
        self.extra.as_ref()?.span.as_ref()
    }

    fn start(&mut self) {
        self.started.get_or_insert_with(Started::now);
    }

    /// Runs user code of the event: in its span, under the mark of its registry, and with its panics caught.
    #[inline]
    fn enter<T>(&self, run: impl FnOnce() -> T) -> Result<T, String> {
        reentrancy::enter_event(self.ticket.shard().registry.id(), || match self.span() {
            Some(span) => span.in_scope(|| catch(run)),
            None => catch(run),
        })
    }

    /// Returns whether the time limit of the event has passed.
    fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(deadline) = self.extra.as_mut().and_then(|extra| extra.deadline.as_mut()) else { return false };
        match deadline.poll(cx) {
            Ok(is_late) => is_late,
            Err(NoTimer) => {
                self.go_on_without_deadline();
                false
            }
        }
    }

    #[cold]
    fn go_on_without_deadline(&mut self) {
        if let Some(extra) = &mut self.extra {
            extra.deadline = None;
        }
        let event = self.ticket.name_and_location().0;
        tracing::warn!(
            parent: self.span().unwrap_or(&Span::none()),
            event,
            "event runs without its time limit: its runtime has no timer; build it with `enable_time`"
        );
    }

    /// Ends an event that has not returned. `drop_work` drops its future or closure, which is user code.
    fn drop_work(self, drop_work: impl FnOnce(), end: End) {
        match self.enter(drop_work) {
            Ok(()) => self.end(end),
            Err(panic) => self.end(End::Panicked(one_line(&panic))),
        }
    }

    /// Ends the event. Its future or closure must have been dropped, because a drain may end now.
    #[inline]
    fn end(self, end: End) {
        if !matches!(end, End::Completed) {
            self.log(&end);
        }
        let Self { ticket, started, extra } = self;
        // The span closes before the event counts as ended.
        drop(extra);
        let (ending, error) = match end {
            End::Completed => (Ending::Completed, None),
            End::Failed(error) => (Ending::Failed, Some(error)),
            End::Panicked(panic) => (Ending::Panicked, Some(panic)),
            End::TimedOut => (Ending::TimedOut, None),
            End::Aborted => (Ending::Aborted, None),
        };
        metrics::ended(&ticket, ending, started);
        ticket.end(ending, error);
    }

    #[cold]
    fn log(&self, end: &End) {
        let (event, location) = self.ticket.name_and_location();
        let location = tracing::field::display(location);
        let none = Span::none();
        let parent = self.span().unwrap_or(&none);
        match end {
            End::Completed => {}
            End::Failed(error) => tracing::error!(parent: parent, event, error, location, "event failed"),
            End::Panicked(panic) => tracing::error!(parent: parent, event, panic, location, "event panicked"),
            End::TimedOut => {
                let limit = self.ticket.shard().context().settings.event_timeout.unwrap_or_default();
                tracing::error!(parent: parent, event, ?limit, location, "event timed out");
            }
            End::Aborted if self.ticket.is_aborted() => {
                tracing::warn!(parent: parent, event, location, "event aborted by `TrackEventsHandle::abort`");
            }
            End::Aborted => {
                tracing::warn!(
                    parent: parent,
                    event,
                    location,
                    "event aborted: its runtime shut down before it ended; drain before the runtime is dropped"
                );
            }
        }
    }
}

pin_project! {
    #[project = WorkProjection]
    enum Work<M, F> {
        NotMade { make: Option<M> },
        Running { #[pin] future: F },
        Dropped,
    }
}

pin_project! {
    /// A future and the state of its event.
    struct Tracked<M, F> {
        #[pin]
        work: Work<M, F>,
        // `None` before the event is accepted, and after its end.
        run: Option<Run>,
    }

    impl<M, F> PinnedDrop for Tracked<M, F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            if let Some(run) = this.run.take() {
                run.drop_work(|| this.work.set(Work::Dropped), End::Aborted);
            }
        }
    }
}

impl<M, F> Future for Tracked<M, F>
where
    M: FnOnce() -> F,
    F: Future<Output: EventOutput>,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        let Some(run) = this.run else { return Poll::Ready(()) };
        // The order of these checks decides which ending wins: see `TrackEventsHandle::abort`.
        let end = if run.ticket.is_aborted() {
            End::Aborted
        } else if !run.has_turn(cx) {
            return Poll::Pending;
        } else {
            run.start();
            let polled = run.enter(|| {
                if let WorkProjection::NotMade { make } = this.work.as_mut().project() {
                    if let Some(make) = make.take() {
                        this.work.set(Work::Running { future: make() });
                    }
                }
                let WorkProjection::Running { future } = this.work.as_mut().project() else { return Poll::Pending };
                let error = ready!(future.poll(cx)).into_result().err().map(|error| error_chain(&*error));
                // The future is dropped before the event counts as ended.
                this.work.set(Work::Dropped);
                Poll::Ready(error)
            });
            match polled {
                Ok(Poll::Ready(None)) => End::Completed,
                Ok(Poll::Ready(Some(error))) => End::Failed(error),
                Err(panic) => End::Panicked(one_line(&panic)),
                Ok(Poll::Pending) if run.is_late(cx) => End::TimedOut,
                Ok(Poll::Pending) => return Poll::Pending,
            }
        };
        if let Some(run) = this.run.take() {
            if matches!(*this.work, Work::Dropped) {
                run.end(end);
            } else {
                run.drop_work(|| this.work.set(Work::Dropped), end);
            }
        }
        Poll::Ready(())
    }
}

impl<M, F> Event for Tracked<M, F>
where
    M: FnOnce() -> F + Send,
    F: Future<Output: EventOutput> + Send,
{
    fn accept(self: Pin<&mut Self>, ticket: Ticket, span: Option<Span>) {
        *self.project().run = Some(Run::new(ticket, span));
    }

    #[inline]
    fn ticket(&self) -> Option<&Ticket> {
        self.run.as_ref().map(|run| &run.ticket)
    }
}

pin_project! {
    /// The task of one event.
    pub(crate) struct Alone<E> {
        #[pin]
        event: E,
        // Whether an abort wakes the task.
        is_registered: bool,
    }
}

impl<E> Alone<E> {
    #[inline]
    pub(crate) fn new(event: E) -> Self {
        Self { event, is_registered: false }
    }
}

impl<E: Event> Future for Alone<E> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        loop {
            if this.event.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            if *this.is_registered {
                return Poll::Pending;
            }
            // Registers after the first poll that is pending, because many events are ready at once.
            *this.is_registered = true;
            let Some(ticket) = this.event.ticket() else { return Poll::Ready(()) };
            if !ticket.is_before(ticket.wake_on_abort(cx.waker())) {
                return Poll::Pending;
            }
        }
    }
}
