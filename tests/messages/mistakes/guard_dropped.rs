//! A guard that is not bound to a name is dropped at once.

#![deny(unused_must_use)]

use tower_track_events::TrackEventsHandle;

fn main() {
    TrackEventsHandle::new().guard();
}
