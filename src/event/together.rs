//! The task that runs the events of one response. (A single event gets a task like an event of the handle.)
//!
//! The events are polled for the first time in the order in which they were tracked, and then run concurrently, as in
//! `join!`. Each has its own ticket, span, time limit, panic boundary and ending, and is dropped when it has ended.

use std::{
    mem,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{runtime, time::Instant};

use crate::{
    context::Ticket,
    event::{Alone, BoxedEvent},
};

/// An accepted event that an exchange keeps, and the runtime on which it will run.
pub(crate) struct Kept {
    event: BoxedEvent,
    runtime: runtime::Handle,
    /// Whether an abort wakes the task through the entry of this event.
    is_registered: bool,
}

impl Kept {
    pub(crate) fn new(event: BoxedEvent, runtime: runtime::Handle) -> Self {
        Self { event, runtime, is_registered: false }
    }

    #[inline]
    pub(crate) fn ticket(&self) -> Option<&Ticket> {
        self.event.ticket()
    }

    /// Starts the event in a task of its own.
    pub(crate) fn spawn(self, since: Instant) {
        self.set_running(since);
        self.runtime.spawn(Alone::new(self.event));
    }

    fn set_running(&self, since: Instant) {
        self.ticket().into_iter().for_each(|ticket| ticket.set_running(since));
    }
}

/// Starts events, in one task for each runtime. If a runtime is shutting down, its events are dropped and count as
/// aborted. To be called without a lock: a spawn on such a runtime runs their destructors.
pub(crate) fn spawn(mut events: Vec<Kept>, since: Instant) {
    if events.len() <= 1 {
        events.pop().into_iter().for_each(|kept| kept.spawn(since));
    }
    events.iter().for_each(|kept| kept.set_running(since));
    while let Some(first) = events.first() {
        let runtime = first.runtime.clone();
        let is_same = |kept: &Kept| kept.runtime.id() == runtime.id();
        // Nearly always, all events have the same runtime.
        let same = if events.iter().all(is_same) {
            mem::take(&mut events)
        } else {
            let (same, others) = events.into_iter().partition(is_same);
            events = others;
            same
        };
        runtime.spawn(Together { events: same, is_started: false });
    }
}

struct Together {
    events: Vec<Kept>,
    is_started: bool,
}

impl Future for Together {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { events, is_started } = &mut *self;
        if mem::replace(is_started, true) {
            // Another event is first in each poll, so that no event always uses the budget of the task before the
            // others.
            events.rotate_left(1);
        }
        loop {
            events.retain_mut(|kept| kept.event.as_mut().poll(cx).is_pending());
            if events.iter().any(|kept| kept.is_registered) {
                return Poll::Pending;
            }
            // One registration wakes the task for all of them.
            let Some(first) = events.first_mut() else { return Poll::Ready(()) };
            first.is_registered = true;
            let Some(epoch) = first.ticket().map(|ticket| ticket.wake_on_abort(cx.waker())) else { continue };
            if !events.iter().filter_map(Kept::ticket).any(|ticket| ticket.is_before(epoch)) {
                return Poll::Pending;
            }
        }
    }
}
