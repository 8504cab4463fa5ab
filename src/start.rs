//! The tasks that give events their first poll.
//!
//! Most of what a short event costs is its task. So events that start stand in a line, and a task polls one after the
//! other. An event that is not done then keeps the task that has polled it, and a next task goes on with the line.
//!
//! # Invariants, and why they hold
//!
//! 1. *No event waits for another that is being polled*, if a thread of the runtime is free. While the line has an event, a
//!    task is on its way to it: how many are due is computed under the lock of the shard, when an event enters, when a task
//!    has come, and when one will not come back; and they are spawned before the next poll. A task that goes on with the next
//!    event was not on its way to that, so nobody is due in its place. The task that a thread of tokio's has spawned or woken
//!    last no other thread takes from it. So for several events one more is on its way; before an event is polled something
//!    is spawned after the task that was sent last; and after it what it has woken or spawned gets a turn, before the task
//!    polls another.
//! 2. *On a runtime of one thread one task is enough*, until an event waits: nobody else could poll the next one meanwhile.
//!    The task that takes is counted as one that is coming for as long as it leaves events behind, and sends another when
//!    an event keeps it.
//! 3. *No event is left behind.* A task that is coming either comes, or is dropped because its runtime is shutting down. The
//!    last one that is dropped so drops what stands in the line.

use std::{
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
    line::{Arrival, Line, Turn},
    metrics,
    refused::Refused,
};

/// How many events a task polls, on a runtime of one thread, before it leaves that to others.
const EVENTS_PER_TURN: usize = 16;

/// Where an event is going to run, found before it is accepted: on the runtime of its shard, if there is no other.
pub(crate) struct Place(Option<Box<runtime::Handle>>);

impl Place {
    /// For an event that is recorded here and now. A refusal is counted.
    #[inline]
    pub(crate) fn here(shard: &Shard, name: &'static str) -> Result<Self, Refused> {
        let runtime = shard.runtime().inspect_err(|refused| metrics::refused(name, *refused))?;
        let home = shard.home().get_or_init(|| {
            shard.with_line(|line| line.poll_in_turn(has_one_thread(&runtime)));
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

/// Spawns tasks that take events. If the runtime is shutting down they are dropped instead.
#[inline]
fn send(shard: &Arc<Shard>, tasks: usize) {
    for _ in 0..tasks {
        let starter = Starter::Taking(Taker { shard: Arc::clone(shard), is_coming: true });
        match shard.home().get() {
            Some(runtime) => drop(runtime.spawn(starter)),
            None => drop(starter),
        }
    }
}

/// The same before this thread polls an event, which may block it.
fn send_before_poll(shard: &Arc<Shard>, tasks: usize) {
    send(shard, tasks);
    if tasks > 0 {
        shard.home().get().into_iter().for_each(spawn_nothing);
    }
}

/// The task that a thread has spawned last it keeps for itself.
fn spawn_nothing(runtime: &runtime::Handle) {
    if !has_one_thread(runtime) {
        runtime.spawn(async {});
    }
}

fn has_one_thread(runtime: &runtime::Handle) -> bool {
    runtime.runtime_flavor() == RuntimeFlavor::CurrentThread
}

/// A task that takes events.
enum Starter {
    Taking(Taker),
    /// It has taken this one, and polls it in a turn of its own.
    Taken(EventTask),
    /// An event keeps it.
    Kept(EventTask),
    Done,
}

struct Taker {
    shard: Arc<Shard>,
    /// Whether others rely on it to take an event.
    is_coming: bool,
}

impl Future for Starter {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Self::Kept(event) = &mut *self {
            return event.as_mut().poll(cx);
        }
        let next = match mem::replace(&mut *self, Self::Done) {
            Self::Taking(taker) if taker.shard.home().get().is_some_and(has_one_thread) => poll_many(taker, cx),
            Self::Taking(mut taker) => {
                // It has come, also if it is dropped from here on.
                taker.is_coming = false;
                let Arrival { event, due } = taker.shard.with_line(Line::arrive);
                send_before_poll(&taker.shard, due);
                event.map_or(Self::Done, |event| poll_one(event, cx))
            }
            Self::Taken(event) => poll_one(event, cx),
            Self::Kept(_) | Self::Done => Self::Done,
        };
        *self = next;
        match &*self {
            Self::Done => Poll::Ready(()),
            Self::Kept(_) => Poll::Pending,
            Self::Taking(_) | Self::Taken(_) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }
}

/// On a runtime of several threads: what the event has woken or spawned gets a turn before the next one is polled. It would
/// have to wait for that otherwise, since no other thread takes it.
fn poll_one(mut event: EventTask, cx: &mut Context<'_>) -> Starter {
    if event.as_mut().poll(cx).is_pending() {
        return Starter::Kept(event);
    }
    // Where it has gone elsewhere, others come for the next one.
    let Some(ticket) = event.as_mut().ticket() else { return Starter::Done };
    ticket.end_and_take(Line::next).map_or(Starter::Done, Starter::Taken)
}

/// On a runtime of one thread.
fn poll_many(mut taker: Taker, cx: &mut Context<'_>) -> Starter {
    let mut turn = taker.shard.with_line(|line| line.take_turn(taker.is_coming));
    let mut left = EVENTS_PER_TURN;
    loop {
        let Turn { event, comes_back } = turn;
        taker.is_coming = comes_back;
        let Some(mut event) = event else { break };
        if event.as_mut().poll(cx).is_pending() {
            taker.leave();
            return Starter::Kept(event);
        }
        left -= 1;
        if left == 0 || !coop::has_budget_remaining() {
            // The next one is not to be told that it must wait because others have used up the turn.
            break;
        }
        let take_turn = |line: &mut Line<_>| line.take_turn(taker.is_coming);
        turn = match event.as_mut().ticket() {
            Some(ticket) => ticket.end_and_take(take_turn),
            None => taker.shard.with_line(take_turn),
        };
    }
    if taker.is_coming { Starter::Taking(taker) } else { Starter::Done }
}

impl Taker {
    /// Sends another task, if others rely on this one.
    fn leave(mut self) {
        if mem::take(&mut self.is_coming) {
            send(&self.shard, self.shard.with_line(Line::leave));
        }
    }
}

impl Drop for Taker {
    fn drop(&mut self) {
        if self.is_coming {
            for event in self.shard.with_line(Line::give_up) {
                let _ = contain(|| drop(event));
            }
        }
    }
}
