//! The counts of a registry: open requests, guards and permits, events, and how these ended.

use std::{borrow::Cow, collections::BTreeMap, fmt, ops, panic::Location};

use tokio::time::Instant;

use crate::registry::{entry::Kind, source::RunningSink};

/// How many events ended in each way.
///
/// # Examples
///
/// ```
/// use tower_track_events::TrackEventsHandle;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let handle = TrackEventsHandle::new();
/// handle.track("audit", async {})?;
/// handle.track("audit", async { Err::<(), _>("the table is gone") })?;
/// let report = handle.drain(std::time::Duration::from_secs(1)).await?;
/// assert_eq!((report.ended.total(), report.ended.not_completed()), (2, 1));
/// assert_eq!(report.ended.to_string(), "1 completed, 1 failed");
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct EventCounts {
    /// Events that returned `()` or `Ok`, or were delivered by their sink.
    pub completed: u64,
    /// Events that returned an `Err`, or that their sink could not deliver.
    pub failed: u64,
    /// Events that panicked, or whose [`on_undelivered`](crate::SinkBuilder::on_undelivered) panicked.
    pub panicked: u64,
    /// Events that ran longer than the [`event_timeout`](crate::TrackEventsHandleBuilder::event_timeout).
    pub timed_out: u64,
    /// Events that were dropped before they returned.
    pub aborted: u64,
}

impl EventCounts {
    /// Returns the number of events that have ended.
    pub fn total(&self) -> u64 {
        self.completed + self.not_completed()
    }

    /// Returns the number of events that ended without having completed.
    pub fn not_completed(&self) -> u64 {
        self.failed + self.panicked + self.timed_out + self.aborted
    }

    pub(crate) fn add(&mut self, ending: Ending, count: u64) {
        *match ending {
            Ending::Completed => &mut self.completed,
            Ending::Failed => &mut self.failed,
            Ending::Panicked => &mut self.panicked,
            Ending::TimedOut => &mut self.timed_out,
            Ending::Aborted => &mut self.aborted,
        } += count;
    }

    /// Returns the counts of the endings other than completed that are not zero, each with its word.
    pub(crate) fn not_completed_by_word(&self) -> impl Iterator<Item = (u64, &'static str)> + Clone {
        let Self { completed: _, failed, panicked, timed_out, aborted } = *self;
        [(failed, "failed"), (panicked, "panicked"), (timed_out, "timed out"), (aborted, "aborted")]
            .into_iter()
            .filter(|(count, _)| *count > 0)
    }
}

impl ops::AddAssign for EventCounts {
    fn add_assign(&mut self, other: Self) {
        let Self { completed, failed, panicked, timed_out, aborted } = other;
        self.completed += completed;
        self.failed += failed;
        self.panicked += panicked;
        self.timed_out += timed_out;
        self.aborted += aborted;
    }
}

impl ops::Sub for EventCounts {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            completed: self.completed - earlier.completed,
            failed: self.failed - earlier.failed,
            panicked: self.panicked - earlier.panicked,
            timed_out: self.timed_out - earlier.timed_out,
            aborted: self.aborted - earlier.aborted,
        }
    }
}

/// Writes `5 completed`, and each of the other endings that occurred: `5 completed, 1 failed`.
impl fmt::Display for EventCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} completed", self.completed)?;
        self.not_completed_by_word().try_for_each(|(count, word)| write!(f, ", {count} {word}"))
    }
}

/// How an accepted event ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Completed,
    Failed,
    Panicked,
    TimedOut,
    Aborted,
}

/// The counts of a handle at one instant, from [`TrackEventsHandle::snapshot`](crate::TrackEventsHandle::snapshot).
///
/// At every snapshot `accepted = ended.total() + pending`.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use tower_track_events::TrackEventsHandle;
///
/// let handle = TrackEventsHandle::new();
/// handle.track("audit", async {}).unwrap();
/// let now = handle.snapshot();
/// assert_eq!((now.accepted, now.pending, now.ended.completed), (1, 1, 0));
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Snapshot {
    /// Exchanges whose response is not over, or whose body has not been dropped.
    pub open_requests: u64,
    /// [Guards](crate::DrainGuard) that are held.
    pub open_guards: u64,
    /// [Permits](crate::Permit) that are held and not used yet.
    pub reserved: u64,
    /// Accepted events that have not ended, started or not. Includes events that a
    /// [sink](crate::TrackEventsHandle::sink) has not delivered.
    pub pending: u64,
    /// Events that were accepted since the handle was made.
    pub accepted: u64,
    /// How the accepted events ended. Pending events are not included.
    pub ended: EventCounts,
    /// Events, guards and permits that were [rejected](crate::TrackError) since the handle was made.
    pub rejected: u64,
    /// Rejections because a drain was closing or had ended. A part of `rejected`.
    pub rejected_closed: u64,
}

impl Snapshot {
    /// Returns the number of requests, guards and permits, which keep a drain from closing.
    pub(crate) fn holders(&self) -> u64 {
        self.open_requests + self.open_guards + self.reserved
    }
}

