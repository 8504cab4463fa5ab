//! [`ResponseFuture`]: waits for the head of the response, and observes it.

use std::{
    fmt,
    pin::Pin,
    sync::{Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use http::Response;
use http_body::Body;
use pin_project_lite::pin_project;

use crate::{
    exchange::{ExchangeGuard, overflow::WaitingEvents},
    layer::body::ResponseBody,
};

pin_project! {
    /// The future of a response that passes through [`TrackEvents`](crate::TrackEvents).
    ///
    /// With [`Overflow::Wait`](crate::Overflow::Wait) it waits for capacity before the inner future is polled.
    ///
    /// # Panics
    ///
    /// When polled again after it was ready.
    ///
    /// # Cancel safety
    ///
    /// Dropping it before it is ready ends the exchange as [`NoResponse`](crate::Outcome::NoResponse), and starts the
    /// events that have been accepted.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::convert::Infallible;
    ///
    /// use http::Response;
    /// use tower_track_events::ResponseFuture;
    ///
    /// type Inner = std::future::Ready<Result<Response<String>, Infallible>>;
    /// type Tracked = ResponseFuture<Inner>; // the future of `TrackEvents<S>`, where `Inner` is that of `S`
    /// ```
    pub struct ResponseFuture<F> {
        // `Some` until the events have capacity; then the inner future is polled. Boxed, because it is rare. The mutex
        // is never locked: it makes the events `Sync`, so that this future is `Sync` if the inner one is.
        waiting: Option<Box<Mutex<WaitingEvents>>>,
        // Dropped as soon as it is ready: the events that its destructor tracks belong to the exchange.
        #[pin]
        inner: Option<F>,
        // After the inner future, so that it is dropped later. `None` if the exchange belongs to an outer layer.
        guard: Option<ExchangeGuard>,
    }
}

impl<F> ResponseFuture<F> {
    pub(crate) fn new(inner: F, guard: Option<ExchangeGuard>, waiting: Option<WaitingEvents>) -> Self {
        Self { waiting: waiting.map(|waiting| Box::new(Mutex::new(waiting))), inner: Some(inner), guard }
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
{
    type Output = Result<Response<ResponseBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Some(waiting) = this.waiting {
            ready!(waiting.get_mut().unwrap_or_else(PoisonError::into_inner).poll(cx));
            *this.waiting = None;
        }
        let mut inner = this.inner;
        let Some(guard) = this.guard else {
            let result = ready!(running(&mut inner).poll(cx));
            inner.set(None);
            return Poll::Ready(result.map(|response| response.map(|body| ResponseBody::new(body, None))));
        };
        let mark = guard.poll_begins();
        // The response is matched by reference, because moving it is slow.
        let result = running(&mut inner).poll(cx);
        if result.is_pending() {
            guard.poll_returned(mark);
            return Poll::Pending;
        }
        // Before the head is recorded: the events that its destructor tracks belong to the exchange.
        inner.set(None);
        if let Poll::Ready(Ok(response)) = &result {
            let body = response.body();
            let (exact_size, is_end) = (body.size_hint().exact(), body.is_end_stream());
            guard.poll_returned(mark);
            guard.see_head(response.status(), response.headers(), exact_size, is_end);
        } else {
            guard.poll_returned(mark);
            guard.see(|progress| progress.failed());
        }
        let guard = this.guard.take();
        result.map_ok(|response| response.map(|body| ResponseBody::new(body, guard)))
    }
}

/// Returns the inner future. It exists until it is ready.
fn running<'a, F>(future: &'a mut Pin<&mut Option<F>>) -> Pin<&'a mut F> {
    future.as_mut().as_pin_mut().expect("a response future was polled after it had been ready")
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { waiting, inner, guard: _ } = self;
        f.debug_struct("ResponseFuture")
            .field("waits_for_capacity", &waiting.is_some())
            .field("ready", &inner.is_none())
            .finish_non_exhaustive()
    }
}
