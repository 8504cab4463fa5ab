//! [`Progress`]: the lines that a drain logs while it waits.

use std::{cmp::Reverse, collections::BTreeMap, fmt, time::Duration};

use tokio::time::Instant;

use crate::{
    drain::{OpenItem, OpenKind},
    registry::{Account, Group, Kind, Open, Stage},
    util::text::{Joined, OneLine, Plural, Seconds},
};

/// Writes a line that names everything for which a drain waits: `draining: 2 requests open, 17 events pending
/// (order.created x15, audit x2), 3.2 s of 5.0 s`.
pub(super) struct Progress {
    account: Account,
    elapsed: Duration,
    limit: Option<Duration>,
}

impl Progress {
    pub(super) fn new(account: Account, elapsed: Duration, limit: Option<Duration>) -> Self {
        Self { account, elapsed, limit }
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { account: Account { snapshot: now, open, running_sinks, .. }, elapsed, limit } = self;
        f.write_str("draining: ")?;
        if !running_sinks.is_empty() && now.holders() + now.pending == 0 {
            let names = running_sinks.iter().map(|sink| OneLine(sink.name));
            write!(f, "{} still running: {}", Plural(running_sinks.len() as u64, "sink"), Joined(names))?;
        } else if now.holders() + now.pending == 0 {
            f.write_str("nothing open, waiting for the quiet period to pass")?;
        } else {
            write!(f, "{} open", Plural(now.open_requests, "request"))?;
            write_names(
                f,
                open.iter().filter_map(|((kind, _, label), group)| match kind {
                    Kind::Request => Some((label.as_deref()?, group.count)),
                    _ => None,
                }),
            )?;
            f.write_str(", ")?;
            for (count, word) in [(now.open_guards, "guard"), (now.reserved, "permit")] {
                if count > 0 {
                    write!(f, "{} held, ", Plural(count, word))?;
                }
            }
            write!(f, "{} pending", Plural(now.pending, "event"))?;
        }
        write_names(
            f,
            open.iter().filter_map(|((kind, ..), group)| match *kind {
                Kind::Event { name, .. } => Some((name, group.count)),
                _ => None,
            }),
        )?;
        let limited = |((kind, ..), group): (&(Kind, _, _), &Group)| match kind {
            Kind::Event { stage: Stage::Limited, .. } => group.count,
            _ => 0,
        };
        let limited: u64 = open.iter().map(limited).sum();
        if limited > 0 {
            write!(f, ", {limited} of them waiting for a turn")?;
        }
        write!(f, ", {}", Seconds(*elapsed))?;
        limit.map_or(Ok(()), |limit| write!(f, " of {}", Seconds(limit)))
    }
}

/// Returns a line about the open requests: `GET /export x3 open (oldest 4.2 s), 1 request open (oldest 0.3 s)`.
pub(super) fn open_requests(open: &Open) -> String {
    let mut requests: Vec<_> =
        OpenItem::all(open, Instant::now()).filter(|item| item.kind == OpenKind::Request).collect();
    requests.sort_by_key(|item| Reverse(item.oldest));
    Joined(requests.iter()).to_string()
}

/// Writes ` (order.created x15, audit x2)`, or nothing if there are no names.
fn write_names<'a>(f: &mut fmt::Formatter<'_>, counts: impl Iterator<Item = (&'a str, u64)>) -> fmt::Result {
    let mut by_name: BTreeMap<&str, u64> = BTreeMap::new();
    counts.for_each(|(name, count)| *by_name.entry(name).or_default() += count);
    let mut by_name: Vec<_> = by_name.into_iter().collect();
    by_name.sort_by_key(|(_, count)| Reverse(*count));
    if by_name.is_empty() {
        return Ok(());
    }
    let names = by_name.iter().map(|(name, count)| format!("{} x{count}", OneLine(name)));
    write!(f, " ({})", Joined(names))
}

#[cfg(all(test, not(track_events_loom)))]
mod tests {
    use std::{collections::BTreeMap, panic::Location, time::Duration};

    use tokio::time::Instant;

    use super::Progress;
    use crate::registry::{Account, Open, RunningSink, Snapshot};

    fn line(open_requests: u64, pending: u64, sinks: usize) -> String {
        let snapshot = Snapshot { open_requests, pending, ..Snapshot::default() };
        let sink = || RunningSink { name: "row", location: Location::caller(), since: Instant::now() };
        let account = Account {
            snapshot,
            by_name: BTreeMap::new(),
            sinks: Vec::new(),
            open: Open::default(),
            running_sinks: (0..sinks).map(|_| sink()).collect(),
            is_unused: false,
        };
        Progress::new(account, Duration::from_secs(1), None).to_string()
    }

    #[test]
    fn the_progress_says_what_is_open_before_it_says_that_a_sink_runs() {
        assert_eq!(line(1, 0, 1), "draining: 1 request open, 0 events pending, 1.0 s");
        assert_eq!(line(0, 2, 1), "draining: 0 requests open, 2 events pending, 1.0 s");
        assert_eq!(line(0, 0, 1), "draining: 1 sink still running: row, 1.0 s");
        assert_eq!(line(0, 0, 0), "draining: nothing open, waiting for the quiet period to pass, 1.0 s");
        assert_eq!(line(2, 0, 0), "draining: 2 requests open, 0 events pending, 1.0 s");
        assert_eq!(line(0, 1, 0), "draining: 0 requests open, 1 event pending, 1.0 s");
    }
}
