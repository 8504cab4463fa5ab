//! Counts for the `metrics` facade. Its recorder is user code: it runs without a lock, and its panic is contained.

use std::time::Duration;

use metrics::{counter, gauge, histogram};
use tokio::time::Instant;

use crate::{contain::contain, refused::Refused, snapshot::Ending};

/// When an event has begun to run.
pub(crate) struct Began(Instant);

impl Began {
    pub(crate) fn now() -> Self {
        Self(Instant::now())
    }
}

pub(crate) fn accepted(event: &'static str) {
    let _ = contain(|| {
        counter!("tower_track_events_accepted_total", "event" => event).increment(1);
        gauge!("tower_track_events_pending_events").increment(1);
    });
}

/// An event that has never run has no duration.
pub(crate) fn ended(event: &'static str, ending: Ending, began: Option<&Began>) {
    let _ = contain(|| {
        counter!("tower_track_events_ended_total", "event" => event, "ending" => ending.as_str()).increment(1);
        gauge!("tower_track_events_pending_events").decrement(1);
        if let Some(Began(began)) = began {
            histogram!("tower_track_events_event_duration_seconds", "event" => event).record(began.elapsed());
        }
    });
}

pub(crate) fn refused(event: &'static str, refused: Refused) {
    let reason = match refused {
        Refused::Drained => "drained",
        Refused::Full => "full",
        Refused::NoRuntime => "no_runtime",
    };
    let _ = contain(|| counter!("tower_track_events_refused_total", "event" => event, "reason" => reason).increment(1));
}

pub(crate) fn request_opened() {
    let _ = contain(|| gauge!("tower_track_events_open_requests").increment(1));
}

pub(crate) fn request_closed() {
    let _ = contain(|| gauge!("tower_track_events_open_requests").decrement(1));
}

pub(crate) fn drained(elapsed: Duration, outcome: &'static str) {
    let _ = contain(|| histogram!("tower_track_events_drain_duration_seconds", "outcome" => outcome).record(elapsed));
}
