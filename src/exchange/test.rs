//! [`TestExchange`]: an exchange for tests of handlers and hooks without a server.

use std::fmt;

use http::{Method, Request, StatusCode, Version};

use crate::{
    exchange::{Events, Exchange, ExchangeGuard, NO_HOOKS, Outcome},
    handle::TrackEventsHandle,
};

/// An exchange without a server: a test passes its [`Events`] to a handler, and ends it with any outcome.
///
/// It counts as an open request until it is ended. If it is dropped before, it ends as
/// [`NoResponse`](crate::Outcome::NoResponse), as if the client had left.
///
/// [A page of the guide](crate::guide::testing) shows how to test handlers.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// use tower_track_events::{Events, Exchange, Outcome, TrackError, TrackEventsHandle, test::TestExchange};
///
/// async fn download(events: &Events) -> Result<(), TrackError> {
///     events.track_with("bill", |exchange: Exchange| async move {
///         assert_eq!(exchange.body_bytes, 5);
///     })
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let handle = TrackEventsHandle::new();
/// let request = TestExchange::new(&handle);
/// download(request.events()).await?;
/// assert_eq!(handle.snapshot().pending, 1); // it waits for the end of the exchange
///
/// let mut exchange = Exchange::new(Outcome::Complete);
/// exchange.body_bytes = 5;
/// request.end(exchange);
///
/// handle.wait_idle(Duration::from_secs(1)).await?;
/// assert_eq!(handle.snapshot().ended.completed, 1);
/// # Ok(()) }
/// ```
#[must_use = "an exchange that is dropped ends as if the client had left"]
pub struct TestExchange {
    events: Events,
    guard: ExchangeGuard,
}

impl TestExchange {
    /// Opens an exchange. A drain of `handle` waits for it.
    pub fn new(handle: &TrackEventsHandle) -> Self {
        let shard = handle.shard();
        shard.remember_runtime();
        let guard = ExchangeGuard::open(shard, &Method::GET, Version::HTTP_11, NO_HOOKS, None);
        Self { events: Events::new(guard.state().clone()), guard }
    }

    /// Returns the events of this exchange, to pass to a handler.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// Inserts the events into the extensions of a request, where the extractor for axum and
    /// [`Events::from_extensions`] find them.
    ///
    /// # Examples
    ///
    /// ```
    /// use http::Request;
    /// use tower_track_events::{Events, TrackEventsHandle, test::TestExchange};
    ///
    /// let exchange = TestExchange::new(&TrackEventsHandle::new());
    /// let mut request = Request::new(());
    /// exchange.attach(&mut request);
    /// assert!(Events::from_extensions(request.extensions()).is_some());
    /// ```
    pub fn attach<B>(&self, request: &mut Request<B>) {
        request.extensions_mut().insert(self.events.clone());
    }

    /// Returns the names of the events that the handler has tracked and that wait for the end of this exchange, in the
    /// order in which they were tracked.
    ///
    /// Permits that were reserved are not included, nor are events that were aborted or started by a last call.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_track_events::{TrackEventsHandle, test::TestExchange};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let exchange = TestExchange::new(&TrackEventsHandle::new());
    /// exchange.events().track("audit", async {})?;
    /// exchange.events().track("bill", async {})?;
    /// assert_eq!(exchange.tracked(), ["audit", "bill"]);
    /// # Ok(()) }
    /// ```
    pub fn tracked(&self) -> Vec<&'static str> {
        self.guard.state().waiting()
    }

    /// Ends the exchange as [`Complete`](Outcome::Complete) with this status, and starts its events.
    ///
    /// The body has zero bytes. Use [`end`](Self::end) for other facts.
    pub fn complete(self, status: StatusCode) {
        let mut exchange = Exchange::new(Outcome::Complete);
        exchange.status = Some(status);
        self.end(exchange);
    }

    /// Ends the exchange with these facts, and starts its events. Events that are tracked later start at once.
    pub fn end(self, exchange: Exchange) {
        self.guard.end_as(exchange);
    }
}

impl fmt::Debug for TestExchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { events, guard: _ } = self;
        f.debug_struct("TestExchange").field("events", events).finish_non_exhaustive()
    }
}
