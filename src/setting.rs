//! [`InvalidSetting`]: what a builder cannot build.

use std::{error::Error, fmt};

use crate::ledger::MAX_CAPACITY;

/// A setting of a [`TrackEventsHandleBuilder`](crate::TrackEventsHandleBuilder) that is out of its range.
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
}

impl fmt::Display for InvalidSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Capacity(capacity) => {
                write!(f, "the capacity must be from 1 to {}, and is {capacity}", MAX_CAPACITY)
            }
            Self::EventTimeout => f.write_str("the event timeout must be longer than zero; leave it out for no limit"),
        }
    }
}

impl Error for InvalidSetting {}
