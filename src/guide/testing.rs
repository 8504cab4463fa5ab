//! How to test handlers that record events.
//!
//! # A handler, without a server
//!
//! [`Events::detached`] opens an exchange that no server knows of. The handler records into it, and the test ends it with
//! an [`Exchange`] of its own. What the handler has recorded is *pending* until then, and has started after it:
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//!
//! use tokio::sync::Mutex;
//! use tower_track_events::{Events, Exchange, Outcome, Refused, TrackEventsHandle};
//!
//! type Table = Arc<Mutex<Vec<u64>>>;
//!
//! /// The handler: bills what the client was sent.
//! async fn download(events: &Events, bills: Table) -> Result<&'static str, Refused> {
//!     events.track_with("bill", |exchange: Exchange| async move {
//!         bills.lock().await.push(exchange.body_bytes);
//!     })?;
//!     Ok("the file")
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (handle, bills) = (TrackEventsHandle::new(), Table::default());
//! let request = Events::detached(&handle);
//! assert_eq!(download(request.events(), bills.clone()).await?, "the file");
//! assert!(bills.lock().await.is_empty()); // the response is not over
//!
//! let mut exchange = Exchange::new(Outcome::Aborted); // the client left half-way
//! exchange.body_bytes = 512;
//! request.end(exchange);
//!
//! handle.wait_idle(Duration::from_secs(1)).await?;
//! assert_eq!(*bills.lock().await, [512]);
//! assert_eq!(handle.snapshot().completed, 1);
//! # Ok(()) }
//! ```
//!
//! With the feature `axum` a handler takes `Events` as an argument, and the test gives it `request.events().clone()`. A
//! handler that looks for it in its request is given one whose extensions have such a clone.
//!
//! # What was recorded
//!
//! [`Snapshot::pending`] counts it, and a [`wait_idle`] of no time at all names it:
//!
//! ```
//! use std::time::Duration;
//!
//! use tower_track_events::{Events, TrackEventsHandle, WaitIdleError};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let handle = TrackEventsHandle::new();
//! # let request = Events::detached(&handle);
//! request.events().track("audit", async {})?;
//! let Err(WaitIdleError::TimedOut { pending, .. }) = handle.wait_idle(Duration::ZERO).await else {
//!     panic!("nothing is pending");
//! };
//! assert_eq!(pending[0].name, "audit");
//! # Ok(()) }
//! ```
//!
//! # That it ran, and that it did not fail
//!
//! A test that ends with a [`drain`] asserts both: it is an `Err` if anything is left, and
//! [`all_completed`](crate::DrainReport::all_completed) is false if an event failed, panicked, timed out or was aborted.
//! The report names which. A handle without a settle time makes it return as soon as nothing is open:
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//!
//! use tower_track_events::TrackEventsHandle;
//!
//! let handle = TrackEventsHandle::builder().settle(Duration::ZERO).build()?;
//! handle.track("audit", async { Err::<(), _>("the table is gone") })?;
//! let report = handle.drain(Duration::from_secs(1)).await?;
//! assert!(!report.all_completed());
//! assert_eq!(report.endings.failed, 1);
//! # Ok(()) }
//! ```
//!
//! # A refusal
//!
//! A handle with room for one event refuses the second, which is how a handler is seen to answer 503:
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use tower_track_events::{Events, Refused, TrackEventsHandle};
//!
//! let handle = TrackEventsHandle::builder().capacity(1).build()?;
//! let request = Events::detached(&handle);
//! let _taken = request.events().reserve()?;
//! assert_eq!(request.events().track("audit", async {}), Err(Refused::Full));
//! # Ok(()) }
//! ```
//!
//! # Time
//!
//! All clocks and timers are tokio's. Under `#[tokio::test(start_paused = true)]` the settle time, the limits of events
//! and drains and the pauses of a sink pass at once, in their order, and an age in a report is exact:
//!
//! ```
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//!
//! use tokio::time::sleep;
//! use tower_track_events::{DrainError, TrackEventsHandle};
//!
//! let handle = TrackEventsHandle::new();
//! handle.track("slow", sleep(Duration::from_secs(60)))?;
//! let Err(DrainError::CutShort(unfinished)) = handle.drain(Duration::from_secs(8)).await else {
//!     panic!("the event was not waited for");
//! };
//! assert_eq!(unfinished.events[0].name, "slow");
//! # Ok(()) }
//! ```
//!
//! # With the layer
//!
//! Where the end of the response matters, drive the whole service, without a socket: `tower::ServiceExt::oneshot`. The
//! exchange is over when the body of the response was read to its end or dropped, so do one of the two before the assertion:
//!
//! ```
//! use std::time::Duration;
//!
//! use axum::{Router, body::Body, routing::get};
//! use http::Request;
//! use http_body_util::BodyExt;
//! use tower::ServiceExt;
//! use tower_track_events::{Events, Refused, TrackEventsLayer};
//!
//! async fn hello(events: Events) -> Result<&'static str, Refused> {
//!     events.track("greeted", async {})?;
//!     Ok("hello")
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (layer, handle) = TrackEventsLayer::pair();
//! let app = Router::new().route("/", get(hello)).layer(layer);
//! let response = app.oneshot(Request::get("/").body(Body::empty())?).await?;
//! assert_eq!(handle.snapshot().pending, 1);
//! assert_eq!(response.into_body().collect().await?.to_bytes(), "hello");
//! handle.wait_idle(Duration::from_secs(1)).await?;
//! assert_eq!(handle.snapshot().completed, 1);
//! # Ok(()) }
//! ```
//!
//! [`drain`]: crate::TrackEventsHandle::drain
//! [`wait_idle`]: crate::TrackEventsHandle::wait_idle
//! [`Events::detached`]: crate::Events::detached
//! [`Exchange`]: crate::Exchange
//! [`Snapshot::pending`]: crate::Snapshot::pending
