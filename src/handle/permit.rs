//! [`Permit`]: a reserved capacity slot.

use std::{fmt, panic::Location, sync::Arc};

use tokio::runtime;

use crate::{
    context::{PERMIT, Shard, Ticket},
    error::TrackError,
    event::{self, EventOutput, blocking, event_span},
    exchange::State,
    registry::Stage,
};

/// A reserved capacity slot for one event, from [`TrackEventsHandle::reserve`](crate::TrackEventsHandle::reserve) or
/// [`Events::reserve`](crate::Events::reserve).
///
/// A handler that must not lose an event takes a permit before it does its work. The event is then accepted for
/// certain. A drain waits for a permit that is held. A permit that is dropped unused releases its slot and is not
/// counted.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_track_events::TrackError> {
/// use tower_track_events::TrackEventsHandle;
///
/// let handle = TrackEventsHandle::new();
/// let permit = handle.reserve()?;
/// // Charge the card: from here on the receipt must not be rejected.
/// permit.track("receipt", async {});
/// # Ok(()) }
/// ```
#[must_use = "a permit that is dropped releases its slot"]
pub struct Permit {
    ticket: Ticket,
    runtime: runtime::Handle,
    /// The event starts when this exchange is over. Without one it starts at once.
    state: Option<Arc<State>>,
}

impl Permit {
    pub(crate) fn reserve(
        shard: &Arc<Shard>,
        state: Option<&Arc<State>>,
        location: &'static Location<'static>,
    ) -> Result<Self, TrackError> {
        let runtime = shard.runtime(PERMIT)?;
        let ticket = shard.reserve_event(location)?;
        Ok(Self { ticket, runtime, state: state.cloned() })
    }

    /// Tracks `future` as an event called `name`, in the slot of this permit.
    ///
    /// The event starts at once. If the permit comes from [`Events`](crate::Events), it starts when the exchange is
    /// over.
    #[track_caller]
    pub fn track<F>(self, name: &'static str, future: F)
    where
        F: Future + Send + 'static,
        F::Output: EventOutput,
    {
        let (span, location) = (event_span(name), Location::caller());
        let Self { ticket, runtime, state } = self;
        match state {
            Some(state) => state.keep(event::boxed(future), ticket.fill(name, Stage::Waiting, location), span, runtime),
            None => event::run(&runtime, ticket.fill(name, Stage::Running, location), span, future),
        }
    }

    /// Tracks `work` as an event called `name`, on the runtime's blocking threads and in the slot of this permit.
    ///
    /// It starts when [`track`](Self::track) would start it.
    /// [`TrackEventsHandle::track_blocking`](crate::TrackEventsHandle::track_blocking) says what differs for blocking
    /// work.
    #[track_caller]
    pub fn track_blocking<F, T>(self, name: &'static str, work: F)
    where
        F: FnOnce() -> T + Send + 'static,
        T: EventOutput,
    {
        let (span, location) = (event_span(name), Location::caller());
        let Self { ticket, runtime, state } = self;
        match state {
            Some(state) => {
                state.keep(blocking::boxed(work), ticket.fill(name, Stage::Waiting, location), span, runtime)
            }
            None => blocking::run(&runtime, ticket.fill(name, Stage::Running, location), span, work),
        }
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ticket: _, runtime: _, state } = self;
        f.debug_struct("Permit").field("of_exchange", &state.is_some()).finish_non_exhaustive()
    }
}