impl ops::AddAssign<&Self> for Snapshot {
    fn add_assign(&mut self, other: &Self) {
        let Self { open_requests, open_guards, reserved, pending, accepted, ended, rejected, rejected_closed } = *other;
        self.open_requests += open_requests;
        self.open_guards += open_guards;
        self.reserved += reserved;
        self.pending += pending;
        self.accepted += accepted;
        self.ended += ended;
        self.rejected += rejected;
        self.rejected_closed += rejected_closed;
    }
}

/// The events of one name that did not complete, from [`DrainReport::by_name`](crate::DrainReport::by_name).
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// let handle = tower_track_events::TrackEventsHandle::new();
/// handle.track("audit", async { Err::<(), _>("the table is gone") })?;
/// let report = handle.drain(Duration::from_secs(1)).await?;
/// let audit = &report.by_name["audit"];
/// assert_eq!((audit.counts.failed, audit.last_error.as_deref()), (1, Some("the table is gone")));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct EventFailures {
    /// How the events ended. `completed` is zero.
    pub counts: EventCounts,
    /// The error or the panic message of one of the latest events, with its causes, in one line. `None` if no event had
    /// one, for example because all of them timed out.
    pub last_error: Option<String>,
    /// The source location that tracked one of the latest events.
    #[cfg_attr(feature = "serde", serde(serialize_with = "serialize_location"))]
    pub location: &'static Location<'static>,
}

impl EventFailures {
    pub(crate) fn new(location: &'static Location<'static>) -> Self {
        Self { counts: EventCounts::default(), last_error: None, location }
    }

    /// Adds the counts of `other`, and takes its error and location.
    pub(crate) fn add(&mut self, other: &Self) {
        let Self { counts, last_error, location } = other;
        self.counts += *counts;
        self.location = location;
        if last_error.is_some() {
            self.last_error.clone_from(last_error);
        }
    }
}

/// The counts of a [sink](crate::TrackEventsHandle::sink) at one instant, from
/// [`EventSender::snapshot`](crate::EventSender::snapshot),
/// [`TrackEventsHandle::sinks`](crate::TrackEventsHandle::sinks) and [`DrainReport::sinks`](crate::DrainReport::sinks).
///
/// The latter two count sinks of one name together. At every snapshot `accepted = ended.total() + pending`.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use tower_track_events::TrackEventsHandle;
///
/// let handle = TrackEventsHandle::new();
/// let visits = handle.sink::<&str>("visit").deliver(|batch| async { /* store it */ })?;
/// visits.try_send("/index.html")?;
/// assert_eq!(visits.snapshot().pending, 1);
///
/// visits.flush(Duration::from_secs(1)).await?;
/// let now = visits.snapshot();
/// assert_eq!((now.pending, now.ended.completed, now.delivered_batches), (0, 1, 1));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct SinkSnapshot {
    /// The name of the sink and of its events.
    pub name: &'static str,
    /// [Permits](crate::SendPermit) that are held and not used yet.
    pub reserved: u64,
    /// Accepted events that have not ended: queued, or in a batch that is being delivered.
    pub pending: u64,
    /// Events that were accepted since the sink was made.
    pub accepted: u64,
    /// How the accepted events ended. A delivered event has completed.
    pub ended: EventCounts,
    /// Events and permits that were [rejected](crate::TrackError) since the sink was made.
    pub rejected: u64,
    /// Rejections because a drain was closing or had ended. A part of `rejected`.
    pub rejected_closed: u64,
    /// Attempts to deliver a batch, or a part of one, that succeeded.
    pub delivered_batches: u64,
    /// Attempts to deliver a batch, or a part of one, that failed, panicked or exceeded their time limit.
    pub failed_attempts: u64,
    /// The error of the last attempt, in one line. `None` if it succeeded, or if there was none.
    pub last_error: Option<String>,
}

impl SinkSnapshot {
    pub(crate) fn add(&mut self, other: &Self) {
        let Self {
            name: _,
            reserved,
            pending,
            accepted,
            ended,
            rejected,
            rejected_closed,
            delivered_batches,
            failed_attempts,
            last_error,
        } = other;
        self.reserved += reserved;
        self.pending += pending;
        self.accepted += accepted;
        self.ended += *ended;
        self.rejected += rejected;
        self.rejected_closed += rejected_closed;
        self.delivered_batches += delivered_batches;
        self.failed_attempts += failed_attempts;
        if last_error.is_some() {
            self.last_error.clone_from(last_error);
        }
    }

    pub(crate) fn counts(&self) -> Snapshot {
        Snapshot {
            reserved: self.reserved,
            pending: self.pending,
            accepted: self.accepted,
            ended: self.ended,
            rejected: self.rejected,
            rejected_closed: self.rejected_closed,
            ..Snapshot::default()
        }
    }
}

