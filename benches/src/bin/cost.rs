//! What an event, a request and a drain cost, against what a user would pick instead.
//!
//! ```text
//! cargo run --release --manifest-path benches/Cargo.toml --bin cost
//! ```
//!
//! Wall time, in process, without a network. Each figure is the median of runs in turn with its rivals, so that whatever
//! else the machine does hits all of them; the bars are on ratios. Ends with an error if a bar is missed.

use std::{
    convert::Infallible,
    future::Future,
    hint::black_box,
    pin::pin,
    process::ExitCode,
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
    sync::{Notify, oneshot},
    task::{JoinSet, yield_now},
    time::Instant,
};
use tokio_util::task::TaskTracker;
use tower::{Layer, Service, service_fn};
use tower_http::{add_extension::AddExtensionLayer, metrics::InFlightRequestsLayer, trace::TraceLayer};
use tower_track_events::{Events, Exchange, TrackEventsHandle, TrackEventsLayer};

/// Events of one run, spawned in bursts so that a queue does not grow to what no server has.
const EVENTS: usize = 20_000;
const BURST: usize = 100;
const REQUESTS: usize = 10_000;
const RUNS: usize = 31;

fn main() -> ExitCode {
    let mut table = Table { missed: 0 };
    events(&mut table);
    requests(&mut table);
    admission(&mut table);
    pending(&mut table);
    wake_up(&mut table);
    println!("{} bars missed", table.missed);
    if table.missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

struct Table {
    missed: usize,
}

impl Table {
    fn head(&self, text: &str) {
        println!("\n{text}");
    }

    fn figure(&self, name: &str, nanos: f64) {
        println!("  {name:<58} {nanos:>9.1} ns");
    }

    fn ratio(&mut self, name: &str, ours: f64, rival: f64, bar: f64) {
        let ratio = ours / rival;
        let holds = ratio <= bar;
        self.missed += usize::from(!holds);
        println!("= {name:<58} {ratio:>9.2}    <= {bar:.2} {}", if holds { "ok" } else { "MISSED" });
    }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// The medians of candidates that run in turn.
fn in_turn<const N: usize>(runs: usize, mut candidates: [&mut dyn FnMut() -> f64; N]) -> [f64; N] {
    let mut times = [const { Vec::new() }; N];
    for _ in 0..runs {
        for (candidate, times) in candidates.iter_mut().zip(&mut times) {
            times.push(candidate());
        }
    }
    times.map(median)
}

fn runtime(workers: usize) -> Runtime {
    let mut builder = match workers {
        1 => runtime::Builder::new_current_thread(),
        _ => runtime::Builder::new_multi_thread(),
    };
    builder.worker_threads(workers).enable_all().build().expect("a runtime")
}

fn handle() -> TrackEventsHandle {
    TrackEventsHandle::builder().settle(Duration::ZERO).capacity(1 << 22).build().expect("valid settings")
}

/// Nanoseconds for each of `count`.
fn per(count: usize, began: Instant) -> f64 {
    began.elapsed().as_nanos() as f64 / count as f64
}

// (a) An event.

async fn ready() {
    black_box(());
}

async fn yields() {
    yield_now().await;
}

/// Starts events in bursts, from a task of the runtime, and waits for the end of all.
fn start_events<F>(
    runtime: &Runtime,
    start: impl Fn() + Send + 'static,
    end: impl FnOnce() -> F + Send + 'static,
) -> f64
where
    F: Future<Output = ()> + Send + 'static,
{
    let task = runtime.spawn(async move {
        let began = Instant::now();
        for _ in 0..EVENTS / BURST {
            (0..BURST).for_each(|_| start());
            yield_now().await;
        }
        end().await;
        per(EVENTS, began)
    });
    runtime.block_on(task).expect("it ends")
}

/// Counts down to the end of tasks that nobody else counts.
#[derive(Clone, Default)]
struct Done(Arc<(AtomicUsize, Notify)>);

impl Done {
    async fn all(self) {
        while self.0.0.load(Ordering::Acquire) < EVENTS {
            self.0.1.notified().await;
        }
    }

    fn one(&self) {
        if self.0.0.fetch_add(1, Ordering::AcqRel) + 1 == EVENTS {
            self.0.1.notify_one();
        }
    }
}

fn by_handle<F: Future<Output = ()> + Send + 'static>(runtime: &Runtime, event: fn() -> F) -> f64 {
    let handle = handle();
    let drain = handle.drain(Duration::MAX);
    let start = move || handle.track("bench", event()).expect("there is room");
    start_events(runtime, start, move || async move { drop(drain.await.expect("all end")) })
}

fn by_spawn<F: Future<Output = ()> + Send + 'static>(runtime: &Runtime, event: fn() -> F) -> f64 {
    // Nobody knows when they have ended: a turn for each burst is enough where they run in order, or nearly.
    start_events(runtime, move || drop(tokio::spawn(event())), yield_now)
}

