//! The table as a document.

use std::fmt::Write as _;

use super::{
    cases::{Case, End, Servers, When},
    server::SERVERS,
};

pub(super) fn render(cases: &[Case]) -> String {
    let mut text = String::from(
        "# How a process stops, on every server\n\n\
         Each row is a server process that runs `handle.shutdown()`. It has a client in the given state, and gets \
         real signals. The tests in `tests/servers/it/shutdown_cases` generate this page, and fail if it differs from \
         their table.\n\n\
         The limit is 4 seconds. The servers have the first half of it. The last call is made when a quarter of \
         the limit is left. The client speaks HTTP/1.1 to axum, hyper-util and axum-server, and HTTP/2 to tonic.\n\n\
         A cell has the exit code, the result of the servers in the report, the time from the signal to the end of \
         the process, and other words of the report. *Unfinished* servers are dropped when the drain has ended, so \
         they use no more than their share of the limit. A dash means that the server cannot have this case.\n\n\
         | case | axum | hyper-util | axum-server | tonic | outcome of the events | note |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for case in cases {
        let cells: Vec<_> = SERVERS.iter().map(|&server| case.end(server).map_or("-".to_owned(), cell)).collect();
        let outcome = case.outcome.map_or(String::new(), |[axum, _, axum_server, _]| match axum == axum_server {
            true => axum.to_owned(),
            false => format!("{axum}; on axum-server {axum_server}"),
        });
        let _ = writeln!(text, "| {} | {} | {outcome} | {} |", case.name, cells.join(" | "), case.note);
    }
    text
}

fn cell(End { code, when, servers, says }: End) -> String {
    let servers = match servers {
        Servers::Stopped => "stopped",
        Servers::Unfinished => "unfinished",
        Servers::Ended => "ended without a signal",
        Servers::Failed => "failed",
        Servers::StoppedOrNot => "stopped or unfinished",
    };
    let when = match when {
        When::AtOnce => "at once",
        When::AfterTheServers => "after the servers' share",
        When::AtTheLimit => "at the limit",
        When::Within => "within the limit",
    };
    let says = if says.is_empty() { String::new() } else { format!("; \"{says}\"") };
    format!("{code}; {servers}; {when}{says}")
}
