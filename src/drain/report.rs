//! [`DrainReport`] and [`DrainError`]: the result of a drain.

use std::{borrow::Cow, cmp::Reverse, collections::BTreeMap, error::Error, fmt, panic::Location, time::Duration};

use tokio::time::Instant;

use crate::{
    context::DrainBegan,
    registry::{Account, Detached, EventCounts, EventFailures, Group, Kind, Open, RunningSink, SinkSnapshot, Stage},
    util::text::{Joined, OneLine, Plural, Seconds},
};

/// The report of a drain: the counts of events, how they ended, and what is open.
///
/// `Display` writes one line. If the handle has never had a request or an event, the line asks whether this is the
/// handle of the layer.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use std::time::Duration;
/// use tower_track_events::TrackEventsHandle;
///
/// let handle = TrackEventsHandle::new();
/// handle.track("audit", async { Err::<(), _>("disk full") }).unwrap();
///
/// let report = handle.drain(Duration::from_secs(5)).await.unwrap();
/// assert!(!report.all_completed());
/// assert_eq!(report.by_name["audit"].counts.failed, 1);
/// assert!(report.to_string().contains("(audit: 1 failed, last: disk full)"));
/// # }
/// ```
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct DrainReport {
    /// The time since the drain began: since [`begin_drain`](crate::TrackEventsHandle::begin_drain) was called, or else
    /// since a drain was polled for the first time.
    pub elapsed: Duration,
    /// Events accepted since the handle was made.
    pub accepted: u64,
    /// Events, guards and permits rejected since the handle was made.
    pub rejected: u64,
    /// Rejections because a drain was closing or had ended. A part of `rejected`.
    pub rejected_closed: u64,
    /// How the accepted events ended.
    pub ended: EventCounts,
    /// The endings since the drain began. A part of `ended`.
    pub since_drain: EventCounts,
    /// The events that did not complete, by name.
    pub by_name: BTreeMap<&'static str, EventFailures>,
    /// The counts of each [sink](crate::TrackEventsHandle::sink), in alphabetical order. A part of the totals.
    pub sinks: Vec<SinkSnapshot>,
    /// Everything that is open or was not delivered: requests, guards, permits, then events and sinks, the oldest first
    /// of each. Empty if the drain was `Ok`.
    pub open: Vec<OpenItem>,
    #[cfg_attr(feature = "serde", serde(skip))]
    is_unused: bool,
}

impl DrainReport {
    pub(super) fn new(account: Account, undelivered: Vec<OpenItem>, began: &DrainBegan) -> Self {
        let Account { snapshot, by_name, sinks, open, running_sinks, is_unused } = account;
        let now = Instant::now();
        Self {
            elapsed: now.saturating_duration_since(began.at),
            accepted: snapshot.accepted,
            rejected: snapshot.rejected,
            rejected_closed: snapshot.rejected_closed,
            ended: snapshot.ended,
            since_drain: snapshot.ended - began.ended,
            by_name,
            sinks,
            open: OpenItem::all(&open, now).chain(undelivered).chain(OpenItem::sinks(&running_sinks, now)).collect(),
            is_unused,
        }
        .sorted()
    }

    fn sorted(mut self) -> Self {
        self.open.sort_by_key(|item| (item.kind.rank(), Reverse(item.oldest)));
        self
    }

    /// Returns whether every event that was accepted has completed.
    ///
    /// Rejected events do not count. They are in [`rejected`](Self::rejected).
    pub fn all_completed(&self) -> bool {
        self.ended.completed == self.accepted
    }

    /// Returns the exit code for the process: 0 if nothing is open and every event that ended since the drain began has
    /// completed, and 1 otherwise.
    ///
    /// Events that failed before the drain began do not count: they are in [`ended`](Self::ended). Rejected events do
    /// not count either.
    pub fn exit_code(&self) -> i32 {
        let is_good = self.open.is_empty() && self.since_drain.completed == self.since_drain.total();
        i32::from(!is_good)
    }

    /// Returns whether the handle has never had a request, a guard, a permit or an event.
    pub(crate) fn is_unused(&self) -> bool {
        self.is_unused
    }

    fn write_counts(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { accepted, rejected, rejected_closed, ended, since_drain, by_name, is_unused, .. } = self;
        if *is_unused {
            return f.write_str("no request and no event has ever come: is this the handle of your layer?");
        }
        write!(f, "{} accepted, {ended}", Plural(*accepted, "event"))?;
        for (index, (name, failures)) in by_name.iter().enumerate() {
            let words = failures.counts.not_completed_by_word().map(|(count, word)| format!("{count} {word}"));
            let open = if index == 0 { " (" } else { "; " };
            write!(f, "{open}{}: {}", OneLine(name), Joined(words))?;
            if let Some(error) = &failures.last_error {
                write!(f, ", last: {}", OneLine(error))?;
            }
        }
        if !by_name.is_empty() {
            f.write_str(")")?;
        }
        write!(f, "; {} ended since the drain began", since_drain.total())?;
        if *rejected > 0 {
            write!(f, "; {rejected} rejected")?;
        }
        if *rejected_closed > 0 {
            write!(f, ", {rejected_closed} of them because a drain was closing or had ended")?;
        }
        Ok(())
    }
}

