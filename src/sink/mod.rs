//! Sinks: typed events, delivered in batches.

mod batch;
mod builder;
mod flush;
mod queue;
mod sender;
mod state;
mod worker;

pub use self::{
    batch::{Batch, EventSink, Undelivered},
    builder::SinkBuilder,
    flush::Flush,
    sender::{EventSender, SendError, SendPermit},
};
