//! The servers, each with the layer at its usual position.

use std::{convert::Infallible, io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::{BoxError, Router, body::Body, routing::any_service};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, oneshot},
    task::JoinHandle,
};
use tower::{Layer, Service, ServiceExt, make::Shared, service_fn, util::BoxCloneSyncService};
use tower_http::{catch_panic::CatchPanicLayer, compression::CompressionLayer, cors::CorsLayer, timeout::TimeoutLayer};
use tower_track_events::TrackEventsLayer;

use super::answers::Answer;

#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(clippy::enum_variant_names, reason = "axum-server is the name of a crate")]
pub(super) enum Server {
    Hyper,
    AxumLayer,
    AxumRouteLayer,
    AxumAround,
    AxumServer,
}

pub(super) const SERVERS: [Server; 5] =
    [Server::Hyper, Server::AxumLayer, Server::AxumRouteLayer, Server::AxumAround, Server::AxumServer];

/// The middleware around or inside of the layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Stack {
    Plain,
    /// It is outside of the layer.
    Outside(Middle),
    /// It is inside of the layer.
    Inside(Middle),
}

/// A middleware of tower-http.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Middle {
    CatchPanic,
    Compression,
    Cors,
    Timeout,
}

/// The cases with a timeout reach it: their handlers never answer.
const TIMEOUT: Duration = Duration::from_millis(5);

fn timeout() -> TimeoutLayer {
    TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, TIMEOUT)
}

/// The longest that axum-server waits for connections. No case needs it.
const GRACE: Duration = Duration::from_secs(20);

pub(super) struct Running {
    pub(super) address: SocketAddr,
    stop: oneshot::Sender<()>,
    returned: JoinHandle<()>,
}

impl Running {
    pub(super) fn new(address: SocketAddr, stop: oneshot::Sender<()>, returned: JoinHandle<()>) -> Self {
        Self { address, stop, returned }
    }

    /// Stops the server.
    pub(super) fn stop(self) -> JoinHandle<()> {
        self.stop.send(()).expect("the server runs until it is stopped");
        self.returned
    }
}

/// The application that the servers run.
#[derive(Clone)]
pub(super) struct App {
    pub(super) answer: Answer,
    pub(super) stack: Stack,
    pub(super) layer: Option<TrackEventsLayer>,
    pub(super) started: Arc<Semaphore>,
}

impl Server {
    pub(super) fn description(self) -> &'static str {
        match self {
            Self::Hyper => "`Hyper`: hyper-util's `auto`, the layer around a service",
            Self::AxumLayer => "`AxumLayer`: `axum::serve`, `Router::layer`",
            Self::AxumRouteLayer => "`AxumRouteLayer`: `axum::serve`, `Router::route_layer`",
            Self::AxumAround => "`AxumAround`: `axum::serve`, the layer around the router",
            Self::AxumServer => "`AxumServer`: axum-server with a grace limit, `Router::layer`",
        }
    }

    pub(super) async fn start(self, app: App) -> Running {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound listener has an address");
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async { drop(stopped.await) };
        let returned = match self {
            Self::Hyper => tokio::spawn(hyper(listener, app.service(), stopped)),
            Self::AxumLayer => tokio::spawn(axum(listener, app.router(Router::layer), stopped)),
            Self::AxumRouteLayer => tokio::spawn(axum(listener, app.router(Router::route_layer), stopped)),
            Self::AxumAround => {
                let server = axum::serve(listener, Shared::new(app.around_router()));
                let server = server.with_graceful_shutdown(stopped);
                tokio::spawn(async { server.await.expect("axum::serve does not fail") })
            }
            Self::AxumServer => tokio::spawn(axum_server(listener, app.router(Router::layer), stopped)),
        };
        Running::new(address, stop, returned)
    }
}

