//! A hook is cloned for each request.

use std::sync::{Mutex, mpsc};

use tower_track_events::TrackEventsHandle;

fn main() {
    let (lines, _) = mpsc::channel::<String>();
    let lines = Mutex::new(lines);
    let _layer = TrackEventsHandle::new().layer().track("access", move |exchange| async move {
        let _ = lines.lock().unwrap().send(exchange.outcome.to_string());
    });
}
