//! Orders into a Redis stream: one pipeline for each batch.
//!
//! ```text
//! REDIS_URL=redis://127.0.0.1:6379 cargo run -p stores-redis
//! curl http://127.0.0.1:3000/orders -H content-type:application/json -d '{"item":"book","quantity":1}'
//! ```
//!
//! An order has completed when Redis has answered, so its durability depends on the settings of Redis (`appendonly`,
//! `appendfsync`). A stream does not drop duplicates: consumers recognise them by the id of the order. The other
//! variables are those of `stores_shop`.

use std::{error::Error, process::ExitCode};

use redis::{Client, aio::MultiplexedConnection, pipe};
use stores_shop::{Order, orders, run, serve, spill, variable};
use tower_track_events::{Batch, EventSink, TrackEventsHandle};

struct OrderStream {
    client: Client,
    /// `None` when the next attempt has to connect.
    connection: Option<MultiplexedConnection>,
}

impl EventSink<Order> for OrderStream {
    type Error = Box<dyn Error + Send + Sync>;

    async fn deliver(&mut self, orders: Batch<Order>) -> Result<(), Self::Error> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.client.get_multiplexed_async_connection().await?,
        };
        // Atomic, so that a failed attempt does not leave half of a batch.
        let mut pipeline = pipe();
        pipeline.atomic();
        for order in orders.iter() {
            let body = serde_json::to_string(order)?;
            pipeline.xadd("orders", "*", &[("id", &order.id), ("order", &body)]).ignore();
        }
        let () = pipeline.query_async(&mut connection).await?;
        self.connection = Some(connection);
        Ok(())
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    run(async {
        let handle = TrackEventsHandle::new();
        let client = Client::open(variable("REDIS_URL", "redis://127.0.0.1:6379"))?;
        let connection = Some(client.get_multiplexed_async_connection().await?);
        let sender = handle.sink("order.created", OrderStream { client, connection }).on_undelivered(spill).build()?;
        serve(handle, orders(sender)).await
    })
    .await
}
