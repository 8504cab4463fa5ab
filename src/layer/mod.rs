//! The middleware: layer, service, future, body, hooks.

mod body;
mod future;
mod hooks;
mod service;

use std::{borrow::Cow, fmt, panic::Location, sync::Arc};

use http::request::Parts;
use tower_layer::Layer;

use self::hooks::{Filter, Hook, HookList, Make, Observer};
pub use self::{body::ResponseBody, future::ResponseFuture, service::TrackEvents};
use crate::{
    event::EventOutput,
    exchange::{Exchange, Overflow, with_exchange},
    handle::TrackEventsHandle,
};

/// A layer that tracks the requests of a service and starts their events when the responses are over.
///
/// # Where to put it
///
/// The layer derives the outcome from the response that passes through it. Put it outside of layers that change the
/// outcome, such as panic catchers and timeouts. Put it outside of compression to count compressed bytes, and inside to
/// count uncompressed ones. In axum, use `Router::layer`.
///
/// # Several layers
///
/// If two layers of one handle are applied, the outer one opens the exchange, and the inner one adds its events to it.
/// Clones of one layer add their events once. Layers of different handles open an exchange each, and a handler gets the
/// [`Events`](crate::Events) of the innermost one.
///
/// # Examples
///
/// ```
/// use axum::{Router, routing::get};
/// use tower_track_events::{Events, TrackError, TrackEventsLayer};
///
/// async fn handler(events: Events) -> Result<&'static str, TrackError> {
///     events.track("greeting.sent", async { /* write an audit row */ })?;
///     Ok("hello")
/// }
///
/// let (layer, handle) = TrackEventsLayer::pair();
/// let app: Router = Router::new().route("/", get(handler)).layer(layer);
/// ```
#[derive(Clone)]
#[must_use = "a layer does nothing until it is around a service"]
pub struct TrackEventsLayer {
    handle: TrackEventsHandle,
    hooks: Arc<HookList>,
}

impl TrackEventsLayer {
    /// Makes a layer without hooks. Handlers track events through [`Events`](crate::Events).
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_track_events::{TrackEventsHandle, TrackEventsLayer};
    ///
    /// let handle = TrackEventsHandle::new();
    /// let layer = TrackEventsLayer::new(handle.clone());
    /// ```
    pub fn new(handle: TrackEventsHandle) -> Self {
        Self { handle, hooks: HookList::new() }
    }

    /// Makes a handle with the [defaults](TrackEventsHandle::builder), and a layer for it.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_track_events::TrackEventsLayer;
    ///
    /// let (layer, handle) = TrackEventsLayer::pair();
    /// assert_eq!(handle.snapshot().accepted, 0);
    /// # drop(layer);
    /// ```
    pub fn pair() -> (Self, TrackEventsHandle) {
        let handle = TrackEventsHandle::new();
        (Self::new(handle.clone()), handle)
    }

