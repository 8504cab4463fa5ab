//! A copy of the exchange and of the tasks of events, for the models.

use std::{borrow::Cow, mem, sync};

use crate::{
    registry::{
        OpenRequest,
        epoch::Epoch,
        models::{Task, Ticket},
    },
    util::sync::{Mutex, lock, seeded, seeded_gap},
};

/// The task of an event that is always pending. It does the same steps as `event::together`.
pub(super) struct Running {
    pub(super) task: Task,
    pub(super) ticket: Option<Ticket>,
    pub(super) is_registered: bool,
}

impl Running {
    pub(super) fn new(ticket: Option<Ticket>) -> Self {
        Self { task: Task::default(), ticket, is_registered: false }
    }

    pub(super) fn poll(&mut self) {
        let waker = self.task.waker();
        if self.ticket.as_ref().is_some_and(Ticket::is_aborted) {
            self.ticket = None;
        }
        if self.is_registered {
            return;
        }
        let Some(ticket) = &self.ticket else { return };
        self.is_registered = true;
        let epoch = ticket.wake_on_abort(&waker);
        if ticket.is_before(epoch) && !seeded!("a task does not look at the epoch after it has registered") {
            self.ticket = None;
        }
    }

    /// Polls while the task is woken, after the abort. Returns the event if it was not aborted.
    pub(super) fn finish(mut self) -> Option<Ticket> {
        while self.ticket.is_some() && self.task.is_woken() {
            self.poll();
        }
        self.ticket
    }
}

/// The state of an exchange, which keeps events until it is over. It does the same steps as `exchange::state`.
#[derive(Default)]
pub(super) struct Exchange {
    phase: Mutex<Phase>,
    /// The events that the last call has started.
    started: sync::Mutex<Vec<Running>>,
}

enum Phase {
    Open { kept: Vec<Ticket>, is_last_call: bool },
    Over,
}

impl Default for Phase {
    fn default() -> Self {
        Self::Open { kept: Vec::new(), is_last_call: false }
    }
}

impl Exchange {
    /// Keeps an event, or runs it if the exchange is over or has had its last call.
    pub(super) fn keep(&self, ticket: Ticket) -> Option<Running> {
        let was_aborted = ticket.is_aborted();
        let mut phase = lock(&self.phase);
        let is_early = seeded!("an exchange looks at the epoch before it is locked");
        let is_aborted = if is_early { was_aborted } else { ticket.is_aborted() };
        match &mut *phase {
            Phase::Open { kept, is_last_call }
                if (!*is_last_call || seeded!("an exchange does not remember the last call"))
                    && (!is_aborted || seeded!("an exchange does not look at the epoch")) =>
            {
                kept.push(ticket);
            }
            _ => {
                drop(phase);
                return Some(Running::new(Some(ticket)));
            }
        }
        None
    }

    /// Ends the exchange, and runs the events that were kept.
    pub(super) fn end(&self) -> Vec<Running> {
        match mem::replace(&mut *lock(&self.phase), Phase::Over) {
            Phase::Open { kept, .. } => kept.into_iter().map(|ticket| Running::new(Some(ticket))).collect(),
            Phase::Over => Vec::new(),
        }
    }

    /// The events that the last call has started.
    pub(super) fn started(&self) -> Vec<Running> {
        mem::take(&mut *self.started.lock().unwrap())
    }
}

impl OpenRequest for Exchange {
    fn abort(&self, epoch: Epoch) {
        let mut aborted = Vec::new();
        if let Phase::Open { kept, .. } = &mut *lock(&self.phase) {
            (aborted, *kept) = mem::take(kept).into_iter().partition(|ticket| ticket.is_before(epoch));
        }
        drop(aborted);
    }

    fn last_call(&self) -> usize {
        let mut phase = lock(&self.phase);
        let Phase::Open { kept, .. } = &mut *phase else { return 0 };
        let kept = mem::take(kept);
        seeded_gap!("the last call marks an exchange under a later lock", phase = lock(&self.phase));
        if let Phase::Open { is_last_call, .. } = &mut *phase {
            *is_last_call = true;
        }
        drop(phase);
        let count = kept.len();
        self.started.lock().unwrap().extend(kept.into_iter().map(|ticket| Running::new(Some(ticket))));
        count
    }

    fn label(&self) -> Option<Cow<'static, str>> {
        None
    }
}
