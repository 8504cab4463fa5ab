//! A gRPC server on tonic, whose health fails and whose watches end when the drain begins.
//!
//! ```text
//! cargo run -p tonic-example
//! grpc_health_probe -addr 127.0.0.1:3000
//! grpcurl -plaintext -import-path . -proto health.proto 127.0.0.1:3000 grpc.health.v1.Health/Watch
//! ```
//!
//! Its one service is the standard health service, for which [grpc_health_probe] and [grpcurl] are clients. It audits
//! each call by a line on standard output. These variables change it: `ADDR`, where it listens; `EVENT_DELAY_MS`, how
//! slow the audit is; `DRAIN_LIMIT_MS`, the limit of the shutdown.
//!
//! [grpc_health_probe]: https://github.com/grpc-ecosystem/grpc-health-probe
//! [grpcurl]: https://github.com/fullstorydev/grpcurl

use std::{env, fmt::Display, io, io::Write, net::SocketAddr, process, str::FromStr, time::Duration};

use futures_util::{StreamExt, future::ready, stream, stream::BoxStream};
use tokio::{net::TcpListener, time::sleep};
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

#[tokio::main]
async fn main() {
    tracing_subscriber::fmt().with_writer(io::stderr).init();
    let limit = Duration::from_millis(setting("DRAIN_LIMIT_MS", 5000));
    let handle = TrackEventsHandle::new();
    let reporter = HealthReporter::new();
    let health = HealthService::from_health_reporter(reporter.clone());
    let health = HealthServer::new(DrainingHealth { health, handle: handle.clone() });
    let layer = audited(handle.clone());
    handle
        .shutdown()
        .limit(limit)
        .readiness_delay(limit / 10)
        // The empty name is that of the whole server.
        .on_signal(async move { reporter.set_service_status("", ServingStatus::NotServing).await })
        .serve(|stop| async move {
            let listener = TcpListener::bind(setting("ADDR", SocketAddr::from(([127, 0, 0, 1], 3000)))).await?;
            writeln!(io::stdout(), "listening on http://{}", listener.local_addr()?)?;
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            let server = Server::builder().layer(layer).add_service(health);
            server.serve_with_incoming_shutdown(incoming, stop).await.map_err(io::Error::other)
        })
        .await
        .exit()
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
fn audited(handle: TrackEventsHandle) -> TrackEventsLayer {
    let delay = Duration::from_millis(setting("EVENT_DELAY_MS", 1));
    TrackEventsLayer::new(handle).track("audit", move |exchange: Exchange| async move {
        sleep(delay).await;
        let Exchange { request, grpc_status, outcome, body_bytes, .. } = exchange;
        let call = request.as_ref().map_or("-", |request| request.uri.path());
        let status = grpc_status.map_or("-".to_owned(), |status| status.to_string());
        // An `Err` is logged, counted, and in the report.
        writeln!(io::stdout(), "audit {call} {status} {outcome} {body_bytes} bytes")
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
