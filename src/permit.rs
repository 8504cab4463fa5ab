//! [`Permit`]: room that is taken before the work is done.

use std::{fmt, panic::Location, sync::Arc};

use tokio::runtime;

use crate::{
    entry::Stage,
    house::{House, PERMIT, Shard},
    ledger::{NewEvent, PermitTicket},
    metrics,
    output::EventOutput,
    record::Record,
    refused::Refused,
    task::{Launch, current_span, recorded, recorded_blocking},
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
    start: Start,
}

/// When the event starts.
enum Start {
    Now(runtime::Handle),
    /// When the exchange is over.
    After(Arc<Record>),
}

impl Permit {
    pub(crate) fn reserve(shard: &Arc<Shard>, location: &'static Location<'static>) -> Result<Self, Refused> {
        let runtime = shard.runtime().inspect_err(|refused| metrics::refused(PERMIT, *refused))?;
        let ticket = shard.reserve_event(location)?;
        Ok(Self { ticket, start: Start::Now(runtime) })
    }

    pub(crate) fn reserve_in(record: &Arc<Record>, location: &'static Location<'static>) -> Result<Self, Refused> {
        record.find_runtime(PERMIT)?;
        let ticket = record.shard.reserve_event(location)?;
        Ok(Self { ticket, start: Start::After(Arc::clone(record)) })
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
        let (launch, start) = self.accept(name, Location::caller());
        match start {
            Start::Now(runtime) => launch.spawn(&runtime, &current_span(), future),
            Start::After(record) => record.add(launch, recorded(future)),
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
        let (launch, start) = self.accept(name, Location::caller());
        match start {
            Start::Now(runtime) => launch.spawn_blocking(&runtime, &current_span(), work),
            Start::After(record) => record.add(launch, recorded_blocking(work)),
        }
    }

    fn accept(self, name: &'static str, location: &'static Location<'static>) -> (Launch, Start) {
        let Self { ticket, start } = self;
        let record = match &start {
            Start::Now(_) => None,
            Start::After(record) => Some(record),
        };
        (fill(ticket, name, record, location), start)
    }
}

/// Makes an event of the room that was taken for it.
pub(crate) fn fill(
    ticket: PermitTicket<House>,
    name: &'static str,
    record: Option<&Arc<Record>>,
    location: &'static Location<'static>,
) -> Launch {
    let (stage, since) = match record {
        Some(record) => (Stage::Recorded, Some(record.time())),
        None => (Stage::Started, None),
    };
    metrics::accepted(name);
    Launch { ticket: ticket.accept(NewEvent { name, stage, location, since }) }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ticket: _, start } = self;
        f.debug_struct("Permit").field("of_exchange", &matches!(start, Start::After(_))).finish_non_exhaustive()
    }
}
