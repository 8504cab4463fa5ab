//! Orders into PostgreSQL: one statement for each batch.
//!
//! ```text
//! PG_URL=postgres://user@127.0.0.1/orders cargo run -p stores-postgres
//! curl http://127.0.0.1:3000/orders -H content-type:application/json -d '{"item":"book","quantity":1}'
//! ```
//!
//! An order has completed when PostgreSQL has committed the statement. The table is made at the start. The other
//! variables are those of `stores_shop`.

use std::{
    process::ExitCode,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use stores_shop::{Order, orders, run, serve, spill, variable};
use tokio_postgres::{Client, NoTls};
use tower_track_events::{Batch, TrackEventsHandle};

#[derive(Clone)]
struct OrderTable {
    url: Arc<str>,
    /// `None` when the next attempt has to connect.
    client: Arc<Mutex<Option<Client>>>,
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

    fn client(&self) -> MutexGuard<'_, Option<Client>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn insert(self, orders: Batch<Order>) -> Result<(), tokio_postgres::Error> {
        // Put back when the statement has succeeded. So a client that is broken, or in the middle of a statement when
        // this future is dropped, is not used again.
        let client = self.client().take();
        let client = match client {
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
        *self.client() = Some(client);
        Ok(())
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    run(async {
        let handle = TrackEventsHandle::new();
        let url = variable("PG_URL", "postgres://postgres@127.0.0.1/postgres").into();
        let table = OrderTable { url, client: Arc::default() };
        let client = table.connect().await?;
        *table.client() = Some(client);
        let sender = handle.sink("order.created").on_undelivered(spill).deliver(move |orders| table.insert(orders))?;
        serve(handle, orders(sender)).await
    })
    .await
}
