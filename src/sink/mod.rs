//! Sinks, which deliver typed events in batches through a Tower service or a closure.
//!
//! [`TrackEventsHandle::sink`](crate::TrackEventsHandle::sink) makes one. The types that most programs name are at the
//! root of the crate as well. [A page of the guide](crate::guide::sinks) explains how to choose a store.

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
