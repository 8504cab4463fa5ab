//! [`DrainReport`] and [`DrainError`]: what a drain answers.

use std::{cmp::Reverse, collections::BTreeMap, error::Error, fmt, panic::Location, time::Duration};

use crate::{
    entry::{Kind, Nanos, Stage},
    house::{DrainBegan, House},
    lane::GivenUp,
    ledger::{Account, Holdings, IdleWait, Ledger},
    snapshot::{Endings, SinkSnapshot},
};

/// The account of a drain: what was accepted, and how each of it ended.
///
/// `Display` is one line.
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
/// assert_eq!(report.wrong[0].name, "audit");
/// assert_eq!(report.wrong[0].endings.failed, 1);
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct DrainReport {
    /// The time since the drain began: since [`begin_drain`](crate::TrackEventsHandle::begin_drain), or else since the
    /// first drain was first polled.
    pub elapsed: Duration,
    /// Events accepted since the handle was made.
    pub accepted: u64,
    /// Events, guards and permits refused since the handle was made.
    pub refused: u64,
    /// How the accepted events ended.
    pub endings: Endings,
    /// How those ended that ended since the drain began; a part of `endings`.
    pub since_drain: Endings,
    /// The names of which not every event completed, in alphabetical order. Their completed events are not counted.
    pub wrong: Vec<NamedEndings>,
    /// The account of each [sink](crate::TrackEventsHandle::sink), in alphabetical order; a part of the totals.
    pub sinks: Vec<SinkSnapshot>,
}

/// The endings of all events of one name that did not complete.
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
/// assert_eq!((report.wrong[0].name, report.wrong[0].endings.failed), ("audit", 1));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct NamedEndings {
    /// The name that the events were tracked under.
    pub name: &'static str,
    /// How they ended; `completed` is zero.
    pub endings: Endings,
}

impl DrainReport {
    pub(crate) fn new(account: Account, began: &DrainBegan, now: Nanos) -> Self {
        let Account { snapshot, wrong, sinks } = account;
        let endings = snapshot.endings();
        Self {
            elapsed: Duration::from_nanos(now.saturating_sub(began.at)),
            accepted: snapshot.accepted,
            refused: snapshot.refused,
            endings,
            since_drain: endings - began.endings,
            wrong: wrong.into_iter().map(|(name, endings)| NamedEndings { name, endings }).collect(),
            sinks,
        }
    }

    /// Whether every event that was accepted has completed.
    ///
    /// Refused events do not count: each was an `Err` in somebody's hand, or one of a layer, and is in
    /// [`refused`](Self::refused).
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::{process::ExitCode, time::Duration};
    ///
    /// let handle = tower_track_events::TrackEventsHandle::new();
    /// let report = handle.drain(Duration::from_secs(8)).await?;
    /// let code = if report.all_completed() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    /// # let _ = code;
    /// # Ok(()) }
    /// ```
    pub fn all_completed(&self) -> bool {
        self.endings.completed == self.accepted
    }
}

/// Writes a line such as
/// `drained 1.2 s after the signal: 40 events accepted, 38 completed, 2 failed (audit: 2 failed); 17 ended since the drain
/// began`.
impl fmt::Display for DrainReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "drained {} after the signal: ", Seconds(self.elapsed))?;
        self.write_account(f)
    }
}

impl DrainReport {
    fn write_account(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { elapsed: _, accepted, refused, endings, since_drain, wrong, sinks: _ } = self;
        write!(f, "{} accepted, {endings}", Plural(*accepted, "event"))?;
        for (index, NamedEndings { name, endings }) in wrong.iter().enumerate() {
            let open = if index == 0 { " (" } else { "; " };
            write!(f, "{open}{name}: {}", Wrong(endings))?;
        }
        if !wrong.is_empty() {
            f.write_str(")")?;
        }
        write!(f, "; {} ended since the drain began", since_drain.total())?;
        if *refused > 0 {
            write!(f, "; {refused} refused")?;
        }
        Ok(())
    }
}

/// Why a drain did not come to its end.
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
///     Err(DrainError::CutShort(unfinished)) => assert_eq!(unfinished.events[0].name, "audit"),
///     other => panic!("{other:?}"),
/// }
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DrainError {
    /// The limit came before the end. Nothing was cancelled: what is unfinished goes on for as long as the process
    /// does, events are still accepted, and another drain may follow. Only what sinks had not taken is theirs no more, if
    /// [somebody else takes it](crate::SinkBuilder::on_undelivered).
    CutShort(Box<Unfinished>),
    /// The drain was polled from inside an event, a handler or a body of its own handle, and would wait for itself.
    InsideItself,
    /// The drain needs a timer and was polled outside of a tokio runtime, or inside one whose timers are not enabled.
    NoTimer,
}

