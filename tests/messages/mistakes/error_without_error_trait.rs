//! The error of an event has to be an `Error`, or a text.

use std::fmt;

use tower_track_events::TrackEventsHandle;

struct OutOfPaper;

impl fmt::Display for OutOfPaper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("out of paper")
    }
}

async fn print() -> Result<(), OutOfPaper> {
    Err(OutOfPaper)
}

fn main() {
    let handle = TrackEventsHandle::new();
    let _ = handle.track("invoice.printed", print());
}
