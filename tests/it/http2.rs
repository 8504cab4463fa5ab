//! Real servers on loopback sockets: clients that leave while the server stops, and how hyper ends its responses.
//!
//! HTTP/2 is where the ordinary recipe breaks: hyper runs each stream as a task of its own, which may outlive the
//! server, and may not even have begun when the server returns.

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

use crate::support::{OnDrop, unsettled};

/// Far above what anything here takes: reaching it fails the test.
const LIMIT: Duration = Duration::from_secs(30);

async fn within_limit<F: Future>(future: F) -> F::Output {
    timeout(LIMIT, future).await.expect("this ends long before the limit")
}

// Servers and clients

/// A server on a port of its own, which stops gracefully when told to.
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
                    // The error of a connection that was cut is what these tests are about.
                    let _ = connection.await;
                });
            }
            graceful.shutdown().await;
        });
        Self { address, stop, returned }
    }

    /// Tells the server to stop and waits until it has returned.
    async fn stop(self) {
        self.stop.send(()).expect("the server runs until it is told to stop");
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
            // The error of a connection that was cut is what these tests are about.
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

    /// Closes the socket without a word, whatever is in flight.
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

// A client that leaves while handlers are at work

const STREAMS: u64 = 8;

/// An app whose responses hold what `make` returns until they are dropped: the odd ones in their future, the others in
/// their body. `held` has a permit for each that does.
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

/// Eight streams on one connection; when all are held, the client leaves and the server is told to stop. Ends when the
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
        // Every request is open when the server returns: the drain needs no settle time to see it.
        let handle = unsettled();
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
                    // A refusal is seen below: nobody can take it here.
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
        assert_eq!((now.accepted, now.completed, now.refused), (done, done, 0), "round {round}");
        assert!(report.all_completed(), "round {round}: {report}");
    }
}

/// The rounds above meet the moment of the destructor by chance; this one stops the clock in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_waits_for_a_destructor_of_a_stream_that_has_yet_to_record_its_event() {
    // In the body of the response, and in its future.
    for index in ["0", "1"] {
        let handle = unsettled();
        let held = Arc::new(Semaphore::new(0));
        let (at_work, mut is_at_work) = mpsc::unbounded_channel();
        let (go_on, may_go_on) = std::sync::mpsc::channel();
        let may_go_on = Arc::new(Mutex::new(may_go_on));
        let app = holding(&held, move |request| {
            let events = Events::from_extensions(request.extensions()).expect("the layer is there").clone();
            let (at_work, may_go_on) = (at_work.clone(), Arc::clone(&may_go_on));
            OnDrop::new(move || {
                let _ = at_work.send(());
                // The other tasks of this thread, the server maybe among them, move to another one.
                task::block_in_place(|| {
                    let _ = may_go_on.lock().expect("no panic while it is locked").recv_timeout(LIMIT);
                });
                let _ = events.track("stream.closed", async {});
            })
        });
        let server = Server::axum(app.layer(TrackEventsLayer::new(handle.clone()))).await;
        let client = Http2::get(server.address, [index]).await;
        within_limit(held.acquire()).await.expect("never closed").forget();
        client.leave().await;
        server.stop().await;
        within_limit(is_at_work.recv()).await.expect("the destructor has the other side");

        let mut drain = pin!(handle.drain(LIMIT));
        assert!(poll!(&mut drain).is_pending(), "in stream {index}");
        assert_eq!(handle.snapshot().open_requests, 1, "in stream {index}");

        go_on.send(()).expect("the destructor has the other side");
        let report = drain.await.expect("everything ends");
        assert_eq!((report.endings.completed, handle.snapshot().refused), (1, 0), "in stream {index}");
    }
}

/// Shows that the test above can see a loss: the same rounds with the recipe that is right for HTTP/1.
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

/// What the handlers of one round tell, and are told.
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

    /// What a handler does as it starts: says so, and records an event, which a house that is closed refuses.
    fn handler_starts(&self, events: Option<&Events>) {
        let Self(state) = self;
        if state.drained.load(Ordering::SeqCst) {
            state.late.fetch_add(1, Ordering::Relaxed);
        }
        // A refusal is counted by the handle.
        let _ = events.expect("the layer is there").track("handler.started", async {});
        state.started.add_permits(1);
    }

    async fn handlers_started(&self, count: u32) {
        within_limit(self.0.started.acquire_many(count)).await.expect("never closed").forget();
    }
}

