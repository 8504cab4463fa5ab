//! [`Events`]: tracks events of one exchange.

use std::{fmt, panic::Location, sync::Arc};

use http::Extensions;

use crate::{
    error::TrackError,
    event::{self, EventOutput, blocking},
    exchange::{Exchange, State},
    handle::{Permit, TrackEventsHandle},
};

/// Tracks events of one exchange, from inside its handler.
///
/// [`TrackEvents`](crate::TrackEvents) inserts it into the extensions of each request. An event that is tracked through
/// it starts when the response is over, whatever the outcome: also when the handler fails or panics, or the client
/// leaves. For an event that depends on the outcome, use [`track_with`](Self::track_with).
///
/// All events of an exchange run in one task. They are polled for the first time in the order in which they were
/// tracked, and then run concurrently, as in `tokio::join!`: no event waits for another to end. Each has a panic
/// boundary, a time limit and an ending of its own. When one event is woken, all of them are polled. That is fine for a
/// few events. Send hundreds to a [sink](TrackEventsHandle::sink). An event that blocks its thread delays the others,
/// as in any task: use [`track_blocking`](Self::track_blocking).
///
/// Events run on the runtime in which they are tracked, or on the one that the handle was
/// [given](crate::TrackEventsHandleBuilder::runtime). Events of different runtimes run in a task for each runtime.
///
/// A clone may outlive the exchange. Events that are tracked through it then start at once. A clone keeps neither the
/// exchange open nor a drain waiting: hold a [guard](TrackEventsHandle::guard) for that.
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
///         let tracked = events.track("greeting.sent", async { /* write an audit row */ });
///         if let Err(rejected) = tracked {
///             return Response::builder().status(503).body(rejected.to_string()).unwrap();
///         }
///     }
///     Response::new("hello".to_owned())
/// }
/// # handler(Request::default()).await;
/// # }
/// ```
#[derive(Clone)]
pub struct Events {
    state: Arc<State>,
}

impl Events {
    pub(crate) fn new(state: Arc<State>) -> Self {
        Self { state }
    }

    pub(crate) fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// Returns the `Events` that the layer has inserted into the extensions of a request. `None` if there is no layer.
    pub fn from_extensions(extensions: &Extensions) -> Option<&Self> {
        extensions.get()
    }

    /// Tracks `future` as an event called `name`, which starts when this exchange is over.
    ///
    /// It is accepted or rejected in this call. If the exchange is over already, it starts at once. After the
    /// [last call](TrackEventsHandle::make_last_call) it starts at once, too.
    ///
    /// # Errors
    ///
    /// - [`TrackError::Full`] at capacity.
    /// - [`TrackError::Closed`] after a drain was `Ok`, or while one is closing and this exchange is over, unless
    ///   called inside an event, a later request or a [guard's scope](crate::DrainGuard::scope).
    /// - [`TrackError::NoRuntime`] outside of a tokio runtime, if the handle has neither been
    ///   [given one](crate::TrackEventsHandleBuilder::runtime) nor been used inside one before.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_track_events::{Events, TrackError};
    /// fn handler(events: &Events) -> Result<&'static str, TrackError> {
    ///     events.track("order.created", async { /* publish it */ })?;
    ///     Ok("created")
    /// }
    /// ```
    #[track_caller]
    pub fn track<F>(&self, name: &'static str, future: F) -> Result<(), TrackError>
    where
        F: Future + Send + 'static,
        F::Output: EventOutput,
    {
        self.state.track(name, Location::caller(), event::boxed(future))
    }

    /// Tracks `work` as an event called `name`, which starts on a blocking thread of the runtime when this exchange is
    /// over.
    ///
    /// Work that runs cannot be aborted, and has no time limit: see [`TrackEventsHandle::track_blocking`].
    ///
    /// # Errors
    ///
    /// As for [`track`](Self::track).
    #[track_caller]
    pub fn track_blocking<F, T>(&self, name: &'static str, work: F) -> Result<(), TrackError>
    where
        F: FnOnce() -> T + Send + 'static,
        T: EventOutput,
    {
        self.state.track(name, Location::caller(), blocking::boxed(work))
    }

    /// Tracks the future that `make` returns as an event called `name`, which starts when this exchange is over.
    ///
    /// `make` is called with the facts of the exchange then: its outcome, status, bytes and times. It runs as a part of
    /// the event: if it panics, the event has panicked.
    ///
    /// # Errors
    ///
    /// As for [`track`](Self::track).
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_track_events::{Events, Exchange, TrackError};
    /// # async fn bill(customer: u64, bytes: u64) {}
    /// fn handler(events: &Events, customer: u64) -> Result<&'static str, TrackError> {
    ///     events.track_with("download.billed", move |exchange: Exchange| async move {
    ///         bill(customer, exchange.body_bytes).await
    ///     })?;
    ///     Ok("here it comes")
    /// }
    /// ```
    #[track_caller]
    pub fn track_with<M, F>(&self, name: &'static str, make: M) -> Result<(), TrackError>
    where
        M: FnOnce(Exchange) -> F + Send + 'static,
        F: Future + Send + 'static,
        F::Output: EventOutput,
    {
        self.state.track(name, Location::caller(), with_exchange(&self.state, make))
    }

    /// Reserves capacity for one event of this exchange, so that it cannot be rejected when it is tracked.
    ///
    /// The event starts when this exchange is over. A drain waits for a permit that is held.
    ///
    /// # Errors
    ///
    /// As for [`track`](Self::track).
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_track_events::{Events, TrackError};
    /// # fn charge_card() {}
    /// fn handler(events: &Events) -> Result<&'static str, TrackError> {
    ///     let permit = events.reserve()?; // before the card is charged
    ///     charge_card();
    ///     permit.track("receipt", async { /* send it */ });
    ///     Ok("paid")
    /// }
    /// ```
    #[track_caller]
    pub fn reserve(&self) -> Result<Permit, TrackError> {
        Permit::reserve(&self.state.shard, Some(&self.state), Location::caller())
    }

    /// Returns the handle of the layer, for guards and for events that should start at once.
    pub fn handle(&self) -> TrackEventsHandle {
        TrackEventsHandle::of(&self.state.shard)
    }
}

/// Makes an event whose future is made from the facts of its exchange, when the event starts.
pub(crate) fn with_exchange<M, F>(state: &Arc<State>, make: M) -> event::BoxedEvent
where
    M: FnOnce(Exchange) -> F + Send + 'static,
    F: Future + Send + 'static,
    F::Output: EventOutput,
{
    let state = Arc::clone(state);
    event::boxed_with(move || make(state.exchange()))
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { state } = self;
        f.debug_tuple("Events").field(state).finish()
    }
}
