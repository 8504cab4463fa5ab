//! Which events run when the client leaves.
//!
//! A client may leave at any time: it closes a tab, or loses patience, or its network is gone. The server then drops what
//! it was doing for it: the future of the response, or its body. What the handler has done by then is done, so its events
//! run in any case, and are told if they ask:
//!
//! | the event | is recorded by | and is for |
//! |---|---|---|
//! | whatever happened to the response | [`Events::track`] | what the handler *did*: an audit row, `order.created` |
//! | told how the exchange ended | [`Events::track_with`] | what the client *was sent*: a bill for the bytes, a log line |
//! | only if the handler came to its end | [`Events::track`] as its last line | what follows from the whole of its work |
//! | before there is a handler | [`TrackEventsLayerBuilder::track`] | every exchange: access logs, usage |
//!
//! # In the handler: where it stands decides
//!
//! A handler is dropped at one of its `.await`s. What stands after it is not recorded. So record an event beside the act that it
//! belongs to, with no `.await` in between:
//!
//! ```
//! # use tower_track_events::{Events, Refused};
//! # async fn insert() -> u64 { 1 }
//! # async fn render(order: u64) -> String { order.to_string() }
//! # async fn publish(order: u64) {}
//! async fn create(events: Events) -> Result<String, Refused> {
//!     let receipt = events.reserve()?; // there will be room
//!     let order = insert().await; // if the client leaves here the insert may or may not have happened
//!     receipt.track("order.created", publish(order)); // from here on the event runs
//!     Ok(render(order).await) // if the client leaves here, too
//! }
//! ```
//!
//! What must happen together with the insert even if the handler is dropped in the midst of it belongs into one event, or
//! into one transaction: move both into [`TrackEventsHandle::track`](crate::TrackEventsHandle::track), which the client's
//! leaving does not touch.
//!
//! # After the handler: ask for the outcome
//!
//! [`Outcome::Complete`] says that the response was handed to the server in full, not that the client has it. What the
//! client left half-way is [`Outcome::Aborted`]; what it left before there was a response, [`Outcome::NoResponse`]:
//!
//! ```
//! # use tower_track_events::{Events, Exchange, Outcome, Refused};
//! # async fn bill(bytes: u64) {}
//! # async fn count_download() {}
//! fn download(events: &Events) -> Result<(), Refused> {
//!     events.track_with("download.billed", |exchange: Exchange| async move {
//!         bill(exchange.body_bytes).await; // also of half a file
//!         if exchange.outcome == Outcome::Complete {
//!             count_download().await;
//!         }
//!     })
//! }
//! ```
//!
//! An endless stream has no other end than that the client leaves: there `Aborted` is the ordinary outcome.
//! [`outcomes`](super::outcomes) has all of them, and what a timeout or a proxy makes of them.
//!
//! [`Events::track`]: crate::Events::track
//! [`Events::track_with`]: crate::Events::track_with
//! [`Outcome::Aborted`]: crate::Outcome::Aborted
//! [`Outcome::Complete`]: crate::Outcome::Complete
//! [`Outcome::NoResponse`]: crate::Outcome::NoResponse
//! [`TrackEventsLayerBuilder::track`]: crate::TrackEventsLayerBuilder::track
