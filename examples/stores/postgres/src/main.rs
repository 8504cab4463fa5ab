//! Orders into PostgreSQL: one statement for each batch.
//!
//! ```text
//! PG_URL=postgres://user@127.0.0.1/orders cargo run -p stores-postgres
//! curl http://127.0.0.1:3000/orders -H content-type:application/json -d '{"item":"book","quantity":1}'
//! ```
//!
//! An order has completed when PostgreSQL has committed the statement. The table is made at the start. The other
//! variables are those of `stores_shop`.

use std::process::ExitCode;

use stores_shop::{Order, orders, run, serve, spill, variable};
use tokio_postgres::{Client, NoTls};
use tower_track_events::{Batch, EventSink, TrackEventsHandle};

struct OrderTable {
    url: String,
    /// `None` when the next attempt has to connect.
    client: Option<Client>,
}

impl OrderTable {
    async fn connect(&self) -> Result<Client, tokio_postgres::Error> {
        let (client, connection) = tokio_postgres::connect(&self.url, NoTls).await?;
        // Ends with the client, or with the connection: that shows at the next statement.
        tokio::spawn(async { drop(connection.await) });
        client
            .batch_execute(
                "SET client_min_messages = warning;
                 CREATE TABLE IF NOT EXISTS orders (
                     id text PRIMARY KEY, item text NOT NULL, quantity bigint NOT NULL, created_at bigint NOT NULL
                 )",
            )
            .await?;
        Ok(client)
    }
}

impl EventSink<Order> for OrderTable {
    type Error = tokio_postgres::Error;

    async fn deliver(&mut self, orders: Batch<Order>) -> Result<(), Self::Error> {
        // Put back when the statement has succeeded. So a client that is broken, or in the middle of a statement when
        // this future is dropped, is not used again.
        let client = match self.client.take() {
            Some(client) => client,
            None => self.connect().await?,
        };
        let ids: Vec<_> = orders.iter().map(|order| &*order.id).collect();
        let items: Vec<_> = orders.iter().map(|order| &*order.item).collect();
        let quantities: Vec<_> = orders.iter().map(|order| order.quantity).collect();
        let times: Vec<_> = orders.iter().map(|order| order.created_at).collect();
        client
            .execute(
                "INSERT INTO orders (id, item, quantity, created_at)
                 SELECT * FROM UNNEST($1::text[], $2::text[], $3::bigint[], $4::bigint[])
                 ON CONFLICT (id) DO NOTHING",
                &[&ids, &items, &quantities, &times],
            )
            .await?;
        self.client = Some(client);
        Ok(())
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    run(async {
        let handle = TrackEventsHandle::new();
        let mut table = OrderTable { url: variable("PG_URL", "postgres://postgres@127.0.0.1/postgres"), client: None };
        table.client = Some(table.connect().await?);
        let sender = handle.sink("order.created", table).on_undelivered(spill).build()?;
        serve(handle, orders(sender)).await
    })
    .await
}
