//! Real servers on loopback sockets: clients that leave while the server stops, and how hyper ends its responses.
//!
//! On HTTP/2 hyper runs each stream as a task of its own, which may outlive the server, and may not have started when
//! the server returns.

use std::{
    convert::Infallible,
    future::pending,
    net::{Ipv4Addr, SocketAddr},
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, extract::Request, routing::get};
use bytes::Bytes;
use futures_util::{StreamExt, future::BoxFuture, poll, stream};
use h2::{Reason, RecvStream, SendStream, client};
use http::{HeaderMap, HeaderValue, Response, header};
use http_body::Frame;
use http_body_util::{Full, StreamBody};
use hyper::{
    body::Incoming,
    rt::{Executor, bounds::Http2ServerConnExec},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::{conn::auto, graceful::GracefulShutdown},
    service::{TowerToHyperService, TowerToHyperServiceFuture},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime,
    sync::{Semaphore, mpsc, oneshot},
    task::{self, JoinHandle, JoinSet},
    time::timeout,
};
use tokio_util::task::TaskTracker;
use tower::{Layer, service_fn, util::BoxCloneSyncService};
use tower_track_events::{Events, Exchange, Outcome, ResponseBody, TrackEvents, TrackEventsHandle, TrackEventsLayer};

use crate::support::{OnDrop, without_quiet_period};

/// Far longer than any step takes: reaching it fails the test.
const LIMIT: Duration = Duration::from_secs(30);

async fn within_limit<F: Future>(future: F) -> F::Output {
    timeout(LIMIT, future).await.expect("this ends long before the limit")
}

// Servers and clients

/// A server on its own port, with a graceful shutdown.
struct Server {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    returned: JoinHandle<()>,
}

impl Server {
    async fn listen() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound listener has an address");
        (listener, address)
    }

    async fn axum(app: Router) -> Self {
        let (listener, address) = Self::listen().await;
        let (stop, stopped) = oneshot::channel();
        let returned = tokio::spawn(async {
            let stopped = async { stopped.await.expect("the test stops the server") };
            axum::serve(listener, app).with_graceful_shutdown(stopped).await.expect("axum::serve does not fail");
        });
        Self { address, stop, returned }
    }

    /// A server on hyper-util, whose HTTP/2 streams run on `executor`.
    async fn hyper<S, B, E>(service: S, executor: E) -> Self
    where
        S: tower::Service<http::Request<Incoming>, Response = Response<B>, Error = Infallible>,
        S: Clone + Send + 'static,
        S::Future: Send + 'static,
        B: http_body::Body<Data = Bytes, Error = Infallible> + Send + 'static,
        E: Clone + Send + Sync + 'static,
        E: Http2ServerConnExec<TowerToHyperServiceFuture<S, http::Request<Incoming>>, B>,
    {
        let (listener, address) = Self::listen().await;
        let (stop, stopped) = oneshot::channel();
        let returned = tokio::spawn(async move {
            let service = TowerToHyperService::new(service);
            let server = auto::Builder::new(executor);
            let graceful = GracefulShutdown::new();
            let mut stopped = pin!(stopped);
            loop {
                let socket = tokio::select! {
                    accepted = listener.accept() => TokioIo::new(accepted.expect("loopback accepts").0),
                    _ = &mut stopped => break,
                };
                let connection = graceful.watch(server.serve_connection(socket, service.clone()).into_owned());
                tokio::spawn(async {
                    // These tests close connections, so errors are expected.
                    let _ = connection.await;
                });
            }
            graceful.shutdown().await;
        });
        Self { address, stop, returned }
    }

    /// Stops the server and waits until it has returned.
    async fn stop(self) {
        self.stop.send(()).expect("the server runs until it is stopped");
        within_limit(self.returned).await.expect("the server does not panic");
    }
}

/// An HTTP/2 client with prior knowledge, on a connection of its own.
struct Http2 {
    streams: Vec<(client::ResponseFuture, SendStream<Bytes>)>,
    connection: JoinHandle<()>,
    /// Without it the client would close the connection once its streams are over.
    _requests: client::SendRequest<Bytes>,
}

impl Http2 {
    /// Connects and sends that many requests, for `/0` and so on.
    async fn send(address: SocketAddr, count: usize) -> Self {
        Self::get(address, (0..count).map(|index| index.to_string())).await
    }