/// What was open when a drain was cut short.
///
/// Guards, permits and events are grouped by where in the source they were taken; the oldest group comes first.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// use tower_track_events::{DrainError, TrackEventsHandle};
///
/// let handle = TrackEventsHandle::new();
/// handle.track("endless", std::future::pending::<()>())?;
/// let Err(DrainError::CutShort(unfinished)) = handle.drain(Duration::from_millis(1)).await else {
///     panic!("nothing was pending");
/// };
/// assert_eq!(unfinished.open_requests, 0);
/// assert_eq!((unfinished.events[0].name, unfinished.events[0].count), ("endless", 1));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Unfinished {
    /// Exchanges whose response is not over, or whose body has not been dropped.
    pub open_requests: u64,
    /// The age of the oldest of them.
    pub oldest_request: Option<Duration>,
    /// Guards that are held.
    pub guards: Vec<Held>,
    /// Permits that are held and not used.
    pub permits: Vec<Held>,
    /// Events that have not ended.
    pub events: Vec<PendingEvents>,
    /// Events that their sinks had not taken when the limit came. They have ended as failed: whoever
    /// [takes](crate::SinkBuilder::on_undelivered) what is not delivered has them.
    pub undelivered: Vec<UndeliveredEvents>,
    /// The account so far.
    pub report: DrainReport,
}

/// Guards or permits that were taken at one place and are held.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// use tower_track_events::{DrainError, TrackEventsHandle};
///
/// let handle = TrackEventsHandle::new();
/// let _guard = handle.guard()?;
/// let Err(DrainError::CutShort(unfinished)) = handle.drain(Duration::from_millis(1)).await else {
///     panic!("nobody held a guard");
/// };
/// for guard in &unfinished.guards {
///     eprintln!("{} held, taken at {}", guard.count, guard.location);
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Held {
    /// How many there are.
    pub count: u64,
    /// How long the oldest has been held.
    pub oldest: Duration,
    /// Where in the source they were taken.
    #[cfg_attr(feature = "serde", serde(serialize_with = "serialize_location"))]
    pub location: &'static Location<'static>,
}

/// Events of one name, recorded at one place, that have not ended.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// use tower_track_events::{TrackEventsHandle, WaitIdleError};
///
/// let handle = TrackEventsHandle::new();
/// handle.track("endless", std::future::pending::<()>())?;
/// let Err(WaitIdleError::TimedOut { pending, .. }) = handle.wait_idle(Duration::ZERO).await else {
///     panic!("nothing was pending");
/// };
/// for events in &pending {
///     eprintln!("{}: {}, from {}", events.name, events.count, events.location);
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct PendingEvents {
    /// The name that the events were tracked under.
    pub name: &'static str,
    /// How many there are.
    pub count: u64,
    /// Whether they have been started. Those that have not wait for the end of their exchange.
    pub started: bool,
    /// Whether they occupy a blocking thread. Nothing can end them but their own return:
    /// [`abort`](crate::TrackEventsHandle::abort) cannot, and neither can an event timeout.
    pub blocking: bool,
    /// Whether they were sent to a [sink](crate::TrackEventsHandle::sink) that has not taken them yet.
    pub queued: bool,
    /// How long ago the oldest was started, or was recorded if it has not been started. It is the most that it can be: the
    /// clock is read once for events that are queued together, for those that a handler records before it first waits, and
    /// for a few (at most 64) that start while one of them has neither waited nor ended.
    pub oldest: Duration,
    /// Where in the source they were recorded; for an event of a layer, where the layer was told to track it; for one of
    /// a sink, where the sink was made.
    #[cfg_attr(feature = "serde", serde(serialize_with = "serialize_location"))]
    pub location: &'static Location<'static>,
}

impl PendingEvents {
    pub(crate) fn new(
        name: &'static str,
        stage: Stage,
        count: u64,
        oldest: Duration,
        location: &'static Location<'static>,
    ) -> Self {
        Self {
            name,
            count,
            started: matches!(stage, Stage::Started | Stage::Blocking),
            blocking: stage == Stage::Blocking,
            queued: stage == Stage::Queued,
            oldest,
            location,
        }
    }
}

/// Writes `order.created x15 running (oldest 3.2 s, src/main.rs:40:12)`.
impl fmt::Display for PendingEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, count, started, blocking, queued, oldest, location } = self;
        let state = match (queued, blocking, started) {
            (true, ..) => "queued for the sink",
            (_, true, _) => "running on blocking threads",
            (_, _, true) => "running",
            _ => "waiting for the response",
        };
        write!(f, "{name} x{count} {state} (oldest {}, {location})", Seconds(*oldest))
    }
}

