//! Work that happens after the response, and is not lost when the process stops.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod body;
mod contain;
mod drain;
mod events;
mod exchange;
mod future;
mod guard;
mod handle;
mod hook;
mod house;
mod inside;
mod layer;
mod ledger;
mod output;
mod permit;
mod record;
mod refused;
mod report;
mod service;
mod snapshot;
mod task;

#[cfg(feature = "axum")]
mod axum;
#[cfg(feature = "hyper")]
mod executor;

pub use self::{
    body::ResponseBody,
    drain::Drain,
    events::Events,
    exchange::{Exchange, Outcome},
    future::ResponseFuture,
    handle::{DrainGuard, InvalidSetting, TrackEventsHandle, TrackEventsHandleBuilder},
    layer::{TrackEventsLayer, TrackEventsLayerBuilder},
    output::EventOutput,
    permit::Permit,
    refused::Refused,
    report::{DrainError, DrainReport, Held, NamedEndings, PendingEvents, Unfinished},
    service::TrackEvents,
    snapshot::{Endings, Snapshot},
};

#[cfg(feature = "axum")]
pub use self::axum::MissingTrackEventsLayer;
#[cfg(feature = "hyper")]
pub use self::executor::{DrainExecutor, Guarded};
