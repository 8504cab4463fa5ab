//! [`ResponseBody`]: passes each frame on to the server, and observes it.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Buf;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::{exchange::ExchangeGuard, util::panic::catch};

pin_project! {
    /// The body of a response that passes through [`TrackEvents`](crate::TrackEvents).
    ///
    /// Frames, size hint, end and errors are those of the inner body. A drain waits until this body has been dropped.
    ///
    /// # Examples
    ///
    /// The type of a boxed service contains it:
    ///
    /// ```
    /// use http::{Request, Response};
    /// use http_body_util::Full;
    /// use tower::{Service, util::BoxCloneService};
    /// use tower_track_events::ResponseBody;
    ///
    /// type Bytes = Full<bytes::Bytes>;
    /// type Tracked = BoxCloneService<Request<Bytes>, Response<ResponseBody<Bytes>>, std::io::Error>;
    /// ```
    pub struct ResponseBody<B>
    where
        B: Body,
    {
        #[pin]
        inner: B,
        // The inner body has returned `None`. It is not polled again, although compression outside of the layer polls.
        ended: bool,
        // After the inner body, so that it is dropped later. `None` if the exchange belongs to an outer layer.
        guard: Option<ExchangeGuard>,
    }

    impl<B> PinnedDrop for ResponseBody<B>
    where
        B: Body,
    {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            if let Some(guard) = this.guard {
                // A forwarded HTTP/2 body may have ended since the last frame.
                if guard.is_watching() && catch(|| this.inner.is_end_stream()).unwrap_or(false) {
                    guard.see_end_at_drop();
                }
            }
        }
    }
}

impl<B: Body> ResponseBody<B> {
    pub(crate) fn new(inner: B, guard: Option<ExchangeGuard>) -> Self {
        Self { inner, ended: false, guard }
    }

    /// Returns a reference to the inner body.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_track_events::ResponseBody;
    ///
    /// fn inner(body: &ResponseBody<String>) -> &str {
    ///     body.get_ref()
    /// }
    /// ```
    pub fn get_ref(&self) -> &B {
        &self.inner
    }

    /// Returns a mutable reference to the inner body.
    ///
    /// The layer does not observe frames that are polled from it.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_track_events::ResponseBody;
    ///
    /// fn clear(body: &mut ResponseBody<String>) {
    ///     body.get_mut().clear();
    /// }
    /// ```
    pub fn get_mut(&mut self) -> &mut B {
        &mut self.inner
    }
}

impl<B: Body> Body for ResponseBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let mut this = self.project();
        let Some(guard) = this.guard else {
            return this.inner.poll_frame(cx);
        };
        if *this.ended {
            return Poll::Ready(None);
        }
        let is_watching = guard.is_watching();
        let mark = guard.poll_begins();
        let frame = this.inner.as_mut().poll_frame(cx);
        // Under the mark: the methods of the data and the body are user code as well.
        let data = match &frame {
            Poll::Ready(Some(Ok(frame))) if is_watching => frame.data_ref().map_or(0, Buf::remaining),
            _ => 0,
        };
        let is_end = is_watching && matches!(frame, Poll::Ready(Some(Ok(_)))) && this.inner.is_end_stream();
        guard.poll_returned(mark);
        match &frame {
            Poll::Pending => {}
            Poll::Ready(Some(Ok(frame))) => guard.see(|progress| {
                progress.data(data);
                if let Some(trailers) = frame.trailers_ref() {
                    progress.trailers(trailers);
                }
                if is_end {
                    progress.body_ended();
                }
            }),
            Poll::Ready(Some(Err(_))) => guard.see(|progress| progress.failed()),
            Poll::Ready(None) => {
                *this.ended = true;
                guard.see(|progress| progress.body_ended());
            }
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Makes an empty body that belongs to no exchange, for layers that respond with a body of their own.
impl<B: Body + Default> Default for ResponseBody<B> {
    fn default() -> Self {
        Self::new(B::default(), None)
    }
}

impl<B: Body + fmt::Debug> fmt::Debug for ResponseBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { inner, ended, guard: _ } = self;
        f.debug_struct("ResponseBody").field("inner", inner).field("ended", ended).finish_non_exhaustive()
    }
}