fn by_counted_spawn<F: Future<Output = ()> + Send + 'static>(runtime: &Runtime, event: fn() -> F) -> f64 {
    let done = Done::default();
    let counting = done.clone();
    let start = move || {
        let counting = counting.clone();
        tokio::spawn(async move {
            event().await;
            counting.one();
        });
    };
    start_events(runtime, start, move || done.all())
}

fn by_tracker<F: Future<Output = ()> + Send + 'static>(runtime: &Runtime, event: fn() -> F) -> f64 {
    let tracker = TaskTracker::new();
    let waiting = tracker.clone();
    start_events(
        runtime,
        move || drop(tracker.spawn(event())),
        move || async move {
            waiting.close();
            waiting.wait().await;
        },
    )
}

fn by_graceful<F: Future<Output = ()> + Send + 'static>(runtime: &Runtime, event: fn() -> F) -> f64 {
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
    let time = start_events(runtime, start, yield_now);
    drop(stop);
    runtime.block_on(shutdown.shutdown());
    time
}

fn by_join_set<F: Future<Output = ()> + Send + 'static>(runtime: &Runtime, event: fn() -> F) -> f64 {
    let task = runtime.spawn(async move {
        let began = Instant::now();
        let mut set = JoinSet::new();
        for _ in 0..EVENTS / BURST {
            (0..BURST).for_each(|_| drop(set.spawn(event())));
            yield_now().await;
            while set.try_join_next().is_some() {}
        }
        while set.join_next().await.is_some() {}
        per(EVENTS, began)
    });
    runtime.block_on(task).expect("it ends")
}

fn events(table: &mut Table) {
    for (workers, place, bar) in [(1, "one thread", 1.35), (2, "two workers", 1.20)] {
        let runtime = runtime(workers);
        let [ours, spawn, counted, tracker, graceful, set] = in_turn(
            RUNS,
            [
                &mut || by_handle(&runtime, ready),
                &mut || by_spawn(&runtime, ready),
                &mut || by_counted_spawn(&runtime, ready),
                &mut || by_tracker(&runtime, ready),
                &mut || by_graceful(&runtime, ready),
                &mut || by_join_set(&runtime, ready),
            ],
        );
        table.head(&format!("An event, ready at once, {place}"));
        for (name, time) in [
            ("handle.track", ours),
            ("tokio::spawn", spawn),
            ("tokio::spawn, counted by hand", counted),
            ("TaskTracker::spawn", tracker),
            ("tokio-graceful's guard", graceful),
            ("JoinSet::spawn", set),
        ] {
            table.figure(name, time);
        }
        table.ratio(&format!("handle.track / tokio::spawn, {place}"), ours, spawn, bar);
        let [ours, spawn, tracker] = in_turn(
            RUNS,
            [&mut || by_handle(&runtime, yields), &mut || by_spawn(&runtime, yields), &mut || {
                by_tracker(&runtime, yields)
            }],
        );
        table.head(&format!("An event that yields once, {place}"));
        table.figure("handle.track", ours);
        table.figure("tokio::spawn", spawn);
        table.figure("TaskTracker::spawn", tracker);
    }
}

// (b) A request.

type Answer = Result<Response<Full<Bytes>>, Infallible>;

fn answer() -> Answer {
    Ok(Response::new(Full::new(Bytes::from_static(b"hello"))))
}

/// A handler that does something with the extensions of its request.
fn handler(
    act: fn(&Extensions),
) -> impl Service<Request<Empty<Bytes>>, Response = Response<Full<Bytes>>, Error = Infallible, Future: Send> + Clone {
    service_fn(move |request: Request<Empty<Bytes>>| {
        act(request.extensions());
        async { answer() }
    })
}