    async fn get(address: SocketAddr, paths: impl IntoIterator<Item = impl std::fmt::Display>) -> Self {
        let socket = TcpStream::connect(address).await.expect("the server listens");
        let (mut requests, connection) = client::handshake(socket).await.expect("the server speaks HTTP/2");
        // All are queued before the connection is polled, so that they arrive together.
        let send = |path| {
            let request = http::Request::get(format!("http://{address}/{path}")).body(()).expect("a valid request");
            requests.send_request(request, true).expect("at most a hundred streams, as h2 assumes at first")
        };
        let streams = paths.into_iter().map(send).collect();
        let connection = tokio::spawn(async {
            // These tests close connections, so errors are expected.
            let _ = connection.await;
        });
        Self { streams, connection, _requests: requests }
    }

    /// Waits for the head of the only response.
    async fn head(&mut self) -> Response<RecvStream> {
        let (response, _) = &mut self.streams[0];
        within_limit(response).await.expect("the server answers")
    }

    fn reset(&mut self) {
        let (_, stream) = &mut self.streams[0];
        stream.send_reset(Reason::CANCEL);
    }

    /// Closes the socket abruptly.
    async fn leave(self) {
        self.connection.abort();
        let _ = self.connection.await;
    }
}

/// Sends an HTTP/1.1 request without a body; the connection is for this request only.
async fn http1(address: SocketAddr, method: &str) -> TcpStream {
    let mut socket = TcpStream::connect(address).await.expect("the server listens");
    let request = format!("{method} / HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.expect("the server reads");
    socket
}

/// What the server sends on a socket until it closes it.
async fn read_all(mut socket: TcpStream) -> String {
    let mut text = String::new();
    within_limit(socket.read_to_string(&mut text)).await.expect("the server closes without an error");
    text
}

// A client that leaves while handlers run

const STREAMS: u64 = 8;

/// An app whose responses hold the value that `make` returns until they are dropped: responses to odd paths in their
/// future, the others in their body. `held` gets a permit for each value that is held.
fn holding<M, T>(held: &Arc<Semaphore>, make: M) -> Router
where
    M: Fn(&Request) -> T + Clone + Send + Sync + 'static,
    T: Send + 'static,
{
    let held = Arc::clone(held);
    Router::new().fallback(move |request: Request| {
        let (held, value) = (Arc::clone(&held), make(&request));
        let until_dropped = async move {
            let _value = value;
            held.add_permits(1);
            pending::<Result<Bytes, Infallible>>().await
        };
        async move {
            if request.uri().path().ends_with(['1', '3', '5', '7', '9']) {
                let _ = until_dropped.await;
                return Body::empty();
            }
            Body::from_stream(stream::once(until_dropped))
        }
    })
}

/// Eight streams on one connection; when all are held, the client leaves and the server is stopped. Ends when the
/// server has returned.
async fn leave_at_shutdown(app: Router, held: &Semaphore) {
    let server = Server::axum(app).await;
    let client = Http2::send(server.address, STREAMS as usize).await;
    within_limit(held.acquire_many(STREAMS as u32)).await.expect("never closed").forget();
    client.connection.abort();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_the_client_leaves_at_shutdown() {
    for round in 0..200 {
        // Every request is open when the server returns: the drain needs no quiet period to wait for it.
        let handle = without_quiet_period();
        let held = Arc::new(Semaphore::new(0));
        let (started, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let app = holding(&held, {
            let (started, done) = (Arc::clone(&started), Arc::clone(&done));
            move |request| {
                started.fetch_add(1, Ordering::Relaxed);
                let events = Events::from_extensions(request.extensions()).expect("the layer is there").clone();
                let done = Arc::clone(&done);
                OnDrop::new(move || {
                    let done = Arc::clone(&done);
                    // A rejection is counted, and checked below.
                    let _ = events.track("stream.closed", async move {
                        task::yield_now().await;
                        done.fetch_add(1, Ordering::Relaxed);
                    });
                })
            }
        });

        leave_at_shutdown(app.layer(TrackEventsLayer::new(handle.clone())), &held).await;
        let report = handle.drain(LIMIT).await.expect("everything ends when the client has left");

        let done = done.load(Ordering::Relaxed);
        let now = handle.snapshot();
        assert_eq!((started.load(Ordering::Relaxed), done), (STREAMS, STREAMS), "round {round}: {now:?}");
        assert_eq!((now.accepted, now.ended.completed, now.rejected), (done, done, 0), "round {round}");
        assert!(report.all_completed(), "round {round}: {report}");
    }
}

/// In the rounds above a drain meets a running destructor by chance; here the destructor waits for the drain.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_waits_for_the_destructor_of_a_stream_that_tracks_an_event() {
    // In the body of the response, and in its future.
    for index in ["0", "1"] {
        let handle = without_quiet_period();
        let held = Arc::new(Semaphore::new(0));
        let (started, mut has_started) = mpsc::unbounded_channel();
        let (resume, may_continue) = std::sync::mpsc::channel();
        let may_continue = Arc::new(Mutex::new(may_continue));
        let app = holding(&held, move |request| {
            let events = Events::from_extensions(request.extensions()).expect("the layer is there").clone();
            let (started, may_continue) = (started.clone(), Arc::clone(&may_continue));
            OnDrop::new(move || {
                let _ = started.send(());
                // Other tasks of this thread, such as the server, move to another thread.
                task::block_in_place(|| {
                    let _ = may_continue.lock().expect("no panic while it is locked").recv_timeout(LIMIT);
                });
                let _ = events.track("stream.closed", async {});
            })
        });
        let server = Server::axum(app.layer(TrackEventsLayer::new(handle.clone()))).await;
        let client = Http2::get(server.address, [index]).await;
        within_limit(held.acquire()).await.expect("never closed").forget();
        client.leave().await;
        server.stop().await;
        within_limit(has_started.recv()).await.expect("the destructor has the other side");

        let mut drain = pin!(handle.drain(LIMIT));
        assert!(poll!(&mut drain).is_pending(), "in stream {index}");
        assert_eq!(handle.snapshot().open_requests, 1, "in stream {index}");

        resume.send(()).expect("the destructor has the other side");
        let report = drain.await.expect("everything ends");
        assert_eq!((report.ended.completed, handle.snapshot().rejected), (1, 0), "in stream {index}");
    }
}

/// The control of the test above: the same rounds with a `TaskTracker`, which is enough for HTTP/1, lose events.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_tracker_loses_events_when_the_client_leaves_at_shutdown() {
    let rounds = 200;
    let mut lost = 0;
    for _ in 0..rounds {
        let tracker = TaskTracker::new();
        let held = Arc::new(Semaphore::new(0));
        let done = Arc::new(AtomicU64::new(0));
        let app = holding(&held, {
            let (tracker, done) = (tracker.clone(), Arc::clone(&done));
            move |_request| {
                let (tracker, done) = (tracker.clone(), Arc::clone(&done));
                OnDrop::new(move || {
                    let done = Arc::clone(&done);
                    tracker.spawn(async move {
                        task::yield_now().await;
                        done.fetch_add(1, Ordering::Relaxed);
                    });
                })
            }
        });

        leave_at_shutdown(app, &held).await;
        tracker.close();
        tracker.wait().await;
        lost += STREAMS - done.load(Ordering::Relaxed);
    }
    assert_ne!(lost, 0, "of {} events", rounds * STREAMS);
    eprintln!("lost {lost} of {} events", rounds * STREAMS);
}

// Handlers that have not started when the server returns

/// Shared by the handlers and the test of one round.
#[derive(Clone)]
struct Witness(Arc<WitnessState>);

struct WitnessState {
    drained: AtomicBool,
    late: AtomicU64,
    started: Semaphore,
}

type WitnessService = BoxCloneSyncService<http::Request<Incoming>, Response<Full<Bytes>>, Infallible>;
type WitnessFuture = TowerToHyperServiceFuture<TrackEvents<WitnessService>, http::Request<Incoming>>;

impl Witness {
    fn new() -> Self {
        Self(Arc::new(WitnessState {
            drained: AtomicBool::new(false),
            late: AtomicU64::new(0),
            started: Semaphore::new(0),
        }))
    }

    /// A service for hyper whose handlers never answer.
    fn service(&self, handle: &TrackEventsHandle) -> TrackEvents<WitnessService> {
        let witness = self.clone();
        let service: WitnessService = BoxCloneSyncService::new(service_fn(move |request: http::Request<Incoming>| {
            witness.handler_starts(Events::from_extensions(request.extensions()));
            pending()
        }));
        TrackEventsLayer::new(handle.clone()).layer(service)
    }

    /// Called when a handler starts: counts it, and tracks an event, which is rejected after the drain.
    fn handler_starts(&self, events: Option<&Events>) {
        let Self(state) = self;
        if state.drained.load(Ordering::SeqCst) {
            state.late.fetch_add(1, Ordering::Relaxed);
        }
        // A rejection is counted by the handle.
        let _ = events.expect("the layer is there").track("handler.started", async {});
        state.started.add_permits(1);
    }

    async fn handlers_started(&self, count: u32) {
        within_limit(self.0.started.acquire_many(count)).await.expect("never closed").forget();
    }
}

/// A hundred streams on one connection; as soon as the second handler has started, the client leaves and the server is
/// stopped. When it has returned, the drain begins, and when that was `Ok`, the flag for the handlers is set.
async fn leave_a_flood(server: Server, witness: Witness, handle: TrackEventsHandle) -> Round {
    let client = Http2::send(server.address, 100).await;
    witness.handlers_started(2).await;
    client.connection.abort();
    server.stop().await;

    handle.drain(LIMIT).await.expect("everything ends when the client has left");
    witness.0.drained.store(true, Ordering::SeqCst);
    Round { witness, handle }
}

async fn flood_axum(handle: TrackEventsHandle) -> Round {
    let witness = Witness::new();
    let app = Router::new().fallback({
        let witness = witness.clone();
        async move |events: Events| {
            witness.handler_starts(Some(&events));
            pending::<()>().await
        }
    });
    let server = Server::axum(app.layer(TrackEventsLayer::new(handle.clone()))).await;
    leave_a_flood(server, witness, handle).await
}

async fn flood_hyper<E>(handle: TrackEventsHandle, executor: E) -> Round
where
    E: Executor<BoxFuture<'static, ()>> + Clone + Send + Sync + 'static,
    E: Http2ServerConnExec<WitnessFuture, ResponseBody<Full<Bytes>>>,
{
    let witness = Witness::new();
    let server = Server::hyper(witness.service(&handle), executor).await;
    leave_a_flood(server, witness, handle).await
}

/// A flood whose drain was `Ok`.
struct Round {
    witness: Witness,
    handle: TrackEventsHandle,
}

/// In how many rounds a handler started after the drain was `Ok`.
#[derive(Debug, Default, PartialEq)]
struct Late {
    /// Counted by the handlers, which check the flag.
    seen: u64,
    /// Counted by the handle, which rejects their events from the instant at which it was closed.
    rejected: u64,
}

impl std::ops::AddAssign for Late {
    fn add_assign(&mut self, other: Self) {
        let Self { seen, rejected } = other;
        self.seen += seen;
        self.rejected += rejected;
    }
}

/// Runs some floods concurrently. Each is a task, so that its drain begins on a thread with streams in its queue: from
/// outside of the runtime, handlers are late in at most one round of a hundred.
async fn concurrently<F>(floods: impl Iterator<Item = F>) -> Late
where
    F: Future<Output = Round> + Send + 'static,
{
    let rounds = within_limit(floods.collect::<JoinSet<_>>().join_all()).await;
    // Late handlers still run, so that they are counted.
    let metrics = runtime::Handle::current().metrics();
    within_limit(async {
        while metrics.num_alive_tasks() > 0 {
            task::yield_now().await;
        }
    })
    .await;
    let mut late = Late::default();
    for Round { witness, handle } in rounds {
        late += Late {
            seen: u64::from(witness.0.late.load(Ordering::Relaxed) > 0),
            rejected: u64::from(handle.snapshot().rejected > 0),
        };
    }
    late
}

/// So many concurrent floods keep the threads busy: a stream that was spawned waits longer until it is polled.
const CONCURRENT: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_handler_starts_after_drain_is_ok() {
    // The quiet period is a heuristic for how long a spawned stream waits until it is polled. With twenty concurrent
    // floods on busy cores, a stream occasionally starts too late, even with a period ten times as long.
    const A_FEW: usize = 5;
    for batch in 0..1_000 / A_FEW {
        let late = concurrently((0..A_FEW).map(|_| flood_axum(TrackEventsHandle::new()))).await;
        assert_eq!(late, Late::default(), "batch {batch}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_handler_starts_after_drain_is_ok_on_its_executor_without_a_quiet_period() {
    for batch in 0..1_000 / CONCURRENT {
        let floods = (0..CONCURRENT).map(|_| {
            let handle = without_quiet_period();
            let executor = handle.executor(TokioExecutor::new());
            flood_hyper(handle, executor)
        });
        assert_eq!(concurrently(floods).await, Late::default(), "batch {batch}");
    }
}

/// The control of the two tests above: without a quiet period or the executor, a handler is late in about every third
/// round.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handlers_start_after_a_drain_without_a_quiet_period() {
    let (mut axum, mut hyper) = (Late::default(), Late::default());
    for _ in 0..200 / CONCURRENT {
        axum += concurrently((0..CONCURRENT).map(|_| flood_axum(without_quiet_period()))).await;
        hyper += concurrently((0..CONCURRENT).map(|_| flood_hyper(without_quiet_period(), TokioExecutor::new()))).await;
    }
    eprintln!("of 200 rounds each, on axum: {axum:?}, on hyper-util: {hyper:?}");
    assert!(axum.seen > 0 && axum.rejected > 0 && hyper.seen > 0 && hyper.rejected > 0);
}

/// An executor that holds its tasks until it releases them.
#[derive(Clone)]
struct HeldExecutor {
    spawned: Arc<Semaphore>,
    may_start: Arc<Semaphore>,
}

impl HeldExecutor {
    fn new() -> Self {
        Self { spawned: Arc::new(Semaphore::new(0)), may_start: Arc::new(Semaphore::new(0)) }
    }

    /// Three streams whose tasks have not started when the client has left and the server has returned.
    async fn leave_before_the_streams_start(&self, server: Server) {
        let client = Http2::send(server.address, 3).await;
        within_limit(self.spawned.acquire_many(3)).await.expect("never closed").forget();
        client.leave().await;
        server.stop().await;
    }

    fn release(&self) {
        self.may_start.add_permits(3);
    }
}

impl<F> Executor<F> for HeldExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        let may_start = Arc::clone(&self.may_start);
        tokio::spawn(async move {
            may_start.acquire().await.expect("never closed").forget();
            future.await;
        });
        self.spawned.add_permits(1);
    }
}

