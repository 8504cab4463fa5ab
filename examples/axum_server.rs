//! An axum application on axum-server, which audits each response and stops within a limit.
//!
//! ```text
//! cargo run --example axum_server
//! ```
//!
//! It prints commands to try; Ctrl-C or SIGTERM stops it. The audit is a line on standard output, written after the
//! response. When it exits with 0, each response has its line. These variables change it:
//!
//! - `ADDR`: where it listens, 127.0.0.1:3000 unless set; with port 0 it takes a free one.
//! - `EVENT_DELAY_MS`: how slow the audit is, 1 unless set.
//! - `DRAIN_LIMIT_MS`: the most that stopping may take, counted from the signal, 5000 unless set.
//!
//! Exit code: 0 if every event completed within the limit, 1 if not, 2 if it could not start.

use std::{
    convert::Infallible,
    env,
    fmt::Display,
    io::{self, Write},
    net::{SocketAddr, TcpListener},
    process,
    str::FromStr,
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{StatusCode, request::Parts},
    response::sse::{Event, Sse},
    routing::{get, post},
};
use futures_util::{FutureExt, Stream, StreamExt, TryStreamExt, stream};
use tokio::{
    select,
    signal::unix::{SignalKind, signal},
    time::{Instant, interval, sleep, timeout_at},
};
use tokio_stream::wrappers::{IntervalStream, SignalStream};
use tower_track_events::{Exchange, TrackEventsHandle, TrackEventsLayer};
use tracing_subscriber::filter::LevelFilter;

#[tokio::main]
async fn main() {
    // The crate logs events that fail.
    tracing_subscriber::fmt().with_max_level(LevelFilter::WARN).with_writer(io::stderr).init();
    let code = run().await.unwrap_or_else(|message| {
        say(io::stderr(), message);
        2
    });
    // Returning would drop the runtime, which waits for blocking events without a limit.
    process::exit(code)
}

/// Returns the exit code, or why the server could not start.
async fn run() -> Result<i32, String> {
    let Settings { addr, event_delay, drain_limit: limit } = Settings::from_env()?;
    let no_listener = |error| format!("ADDR must be an address that is free, and is {addr}: {error}");
    let listener = TcpListener::bind(addr).map_err(no_listener)?;
    let addr = listener.local_addr().map_err(no_listener)?;
    let mut signals = signals().map_err(|error| format!("no signals: {error}"))?;

    let handle = TrackEventsHandle::new();
    let connections = axum_server::Handle::new();
    let server = axum_server::from_tcp(listener).map_err(no_listener)?.handle(connections.clone());
    let server = tokio::spawn(server.serve(router(handle.clone(), event_delay).into_make_service()));
    say(
        io::stdout(),
        format_args!(
            "listening on http://{addr}\n\
             curl http://{addr}/\n\
             curl --http2-prior-knowledge http://{addr}/slow\n\
             curl -N http://{addr}/ticker\n\
             curl --data-binary @Cargo.toml http://{addr}/upload"
        ),
    );
    signals.next().await;

    // Readiness fails, load balancers stop routing to this instance, the server stops, the events end: all within one limit.
    let signalled = Instant::now();
    handle.begin_drain();
    say(io::stdout(), format_args!("draining for at most {limit:?}; a second signal interrupts it"));
    let interrupted = async move { drop(timeout_at(signalled + limit, signals.next()).await) }.shared();
    let _ = timeout_at(signalled + limit / 10, interrupted.clone()).await;
    // Connections that are still open by then are closed. The exchanges on them end as aborted, and have their events.
    let half = signalled + limit / 2;
    connections.graceful_shutdown(Some(half.saturating_duration_since(Instant::now())));
    let ended = select! {
        biased;
        _ = server => Instant::now() < half,
        _ = interrupted.clone() => {
            connections.shutdown();
            false
        }
    };
    if !ended {
        say(io::stderr(), "the server closed connections that were still open");
    }
    match handle.drain_until(interrupted).await {
        Ok(report) => {
            say(io::stdout(), &report);
            Ok(if report.all_completed() { 0 } else { 1 })
        }
        Err(error) => {
            say(io::stderr(), error);
            Ok(1)
        }
    }
}

fn router(handle: TrackEventsHandle, delay: Duration) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/slow", get(slow))
        .route("/ticker", get(ticker))
        .route("/upload", post(upload))
        .fallback(async || "hello")
        .layer(audited(handle.clone(), delay))
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

async fn upload(body: Body) -> Result<String, StatusCode> {
    let count = |bytes, data: bytes::Bytes| async move { Ok(bytes + data.len()) };
    let bytes = body.into_data_stream().try_fold(0, count).await.map_err(|_| StatusCode::BAD_REQUEST)?;
    Ok(format!("{bytes} bytes"))
}

/// Writes a line to standard output after each response, except to a probe.
fn audited(handle: TrackEventsHandle, delay: Duration) -> TrackEventsLayer {
    let no_probe = |request: &Parts| request.uri.path() != "/healthz";
    let audit = move |request: &Parts| {
        let line = format!("audit {} {}", request.method, request.uri.path());
        move |exchange: Exchange| async move {
            sleep(delay).await;
            let Exchange { status, outcome, body_bytes, .. } = exchange;
            let status = status.map_or("-".to_owned(), |status| status.as_u16().to_string());
            // An `Err` is logged, counted, and in the report.
            writeln!(io::stdout(), "{line} {status} {outcome} {body_bytes} bytes")
        }
    };
    TrackEventsLayer::builder(handle).track_when("audit", no_probe, audit).build()
}

/// Writes a line. If that fails the drain continues, where `println!` would panic: nobody may read the pipe any more.
fn say(mut to: impl Write, line: impl Display) {
    let _ = writeln!(to, "{line}").and_then(|()| to.flush());
}

struct Settings {
    addr: SocketAddr,
    event_delay: Duration,
    drain_limit: Duration,
}

impl Settings {
    fn from_env() -> Result<Self, String> {
        let milliseconds = |name, default| {
            let value: u32 = variable(name, "a number of milliseconds from 0 to 4294967295", default)?;
            Ok::<_, String>(Duration::from_millis(value.into()))
        };
        let default = SocketAddr::from(([127, 0, 0, 1], 3000));
        Ok(Self {
            addr: variable("ADDR", "an IP address and a port, such as 127.0.0.1:3000", default)?,
            event_delay: milliseconds("EVENT_DELAY_MS", 1)?,
            drain_limit: milliseconds("DRAIN_LIMIT_MS", 5000)?,
        })
    }
}

fn variable<T: FromStr>(name: &str, allowed: &str, default: T) -> Result<T, String> {
    let Some(value) = env::var_os(name) else { return Ok(default) };
    let parsed = value.to_str().and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| format!("{name} must be {allowed}, and is {value:?}"))
}

fn signals() -> io::Result<impl Stream<Item = ()> + Unpin> {
    let [terminate, interrupt] = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
    Ok(stream::select(SignalStream::new(terminate), SignalStream::new(interrupt)))
}
