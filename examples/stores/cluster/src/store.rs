//! The contents of the stores, read with their own clients.

use async_nats::jetstream::{self, consumer::pull, message::PublishMessage, stream::Stream};
use futures_util::StreamExt;
use redis::streams::StreamRangeReply;
use serde_json::Value;
use tokio_postgres::NoTls;

pub(crate) enum Store {
    Postgres(String),
    Nats(String),
    Redis(String),
}

impl Store {
    /// The ids of all orders; twice, if one is there twice.
    pub(crate) async fn ids(&self) -> Vec<String> {
        match self {
            Self::Postgres(url) => {
                let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("PostgreSQL is there");
                tokio::spawn(async { drop(connection.await) });
                let rows = client.query("SELECT id FROM orders", &[]).await.expect("the table is there");
                rows.iter().map(|row| row.get(0)).collect()
            }
            Self::Nats(url) => {
                let mut stream = stream(url).await;
                let messages = stream.info().await.expect("the stream is there").state.messages as usize;
                let config = pull::OrderedConfig::default();
                let consumer = stream.create_consumer(config).await.expect("a consumer can be made");
                let messages = consumer.messages().await.expect("it can be read").take(messages);
                messages.map(|message| order_id(&message.expect("a message").payload)).collect().await
            }
            Self::Redis(url) => {
                let client = redis::Client::open(url.as_str()).expect("a valid address");
                let mut connection = client.get_multiplexed_async_connection().await.expect("Redis is there");
                let range: StreamRangeReply = redis::cmd("XRANGE")
                    .arg("orders")
                    .arg("-")
                    .arg("+")
                    .query_async(&mut connection)
                    .await
                    .expect("a stream");
                range.ids.iter().map(|entry| entry.get("id").expect("an entry has an id")).collect()
            }
        }
    }

    /// Publishes orders once more, as an instance does that got no acknowledgement. Returns how many of them the broker
    /// reports as dropped.
    pub(crate) async fn publish_again(&self, ids: &[String]) -> usize {
        let Self::Nats(url) = self else { panic!("only JetStream drops duplicates") };
        let context = jetstream::new(async_nats::connect(url).await.expect("NATS is there"));
        let mut dropped = 0;
        for id in ids {
            let message = PublishMessage::build().message_id(id).payload("again".into());
            let sent = context.send_publish("orders.created", message).await.expect("it can be sent");
            dropped += usize::from(sent.await.expect("the broker answers").duplicate);
        }
        dropped
    }

    /// How many messages are in the stream.
    pub(crate) async fn count(&self) -> usize {
        self.ids().await.len()
    }
}

async fn stream(url: &str) -> Stream {
    let client = async_nats::connect(url).await.expect("NATS is there");
    jetstream::new(client).get_stream("ORDERS").await.expect("the stream is there")
}

/// The id in an order as it is stored.
pub(crate) fn order_id(payload: &[u8]) -> String {
    let order: Value = serde_json::from_slice(payload).expect("an order is JSON");
    order["id"].as_str().expect("an order has an id").to_owned()
}