#[tokio::test]
async fn a_drain_waits_for_a_stream_of_its_executor_that_has_not_started() {
    let (handle, witness, streams) = (without_quiet_period(), Witness::new(), HeldExecutor::new());
    let server = Server::hyper(witness.service(&handle), handle.executor(streams.clone())).await;
    streams.leave_before_the_streams_start(server).await;

    let mut drain = pin!(handle.drain(LIMIT));
    assert!(poll!(&mut drain).is_pending());
    let now = handle.snapshot();
    assert_eq!((now.open_requests, now.open_guards), (0, 3));

    streams.release();
    let report = drain.await.expect("the streams end, since the client has left");
    assert_eq!((report.ended.completed, handle.snapshot().rejected), (3, 0));
}

/// Drops its tasks at once.
struct DropsTasks;

impl<F> Executor<F> for DropsTasks {
    fn execute(&self, _future: F) {}
}

#[test]
fn a_task_of_its_executor_is_guarded_until_it_has_been_dropped() {
    let handle = without_quiet_period();
    let (sender, open_guards) = std::sync::mpsc::channel();
    let in_destructor = OnDrop::new({
        let handle = handle.clone();
        move || sender.send(handle.snapshot().open_guards).expect("the test has the other side")
    });
    handle.executor(DropsTasks).execute(async move { drop(in_destructor) });
    assert_eq!((open_guards.try_iter().collect(), handle.snapshot().open_guards), (vec![1], 0));
}