impl PendingEvents {
    /// What is pending of the events that are waited for, the oldest group first.
    pub(crate) fn of(ledger: &Ledger<House>, wait: &IdleWait<House>) -> Vec<Self> {
        let pending = ledger.pending_of(wait);
        let now = ledger.context.now();
        let mut events: Vec<_> = pending
            .iter()
            .filter_map(|(&(kind, location), group)| match kind {
                Kind::Event { name, stage } => Some(Self::new(name, stage, group.count, group.age(now), location)),
                Kind::Request | Kind::Guard | Kind::Permit => None,
            })
            .collect();
        events.sort_by_key(|group| Reverse(group.oldest));
        events
    }
}

/// Events of one sink that it had not taken when a drain was cut short.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// use tower_track_events::{Batch, DrainError, TrackEventsHandle};
///
/// let handle = TrackEventsHandle::new();
/// let lines = handle
///     .sink("lines", |_: Batch<&str>| async { Err("the store is gone") })
///     .on_undelivered(|lines| println!("spill: {:?}", lines.iter().collect::<Vec<_>>()))
///     .build()?;
/// lines.send("one").map_err(|error| error.refused)?;
/// let Err(DrainError::CutShort(unfinished)) = handle.drain(Duration::from_millis(50)).await else {
///     panic!("the store came back");
/// };
/// assert_eq!((unfinished.undelivered[0].name, unfinished.undelivered[0].count), ("lines", 1));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct UndeliveredEvents {
    /// The name of the sink.
    pub name: &'static str,
    /// How many there were.
    pub count: u64,
    /// Why the last attempt to deliver some of them did not succeed, if there was one.
    pub last_error: Option<String>,
    /// Where in the source the sink was made.
    #[cfg_attr(feature = "serde", serde(serialize_with = "serialize_location"))]
    pub location: &'static Location<'static>,
}

impl UndeliveredEvents {
    fn new(given_up: GivenUp) -> Self {
        let GivenUp { name, location, count, last_error } = given_up;
        Self { name, count, last_error, location }
    }
}

/// Writes `order.created x500 undelivered and handed over (src/main.rs:40:12; last error: connection refused)`.
impl fmt::Display for UndeliveredEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, count, last_error, location } = self;
        write!(f, "{name} x{count} undelivered and handed over ({location}")?;
        if let Some(error) = last_error {
            write!(f, "; last error: {error}")?;
        }
        f.write_str(")")
    }
}

/// What a drain still waits for, as a line: `draining: 2 requests open, 17 events pending (order.created x15,
/// audit x2), 3.2 s of 5.0 s`.
pub(crate) struct Progress {
    holdings: Holdings,
    elapsed: Duration,
    limit: Option<Duration>,
}

impl Progress {
    pub(crate) fn of(ledger: &Ledger<House>, elapsed: Duration, limit: Option<Duration>) -> Self {
        Self { holdings: ledger.holdings(), elapsed, limit }
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { holdings, elapsed, limit } = self;
        let now = &holdings.account.snapshot;
        f.write_str("draining: ")?;
        if now.open_requests + now.open_guards + now.reserved + now.pending == 0 {
            // For the settle time.
            f.write_str("nothing open, waiting for stragglers")?;
        } else {
            write!(f, "{} open, ", Plural(now.open_requests, "request"))?;
            for (count, word) in [(now.open_guards, "guard"), (now.reserved, "permit")] {
                if count > 0 {
                    write!(f, "{} held, ", Plural(count, word))?;
                }
            }
            write!(f, "{} pending", Plural(now.pending, "event"))?;
        }
        let mut by_name: BTreeMap<&str, u64> = BTreeMap::new();
        for (&(kind, _), group) in &holdings.open {
            if let Kind::Event { name, .. } = kind {
                *by_name.entry(name).or_default() += group.count;
            }
        }
        let mut by_name: Vec<_> = by_name.into_iter().collect();
        by_name.sort_by_key(|(_, count)| Reverse(*count));
        for (index, (name, count)) in by_name.iter().enumerate() {
            let open = if index == 0 { " (" } else { ", " };
            write!(f, "{open}{name} x{count}")?;
        }
        if !by_name.is_empty() {
            f.write_str(")")?;
        }
        write!(f, ", {}", Seconds(*elapsed))?;
        limit.map_or(Ok(()), |limit| write!(f, " of {}", Seconds(limit)))
    }
}

