//! [`Turn`]: an event waits until the concurrency limit lets it run.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task,
};

use crate::{context::Ticket, registry::Stage, util::reentrancy};

/// A turn of one event: first come, first served over all events of the handle. Dropping it lets the next event run.
pub(super) enum Turn {
    Waiting {
        acquire: Pin<Box<dyn Future<Output = OwnedSemaphorePermit> + Send>>,
        /// Whether the stage of the event is `Limited`.
        is_reported: bool,
    },
    /// The event runs, and keeps the permit until it has ended.
    Taken { _permit: OwnedSemaphorePermit },
}

impl Turn {
    /// Returns a turn for an event. `None` for an event that is tracked inside another one, which may wait for it.
    #[cold]
    pub(super) fn of(ticket: &Ticket, turns: &Arc<Semaphore>) -> Option<Self> {
        if reentrancy::is_inside_event(ticket.shard().registry.id()) {
            return None;
        }
        let turns = Arc::clone(turns);
        // Without the budget of the task, because a turn that is delayed by it would change the order.
        let acquire =
            task::unconstrained(async { turns.acquire_owned().await.expect("the semaphore is never closed") });
        Some(Self::Waiting { acquire: Box::pin(acquire), is_reported: false })
    }

    /// Returns whether the event may run. The first poll enters the queue.
    #[cold]
    pub(super) fn poll(&mut self, ticket: &Ticket, cx: &mut Context<'_>) -> bool {
        let Self::Waiting { acquire, is_reported } = self else { return true };
        match acquire.as_mut().poll(cx) {
            Poll::Ready(permit) => {
                if *is_reported {
                    ticket.set_stage(Stage::Running);
                }
                *self = Self::Taken { _permit: permit };
                true
            }
            Poll::Pending => {
                if !*is_reported {
                    *is_reported = true;
                    ticket.set_stage(Stage::Limited);
                }
                false
            }
        }
    }
}
