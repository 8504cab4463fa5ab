//! The process that serves: each of four servers with the same routes, stopped by `handle.shutdown()`.

use std::{
    convert::Infallible,
    env,
    future::{pending, poll_fn},
    io::{self, Write},
    task::Poll,
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Path, State, WebSocketUpgrade, ws::Message},
    http::StatusCode,
    response::{
        IntoResponse,
        sse::{Event, Sse},
    },
    routing::{get, post},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::Request;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use serde::{Deserialize, Serialize};
use tokio::{
    net::TcpListener,
    select,
    time::{Instant, interval, sleep},
};
use tonic::transport::server::TcpIncoming;
use tower::{ServiceExt, service_fn};
use tower_track_events::{Batch, Events, Exchange, Stop, TrackEventsHandle, TrackEventsLayer};

/// The environment variable with the settings of a process.
pub(super) const SETTINGS: &str = "SHUTDOWN_CASE";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Framework {
    Axum,
    Hyper,
    AxumServer,
    Tonic,
}

pub(super) const SERVERS: [Framework; 4] = [Framework::Axum, Framework::Hyper, Framework::AxumServer, Framework::Tonic];

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Settings {
    pub(super) server: Framework,
    /// In milliseconds, as the other times.
    pub(super) limit: u64,
    pub(super) delay: u64,
    pub(super) server_limit: Option<u64>,
    pub(super) capacity: usize,
    pub(super) extra: Extra,
}

/// What the process does besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Extra {
    Nothing,
    /// An event that takes a second.
    SlowEvent,
    /// An event that never ends.
    StuckEvent,
    /// An event that has failed before anything is served.
    FailedBefore,
    /// A task tracks an event every 50 ms.
    Heartbeat,
    /// A task sends a value every millisecond to a sink that takes 30 for a batch.
    Producer,
    OnSignalPanics,
    OnSignalHangs,
    FlushHangs,
    /// The port is that of another process.
    PortTaken(u16),
    /// The server ends at once, with an event pending.
    EndsByItself,
    /// Another port answers readiness probes, in a task, and a third serves gRPC.
    AdminPort,
    /// The servers are those of a second handle, whose shutdown is inside the first.
    TwoHandles,
    CurrentThread,
    NoIoDriver,
    /// It does not exit when the shutdown is over.
    StaysAfterwards,
}

