//! [`Refused`]: why an event, a guard or a permit was not taken.

use std::{error::Error, fmt};

/// Why an event, a guard or a permit was not taken.
///
/// A refusal is decided once, when the event is recorded: nothing is dropped after it was accepted.
/// Each one is counted in [`Snapshot::refused`](crate::Snapshot::refused).
///
/// # Examples
///
/// ```
/// use tower_track_events::{Refused, TrackEventsHandle};
///
/// // Outside a tokio runtime there is nothing to run the event on.
/// let handle = TrackEventsHandle::new();
/// assert_eq!(handle.track("audit", async {}), Err(Refused::NoRuntime));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Refused {
    /// The handle is drained: nothing is taken any more. This is final.
    Drained,
    /// As many events are pending or reserved as the
    /// [capacity](crate::TrackEventsHandleBuilder::capacity) allows. Room returns when one of them ends.
    Full,
    /// There is no tokio runtime to run the event on: it was recorded outside of one, while the handle has neither been
    /// [given one](crate::TrackEventsHandleBuilder::runtime), nor tracked an event or served a request inside one.
    NoRuntime,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Drained => "refused: the server is shutting down and its events are drained",
            Self::Full => "refused: as many events are pending as the capacity allows; try again when some have ended",
            Self::NoRuntime => {
                "refused: there is no tokio runtime to run the event on: track it inside one, or give one to the \
                 builder of the handle"
            }
        })
    }
}

impl Error for Refused {}
