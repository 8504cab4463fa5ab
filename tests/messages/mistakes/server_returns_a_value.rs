//! From a number it is unknown whether a server failed.

use tower_track_events::TrackEventsHandle;

#[tokio::main]
async fn main() {
    TrackEventsHandle::new()
        .shutdown()
        .serve(|stop| async move {
            stop.await;
            42
        })
        .await
        .exit()
}
