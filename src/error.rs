//! [`TrackError`]: why an event was rejected. [`BuildError`]: why a builder cannot build.

use std::{error::Error, fmt};

use tokio::sync::Semaphore;

/// The largest capacity of a handle or a sink.
pub(crate) const MAX_CAPACITY: usize = u32::MAX as usize;

/// Why an event, a guard or a permit was rejected.
///
/// The decision is made once, when the event is tracked. No accepted event is dropped later for lack of capacity. Each
/// rejection is counted in [`Snapshot::rejected`](crate::Snapshot::rejected).
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
    /// After a drain was `Ok` this is final. While a drain is closing, code inside an event, a request or a
    /// [guard's scope](crate::DrainGuard::scope) may still track. A sink also returns this after its service has
    /// [failed for good](crate::SinkBuilder::service).
    Closed,
    /// As many events are pending or reserved as the [capacity](crate::TrackEventsHandleBuilder::capacity) of the
    /// handle, or [of the sink](crate::SinkBuilder::capacity), allows. A slot is free again when one of them ends.
    Full,
    /// There is no tokio runtime to run the event on.
    ///
    /// The event was tracked outside of a runtime. The handle has not been
    /// [given one](crate::TrackEventsHandleBuilder::runtime), and has not tracked an event or served a request inside
    /// one before. A sink returns this after its runtime has shut down.
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

/// Why a [`TrackEventsHandleBuilder`](crate::TrackEventsHandleBuilder) or a [`SinkBuilder`](crate::SinkBuilder) cannot
/// build: a setting is out of its range, or there is no runtime.
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
    /// The capacity must be from 1 to 4,294,967,295. Contains the value that was set.
    Capacity(usize),
    /// The event timeout must be longer than zero.
    EventTimeout,
    /// The concurrency limit must be from 1 to [`Semaphore::MAX_PERMITS`]. Contains the value that was set.
    ConcurrencyLimit(usize),
    /// The time limit of a delivery must be longer than zero.
    DeliverTimeout,
    /// The maximum size of a batch must be at least one event, and one byte.
    MaxBatch,
    /// The number of batches in flight must be at least 1, and exactly 1 for a blocking delivery. Contains the value
    /// that was set.
    MaxInFlight(usize),
    /// The maximum number of attempts must be at least one.
    MaxAttempts,
    /// A sink needs a tokio runtime with timers. Build the sink inside one, or
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
                write!(
                    f,
                    "the number of batches in flight must be at least 1, or 1 for `deliver_blocking`, and is {batches}"
                )
            }
            Self::MaxAttempts => {
                f.write_str("the maximum number of attempts must be at least one; leave it out for no limit")
            }
            Self::NoRuntime => f.write_str(
                "a sink needs a tokio runtime with timers: build it inside one, or pass one to the builder of the \
                 handle",
            ),
        }
    }
}

impl Error for BuildError {}