/// Everything that is counted, at one instant.
pub(crate) struct Account {
    pub(crate) snapshot: Snapshot,
    pub(crate) by_name: BTreeMap<&'static str, EventFailures>,
    pub(crate) sinks: Vec<SinkSnapshot>,
    pub(crate) open: Open,
    pub(crate) running_sinks: Vec<RunningSink>,
    /// No request, guard or permit was ever opened, and no event was ever accepted or rejected.
    pub(crate) is_unused: bool,
}

/// Open entries and pending values, grouped by kind, source location and label.
pub(crate) type Open = BTreeMap<(Kind, &'static Location<'static>, Option<Cow<'static, str>>), Group>;

#[derive(Clone, Copy)]
pub(crate) struct Group {
    pub(crate) count: u64,
    pub(crate) oldest: Instant,
}

impl Group {
    /// Merges two groups.
    pub(crate) fn add(&mut self, other: Self) {
        self.count += other.count;
        self.oldest = self.oldest.min(other.oldest);
    }
}

#[cfg(feature = "serde")]
fn serialize_location<S: serde::Serializer>(
    location: &&'static Location<'static>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(location)
}

#[cfg(all(test, not(track_events_loom)))]
mod tests {
    use std::{collections::BTreeMap, panic::Location};

    use super::{Ending, EventCounts, EventFailures, SinkSnapshot, Snapshot};
    use crate::registry::source::{Retired, Sources};

    fn counts([completed, failed, panicked, timed_out, aborted]: [u64; 5]) -> EventCounts {
        EventCounts { completed, failed, panicked, timed_out, aborted }
    }

    #[test]
    fn each_ending_is_counted_by_itself() {
        let endings =
            [Ending::Completed, Ending::Failed, Ending::Panicked, Ending::TimedOut, Ending::Aborted, Ending::Failed];
        let mut counted = EventCounts::default();
        endings.into_iter().zip(1..).for_each(|(ending, count)| counted.add(ending, count));
        assert_eq!(counted, counts([1, 8, 3, 4, 5]));
        assert_eq!((counted.total(), counted.not_completed()), (21, 20));
        counted += counts([10, 20, 30, 40, 50]);
        assert_eq!(counted, counts([11, 28, 33, 44, 55]));
        assert_eq!(counted - counts([10, 20, 30, 40, 50]), counts([1, 8, 3, 4, 5]));
        assert_eq!(counts([0, 1, 0, 2, 0]).to_string(), "0 completed, 1 failed, 2 timed out");
    }

    #[test]
    fn the_failures_of_several_shards_are_added_and_the_latest_error_is_kept() {
        let (first, second) = (Location::caller(), Location::caller());
        let with = |location, counts, last_error: Option<&str>| EventFailures {
            counts,
            last_error: last_error.map(str::to_owned),
            location,
        };
        let mut failures = with(first, counts([0, 1, 0, 0, 2]), Some("disk full"));
        failures.add(&with(second, counts([0, 3, 1, 0, 0]), None));
        assert_eq!((failures.counts, failures.location), (counts([0, 4, 1, 0, 2]), second));
        assert_eq!(failures.last_error.as_deref(), Some("disk full"));
        failures.add(&with(second, counts([0, 1, 0, 0, 0]), Some("no ink")));
        assert_eq!(failures.last_error.as_deref(), Some("no ink"));
    }

    fn sink(from: u64, last_error: Option<&str>) -> SinkSnapshot {
        SinkSnapshot {
            name: "row",
            reserved: from,
            pending: from + 1,
            accepted: from + 2,
            ended: counts([from + 3, from + 4, 0, 0, 0]),
            rejected: from + 5,
            rejected_closed: from + 6,
            delivered_batches: from + 7,
            failed_attempts: from + 8,
            last_error: last_error.map(str::to_owned),
        }
    }

    #[test]
    fn sinks_of_one_name_are_added() {
        let mut sum = sink(10, Some("disk full"));
        sum.add(&sink(100, None));
        let expected = SinkSnapshot {
            name: "row",
            reserved: 110,
            pending: 112,
            accepted: 114,
            ended: counts([116, 118, 0, 0, 0]),
            rejected: 120,
            rejected_closed: 122,
            delivered_batches: 124,
            failed_attempts: 126,
            last_error: Some("disk full".to_owned()),
        };
        assert_eq!(sum, expected);
    }

    #[test]
    fn sources_that_are_gone_are_counted_by_their_name() {
        let mut sources = Sources { open: Vec::new(), is_flushing: false, retired: BTreeMap::new() };
        for ever_opened in [3, 4] {
            sources.retire(Retired { snapshot: sink(1, None), failures: None, ever_opened });
        }
        let Retired { snapshot, ever_opened, .. } = &sources.retired["row"];
        assert_eq!((sources.retired.len(), snapshot.accepted, *ever_opened), (1, 6, 7));
    }

    #[test]
    fn the_counts_of_a_sink_are_a_part_of_the_snapshot() {
        let expected = Snapshot {
            reserved: 10,
            pending: 11,
            accepted: 12,
            ended: counts([13, 14, 0, 0, 0]),
            rejected: 15,
            rejected_closed: 16,
            ..Snapshot::default()
        };
        assert_eq!(sink(10, None).counts(), expected);
    }
}