/// Writes a line such as
/// `drained 1.2 s after the signal: 40 events accepted, 38 completed, 2 failed (audit: 2 failed, last: disk full); 17
/// ended since the drain began`.
impl fmt::Display for DrainReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "drained {} after the signal: ", Seconds(self.elapsed))?;
        self.write_counts(f)
    }
}

/// A group of open requests, guards, permits or events of one source location, or a sink that still runs.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// use tower_track_events::{DrainError, OpenKind, TrackEventsHandle};
///
/// let handle = TrackEventsHandle::new();
/// handle.track("endless", std::future::pending::<()>())?;
/// let Err(DrainError::TimedOut(report)) = handle.drain(Duration::from_millis(1)).await else {
///     panic!("nothing was pending");
/// };
/// let item = &report.open[0];
/// assert_eq!((item.kind, item.name.as_deref(), item.count), (OpenKind::RunningEvent, Some("endless"), 1));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct OpenItem {
    /// The kind of the items.
    pub kind: OpenKind,
    /// The name of the events or the sink, or the [label](crate::TrackEventsLayer::label) of the requests. `None` for
    /// requests without a label, for guards and for permits.
    pub name: Option<Cow<'static, str>>,
    /// The number of items.
    pub count: u64,
    /// The age of the oldest item: the time since it was opened or tracked. The age of an event of an exchange counts
    /// from the begin of the exchange, and once the event runs, from the end of the exchange.
    pub oldest: Duration,
    /// The source location that took or tracked the items. For an event of a layer, that is where its hook was added.
    /// For a sink and its events, it is where the sink was made. `None` for requests.
    #[cfg_attr(feature = "serde", serde(serialize_with = "serialize_location"))]
    pub location: Option<&'static Location<'static>>,
}

/// The kind of an [`OpenItem`].
///
/// # Examples
///
/// ```
/// use tower_track_events::{OpenItem, OpenKind};
///
/// fn cannot_be_aborted(item: &OpenItem) -> bool {
///     item.kind == OpenKind::BlockingEvent
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum OpenKind {
    /// Requests whose response is not over, or whose body has not been dropped.
    Request,
    /// Guards that are held.
    Guard,
    /// Permits that are held and not used.
    Permit,
    /// Events that wait for the end of their exchange.
    WaitingEvent,
    /// Events that have started.
    RunningEvent,
    /// Events that wait for their turn, because as many run as the
    /// [concurrency limit](crate::TrackEventsHandleBuilder::concurrency_limit) allows.
    LimitedEvent,
    /// Events that run on a blocking thread. They end when their closure returns. Neither
    /// [`abort`](crate::TrackEventsHandle::abort) nor an event timeout can end them.
    BlockingEvent,
    /// Events of a [sink](crate::TrackEventsHandle::sink) that have not been delivered.
    QueuedEvent,
    /// Events of a sink that had not been delivered when the limit passed. They have ended as failed, and were passed
    /// to [`on_undelivered`](crate::SinkBuilder::on_undelivered).
    UndeliveredEvent,
    /// A [sink](crate::TrackEventsHandle::sink) whose code still runs although none of its events is pending. Either an
    /// [`abort`](crate::TrackEventsHandle::abort) or a drain that timed out ended the events of its batch, or the sink
    /// has not been dropped since the drain closed the handle.
    Sink,
}

impl OpenKind {
    /// Returns the position of this kind in a report.
    fn rank(self) -> u8 {
        match self {
            Self::Request => 0,
            Self::Guard => 1,
            Self::Permit => 2,
            _ => 3,
        }
    }
}

impl OpenItem {
    /// Returns an item for each group, in no particular order.
    pub(super) fn all(open: &Open, now: Instant) -> impl Iterator<Item = Self> {
        open.iter().map(move |((kind, location, label), group)| Self::new(*kind, location, label.clone(), *group, now))
    }

    fn new(
        kind: Kind,
        location: &'static Location<'static>,
        label: Option<Cow<'static, str>>,
        group: Group,
        now: Instant,
    ) -> Self {
        let (kind, name, location) = match kind {
            Kind::Request => (OpenKind::Request, label, None),
            Kind::Guard => (OpenKind::Guard, None, Some(location)),
            Kind::Permit => (OpenKind::Permit, None, Some(location)),
            Kind::Event { name, stage } => {
                let kind = match stage {
                    Stage::Waiting => OpenKind::WaitingEvent,
                    Stage::Running => OpenKind::RunningEvent,
                    Stage::Limited => OpenKind::LimitedEvent,
                    Stage::Blocking => OpenKind::BlockingEvent,
                    Stage::Queued => OpenKind::QueuedEvent,
                };
                (kind, Some(name.into()), Some(location))
            }
        };
        Self { kind, name, count: group.count, oldest: now.saturating_duration_since(group.oldest), location }
    }

