//! Work that happens after the response, and is not lost when the process stops.
//!
//! A handler answers a request and then has something left to do that must not delay the answer: record an audit row,
//! bill the bytes, publish `order.created`. Written as `tokio::spawn(..)` it is *fire and hope*: what has not finished
//! when the process stops is lost. This crate is a Tower layer that wraps any HTTP service, starts such *events* once
//! the response is over, and gives the application one [handle](TrackEventsHandle), whose
//! [`drain(limit)`](TrackEventsHandle::drain) belongs into the shutdown of the server.
//!
//! # Quick start
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use axum::{Router, routing::post};
//! use tower_track_events::{Events, Refused, TrackEventsLayer};
//!
//! async fn create_order(events: Events) -> Result<&'static str, Refused> {
//!     events.track("order.created", async { /* publish it */ })?;
//!     Ok("created")
//! }
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (layer, handle) = TrackEventsLayer::pair();
//! let app = Router::new().route("/orders", post(create_order)).layer(layer);
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
//!
//! let signal = handle.clone();
//! axum::serve(listener, app)
//!     .with_graceful_shutdown(async move {
//!         let _ = tokio::signal::ctrl_c().await;
//!         signal.begin_drain();
//!     })
//!     .await?;
//!
//! // An error is a line that names what was cut short.
//! let report = handle.drain(Duration::from_secs(8)).await.map_err(|error| error.to_string())?;
//! println!("{report}");
//! # Ok(()) }
//! ```
//!
//! Without axum, take [`Events`] from the request: [`Events::from_extensions`].
//!
//! # Words
//!
//! - An *exchange* is one request and its response, from the call of the service until the response is over.
//! - An *event* is one named piece of work that is tracked: a future or blocking closure that starts after the
//!   response, or at once through the handle.
//! - An event is *accepted* or *refused* when it is recorded, and never dropped later. An accepted one has exactly
//!   one [ending](Endings); a refused one is an `Err` in the caller's hand, and a count.
//! - A *sink* is given typed events in batches, instead of a task for each: see [`guide::sinks`].
//! - A *guard* keeps a drain waiting for as long as it lives; a *permit* is room for an event that is not there yet.
//! - The *house* is all that one handle counts, and the *ledger* its counts.
//! - To *drain* is to wait, within a limit, until no exchange is open and no event pending, and then to refuse
//!   everything.
//!
//! # When events start
//!
//! The events of an exchange start once, when its response is over: with the last frame of its body, where that can be
//! told from the frame, or else when the body is dropped. [`Outcome`] is how it ended. They start whatever the outcome:
//! also when the service fails or panics, or the client leaves before the response. An event that wants to know takes
//! an [`Exchange`]: [`Events::track_with`].
//!
//! Some outcomes surprise: an endless stream ends as [`Outcome::Aborted`], and a timeout may end as
//! [`Outcome::Complete`]. [`guide::outcomes`] goes through all of them.
//!
//! # Shutdown
//!
//! A server that has returned is not a server without requests: each HTTP/2 stream is a task of its own. So the drain
//! waits for requests as well as for events, from the call of the service on. The steps, against one deadline that is
//! counted from the signal:
//!
//! 1. [`begin_drain`](TrackEventsHandle::begin_drain): readiness turns red, endless streams end themselves. Requests
//!    are still served, their events still taken.
//! 2. Pause until load balancers have looked away.
//! 3. Stop the server gracefully, but with a limit: one client with half a request head would hold it for ever.
//! 4. [`drain`](TrackEventsHandle::drain) with the time that is left, and print what it answers.
//!
//! [`guide::shutdown`] has the whole of it: the budget, the wiring for each server, WebSockets, the exit.
//!
//! # Laws
//!
//! 1. *Conservation.* At every [`Snapshot`],
//!    `accepted = completed + failed + panicked + timed_out + aborted + pending`.
//! 2. *Drained is final and true.* A drain is `Ok` only if at one instant nothing was open or pending, and everything
//!    has been refused since. What the events wrote, and their destructors, happened before it returned.
//! 3. *Nothing falls between.* Before that instant every event is accepted, within the capacity: an event may record
//!    another, an open exchange may record its own.
//! 4. *At most once, accounted for always.* (What is sent to a sink is given to it at least once.)
//! 5. *Bounded.* `pending + reserved` never exceeds the [capacity](TrackEventsHandleBuilder::capacity), and
//!    [`Refused::Full`] is said only when that many are taken. The requests of a layer may [wait](Overflow) for room.
//!    What is sent to a sink counts against the [capacity of that sink](SinkBuilder::capacity) instead.
//! 6. *Polite.* The panic of an event is its own. No code of yours runs under a lock of ours.
//! 7. *Transparent.* A client sees the same bytes with and without the layer.
//!
//! # More to read
//!
//! - [`guide::shutdown`]: the steps between the signal and the exit, for each server.
//! - [`guide::client_left`]: which events run when the client leaves.
//! - [`guide::outcomes`]: how each response can end, and when.
//! - [`guide::capacity`]: what to do when the house is full.
//! - [`guide::testing`]: handlers without a server, [`Events::detached`].
//! - [`guide::sinks`]: typed events in batches, and what each store survives.
//! - [`guide::observing`]: counts, log lines, spans and metrics.
//! - [`guide::task_tracker`]: the way from `TaskTracker`.
//!
//! # What is not promised
//!
//! Events live in this process and run at most once: `SIGKILL`, power loss, `process::exit` and `panic = "abort"` lose
//! what is pending. An event that blocks the thread of a current-thread runtime blocks its drain as well: use
//! [`track_blocking`](TrackEventsHandle::track_blocking). What must survive a crash belongs into an outbox or a broker.
//!
//! # Features
//!
//! None is on by default, and none changes behaviour.
//!
//! - `axum`: [`Events`] as an extractor, [`Refused`] and [`SendError`] as 503 responses.
//! - `metrics`: counters, gauges and histograms for the [`metrics`](https://docs.rs/metrics) facade, see
//!   [`guide::observing`].
//! - `hyper`: `TrackEventsHandle::executor`, for servers built directly on hyper.
//! - `serde`: `Serialize` for [`Snapshot`], [`DrainReport`] and what they contain.
#![cfg_attr(docsrs, feature(doc_cfg))]