/// The control of the test above, and the reason for the quiet period.
#[tokio::test]
async fn a_drain_does_not_wait_for_a_stream_of_another_executor_that_has_not_started() {
    let (handle, witness, streams) = (without_quiet_period(), Witness::new(), HeldExecutor::new());
    let server = Server::hyper(witness.service(&handle), streams.clone()).await;
    streams.leave_before_the_streams_start(server).await;

    handle.drain(LIMIT).await.expect("nothing is open that the drain could wait for");
    streams.release();
    witness.handlers_started(3).await;
    assert_eq!((handle.snapshot().accepted, handle.snapshot().rejected), (0, 3));
}

// How hyper ends a response, and its outcome in the layer

/// A server whose exchanges are observed by an event of its layer.
struct Observed {
    server: Server,
    handle: TrackEventsHandle,
    exchanges: mpsc::UnboundedReceiver<Exchange>,
}

impl Observed {
    fn layer() -> (TrackEventsLayer, mpsc::UnboundedReceiver<Exchange>) {
        let (sender, exchanges) = mpsc::unbounded_channel();
        let layer = TrackEventsLayer::new(without_quiet_period()).track_from_request("observed", move |_request| {
            let sender = sender.clone();
            async move |exchange: Exchange| sender.send(exchange)
        });
        (layer, exchanges)
    }

