//! How to see what goes on: counts, log lines, spans and metrics.
//!
//! # Counts
//!
//! [`snapshot`](crate::TrackEventsHandle::snapshot) counts everything at one instant, without any setup. With the feature
//! `serde` it is a JSON object for a status page. [`sinks`](crate::TrackEventsHandle::sinks) counts what was sent to each
//! sink. A [`DrainReport`](crate::DrainReport) has the same counts at the end.
//!
//! # Log lines
//!
//! They are written through [`tracing`](https://docs.rs/tracing), with targets that begin with `tower_track_events`.
//!
//! | level | line | when |
//! |---|---|---|
//! | `ERROR` | `event failed`, with `error` and the `location` where it was recorded | an event returned an `Err` |
//! | `ERROR` | `event panicked`, with `panic`, `location` | an event panicked |
//! | `ERROR` | `event timed out`, with `limit`, `location` | an event ran longer than [`event_timeout`] |
//! | `ERROR` | `observer panicked; the request was served`, with `panic` | it, or the closure that makes it |
//! | `ERROR` | `events were not delivered, and are ..`, with `events`, `error` | their sink has not taken them, and is not asked again |
//! | `ERROR` | `` `on_undelivered` panicked: what it has not stored is lost``, with `panic` | the closure to which they were handed over |
//! | `WARN` | `batch not delivered, and will be tried again`, with `attempt`, `error`, `again_in` | a sink failed, panicked, or took too long |
//! | `WARN` | `event aborted ..`, with `location` | by [`abort`], or because its runtime went away |
//! | `WARN` | `events are refused: ..` | the house, or the queue of a sink, is full, once an episode |
//! | `WARN` | `event runs without its time limit: ..` | its runtime has no timer |
//! | `INFO` | `events are accepted again: ..` | that episode is over: a quarter of the capacity is free |
//! | `INFO` | `batch delivered`, with `attempt` | at last |
//! | `INFO` | `draining: ..` | each second of a drain, or as often as [`progress`] says |
//!
//! All about one event have its name in the field `event`; all about a sink have its name in `sink`, and how many events
//! it is about in `events`. An episode ends only when there is some room again, so that a
//! house at the brim does not write a line for each refusal; the count of refusals is exact. Of the request nothing is
//! logged: no header, path or peer.
//!
//! # Spans
//!
//! Each event runs in a span `event` at the level `INFO`, with its name in the field `name`. The span has no parent: a
//! child would keep the span of its request open for as long as the event takes. Instead it follows from the span in
//! which the service was called, so a tracer can draw the link. An event that is tracked through the handle follows from
//! the span of the caller. Each batch is delivered in a span `deliver`, with the fields `sink` and `events`.
//!
//! # Metrics
//!
//! The feature `metrics` counts for the [`metrics`](https://docs.rs/metrics) facade. Without the feature there is no code
//! for it; without a recorder an event costs the question whether there is one. A recorder of size zero is taken for none.
//!
//! | name | kind | labels |
//! |---|---|---|
//! | `tower_track_events_accepted_total` | counter | `event` |
//! | `tower_track_events_ended_total` | counter | `event`, `ending`: `completed`, `failed`, `panicked`, `timed_out`, `aborted` |
//! | `tower_track_events_refused_total` | counter | `event`, or `(permit)` and `(guard)`; `reason`: `full`, `drained`, `no_runtime` |
//! | `tower_track_events_open_requests` | gauge | |
//! | `tower_track_events_pending_events` | gauge | |
//! | `tower_track_events_event_duration_seconds` | histogram, from the start of the event to its end | `event` |
//! | `tower_track_events_drain_duration_seconds` | histogram, from the signal to the answer | `outcome`: `drained`, `cut_short` |
//!
//! Events that are sent to a sink are counted as accepted and pending when their batch is made, because each send would
//! pay for it otherwise. They have no duration.
//!
//! Several handles count together. Install the recorder before the first event, or the gauges are off by what came
//! before it.
//!
//! [`abort`]: crate::TrackEventsHandle::abort
//! [`event_timeout`]: crate::TrackEventsHandleBuilder::event_timeout
//! [`progress`]: crate::TrackEventsHandleBuilder::progress
