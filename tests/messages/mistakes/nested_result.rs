//! The error of a nested `Result` would be ignored: a `?` is missing.

use std::{io, time::Duration};

use tokio::time::timeout;
use tower_track_events::{Batch, TrackEventsHandle};

async fn insert(rows: Batch<u32>) -> io::Result<usize> {
    Ok(rows.len())
}

fn main() {
    let handle = TrackEventsHandle::new();
    let _ = handle
        .sink::<u32>("row")
        .deliver(|rows| async move { timeout(Duration::from_secs(1), insert(rows)).await });
}
