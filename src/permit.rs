//! [`Permit`]: room that is taken before the work is done.

use std::{fmt, panic::Location, sync::Arc};

use tokio::runtime;
use tracing::Span;

use crate::{
    entry::Stage,
    house::{House, Shard},
    ledger::{NewEvent, PermitTicket},
    metrics,
    output::EventOutput,
    record::Record,
    refused::Refused,
    task::Launch,
};

/// Room for one event, from [`TrackEventsHandle::reserve`](crate::TrackEventsHandle::reserve) or
/// [`Events::reserve`](crate::Events::reserve).
///
/// A permit is how a handler decides before it does the work: once it has one, the event will be accepted. A drain
/// waits for a permit that is held. Dropped unused, it gives its room back and is nothing.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_track_events::Refused> {
/// use tower_track_events::TrackEventsHandle;
///
/// let handle = TrackEventsHandle::new();
/// let permit = handle.reserve()?;
/// // Charge the card: from here on the receipt must not be refused.
/// permit.track("receipt", async {});
/// # Ok(()) }
/// ```
#[must_use = "a permit that is dropped gives its room back"]
pub struct Permit {
    ticket: PermitTicket<House>,
    runtime: runtime::Handle,
    /// The exchange whose end the event waits for; without one it starts at once.
    record: Option<Arc<Record>>,
}

impl Permit {
    pub(crate) fn reserve(
        shard: &Arc<Shard>,
        record: Option<Arc<Record>>,
        location: &'static Location<'static>,
    ) -> Result<Self, Refused> {
        let runtime = shard.runtime().inspect_err(|refused| metrics::refused("(permit)", *refused))?;
        let ticket = shard.reserve_event(location)?;
        Ok(Self { ticket, runtime, record })
    }

    /// Tracks `future` under `name`, in the room that this permit holds.
    ///
    /// The event starts at once, or, if the permit comes from [`Events`](crate::Events), when the exchange is over.
    #[track_caller]
    pub fn track<F>(self, name: &'static str, future: F)
    where
        F: Future + Send + 'static,
        F::Output: EventOutput,
    {
        let (launch, runtime, record) = self.accept(name, Location::caller());
        match record {
            None => launch.spawn(&runtime, &Span::current(), future),
            Some(record) => record.add(
                launch,
                runtime,
                Box::new(|launch, runtime, cause, _exchange| launch.spawn(runtime, cause, future)),
            ),
        }
    }

    /// Tracks `work` under `name` on the runtime's blocking threads, in the room that this permit holds.
    ///
    /// It starts when [`track`](Self::track) would start it. What is said of
    /// [`TrackEventsHandle::track_blocking`](crate::TrackEventsHandle::track_blocking) is true here as well.
    #[track_caller]
    pub fn track_blocking<F, T>(self, name: &'static str, work: F)
    where
        F: FnOnce() -> T + Send + 'static,
        T: EventOutput,
    {
        let (launch, runtime, record) = self.accept(name, Location::caller());
        match record {
            None => launch.spawn_blocking(&runtime, &Span::current(), work),
            Some(record) => record.add(
                launch,
                runtime,
                Box::new(|launch, runtime, cause, _exchange| launch.spawn_blocking(runtime, cause, work)),
            ),
        }
    }

    fn accept(
        self,
        name: &'static str,
        location: &'static Location<'static>,
    ) -> (Launch, runtime::Handle, Option<Arc<Record>>) {
        let Self { ticket, runtime, record } = self;
        (fill(ticket, name, record.as_ref(), location), runtime, record)
    }
}

/// Makes an event of the room that was taken for it.
pub(crate) fn fill(
    ticket: PermitTicket<House>,
    name: &'static str,
    record: Option<&Arc<Record>>,
    location: &'static Location<'static>,
) -> Launch {
    let since = ticket.shard().house().now();
    let (stage, holder) = match record {
        Some(record) => (Stage::Recorded, Some(record.holder())),
        None => (Stage::Started, None),
    };
    metrics::accepted(name);
    Launch { name, ticket: ticket.accept(NewEvent { name, stage, location, since, holder }) }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ticket: _, runtime: _, record } = self;
        f.debug_struct("Permit").field("of_exchange", &record.is_some()).finish_non_exhaustive()
    }
}
