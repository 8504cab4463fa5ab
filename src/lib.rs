//! A Tower layer for work that a handler leaves until after the response, and that must not be lost when the process
//! stops.
//!
//! Such work must not delay the response: write an audit row, bill the bytes, publish `order.created`. A task of
//! `tokio::spawn` that has not finished when the process stops is lost silently. This crate wraps any HTTP service and
//! starts such *events* when the response is over. The application keeps a [handle](TrackEventsHandle), whose
//! [`drain(limit)`](TrackEventsHandle::drain) is a part of the server's shutdown.
//!
//! # Quick start
//!
//! ```no_run
//! use axum::{Router, routing::post};
//! use tokio::net::TcpListener;
//! use tower_track_events::{Events, TrackError, TrackEventsLayer};
//!
//! async fn create_order(events: Events) -> Result<&'static str, TrackError> {
//!     // Starts when the response is over.
//!     events.track("order.created", async { /* publish it, write the row */ })?;
//!     Ok("created")
//! }
//!
//! #[tokio::main]
//! async fn main() {
//!     let (layer, handle) = TrackEventsLayer::pair();
//!     let app = Router::new().route("/orders", post(create_order)).layer(layer);
//!     handle
//!         .shutdown() // begins at SIGTERM or Ctrl-C
//!         .serve(|stop| async move {
//!             let listener = TcpListener::bind("127.0.0.1:3000").await?;
//!             axum::serve(listener, app).with_graceful_shutdown(stop).await
//!         })
//!         .await // the server stops, open requests end, their events run: all within 9 seconds
//!         .exit() // prints a report, ends the process with 0 or 1
//! }
//! ```
//!
//! Without axum, a handler takes [`Events`] from the extensions of the request: [`Events::from_extensions`].
//!
//! # Terms
//!
//! - An *exchange* is one request and its response (RFC 9110), from the call of the service until the response is over.
//! - An *event* is one named piece of tracked work: a future or a blocking closure that starts after the response, or
//!   at once through the handle.
//! - An event is *accepted* or *rejected* when it is tracked. An accepted event ends in exactly one way, which is
//!   [counted](EventCounts). A rejected event is counted, and its caller gets a [`TrackError`].
//! - A *sink* delivers typed events in batches, instead of a task for each: see [`guide::sinks`].
//! - A *guard* keeps a drain waiting for as long as it lives; a *permit* is a reserved capacity slot for one event.
//! - To *drain* is to wait, within a limit, until no exchange is open and no event is pending, and then to reject
//!   everything.
//!
//! # When events start
//!
//! The events of an exchange start when its response is over. That is with the last frame of its body, if that frame
//! shows that it is the last, or else when the body is dropped. [`Outcome`] says how the response ended. Events start
//! after every outcome, also when the service fails or panics, or the client leaves before the response. An event that
//! needs the outcome gets an [`Exchange`] through [`Events::track_with`].
//!
//! Two outcomes surprise: an endless stream ends as [`Outcome::Aborted`], and a timeout may end as
//! [`Outcome::Complete`]. [`guide::outcomes`] explains all of them.
//!
//! The events of one response run in one task, start in the order in which they were tracked, and run concurrently. An
//! event of the handle is a task of its own.
//!
//! # Shutdown
//!
//! A server that has returned may still have requests, because each HTTP/2 stream is a task of its own. So a drain
//! waits for requests as well as for events. [`shutdown`](TrackEventsHandle::shutdown) does all steps within one limit,
//! by default 9 seconds, which counts from the signal:
//!
//! 1. *Draining.* [`is_draining`](TrackEventsHandle::is_draining) returns true, and streams that wait for
//!    [`draining`](TrackEventsHandle::draining) end. Requests are served, their events accepted, until load balancers
//!    stop routing to this instance.
//! 2. The servers stop. They have a share of the limit, because one client with half a request head keeps a server from
//!    stopping.
//! 3. The [drain](TrackEventsHandle::drain) waits, with the time that is left. When a quarter of the limit is left, at
//!    most 5 seconds, it makes the *last call*: events whose responses are still open start, with
//!    [`Outcome::Unfinished`].
//! 4. *Closing.* When no request is open any more, only code that runs inside an event may still track.
//! 5. *Drained.* Everything is rejected. Sinks are dropped, and the report is printed.
//!
//! [`guide::shutdown`] has the details: the limits of platforms, each server, WebSockets, the exit code, and the same
//! steps without `shutdown`.
//!
//! # Guarantees
//!
//! 1. *Conservation.* At every [`Snapshot`], `accepted = ended.total() + pending`: each accepted event has completed,
//!    failed, panicked, timed out or been aborted, or is pending.
//! 2. *Drained is final and true.* A drain is `Ok` only if at one instant nothing was open or pending, and everything
//!    has been rejected since. The writes of the events, and their destructors, happened before it returned.
//! 3. *No gap between open and drained.* Before that instant every event is accepted, within the capacity, except for
//!    background tasks while the drain is [closing](TrackEventsHandle::drain): an event may track another, an open
//!    exchange may track its own.
//! 4. *Started at most once, ended exactly once.* (An event that is sent to a sink is delivered at least once, or is
//!    passed to [`on_undelivered`](SinkBuilder::on_undelivered).)
//! 5. *Bounded.* `pending + reserved` never exceeds the [capacity](TrackEventsHandleBuilder::capacity), and
//!    [`TrackError::Full`] is returned only when all of it is taken. The requests of a layer may [wait](Overflow) for
//!    capacity. An event that is sent to a sink counts against the [capacity of that sink](SinkBuilder::capacity)
//!    instead.
//! 6. *Isolated.* A panic ends one event and no other. No user code runs under a lock of this crate.
//! 7. *Transparent.* A client sees the same bytes with and without the layer.
//!
//! Not guaranteed: events live in this process and run at most once, so `SIGKILL`, power loss, `process::exit` and
//! `panic = "abort"` lose pending events. Work that must survive a crash belongs in an outbox or a broker. An event
//! that blocks its thread delays others, as in any task: use [`track_blocking`](TrackEventsHandle::track_blocking).
//!
//! # Guide
//!
//! Pages, in the order in which to read them:
//!
//! - [`guide::client_left`]: which events run when the client leaves.
//! - [`guide::outcomes`]: when an exchange is over, and which of nine outcomes its events get.
//! - [`guide::context`]: what an event knows of its request: values, task-locals, spans.
//! - [`guide::shutdown`]: one call from the signal to the exit, on each platform and each server.
//! - [`guide::capacity`]: what happens at capacity, and how to choose it.
//! - [`guide::sinks`]: typed events in batches, and which failures each way to store them survives.
//! - [`guide::observing`]: counts, log lines, spans and metrics.
//! - [`guide::testing`]: how to test handlers and hooks without a server.
//! - [`guide::troubleshooting`]: what an error or a log line means, and how to fix it.
//! - [`guide::migrating`]: what replaces a `TaskTracker` and a `CancellationToken`, call by call.
//!
//! # Features
//!
//! `axum` and `signal` are on by default. No feature changes the behaviour of another.
//!
//! - `signal`: SIGTERM and Ctrl-C begin a [`shutdown`](TrackEventsHandle::shutdown). Without it, pass a future to
//!   [`Shutdown::signal`].
//! - `axum`: [`Events`] as an extractor, [`TrackError`] and [`TrySendError`] as 503 responses.
//! - `metrics`: counters, gauges and histograms for the [`metrics`](https://docs.rs/metrics) facade, see
//!   [`guide::observing`].
//! - `hyper`: `TrackEventsHandle::executor`, with which a drain waits for each HTTP/2 stream from its spawn.
//! - `sink`: typed events in batches, [`guide::sinks`].
//! - `serde`: `Serialize` for [`Snapshot`], [`DrainReport`] and what they contain.
#![cfg_attr(docsrs, feature(doc_cfg))]

