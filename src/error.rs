//! [`TrackError`] and [`BuildError`]: why something was not accepted, and what a builder cannot build.

use std::{error::Error, fmt};

use tokio::sync::Semaphore;

/// The largest capacity of a handle or a sink.
pub(crate) const MAX_CAPACITY: usize = u32::MAX as usize;

/// Why an event, a guard or a permit was rejected.
///
/// The decision is made once, when the event is tracked: nothing is dropped after it was accepted.
/// Each rejection that its caller gets is counted in [`Snapshot::rejected`](crate::Snapshot::rejected).
///
/// # Examples
///
/// ```
/// use tower_track_events::{TrackError, TrackEventsHandle};
///
/// // Outside a tokio runtime there is nothing to run the event on.
/// let handle = TrackEventsHandle::new();
/// assert_eq!(handle.track("audit", async {}), Err(TrackError::NoRuntime));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TrackError {
    /// The handle is drained, or a drain is closing it.
    ///
    /// Once a drain was `Ok` this is final. While a drain is closing, what runs inside an event, a request or a
    /// [guard's scope](crate::DrainGuard::scope) is still accepted.
    Closed,
    /// As many events are pending or reserved as the
    /// [capacity](crate::TrackEventsHandleBuilder::capacity) allows. A slot is free again when one of them ends.
    Full,
    /// There is no tokio runtime to run the event on: it was tracked outside of one, while the handle has neither been
    /// [given one](crate::TrackEventsHandleBuilder::runtime), nor tracked an event or served a request inside one.
    NoRuntime,
}

impl fmt::Display for TrackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "rejected: the server is shutting down and accepts no more events",
            Self::Full => "rejected: as many events are pending as the capacity allows; try again when some have ended",
            Self::NoRuntime => {
                "rejected: there is no tokio runtime to run the event on: track it inside one, or pass one to the \
                 builder of the handle"
            }
        })
    }
}

impl Error for TrackError {}

/// A setting of a [`TrackEventsHandleBuilder`](crate::TrackEventsHandleBuilder) or a
/// [`SinkBuilder`](crate::SinkBuilder) that is out of its range.
///
/// # Examples
///
/// ```
/// use tower_track_events::{BuildError, TrackEventsHandle};
///
/// let error = TrackEventsHandle::builder().capacity(0).build().unwrap_err();
/// assert_eq!(error, BuildError::Capacity(0));
/// assert_eq!(error.to_string(), "the capacity must be from 1 to 4294967295, and is 0");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BuildError {
    /// The capacity, which is given here, must be from 1 to 4,294,967,295.
    Capacity(usize),
    /// The event timeout must be longer than zero.
    EventTimeout,
    /// The concurrency limit, which is given here, must be at least 1, and at most what tokio's semaphore allows.
    ConcurrencyLimit(usize),
    /// The time limit of a delivery must be longer than zero.
    DeliverTimeout,
    /// The maximum size of a batch must be at least one event, and one byte.
    MaxBatch,
    /// The number of batches in flight, which is given here, must be at least 1; and 1 for a blocking delivery.
    MaxInFlight(usize),
    /// The maximum number of attempts must be at least one.
    MaxAttempts,
    /// A sink delivers on a tokio runtime with timers: build it inside one, or
    /// [pass one](crate::TrackEventsHandleBuilder::runtime) to the builder of the handle.
    NoRuntime,
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Capacity(capacity) => {
                write!(f, "the capacity must be from 1 to {MAX_CAPACITY}, and is {capacity}")
            }
            Self::EventTimeout => f.write_str("the event timeout must be longer than zero; leave it out for no limit"),
            Self::ConcurrencyLimit(limit) => {
                write!(f, "the concurrency limit must be from 1 to {}, and is {limit}", Semaphore::MAX_PERMITS)
            }
            Self::DeliverTimeout => f.write_str("the time limit of a delivery must be longer than zero"),
            Self::MaxBatch => f.write_str("the maximum size of a batch must be at least one event, and one byte"),
            Self::MaxInFlight(batches) => {
                write!(f, "the number of batches in flight must be at least 1, or 1 for `deliver_blocking`, and is {batches}")
            }
            Self::MaxAttempts => {
                f.write_str("the maximum number of attempts must be at least one; leave it out for no limit")
            }
            Self::NoRuntime => f.write_str(
                "a sink needs a tokio runtime with timers: build it inside one, or pass one to the builder of the handle",
            ),
        }
    }
}

impl Error for BuildError {}
