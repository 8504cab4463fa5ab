//! [`DetachedExchange`]: an exchange without a server, for the tests of handlers.

use std::fmt;

use http::{Method, Version};

use crate::{
    events::Events,
    exchange::{Exchange, Progress},
    guard::ExchangeGuard,
    handle::TrackEventsHandle,
    record::{NO_HOOKS, Record},
};

/// An exchange without a server: a unit test of a handler ends it as it likes.
///
/// [`Events::detached`] opens it. It counts as an open request until it is ended. Dropped without that, it ends as
/// [`NoResponse`](crate::Outcome::NoResponse), as if the client had left.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// use tower_track_events::{Events, Exchange, Outcome, Refused, TrackEventsHandle};
///
/// async fn download(events: &Events) -> Result<(), Refused> {
///     events.track_with("bill", |exchange: Exchange| async move {
///         assert_eq!(exchange.body_bytes, 5);
///     })
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let handle = TrackEventsHandle::new();
/// let request = Events::detached(&handle);
/// download(request.events()).await?;
/// assert_eq!(handle.snapshot().pending, 1); // recorded, and waiting for the end
///
/// let mut exchange = Exchange::new(Outcome::Complete);
/// exchange.body_bytes = 5;
/// request.end(exchange);
///
/// handle.wait_idle(Duration::from_secs(1)).await?;
/// assert_eq!(handle.snapshot().completed, 1);
/// # Ok(()) }
/// ```
#[must_use = "an exchange that is dropped ends as if the client had left"]
pub struct DetachedExchange {
    events: Events,
    guard: ExchangeGuard,
}

impl DetachedExchange {
    pub(crate) fn open(handle: &TrackEventsHandle) -> Self {
        let shard = handle.shard();
        shard.remember_runtime();
        let record = Record::open(shard, Progress::new(&Method::GET, Version::HTTP_11), NO_HOOKS, None);
        // There is no first poll in which all events would have the time of the request.
        record.waits();
        let events = Events::new(record.clone());
        Self { events, guard: ExchangeGuard::new(record) }
    }

    /// Gives the events of this exchange: to be given to the handler, or, as a clone, to be put into the extensions of its
    /// request, where [`Events::from_extensions`] and the extractor for axum find it.
    ///
    /// # Examples
    ///
    /// ```
    /// use http::Request;
    /// use tower_track_events::{Events, TrackEventsHandle};
    ///
    /// let detached = Events::detached(&TrackEventsHandle::new());
    /// let mut request = Request::new(());
    /// request.extensions_mut().insert(detached.events().clone());
    /// assert!(Events::from_extensions(request.extensions()).is_some());
    /// ```
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// Ends the exchange, as `exchange` says: what was recorded starts, and what is recorded from now on starts at once.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_track_events::{Events, Exchange, Outcome, TrackEventsHandle};
    ///
    /// let handle = TrackEventsHandle::new();
    /// let detached = Events::detached(&handle);
    /// assert_eq!(handle.snapshot().open_requests, 1);
    /// detached.end(Exchange::new(Outcome::Upgraded));
    /// assert_eq!(handle.snapshot().open_requests, 0);
    /// ```
    pub fn end(self, exchange: Exchange) {
        self.guard.end_as(exchange);
    }
}

impl fmt::Debug for DetachedExchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { events, guard: _ } = self;
        f.debug_struct("DetachedExchange").field("events", events).finish_non_exhaustive()
    }
}
