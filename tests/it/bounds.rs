//! The traits of the public types, and that their bounds are minimal.

use std::{
    cell::Cell, convert::Infallible, error::Error, fmt, future::pending, io::Cursor, marker::PhantomPinned, pin::Pin,
    rc::Rc, sync::MutexGuard, task, time::Duration,
};

use axum::{
    Router, ServiceExt as AxumServiceExt,
    response::IntoResponse,
    routing::{get, get_service},
};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{Empty, Full};
use hyper::{
    body::Incoming,
    rt::Executor,
    server::conn::{http1, http2},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use static_assertions::{assert_impl_all as is, assert_not_impl_any as is_not, assert_type_eq_all as same};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    net::TcpListener,
    sync::oneshot,
    task::{LocalSet, spawn_local},
};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_http::{
    catch_panic::CatchPanicLayer, compression::CompressionLayer, cors::CorsLayer, services::ServeDir,
    timeout::TimeoutLayer,
};
use tower_track_events::{
    Drain, DrainError, DrainGuard, DrainReport, Events, Exchange, OpenItem, Outcome, Permit, ResponseBody,
    ResponseFuture, Snapshot, TrackError, TrackEvents, TrackEventsHandle, TrackEventsLayer,
};

use crate::support::drain;

is!(TrackEventsHandle: Clone, std::fmt::Debug, Send, Sync, Unpin);
// With a `Default`, a second handle could be made by accident, whose drain waits for nothing.
is_not!(TrackEventsHandle: Default);
is!(TrackEventsLayer: Clone, std::fmt::Debug, Send, Sync, Unpin);
is!(Events: Clone, std::fmt::Debug, Send, Sync, Unpin);
is!(Permit: std::fmt::Debug, Send, Sync, Unpin);
is!(DrainGuard: std::fmt::Debug, Send, Sync, Unpin);
// Each has one slot or keeps one drain waiting.
is_not!(Permit: Clone);
is_not!(DrainGuard: Clone);
is!(Drain: std::fmt::Debug, Send, Unpin);
is!(DrainReport: Clone, std::fmt::Display, Send, Sync);
is!(DrainError: std::error::Error, Clone, Send, Sync);
is!(OpenItem: Clone, std::fmt::Display);
is!(Exchange: Clone, Send, Sync, Unpin);
is!(Outcome: Copy, std::fmt::Display);
is!(Snapshot: Copy, Default, PartialEq);
is!(TrackError: std::error::Error, Copy, Send, Sync);

// A wrapper has the auto traits of its inner part, and no others.

/// A part that owns a `T`.
struct Owns<T>(Option<T>);

impl<T> Body for Owns<T> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut task::Context<'_>,
    ) -> task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        task::Poll::Ready(None)
    }
}

type NotSend = Owns<MutexGuard<'static, ()>>;
type NotSync = Owns<Cell<()>>;
type NotUnpin = Owns<PhantomPinned>;
is!(NotSend: Sync, Unpin);
is!(NotSync: Send, Unpin);
is!(NotUnpin: Send, Sync);

is!(TrackEvents<NotSend>: Sync, Unpin);
is!(TrackEvents<NotSync>: Send, Unpin);
is!(TrackEvents<NotUnpin>: Send, Sync);
is_not!(TrackEvents<NotSend>: Send);
is_not!(TrackEvents<NotSync>: Sync);
is_not!(TrackEvents<NotUnpin>: Unpin);
is_not!(TrackEvents<NotSend>: Clone, fmt::Debug);

is!(ResponseFuture<NotSend>: Sync, Unpin, fmt::Debug);
is!(ResponseFuture<NotSync>: Send, Unpin);
is!(ResponseFuture<NotUnpin>: Send, Sync);
is_not!(ResponseFuture<NotSend>: Send);
is_not!(ResponseFuture<NotSync>: Sync);
is_not!(ResponseFuture<NotUnpin>: Unpin);

is!(ResponseBody<NotSend>: Sync, Unpin);
is!(ResponseBody<NotSync>: Send, Unpin);
is!(ResponseBody<NotUnpin>: Send, Sync);
is_not!(ResponseBody<NotSend>: Send, Default, fmt::Debug);
is_not!(ResponseBody<NotSync>: Sync);
is_not!(ResponseBody<NotUnpin>: Unpin);
is!(ResponseBody<Empty<Rc8>>: Default, fmt::Debug);

/// Bytes that stay on their thread.
type Rc8 = Cursor<Rc<[u8]>>;

fn is_send<T: Send>() {}
fn is_sync<T: Sync>() {}
fn is_unpin<T: Unpin>() {}
fn is_clone<T: Clone>() {}
fn is_default<T: Default>() {}
fn is_debug<T: fmt::Debug>() {}

/// The only bounds on the service: nothing has to be `'static` or `Send`.
fn serves<S, A, B>(service: TrackEvents<S>) -> impl Service<Request<A>, Response = Response<ResponseBody<B>>>
where
    S: Service<Request<A>, Response = Response<B>>,
    B: Body,
{
    service
}

