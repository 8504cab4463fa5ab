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

use std::{
    error::Error,
    process::ExitCode,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use redis::{Client, aio::MultiplexedConnection, pipe};
use stores_shop::{Order, orders, run, serve, spill, variable};
use tower_track_events::{Batch, TrackEventsHandle};

#[derive(Clone)]
struct OrderStream {
    client: Client,
    /// `None` when the next attempt has to connect.
    connection: Arc<Mutex<Option<MultiplexedConnection>>>,
}

impl OrderStream {
    fn connection(&self) -> MutexGuard<'_, Option<MultiplexedConnection>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn add(self, orders: Batch<Order>) -> Result<(), Box<dyn Error + Send + Sync>> {
        let connection = self.connection().take();
        let mut connection = match connection {
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
        *self.connection() = Some(connection);
        Ok(())
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    run(async {
        let handle = TrackEventsHandle::new();
        let client = Client::open(variable("REDIS_URL", "redis://127.0.0.1:6379"))?;
        let connection = Arc::new(Mutex::new(Some(client.get_multiplexed_async_connection().await?)));
        let stream = OrderStream { client, connection };
        let sender = handle.sink("order.created").on_undelivered(spill).deliver(move |orders| stream.add(orders))?;
        serve(handle, orders(sender)).await
    })
    .await
}
