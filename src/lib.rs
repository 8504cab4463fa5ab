//! Work that happens after the response, and is not lost when the process stops.
//!
//! Handlers leave work until after the response that must not delay it: write an audit row, bill the bytes, publish
//! `order.created`. With `tokio::spawn(..)`, what has not finished when the process stops is lost. This crate is a
//! Tower layer that wraps any HTTP service and starts such *events* once the response is over. The application keeps a
//! [handle](TrackEventsHandle), whose [`drain(limit)`](TrackEventsHandle::drain) is a part of the server's shutdown.
//!
//! # Quick start
//!
//! ```no_run
//! use axum::{Router, routing::post};
//! use tokio::net::TcpListener;
//! use tower_track_events::{Events, TrackError, TrackEventsLayer};
//!
//! async fn create_order(events: Events) -> Result<&'static str, TrackError> {
//!     events.track("order.created", async { /* publish it */ })?; // starts after the response
//!     Ok("created")
//! }
//!
//! #[tokio::main]
//! async fn main() {
//!     let (layer, handle) = TrackEventsLayer::pair();
//!     let app = Router::new().route("/orders", post(create_order)).layer(layer);
//!     handle
//!         .shutdown() // SIGTERM and Ctrl-C; a second one ends the wait
//!         .serve(|stop| async move {
//!             let listener = TcpListener::bind("127.0.0.1:3000").await?;
//!             axum::serve(listener, app).with_graceful_shutdown(stop).await
//!         })
//!         .await // the report: servers and drain, a line each
//!         .exit() // prints it, ends the process with 0 or 1
//! }
//! ```
//!
//! Without axum, take [`Events`] from the request: [`Events::from_extensions`].
//!
//! # Terms
//!
//! - An *exchange* is one request and its response (RFC 9110), from the call of the service until the response is over.
//! - An *event* is one named piece of tracked work: a future or a blocking closure that starts after the response, or
//!   at once through the handle.
//! - An event is *accepted* or *rejected* when it is tracked, and never dropped later. An accepted event ends in
//!   exactly one way, and is [counted](EventCounts). A rejected one is an error that its caller gets, and a count.
//! - A *sink* gets typed events in batches, instead of a task for each: see [`guide::sinks`].
//! - A *guard* keeps a drain waiting for as long as it lives; a *permit* is a reserved capacity slot for one event.
//! - To *drain* is to wait, within a limit, until no exchange is open and no event is pending, and then to reject
//!   everything.
//!
//! # When events start
//!
//! The events of an exchange start when its response is over: with the last frame of its body, if that frame shows that
//! it is the last, or else when the body is dropped. [`Outcome`] says how it ended. They start whatever the outcome,
//! also when the service fails or panics, or the client leaves before the response. An event that needs the outcome
//! gets an
//! [`Exchange`]: [`Events::track_with`].
//!
//! Some outcomes are surprising: an endless stream ends as [`Outcome::Aborted`], and a timeout may end as
//! [`Outcome::Complete`]. [`guide::outcomes`] goes through all of them.
//!
//! The events of one response run in one task, start in the order in which they were tracked, and run concurrently. An
//! event of the handle is a task of its own.
//!
//! # Shutdown
//!
//! A server that has returned is not a server without requests: each HTTP/2 stream is a task of its own. So a drain
//! waits for requests as well as for events. [`shutdown`](TrackEventsHandle::shutdown) does all steps within one limit
//! that is counted from the signal:
//!
//! 1. *Draining.* [`is_draining`](TrackEventsHandle::is_draining) returns true, and streams that wait for
//!    [`draining`](TrackEventsHandle::draining) end. Requests are served, their events accepted, until load balancers
//!    stop routing to this instance.
//! 2. The servers stop, within a share of the limit: one client with half a request head would keep them from stopping.
//! 3. The [drain](TrackEventsHandle::drain), with the time that is left. A quarter before the limit it makes the *last
//!    call*: events whose responses are still open start, with [`Outcome::Unfinished`].
//! 4. *Closing.* Once no request is open, only what runs inside an event may still track.
//! 5. *Drained.* Everything is rejected; sinks are dropped; the report is printed.
//!
//! [`guide::shutdown`] has the details: the limits of platforms, each server, WebSockets, the exit code, and the same
//! by hand.
//!
//! # Guarantees
//!
//! 1. *Conservation.* At every [`Snapshot`], `accepted = ended.total() + pending`: each accepted event has completed,
//!    failed, panicked, timed out or been aborted, or is pending.
//! 2. *Drained is final and true.* A drain is `Ok` only if at one instant nothing was open or pending, and everything
//!    has been rejected since. What the events wrote, and their destructors, happened before it returned.
//! 3. *No gap between open and drained.* Before that instant every event is accepted, within the capacity, except for
//!    background tasks while the drain is [closing](TrackEventsHandle::drain): an event may track another, an open
//!    exchange may track its own.
//! 4. *Started at most once, ended exactly once.* (What is sent to a sink is delivered at least once.)
//! 5. *Bounded.* `pending + reserved` never exceeds the [capacity](TrackEventsHandleBuilder::capacity), and
//!    [`TrackError::Full`] is returned only when that many are taken. The requests of a layer may [wait](Overflow) for
//!    capacity. What is sent to a sink counts against the [capacity of that sink](SinkBuilder::capacity) instead.
//! 6. *Isolated.* A panic ends one event and no other. No user code runs under a lock of this crate.
//! 7. *Transparent.* A client sees the same bytes with and without the layer.
//!
//! Not guaranteed: events live in this process and run at most once, so `SIGKILL`, power loss, `process::exit` and
//! `panic = "abort"` lose what is pending. Work that must survive a crash belongs in an outbox or a broker. An event
//! that blocks its thread delays others, as in any task: use [`track_blocking`](TrackEventsHandle::track_blocking).
//!
//! # Guide
//!
//! - [`guide::shutdown`]: one call from the signal to the exit, for each server.
//! - [`guide::client_left`]: which events run when the client leaves.
//! - [`guide::outcomes`]: how each response can end, and when.
//! - [`guide::capacity`]: what to do when the capacity is used up.
//! - [`guide::testing`]: tests of handlers without a server.
//! - [`guide::sinks`]: typed events in batches, and what each store survives.
//! - [`guide::context`]: what an event knows of its request.
//! - [`guide::observing`]: counts, log lines, spans and metrics.
//! - [`guide::task_tracker`]: migrating from `TaskTracker`.
//!
//! # Features
//!
//! `axum` and `signal` are on by default. None changes behaviour.
//!
//! - `signal`: SIGTERM and Ctrl-C begin a [`shutdown`](TrackEventsHandle::shutdown).
//! - `axum`: [`Events`] as an extractor, [`TrackError`] and [`TrySendError`] as 503 responses.
//! - `metrics`: counters, gauges and histograms for the [`metrics`](https://docs.rs/metrics) facade, see
//!   [`guide::observing`].
//! - `hyper`: `TrackEventsHandle::executor`, for servers built directly on hyper.
//! - `sink`: typed events in batches, [`guide::sinks`].
//! - `serde`: `Serialize` for [`Snapshot`], [`DrainReport`] and what they contain.
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod guide;
#[cfg(feature = "sink")]
pub mod sink;

/// Tests of handlers and hooks without a server.
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