#[test]
fn wrappers_have_the_traits_of_their_inner_parts() {
    fn of_a_service<S: Send + Sync + Unpin + Clone + fmt::Debug>() {
        is_send::<TrackEvents<S>>();
        is_sync::<TrackEvents<S>>();
        is_unpin::<TrackEvents<S>>();
        is_clone::<TrackEvents<S>>();
        is_debug::<TrackEvents<S>>();
    }
    fn of_a_future<F: Send + Sync + Unpin>() {
        is_send::<ResponseFuture<F>>();
        is_sync::<ResponseFuture<F>>();
        is_unpin::<ResponseFuture<F>>();
    }
    fn of_a_body<B: Body + Send + Sync + Unpin + Default + fmt::Debug>() {
        is_send::<ResponseBody<B>>();
        is_sync::<ResponseBody<B>>();
        is_unpin::<ResponseBody<B>>();
        is_default::<ResponseBody<B>>();
        is_debug::<ResponseBody<B>>();
    }
    of_a_service::<()>();
    of_a_future::<()>();
    of_a_body::<Full<Bytes>>();
}

#[tokio::test]
async fn a_service_may_borrow_and_its_parts_may_stay_on_their_thread() {
    let (layer, handle) = TrackEventsLayer::pair();
    let calls = Cell::new(0);
    let service = serves(layer.layer(service_fn(|request: Request<Rc<()>>| {
        calls.set(calls.get() + Rc::strong_count(request.body()));
        let body = Full::new(Cursor::new(Rc::<[u8]>::from(*b"hello")));
        async move { Ok::<_, Rc<str>>(Response::new(body)) }
    })));
    drop(service.oneshot(Request::new(Rc::new(()))).await);
    assert_eq!(calls.get(), 1);
    drain(&handle).await;
}

#[test]
fn futures_of_a_handle_are_static_and_send() {
    fn is_static_and_send<T: Send + 'static>(_: &T) {}
    let handle = TrackEventsHandle::new();
    let (draining, drain, until) =
        (handle.draining(), handle.drain(Duration::ZERO), handle.drain_until(pending::<()>()));
    drop(handle);
    is_static_and_send(&draining);
    is_static_and_send(&drain);
    is_static_and_send(&until);
}

// Servers and middleware: it is enough that these tests compile.

/// A service with the traits that hyper, axum-server and tonic require.
#[derive(Clone, Debug)]
struct Hello;

impl<A> Service<Request<A>> for Hello {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> task::Poll<Result<(), Infallible>> {
        task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<A>) -> Self::Future {
        std::future::ready(Ok(Response::new(Full::from("hello"))))
    }
}

// Errors are those of the inner service and body, so that these decide which bounds of a server they meet.
same!(<TrackEvents<Hello> as Service<Request<()>>>::Error, <Hello as Service<Request<()>>>::Error);
same!(<ResponseBody<Full<Bytes>> as Body>::Error, <Full<Bytes> as Body>::Error);
same!(<ResponseBody<Full<Rc8>> as Body>::Data, Rc8);

fn layer() -> TrackEventsLayer {
    TrackEventsLayer::new(TrackEventsHandle::new())
}

async fn loopback() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port")
}

#[tokio::test]
async fn axum_accepts_the_layer_everywhere() {
    let method = get(|| async { "hello" }).layer(layer());
    let app: Router = Router::new()
        .route("/method", method)
        .route("/service", get_service(layer().layer(Hello)))
        .nest_service("/nested", layer().layer(ServeDir::new(".")))
        .route_layer(layer())
        .fallback_service(layer().layer(Hello))
        .layer(layer());
    let app = app.layer((layer(), TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, Duration::MAX)));
    drop(axum::serve(loopback().await, app.clone()).into_future());
    drop(axum::serve(loopback().await, app).with_graceful_shutdown(pending()).into_future());
}

#[tokio::test]
async fn axum_serves_a_router_inside_of_the_layer_once_its_body_is_axums_again() {
    let around = ServiceBuilder::new().map_response(IntoResponse::into_response).layer(layer()).service(Router::new());
    let make = AxumServiceExt::<axum::extract::Request>::into_make_service(around);
    drop(axum::serve(loopback().await, make).with_graceful_shutdown(pending()).into_future());
}

fn is_send_future(future: impl Future + Send + 'static) {
    drop(future);
}

#[test]
fn hyper_util_accepts_the_service_for_both_protocols() {
    let io = || TokioIo::new(duplex(1).0);
    let service = || TowerToHyperService::new(layer().layer(Hello));
    let handle = TrackEventsHandle::new();
    let auto = auto::Builder::new(TokioExecutor::new());
    is_send_future(auto.clone().serve_connection(io(), service()).into_owned());
    is_send_future(auto.serve_connection_with_upgrades(io(), service()).into_owned());
    is_send_future(
        auto::Builder::new(handle.executor(TokioExecutor::new())).serve_connection(io(), service()).into_owned(),
    );
    is_send_future(http1::Builder::new().serve_connection(io(), service()));
    is_send_future(http2::Builder::new(TokioExecutor::new()).serve_connection(io(), service()));
}

