//! From `tokio_util`'s `TaskTracker` to this crate.
//!
//! A `TaskTracker` counts tasks, and `wait` returns when it is closed and they have ended. For background tasks that
//! is enough. Behind a server it leaves four questions open, which are what this crate is for:
//!
//! - *When may it be closed?* A server that has returned may still have handlers running, which spawn the next task.
//!   `close` does not refuse anything: what is spawned after `wait` has returned is lost. A [`drain`] counts requests as
//!   well, and refuses from the instant at which it is `Ok`.
//! - *What became of the tasks?* A panic, or an `Err`, goes into a `JoinHandle` that nobody looks at. Here each event has an
//!   ending that is counted and logged, and a drain that was cut short names what is left.
//! - *How many may there be?* As many as there is memory. Here [`capacity`](super::capacity) is a bound.
//! - *How did the response end?* An event recorded through [`Events`] starts when it is over, and can ask.
//!
//! In return a `TaskTracker` is cheaper, gives a `JoinHandle`, and tracks `!Send` tasks.
//!
//! # Call by call
//!
//! | `TaskTracker` | here |
//! |---|---|
//! | `tracker.spawn(future)` in a handler | [`events.track(name, future)?`](crate::Events::track), which starts after the response |
//! | `tracker.spawn(future)` elsewhere | [`handle.track(name, future)?`](crate::TrackEventsHandle::track) |
//! | `tracker.spawn_blocking(work)` | [`handle.track_blocking(name, work)?`](crate::TrackEventsHandle::track_blocking) |
//! | `tracker.track_future(future)`, polled by you | [`handle.guard()?`](crate::TrackEventsHandle::guard), kept beside the future |
//! | `tracker.token()` | [`handle.guard()?`](crate::TrackEventsHandle::guard) |
//! | `tracker.close(); tracker.wait().await` | [`handle.drain(limit).await`](crate::TrackEventsHandle::drain) |
//! | `timeout(limit, tracker.wait()).await` | the same: the limit is an argument, and the error says what was left |
//! | `tracker.wait()` between two steps, then `reopen()` | [`handle.wait_idle(limit).await`](crate::TrackEventsHandle::wait_idle) |
//! | `tracker.len()` | [`handle.snapshot()`](crate::TrackEventsHandle::snapshot) |
//! | a `CancellationToken` beside it | [`handle.draining()`](crate::TrackEventsHandle::draining), or [`abort`](crate::TrackEventsHandle::abort) |
//! | the `JoinHandle` of a task | none: let the event send its result through a channel |
//!
//! # Before and after
//!
//! ```no_run
//! # async fn write_row() {}
//! # async fn handler() {
//! use tokio_util::task::TaskTracker;
//!
//! let tracker = TaskTracker::new();
//! tracker.spawn(write_row()); // in the handler
//!
//! tracker.close(); // in the shutdown, when the server has returned
//! tracker.wait().await;
//! # }
//! ```
//!
//! ```
//! # async fn write_row() {}
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//!
//! use tower_track_events::{Events, TrackEventsLayer};
//!
//! let (layer, handle) = TrackEventsLayer::pair(); // the layer goes around the service
//! # let request = Events::detached(&handle);
//! # let events = request.events();
//! events.track("row", write_row())?; // in the handler
//!
//! # drop(request);
//! let report = handle.drain(Duration::from_secs(8)).await?; // in the shutdown
//! println!("{report}");
//! # let _ = layer;
//! # Ok(()) }
//! ```
//!
//! Give each event a name that a person will understand at night: it is what the report, the log and the metrics have.
//!
//! [`drain`]: crate::TrackEventsHandle::drain
//! [`Events`]: crate::Events
