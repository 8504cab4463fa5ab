//! A delivery returns `()` or a `Result`.

use tower_track_events::TrackEventsHandle;

fn main() {
    let handle = TrackEventsHandle::new();
    let _ = handle.sink::<u32>("row").deliver(|rows| async move { rows.len() });
}
