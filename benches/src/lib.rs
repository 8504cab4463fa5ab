//! What is measured: an event, a request, an admission, an event among many, and the end of a drain, by this crate, by what
//! a user would pick instead, and in part by hand.
//!
//! Each function does it so many times, and gives the nanoseconds for one. `cost` measures their time, `instructions`
//! counts their instructions, and `criterion` looks at one of them closely.

#![allow(missing_docs, reason = "the name of a function says what it measures")]

use std::{
    convert::Infallible,
    future::Future,
    hint::black_box,
    pin::pin,
    sync::{
        Arc, Barrier,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use http::{Extensions, Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use tokio::{
    runtime::{self, Runtime},
    sync::{Notify, Semaphore, oneshot},
    task::{JoinSet, yield_now},
    time::Instant,
};
use tokio_util::task::TaskTracker;
use tower::{Layer, Service, service_fn};
use tower_http::{add_extension::AddExtensionLayer, metrics::InFlightRequestsLayer, trace::TraceLayer};
use tower_track_events::{Events, Exchange, TrackEventsHandle, TrackEventsLayer};

mod by_hand;

/// Events are started in bursts, so that a queue does not grow to what no server has.
const BURST: usize = 100;

pub fn runtime(workers: usize) -> Runtime {
    let mut builder = match workers {
        1 => runtime::Builder::new_current_thread(),
        _ => runtime::Builder::new_multi_thread(),
    };
    builder.worker_threads(workers).enable_all().build().expect("a runtime")
}

pub fn handle() -> TrackEventsHandle {
    TrackEventsHandle::builder()
        .settle(Duration::ZERO)
        .progress(Duration::ZERO)
        .capacity(1 << 22)
        .build()
        .expect("valid settings")
}

/// Nanoseconds for each of `count`.
fn per(count: usize, began: Instant) -> f64 {
    began.elapsed().as_nanos() as f64 / count as f64
}

/// An event that is ready at once, as one is that only sends to a channel.
pub async fn ready() {
    black_box(());
}

/// An event that waits once.
pub async fn yields() {
    yield_now().await;
}

/// Events, one way or another.
pub mod event {
    use super::*;

    pub fn by_handle<F: Future<Output = ()> + Send + 'static>(
        runtime: &Runtime,
        event: fn() -> F,
        count: usize,
    ) -> f64 {
        let handle = handle();
        let drain = handle.drain(Duration::MAX);
        let start = move || handle.track("bench", event()).expect("there is room");
        start_all(runtime, count, start, move || async move { drop(drain.await.expect("all end")) })
    }

    pub fn by_spawn<F: Future<Output = ()> + Send + 'static>(runtime: &Runtime, event: fn() -> F, count: usize) -> f64 {
        // Nobody knows when they have ended: a turn for each burst is enough where they run in order, or nearly.
        start_all(runtime, count, move || drop(tokio::spawn(event())), yield_now)
    }

    /// By spawn and a counter, as one would write it by hand.
    pub fn by_counted_spawn<F: Future<Output = ()> + Send + 'static>(
        runtime: &Runtime,
        event: fn() -> F,
        count: usize,
    ) -> f64 {
        let done = Arc::new((AtomicUsize::new(0), Notify::new()));
        let counting = Arc::clone(&done);
        let start = move || {
            let counting = Arc::clone(&counting);
            tokio::spawn(async move {
                event().await;
                if counting.0.fetch_add(1, Ordering::AcqRel) + 1 == count {
                    counting.1.notify_one();
                }
            });
        };
        start_all(runtime, count, start, move || async move {
            while done.0.load(Ordering::Acquire) < count {
                done.1.notified().await;
            }
        })
    }

    pub fn by_tracker<F: Future<Output = ()> + Send + 'static>(
        runtime: &Runtime,
        event: fn() -> F,
        count: usize,
    ) -> f64 {
        let tracker = TaskTracker::new();
        let waiting = tracker.clone();
        let end = move || async move {
            waiting.close();
            waiting.wait().await;
        };
        start_all(runtime, count, move || drop(tracker.spawn(event())), end)
    }

    pub fn by_graceful<F: Future<Output = ()> + Send + 'static>(
        runtime: &Runtime,
        event: fn() -> F,
        count: usize,
    ) -> f64 {
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = {
            let _entered = runtime.enter();
            tokio_graceful::Shutdown::new(async { drop(stopped.await) })
        };
        let guard = shutdown.guard();
        let start = move || {
            let guard = guard.clone();
            tokio::spawn(async move {
                event().await;
                drop(guard);
            });
        };
        // The guard in `start` must go before the shutdown can end.
        let time = start_all(runtime, count, start, yield_now);
        drop(stop);
        runtime.block_on(shutdown.shutdown());
        time
    }

    pub fn by_join_set<F: Future<Output = ()> + Send + 'static>(
        runtime: &Runtime,
        event: fn() -> F,
        count: usize,
    ) -> f64 {
        let task = runtime.spawn(async move {
            let began = Instant::now();
            let mut set = JoinSet::new();
            for _ in 0..count / BURST {
                (0..BURST).for_each(|_| drop(set.spawn(event())));
                yield_now().await;
                while set.try_join_next().is_some() {}
            }
            while set.join_next().await.is_some() {}
            per(count, began)
        });
        runtime.block_on(task).expect("it ends")
    }

    /// Starts events in bursts, from a task of the runtime, and waits for the end of all.
    fn start_all<F>(
        runtime: &Runtime,
        count: usize,
        start: impl Fn() + Send + 'static,
        end: impl FnOnce() -> F + Send + 'static,
    ) -> f64
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let task = runtime.spawn(async move {
            let began = Instant::now();
            for _ in 0..count / BURST {
                (0..BURST).for_each(|_| start());
                yield_now().await;
            }
            end().await;
            per(count, began)
        });
        runtime.block_on(task).expect("it ends")
    }
}

