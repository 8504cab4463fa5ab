//! Sinks: typed events, delivered in batches by a Tower service.

mod batch;
mod blocking;
mod builder;
mod deliver;
mod delivery;
mod error;
mod flight;
mod flush;
#[cfg(all(test, track_events_loom))]
mod models;
mod queue;
mod sender;
mod state;
mod worker;

pub use self::{
    batch::{Batch, Undelivered},
    blocking::DeliverBlocking,
    builder::SinkBuilder,
    deliver::{Deliver, DeliveryOutput, Ignored},
    error::SinkError,
    flush::Flush,
    sender::{AckError, EventSender, SendPermit, TrySendError},
};
