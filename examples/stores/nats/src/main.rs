//! Orders into NATS JetStream: a batch is published, and then the broker's acknowledgements are awaited.
//!
//! ```text
//! NATS_URL=nats://127.0.0.1:4222 cargo run -p stores-nats
//! curl http://127.0.0.1:3000/orders -H content-type:application/json -d '{"item":"book","quantity":1}'
//! ```
//!
//! An order has completed when the broker has stored it. Each message has the id of its order, so that the broker drops
//! duplicates when a batch is retried. The stream is made at the start. The other variables are those of `stores_shop`.

use std::process::ExitCode;

use stores_nats::OrderStream;
use stores_shop::{orders, run, serve, spill, variable};
use tower_track_events::TrackEventsHandle;

#[tokio::main]
async fn main() -> ExitCode {
    run(async {
        let handle = TrackEventsHandle::new();
        let stream = OrderStream::connect(&variable("NATS_URL", "nats://127.0.0.1:4222")).await?;
        let sender = handle
            .sink("order.created")
            .on_undelivered(spill)
            .deliver(move |orders| async move { stream.publish(&orders).await })?;
        serve(handle, orders(sender)).await
    })
    .await
}
