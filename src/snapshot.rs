//! [`Snapshot`] and [`Endings`]: the counts of a handle at one instant.

use std::{fmt, ops};

/// How many of the accepted events ended in which way.
///
/// Every accepted event has exactly one ending. Which one wins when two are close is decided by what the event did
/// first: an event that returned has completed or failed, also if its time ran out in the same poll.
///
/// # Examples
///
/// ```
/// use tower_track_events::TrackEventsHandle;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let handle = TrackEventsHandle::new();
/// handle.track("audit", async { Err::<(), _>("the table is gone") })?;
/// let report = handle.drain(std::time::Duration::from_secs(1)).await?;
/// assert_eq!((report.endings.failed, report.endings.wrong(), report.endings.total()), (1, 1, 1));
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Endings {
    /// Returned `()` or `Ok`, or was acknowledged by its sink.
    pub completed: u64,
    /// Returned an `Err`, at whatever depth, or was given up because its sink had not taken it.
    pub failed: u64,
    /// Panicked, or the closure that makes the event did.
    pub panicked: u64,
    /// Ran longer than the [`event_timeout`](crate::TrackEventsHandleBuilder::event_timeout).
    pub timed_out: u64,
    /// Dropped before it returned: by [`abort`](crate::TrackEventsHandle::abort), or because its runtime went down.
    pub aborted: u64,
}

impl Endings {
    /// The number of events that have ended.
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
    /// assert_eq!(report.endings.total(), 2);
    /// # Ok(()) }
    /// ```
    pub fn total(&self) -> u64 {
        self.completed + self.wrong()
    }

    /// The number of events that ended without having completed.
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
    /// assert_eq!(report.endings.wrong(), 1);
    /// # Ok(()) }
    /// ```
    pub fn wrong(&self) -> u64 {
        self.failed + self.panicked + self.timed_out + self.aborted
    }

    pub(crate) fn without_completed(self) -> Self {
        Self { completed: 0, ..self }
    }

    /// The endings other than completed that occurred, each with the word for it.
    pub(crate) fn wrong_by_word(&self) -> impl Iterator<Item = (u64, &'static str)> {
        let Self { completed: _, failed, panicked, timed_out, aborted } = *self;
        [(failed, "failed"), (panicked, "panicked"), (timed_out, "timed out"), (aborted, "aborted")]
            .into_iter()
            .filter(|(count, _)| *count > 0)
    }

    pub(crate) fn count(&mut self, ending: Ending) {
        self.count_many(ending, 1);
    }

    pub(crate) fn count_many(&mut self, ending: Ending, count: u64) {
        *match ending {
            Ending::Completed => &mut self.completed,
            Ending::Failed => &mut self.failed,
            Ending::Panicked => &mut self.panicked,
            Ending::TimedOut => &mut self.timed_out,
            Ending::Aborted => &mut self.aborted,
        } += count;
    }
}

impl ops::AddAssign for Endings {
    fn add_assign(&mut self, other: Self) {
        let Self { completed, failed, panicked, timed_out, aborted } = other;
        self.completed += completed;
        self.failed += failed;
        self.panicked += panicked;
        self.timed_out += timed_out;
        self.aborted += aborted;
    }
}

impl ops::Sub for Endings {
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
impl fmt::Display for Endings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} completed", self.completed)?;
        self.wrong_by_word().try_for_each(|(count, word)| write!(f, ", {count} {word}"))
    }
}

/// The one ending that an accepted event has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Completed,
    Failed,
    Panicked,
    TimedOut,
    Aborted,
}

#[cfg(feature = "metrics")]
impl Ending {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Panicked => "panicked",
            Self::TimedOut => "timed_out",
            Self::Aborted => "aborted",
        }
    }
}

/// The counts of a handle at one instant, from [`TrackEventsHandle::snapshot`](crate::TrackEventsHandle::snapshot).
///
/// At every snapshot `accepted = completed + failed + panicked + timed_out + aborted + pending`.
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
/// assert_eq!((now.accepted, now.pending, now.completed), (1, 1, 0));
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
    /// Accepted events that have not ended, started or not, those that wait for a [sink](crate::TrackEventsHandle::sink)
    /// included.
    pub pending: u64,
    /// Events that were accepted.
    pub accepted: u64,
    /// Events that returned `()` or `Ok`, or were acknowledged by their sink.
    pub completed: u64,
    /// Events that returned an `Err`, or were given up because their sink had not taken them.
    pub failed: u64,
    /// Events that panicked.
    pub panicked: u64,
    /// Events that ran longer than the [`event_timeout`](crate::TrackEventsHandleBuilder::event_timeout).
    pub timed_out: u64,
    /// Events that were dropped before they returned.
    pub aborted: u64,
    /// Events, guards and permits that were [refused](crate::Refused).
    pub refused: u64,
}

impl Snapshot {
    /// Of these endings, and nothing else.
    pub(crate) fn of(endings: Endings) -> Self {
        let Endings { completed, failed, panicked, timed_out, aborted } = endings;
        Self { completed, failed, panicked, timed_out, aborted, ..Self::default() }
    }

    /// How those events ended that have.
    pub(crate) fn endings(&self) -> Endings {
        let Self { completed, failed, panicked, timed_out, aborted, .. } = *self;
        Endings { completed, failed, panicked, timed_out, aborted }
    }
}

/// The counts of a [sink](crate::TrackEventsHandle::sink) at one instant. Sinks of one name are counted together.
///
/// At every snapshot `accepted` is the total of `endings` and `pending`.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use tower_track_events::{Batch, TrackEventsHandle};
///
/// let handle = TrackEventsHandle::new();
/// let sink = |batch: Batch<&'static str>| async move {
///     // store the batch ..
///     std::io::Result::Ok(())
/// };
/// let visits = handle.sink("visit", sink).build()?;
/// visits.send("/index.html")?;
/// assert_eq!(visits.snapshot().pending, 1);
///
/// visits.flush(Duration::from_secs(1)).await?;
/// let now = visits.snapshot();
/// assert_eq!((now.pending, now.endings.completed, now.delivered_batches), (0, 1, 1));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct SinkSnapshot {
    /// The name of the sink, which is that of its events.
    pub name: &'static str,
    /// [Permits](crate::SendPermit) that are held and not used yet.
    pub reserved: u64,
    /// Events that are neither delivered nor given up.
    pub pending: u64,
    /// Events that were accepted.
    pub accepted: u64,
    /// How the accepted events ended: a delivered event has completed.
    pub endings: Endings,
    /// Events and permits that were [refused](crate::Refused).
    pub refused: u64,
    /// Batches that the sink has taken.
    pub delivered_batches: u64,
    /// Attempts to deliver a batch that failed, panicked or ran out of time. Each was followed by another, or by the end
    /// of the batch.
    pub failed_attempts: u64,
    /// Why the last attempt did not succeed; none if it did.
    pub last_error: Option<String>,
}

impl SinkSnapshot {
    pub(crate) fn add(&mut self, other: &Self) {
        let Self {
            name: _,
            reserved,
            pending,
            accepted,
            endings,
            refused,
            delivered_batches,
            failed_attempts,
            last_error,
        } = other;
        self.reserved += reserved;
        self.pending += pending;
        self.accepted += accepted;
        self.endings += *endings;
        self.refused += refused;
        self.delivered_batches += delivered_batches;
        self.failed_attempts += failed_attempts;
        if last_error.is_some() {
            self.last_error.clone_from(last_error);
        }
    }
}
