//! An event moves between threads, so its future has to be `Send`.

use std::rc::Rc;

use tower_track_events::TrackEventsHandle;

fn main() {
    let handle = TrackEventsHandle::new();
    let count = Rc::new(1);
    let _ = handle.track("audit", async move {
        tokio::task::yield_now().await;
        drop(count);
    });
}
