//! Counts for the `metrics` facade. Its recorder is user code: it runs without a lock, and its panic is contained.

use std::time::Duration;

use metrics::{counter, gauge, histogram};
use tokio::time::Instant;

use crate::{contain::contain, refused::Refused, snapshot::Ending};

/// When an event has begun to run; unknown if nobody listens.
pub(crate) struct Began(Option<Instant>);

impl Began {
    pub(crate) fn now() -> Self {
        Self(is_heard().then(Instant::now))
    }
}

/// Whether a recorder is installed. Each name and label costs an allocation, also where nobody listens. The facade does
/// not say so, but what it has in place of a recorder is of size zero, which one that remembers anything is not.
fn is_heard() -> bool {
    metrics::with_recorder(|recorder| size_of_val(recorder) > 0)
}

/// Counts, if somebody listens.
fn tell(count: impl FnOnce()) {
    let _ = contain(|| {
        if is_heard() {
            count();
        }
    });
}

pub(crate) fn accepted(event: &'static str) {
    tell(|| {
        counter!("tower_track_events_accepted_total", "event" => event).increment(1);
        gauge!("tower_track_events_pending_events").increment(1);
    });
}

/// Events that were sent to a sink: told when it comes to them, because each send would pay for it.
pub(crate) fn queued(event: &'static str, count: u64) {
    tell(|| {
        counter!("tower_track_events_accepted_total", "event" => event).increment(count);
        gauge!("tower_track_events_pending_events").increment(count as f64);
    });
}

pub(crate) fn ended_many(event: &'static str, ending: Ending, count: u64) {
    tell(|| {
        counter!("tower_track_events_ended_total", "event" => event, "ending" => ending.as_str()).increment(count);
        gauge!("tower_track_events_pending_events").decrement(count as f64);
    });
}

/// Something that is counted only because it panicked.
pub(crate) fn panicked_in_place(event: &'static str) {
    tell(|| {
        counter!("tower_track_events_accepted_total", "event" => event).increment(1);
        let ending = Ending::Panicked.as_str();
        counter!("tower_track_events_ended_total", "event" => event, "ending" => ending).increment(1);
    });
}

/// An event that has never run has no duration.
pub(crate) fn ended(event: impl FnOnce() -> &'static str, ending: Ending, began: Option<Began>) {
    tell(|| {
        let event = event();
        counter!("tower_track_events_ended_total", "event" => event, "ending" => ending.as_str()).increment(1);
        gauge!("tower_track_events_pending_events").decrement(1);
        if let Some(Began(Some(began))) = began {
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
    tell(|| counter!("tower_track_events_refused_total", "event" => event, "reason" => reason).increment(1));
}

pub(crate) fn request_opened() {
    tell(|| gauge!("tower_track_events_open_requests").increment(1));
}

pub(crate) fn request_closed() {
    tell(|| gauge!("tower_track_events_open_requests").decrement(1));
}

pub(crate) fn drained(elapsed: Duration, outcome: &'static str) {
    let _ = contain(|| histogram!("tower_track_events_drain_duration_seconds", "outcome" => outcome).record(elapsed));
}
