//! `?` on `track` needs a handler whose error a `TrackError` converts into.

use axum::{Router, routing::post};
use tower_track_events::Events;

async fn create_order(events: Events) -> Result<&'static str, String> {
    events.track("order.created", async {})?;
    Ok("created")
}

fn main() {
    let _: Router = Router::new().route("/orders", post(create_order));
}
