//! [`TrackEvents`]: opens an exchange for each call.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use crate::{
    exchange::{Events, ExchangeGuard, Joined, State},
    handle::TrackEventsHandle,
    layer::{body::ResponseBody, future::ResponseFuture, hooks::HookList},
};

/// Middleware that opens an exchange for each request, and starts its events when the response is over.
///
/// [`TrackEventsLayer`](crate::TrackEventsLayer) makes it, or [`new`](Self::new) around a single service. It inserts
/// [`Events`] into the extensions of each request. It does not change status, headers, body and errors of the inner
/// service.
///
/// After a drain was `Ok`, requests are served and their events are rejected.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use http::{Request, Response};
/// use http_body_util::Full;
/// use tower::{ServiceExt, service_fn};
/// use tower_track_events::{Events, TrackEvents, TrackEventsHandle};
///
/// let handle = TrackEventsHandle::new();
/// let service = TrackEvents::new(
///     service_fn(|request: Request<()>| async move {
///         let events = Events::from_extensions(request.extensions()).ok_or("no layer")?;
///         events.track("audit", async {}).map_err(|_| "rejected")?;
///         Ok::<_, &str>(Response::new(Full::<bytes::Bytes>::from("hello")))
///     }),
///     handle.clone(),
/// );
///
/// let response = service.oneshot(Request::new(())).await?;
/// assert_eq!(handle.snapshot().pending, 1);
/// drop(response);
/// let report = handle.drain(std::time::Duration::MAX).await?;
/// assert_eq!(report.ended.completed, 1);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct TrackEvents<S> {
    inner: S,
    handle: TrackEventsHandle,
    hooks: Arc<HookList>,
}

impl<S> TrackEvents<S> {
    /// Wraps `inner`, without hooks. Handlers track events through [`Events`].
    ///
    /// # Examples
    ///
    /// ```
    /// use std::convert::Infallible;
    ///
    /// use http::{Request, Response};
    /// use tower::service_fn;
    /// use tower_track_events::{TrackEvents, TrackEventsHandle};
    ///
    /// let handler = service_fn(|_: Request<String>| async { Ok::<_, Infallible>(Response::new(String::new())) });
    /// let service = TrackEvents::new(handler, TrackEventsHandle::new());
    /// ```
    pub fn new(inner: S, handle: TrackEventsHandle) -> Self {
        Self::with_hooks(inner, handle, HookList::new())
    }

    pub(crate) fn with_hooks(inner: S, handle: TrackEventsHandle, hooks: Arc<HookList>) -> Self {
        Self { inner, handle, hooks }
    }

    /// Returns a reference to the inner service.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_track_events::{TrackEvents, TrackEventsHandle};
    /// let service = TrackEvents::new("inner", TrackEventsHandle::new());
    /// assert_eq!(*service.get_ref(), "inner");
    /// ```
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Returns a mutable reference to the inner service.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_track_events::{TrackEvents, TrackEventsHandle};
    /// let mut service = TrackEvents::new("inner", TrackEventsHandle::new());
    /// *service.get_mut() = "another";
    /// ```
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Returns the inner service.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_track_events::{TrackEvents, TrackEventsHandle};
    /// let service = TrackEvents::new("inner", TrackEventsHandle::new());
    /// assert_eq!(service.into_inner(), "inner");
    /// ```
    pub fn into_inner(self) -> S {
        self.inner
    }

    /// Returns a reference to the handle.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_track_events::{TrackEvents, TrackEventsHandle};
    /// let service = TrackEvents::new("inner", TrackEventsHandle::new());
    /// assert!(!service.handle().is_draining());
    /// ```
    pub fn handle(&self) -> &TrackEventsHandle {
        &self.handle
    }

    /// Opens an exchange, or joins that of an outer layer of the same handle.
    fn open<A>(&self, request: &Request<A>) -> Opened {
        let shard = self.handle.shard();
        let mut outer = None;
        if let Some(innermost) = Events::from_extensions(request.extensions()).map(Events::state) {
            for state in innermost.and_outer().filter(|state| state.shard.registry.id() == shard.registry.id()) {
                match state.join(self.hooks.id) {
                    Joined::New => return Opened { guard: None, hooked: Some(Arc::clone(state)) },
                    Joined::Again => return Opened { guard: None, hooked: None },
                    // The extensions were copied from an earlier request, whose response is over.
                    Joined::Over => {}
                }
            }
            // Exchanges that are over are skipped: otherwise copied extensions would make an endless chain of them.
            outer = innermost.and_outer().find(|state| !state.is_over()).cloned();
        }
        shard.remember_runtime();
        let guard = ExchangeGuard::open(shard, request.method(), request.version(), self.hooks.id, outer);
        Opened { hooked: Some(Arc::clone(guard.state())), guard: Some(guard) }
    }
}

/// The result of [`TrackEvents::open`].
struct Opened {
    /// The guard of a new exchange. `None` if the exchange belongs to an outer layer.
    guard: Option<ExchangeGuard>,
    /// The exchange, if the hooks of this layer are to be added to it.
    hooked: Option<Arc<State>>,
}

impl<S, A, B> Service<Request<A>> for TrackEvents<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    B: Body,
{
    type Response = Response<ResponseBody<B>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<A>) -> Self::Future {
        let Opened { mut guard, hooked } = self.open(&request);
        let mut waiting = None;
        if let Some(state) = hooked {
            if !self.hooks.is_empty() {
                let (parts, body) = request.into_parts();
                waiting = self.hooks.track(&state, &parts);
                request = Request::from_parts(parts, body);
            }
            if guard.is_some() {
                request.extensions_mut().insert(Events::new(state));
            }
        }
        let mark = guard.as_mut().map(|guard| guard.poll_begins());
        let future = self.inner.call(request);
        if let (Some(guard), Some(mark)) = (&mut guard, mark) {
            guard.poll_returned(mark);
        }
        ResponseFuture::new(future, guard, waiting)
    }
}

impl<S: fmt::Debug> fmt::Debug for TrackEvents<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { inner, handle, hooks } = self;
        f.debug_struct("TrackEvents").field("inner", inner).field("handle", handle).field("events", hooks).finish()
    }
}
