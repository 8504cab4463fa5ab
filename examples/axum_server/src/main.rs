//! An axum application on axum-server, which has a time limit of its own and closes connections then.
//!
//! ```text
//! cargo run -p axum-server-example
//! curl http://127.0.0.1:3000/
//! curl --http2-prior-knowledge http://127.0.0.1:3000/slow
//! curl -N http://127.0.0.1:3000/ticker
//! curl --data-binary @Cargo.toml http://127.0.0.1:3000/upload
//! ```
//!
//! It audits each response by a line on standard output. These variables change it: `ADDR`, where it listens;
//! `EVENT_DELAY_MS`, how slow the audit is; `DRAIN_LIMIT_MS`, the limit of the shutdown.

use std::{
    convert::Infallible, env, fmt::Display, io, io::Write, net::SocketAddr, net::TcpListener, process, str::FromStr,
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{StatusCode, request::Parts},
    response::sse::{Event, Sse},
    routing::{get, post},
};
use futures_util::{Stream, StreamExt};
use tokio::time::{Instant, interval, sleep};
use tokio_stream::wrappers::IntervalStream;
use tower_track_events::{Exchange, RequestInfo, Stop, TrackEventsHandle, TrackEventsLayer};

#[tokio::main]
async fn main() {
    tracing_subscriber::fmt().with_writer(io::stderr).init();
    let limit = Duration::from_millis(setting("DRAIN_LIMIT_MS", 5000));
    let handle = TrackEventsHandle::new();
    let shutdown = handle.shutdown().limit(limit).readiness_delay(limit / 10);
    shutdown.serve(|stop| serve(router(handle), stop)).await.exit()
}

async fn serve(router: Router, stop: Stop) -> io::Result<()> {
    let listener = TcpListener::bind(setting("ADDR", SocketAddr::from(([127, 0, 0, 1], 3000))))?;
    listener.set_nonblocking(true)?;
    writeln!(io::stdout(), "listening on http://{}", listener.local_addr()?)?;
    let connections = axum_server::Handle::new();
    let server = axum_server::from_tcp(listener)?.handle(connections.clone()).serve(router.into_make_service());
    tokio::spawn(async move {
        stop.clone().await;
        // Connections that are open at the deadline are closed. Their exchanges end as aborted, and have their events.
        connections.graceful_shutdown(stop.deadline().map(|deadline| deadline - Instant::now()));
    });
    server.await
}

fn router(handle: TrackEventsHandle) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/slow", get(slow))
        .route("/ticker", get(ticker))
        .route("/upload", post(async |body: Bytes| format!("{} bytes", body.len())))
        .fallback(async || "hello")
        .layer(audited(handle.clone()))
        .with_state(handle)
}

async fn healthz(State(handle): State<TrackEventsHandle>) -> (StatusCode, &'static str) {
    if handle.is_draining() { (StatusCode::SERVICE_UNAVAILABLE, "draining") } else { (StatusCode::OK, "ok") }
}

async fn slow() -> &'static str {
    sleep(Duration::from_secs(1)).await;
    "slow"
}

/// An endless stream, which ends when the drain begins: its connection would be closed otherwise.
async fn ticker(State(handle): State<TrackEventsHandle>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let ticks = IntervalStream::new(interval(Duration::from_secs(1)));
    Sse::new(ticks.map(|_| Ok(Event::default().data("tick"))).take_until(handle.draining()))
}

/// Writes a line to standard output after each response, except to a probe.
fn audited(handle: TrackEventsHandle) -> TrackEventsLayer {
    let delay = Duration::from_millis(setting("EVENT_DELAY_MS", 1));
    let no_probe = |request: &Parts| request.uri.path() != "/healthz";
    let audit = move |Exchange { request, status, outcome, body_bytes, .. }: Exchange| async move {
        sleep(delay).await;
        let RequestInfo { method, uri, .. } = request.expect("it is kept for hooks");
        let (path, status) = (uri.path(), status.map_or("-".to_owned(), |status| status.as_u16().to_string()));
        // An `Err` is logged, counted, and in the report.
        writeln!(io::stdout(), "audit {method} {path} {status} {outcome} {body_bytes} bytes")
    };
    TrackEventsLayer::new(handle).track_when("audit", no_probe, audit)
}

/// Reads a setting, or ends the process if it makes no sense.
fn setting<T: FromStr<Err: Display>>(name: &str, default: T) -> T {
    let Some(value) = env::var_os(name) else { return default };
    let value = value.to_string_lossy();
    value.parse().unwrap_or_else(|error| {
        eprintln!("{name}={value}: {error}");
        process::exit(2)
    })
}
