//! [`Permit`]: room that is taken before the work is done.

use std::{fmt, panic::Location, sync::Arc};

use crate::{
    entry::Stage,
    house::{House, PERMIT, Shard},
    ledger::{NewEvent, PermitTicket},
    metrics,
    output::EventOutput,
    record::Record,
    refused::Refused,
    start::Place,
    task::{Cause, Launch, tracked, tracked_blocking},
};

/// Room for one event, from [`TrackEventsHandle::reserve`](crate::TrackEventsHandle::reserve) or
/// [`Events::reserve`](crate::Events::reserve).
///
/// A permit is how a handler decides before it does the work: once it has one, the event will be accepted. A drain
/// waits for a permit that is held. Dropped unused, it gives its room back; nothing is counted.
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
    place: Place,
    /// The exchange that is over when the event starts. Without one it starts at once.
    record: Option<Arc<Record>>,
}

impl Permit {
    pub(crate) fn reserve(
        shard: &Arc<Shard>,
        record: Option<&Arc<Record>>,
        location: &'static Location<'static>,
    ) -> Result<Self, Refused> {
        let place = match record {
            Some(record) => record.place(PERMIT)?,
            None => Place::here(shard, PERMIT)?,
        };
        let ticket = shard.reserve_event(location)?;
        Ok(Self { ticket, place, record: record.cloned() })
    }

    /// Tracks `future` under `name`, in the room that this permit holds.
    ///
    /// The event starts at once, or, if the permit comes from [`Events`](crate::Events), when the exchange is over.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let handle = tower_track_events::TrackEventsHandle::new();
    /// handle.reserve()?.track("receipt", async { /* send it */ });
    /// assert_eq!(handle.snapshot().pending, 1);
    /// # Ok(()) }
    /// ```
    #[track_caller]
    pub fn track<F>(self, name: &'static str, future: F)
    where
        F: Future + Send + 'static,
        F::Output: EventOutput,
    {
        let (launch, record) = self.accept(name, Location::caller());
        match record {
            None => launch.start(Cause::current(), future),
            Some(record) => record.add(launch, |ticket, cause| tracked(ticket, cause, future)),
        }
    }

    /// Tracks `work` under `name` on the runtime's blocking threads, in the room that this permit holds.
    ///
    /// It starts when [`track`](Self::track) would start it. What is said of
    /// [`TrackEventsHandle::track_blocking`](crate::TrackEventsHandle::track_blocking) is true here as well.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let handle = tower_track_events::TrackEventsHandle::new();
    /// handle.reserve()?.track_blocking("receipt", || { /* print it */ });
    /// handle.drain(std::time::Duration::from_secs(1)).await?;
    /// assert_eq!(handle.snapshot().completed, 1);
    /// # Ok(()) }
    /// ```
    #[track_caller]
    pub fn track_blocking<F, T>(self, name: &'static str, work: F)
    where
        F: FnOnce() -> T + Send + 'static,
        T: EventOutput,
    {
        let (launch, record) = self.accept(name, Location::caller());
        match record {
            None => launch.start_blocking(Cause::current(), work),
            Some(record) => record.add(launch, |ticket, cause| tracked_blocking(ticket, cause, work)),
        }
    }

    fn accept(self, name: &'static str, location: &'static Location<'static>) -> (Launch, Option<Arc<Record>>) {
        let Self { ticket, place, record } = self;
        (fill(ticket, place, name, record.as_ref(), location), record)
    }
}

/// Makes an event of the room that was taken for it.
pub(crate) fn fill(
    ticket: PermitTicket<House>,
    place: Place,
    name: &'static str,
    record: Option<&Arc<Record>>,
    location: &'static Location<'static>,
) -> Launch {
    metrics::accepted(name);
    let ticket = match record {
        Some(record) => ticket.accept(&record.shard, record.event(name, location)),
        None => {
            let shard = Arc::clone(ticket.shard());
            ticket.accept(&shard, NewEvent { name, stage: Stage::Started, location, since: None })
        }
    };
    Launch { ticket, place }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ticket: _, place: _, record } = self;
        f.debug_struct("Permit").field("of_exchange", &record.is_some()).finish_non_exhaustive()
    }
}