    async fn hyper<R, F, B>(respond: R) -> Self
    where
        R: Fn() -> F + Clone + Send + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: http_body::Body<Data = Bytes, Error = Infallible> + Send + 'static,
    {
        let (layer, exchanges) = Self::layer();
        let service = layer.layer(service_fn(move |_request| {
            let response = respond();
            async { Ok(response.await) }
        }));
        let server = Server::hyper(service, TokioExecutor::new()).await;
        Self { server, handle: layer.handle().clone(), exchanges }
    }

    async fn axum(app: Router) -> Self {
        let (layer, exchanges) = Self::layer();
        let server = Server::axum(app.layer(layer.clone())).await;
        Self { server, handle: layer.handle().clone(), exchanges }
    }

    /// Waits for the exchange, and stops the server to check that it was the only one.
    async fn only_exchange(mut self) -> Facts {
        let exchange = within_limit(self.exchanges.recv()).await.expect("the server has the other side");
        self.server.stop().await;
        let report = self.handle.drain(LIMIT).await.expect("nothing is left open");
        assert_eq!((report.ended.completed, report.ended.total()), (1, 1));
        assert_eq!(self.exchanges.try_recv().ok(), None);

        let Exchange { outcome, status, body_bytes, time_to_head, elapsed, grpc_status, .. } = exchange;
        assert_eq!(time_to_head.is_some(), status.is_some());
        assert!(time_to_head <= Some(elapsed));
        Facts { outcome, status: status.map(|status| status.as_u16()), body_bytes, grpc_status }
    }
}

