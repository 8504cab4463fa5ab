//! The server of the examples: health, counts, and the shutdown.

use std::{
    error::Error,
    fmt::Display,
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tower_track_events::TrackEventsHandle;

use crate::variable;

/// Sets up logging, and turns a failure to start into a message and an exit code of 2.
pub async fn run(service: impl Future<Output = Result<ExitCode, Box<dyn Error + Send + Sync>>>) -> ExitCode {
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
        .with_writer(io::stderr)
        .init();
    service.await.unwrap_or_else(|error| {
        say(io::stderr(), error);
        ExitCode::from(2)
    })
}

/// Serves until Ctrl-C or SIGTERM, then drains, and ends the process: with 0 if every event completed.
pub async fn serve(handle: TrackEventsHandle, routes: Router) -> Result<ExitCode, Box<dyn Error + Send + Sync>> {
    let limit = variable("DRAIN_LIMIT_MS", "5000").parse().map_err(|error| format!("DRAIN_LIMIT_MS: {error}"))?;
    let address = variable("ADDR", "127.0.0.1:3000");
    let listener = TcpListener::bind(&address).await.map_err(|error| format!("ADDR: {address}: {error}"))?;
    let app = Router::new()
        .route("/healthz", get(healthz))
        .route("/stats", get(stats))
        .with_state(handle.clone())
        .merge(routes)
        .layer(handle.layer());
    let shutdown = handle.shutdown().limit(Duration::from_millis(limit));
    say(io::stdout(), format_args!("listening on http://{}", listener.local_addr()?));
    shutdown
        .on_signal(async { say(io::stdout(), "draining") })
        .serve(|stop| axum::serve(listener, app).with_graceful_shutdown(stop).into_future())
        .await
        .exit()
}

async fn healthz(State(handle): State<TrackEventsHandle>) -> (StatusCode, &'static str) {
    if handle.is_draining() { (StatusCode::SERVICE_UNAVAILABLE, "draining") } else { (StatusCode::OK, "ok") }
}

async fn stats(State(handle): State<TrackEventsHandle>) -> Json<Value> {
    Json(json!({ "now": handle.snapshot(), "sinks": handle.sinks() }))
}

/// Writes a line. If that fails the drain continues, where `println!` would panic: nobody may read the pipe any more.
fn say(mut to: impl Write, line: impl Display) {
    let _ = writeln!(to, "{line}").and_then(|()| to.flush());
}