fn track(count: usize, extensions: &Extensions) {
    let events = Events::from_extensions(extensions).expect("the layer is there");
    (0..count).for_each(|_| events.track("bench", ready()).expect("there is room"));
}

fn spawn(count: usize, extensions: &Extensions) {
    let tracker: &TaskTracker = extensions.get().expect("the layer is there");
    (0..count).for_each(|_| drop(tracker.spawn(ready())));
}

/// Nanoseconds for each request, what it has spawned included.
fn serve<S, B>(runtime: &Runtime, mut service: S) -> f64
where
    S: Service<Request<Empty<Bytes>>, Response = Response<B>, Error = Infallible>,
    B: http_body::Body<Data = Bytes, Error: std::fmt::Debug>,
{
    runtime.block_on(async {
        let began = Instant::now();
        for turn in 0..REQUESTS {
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
        per(REQUESTS, began)
    })
}

fn requests(table: &mut Table) {
    let runtime = runtime(1);
    let ours = TrackEventsLayer::new(handle());
    let hooked = TrackEventsLayer::builder(handle()).track("bench", |_| |_: Exchange| ready()).build();
    let observed = TrackEventsLayer::builder(handle())
        .observe(|_| {
            |exchange: &Exchange| {
                black_box(exchange);
            }
        })
        .build();
    let tracker = AddExtensionLayer::new(TaskTracker::new());
    let (in_flight, _counter) = InFlightRequestsLayer::pair();
    let [bare, none, one, four, layer_event, observer, trace, flight, extension, spawn_one, spawn_four, bare_four] =
        in_turn(
            RUNS,
            [
                &mut || serve(&runtime, handler(|_| ())),
                &mut || serve(&runtime, ours.layer(handler(|_| ()))),
                &mut || serve(&runtime, ours.layer(handler(|extensions| track(1, extensions)))),
                &mut || serve(&runtime, ours.layer(handler(|extensions| track(4, extensions)))),
                &mut || serve(&runtime, hooked.layer(handler(|_| ()))),
                &mut || serve(&runtime, observed.layer(handler(|_| ()))),
                &mut || serve(&runtime, TraceLayer::new_for_http().layer(handler(|_| ()))),
                &mut || serve(&runtime, in_flight.layer(handler(|_| ()))),
                &mut || serve(&runtime, tracker.layer(handler(|_| ()))),
                &mut || serve(&runtime, tracker.layer(handler(|extensions| spawn(1, extensions)))),
                &mut || serve(&runtime, tracker.layer(handler(|extensions| spawn(4, extensions)))),
                &mut || serve(&runtime, handler(|_| (0..4).for_each(|_| drop(tokio::spawn(ready()))))),
            ],
        );
    table.head("A request: what is added to a bare service");
    table.figure("(the bare service)", bare);
    for (name, time) in [
        ("our layer, no event", none),
        ("our layer, one event", one),
        ("our layer, four events", four),
        ("our layer, one event of the layer", layer_event),
        ("our layer, an observer", observer),
        ("TraceLayer, without a subscriber", trace),
        ("InFlightRequestsLayer", flight),
        ("AddExtensionLayer<TaskTracker>", extension),
        ("AddExtensionLayer<TaskTracker> and one spawn", spawn_one),
        ("AddExtensionLayer<TaskTracker> and four spawns", spawn_four),
        ("four bare spawns", bare_four),
    ] {
        table.figure(name, time - bare);
    }
    table.ratio("no event / TraceLayer", none - bare, trace - bare, 0.50);
    table.ratio("one event / AddExtension and spawn", one - bare, spawn_one - bare, 1.60);
    table.ratio("four events / four bare spawns", four - bare, bare_four - bare, 1.40);
    table.ratio("one event of the layer / AddExtension and spawn", layer_event - bare, spawn_one - bare, 1.60);
}

// (c) Admission.

const ADMISSIONS: usize = 1_000_000;

/// Nanoseconds for each admission on each of so many threads at once.
fn admit(threads: usize, admit: impl Fn() + Sync) -> f64 {
    let barrier = Barrier::new(threads);
    let times = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    barrier.wait();
                    let began = Instant::now();
                    (0..ADMISSIONS).for_each(|_| admit());
                    per(ADMISSIONS, began)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("it ends")).collect::<Vec<_>>()
    });
    median(times)
}

