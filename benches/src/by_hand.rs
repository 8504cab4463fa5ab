//! A part of what is promised, by hand and as cheaply as we know how: to compare our figures with.
//!
//! Of a request: its handler finds something of its own in the extensions, which shares a record with the response. It is
//! counted under a lock, for all shards are to be looked at in one instant. The clock is read when it begins, for whoever is
//! told how it ended is told how long it took, and may ask at any time. An event of the layer takes two readings more, at the
//! head and at the end of the response, and stands in a line for a task that polls all of them.
//!
//! Of a drain: the counts of all shards at one instant, and how long it took.
//!
//! Left out are the bound, the list of what is open with age and place, names, panics, time limits, spans, abort, nested
//! layers, the rule by which a response ends, the settle time, sinks, and that a ledger closes.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU16, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

use bytes::Buf;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower::Service;

type Event = Pin<Box<dyn Future<Output = ()> + Send>>;

#[derive(Default)]
#[repr(align(128))]
pub(crate) struct Shard(Mutex<State>);

#[derive(Default)]
struct State {
    /// Open requests and pending events.
    open: u64,
    /// Whatever else a report tells.
    counts: [u64; COUNTS],
    line: VecDeque<Event>,
    is_task_coming: bool,
}

/// As many as a snapshot has.
const COUNTS: usize = 11;

impl Shard {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts an event; one task polls all that have started by then.
    fn start(self: &Arc<Self>, event: Event) {
        let mut state = self.lock();
        state.open += 1;
        state.line.push_back(event);
        let needs_task = !std::mem::replace(&mut state.is_task_coming, true);
        drop(state);
        if needs_task {
            let shard = Arc::clone(self);
            tokio::spawn(async move {
                let mut next = shard.lock().line.pop_front();
                while let Some(event) = next {
                    event.await;
                    let mut state = shard.lock();
                    state.open -= 1;
                    next = state.line.pop_front();
                    state.is_task_coming = next.is_some();
                }
            });
        }
    }
}

struct Record {
    shard: Arc<Shard>,
    began: Instant,
    status: AtomicU16,
    body_bytes: AtomicU64,
    /// In nanoseconds.
    time_to_head: AtomicU64,
    elapsed: AtomicU64,
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
        self.0.shard.lock().open -= 1;
    }
}

pub(crate) struct ByHand<S> {
    pub(crate) inner: S,
    pub(crate) shard: Arc<Shard>,
    /// Whether each request has an event of the layer.
    pub(crate) has_event: bool,
}

impl<S, A, B> Service<Request<A>> for ByHand<S>
where
    S: Service<Request<A>, Response = Response<B>>,
{
    type Response = Response<GuardedBody<B>>;
    type Error = S::Error;
    type Future = GuardedFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<A>) -> Self::Future {
        let began = Instant::now();
        self.shard.lock().open += 1;
        let record = Arc::new(Record {
            shard: Arc::clone(&self.shard),
            began,
            status: AtomicU16::new(0),
            body_bytes: AtomicU64::new(0),
            time_to_head: AtomicU64::new(0),
            elapsed: AtomicU64::new(0),
        });
        request.extensions_mut().insert(Events(Arc::clone(&record)));
        GuardedFuture { inner: self.inner.call(request), guard: Some(Guard(record)), has_event: self.has_event }
    }
}

pin_project! {
    pub(crate) struct GuardedFuture<F> {
        #[pin]
        inner: F,
        guard: Option<Guard>,
        has_event: bool,
    }
}

impl<F, B, E> Future for GuardedFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<GuardedBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = this.inner.poll(cx);
        if result.is_pending() {
            return Poll::Pending;
        }
        let (guard, has_event) = (this.guard.take(), *this.has_event);
        if let (Poll::Ready(Ok(response)), Some(Guard(record)), true) = (&result, &guard, has_event) {
            record.status.store(response.status().as_u16(), Ordering::Relaxed);
            record.time_to_head.store(record.age(), Ordering::Relaxed);
        }
        result.map_ok(|response| response.map(|inner| GuardedBody { inner, guard, has_event }))
    }
}

pin_project! {
    pub(crate) struct GuardedBody<B> {
        #[pin]
        inner: B,
        guard: Option<Guard>,
        // Until it has started.
        has_event: bool,
    }
}

impl<B: Body> Body for GuardedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let frame = this.inner.poll_frame(cx);
        if let (Poll::Ready(Some(Ok(frame))), Some(Guard(record)), true) = (&frame, &*this.guard, *this.has_event) {
            // The one frame of the benchmark is the last.
            *this.has_event = false;
            record.body_bytes.store(frame.data_ref().map_or(0, Buf::remaining) as u64, Ordering::Relaxed);
            record.elapsed.store(record.age(), Ordering::Relaxed);
            let told = Arc::clone(record);
            record.shard.start(Box::pin(async move { drop(told) }));
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

/// Events that a drain waits for.
pub(crate) struct Drained {
    shards: Box<[Shard]>,
    waker: Mutex<Option<Waker>>,
}

/// Of the size of ours.
pub(crate) struct Report {
    #[expect(dead_code, reason = "whoever drains would read it")]
    elapsed: Duration,
    #[expect(dead_code, reason = "whoever drains would read it")]
    counts: [u64; COUNTS],
    /// Never filled.
    _by_name: Vec<()>,
    _of_sinks: Vec<()>,
}

impl Drained {
    pub(crate) fn new() -> Arc<Self> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let shards = (2 * cores).next_power_of_two().clamp(4, 128);
        Arc::new(Self { shards: (0..shards).map(|_| Shard::default()).collect(), waker: Mutex::default() })
    }

    pub(crate) fn spawn(self: Arc<Self>, event: impl Future<Output = ()> + Send + 'static) {
        self.shards[0].lock().open += 1;
        tokio::spawn(async move {
            event.await;
            let mut state = self.shards[0].lock();
            state.open -= 1;
            let is_empty = state.open == 0;
            drop(state);
            if is_empty {
                let waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner).take();
                waker.into_iter().for_each(Waker::wake);
            }
        });
    }

    pub(crate) async fn drain(self: Arc<Self>) -> Report {
        let began = Instant::now();
        poll_fn(|cx| {
            let report = self.look(began);
            if report.is_some() {
                return report.map_or(Poll::Pending, Poll::Ready);
            }
            *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(cx.waker().clone());
            self.look(began).map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    fn look(&self, began: Instant) -> Option<Report> {
        let shards: Vec<_> = self.shards.iter().map(Shard::lock).collect();
        if shards.iter().any(|state| state.open > 0) {
            return None;
        }
        let counts = std::array::from_fn(|place| shards.iter().map(|state| state.counts[place]).sum());
        drop(shards);
        Some(Report { elapsed: began.elapsed(), counts, _by_name: Vec::new(), _of_sinks: Vec::new() })
    }
}
