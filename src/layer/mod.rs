//! The middleware: layer and builder, service, future, body.

mod body;
mod future;
mod hooks;
mod service;

use std::{borrow::Cow, fmt, panic::Location, sync::Arc};

use http::request::Parts;
use tower_layer::Layer;

use self::hooks::{Hook, HookList, Label, Make, Observer};
pub use self::{body::ResponseBody, future::ResponseFuture, service::TrackEvents};
use crate::{
    event::EventOutput,
    exchange::{Exchange, Observe, Overflow, with_exchange},
    handle::TrackEventsHandle,
};

/// A layer that tracks the requests of a service and starts their events once the responses are over.
///
/// # Where to put it
///
/// It derives the outcome of a response from what passes through it. Put it outside of what changes the outcome (panic
/// catchers, timeouts), and inside or outside of compression depending on which bytes you want counted. In axum,
/// `Router::layer` is the place.
///
/// Applied twice with one handle, the outer one opens the exchange and the inner one adds its own events to it; the
/// very same layer applied twice counts once. With different handles each opens an exchange, and a handler finds the
/// [`Events`](crate::Events) of the innermost exchange.
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
pub struct TrackEventsLayer {
    handle: TrackEventsHandle,
    hooks: Arc<HookList>,
}

impl TrackEventsLayer {
    /// Makes a layer without hooks: handlers track their events.
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
        Self::builder(handle).build()
    }

    /// Makes a handle with the defaults, and a layer for it.
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

    /// Makes a builder for a layer that tracks events for every exchange.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_track_events::{TrackEventsHandle, TrackEventsLayer};
    ///
    /// let layer = TrackEventsLayer::builder(TrackEventsHandle::new())
    ///     .track("audit", |_request| |_exchange| async { /* write the row */ })
    ///     .build();
    /// ```
    pub fn builder(handle: TrackEventsHandle) -> TrackEventsLayerBuilder {
        let overflow = Overflow::default();
        TrackEventsLayerBuilder { handle, label: None, hooks: Vec::new(), observers: Vec::new(), overflow }
    }

    /// Gets a reference to the handle.
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

/// Builds a [`TrackEventsLayer`] that tracks events for every exchange, from [`TrackEventsLayer::builder`].
///
/// # When these events are accepted, and when they start
///
/// For each request, `make` is called before the inner service. The event is then accepted or rejected, or the request
/// waits for capacity: see [`Overflow`]. A rejected event is dropped and counted in
/// [`Snapshot::rejected`](crate::Snapshot::rejected); the request is served. The filter and `make` are called at
/// capacity as well, so they should be fast. What `make` returns is called when the exchange is over, as a part of the
/// event. If one of the closures panics, the event has panicked, which is counted and logged; the request is served.
///
/// # Examples
///
/// An audit row for everything but health probes:
///
/// ```
/// use http::request::Parts;
/// use tower_track_events::{Exchange, TrackEventsHandle, TrackEventsLayer};
///
/// # async fn write_row(path: String, status: Option<u16>) -> std::io::Result<()> { Ok(()) }
/// let layer = TrackEventsLayer::builder(TrackEventsHandle::new())
///     .track_when(
///         "audit",
///         |request: &Parts| request.uri.path() != "/healthz",
///         |request: &Parts| {
///             let path = request.uri.path().to_owned();
///             move |exchange: Exchange| write_row(path, exchange.status.map(|status| status.as_u16()))
///         },
///     )
///     .build();
/// ```
#[must_use = "a builder does nothing until `build`"]
pub struct TrackEventsLayerBuilder {
    handle: TrackEventsHandle,
    label: Option<Label>,
    hooks: Vec<Hook>,
    observers: Vec<Observer>,
    overflow: Overflow,
}