/// Requests through a service that does nothing but answer, and what is put around it.
pub mod request {
    use super::{by_hand::ByHand, *};

    type Answer = Result<Response<Full<Bytes>>, Infallible>;

    pub fn bare(runtime: &Runtime, count: usize) -> f64 {
        serve(runtime, count, handler(|_| ()))
    }

    /// Our layer, and so many events of the handler.
    pub fn ours<const EVENTS: usize>(runtime: &Runtime, count: usize) -> f64 {
        serve(runtime, count, TrackEventsLayer::new(handle()).layer(handler(track::<EVENTS>)))
    }

    /// Our layer with an event of its own.
    pub fn layer_event(runtime: &Runtime, count: usize) -> f64 {
        let layer = TrackEventsLayer::builder(handle()).track("bench", |_| |_: Exchange| ready()).build();
        serve(runtime, count, layer.layer(handler(|_| ())))
    }

    /// Our layer with an observer.
    pub fn observer(runtime: &Runtime, count: usize) -> f64 {
        let observe = |exchange: &Exchange| {
            black_box(exchange);
        };
        let layer = TrackEventsLayer::builder(handle()).observe(move |_| observe).build();
        serve(runtime, count, layer.layer(handler(|_| ())))
    }

    pub fn trace(runtime: &Runtime, count: usize) -> f64 {
        serve(runtime, count, TraceLayer::new_for_http().layer(handler(|_| ())))
    }

    pub fn in_flight(runtime: &Runtime, count: usize) -> f64 {
        let (layer, _counter) = InFlightRequestsLayer::pair();
        serve(runtime, count, layer.layer(handler(|_| ())))
    }

    /// What one writes by hand: the tracker in the extensions, and so many spawns by the handler.
    pub fn extension<const SPAWNS: usize>(runtime: &Runtime, count: usize) -> f64 {
        serve(runtime, count, AddExtensionLayer::new(TaskTracker::new()).layer(handler(spawn::<SPAWNS>)))
    }

