//! A stream of orders in NATS JetStream.

use std::time::Duration;

use async_nats::{
    ConnectOptions, Error,
    jetstream::{self, Context, message::PublishMessage, stream},
};
use stores_shop::Order;

/// The name of the stream.
pub const STREAM: &str = "ORDERS";
const SUBJECT: &str = "orders.created";

/// Publishes orders, and waits for the broker's acknowledgements.
#[derive(Clone, Debug)]
pub struct OrderStream {
    context: Context,
}

impl OrderStream {
    /// Connects, and makes the stream if there is none. The broker drops a message that arrives twice within two
    /// minutes.
    pub async fn connect(url: &str) -> Result<Self, Error> {
        let client = ConnectOptions::new().connection_timeout(Duration::from_secs(2)).connect(url).await?;
        let mut context = jetstream::new(client);
        // An acknowledgement that takes longer was lost with a broken connection.
        context.set_timeout(Duration::from_secs(2));
        context
            .get_or_create_stream(stream::Config {
                name: STREAM.to_owned(),
                subjects: vec![SUBJECT.to_owned()],
                duplicate_window: Duration::from_secs(120),
                ..Default::default()
            })
            .await?;
        Ok(Self { context })
    }

    /// Publishes all orders, then waits for their acknowledgements.
    pub async fn publish(&self, orders: &[Order]) -> Result<(), Error> {
        let mut acknowledgements = Vec::with_capacity(orders.len());
        for order in orders {
            let message = PublishMessage::build().message_id(&order.id).payload(serde_json::to_vec(order)?.into());
            acknowledgements.push(self.context.send_publish(SUBJECT, message).await?);
        }
        for acknowledgement in acknowledgements {
            acknowledgement.await?;
        }
        Ok(())
    }
}
