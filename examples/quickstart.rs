//! The smallest service: one route, one event for each order, and a safe stop.
//!
//! ```text
//! cargo run --example quickstart
//! curl -X POST http://127.0.0.1:3000/orders
//! ```
//!
//! Ctrl-C or SIGTERM stops it. `ADDR` changes where it listens.

use std::{
    env,
    io::{self, Write},
};

use axum::{Router, routing::post};
use tokio::net::TcpListener;
use tower_track_events::{Events, TrackError, TrackEventsLayer};

async fn create_order(events: Events) -> Result<&'static str, TrackError> {
    // Starts when the response is over; a drain waits for it.
    events.track("order.created", async { /* publish it */ })?;
    Ok("created\n")
}

#[tokio::main]
async fn main() {
    let (layer, handle) = TrackEventsLayer::pair();
    let app = Router::new().route("/orders", post(create_order)).layer(layer);
    handle
        .shutdown() // SIGTERM and Ctrl-C; a second one ends the wait
        .serve(|stop| async move {
            let addr = env::var("ADDR").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
            let listener = TcpListener::bind(addr).await?;
            writeln!(io::stdout(), "listening on http://{}", listener.local_addr()?)?;
            axum::serve(listener, app).with_graceful_shutdown(stop).await
        })
        .await
        .exit() // prints the report and ends the process with 0 or 1
}
