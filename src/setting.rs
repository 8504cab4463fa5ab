//! [`InvalidSetting`]: what a builder cannot build.

use std::{error::Error, fmt};

use crate::ledger::MAX_CAPACITY;

/// A setting of a [`TrackEventsHandleBuilder`](crate::TrackEventsHandleBuilder) or a [`SinkBuilder`](crate::SinkBuilder)
/// that is out of its range.
///
/// # Examples
///
/// ```
/// use tower_track_events::{InvalidSetting, TrackEventsHandle};
///
/// let error = TrackEventsHandle::builder().capacity(0).build().unwrap_err();
/// assert_eq!(error, InvalidSetting::Capacity(0));
/// assert_eq!(error.to_string(), "the capacity must be from 1 to 4294967295, and is 0");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidSetting {
    /// The capacity, which is given here, must be from 1 to 4,294,967,295.
    Capacity(usize),
    /// The event timeout must be longer than zero.
    EventTimeout,
    /// The time limit of a delivery must be longer than zero.
    DeliverTimeout,
    /// A batch must have room for at least one event.
    MaxBatch,
    /// A batch must be attempted at least once.
    MaxAttempts,
    /// A sink delivers on a tokio runtime with timers: it must be built inside one, unless the handle has been
    /// [given one](crate::TrackEventsHandleBuilder::runtime).
    NoRuntime,
}

impl fmt::Display for InvalidSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Capacity(capacity) => {
                write!(f, "the capacity must be from 1 to {}, and is {capacity}", MAX_CAPACITY)
            }
            Self::DeliverTimeout => f.write_str("the time limit of a delivery must be longer than zero"),
            Self::MaxBatch => f.write_str("a batch must have room for at least one event"),
            Self::MaxAttempts => f.write_str("a batch must be attempted at least once; leave it out for no limit"),
            Self::NoRuntime => f.write_str(
                "a sink needs a tokio runtime with timers: build it inside one, or give one to the builder of the handle",
            ),
            Self::EventTimeout => f.write_str("the event timeout must be longer than zero; leave it out for no limit"),
        }
    }
}

impl Error for InvalidSetting {}
