//! What happens when the house is full.
//!
//! At most [`capacity`] events are pending at once, 65,536 unless set. Without a bound a store that is down, or a flood
//! of requests, would fill the memory until the process is killed, and lose all of them. With it an event beyond the
//! capacity is *refused*: `track` answers [`Refused::Full`] at the place where something can still be done about it, and
//! [`Snapshot::refused`] counts it. Nothing that was accepted is dropped for it.
//!
//! # In a handler
//!
//! If the event must not be missing, refuse the request: with the feature `axum`, `?` answers 503, and a client or load
//! balancer tries elsewhere. Decide before the work is done, by a permit:
//!
//! ```
//! # use tower_track_events::{Events, Refused};
//! # async fn charge_card() {}
//! async fn pay(events: Events) -> Result<&'static str, Refused> {
//!     let receipt = events.reserve()?; // 503 before the money moves
//!     charge_card().await;
//!     receipt.track("receipt", async { /* cannot be refused any more */ });
//!     Ok("paid")
//! }
//! ```
//!
//! If it may be missing, say so, and go on:
//!
//! ```
//! # use tower_track_events::{Events, Refused};
//! # fn handler(events: &Events) {
//! if let Err(refused) = events.track("page.viewed", async {}) {
//!     // Counted by the snapshot already.
//!     # let _: Refused = refused;
//! }
//! # }
//! ```
//!
//! # In a layer
//!
//! An event of the layer has nobody to whom an error could be given. [`Overflow`] is what becomes of it: with `Shed`, the
//! default, the request goes on without its event, which is counted as refused; with `Wait(limit)` the request waits for
//! room, at most so long, before the future of the service is polled. Those who wait are served in the order of their
//! arrival.
//!
//! ```
//! use std::time::Duration;
//!
//! use tower_track_events::{Exchange, Overflow, TrackEventsHandle, TrackEventsLayer};
//!
//! let layer = TrackEventsLayer::builder(TrackEventsHandle::new())
//!     .track("audit", |_request| |_exchange: Exchange| async { /* write the row */ })
//!     .overflow(Overflow::Wait(Duration::from_millis(500)))
//!     .build();
//! # let _ = layer;
//! ```
//!
//! # How large
//!
//! The capacity is a bound for memory, not for work in progress. An event takes what its future owns and some 250 bytes
//! more (`scripts/costs` measures it), so 65,536 small ones take about 17 MiB. Choose what the process can hold, and what
//! can be ended within the limit of the drain: if one event takes 20 ms of a database that serves ten at once, 500 events end
//! in a second, and a drain of eight seconds ends 4,000. Where that is too little, a [sink](super::sinks) writes a batch in
//! one statement.
//!
//! # How it is seen
//!
//! One line at `WARN` when an episode begins, and one at `INFO` when a quarter is free again; the metric
//! `tower_track_events_refused_total` with `reason="full"`. A house that is full again and again has a store that is too
//! slow, or events that never end: a limit for each, [`event_timeout`], is what ends them.
//!
//! [`capacity`]: crate::TrackEventsHandleBuilder::capacity
//! [`event_timeout`]: crate::TrackEventsHandleBuilder::event_timeout
//! [`Overflow`]: crate::Overflow
//! [`Refused::Full`]: crate::Refused::Full
//! [`Snapshot::refused`]: crate::Snapshot::refused