/// The facts of an exchange that are the same in each run.
#[derive(Debug, PartialEq)]
struct Facts {
    outcome: Outcome,
    status: Option<u16>,
    body_bytes: u64,
    grpc_status: Option<i32>,
}

impl Facts {
    fn ok(outcome: Outcome, body_bytes: u64) -> Self {
        Self { outcome, status: Some(200), body_bytes, grpc_status: None }
    }
}

type Frames = Vec<Result<Frame<Bytes>, Infallible>>;

fn frames(data: &[&'static str]) -> Frames {
    data.iter().map(|data| Ok(Frame::data(Bytes::from(*data)))).collect()
}

/// A body of these frames without a size hint.
fn streamed(frames: Frames) -> impl http_body::Body<Data = Bytes, Error = Infallible> + Send + 'static {
    StreamBody::new(stream::iter(frames))
}

/// A body of one frame, `hello`, that is pending from then on.
fn endless() -> impl http_body::Body<Data = Bytes, Error = Infallible> + Send + 'static {
    StreamBody::new(stream::iter(frames(&["hello"])).chain(stream::pending()))
}

fn with_content_length<B>(length: u64, body: B) -> Response<B> {
    Response::builder().header(header::CONTENT_LENGTH, length).body(body).expect("a valid response")
}

#[tokio::test]
async fn http2_reset_in_mid_body_is_aborted() {
    let observed = Observed::hyper(async || Response::new(endless())).await;
    let mut client = Http2::send(observed.server.address, 1).await;
    let mut body = client.head().await.into_body();
    assert_eq!(within_limit(body.data()).await.expect("a frame").expect("no error"), "hello");

    client.reset();
    assert_eq!(observed.only_exchange().await, Facts::ok(Outcome::Aborted, 5));
}

#[tokio::test]
async fn http2_reset_before_the_head_is_no_response() {
    let called = Arc::new(Semaphore::new(0));
    let observed = Observed::hyper({
        let called = Arc::clone(&called);
        move || {
            called.add_permits(1);
            pending::<Response<Full<Bytes>>>()
        }
    })
    .await;
    let mut client = Http2::send(observed.server.address, 1).await;
    within_limit(called.acquire()).await.expect("never closed").forget();

    client.reset();
    let expected = Facts { outcome: Outcome::NoResponse, status: None, body_bytes: 0, grpc_status: None };
    assert_eq!(observed.only_exchange().await, expected);
}

