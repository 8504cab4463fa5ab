//! [`Events`]: the side of the handle that one exchange sees.

use std::{fmt, panic::Location, sync::Arc};

use http::Extensions;

use crate::{
    detached::DetachedExchange,
    exchange::Exchange,
    handle::TrackEventsHandle,
    output::EventOutput,
    permit::Permit,
    record::{Record, unaccepted_with},
    refused::Refused,
    task::{tracked, tracked_blocking},
};

/// Records events of one exchange, from inside its handler.
///
/// [`TrackEvents`](crate::TrackEvents) puts it into the extensions of each request. What is recorded through it starts
/// once the response is over, whatever its outcome: also when the handler fails or panics, or the client leaves. An
/// event that should run only after some outcomes asks for it with [`track_with`](Self::track_with).
///
/// Of one runtime, the events of one exchange start in the order in which they were recorded. None waits for another:
/// on a runtime with several threads they may run at the same time. (On one with a single thread, what computes for
/// long before it first waits holds up everything, as any task does, and belongs into
/// [`track_blocking`](Self::track_blocking).) They run on the runtime in which they were recorded, unless the handle
/// was [given one](crate::TrackEventsHandleBuilder::runtime); if these are several, some may run where others do.
///
/// A clone may outlive the exchange. What it is given from then on starts at once. It does not keep the exchange open,
/// nor a drain waiting: hold a [guard](TrackEventsHandle::guard) for that.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use http::{Request, Response};
/// use tower_track_events::Events;
///
/// async fn handler(request: Request<String>) -> Response<String> {
///     if let Some(events) = Events::from_extensions(request.extensions()) {
///         let refused = events.track("greeting.sent", async { /* write an audit row */ });
///         if let Err(refused) = refused {
///             return Response::builder().status(503).body(refused.to_string()).unwrap();
///         }
///     }
///     Response::new("hello".to_owned())
/// }
/// # handler(Request::default()).await;
/// # }
/// ```
#[derive(Clone)]
pub struct Events {
    record: Arc<Record>,
}

impl Events {
    pub(crate) fn new(record: Arc<Record>) -> Self {
        Self { record }
    }

    pub(crate) fn record(&self) -> &Arc<Record> {
        &self.record
    }

    /// Opens an exchange without a server, for the unit test of a handler: it ends when the test says so, and as it says.
    ///
    /// [A page of the guide](crate::guide::testing) shows how handlers are tested.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_track_events::{Events, Exchange, Outcome, TrackEventsHandle};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let handle = TrackEventsHandle::new();
    /// let request = Events::detached(&handle);
    /// request.events().track("audit", async {})?;
    /// request.end(Exchange::new(Outcome::Complete));
    /// handle.drain(std::time::Duration::from_secs(1)).await?;
    /// assert_eq!(handle.snapshot().completed, 1);
    /// # Ok(()) }
    /// ```
    pub fn detached(handle: &TrackEventsHandle) -> DetachedExchange {
        DetachedExchange::open(handle)
    }

    /// Finds what the layer has put into the extensions of a request; `None` when no layer has.
    ///
    /// # Examples
    ///
    /// ```
    /// use http::Request;
    /// use tower_track_events::Events;
    ///
    /// let request = Request::new("no layer has seen this one");
    /// assert!(Events::from_extensions(request.extensions()).is_none());
    /// ```
    pub fn from_extensions(extensions: &Extensions) -> Option<&Self> {
        extensions.get()
    }

    /// Tracks `future` under `name`; it starts when this exchange is over.
    ///
    /// The decision is made here and now: an event that was accepted will be started. If the exchange is over already,
    /// it starts at once.
    ///
    /// # Errors
    ///
    /// [`Refused::Full`] at capacity; [`Refused::Drained`] if the exchange began, or has ended, after a drain was `Ok`;
    /// [`Refused::NoRuntime`] if called outside of a tokio runtime while the handle knows of none.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_track_events::{Events, Refused};
    /// fn handler(events: &Events) -> Result<&'static str, Refused> {
    ///     events.track("order.created", async { /* publish it */ })?;
    ///     Ok("created")
    /// }
    /// ```
    #[track_caller]
    pub fn track<F>(&self, name: &'static str, future: F) -> Result<(), Refused>
    where
        F: Future + Send + 'static,
        F::Output: EventOutput,
    {
        self.record.track(name, Location::caller(), |ticket, cause| tracked(ticket, cause, future))
    }

    /// Tracks `work` under `name`; it starts on the runtime's blocking threads when this exchange is over.
    ///
    /// What is said of [`TrackEventsHandle::track_blocking`] is true here as well.
    ///
    /// # Errors
    ///
    /// As for [`track`](Self::track).
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_track_events::{Events, Refused};
    /// fn handler(events: &Events) -> Result<&'static str, Refused> {
    ///     events.track_blocking("audit", || std::fs::write("audit.log", "logged in"))?;
    ///     Ok("logged in")
    /// }
    /// ```
    #[track_caller]
    pub fn track_blocking<F, T>(&self, name: &'static str, work: F) -> Result<(), Refused>
    where
        F: FnOnce() -> T + Send + 'static,
        T: EventOutput,
    {
        self.record.track(name, Location::caller(), |ticket, cause| tracked_blocking(ticket, cause, work))
    }

    /// Tracks the future that `make` returns, under `name`; `make` is called when this exchange is over, and told how.
    ///
    /// `make` runs as a part of the event: its panic is the event's.
    ///
    /// # Errors
    ///
    /// As for [`track`](Self::track).
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_track_events::{Events, Exchange, Refused};
    /// # async fn bill(customer: u64, bytes: u64) {}
    /// fn handler(events: &Events, customer: u64) -> Result<&'static str, Refused> {
    ///     events.track_with("download.billed", move |exchange: Exchange| async move {
    ///         bill(customer, exchange.body_bytes).await
    ///     })?;
    ///     Ok("here it comes")
    /// }
    /// ```
    #[track_caller]
    pub fn track_with<M, F>(&self, name: &'static str, make: M) -> Result<(), Refused>
    where
        M: FnOnce(Exchange) -> F + Send + 'static,
        F: Future + Send + 'static,
        F::Output: EventOutput,
    {
        let event = unaccepted_with(&self.record, make);
        self.record.track(name, Location::caller(), |ticket, cause| event.accepted(ticket, cause))
    }

    /// Reserves room for one event of this exchange, so that tracking it cannot be refused any more.
    ///
    /// # Errors
    ///
    /// As for [`track`](Self::track).
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_track_events::{Events, Refused};
    /// # fn charge_card() {}
    /// fn handler(events: &Events) -> Result<&'static str, Refused> {
    ///     let permit = events.reserve()?; // before the money moves
    ///     charge_card();
    ///     permit.track("receipt", async { /* send it */ });
    ///     Ok("paid")
    /// }
    /// ```
    #[track_caller]
    pub fn reserve(&self) -> Result<Permit, Refused> {
        Permit::reserve(&self.record.shard, Some(&self.record), Location::caller())
    }

    /// Gives the handle of the layer, for events that should start at once and for guards.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_track_events::{Events, Refused};
    /// fn upgrade(events: &Events) -> Result<(), Refused> {
    ///     let guard = events.handle().guard()?;
    ///     tokio::spawn(async move {
    ///         // serve the socket ..
    ///         drop(guard);
    ///     });
    ///     Ok(())
    /// }
    /// ```
    pub fn handle(&self) -> TrackEventsHandle {
        TrackEventsHandle::of(&self.record.shard)
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { record } = self;
        f.debug_tuple("Events").field(record).finish()
    }
}
