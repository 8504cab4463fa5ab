//! Counters, gauges and histograms for the `metrics` facade. Without the feature, each function does nothing.
//!
//! The recorder is user code, so no lock is held when it is called.

#[cfg(feature = "metrics")]
use metrics::{counter, gauge, histogram};

use crate::{context::Ticket, error::TrackError, registry::Ending};

/// Defines functions whose bodies need the feature.
macro_rules! measure {
    ($($(#[$attribute:meta])* fn $name:ident($($argument:ident: $type:ty),*) $body:block)*) => {
        $(
            $(#[$attribute])*
            #[cfg(feature = "metrics")]
            pub(crate) fn $name($($argument: $type),*) $body

            $(#[$attribute])*
            #[cfg(not(feature = "metrics"))]
            #[inline(always)]
            pub(crate) fn $name($(_: $type),*) {}
        )*
    };
}

/// The time at which an event started. Empty without the feature.
#[cfg(feature = "metrics")]
pub(crate) struct Started(tokio::time::Instant);

#[cfg(not(feature = "metrics"))]
pub(crate) struct Started;

impl Started {
    #[inline]
    pub(crate) fn now() -> Self {
        #[cfg(feature = "metrics")]
        return Self(tokio::time::Instant::now());
        #[cfg(not(feature = "metrics"))]
        Self
    }
}

measure! {
    fn accepted(event: &'static str) {
        counter!("tower_track_events_accepted_total", "event" => event).increment(1);
        gauge!("tower_track_events_pending_events").increment(1);
    }

    /// Counts the values of a batch when the worker takes them: to count each one would make every send slower.
    #[cfg(feature = "sink")]
    fn accepted_by_sink(event: &'static str, count: u64) {
        counter!("tower_track_events_accepted_total", "event" => event).increment(count);
        gauge!("tower_track_events_pending_events").increment(count as f64);
    }

    #[cfg(feature = "sink")]
    fn ended_in_sink(event: &'static str, ending: Ending, count: u64) {
        counter!("tower_track_events_ended_total", "event" => event, "ending" => label(ending)).increment(count);
        gauge!("tower_track_events_pending_events").decrement(count as f64);
    }

    /// Counts the panic of an observer, as an event that is accepted and ends at once.
    fn panicked_at_once(event: &'static str) {
        counter!("tower_track_events_accepted_total", "event" => event).increment(1);
        let ending = label(Ending::Panicked);
        counter!("tower_track_events_ended_total", "event" => event, "ending" => ending).increment(1);
    }

    /// Counts an ending. An event that has never run has no duration.
    fn ended(ticket: &Ticket, ending: Ending, started: Option<Started>) {
        let event = ticket.name_and_location().0;
        counter!("tower_track_events_ended_total", "event" => event, "ending" => label(ending)).increment(1);
        gauge!("tower_track_events_pending_events").decrement(1);
        if let Some(Started(started)) = started {
            histogram!("tower_track_events_event_duration_seconds", "event" => event).record(started.elapsed());
        }
    }

    fn rejected(event: &'static str, error: TrackError) {
        let reason = match error {
            TrackError::Closed => "closed",
            TrackError::Full => "full",
            TrackError::NoRuntime => "no_runtime",
        };
        counter!("tower_track_events_rejected_total", "event" => event, "reason" => reason).increment(1);
    }

    fn request_opened() {
        gauge!("tower_track_events_open_requests").increment(1);
    }

    fn request_closed() {
        gauge!("tower_track_events_open_requests").decrement(1);
    }

    fn drained(elapsed: std::time::Duration, outcome: &'static str) {
        histogram!("tower_track_events_drain_duration_seconds", "outcome" => outcome).record(elapsed);
    }
}

#[cfg(feature = "metrics")]
fn label(ending: Ending) -> &'static str {
    match ending {
        Ending::Completed => "completed",
        Ending::Failed => "failed",
        Ending::Panicked => "panicked",
        Ending::TimedOut => "timed_out",
        Ending::Aborted => "aborted",
    }
}
