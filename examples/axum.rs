//! An axum application with a readiness probe, an endless stream and a WebSocket, which all end when it stops.
//!
//! ```text
//! cargo run --example axum
//! curl http://127.0.0.1:3000/
//! curl -N http://127.0.0.1:3000/ticker
//! websocat ws://127.0.0.1:3000/echo
//! ```
//!
//! It audits each response by a line on standard output. These variables change it: `ADDR`, where it listens;
//! `EVENT_DELAY_MS`, how slow the audit is; `DRAIN_LIMIT_MS`, the limit of the shutdown.

use std::{env, fmt::Display, io, io::Write, net::SocketAddr, process, str::FromStr, time::Duration};

use axum::{
    Router,
    extract::State,
    extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code},
    http::StatusCode,
    response::Response,
    response::sse::{Event, Sse},
    routing::{any, get, post},
};
use futures_util::{Stream, StreamExt};
use tokio::{net::TcpListener, select, time};
use tokio_stream::wrappers::IntervalStream;
use tower_track_events::{Events, Exchange, RequestInfo, TrackEventsHandle, TrackEventsLayer};

#[tokio::main]
async fn main() {
    tracing_subscriber::fmt().with_writer(io::stderr).init();
    let limit = Duration::from_millis(setting("DRAIN_LIMIT_MS", 5000));
    let handle = TrackEventsHandle::new();
    let router = router(handle.clone());
    let serve = async |stop| {
        let listener = TcpListener::bind(setting("ADDR", SocketAddr::from(([127, 0, 0, 1], 3000)))).await?;
        writeln!(io::stdout(), "listening on http://{}", listener.local_addr()?)?;
        axum::serve(listener, router).with_graceful_shutdown(stop).await
    };
    handle.shutdown().limit(limit).readiness_delay(limit / 10).serve(serve).await.exit()
}

fn router(handle: TrackEventsHandle) -> Router {
    Router::new()
        .route("/ticker", get(ticker))
        .route("/echo", any(echo))
        .route("/upload", post(async |body: String| format!("{} bytes", body.len())))
        .fallback(async || "hello")
        .layer(audited(handle.clone()))
        // Behind the layer: probes are not audited.
        .route("/healthz", get(healthz))
        .with_state(handle)
}

async fn healthz(State(handle): State<TrackEventsHandle>) -> (StatusCode, &'static str) {
    if handle.is_draining() { (StatusCode::SERVICE_UNAVAILABLE, "draining") } else { (StatusCode::OK, "ok") }
}

/// An endless stream, which ends when the drain begins: it would keep the server from stopping.
async fn ticker(State(handle): State<TrackEventsHandle>) -> Sse<impl Stream<Item = Result<Event, axum::Error>>> {
    let ticks = IntervalStream::new(time::interval(Duration::from_secs(1)));
    Sse::new(ticks.map(|_| Ok(Event::default().data("tick"))).take_until(handle.draining()))
}

/// A WebSocket is not part of the exchange that opened it, and the server does not wait for it. The guard makes the
/// drain wait for it.
async fn echo(events: Events, upgrade: WebSocketUpgrade) -> axum::response::Result<Response> {
    let guard = events.handle().guard()?;
    Ok(upgrade.on_upgrade(async move |mut socket| {
        select! {
            _ = echo_all(&mut socket) => {}
            _ = events.handle().draining() => say_goodbye(&mut socket).await,
        }
        drop(socket);
        drop(guard);
    }))
}

async fn echo_all(socket: &mut WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        // axum answers the others.
        let is_data = matches!(message, Message::Text(_) | Message::Binary(_));
        if is_data && socket.send(message).await.is_err() {
            return;
        }
    }
}

/// Sends a close frame and waits a second for the client's.
async fn say_goodbye(socket: &mut WebSocket) {
    let away = CloseFrame { code: close_code::AWAY, reason: "the server stops".into() };
    let closing = async {
        let _ = socket.send(Message::Close(Some(away))).await;
        while let Some(Ok(_)) = socket.recv().await {}
    };
    let _ = time::timeout(Duration::from_secs(1), closing).await;
}

/// Writes a line to standard output after each response.
fn audited(handle: TrackEventsHandle) -> TrackEventsLayer {
    let delay = Duration::from_millis(setting("EVENT_DELAY_MS", 1));
    TrackEventsLayer::new(handle).track("audit", move |exchange: Exchange| async move {
        time::sleep(delay).await;
        let Exchange { request, status, outcome, body_bytes, .. } = exchange;
        let RequestInfo { method, uri, .. } = request.expect("it is kept for hooks");
        let (path, status) = (uri.path(), status.map_or("-".to_owned(), |status| status.as_u16().to_string()));
        // An `Err` is logged, counted, and in the report.
        writeln!(io::stdout(), "audit {method} {path} {status} {outcome} {body_bytes} bytes")
    })
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