#[tokio::test]
async fn http2_trailers_complete_the_response_and_carry_the_grpc_status() {
    let observed = Observed::hyper(async || {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("5"));
        let mut frames = frames(&["hello"]);
        frames.push(Ok(Frame::trailers(trailers)));
        Response::new(streamed(frames))
    })
    .await;
    let mut client = Http2::send(observed.server.address, 1).await;
    let mut body = client.head().await.into_body();
    assert_eq!(within_limit(body.data()).await.expect("a frame").expect("no error"), "hello");
    let trailers = within_limit(body.trailers()).await.expect("no error").expect("trailers");
    assert_eq!(trailers["grpc-status"], "5");

    let expected = Facts { grpc_status: Some(5), ..Facts::ok(Outcome::Complete, 5) };
    assert_eq!(observed.only_exchange().await, expected);
}

#[tokio::test]
async fn http1_full_body_is_complete() {
    let observed = Observed::hyper(async || Response::new(Full::<Bytes>::from("hello"))).await;
    let text = read_all(http1(observed.server.address, "GET").await).await;
    assert!(text.ends_with("\r\n\r\nhello"), "{text}");
    assert_eq!(observed.only_exchange().await, Facts::ok(Outcome::Complete, 5));
}

/// hyper never polls the body, whose end was not announced.
#[tokio::test]
async fn http1_head_of_a_route_with_a_body_is_complete() {
    let observed = Observed::axum(Router::new().route("/", get(async || "hello"))).await;
    let text = read_all(http1(observed.server.address, "HEAD").await).await;
    assert!(text.ends_with("\r\n\r\n"), "{text}");
    assert_eq!(observed.only_exchange().await, Facts::ok(Outcome::Complete, 0));
}

/// hyper never polls the body for its end.
#[tokio::test]
async fn http1_stream_of_the_declared_length_is_complete() {
    let observed = Observed::hyper(async || with_content_length(11, streamed(frames(&["hello", " world"])))).await;
    let text = read_all(http1(observed.server.address, "GET").await).await;
    assert!(text.ends_with("\r\n\r\nhello world"), "{text}");
    assert_eq!(observed.only_exchange().await, Facts::ok(Outcome::Complete, 11));
}

/// hyper closes the connection, possibly before it has sent anything.
#[tokio::test]
async fn http1_stream_that_ends_before_its_declared_length_is_a_mismatch() {
    let observed = Observed::hyper(async || with_content_length(11, streamed(frames(&["hello"])))).await;
    read_all(http1(observed.server.address, "GET").await).await;
    assert_eq!(observed.only_exchange().await, Facts::ok(Outcome::LengthMismatch, 5));
}

/// hyper truncates the frame, so the client sees a response that looks complete.
#[tokio::test]
async fn http1_frame_beyond_the_declared_length_is_a_mismatch() {
    let observed = Observed::hyper(async || with_content_length(5, streamed(frames(&["hello world"])))).await;
    let text = read_all(http1(observed.server.address, "GET").await).await;
    assert!(text.ends_with("\r\n\r\nhello"), "{text}");
    assert_eq!(observed.only_exchange().await, Facts::ok(Outcome::LengthMismatch, 11));
}

/// hyper does not poll for frames after the declared length, so the layer cannot see them.
#[tokio::test]
async fn http1_frames_after_the_declared_length_are_not_polled() {
    let observed = Observed::hyper(async || with_content_length(5, streamed(frames(&["hello", " world"])))).await;
    let text = read_all(http1(observed.server.address, "GET").await).await;
    assert!(text.ends_with("\r\n\r\nhello"), "{text}");
    assert_eq!(observed.only_exchange().await, Facts::ok(Outcome::Complete, 5));
}

#[tokio::test]
async fn http1_client_that_leaves_in_mid_stream_is_aborted() {
    let observed = Observed::hyper(async || Response::new(endless())).await;
    let mut socket = http1(observed.server.address, "GET").await;
    let mut text = Vec::new();
    while !text.ends_with(b"hello\r\n") {
        assert_ne!(within_limit(socket.read_buf(&mut text)).await.expect("no error"), 0, "the connection is open");
    }

    drop(socket);
    assert_eq!(observed.only_exchange().await, Facts::ok(Outcome::Aborted, 5));
}
