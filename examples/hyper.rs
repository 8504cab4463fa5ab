//! A server built directly on hyper-util, for HTTP/1.1 and HTTP/2, that audits each response and stops within a limit.
//!
//! ```text
//! cargo run --example hyper
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
    net::SocketAddr,
    process,
    str::FromStr,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, Stream, StreamExt, stream};
use http::{Request, Response, StatusCode, request::Parts};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::{
    net::TcpListener,
    select,
    signal::unix::{SignalKind, signal},
    sync::oneshot,
    time::{Instant, interval, sleep, timeout_at},
};
use tokio_stream::wrappers::{IntervalStream, SignalStream};
use tower::{Layer, service_fn};
use tower_track_events::{Exchange, TrackEventsHandle, TrackEventsLayer};
use tracing_subscriber::filter::LevelFilter;

/// How long a client may take to send a request head, or to answer a ping.
const CLIENT_LIMIT: Duration = Duration::from_secs(20);

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
    let listener = TcpListener::bind(addr).await.map_err(no_listener)?;
    let addr = listener.local_addr().map_err(no_listener)?;
    let mut signals = signals().map_err(|error| format!("no signals: {error}"))?;

    // The executor below opens a guard for each HTTP/2 stream when it is spawned, so that the drain needs no quiet period.
    let handle =
        TrackEventsHandle::builder().quiet_period(Duration::ZERO).build().map_err(|error| error.to_string())?;
    let (stop_server, stopped) = oneshot::channel();
    let server = tokio::spawn(serve(listener, handle.clone(), event_delay, stopped));
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
    drop(stop_server);
    select! {
        biased;
        _ = server => {}
        _ = timeout_at(signalled + limit / 2, interrupted.clone()) => {
            say(io::stderr(), "the server was abandoned before it had stopped");
        }
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

/// Accepts connections until `stopped`, and returns when they have ended.
async fn serve(listener: TcpListener, handle: TrackEventsHandle, delay: Duration, mut stopped: oneshot::Receiver<()>) {
    let mut server = auto::Builder::new(handle.executor(TokioExecutor::new()));
    // Without a timer hyper ignores the limits.
    server.http1().timer(TokioTimer::new()).header_read_timeout(CLIENT_LIMIT);
    server.http2().timer(TokioTimer::new()).keep_alive_interval(CLIENT_LIMIT).keep_alive_timeout(CLIENT_LIMIT);
    let routes = handle.clone();
    let service = service_fn(move |request| respond(request, routes.clone()));
    let service = TowerToHyperService::new(audited(handle, delay).layer(service));
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = select! {
            accepted = listener.accept() => accepted,
            _ = &mut stopped => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // There may be no file descriptors left. Without a pause this would be a busy loop.
                say(io::stderr(), format_args!("no connection: {error}"));
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // Made here, so that the shutdown also waits for a task that has not been polled, or is in its TLS handshake. A
        // connection needs no guard of the handle: an idle one has no request, and would delay the drain.
        let watcher = graceful.watcher();
        let (server, service) = (server.clone(), service.clone());
        tokio::spawn(async move {
            let connection = server.serve_connection(TokioIo::new(stream), service);
            // An error means that the client has left, or does not speak HTTP.
            let _ = watcher.watch(connection).await;
        });
    }
    drop(listener);
    graceful.shutdown().await;
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

async fn respond(request: Request<Incoming>, handle: TrackEventsHandle) -> hyper::Result<Response<Body>> {
    match request.uri().path() {
        "/healthz" if handle.is_draining() => Ok(text(StatusCode::SERVICE_UNAVAILABLE, "draining")),
        "/slow" => {
            sleep(Duration::from_secs(1)).await;
            Ok(text(StatusCode::OK, "slow"))
        }
        "/ticker" => {
            // Ends when the drain begins: an endless stream would keep the server from stopping.
            let ticks = IntervalStream::new(interval(Duration::from_secs(1))).take_until(handle.draining());
            let body = StreamBody::new(ticks.map(|_| Ok(Frame::data(Bytes::from_static(b"data: tick\n\n")))));
            let response = Response::builder().header("content-type", "text/event-stream");
            Ok(response.body(body.boxed_unsync()).expect("the header is valid"))
        }
        "/upload" => {
            let (mut body, mut bytes) = (request.into_body(), 0);
            while let Some(frame) = body.frame().await {
                bytes += frame?.data_ref().map_or(0, Bytes::len);
            }
            Ok(text(StatusCode::OK, format!("{bytes} bytes")))
        }
        _ => Ok(text(StatusCode::OK, "hello")),
    }
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(text.into()).boxed_unsync());
    *response.status_mut() = status;
    response
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
