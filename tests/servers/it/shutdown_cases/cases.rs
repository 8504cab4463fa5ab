//! The table of cases.

use http::Version;

use super::{
    clients::{self, Client},
    server::{Extra, Framework, SERVERS, Settings},
};

/// The limit of each case, in milliseconds. The servers have the first half of it; the last call is made at three
/// quarters.
pub(super) const LIMIT: u64 = 4_000;

pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) client: Client,
    pub(super) signals: Signals,
    pub(super) settings: Settings,
    /// For each server; `None` where the case cannot be.
    pub(super) ends: [Option<End>; 4],
    /// The outcomes that its events get, in the order of the servers.
    pub(super) outcome: Option<[&'static str; 4]>,
    pub(super) note: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signals {
    Term,
    Int,
    /// One that comes twice within 5 ms.
    Forwarded,
    /// A second one, so long after the first.
    Second(u64),
    /// The process ends by itself.
    None,
    /// One more when the shutdown is over.
    Afterwards,
}

/// How a process ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    pub(super) code: i32,
    pub(super) when: When,
    pub(super) servers: Servers,
    /// Words of the report besides.
    pub(super) says: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    AtOnce,
    AfterTheServers,
    AtTheLimit,
    /// At some time within the limit.
    Within,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Servers {
    Stopped,
    Unfinished,
    Ended,
    Failed,
    /// Either of the first two: axum-server ends at the end of its share.
    StoppedOrNot,
}

use Servers::{Ended, Failed, Stopped, StoppedOrNot, Unfinished};
use When::{AfterTheServers, AtOnce, AtTheLimit, Within};

const fn end(code: i32, when: When, servers: Servers, says: &'static str) -> Option<End> {
    Some(End { code, when, servers, says })
}

impl Case {
    fn new(name: &'static str, client: Client, end: Option<End>) -> Self {
        let settings = Settings {
            server: Framework::Axum,
            limit: LIMIT,
            delay: 0,
            server_limit: None,
            capacity: 1_000,
            extra: Extra::Nothing,
        };
        Self { name, client, signals: Signals::Term, settings, ends: [end; 4], outcome: None, note: "" }
    }

    fn with(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.settings);
        self
    }

    fn extra(self, extra: Extra) -> Self {
        self.with(|settings| settings.extra = extra)
    }

    fn signals(mut self, signals: Signals) -> Self {
        self.signals = signals;
        self
    }

    fn on(mut self, server: Framework, end: Option<End>) -> Self {
        self.ends[server as usize] = end;
        self
    }

    fn note(mut self, note: &'static str) -> Self {
        self.note = note;
        self
    }

    /// The outcome of its events, on axum-server and on the others: axum-server closes connections.
    fn outcome(mut self, outcome: &'static str, on_axum_server: &'static str) -> Self {
        self.outcome = Some([outcome, outcome, on_axum_server, outcome]);
        self
    }

    pub(super) fn end(&self, server: Framework) -> Option<End> {
        self.ends[server as usize]
    }

    pub(super) fn outcome_on(&self, server: Framework) -> Option<&'static str> {
        self.outcome.map(|outcomes| outcomes[server as usize])
    }
}

/// With which version the client speaks to this server.
pub(super) fn version(server: Framework) -> Version {
    if server == Framework::Tonic { Version::HTTP_2 } else { Version::HTTP_11 }
}

