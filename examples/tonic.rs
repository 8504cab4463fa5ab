//! A gRPC server on tonic that audits each call and stops within a limit.
//!
//! ```text
//! cargo run --example tonic
//! ```
//!
//! Its one service is the standard health service, for which [grpc_health_probe] and [grpcurl] are clients; it prints
//! commands to try. Ctrl-C or SIGTERM stops it. The audit is a line on standard output, written after the response. When it
//! exits with 0, each response has its line. These variables change it:
//!
//! - `ADDR`: where it listens, 127.0.0.1:3000 unless set; with port 0 it takes a free one.
//! - `EVENT_DELAY_MS`: how slow the audit is, 1 unless set.
//! - `DRAIN_LIMIT_MS`: the most that stopping may take, counted from the signal, 5000 unless set.
//!
//! Exit code: 0 if every event completed within the limit, 1 if not, 2 if it could not start.
//!
//! [grpc_health_probe]: https://github.com/grpc-ecosystem/grpc-health-probe
//! [grpcurl]: https://github.com/fullstorydev/grpcurl

use std::{
    env,
    fmt::Display,
    io::{self, Write},
    net::SocketAddr,
    process,
    str::FromStr,
    time::Duration,
};

use futures_util::{FutureExt, Stream, StreamExt, future::ready, stream, stream::BoxStream};
use http::request::Parts;
use tokio::{
    net::TcpListener,
    select,
    signal::unix::{SignalKind, signal},
    sync::oneshot,
    time::{Instant, sleep, timeout_at},
};
use tokio_stream::wrappers::SignalStream;
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};
use tonic_health::{
    ServingStatus,
    pb::{
        HealthCheckRequest, HealthCheckResponse, health_check_response,
        health_server::{Health, HealthServer},
    },
    server::{HealthReporter, HealthService},
};
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
    let listener = TcpListener::bind(addr).await.map_err(no_listener)?;
    let addr = listener.local_addr().map_err(no_listener)?;
    let mut signals = signals().map_err(|error| format!("no signals: {error}"))?;

    let handle = TrackEventsHandle::new();
    let reporter = HealthReporter::new();
    let health = HealthService::from_health_reporter(reporter.clone());
    let health = HealthServer::new(DrainingHealth { health, handle: handle.clone() });
    let (stop_server, stopped) = oneshot::channel::<()>();
    let server = Server::builder()
        .layer(audited(handle.clone(), event_delay))
        .add_service(health)
        .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), async {
            drop(stopped.await);
        });
    let server = tokio::spawn(server);
    say(
        io::stdout(),
        format_args!(
            "listening on http://{addr}\n\
             grpc_health_probe -addr {addr}\n\
             grpcurl -plaintext -import-path . -proto health.proto {addr} grpc.health.v1.Health/Check\n\
             grpcurl -plaintext -import-path . -proto health.proto {addr} grpc.health.v1.Health/Watch"
        ),
    );
    signals.next().await;

    // Health fails, load balancers stop routing to this instance, the server stops, the events end: all within one limit.
    let signalled = Instant::now();
    handle.begin_drain();
    reporter.set_service_status("", ServingStatus::NotServing).await;
    say(io::stdout(), format_args!("draining for at most {limit:?}; a second signal interrupts it"));
    let interrupted = async move { drop(timeout_at(signalled + limit, signals.next()).await) }.shared();
    let _ = timeout_at(signalled + limit / 10, interrupted.clone()).await;
    drop(stop_server);
    // Without a limit, a client that holds a call open, or has sent nothing, would keep the server from stopping.
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

/// The health service, whose watches end when the drain begins: they would keep the server from stopping.
struct DrainingHealth {
    health: HealthService,
    handle: TrackEventsHandle,
}

#[tonic::async_trait]
impl Health for DrainingHealth {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        self.health.check(request).await
    }

    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let changes = self.health.watch(request).await?.into_inner();
        // For a watcher that has not got the change when its stream ends.
        let not_serving = health_check_response::ServingStatus::NotServing.into();
        let last = stream::once(ready(Ok(HealthCheckResponse { status: not_serving })));
        Ok(Response::new(changes.take_until(self.handle.draining()).chain(last).boxed()))
    }
}

/// Writes a line to standard output after each response.
fn audited(handle: TrackEventsHandle, delay: Duration) -> TrackEventsLayer {
    let audit = move |request: &Parts| {
        let call = request.uri.path().to_owned();
        move |exchange: Exchange| async move {
            sleep(delay).await;
            let Exchange { grpc_status, outcome, body_bytes, .. } = exchange;
            let status = grpc_status.map_or("-".to_owned(), |status| status.to_string());
            // An `Err` is logged, counted, and in the report.
            writeln!(io::stdout(), "audit {call} {status} {outcome} {body_bytes} bytes")
        }
    };
    TrackEventsLayer::builder(handle).track("audit", audit).build()
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