#[test]
#[ignore = "the process of the other tests, which is started by them"]
fn process() {
    // Without settings it is no process of a case: somebody runs all ignored tests.
    let Ok(settings) = env::var(SETTINGS) else { return };
    let settings: Settings = serde_json::from_str(&settings).expect("settings of a case");
    tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(false).log_internal_errors(false).init();
    let mut builder = match settings.extra {
        Extra::CurrentThread | Extra::NoIoDriver => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    if settings.extra != Extra::NoIoDriver {
        builder.enable_io();
    }
    builder.enable_time().build().expect("a runtime").block_on(run(settings))
}

fn print(line: impl AsRef<str>) {
    let mut stdout = io::stdout().lock();
    let _ = writeln!(stdout, "{}", line.as_ref()).and_then(|()| stdout.flush());
}

async fn run(settings: Settings) {
    let Settings { limit, delay, server_limit, capacity, extra, .. } = settings;
    let handle = TrackEventsHandle::builder().capacity(capacity).build().expect("the settings are valid");
    background(extra, &handle).await;
    let mut shutdown =
        handle.shutdown().limit(Duration::from_millis(limit)).readiness_delay(Duration::from_millis(delay));
    if let Some(limit) = server_limit {
        shutdown = shutdown.server_limit(Duration::from_millis(limit));
    }
    let on_signal = poll_fn(move |_| match extra {
        Extra::OnSignalPanics => panic!("cannot deregister"),
        Extra::OnSignalHangs => Poll::Pending,
        _ => Poll::Ready(()),
    });
    let flush = poll_fn(move |_| if extra == Extra::FlushHangs { Poll::Pending } else { Poll::Ready(()) });
    let report = shutdown.on_signal(on_signal).flush(flush).serve(|stop| serve(settings, handle, stop)).await;
    if extra == Extra::StaysAfterwards {
        eprintln!("{report}");
        print("the shutdown is over");
        pending::<()>().await;
    }
    report.exit()
}

async fn background(extra: Extra, handle: &TrackEventsHandle) {
    match extra {
        Extra::SlowEvent => handle.track("slow", sleep(Duration::from_secs(1))).expect("it is accepted"),
        Extra::StuckEvent => handle.track("stuck", pending::<()>()).expect("it is accepted"),
        Extra::FailedBefore => {
            handle.track("early", async { Err::<(), _>("disk full") }).expect("it is accepted");
            handle.wait_idle(Duration::from_secs(5)).await.expect("it ends");
        }
        Extra::Heartbeat => {
            let handle = handle.clone();
            tokio::spawn(async move {
                let mut ticks = interval(Duration::from_millis(50));
                loop {
                    ticks.tick().await;
                    let _ = handle.track("heartbeat", sleep(Duration::from_millis(10)));
                }
            });
        }
        Extra::Producer => {
            let sink = |_: Batch<u32>| async {
                sleep(Duration::from_millis(30)).await;
                Ok::<_, Infallible>(())
            };
            let sender = handle.sink("produced").service(service_fn(sink)).expect("the settings are valid");
            tokio::spawn(async move {
                let mut ticks = interval(Duration::from_millis(1));
                loop {
                    ticks.tick().await;
                    let _ = sender.try_send(1);
                }
            });
        }
        _ => {}
    }
}

async fn serve(
    settings: Settings,
    handle: TrackEventsHandle,
    stop: Stop,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let port = match settings.extra {
        Extra::PortTaken(port) => port,
        _ => 0,
    };
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let listening = format!("listening on {}", listener.local_addr()?);
    match settings.extra {
        Extra::EndsByItself => {
            handle.track("pending", sleep(Duration::from_millis(300)))?;
            print(listening);
            Ok(())
        }
        Extra::AdminPort => {
            let admin = TcpListener::bind("127.0.0.1:0").await?;
            print(format!("admin on {}", admin.local_addr()?));
            let probe = handle.clone();
            let ready =
                async move || if probe.is_draining() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
            tokio::spawn(axum::serve(admin, Router::new().route("/ready", get(ready))).into_future());
            let grpc = TcpListener::bind("127.0.0.1:0").await?;
            print(listening);
            let http = run_server(settings.server, listener, handle.clone(), stop.clone());
            tokio::try_join!(http, run_server(Framework::Tonic, grpc, handle, stop))?;
            Ok(())
        }
        Extra::TwoHandles => {
            let inner = TrackEventsHandle::new();
            inner.track("inner", sleep(Duration::from_millis(300)))?;
            let shutdown = inner.shutdown().signal(stop).limit(Duration::from_millis(settings.limit / 2));
            print(listening);
            let report = shutdown.serve(|stop| run_server(settings.server, listener, inner, stop)).await;
            print(format!("inner: {}", report.to_string().replace('\n', "; ")));
            if report.exit_code() == 0 { Ok(()) } else { Err(report.to_string().into()) }
        }
        _ => {
            print(listening);
            run_server(settings.server, listener, handle, stop).await
        }
    }
}

async fn run_server(
    server: Framework,
    listener: TcpListener,
    handle: TrackEventsHandle,
    mut stop: Stop,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let app = router(handle.clone());
    match server {
        Framework::Axum => axum::serve(listener, app).with_graceful_shutdown(stop).await?,
        Framework::Hyper => {
            let server = auto::Builder::new(handle.executor(TokioExecutor::new()));
            let service = app.map_request(|request: Request<Incoming>| request.map(Body::new));
            let graceful = GracefulShutdown::new();
            loop {
                let (stream, _) = select! {
                    accepted = listener.accept() => accepted?,
                    () = &mut stop => break,
                };
                let (server, service, watcher) = (server.clone(), service.clone(), graceful.watcher());
                tokio::spawn(async move {
                    let service = TowerToHyperService::new(service);
                    let connection = server.serve_connection_with_upgrades(TokioIo::new(stream), service);
                    let _ = watcher.watch(connection.into_owned()).await;
                });
            }
            drop(listener);
            graceful.shutdown().await;
        }
        Framework::AxumServer => {
            let connections = axum_server::Handle::new();
            let server = axum_server::from_tcp(listener.into_std()?)?.handle(connections.clone());
            tokio::spawn(async move {
                stop.clone().await;
                connections.graceful_shutdown(stop.deadline().map(|deadline| deadline - Instant::now()));
            });
            server.serve(app.into_make_service()).await?;
        }
        Framework::Tonic => {
            let server = tonic::transport::Server::builder().add_routes(tonic::service::Routes::from(app));
            server.serve_with_incoming_shutdown(TcpIncoming::from(listener), stop).await?;
        }
    }
    Ok(())
}

fn router(handle: TrackEventsHandle) -> Router {
    Router::new()
        .route("/hello", get(async || "hello"))
        .route("/download/{bytes}", get(download))
        .route("/sse", get(sse))
        .route("/sse-draining", get(sse_draining))
        .route("/socket", get(socket))
        .route("/commit/{milliseconds}", post(commit))
        .route("/last-call", get(last_call))
        .layer(TrackEventsLayer::new(handle.clone()))
        .with_state(handle)
}

/// Both kinds of events of a handler: one that gets the outcome, and one that does not.
fn track_both(events: &Events) -> Result<(), StatusCode> {
    let ran = async || print("ran plain");
    let ran_with = async |exchange: Exchange| print(format!("ran {:?}", exchange.outcome));
    let tracked = events.track("plain", ran()).and_then(|()| events.track_with("facts", ran_with));
    tracked.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)
}

async fn download(events: Events, Path(bytes): Path<usize>) -> Result<Body, StatusCode> {
    const CHUNK: usize = 64 * 1024;
    track_both(&events)?;
    let chunks = stream::repeat_with(|| Ok::<_, Infallible>(Bytes::from_static(&[7; CHUNK]))).take(bytes / CHUNK);
    Ok(Body::from_stream(chunks))
}

fn ticks() -> impl Stream<Item = Result<Event, Infallible>> {
    stream::once(async { Ok(Event::default().data("tick")) }).chain(stream::pending())
}

async fn sse() -> impl IntoResponse {
    Sse::new(ticks())
}

async fn sse_draining(State(handle): State<TrackEventsHandle>) -> impl IntoResponse {
    Sse::new(ticks().take_until(handle.draining()))
}

async fn socket(events: Events, upgrade: WebSocketUpgrade) -> Result<impl IntoResponse, StatusCode> {
    let guard = events.handle().guard().map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    Ok(upgrade.on_upgrade(async move |mut socket| {
        events.handle().draining().await;
        // Longer than a drain that does not wait for it.
        sleep(Duration::from_millis(500)).await;
        let _ = socket.send(Message::Close(None)).await;
        print("closed the socket");
        drop(guard);
    }))
}

async fn commit(events: Events, Path(milliseconds): Path<u64>) -> Result<&'static str, StatusCode> {
    track_both(&events)?;
    print("committing");
    sleep(Duration::from_millis(milliseconds)).await;
    Ok("committed")
}

async fn last_call(State(handle): State<TrackEventsHandle>) -> &'static str {
    handle.make_last_call();
    "made"
}
