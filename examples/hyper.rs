//! A server built directly on hyper-util, for HTTP/1.1 and HTTP/2, that audits each response.
//!
//! ```text
//! cargo run --example hyper
//! curl http://127.0.0.1:3000/
//! curl --http2-prior-knowledge http://127.0.0.1:3000/
//! curl --data-binary @Cargo.toml http://127.0.0.1:3000/upload
//! ```
//!
//! The audit is a line on standard output. These variables change it: `ADDR`, where it listens; `EVENT_DELAY_MS`, how
//! slow the audit is; `DRAIN_LIMIT_MS`, the limit of the shutdown.

use std::{env, fmt::Display, io, io::Write, net::SocketAddr, process, str::FromStr, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode, request::Parts};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, select, time::sleep};
use tower::{Layer, service_fn};
use tower_track_events::{Exchange, RequestInfo, Stop, TrackEventsHandle, TrackEventsLayer};

/// How long a client may take to send a request head, or to answer a ping.
const CLIENT_LIMIT: Duration = Duration::from_secs(20);

#[tokio::main]
async fn main() {
    tracing_subscriber::fmt().with_writer(io::stderr).init();
    let limit = Duration::from_millis(setting("DRAIN_LIMIT_MS", 5000));
    // The executor below holds a guard for each HTTP/2 stream, so that the drain needs no quiet period.
    let handle = TrackEventsHandle::builder().quiet_period(Duration::ZERO).build().expect("the settings are valid");
    let shutdown = handle.shutdown().limit(limit).readiness_delay(limit / 10);
    shutdown.serve(|stop| serve(handle, stop)).await.exit()
}

/// Accepts connections until `stop`, and returns when they have ended.
async fn serve(handle: TrackEventsHandle, mut stop: Stop) -> io::Result<()> {
    let listener = TcpListener::bind(setting("ADDR", SocketAddr::from(([127, 0, 0, 1], 3000)))).await?;
    let mut server = auto::Builder::new(handle.executor(TokioExecutor::new()));
    // Without a timer hyper ignores the limits.
    server.http1().timer(TokioTimer::new()).header_read_timeout(CLIENT_LIMIT);
    server.http2().timer(TokioTimer::new()).keep_alive_interval(CLIENT_LIMIT).keep_alive_timeout(CLIENT_LIMIT);
    let routes = handle.clone();
    let service = audited(handle).layer(service_fn(move |request| respond(request, routes.clone())));
    let service = TowerToHyperService::new(service);
    let graceful = GracefulShutdown::new();
    writeln!(io::stdout(), "listening on http://{}", listener.local_addr()?)?;
    loop {
        let accepted = select! {
            accepted = listener.accept() => accepted,
            () = &mut stop => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // There may be no file descriptors left. Without a pause this would be a busy loop.
                eprintln!("no connection: {error}");
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
    Ok(())
}

async fn respond(request: Request<Incoming>, handle: TrackEventsHandle) -> hyper::Result<Response<Full<Bytes>>> {
    let (status, text) = match request.uri().path() {
        "/healthz" if handle.is_draining() => (StatusCode::SERVICE_UNAVAILABLE, "draining".to_owned()),
        "/upload" => {
            let body = request.into_body().collect().await?.to_bytes();
            (StatusCode::OK, format!("{} bytes", body.len()))
        }
        _ => (StatusCode::OK, "hello".to_owned()),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    Ok(response)
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