fn admission(table: &mut Table) {
    let (handle, tracker) = (handle(), TaskTracker::new());
    let ours = || drop(black_box(handle.guard().expect("it is open")));
    let rival = || drop(black_box(tracker.token()));
    let [one, two, rival_one, rival_two] = in_turn(
        RUNS,
        [&mut || admit(1, ours), &mut || admit(2, ours), &mut || admit(1, rival), &mut || admit(2, rival)],
    );
    table.head("Admission, and the end of it");
    table.figure("guard(), one thread", one);
    table.figure("guard(), two threads at once, each", two);
    table.figure("TaskTracker::token(), one thread", rival_one);
    table.figure("TaskTracker::token(), two threads at once, each", rival_two);
    table.ratio("guard(), two threads / one", two, one, 1.5);
    println!("  TaskTracker::token(), two threads / one: {:.1}", rival_two / rival_one);
}

// (d) With many pending.

fn pending(table: &mut Table) {
    let runtime = runtime(1);
    let with_pending = |count: usize| {
        let handle = handle();
        runtime.block_on(async {
            let release = Arc::new(tokio::sync::Semaphore::new(0));
            for _ in 0..count {
                let release = Arc::clone(&release);
                handle.track("waits", async move { drop(release.acquire().await) }).expect("there is room");
            }
            yield_now().await;
            let began = Instant::now();
            for _ in 0..EVENTS / BURST {
                (0..BURST).for_each(|_| handle.track("bench", ready()).expect("there is room"));
                yield_now().await;
            }
            let time = per(EVENTS, began);
            handle.abort();
            handle.drain(Duration::MAX).await.expect("all end");
            time
        })
    };
    let [one, thousand, many, million] = in_turn(
        7,
        [&mut || with_pending(1), &mut || with_pending(1_000), &mut || with_pending(100_000), &mut || {
            with_pending(1_000_000)
        }],
    );
    table.head("An event while others are pending");
    for (name, time) in [("1", one), ("1,000", thousand), ("100,000", many), ("1,000,000", million)] {
        table.figure(name, time);
    }
    table.ratio("a million pending / one", million, one, 1.3);
}

// (e) The end of a drain.

fn wake_up(table: &mut Table) {
    const ROUNDS: usize = 2_000;
    let runtime = runtime(1);
    let ours = || {
        runtime.block_on(async {
            let mut total = Duration::ZERO;
            for _ in 0..ROUNDS {
                let handle = handle_small();
                let (release, released) = oneshot::channel::<Instant>();
                let (told, tells) = oneshot::channel();
                handle
                    .track("last", async move { drop(released.await.map(|_| told.send(Instant::now()))) })
                    .expect("there is room");
                let drain = tokio::spawn(handle.drain(Duration::MAX));
                yield_now().await;
                release.send(Instant::now()).expect("it waits");
                drain.await.expect("it ends").expect("all end");
                total += tells.await.expect("it tells").elapsed();
            }
            total.as_nanos() as f64 / ROUNDS as f64
        })
    };
    let rival = || {
        runtime.block_on(async {
            let mut total = Duration::ZERO;
            for _ in 0..ROUNDS {
                let tracker = TaskTracker::new();
                let (release, released) = oneshot::channel::<Instant>();
                let (told, tells) = oneshot::channel();
                tracker.spawn(async move { drop(released.await.map(|_| told.send(Instant::now()))) });
                tracker.close();
                let wait = tokio::spawn(async move { tracker.wait().await });
                yield_now().await;
                release.send(Instant::now()).expect("it waits");
                wait.await.expect("it ends");
                total += tells.await.expect("it tells").elapsed();
            }
            total.as_nanos() as f64 / ROUNDS as f64
        })
    };
    let [ours, rival] = in_turn(RUNS, [&mut { ours }, &mut { rival }]);
    table.head("From the end of the last event to the return of the drain");
    table.figure("Drain", ours);
    table.figure("TaskTracker::wait", rival);
    table.ratio("Drain / TaskTracker::wait", ours, rival, 1.2);
}

fn handle_small() -> TrackEventsHandle {
    TrackEventsHandle::builder().settle(Duration::ZERO).progress(Duration::ZERO).build().expect("valid settings")
}
