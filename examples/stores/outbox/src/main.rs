//! A transactional outbox: the order and the message about it are written in one transaction of PostgreSQL, and relayed
//! to NATS JetStream afterwards.
//!
//! ```text
//! PG_URL=postgres://user@127.0.0.1/orders NATS_URL=nats://127.0.0.1:4222 \
//!     cargo run -p stores-outbox
//! curl http://127.0.0.1:3000/orders -H content-type:application/json -d '{"item":"book","quantity":1}'
//! ```
//!
//! An order that was answered with 201 is committed, and survives SIGKILL. The event only wakes the relay: if it is
//! lost, the next one or the next start relays the messages that were left. The price is that each request waits for
//! its transaction. The other variables are those of `stores_shop`.

use std::{error::Error, process::ExitCode};

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use deadpool_postgres::{Config, Pool, Runtime};
use stores_nats::OrderStream;
use stores_shop::{NewOrder, Order, run, serve, variable};
use tokio_postgres::NoTls;
use tower_track_events::{EventSender, TrackEventsHandle};

/// How many messages are relayed in one transaction.
const PORTION: i64 = 500;

/// Tells the relay that there is a message in the outbox.
struct Nudge;

#[derive(Clone)]
struct Shop {
    pool: Pool,
    relay: EventSender<Nudge>,
}

async fn create_order(State(shop): State<Shop>, Json(order): Json<NewOrder>) -> Response {
    let order = Order::from(order);
    if let Err(error) = store(&shop.pool, &order).await {
        return (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response();
    }
    // A rejection loses nothing: the order is in the outbox.
    let _ = shop.relay.try_send(Nudge);
    order.created()
}

async fn store(pool: &Pool, order: &Order) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut client = pool.get().await?;
    let transaction = client.transaction().await?;
    let insert = transaction
        .prepare_cached("INSERT INTO outbox_orders (id, item, quantity, created_at) VALUES ($1, $2, $3, $4)")
        .await?;
    transaction.execute(&insert, &[&order.id, &order.item, &order.quantity, &order.created_at]).await?;
    let insert = transaction.prepare_cached("INSERT INTO outbox (message) VALUES ($1)").await?;
    transaction.execute(&insert, &[&serde_json::to_string(order)?]).await?;
    transaction.commit().await?;
    Ok(())
}

/// Takes nudges in batches: one run empties the outbox for all of them.
#[derive(Clone)]
struct Relay {
    pool: Pool,
    stream: OrderStream,
}

impl Relay {
    async fn empty_outbox(self) -> Result<(), Box<dyn Error + Send + Sync>> {
        let mut client = self.pool.get().await?;
        loop {
            let transaction = client.transaction().await?;
            // Messages that another instance is relaying are skipped.
            let rows = transaction
                .query("SELECT seq, message FROM outbox ORDER BY seq LIMIT $1 FOR UPDATE SKIP LOCKED", &[&PORTION])
                .await?;
            if rows.is_empty() {
                return Ok(());
            }
            let orders = rows.iter().map(|row| serde_json::from_str(row.get(1))).collect::<Result<Vec<_>, _>>()?;
            // If this process dies between the two, the messages are sent again, and the broker drops them by their
            // ids.
            self.stream.publish(&orders).await?;
            let sent: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
            transaction.execute("DELETE FROM outbox WHERE seq = ANY($1)", &[&sent]).await?;
            transaction.commit().await?;
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    run(async {
        let handle = TrackEventsHandle::new();
        let url = variable("PG_URL", "postgres://postgres@127.0.0.1/postgres");
        let pool = Config { url: Some(url), ..Config::default() }.create_pool(Some(Runtime::Tokio1), NoTls)?;
        let tables = "SET client_min_messages = warning;
             CREATE TABLE IF NOT EXISTS outbox_orders (
                 id text PRIMARY KEY, item text NOT NULL, quantity bigint NOT NULL, created_at bigint NOT NULL
             );
             CREATE TABLE IF NOT EXISTS outbox (seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, message text NOT NULL)";
        pool.get().await?.batch_execute(tables).await?;
        let stream = OrderStream::connect(&variable("NATS_URL", "nats://127.0.0.1:4222")).await?;
        let relay = Relay { pool: pool.clone(), stream };
        let relay = handle.sink("outbox.relay").deliver(move |_nudges| relay.empty_outbox())?;
        // For messages that the previous process has left.
        relay.try_send(Nudge)?;
        serve(handle, Router::new().route("/orders", post(create_order)).with_state(Shop { pool, relay })).await
    })
    .await
}
