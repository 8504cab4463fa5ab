//! The quick start of the README: one route, one event for each order, and a shutdown that loses none.
//!
//! ```text
//! cargo run --example quickstart
//! curl -X POST http://127.0.0.1:3000/orders
//! ```
//!
//! Ctrl-C or SIGTERM stops it. The variable `ADDR` sets the address, by default 127.0.0.1:3000.

use std::{
    env,
    io::{self, Write},
};

use axum::{Router, routing::post};
use tokio::net::TcpListener;
use tower_track_events::{Events, TrackError, TrackEventsLayer};

async fn create_order(events: Events) -> Result<&'static str, TrackError> {
    // Starts when the response is over.
    events.track("order.created", async { /* publish it, write the row */ })?;
    Ok("created")
}

#[tokio::main]
async fn main() {
    let (layer, handle) = TrackEventsLayer::pair();
    let app = Router::new().route("/orders", post(create_order)).layer(layer);
    handle
        .shutdown() // begins at SIGTERM or Ctrl-C
        .serve(|stop| async move {
            let addr = env::var("ADDR").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
            let listener = TcpListener::bind(addr).await?;
            writeln!(io::stdout(), "listening on http://{}", listener.local_addr()?)?;
            axum::serve(listener, app).with_graceful_shutdown(stop).await
        })
        .await // the server stops, open requests end, their events run: all within 9 seconds
        .exit() // prints a report, ends the process with 0 or 1
}
