//! From a number it is unknown whether the event failed.

use tower_track_events::TrackEventsHandle;

fn main() {
    let handle = TrackEventsHandle::new();
    let _ = handle.track("audit", async { 42 });
}