/// A hundred streams on one connection; as soon as the second handler has started, the client leaves and the server is
/// told to stop. When it has returned, the drain begins, and when that was `Ok`, the handlers are told.
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
    /// By the account of the handlers, once they had been told.
    seen: u64,
    /// By that of the house, which refuses their events from the instant on at which it was closed.
    refused: u64,
}

impl std::ops::AddAssign for Late {
    fn add_assign(&mut self, other: Self) {
        let Self { seen, refused } = other;
        self.seen += seen;
        self.refused += refused;
    }
}

/// Runs some floods side by side. Each is a task, so that its drain begins on a thread that has streams in its queue:
/// from outside of the runtime handlers are late in one round of a hundred at most.
async fn side_by_side<F>(floods: impl Iterator<Item = F>) -> Late
where
    F: Future<Output = Round> + Send + 'static,
{
    let rounds = within_limit(floods.collect::<JoinSet<_>>().join_all()).await;
    // A handler that is late gets its chance, so that it is seen.
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
            refused: u64::from(handle.snapshot().refused > 0),
        };
    }
    late
}

/// So many floods at once keep the threads busy: a stream that was spawned waits longer for its turn.
const SIDE_BY_SIDE: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_handler_starts_after_drain_is_ok() {
    // The settle time is a bet on how long a stream that was spawned waits for its turn. Twenty floods at once, on cores
    // that are busy with something else, win it now and then, even against ten times the time.
    const A_FEW: usize = 5;
    for batch in 0..1_000 / A_FEW {
        let late = side_by_side((0..A_FEW).map(|_| flood_axum(TrackEventsHandle::new()))).await;
        assert_eq!(late, Late::default(), "batch {batch}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_handler_starts_after_drain_is_ok_on_its_executor_without_settling() {
    for batch in 0..1_000 / SIDE_BY_SIDE {
        let floods = (0..SIDE_BY_SIDE).map(|_| {
            let handle = unsettled();
            let executor = handle.executor(TokioExecutor::new());
            flood_hyper(handle, executor)
        });
        assert_eq!(side_by_side(floods).await, Late::default(), "batch {batch}");
    }
}

/// The control of the two tests above: when nothing keeps a handler from being late, it is in about every third round.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handlers_start_after_a_drain_that_does_not_settle() {
    let (mut axum, mut hyper) = (Late::default(), Late::default());
    for _ in 0..200 / SIDE_BY_SIDE {
        axum += side_by_side((0..SIDE_BY_SIDE).map(|_| flood_axum(unsettled()))).await;
        hyper += side_by_side((0..SIDE_BY_SIDE).map(|_| flood_hyper(unsettled(), TokioExecutor::new()))).await;
    }
    eprintln!("of 200 rounds each, on axum: {axum:?}, on hyper-util: {hyper:?}");
    assert!(axum.seen > 0 && axum.refused > 0 && hyper.seen > 0 && hyper.refused > 0);
}

/// Holds its tasks back until it is told to let them go.
#[derive(Clone)]
struct HoldsBack {
    spawned: Arc<Semaphore>,
    may_begin: Arc<Semaphore>,
}

impl HoldsBack {
    fn new() -> Self {
        Self { spawned: Arc::new(Semaphore::new(0)), may_begin: Arc::new(Semaphore::new(0)) }
    }

    /// Three streams whose tasks have not begun when the client has left and the server has returned.
    async fn leave_before_the_streams_begin(&self, server: Server) {
        let client = Http2::send(server.address, 3).await;
        within_limit(self.spawned.acquire_many(3)).await.expect("never closed").forget();
        client.leave().await;
        server.stop().await;
    }

    fn let_go(&self) {
        self.may_begin.add_permits(3);
    }
}

impl<F> Executor<F> for HoldsBack
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        let may_begin = Arc::clone(&self.may_begin);
        tokio::spawn(async move {
            may_begin.acquire().await.expect("never closed").forget();
            future.await;
        });
        self.spawned.add_permits(1);
    }
}

#[tokio::test]
async fn a_drain_waits_for_a_stream_of_its_executor_that_has_not_begun() {
    let (handle, witness, streams) = (unsettled(), Witness::new(), HoldsBack::new());
    let server = Server::hyper(witness.service(&handle), handle.executor(streams.clone())).await;
    streams.leave_before_the_streams_begin(server).await;

    let mut drain = pin!(handle.drain(LIMIT));
    assert!(poll!(&mut drain).is_pending());
    let now = handle.snapshot();
    assert_eq!((now.open_requests, now.open_guards), (0, 3));

    streams.let_go();
    let report = drain.await.expect("the streams end, since the client has left");
    assert_eq!((report.endings.completed, handle.snapshot().refused), (3, 0));
}

