//! The API: its routes, and the layer around them.

use std::{
    fmt::Display,
    num::NonZeroU32,
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
use tower_track_events::{EventSender, Snapshot, TrackEventsHandle, TrackEventsLayer};
use uuid::Uuid;

use crate::store::OrderRow;

#[derive(Clone)]
pub(crate) struct Shop {
    pub(crate) orders: EventSender<OrderRow>,
    pub(crate) handle: TrackEventsHandle,
    pub(crate) ack: bool,
}

pub(crate) fn router(shop: Shop) -> Router {
    let layer = TrackEventsLayer::new(shop.handle.clone());
    Router::new()
        .route("/orders", post(create_order))
        .route("/healthz", get(healthz))
        .route("/stats", get(stats))
        .layer(layer)
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