/// Compiles the code of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod guide;
#[cfg(feature = "sink")]
pub mod sink;

/// `TestExchange`, for tests of handlers and hooks without a server.
pub mod test {
    pub use crate::exchange::TestExchange;
}

mod context;
mod drain;
mod error;
mod event;
mod exchange;
mod handle;
mod layer;
mod metrics;
mod registry;
mod shutdown;
mod util;

#[cfg(feature = "axum")]
mod axum;
#[cfg(feature = "hyper")]
mod hyper;

pub use self::{
    drain::{Drain, DrainError, DrainReport, Draining, OpenItem, OpenKind, WaitIdle, WaitIdleError},
    error::{BuildError, TrackError},
    event::EventOutput,
    exchange::{Events, Exchange, Outcome, Overflow, RequestInfo},
    handle::{DrainGuard, Permit, Scope, TrackEventsHandle, TrackEventsHandleBuilder},
    layer::{ResponseBody, ResponseFuture, TrackEvents, TrackEventsLayer},
    registry::{EventCounts, EventFailures, SinkSnapshot, Snapshot},
    shutdown::{Shutdown, ShutdownReport, StepOutcome, Stop},
};

#[cfg(feature = "axum")]
pub use self::axum::MissingTrackEventsLayer;
#[cfg(feature = "hyper")]
pub use self::hyper::{DrainExecutor, Guarded};
#[cfg(feature = "sink")]
pub use self::sink::{AckError, Batch, EventSender, SendPermit, SinkBuilder, SinkError, TrySendError, Undelivered};