impl Unfinished {
    /// What is open now, and what has just been given up.
    pub(crate) fn of(ledger: &Ledger<House>, began: &DrainBegan, given_up: Vec<GivenUp>) -> Self {
        let Holdings { open, account } = ledger.holdings();
        let now = ledger.context.now();
        let mut unfinished = Self {
            open_requests: account.snapshot.open_requests,
            oldest_request: None,
            guards: Vec::new(),
            permits: Vec::new(),
            events: Vec::new(),
            undelivered: given_up.into_iter().map(UndeliveredEvents::new).collect(),
            report: DrainReport::new(account, began, now),
        };
        for (&(kind, location), group) in &open {
            let (count, oldest) = (group.count, group.age(now));
            match kind {
                Kind::Request => unfinished.oldest_request = unfinished.oldest_request.max(Some(oldest)),
                Kind::Guard => unfinished.guards.push(Held { count, oldest, location }),
                Kind::Permit => unfinished.permits.push(Held { count, oldest, location }),
                Kind::Event { name, stage } => {
                    unfinished.events.push(PendingEvents::new(name, stage, count, oldest, location));
                }
            }
        }
        unfinished.guards.sort_by_key(|group| Reverse(group.oldest));
        unfinished.permits.sort_by_key(|group| Reverse(group.oldest));
        unfinished.events.sort_by_key(|group| Reverse(group.oldest));
        unfinished
    }

    pub(crate) fn is_empty(&self) -> bool {
        let Self { open_requests, oldest_request: _, guards, permits, events, undelivered, report: _ } = self;
        *open_requests == 0 && guards.is_empty() && permits.is_empty() && events.is_empty() && undelivered.is_empty()
    }
}

/// Writes what is open: requests, guards, permits, events, the oldest first of each, as in `2 requests open (oldest 4.1 s),
/// order.created x15 running (oldest 3.2 s, src/main.rs:40:12)`.
impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        let mut separate = |f: &mut fmt::Formatter<'_>| f.write_str(std::mem::replace(&mut separator, ", "));
        if self.open_requests > 0 {
            separate(f)?;
            write!(f, "{} open", Plural(self.open_requests, "request"))?;
            if let Some(oldest) = self.oldest_request {
                write!(f, " (oldest {})", Seconds(oldest))?;
            }
        }
        for (held, word) in [(&self.guards, "guard"), (&self.permits, "permit")] {
            for Held { count, oldest, location } in held {
                separate(f)?;
                write!(f, "{} held (oldest {}, {location})", Plural(*count, word), Seconds(*oldest))?;
            }
        }
        for events in &self.events {
            separate(f)?;
            write!(f, "{events}")?;
        }
        for events in &self.undelivered {
            separate(f)?;
            write!(f, "{events}")?;
        }
        if self.is_empty() {
            f.write_str("nothing open")?;
        }
        Ok(())
    }
}

/// Writes a line that says what was cut short, after how long, and what had been done by then.
impl fmt::Display for DrainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CutShort(unfinished) => {
                write!(f, "drain cut short {} after the signal: {unfinished}; ", Seconds(unfinished.report.elapsed))?;
                unfinished.report.write_account(f)
            }
            Self::InsideItself => f.write_str(
                "drain was polled inside an event, a handler or a body of its own handle and would wait for itself: \
                 drain from the task that stops the server",
            ),
            Self::NoTimer => f.write_str(
                "drain needs a tokio runtime with timers for its limit and its settle time: enable them with `enable_time`",
            ),
        }
    }
}

impl Error for DrainError {}

/// Seconds as a person reads them: `0.3 ms`, `41 ms`, `3.2 s`.
pub(crate) struct Seconds(pub(crate) Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs_f64();
        if seconds >= 1.0 {
            write!(f, "{seconds:.1} s")
        } else if seconds >= 0.01 {
            write!(f, "{:.0} ms", seconds * 1e3)
        } else {
            write!(f, "{:.1} ms", seconds * 1e3)
        }
    }
}

struct Plural(u64, &'static str);

impl fmt::Display for Plural {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(count, word) = self;
        write!(f, "{count} {word}{}", if *count == 1 { "" } else { "s" })
    }
}

/// Endings without the completed ones.
struct Wrong<'a>(&'a Endings);

impl fmt::Display for Wrong<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (count, word) in self.0.wrong_by_word() {
            write!(f, "{separator}{count} {word}")?;
            separator = ", ";
        }
        Ok(())
    }
}

#[cfg(feature = "serde")]
fn serialize_location<S: serde::Serializer>(
    location: &&'static Location<'static>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(location)
}