#[test]
fn tower_https_layers_fit_inside_and_outside_without_a_framework() {
    fn is_served<S, B>(service: S)
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible, Future: Send> + Clone + Send,
        S: 'static,
        B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
    {
        let service = TowerToHyperService::new(service);
        is_send_future(http1::Builder::new().serve_connection(TokioIo::new(duplex(1).0), service));
    }
    let timeout = || TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, Duration::MAX);
    // The first two answer with a body of their own, which they take from `Default`.
    is_served(timeout().layer(layer().layer(Hello)));
    is_served(CorsLayer::permissive().layer(layer().layer(Hello)));
    is_served(CatchPanicLayer::new().layer(layer().layer(Hello)));
    is_served(CompressionLayer::new().layer(layer().layer(Hello)));
    is_served(layer().layer(timeout().layer(Hello)));
    is_served(layer().layer(CorsLayer::permissive().layer(Hello)));
    is_served(layer().layer(CatchPanicLayer::new().layer(Hello)));
    is_served(layer().layer(CompressionLayer::new().layer(Hello)));
    is_served(layer().layer(layer().layer(Hello)));
    is_served(layer().layer(ServeDir::new(".")));
}

/// The bounds of `run` and `run_with_streaming_response` of lambda_http 0.17 on a service and its body, combined.
fn lambda_http_accepts<S, B>(_: S)
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>>,
    S::Future: Send,
    S::Error: fmt::Debug,
    B: Body + Send + Unpin + 'static,
    B::Data: Into<Bytes> + Send,
    B::Error: Into<Box<dyn Error + Send + Sync>> + Send + fmt::Debug,
{
}

/// The bounds of `compat` of salvo_extra (the feature `tower-compat` of salvo) on a service and on a layer's.
fn salvo_accepts<S, B>(_: S)
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    S::Error: Error + Send + Sync + 'static,
    B: Body + Send + Sync + 'static,
    B::Data: Into<Bytes> + Send + fmt::Debug + 'static,
    B::Error: Error + Send + Sync + 'static,
{
}

#[test]
fn lambda_http_and_salvo_accept_the_service() {
    lambda_http_accepts(layer().layer(Hello));
    salvo_accepts(layer().layer(Hello));
    fn layer_of_salvo(_: impl Layer<Hello, Service = TrackEvents<Hello>> + Send + Sync + 'static) {}
    layer_of_salvo(layer());
}

// A server on one thread, for services that stay there.

/// Spawns futures that need not be `Send`.
#[derive(Clone)]
struct LocalExecutor;

impl<F: Future<Output = ()> + 'static> Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        spawn_local(future);
    }
}

/// Its body stays on its thread.
type LocalResponse = Response<Full<Rc8>>;

/// A service that stays on its thread, like its future and its body; its event is `Send`.
fn local_service(
    ran: oneshot::Sender<&'static str>,
) -> impl Service<Request<Incoming>, Response = LocalResponse, Error = Infallible, Future: 'static> + Clone + 'static {
    let ran = Rc::new(Cell::new(Some(ran)));
    service_fn(move |request: Request<Incoming>| {
        let ran = Rc::clone(&ran);
        async move {
            let ran = ran.take().expect("one request");
            let event = async { ran.send("audit").expect("the test waits for the event") };
            Events::from_extensions(request.extensions()).expect("the layer is there").track("audit", event).unwrap();
            Ok(Response::new(Full::new(Cursor::new(Rc::from(*b"hello")))))
        }
    })
}

#[tokio::test]
async fn a_service_that_is_not_send_is_served_on_one_thread_over_http1() {
    let (layer, handle) = TrackEventsLayer::pair();
    let (ran, event) = oneshot::channel();
    let service = layer.layer(local_service(ran));
    let local = async {
        let (mut client, server) = duplex(1024);
        spawn_local(http1::Builder::new().serve_connection(TokioIo::new(server), TowerToHyperService::new(service)));
        client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"), "{answer}");
        assert_eq!(event.await, Ok("audit"));
    };
    LocalSet::new().run_until(local).await;
    assert_eq!(drain(&handle).await.ended.completed, 1);
}

#[tokio::test]
async fn a_service_that_is_not_send_is_served_on_one_thread_over_http2() {
    let (layer, handle) = TrackEventsLayer::pair();
    let (ran, event) = oneshot::channel();
    let service = layer.layer(local_service(ran));
    let executor = handle.executor(LocalExecutor);
    let local = async {
        let (client, server) = duplex(1024);
        let service = TowerToHyperService::new(service);
        spawn_local(http2::Builder::new(executor).serve_connection(TokioIo::new(server), service));
        let (mut client, connection) = h2::client::handshake(client).await.unwrap();
        spawn_local(connection);
        let (response, _) = client.send_request(Request::get("http://a/").body(()).unwrap(), true).unwrap();
        let mut body = response.await.unwrap().into_body();
        assert_eq!(body.data().await.unwrap().unwrap(), "hello");
        assert_eq!(event.await, Ok("audit"));
        drop((body, client));
    };
    let local_set = LocalSet::new();
    local_set.run_until(local).await;
    local_set.await;
    assert_eq!(drain(&handle).await.ended.completed, 1);
}