    /// A part of what our layer does, by hand, with or without an event of the layer.
    pub fn by_hand<const HAS_EVENT: bool>(runtime: &Runtime, count: usize) -> f64 {
        let shard = Arc::default();
        serve(runtime, count, ByHand { inner: handler(|_| ()), shard, has_event: HAS_EVENT })
    }

    /// Bare spawns by the handler.
    pub fn bare_spawns<const SPAWNS: usize>(runtime: &Runtime, count: usize) -> f64 {
        serve(runtime, count, handler(|_| (0..SPAWNS).for_each(|_| drop(tokio::spawn(ready())))))
    }

    fn answer() -> Answer {
        Ok(Response::new(Full::new(Bytes::from_static(b"hello"))))
    }

    /// A handler that does something with the extensions of its request.
    fn handler(
        act: fn(&Extensions),
    ) -> impl Service<Request<Empty<Bytes>>, Response = Response<Full<Bytes>>, Error = Infallible, Future: Send> + Clone
    {
        service_fn(move |request: Request<Empty<Bytes>>| {
            act(request.extensions());
            async { answer() }
        })
    }

    fn track<const EVENTS: usize>(extensions: &Extensions) {
        if EVENTS > 0 {
            let events = Events::from_extensions(extensions).expect("the layer is there");
            (0..EVENTS).for_each(|_| events.track("bench", ready()).expect("there is room"));
        }
    }

    fn spawn<const SPAWNS: usize>(extensions: &Extensions) {
        if SPAWNS > 0 {
            let tracker: &TaskTracker = extensions.get().expect("the layer is there");
            (0..SPAWNS).for_each(|_| drop(tracker.spawn(ready())));
        }
    }

    /// What the requests have spawned is counted in.
    fn serve<S, B>(runtime: &Runtime, count: usize, mut service: S) -> f64
    where
        S: Service<Request<Empty<Bytes>>, Response = Response<B>, Error = Infallible>,
        B: http_body::Body<Data = Bytes, Error: std::fmt::Debug>,
    {
        runtime.block_on(async {
            let began = Instant::now();
            for turn in 0..count {
                let request = Request::new(Empty::new());
                let response = service.call(request).await.expect("it answers");
                let mut body = pin!(response.into_body());
                while let Some(frame) = body.frame().await {
                    black_box(&frame.expect("a frame").data_ref());
                }
                // No server has a hundred responses in a row without a turn for its tasks.
                if turn % 10 == 0 {
                    yield_now().await;
                }
            }
            yield_now().await;
            per(count, began)
        })
    }
}

/// An admission and the end of it, on each of so many threads at once.
pub mod admission {
    use super::*;

    pub fn guard(threads: usize, count: usize) -> f64 {
        let handle = handle();
        on_each(threads, count, || drop(black_box(handle.guard().expect("it is open"))))
    }

    pub fn token(threads: usize, count: usize) -> f64 {
        let tracker = TaskTracker::new();
        on_each(threads, count, || drop(black_box(tracker.token())))
    }

    fn on_each(threads: usize, count: usize, admit: impl Fn() + Sync) -> f64 {
        let barrier = Barrier::new(threads);
        let times: Vec<f64> = thread::scope(|scope| {
            let admit_all = || {
                barrier.wait();
                let began = Instant::now();
                (0..count).for_each(|_| admit());
                per(count, began)
            };
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(admit_all)).collect();
            threads.into_iter().map(|thread| thread.join().expect("it ends")).collect()
        });
        times.iter().sum::<f64>() / threads as f64
    }
}

/// An event that is ready at once, while so many others wait.
pub mod among {
    use super::*;

    pub fn tracked(runtime: &Runtime, pending: usize, count: usize) -> f64 {
        in_a_task(runtime, async move {
            let handle = handle();
            let release = wait(pending, |wait| handle.track("waits", wait).expect("there is room")).await;
            let time = in_bursts(count, || handle.track("bench", ready()).expect("there is room")).await;
            release.add_permits(pending);
            handle.drain(Duration::MAX).await.expect("all end");
            time
        })
    }