/// Drops its tasks at once.
struct DropsTasks;

impl<F> Executor<F> for DropsTasks {
    fn execute(&self, _future: F) {}
}

#[test]
fn a_task_of_its_executor_is_guarded_until_it_has_been_dropped() {
    let handle = unsettled();
    let (sender, open_guards) = std::sync::mpsc::channel();
    let in_destructor = OnDrop::new({
        let handle = handle.clone();
        move || sender.send(handle.snapshot().open_guards).expect("the test has the other side")
    });
    handle.executor(DropsTasks).execute(async move { drop(in_destructor) });
    assert_eq!((open_guards.try_iter().collect(), handle.snapshot().open_guards), (vec![1], 0));
}

/// The control of the test above, and the reason for the settle time.
#[tokio::test]
async fn a_drain_does_not_know_of_a_stream_of_another_executor_that_has_not_begun() {
    let (handle, witness, streams) = (unsettled(), Witness::new(), HoldsBack::new());
    let server = Server::hyper(witness.service(&handle), streams.clone()).await;
    streams.leave_before_the_streams_begin(server).await;

    handle.drain(LIMIT).await.expect("nothing is open that the drain could know of");
    streams.let_go();
    witness.handlers_started(3).await;
    assert_eq!((handle.snapshot().accepted, handle.snapshot().refused), (0, 3));
}

// How hyper ends a response, and what the layer makes of it

/// A server whose exchanges are observed by an event of its layer.
struct Observed {
    server: Server,
    handle: TrackEventsHandle,
    exchanges: mpsc::UnboundedReceiver<Exchange>,
}

impl Observed {
    fn layer() -> (TrackEventsLayer, mpsc::UnboundedReceiver<Exchange>) {
        let (sender, exchanges) = mpsc::unbounded_channel();
        let layer = TrackEventsLayer::builder(unsettled())
            .track("observed", move |_request| {
                let sender = sender.clone();
                async move |exchange: Exchange| sender.send(exchange)
            })
            .build();
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

    /// Waits for the exchange, and ends the server to see that there was no other and that it was told once.
    async fn only_exchange(mut self) -> Facts {
        let exchange = within_limit(self.exchanges.recv()).await.expect("the server has the other side");
        self.server.stop().await;
        let report = self.handle.drain(LIMIT).await.expect("nothing is left open");
        assert_eq!((report.endings.completed, report.endings.total()), (1, 1));
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

/// A body of these frames that says nothing about its length.
fn streamed(frames: Frames) -> impl http_body::Body<Data = Bytes, Error = Infallible> + Send + 'static {
    StreamBody::new(stream::iter(frames))
}

/// A body of one frame, `hello`, that then waits for ever.
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
async fn http2_trailers_complete_the_response_and_tell_the_grpc_status() {
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

/// hyper never polls the body, whose end is not in sight.
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

/// hyper gives the connection up, maybe before it has sent anything.
#[tokio::test]
async fn http1_stream_that_ends_before_its_declared_length_is_a_mismatch() {
    let observed = Observed::hyper(async || with_content_length(11, streamed(frames(&["hello"])))).await;
    read_all(http1(observed.server.address, "GET").await).await;
    assert_eq!(observed.only_exchange().await, Facts::ok(Outcome::LengthMismatch, 5));
}

/// hyper cuts the frame, so the client sees a response that looks right.
#[tokio::test]
async fn http1_frame_beyond_the_declared_length_is_a_mismatch() {
    let observed = Observed::hyper(async || with_content_length(5, streamed(frames(&["hello world"])))).await;
    let text = read_all(http1(observed.server.address, "GET").await).await;
    assert!(text.ends_with("\r\n\r\nhello"), "{text}");
    assert_eq!(observed.only_exchange().await, Facts::ok(Outcome::LengthMismatch, 11));
}

/// hyper does not ask for what would come after the declared length, so nobody can know of it.
#[tokio::test]
async fn http1_frames_after_the_declared_length_are_not_asked_for() {
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
        assert_ne!(within_limit(socket.read_buf(&mut text)).await.expect("no error"), 0, "the server goes on");
    }

    drop(socket);
    assert_eq!(observed.only_exchange().await, Facts::ok(Outcome::Aborted, 5));
}