pub(super) fn cases() -> Vec<Case> {
    let good = end(0, AtOnce, Stopped, "");
    let share = end(0, AfterTheServers, Unfinished, "");
    let open = end(1, AtTheLimit, Unfinished, "1 request open");
    // axum-server closes the connections at the end of its share.
    let closed = end(0, AfterTheServers, StoppedOrNot, "");
    let never_reads = |case: Case| case.on(Framework::AxumServer, closed).outcome("Unfinished", "Aborted");
    vec![
        Case::new("a clean stop by SIGTERM", clients::polite, good),
        Case::new("Ctrl-C", clients::polite, good).signals(Signals::Int),
        Case::new("a current-thread runtime", clients::polite, good).extra(Extra::CurrentThread),
        Case::new("a signal that comes twice within 5 ms", clients::polite, end(0, AtOnce, Stopped, "1 completed"))
            .signals(Signals::Forwarded)
            .extra(Extra::SlowEvent)
            .note("an event that takes a second completes"),
        Case::new("a second signal during the readiness delay", clients::polite, end(0, AtOnce, StoppedOrNot, ""))
            .signals(Signals::Second(600))
            .with(|settings| settings.delay = 3_000)
            .note("nothing is pending, so the drain is `Ok`"),
        Case::new(
            "a second signal during the share of the servers",
            clients::half_a_head,
            end(0, AtOnce, Unfinished, ""),
        )
        .signals(Signals::Second(600)),
        Case::new("a second signal during the drain", clients::polite, end(1, AtOnce, Stopped, "drain interrupted"))
            .signals(Signals::Second(600))
            .extra(Extra::StuckEvent),
        Case::new("one more signal after the shutdown", clients::polite, end(143, AtOnce, Stopped, ""))
            .signals(Signals::Afterwards)
            .extra(Extra::StaysAfterwards)
            .note("128 + the number of SIGTERM"),
        Case::new("half a request head", clients::half_a_head, share).on(Framework::AxumServer, closed),
        Case::new("a silent HTTP/2 peer", clients::silent_http2, share).on(Framework::AxumServer, closed),
        Case::new("a silent TCP peer", clients::silent_tcp, good)
            .on(Framework::Tonic, share)
            .note("tonic waits for the preface of HTTP/2"),
        Case::new("an endless stream that waits for `draining`", clients::stream_that_ends, good),
        Case::new("an endless stream", clients::stream, open).on(Framework::AxumServer, closed),
        Case::new("a WebSocket with a guard", clients::web_socket, good)
            .on(Framework::Tonic, None)
            .note("the drain waits for half a second until the socket is closed"),
        never_reads(Case::new("a client that never reads 128 MB", clients::never_reads, open)),
        never_reads(Case::new(
            "fifty such clients with two events each, at a capacity of 100",
            clients::fifty_never_read,
            end(1, AtTheLimit, Unfinished, "50 requests open"),
        ))
        .with(|settings| settings.capacity = 100),
        never_reads(Case::new(
            "a request after a last call, which never reads",
            clients::never_reads_after_the_last_call,
            open,
        ))
        .outcome("Unfinished", "Unfinished")
        .note("the last call is made before the request; the events start with the head"),
        Case::new("a download that ends within the share", clients::downloads_in_time, end(0, Within, Stopped, ""))
            .with(|settings| settings.server_limit = Some(3_000))
            .outcome("Complete", "Complete")
            .note("64 MB at 26 MB/s; the share of the servers is 3 s"),
        never_reads(Case::new("a download that is too slow", clients::downloads_too_slowly, open))
            .note("128 MB at 4 MB/s"),
        Case::new(
            "a POST that commits after 60 % of the limit",
            clients::commits,
            end(0, AfterTheServers, StoppedOrNot, ""),
        )
        .outcome("Complete", "NoResponse")
        .on(Framework::AxumServer, closed)
        .note("the share of the servers ends earlier, and axum-server closes the connection then"),
        Case::new("a port that is taken", clients::nobody, end(1, AtOnce, Failed, "Address already in use"))
            .signals(Signals::None)
            .extra(Extra::PortTaken(0)),
        Case::new("a server that ends with an event pending", clients::nobody, end(0, AtOnce, Ended, "1 completed"))
            .signals(Signals::None)
            .extra(Extra::EndsByItself),
        Case::new("HTTP, gRPC and an admin port", clients::stream_and_probes, open)
            .extra(Extra::AdminPort)
            .on(Framework::AxumServer, closed)
            .note("an endless stream is open; the admin port answers 503 during the drain"),
        Case::new("two handles", clients::polite, good).extra(Extra::TwoHandles),
        Case::new("a heartbeat event each 50 ms", clients::polite, good).extra(Extra::Heartbeat),
        Case::new("a value each millisecond into a sink of 30 ms", clients::polite, good).extra(Extra::Producer),
        Case::new("an event that hangs", clients::polite, end(1, AtTheLimit, Stopped, "stuck x1 running"))
            .extra(Extra::StuckEvent),
        Case::new("an event that failed before the signal", clients::polite, end(0, AtOnce, Stopped, "1 failed"))
            .extra(Extra::FailedBefore),
        Case::new(
            "`on_signal` panics",
            clients::polite,
            end(1, AtOnce, Stopped, "on_signal panicked: cannot deregister"),
        )
        .extra(Extra::OnSignalPanics),
        Case::new("`on_signal` hangs", clients::polite, end(0, AtOnce, Stopped, "on_signal dropped unfinished"))
            .extra(Extra::OnSignalHangs),
        Case::new("`flush` hangs", clients::polite, end(1, AtTheLimit, Stopped, "flush dropped unfinished"))
            .extra(Extra::FlushHangs),
        Case::new("a limit of zero", clients::nobody, end(0, AtOnce, StoppedOrNot, ""))
            .with(|settings| settings.limit = 0),
        Case::new(
            "a runtime without an IO driver",
            clients::nobody,
            end(1, AtOnce, Failed, "cannot listen for SIGTERM and Ctrl-C"),
        )
        .signals(Signals::None)
        .extra(Extra::NoIoDriver),
    ]
}

impl Case {
    /// The servers on which it is run.
    pub(super) fn servers(&self) -> impl Iterator<Item = Framework> {
        SERVERS.into_iter().filter(|&server| self.end(server).is_some())
    }
}