    pub fn spawned(runtime: &Runtime, pending: usize, count: usize) -> f64 {
        in_a_task(runtime, async move {
            let release = wait(pending, |wait| drop(tokio::spawn(wait))).await;
            let time = in_bursts(count, || drop(tokio::spawn(ready()))).await;
            release.add_permits(pending);
            while Arc::strong_count(&release) > 1 {
                yield_now().await;
            }
            time
        })
    }

    /// Comes back to its place behind the events, when it yields: what is blocked on comes before some of them.
    fn in_a_task(runtime: &Runtime, measure: impl Future<Output = f64> + Send + 'static) -> f64 {
        runtime.block_on(runtime.spawn(measure)).expect("it ends")
    }

    /// Lets so many wait, until they are given permits. Each of them does when this returns.
    pub async fn wait(
        count: usize,
        mut start: impl FnMut(std::pin::Pin<Box<dyn Future<Output = ()> + Send>>),
    ) -> Arc<Semaphore> {
        let (release, waiting) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
        for _ in 0..count {
            let (release, waiting) = (Arc::clone(&release), Arc::clone(&waiting));
            start(Box::pin(async move {
                waiting.fetch_add(1, Ordering::Relaxed);
                drop(waiting);
                drop(release.acquire().await);
            }));
        }
        // A turn is not enough: the runtime comes back after some tens of tasks.
        while waiting.load(Ordering::Relaxed) < count {
            yield_now().await;
        }
        release
    }

    async fn in_bursts(count: usize, start: impl Fn()) -> f64 {
        let began = Instant::now();
        for _ in 0..count / BURST {
            (0..BURST).for_each(|_| start());
            yield_now().await;
        }
        per(count, began)
    }
}

/// From the end of the last event to the return of whoever waits for it.
pub mod wake_up {
    use super::{by_hand::Drained, *};

    pub fn drain(runtime: &Runtime, count: usize) -> f64 {
        runtime.block_on(async {
            let mut total = Duration::ZERO;
            for _ in 0..count {
                let handle = handle();
                let (last, release, ended) = last();
                handle.track("last", last).expect("there is room");
                let drain = tokio::spawn(handle.drain(Duration::MAX));
                yield_now().await;
                release.send(()).expect("it waits");
                drain.await.expect("it ends").expect("all end");
                total += ended.await.expect("it tells").elapsed();
            }
            total.as_nanos() as f64 / count as f64
        })
    }

    pub fn tracker(runtime: &Runtime, count: usize) -> f64 {
        runtime.block_on(async {
            let mut total = Duration::ZERO;
            for _ in 0..count {
                let tracker = TaskTracker::new();
                let (last, release, ended) = last();
                tracker.spawn(last);
                tracker.close();
                let wait = tokio::spawn(async move { tracker.wait().await });
                yield_now().await;
                release.send(()).expect("it waits");
                wait.await.expect("it ends");
                total += ended.await.expect("it tells").elapsed();
            }
            total.as_nanos() as f64 / count as f64
        })
    }

    /// A part of what a drain does, by hand.
    pub fn by_hand(runtime: &Runtime, count: usize) -> f64 {
        runtime.block_on(async {
            let mut total = Duration::ZERO;
            for _ in 0..count {
                let drained = Drained::new();
                let (last, release, ended) = last();
                Arc::clone(&drained).spawn(last);
                let drain = tokio::spawn(Arc::clone(&drained).drain());
                yield_now().await;
                release.send(()).expect("it waits");
                black_box(&drain.await.expect("it ends"));
                total += ended.await.expect("it tells").elapsed();
            }
            total.as_nanos() as f64 / count as f64
        })
    }

    /// An event, what ends it, and what tells when it has.
    fn last() -> (impl Future<Output = ()> + Send + 'static, oneshot::Sender<()>, oneshot::Receiver<Instant>) {
        let (release, released) = oneshot::channel();
        let (tell, ended) = oneshot::channel();
        (async move { drop(released.await.map(|()| tell.send(Instant::now()))) }, release, ended)
    }
}