impl TrackEventsLayerBuilder {
    /// Tracks an event called `name` for every exchange.
    ///
    /// Repeatable: each call adds one more event.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_track_events::{Exchange, TrackEventsHandle, TrackEventsLayer};
    ///
    /// let layer = TrackEventsLayer::builder(TrackEventsHandle::new())
    ///     .track("audit", |request| {
    ///         let path = request.uri.path().to_owned(); // before the handler
    ///         move |exchange: Exchange| async move { println!("{path}: {}", exchange.outcome) } // after the response
    ///     })
    ///     .build();
    /// ```
    #[track_caller]
    pub fn track<M, W, F>(self, name: &'static str, make: M) -> Self
    where
        M: Fn(&Parts) -> W + Send + Sync + 'static,
        W: FnOnce(Exchange) -> F + Send + 'static,
        F: Future + Send + 'static,
        F::Output: EventOutput,
    {
        self.add(Hook { name, location: Location::caller(), filter: None, make: boxed(make) })
    }

    /// Tracks an event called `name` for every exchange whose request `filter` accepts.
    ///
    /// Repeatable: each call adds one more event.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_track_events::{Exchange, TrackEventsHandle, TrackEventsLayer};
    ///
    /// let layer = TrackEventsLayer::builder(TrackEventsHandle::new())
    ///     .track_when("audit", |request| request.uri.path() != "/healthz", |_request| {
    ///         |_exchange: Exchange| async { /* write the row */ }
    ///     })
    ///     .build();
    /// ```
    #[track_caller]
    pub fn track_when<P, M, W, F>(self, name: &'static str, filter: P, make: M) -> Self
    where
        P: Fn(&Parts) -> bool + Send + Sync + 'static,
        M: Fn(&Parts) -> W + Send + Sync + 'static,
        W: FnOnce(Exchange) -> F + Send + 'static,
        F: Future + Send + 'static,
        F::Output: EventOutput,
    {
        self.add(Hook { name, location: Location::caller(), filter: Some(Box::new(filter)), make: boxed(make) })
    }

    /// Adds an observer, which is called synchronously with the facts of each exchange when it is over. It needs no
    /// task and no capacity.
    ///
    /// `make` is called before the inner service, and what it returns when the exchange is over. Both closures should
    /// be fast, because the connection waits for them: send to a [sink](crate::EventSender::send), for example. Work
    /// that takes time, or must be awaited, is an [event](Self::track).
    ///
    /// A panic in either is caught and logged, and counted as that of an event called `(observer)`; the request is
    /// served. Repeatable: each call adds one more observer. They are called before the events of the exchange start.
    ///
    /// # Examples
    ///
    /// An access log, written in batches:
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_track_events::BuildError> {
    /// use http::request::Parts;
    /// use tower_track_events::{Batch, Exchange, TrackEventsHandle, TrackEventsLayer};
    ///
    /// # async fn write(lines: &[AccessLog]) -> std::io::Result<()> { Ok(()) }
    /// struct AccessLog {
    ///     path: String,
    ///     status: Option<u16>,
    ///     bytes: u64,
    /// }
    ///
    /// let handle = TrackEventsHandle::new();
    /// let log = handle
    ///     .sink("access.log", |batch: Batch<AccessLog>| async move { write(&batch).await })
    ///     .build()?;
    /// let layer = TrackEventsLayer::builder(handle)
    ///     .observe(move |request: &Parts| {
    ///         let (path, log) = (request.uri.path().to_owned(), log.clone());
    ///         move |exchange: &Exchange| {
    ///             let status = exchange.status.map(|status| status.as_u16());
    ///             // A rejection is counted.
    ///             let _ = log.send(AccessLog { path, status, bytes: exchange.body_bytes });
    ///         }
    ///     })
    ///     .build();
    /// # Ok(()) }
    /// ```
    #[track_caller]
    pub fn observe<M, O>(mut self, make: M) -> Self
    where
        M: Fn(&Parts) -> O + Send + Sync + 'static,
        O: FnOnce(&Exchange) + Send + 'static,
    {
        let make = Box::new(move |request: &Parts| Box::new(make(request)) as Observe);
        self.observers.push(Observer { location: Location::caller(), make });
        self
    }

    /// Names the requests in the report of a drain and in its progress lines: `GET /export x3 open (oldest 4.2 s)`.
    ///
    /// `label` is called before the inner service. Requests with one label are counted together, so return the route and
    /// not the path, which may contain names and numbers that do not belong in a log. Off by default. Of several layers
    /// on one handle, the outermost with a label names the request. A panic of `label` is logged; the request is served
    /// and has no label.
    ///
    /// # Examples
    ///
    /// The route of axum, which is known inside of `Router::layer`:
    ///
    /// ```
    /// use std::borrow::Cow;
    ///
    /// use axum::{Router, extract::MatchedPath, routing::get};
    /// use tower_track_events::{TrackEventsHandle, TrackEventsLayer};
    ///
    /// let handle = TrackEventsHandle::new();
    /// let layer = TrackEventsLayer::builder(handle).label(|request| match request.extensions.get::<MatchedPath>() {
    ///     Some(route) => Cow::Owned(format!("{} {}", request.method, route.as_str())),
    ///     None => Cow::Borrowed("no route"),
    /// });
    /// let app: Router = Router::new().route("/orders/{id}", get(async || "order")).layer(layer.build());
    /// ```
    pub fn label<L>(mut self, label: L) -> Self
    where
        L: Fn(&Parts) -> Cow<'static, str> + Send + Sync + 'static,
    {
        self.label = Some(Box::new(label));
        self
    }

    /// Sets what happens to these events at capacity. Default: [`Overflow::Reject`]. A wait of zero rejects as well.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use tower_track_events::{Exchange, Overflow, TrackEventsHandle, TrackEventsLayer};
    ///
    /// let layer = TrackEventsLayer::builder(TrackEventsHandle::new())
    ///     .track("audit", |_request| |_exchange: Exchange| async { /* write the row */ })
    ///     .overflow(Overflow::Wait(Duration::from_millis(500)))
    ///     .build();
    /// ```
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.overflow = overflow;
        self
    }

    /// Makes the layer.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_track_events::{TrackEventsHandle, TrackEventsLayer};
    ///
    /// let layer = TrackEventsLayer::builder(TrackEventsHandle::new()).build(); // as `TrackEventsLayer::new`
    /// ```
    pub fn build(self) -> TrackEventsLayer {
        let Self { handle, label, hooks, observers, overflow } = self;
        TrackEventsLayer { handle, hooks: HookList::new(label, hooks, observers, overflow) }
    }

    fn add(mut self, hook: Hook) -> Self {
        self.hooks.push(hook);
        self
    }
}

fn boxed<M, W, F>(make: M) -> Make
where
    M: Fn(&Parts) -> W + Send + Sync + 'static,
    W: FnOnce(Exchange) -> F + Send + 'static,
    F: Future + Send + 'static,
    F::Output: EventOutput,
{
    Box::new(move |state, request| with_exchange(state, make(request)))
}

impl fmt::Debug for TrackEventsLayerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { handle, label, hooks, observers, overflow } = self;
        let names: Vec<_> = hooks.iter().map(|hook| hook.name).collect();
        f.debug_struct("TrackEventsLayerBuilder")
            .field("handle", handle)
            .field("has_label", &label.is_some())
            .field("events", &names)
            .field("observers", &observers.len())
            .field("overflow", overflow)
            .finish()
    }
}
