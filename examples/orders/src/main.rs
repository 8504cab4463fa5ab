//! An orders API that answers at once, writes the orders to SQLite in batches, and loses none at a shutdown.
//!
//! ```text
//! cargo run -p orders
//! ```
//!
//! It prints commands to try, and the address of a page that shows its state; Ctrl-C or SIGTERM stops it. When it exits
//! with 0, every order that was answered with 201 is in the database. Orders that it could not write in time are in a
//! file beside the database, one JSON object a line, whose name ends in `.undelivered.jsonl`. These variables change
//! it:
//!
//! - `ADDR`: where it listens, 127.0.0.1:3000 unless set; with port 0 it takes a free one.
//! - `EVENTS_DB`: the database, a file in the system's folder for temporary files unless set.
//! - `EVENT_DELAY_MS`: how slow the store is with each batch, 1 unless set.
//! - `ACK`: with 1 an order is answered with 201 when it is on the disk, and not when it is accepted. Then SIGKILL and a
//!   power failure lose no order that was answered.
//! - `DRAIN_LIMIT_MS`: the most that stopping may take, counted from the signal, 5000 unless set.
//!
//! Exit code: 0 if every order was written, 1 if not or if it could not start, 2 if a setting is invalid.

mod page;
mod settings;
mod store;

use std::{
    error::Error,
    fmt::Display,
    io::{self, Write},
    num::NonZeroU32,
    process, thread,
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{
    Json, Router,
    extract::{State, rejection::JsonRejection},
    http::StatusCode,
    response::{ErrorResponse, IntoResponse},
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;
use tower_track_events::{EventSender, Snapshot, Stop, TrackEventsHandle, TrackEventsLayer};
use uuid::Uuid;

use crate::{settings::Settings, store::OrderRow};

#[tokio::main]
async fn main() {
    // Ctrl-C also stops the `tee` behind a pipe. That must not end this process.
    tracing_subscriber::fmt().with_writer(io::stderr).log_internal_errors(false).init();
    let settings = Settings::from_env().unwrap_or_else(|message| {
        say(io::stderr(), message);
        process::exit(2)
    });
    let handle = TrackEventsHandle::new();
    let limit = settings.drain_limit;
    // For a tenth of the limit load balancers see that `/healthz` fails.
    let shutdown = handle.shutdown().limit(limit).readiness_delay(limit / 10);
    shutdown.serve(|stop| serve(settings, handle, stop)).await.exit()
}

async fn serve(settings: Settings, handle: TrackEventsHandle, stop: Stop) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut db = store::open(&settings.db, settings.ack)
        .map_err(|error| format!("EVENTS_DB must be a file for SQLite, and is {:?}: {error}", settings.db))?;
    let undelivered = settings.undelivered();
    let orders = handle
        .sink::<OrderRow>("order.created")
        .on_undelivered(move |orders| {
            // After a panic here the orders are lost: that is logged, and they are counted as panicked.
            store::append(&undelivered, &orders).unwrap_or_else(|error| panic!("{}: {error}", undelivered.display()));
        })
        .deliver_blocking(move |orders| {
            thread::sleep(settings.event_delay);
            store::insert(&mut db, orders)
        })?;
    let listener = TcpListener::bind(settings.addr).await?;
    let addr = listener.local_addr()?;
    say(
        io::stdout(),
        format_args!(
            "listening on http://{addr}, orders go to {}\n\
             open http://{addr}/ in a browser\n\
             curl http://{addr}/orders -H content-type:application/json -d '{{\"item\":\"book\",\"quantity\":1}}'\n\
             curl http://{addr}/stats",
            settings.db.display(),
        ),
    );
    axum::serve(listener, router(Shop { orders, handle, ack: settings.ack })).with_graceful_shutdown(stop).await?;
    Ok(())
}

#[derive(Clone)]
struct Shop {
    orders: EventSender<OrderRow>,
    handle: TrackEventsHandle,
    ack: bool,
}

fn router(shop: Shop) -> Router {
    let layer = TrackEventsLayer::new(shop.handle.clone());
    Router::new()
        .route("/orders", post(create_order))
        .route("/healthz", get(healthz))
        .route("/stats", get(stats))
        .layer(layer)
        // Outside of the layer: they show the drain, which would wait for them.
        .route("/", get(page::page))
        .route("/live", get(page::live))
        .with_state(shop)
}

/// The body of a request.
#[derive(Deserialize)]
struct Order {
    item: String,
    quantity: NonZeroU32,
}

async fn create_order(
    State(shop): State<Shop>,
    order: Result<Json<Order>, JsonRejection>,
) -> axum::response::Result<impl IntoResponse> {
    let Json(Order { item, quantity }) = order.map_err(|rejection| error(rejection.status(), rejection.body_text()))?;
    if item.trim().is_empty() {
        return Err(error(StatusCode::UNPROCESSABLE_ENTITY, "item: must not be empty"));
    }
    let id = Uuid::new_v4();
    let created_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64;
    let order = OrderRow { id, item, quantity, created_at };
    if shop.ack {
        // Committed, together with the orders of other requests.
        shop.orders.send_acked(order).await?;
    } else {
        // Pending from here on. If it is rejected, the client gets 503 and can try again.
        shop.orders.try_send(order)?;
    }
    Ok((StatusCode::CREATED, Json(json!({ "id": id }))))
}

fn error(status: StatusCode, message: impl Display) -> ErrorResponse {
    (status, Json(json!({ "error": message.to_string() }))).into()
}

async fn healthz(State(shop): State<Shop>) -> (StatusCode, &'static str) {
    if shop.handle.is_draining() { (StatusCode::SERVICE_UNAVAILABLE, "draining") } else { (StatusCode::OK, "ok") }
}

async fn stats(State(shop): State<Shop>) -> Json<Snapshot> {
    Json(shop.handle.snapshot())
}

/// Writes a line. Nobody may read the pipe any more, where `println!` would panic.
fn say(mut to: impl Write, line: impl Display) {
    let _ = writeln!(to, "{line}").and_then(|()| to.flush());
}
