//! Events that run on a blocking thread.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Wake, Waker},
};

use tokio::runtime;
use tracing::Span;

use crate::{
    context::Ticket,
    event::{Alone, BoxedEvent, End, Event, EventOutput, Run},
    util::{
        panic::catch,
        text::{error_chain, one_line},
    },
};

/// Runs `work` on a blocking thread of `runtime`. If the runtime is shutting down, the event is dropped and counts as
/// aborted. Until it has a thread, an abort ends it.
pub(crate) fn run<F, T>(runtime: &runtime::Handle, ticket: Ticket, span: Option<Span>, work: F)
where
    F: FnOnce() -> T + Send + 'static,
    T: EventOutput,
{
    let run = Run::new(ticket, span);
    if run.needs_turn() {
        // A task waits for the turn: a blocking thread that waits would be blocked.
        runtime.spawn(Alone::new(NotQueued { work: Some(work), run: Some(run) }));
        return;
    }
    let queued = Queued::new(work, run);
    // Tokio panics if it cannot start a thread. Then the event has been dropped, and counts as aborted.
    let _ = catch(|| runtime.spawn_blocking(move || queued.run()));
}

/// Makes an event of an exchange, whose task only moves the work to a blocking thread.
pub(crate) fn boxed<F, T>(work: F) -> BoxedEvent
where
    F: FnOnce() -> T + Send + 'static,
    T: EventOutput,
{
    Box::pin(NotQueued { work: Some(work), run: None })
}

struct NotQueued<F> {
    work: Option<F>,
    run: Option<Run>,
}

/// No field is pinned.
impl<F> Unpin for NotQueued<F> {}

impl<F, T> Future for NotQueued<F>
where
    F: FnOnce() -> T + Send + 'static,
    T: EventOutput,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(run) = &mut self.run {
            if run.ticket.is_aborted() {
                self.abort();
                return Poll::Ready(());
            }
            if !run.has_turn(cx) {
                return Poll::Pending;
            }
        }
        if let (Some(work), Some(run)) = (self.work.take(), self.run.take()) {
            let queued = Queued::new(work, run);
            let _ = catch(|| runtime::Handle::current().spawn_blocking(move || queued.run()));
        }
        Poll::Ready(())
    }
}

impl<F, T> Event for NotQueued<F>
where
    F: FnOnce() -> T + Send + 'static,
    T: EventOutput,
{
    fn accept(mut self: Pin<&mut Self>, ticket: Ticket, span: Option<Span>) {
        self.run = Some(Run::new(ticket, span));
    }

    fn ticket(&self) -> Option<&Ticket> {
        self.run.as_ref().map(|run| &run.ticket)
    }
}

impl<F> NotQueued<F> {
    fn abort(&mut self) {
        if let (Some(work), Some(run)) = (self.work.take(), self.run.take()) {
            run.drop_work(|| drop(work), End::Aborted);
        }
    }
}

impl<F> Drop for NotQueued<F> {
    fn drop(&mut self) {
        self.abort();
    }
}

/// Work that waits for a thread. An abort drops the work, and so does a runtime that drops the task.
struct Queued<F: Send + 'static>(Arc<Slot<F>>);

struct Slot<F>(Mutex<Option<(F, Run)>>);

impl<F: Send + 'static> Queued<F> {
    fn new(work: F, run: Run) -> Self {
        let slot = Arc::new(Slot(Mutex::new(None)));
        let waker = Waker::from(Arc::clone(&slot));
        run.ticket.wake_on_abort(&waker);
        *slot.lock() = Some((work, run));
        // An abort before this line may have found the slot empty. A later one finds the work.
        if slot.is_aborted() {
            slot.abort();
        }
        Self(slot)
    }
}

impl<F> Slot<F> {
    fn lock(&self) -> MutexGuard<'_, Option<(F, Run)>> {
        // No user code runs under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<(F, Run)> {
        self.lock().take()
    }

    fn is_aborted(&self) -> bool {
        self.lock().as_ref().is_some_and(|(_, run)| run.ticket.is_aborted())
    }

    fn abort(&self) {
        if let Some((work, run)) = self.take() {
            run.drop_work(|| drop(work), End::Aborted);
        }
    }
}

impl<F: Send + 'static> Wake for Slot<F> {
    fn wake(self: Arc<Self>) {
        self.abort();
    }
}

impl<F, T> Queued<F>
where
    F: FnOnce() -> T + Send + 'static,
    T: EventOutput,
{
    fn run(self) {
        let Some((work, mut run)) = self.0.take() else { return };
        run.ticket.set_blocking();
        run.start();
        let returned = run.enter(|| work().into_result().err().map(|error| error_chain(&*error)));
        run.end(match returned {
            Ok(None) => End::Completed,
            Ok(Some(error)) => End::Failed(error),
            Err(panic) => End::Panicked(one_line(&panic)),
        });
    }
}

impl<F: Send + 'static> Drop for Queued<F> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
