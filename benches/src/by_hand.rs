//! The least that keeps what is promised of each request: how far our figures could come down.
//!
//! The handler finds something of its own in the extensions, which shares a record with the response. The request is
//! counted under a lock when it comes and when it goes. The clock is read when it begins, because whoever is told how it
//! ended is told how long it took, and may ask at any time. An event of the layer takes two readings more, at the head and at
//! the end of the response, and a spawn.
//!
//! Nothing else is done: nothing is bounded, listed, named, caught, drained or aborted.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use http::{Request, Response};
use http_body::{Body, Frame};
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower::Service;

/// One shard.
#[derive(Default)]
pub struct Shard {
    open: Mutex<u64>,
}

impl Shard {
    fn count(&self, change: impl FnOnce(&mut u64)) {
        change(&mut self.open.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

struct Record {
    shard: Arc<Shard>,
    began: Instant,
    /// In nanoseconds.
    time_to_head: AtomicU64,
    elapsed: AtomicU64,
    /// The outcome, the status, the bytes, and what else is known of a response.
    _facts: [AtomicU64; 16],
}

impl Record {
    fn age(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }
}

#[derive(Clone)]
struct Events(#[expect(dead_code, reason = "a handler that records an event would use it")] Arc<Record>);

struct Guard(Arc<Record>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.shard.count(|open| *open -= 1);
    }
}

#[derive(Clone)]
pub struct ByHand<S> {
    pub inner: S,
    pub shard: Arc<Shard>,
    /// Whether each request has an event of the layer.
    pub has_event: bool,
}

impl<S, A, B> Service<Request<A>> for ByHand<S>
where
    S: Service<Request<A>, Response = Response<B>>,
{
    type Response = Response<CountedBody<B>>;
    type Error = S::Error;
    type Future = CountedFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<A>) -> Self::Future {
        let began = Instant::now();
        self.shard.count(|open| *open += 1);
        let shard = Arc::clone(&self.shard);
        let (time_to_head, elapsed, _facts) = Default::default();
        let record = Arc::new(Record { shard, began, time_to_head, elapsed, _facts });
        request.extensions_mut().insert(Events(Arc::clone(&record)));
        CountedFuture { inner: self.inner.call(request), guard: Some(Guard(record)), has_event: self.has_event }
    }
}

pin_project! {
    pub struct CountedFuture<F> {
        #[pin]
        inner: F,
        guard: Option<Guard>,
        has_event: bool,
    }
}

impl<F, B, E> Future for CountedFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<CountedBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = this.inner.poll(cx);
        if result.is_pending() {
            return Poll::Pending;
        }
        let (guard, has_event) = (this.guard.take(), *this.has_event);
        if let Some(Guard(record)) = guard.as_ref().filter(|_| has_event) {
            record.time_to_head.store(record.age(), Ordering::Relaxed);
        }
        result.map_ok(|response| response.map(|inner| CountedBody { inner, guard, has_event }))
    }
}

pin_project! {
    pub struct CountedBody<B> {
        #[pin]
        inner: B,
        guard: Option<Guard>,
        // Until it has started.
        has_event: bool,
    }
}

impl<B: Body> Body for CountedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let frame = this.inner.poll_frame(cx);
        if let Some(Guard(record)) = this.guard.as_ref().filter(|_| *this.has_event) {
            // The one frame of the benchmark.
            *this.has_event = false;
            record.elapsed.store(record.age(), Ordering::Relaxed);
            let record = Arc::clone(record);
            tokio::spawn(async move { drop(record) });
        }
        frame
    }
}
