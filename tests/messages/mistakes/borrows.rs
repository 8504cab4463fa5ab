//! An event outlives the handler, so it cannot borrow from it.

use tower_track_events::{Events, TrackError};

async fn create_order(events: Events, order: String) -> Result<(), TrackError> {
    events.track("audit", async {
        println!("{order}");
    })
}

fn main() {
    let _ = create_order;
}