    pub(super) fn sinks(sinks: &[RunningSink], now: Instant) -> impl Iterator<Item = Self> {
        sinks.iter().map(move |&RunningSink { name, location, since }| Self {
            kind: OpenKind::Sink,
            name: Some(name.into()),
            count: 1,
            oldest: now.saturating_duration_since(since),
            location: Some(location),
        })
    }

    pub(super) fn undelivered(detached: &Detached) -> Self {
        Self {
            kind: OpenKind::UndeliveredEvent,
            name: Some(detached.name.into()),
            count: detached.group.count,
            oldest: detached.group.oldest.elapsed(),
            location: Some(detached.location),
        }
    }
}

/// Writes `order.created x15 running (oldest 3.2 s, src/main.rs:40:12)`.
impl fmt::Display for OpenItem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, name, count, oldest, location } = self;
        let name = name.as_deref().map(OneLine);
        match (kind, name) {
            (OpenKind::Request, Some(label)) => write!(f, "{label} x{count} open")?,
            (OpenKind::Request, None) => write!(f, "{} open", Plural(*count, "request"))?,
            (OpenKind::Guard, _) => write!(f, "{} held", Plural(*count, "guard"))?,
            (OpenKind::Permit, _) => write!(f, "{} held", Plural(*count, "permit"))?,
            (OpenKind::Sink, name) => write!(f, "sink {} still running", name.unwrap_or(OneLine("")))?,
            (_, name) => {
                let state = match kind {
                    OpenKind::WaitingEvent => "waiting for the response",
                    OpenKind::LimitedEvent => "waiting for a turn",
                    OpenKind::BlockingEvent => "running on blocking threads",
                    OpenKind::QueuedEvent => "queued for the sink",
                    OpenKind::UndeliveredEvent => "undelivered, passed to on_undelivered",
                    _ => "running",
                };
                write!(f, "{} x{count} {state}", name.unwrap_or(OneLine("")))?;
            }
        }
        write!(f, " (oldest {}", Seconds(*oldest))?;
        location.map_or(Ok(()), |location| write!(f, ", {location}"))?;
        f.write_str(")")
    }
}

/// Why a drain was not `Ok`.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use std::time::Duration;
/// use tower_track_events::{DrainError, TrackEventsHandle};
///
/// let handle = TrackEventsHandle::new();
/// handle.track("audit", std::future::pending::<()>()).unwrap();
///
/// match handle.drain(Duration::ZERO).await {
///     Err(DrainError::TimedOut(report)) => assert_eq!(report.open[0].name.as_deref(), Some("audit")),
///     other => panic!("{other:?}"),
/// }
/// # }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum DrainError {
    /// The limit passed first.
    ///
    /// Nothing was cancelled: open requests and pending events go on, events are accepted again, and another drain may
    /// follow. One exception: undelivered events of a sink were passed to
    /// [`on_undelivered`](crate::SinkBuilder::on_undelivered), if the sink has it.
    TimedOut(Box<DrainReport>),
    /// The future of [`drain_until`](crate::TrackEventsHandle::drain_until) was ready first, or a second signal ended a
    /// [shutdown](crate::TrackEventsHandle::shutdown). Otherwise like `TimedOut`.
    Interrupted(Box<DrainReport>),
    /// The drain was polled inside an event, a handler or a body of its own handle. It would wait for itself.
    InsideItself,
    /// The drain needs a timer. It was polled outside of a tokio runtime, or inside one whose timers are not enabled.
    NoTimer,
}

impl DrainError {
    /// Returns the report, if the drain was started.
    pub fn report(&self) -> Option<&DrainReport> {
        match self {
            Self::TimedOut(report) | Self::Interrupted(report) => Some(report),
            Self::InsideItself | Self::NoTimer => None,
        }
    }
}

/// Writes a line: how long the drain took, what was open, and the counts.
impl fmt::Display for DrainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (report, how) = match self {
            Self::TimedOut(report) => (report, "timed out"),
            Self::Interrupted(report) => (report, "interrupted"),
            Self::InsideItself => {
                return f.write_str(
                    "drain was polled inside an event, a handler or a body of its own handle and would wait for \
                     itself: drain from the task that stops the server",
                );
            }
            Self::NoTimer => {
                return f.write_str(
                    "drain needs a tokio runtime with timers for its limit and its quiet period: enable them with \
                     `enable_time`",
                );
            }
        };
        write!(f, "drain {how} {} after the signal: {}; ", Seconds(report.elapsed), Joined(report.open.iter()))?;
        report.write_counts(f)
    }
}

impl Error for DrainError {}

#[cfg(feature = "serde")]
fn serialize_location<S: serde::Serializer>(
    location: &Option<&'static Location<'static>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serde::Serialize::serialize(&location.map(ToString::to_string), serializer)
}
