//! The tasks that give events their first poll.
//!
//! Most of what a short event costs is its task. So events that start stand in a line, and a task polls one after the
//! other. An event that is not done then keeps the task that has polled it, and a next task goes on with the line.
//!
//! # Invariants, and why they hold
//!
//! 1. *No event waits for another that is being polled*, if a thread of the runtime is free. While the line has an event, a
//!    task is on its way to it: how many are due is computed under the lock of the shard, when an event enters and when one
//!    is taken, and they are spawned before the next poll. The task that a thread of tokio's has spawned last no other
//!    thread takes from it. So for several events one more is on its way; and before an event is polled while there is but
//!    one, something is spawned after it.
//! 2. *No event is left behind.* A task that is on its way either comes, or is dropped because its runtime is shutting
//!    down. The last one that is dropped so drops what stands in the line.

use std::{
    cell::Cell,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::{
    runtime::{self, RuntimeFlavor},
    task::coop,
};

use crate::{
    contain::contain,
    house::{EventTask, Shard, Starting},
    ledger::Begun,
    line::{EVENTS_PER_TASK, Taken},
    metrics,
    refused::Refused,
};

/// Where an event is going to run, found before it is accepted: on the runtime of its shard, if there is no other.
pub(crate) struct Place(Option<Box<runtime::Handle>>);

impl Place {
    /// For an event that is recorded here and now. A refusal is counted.
    #[inline]
    pub(crate) fn here(shard: &Shard, name: &'static str) -> Result<Self, Refused> {
        let runtime = shard.runtime().inspect_err(|refused| metrics::refused(name, *refused))?;
        let home = shard.home().get_or_init(|| {
            shard.poll_in_turn(runtime.runtime_flavor() == RuntimeFlavor::CurrentThread);
            runtime.clone()
        });
        let is_home = home.id() == runtime.id();
        Ok(Self(if is_home { None } else { Some(Box::new(runtime)) }))
    }

    pub(crate) const HOME: Self = Self(None);

    #[inline]
    pub(crate) fn is_home(&self) -> bool {
        self.0.is_none()
    }

    #[inline]
    pub(crate) fn of(self, task: EventTask) -> Starting {
        Starting { task, elsewhere: self.0 }
    }

    /// Runs blocking work there.
    pub(crate) fn spawn_blocking(&self, shard: &Shard, work: impl FnOnce() + Send + 'static) {
        if let Some(runtime) = self.0.as_deref().or(shard.home().get()) {
            runtime.spawn_blocking(work);
        }
    }
}

/// Does what the ledger says is to be done for events that begin.
#[inline]
pub(crate) fn begin(shard: &Arc<Shard>, begun: Begun<Starting>) {
    send(shard, begun.due);
    if !begun.elsewhere.is_empty() {
        start_elsewhere(begun.elsewhere);
    }
}

#[cold]
fn start_elsewhere(events: Vec<Starting>) {
    let mut last = None;
    for Starting { task, elsewhere } in events {
        if let Some(runtime) = elsewhere {
            runtime.spawn(task);
            last = Some(runtime);
        }
    }
    if let Some(runtime) = last {
        // Or a thread of the runtime would begin with the last one.
        spawn_nothing(&runtime);
    }
}

thread_local! {
    /// Whether this thread has spawned a task that takes events, and nothing after it that is known of.
    static SENT_LAST: Cell<bool> = const { Cell::new(false) };
}

/// Spawns tasks that take events. If the runtime is shutting down they are dropped instead.
#[inline]
fn send(shard: &Arc<Shard>, tasks: usize) {
    for _ in 0..tasks {
        let starter = Starter { shard: Arc::clone(shard), is_coming: true, event: None };
        match shard.home().get() {
            Some(runtime) => drop(runtime.spawn(starter)),
            None => drop(starter),
        }
        SENT_LAST.set(true);
    }
}

/// Lets other threads have the one task that is on its way, before this one polls an event, which may block it.
#[inline]
fn let_others_have_it(shard: &Shard) {
    if SENT_LAST.replace(false) {
        if let Some(runtime) = shard.home().get() {
            spawn_nothing(runtime);
        }
    }
}

/// The task that a thread has spawned last it keeps for itself.
fn spawn_nothing(runtime: &runtime::Handle) {
    if runtime.runtime_flavor() != RuntimeFlavor::CurrentThread {
        runtime.spawn(async {});
    }
}

/// A task that takes events.
struct Starter {
    shard: Arc<Shard>,
    /// Whether it will take an event, which others rely on.
    is_coming: bool,
    /// The event that keeps it.
    event: Option<EventTask>,
}

impl Future for Starter {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { shard, is_coming, event: kept } = &mut *self;
        if let Some(event) = kept {
            return event.as_mut().poll(cx);
        }
        // What was spawned last before it was taken: this task.
        SENT_LAST.set(false);
        let mut taken = shard.take(*is_coming);
        let mut left = EVENTS_PER_TASK;
        loop {
            let Taken { event, due, comes_back, is_last_coming } = taken;
            *is_coming = comes_back;
            send(shard, due);
            let Some(mut task) = event else {
                return Poll::Ready(());
            };
            if is_last_coming {
                let_others_have_it(shard);
            }
            if task.as_mut().poll(cx).is_pending() {
                *kept = Some(task);
                if mem::take(is_coming) {
                    send(shard, shard.leave_line());
                }
                return Poll::Pending;
            }
            left -= 1;
            if left == 0 || !coop::has_budget_remaining() {
                // The next one is not to be told that it must wait because others have used up the turn.
                break;
            }
            taken = match task.as_mut().ticket() {
                Some(ticket) => shard.end_and_take(ticket, *is_coming),
                None => shard.take(*is_coming),
            };
        }
        if !*is_coming {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Drop for Starter {
    fn drop(&mut self) {
        if self.is_coming {
            for event in self.shard.give_up() {
                let _ = contain(|| drop(event));
            }
        }
    }
}
