//! Names are part of the program: reports and metrics have one line for each.

use tower_track_events::TrackEventsHandle;

fn main() {
    let handle = TrackEventsHandle::new();
    let name = format!("order {}", 7);
    let _ = handle.track(name, async {});
}
