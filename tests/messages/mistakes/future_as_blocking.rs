//! A future does nothing on a blocking thread.

use tower_track_events::TrackEventsHandle;

async fn publish() {}

fn main() {
    let handle = TrackEventsHandle::new();
    let _ = handle.track_blocking("order.published", || publish());
}