async fn hyper(listener: TcpListener, service: Boxed, stopped: impl Future<Output = ()>) {
    let service = service.map_request(|request: Request<Incoming>| request.map(Body::new));
    let service = TowerToHyperService::new(service);
    let graceful = GracefulShutdown::new();
    let mut stopped = pin!(stopped);
    loop {
        let socket = tokio::select! {
            accepted = listener.accept() => TokioIo::new(accepted.expect("loopback accepts").0),
            () = &mut stopped => break,
        };
        let (service, watcher) = (service.clone(), graceful.watcher());
        tokio::spawn(async move {
            let server = auto::Builder::new(TokioExecutor::new());
            // Some cases close the connection, so errors are expected.
            let _ = watcher.watch(server.serve_connection_with_upgrades(socket, service)).await;
        });
    }
    drop(listener);
    graceful.shutdown().await;
}

async fn axum(listener: TcpListener, router: Router, stopped: impl Future<Output = ()> + Send + 'static) {
    axum::serve(listener, router).with_graceful_shutdown(stopped).await.expect("axum::serve does not fail");
}

async fn axum_server(listener: TcpListener, router: Router, stopped: impl Future<Output = ()>) {
    let handle = axum_server::Handle::new();
    let listener = listener.into_std().expect("tokio lets the listener go");
    let server = axum_server::from_tcp(listener).expect("a listener").handle(handle.clone());
    let stop = async {
        stopped.await;
        handle.graceful_shutdown(Some(GRACE));
    };
    tokio::join!(stop, async { server.serve(router.into_make_service()).await.expect("axum-server does not fail") });
}

/// A service without its type, and a body without its own.
type Boxed = BoxCloneSyncService<Request<Body>, Response<Body>, io::Error>;

fn boxed<S, B>(service: S) -> Boxed
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    BoxCloneSyncService::new(service.map_response(|response| response.map(Body::new)).map_err(io::Error::other))
}

impl App {
    fn service(self) -> Boxed {
        let Self { answer, stack, layer, started } = self;
        let service = boxed(service_fn(move |request| {
            let started = Arc::clone(&started);
            async move { answer.give(&started, request).await }
        }));
        stack.around_service(service, layer)
    }

    fn router(self, put: fn(Router, TrackEventsLayer) -> Router) -> Router {
        let layer = self.layer.clone();
        let track = |router| match layer {
            Some(layer) => put(router, layer),
            None => router,
        };
        let stack = self.stack;
        let router = self.bare_router();
        match stack {
            Stack::Plain => track(router),
            Stack::Outside(middle) => middle.around_router(track(router)),
            Stack::Inside(middle) => track(middle.around_router(router)),
        }
    }

    fn around_router(self) -> BoxCloneSyncService<Request<Body>, Response<Body>, Infallible> {
        let (layer, stack) = (self.layer.clone(), self.stack);
        let router = boxed(self.bare_router());
        let service = stack.around_service(router, layer);
        BoxCloneSyncService::new(service.map_err(|error| unreachable!("nothing in this stack fails: {error}")))
    }

    fn bare_router(self) -> Router {
        let Self { answer, started, .. } = self;
        Router::new().route(
            "/{*path}",
            any_service(service_fn(move |request| {
                let started = Arc::clone(&started);
                async move {
                    let response = answer.give(&started, request).await;
                    Ok::<_, Infallible>(response.expect("a case with a service that fails is not for routers"))
                }
            })),
        )
    }
}

impl Stack {
    fn around_service(self, service: Boxed, layer: Option<TrackEventsLayer>) -> Boxed {
        let track = |service| match layer {
            Some(layer) => boxed(layer.layer(service)),
            None => service,
        };
        match self {
            Self::Plain => track(service),
            Self::Outside(middle) => middle.around_service(track(service)),
            Self::Inside(middle) => track(middle.around_service(service)),
        }
    }
}

impl Middle {
    fn around_service(self, service: Boxed) -> Boxed {
        match self {
            Self::CatchPanic => boxed(CatchPanicLayer::new().layer(service)),
            Self::Compression => boxed(CompressionLayer::new().layer(service)),
            Self::Cors => boxed(CorsLayer::permissive().layer(service)),
            Self::Timeout => boxed(timeout().layer(service)),
        }
    }

    fn around_router(self, router: Router) -> Router {
        match self {
            Self::CatchPanic => router.layer(CatchPanicLayer::new()),
            Self::Compression => router.layer(CompressionLayer::new()),
            Self::Cors => router.layer(CorsLayer::permissive()),
            Self::Timeout => router.layer(timeout()),
        }
    }
}
