//! An orders API: what the stores have in common.
//!
//! Each example makes a handle and the routes for its store, and passes both to [`serve`](fn@serve). These variables
//! change its behaviour:
//!
//! - `ACK`: with 1 an order is answered when it is stored, and not when it is accepted.
//! - `ADDR`: where it listens, 127.0.0.1:3000 unless set; with port 0 it takes a free one.
//! - `DRAIN_LIMIT_MS`: the most that stopping may take, counted from the signal, 5000 unless set.
//! - `SPILL`: the file for orders that could not be stored in time, in the system's folder for temporary files unless
//!   set.

mod serve;

use std::{
    env,
    fs::OpenOptions,
    io::{self, BufWriter, Write},
    num::NonZeroU32,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tower_track_events::{AckError, EventSender, TrySendError, Undelivered};
use uuid::Uuid;

pub use self::serve::{run, serve};

/// The body of a request.
#[derive(Debug, Deserialize)]
pub struct NewOrder {
    item: String,
    quantity: NonZeroU32,
}

/// An order as it is stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// Made here, so that a store can recognise an order that is delivered twice.
    pub id: String,
    /// The name of the item.
    pub item: String,
    /// How many of it, at least one.
    pub quantity: i64,
    /// Milliseconds since 1970.
    pub created_at: i64,
}

impl From<NewOrder> for Order {
    fn from(NewOrder { item, quantity }: NewOrder) -> Self {
        let created_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64;
        Self { id: Uuid::new_v4().to_string(), item, quantity: i64::from(quantity.get()), created_at }
    }
}

impl Order {
    /// The answer to the client.
    pub fn created(&self) -> Response {
        (StatusCode::CREATED, Json(json!({ "id": self.id }))).into_response()
    }
}

/// `POST /orders`, which answers as soon as the order is accepted by the sink; with `ACK=1` when it is stored.
pub fn orders(sender: EventSender<Order>) -> Router {
    let handler = if variable("ACK", "0") == "1" { post(create_order_and_wait) } else { post(create_order) };
    Router::new().route("/orders", handler).with_state(sender)
}

async fn create_order(
    State(orders): State<EventSender<Order>>,
    Json(order): Json<NewOrder>,
) -> Result<Response, TrySendError<Order>> {
    let order = Order::from(order);
    let answer = order.created();
    // If it is rejected, the client gets 503 and can try again.
    orders.try_send(order)?;
    Ok(answer)
}

async fn create_order_and_wait(
    State(orders): State<EventSender<Order>>,
    Json(order): Json<NewOrder>,
) -> Result<Response, AckError<Order>> {
    let order = Order::from(order);
    let answer = order.created();
    orders.send_acked(order).await?;
    Ok(answer)
}

/// Appends orders that could not be stored in time to a file, one JSON object a line.
///
/// # Panics
///
/// If the file cannot be written, so that the orders count as lost.
pub fn spill(orders: Undelivered<Order>) {
    let path = env::var_os("SPILL").map_or_else(|| env::temp_dir().join("orders.undelivered.jsonl"), PathBuf::from);
    let append = || -> io::Result<()> {
        let mut file = BufWriter::new(OpenOptions::new().create(true).append(true).open(&path)?);
        for order in orders.iter() {
            serde_json::to_writer(&mut file, order)?;
            file.write_all(b"\n")?;
        }
        file.into_inner()?.sync_all()
    };
    append().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// Returns the value of an environment variable, or its default.
pub fn variable(name: &str, default: &str) -> String {
    env::var(name).unwrap_or_else(|_| default.to_owned())
}
