//! How to write typed events into a store, in batches, and what each way survives.
//!
//! # A queue and a task for each sink
//!
//! One task and one `INSERT` for each event is the slow way. [`handle.sink(name, sink)`][`sink`] puts a queue in front
//! of an [`EventSink`]: [`send`] puts a value into it and returns, and one task gives the sink what has come together.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//!
//! use tower_track_events::{Batch, TrackEventsHandle};
//!
//! # async fn insert_all(orders: &[Order]) -> std::io::Result<()> { Ok(()) }
//! struct Order {
//!     id: u64,
//! }
//!
//! let handle = TrackEventsHandle::new();
//! let orders = handle
//!     .sink("order.created", |batch: Batch<Order>| async move { insert_all(&batch).await })
//!     .max_batch(1_000)
//!     .max_delay(Duration::from_millis(5))
//!     .build()?;
//!
//! orders.send(Order { id: 7 })?; // in a handler
//!
//! handle.drain(Duration::from_secs(8)).await?; // in the shutdown
//! # Ok(()) }
//! ```
//!
//! The laws are the same as for tasks. A value is pending from `send` on, and completed when [`deliver`] is `Ok`: so
//! `deliver` must not return before the store has acknowledged the batch. A drain waits for it, a snapshot counts it. What
//! is sent in order is delivered in order. A sink has a [capacity] of its own, and `send` gives the value back when it is
//! full, so that a store that is down neither fills the memory nor takes the room of other events.
//!
//! # When the store does not take a batch
//!
//! An `Err`, a panic, and an attempt that takes longer than its [time limit] leave the batch where it is. It is tried
//! again, as a whole, after a [time] that doubles with each attempt. Those behind it wait, since order is kept. Each
//! failed attempt is a line in the log, and a count in [`SinkSnapshot::failed_attempts`].
//!
//! So a batch is delivered *at least once*. The store may have taken it although the answer was lost. Let each event carry
//! an identity that was made before it was sent, and let the store drop what it has: a primary key and
//! `ON CONFLICT DO NOTHING`, a message id.
//!
//! A batch that can never be taken, because of one event in it, would hold up the lane for ever.
//! [`max_attempts`] gives it up after so many.
//!
//! # What a drain does
//!
//! It lets everything be delivered at once, without waiting for more, cuts the time between two attempts short, and lets
//! a batch be tried again until its limit. What is not delivered by then is handed to [`on_undelivered`], all of it and
//! in order, to be spilled to a file, say. The drain is then cut short, and names it:
//!
//! ```text
//! drain cut short 5.0 s after the signal: order.created x512 undelivered and handed over (src/main.rs:40:12; last error: connection
//! refused); 9000 events accepted, 8488 completed, 512 failed (order.created: 512 failed); 700 ended since the drain began
//! ```
//!
//! Without such a closure the events stay in the queue, and the drain names them as pending. When the process ends then,
//! they are lost.
//!
//! # What survives what
//!
//! | variant | costs a request | SIGTERM | store away for a while | SIGKILL, power loss |
//! |---|---|---|---|---|
//! | `tokio::spawn` in the handler | a task | loses what is pending | loses what fails | loses what is pending |
//! | a tracked event that writes | a task | all written | counted as failed | loses what is pending |
//! | a sink | a few nanoseconds | all written, or handed over | written when it is back | loses what is pending |
//! | a sink into a broker, several instances | the same | the same, the others go on | the same | loses what is pending, in one instance |
//! | an outbox: the row in the transaction of the handler, the event a nudge to the relay | waits for the transaction | all relayed | relayed when the broker is back; without its database there is no answer | **nothing** |
//! | the handler waits for the store | waits for the store | all written | no answer | nothing that was answered |
//!
//! "Pending" is what was sent and not acknowledged: at most the capacity, and in ordinary operation what comes in during
//! [`max_delay`] and one delivery.
//!
//! # Examples
//!
//! `examples/axum.rs` writes into SQLite, one transaction for each batch. In `examples/stores` are PostgreSQL (one
//! statement for each batch), NATS JetStream (a batch is published, then the acknowledgements are awaited; message ids
//! let the broker drop duplicates), Redis Streams (one pipeline), and the transactional outbox. `scripts/stores` starts
//! the servers, puts all of them under load, stops and kills them, takes the broker away, and accounts for every order.
//!
//! # What is left to you
//!
//! - Redis Streams do not drop duplicates: consumers tell by the id in the message.
//! - A store acknowledges as durably as it is set up to: `synchronous`, `appendfsync`, replicas.
//! - What was spilled must be read again, by the next start or by hand.
//!
//! [`EventSink`]: crate::EventSink
//! [`SinkSnapshot::failed_attempts`]: crate::SinkSnapshot::failed_attempts
//! [`deliver`]: crate::EventSink::deliver
//! [`max_attempts`]: crate::SinkBuilder::max_attempts
//! [`max_delay`]: crate::SinkBuilder::max_delay
//! [`on_undelivered`]: crate::SinkBuilder::on_undelivered
//! [`send`]: crate::EventSender::send
//! [`sink`]: crate::TrackEventsHandle::sink
//! [capacity]: crate::SinkBuilder::capacity
//! [time limit]: crate::SinkBuilder::deliver_timeout
//! [time]: crate::SinkBuilder::backoff