/// Compiles the code of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod guide;

mod batch;
mod body;
mod contain;
mod deliver;
mod detached;
mod drain;
mod entry;
mod events;
mod exchange;
mod future;
mod guard;
mod handle;
mod hook;
mod house;
mod idle_waits;
mod inside;
mod lane;
mod layer;
mod ledger;
mod limit;
mod line;
#[cfg_attr(not(feature = "metrics"), path = "unmeasured.rs")]
mod metrics;
mod output;
mod overflow;
mod permit;
mod queue;
mod record;
mod refused;
mod report;
mod room_queue;
mod service;
mod setting;
mod sink;
mod snapshot;
mod start;
mod sync;
mod task;
mod wait_idle;
mod waiters;

#[cfg(feature = "axum")]
mod axum;
#[cfg(feature = "hyper")]
mod executor;

pub use self::{
    batch::{Batch, EventSink, Undelivered},
    body::ResponseBody,
    detached::DetachedExchange,
    drain::Drain,
    events::Events,
    exchange::{Exchange, Outcome},
    future::ResponseFuture,
    handle::{DrainGuard, TrackEventsHandle, TrackEventsHandleBuilder},
    layer::{TrackEventsLayer, TrackEventsLayerBuilder},
    output::EventOutput,
    overflow::Overflow,
    permit::Permit,
    refused::Refused,
    report::{DrainError, DrainReport, Held, NamedEndings, PendingEvents, UndeliveredEvents, Unfinished},
    service::TrackEvents,
    setting::InvalidSetting,
    sink::{EventSender, SendError, SendPermit, SinkBuilder},
    snapshot::{Endings, SinkSnapshot, Snapshot},
    wait_idle::{WaitIdle, WaitIdleError},
};

#[cfg(feature = "axum")]
pub use self::axum::MissingTrackEventsLayer;
#[cfg(feature = "hyper")]
pub use self::executor::{DrainExecutor, Guarded};