    /// Tracks an event called `name` for every exchange.
    ///
    /// `hook` is cloned for each event. The clone is called with the facts of the exchange when that is over, as a part
    /// of the event. Values that `hook` captures are cloned too, for example a counter: put shared state in an `Arc`.
    ///
    /// The event is accepted or rejected before the future of the inner service is polled. At capacity,
    /// [`overflow`](Self::overflow) decides whether the request waits. A rejected event is dropped and counted in
    /// [`Snapshot::rejected`](crate::Snapshot::rejected), and the request is served. If `hook` panics, the event has
    /// panicked. Each call of this method adds one more event.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_track_events::{Exchange, TrackEventsHandle};
    ///
    /// # #[derive(Clone)] struct Db;
    /// # impl Db { async fn audit(&self, exchange: &Exchange) -> std::io::Result<()> { Ok(()) } }
    /// # let db = Db;
    /// let layer = TrackEventsHandle::new()
    ///     .layer()
    ///     .track("audit", move |exchange| async move { db.audit(&exchange).await });
    /// ```
    #[track_caller]
    pub fn track<H, F>(self, name: &'static str, hook: H) -> Self
    where
        H: FnOnce(Exchange) -> F + Clone + Send + Sync + 'static,
        F: Future + Send + 'static,
        F::Output: EventOutput,
    {
        self.add(Hook { name, location: Location::caller(), filter: None, make: cloned(hook) })
    }

    /// Tracks an event called `name` for every exchange whose request `filter` accepts.
    ///
    /// `filter` is called before the inner service, also at capacity, so it should be fast. If it panics, the event has
    /// panicked, and the request is served. Otherwise this is like [`track`](Self::track).
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_track_events::TrackEventsHandle;
    ///
    /// let layer = TrackEventsHandle::new().layer().track_when(
    ///     "audit",
    ///     |request| request.uri.path() != "/healthz",
    ///     |exchange| async move { println!("{:?}: {}", exchange.request, exchange.outcome) },
    /// );
    /// ```
    #[track_caller]
    pub fn track_when<P, H, F>(self, name: &'static str, filter: P, hook: H) -> Self
    where
        P: Fn(&Parts) -> bool + Send + Sync + 'static,
        H: FnOnce(Exchange) -> F + Clone + Send + Sync + 'static,
        F: Future + Send + 'static,
        F::Output: EventOutput,
    {
        let filter: Option<Filter> = Some(Box::new(filter));
        self.add(Hook { name, location: Location::caller(), filter, make: cloned(hook) })
    }

    /// Tracks an event called `name` for every exchange, whose hook `make` makes from the request.
    ///
    /// `make` takes for example a header or an extension. It is called before the inner service, also at capacity, so
    /// it should be fast. The closure that it returns is called when the exchange is over. If `make` panics, the event
    /// has panicked, and the request is served. Otherwise this is like [`track`](Self::track).
    ///
    /// # Examples
    ///
    /// ```
    /// use http::request::Parts;
    /// use tower_track_events::{Exchange, TrackEventsHandle};
    ///
    /// let layer = TrackEventsHandle::new().layer().track_from_request("audit", |request: &Parts| {
    ///     let agent = request.headers.get("user-agent").cloned(); // before the handler
    ///     move |exchange: Exchange| async move { println!("{agent:?}: {}", exchange.outcome) } // after the response
    /// });
    /// ```
    #[track_caller]
    pub fn track_from_request<M, H, F>(self, name: &'static str, make: M) -> Self
    where
        M: Fn(&Parts) -> H + Send + Sync + 'static,
        H: FnOnce(Exchange) -> F + Send + 'static,
        F: Future + Send + 'static,
        F::Output: EventOutput,
    {
        let make: Make = Box::new(move |state, request| with_exchange(state, make(request)));
        self.add(Hook { name, location: Location::caller(), filter: None, make })
    }

    /// Adds an observer, which is called synchronously with the facts of each exchange when that is over.
    ///
    /// It needs no task and no capacity. It should be fast, because the connection waits for it: for example, send to a
    /// [sink](crate::EventSender::try_send). For work that takes time or must be awaited, track an
    /// [event](Self::track). A panic is caught, logged, and counted as the panic of an event called `(observer)`. The
    /// request is served. Observers are called before the events of the exchange start. Each call of this method adds
    /// one more observer.
    ///
    /// # Examples
    ///
    /// An access log, written in batches:
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_track_events::BuildError> {
    /// use tower_track_events::{Exchange, TrackEventsHandle};
    ///
    /// # async fn write(lines: &[Exchange]) -> std::io::Result<()> { Ok(()) }
    /// let handle = TrackEventsHandle::new();
    /// let log = handle.sink::<Exchange>("access.log").deliver(|lines| async move { write(&lines).await })?;
    /// let layer = handle.layer().observe(move |exchange| {
    ///     let _ = log.try_send(exchange.clone()); // a rejection is counted
    /// });
    /// # Ok(()) }
    /// ```
    #[track_caller]
    pub fn observe<O>(self, observe: O) -> Self
    where
        O: Fn(&Exchange) + Send + Sync + 'static,
    {
        let observer = Observer { location: Location::caller(), observe: Arc::new(observe) };
        self.change(|hooks| hooks.observers.push(Arc::new(observer)))
    }

    /// Names the requests in the report of a drain and in its progress lines: `GET /export x3 open (oldest 4.2 s)`.
    ///
    /// Default: no label. `label` is called before the inner service. Requests with the same label are counted
    /// together, so return the route. A path may contain names and numbers that do not belong in a log. If several
    /// layers of one handle have a label, the outermost one names the request. A panic of `label` is logged; the
    /// request is served and has no label.
    ///
    /// # Examples
    ///
    /// The route of axum, which is known inside of `Router::layer`:
    ///
    /// ```
    /// use std::borrow::Cow;
    ///
    /// use axum::{Router, extract::MatchedPath, routing::get};
    /// use tower_track_events::TrackEventsHandle;
    ///
    /// let layer = TrackEventsHandle::new().layer().label(|request| match request.extensions.get::<MatchedPath>() {
    ///     Some(route) => Cow::Owned(format!("{} {}", request.method, route.as_str())),
    ///     None => Cow::Borrowed("no route"),
    /// });
    /// let app: Router = Router::new().route("/orders/{id}", get(async || "order")).layer(layer);
    /// ```
    pub fn label<L>(self, label: L) -> Self
    where
        L: Fn(&Parts) -> Cow<'static, str> + Send + Sync + 'static,
    {
        self.change(|hooks| hooks.label = Some(Arc::new(label)))
    }

    /// Sets whether the events of this layer are rejected at capacity or wait. Default: [`Overflow::Reject`].
    ///
    /// A wait of zero rejects as well.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use tower_track_events::{Overflow, TrackEventsHandle};
    ///
    /// let layer = TrackEventsHandle::new()
    ///     .layer()
    ///     .track("audit", |_exchange| async { /* write the row */ })
    ///     .overflow(Overflow::Wait(Duration::from_millis(500)));
    /// ```
    pub fn overflow(self, overflow: Overflow) -> Self {
        self.change(|hooks| hooks.overflow = overflow)
    }

    fn add(self, hook: Hook) -> Self {
        self.change(|hooks| hooks.hooks.push(Arc::new(hook)))
    }

    fn change(self, change: impl FnOnce(&mut HookList)) -> Self {
        let Self { handle, hooks } = self;
        Self { handle, hooks: hooks.change(change) }
    }

    /// Returns a reference to the handle.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_track_events::TrackEventsLayer;
    ///
    /// let (layer, handle) = TrackEventsLayer::pair();
    /// handle.begin_drain();
    /// assert!(layer.handle().is_draining());
    /// ```
    pub fn handle(&self) -> &TrackEventsHandle {
        &self.handle
    }
}

impl<S> Layer<S> for TrackEventsLayer {
    type Service = TrackEvents<S>;

    fn layer(&self, inner: S) -> TrackEvents<S> {
        TrackEvents::with_hooks(inner, self.handle.clone(), Arc::clone(&self.hooks))
    }
}

impl fmt::Debug for TrackEventsLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { handle, hooks } = self;
        f.debug_struct("TrackEventsLayer").field("handle", handle).field("events", hooks).finish()
    }
}

/// Returns a closure that makes an event of a clone of `hook`.
fn cloned<H, F>(hook: H) -> Make
where
    H: FnOnce(Exchange) -> F + Clone + Send + Sync + 'static,
    F: Future + Send + 'static,
    F::Output: EventOutput,
{
    Box::new(move |state, _request| with_exchange(state, hook.clone()))
}
