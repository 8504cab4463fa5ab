//! The tables as a document.

use std::fmt::Write as _;

use super::{
    cases::{Bytes, Case, End},
    grpc::Call,
    servers::SERVERS,
};

pub(super) fn render(cases: &[Case], calls: &[Call]) -> String {
    let mut text = format!(
        "# How a response ends, on every server\n\n\
         Each row runs over real sockets on each of {servers} servers, with the layer and without. The client sees \
         the same response both times, byte for byte on HTTP/1.1, and each exchange runs its event exactly once. \
         The tests in `tests/servers/it/conformance` generate this page, and fail if it differs from what they run.\n\n\
         {list}\n\
         A cell has the outcome, the status, and the number of bytes of the body that the layer passed on. A dash \
         means that this version of HTTP has no such response.\n\n\
         | response | HTTP/1.1 | HTTP/2 | note |\n|---|---|---|---|\n",
        servers = SERVERS.len(),
        list = SERVERS.iter().map(|server| format!("- {}\n", server.description())).collect::<String>(),
    );
    for case in cases {
        let mut note = case.note.to_owned();
        if let Some(except) = &case.except {
            write!(
                note,
                "{:?} on {:?}: {} ({})",
                except.server,
                except.version,
                cell(1, Some(except.end)),
                except.note
            )
            .expect("a string can be written");
        }
        let (http1, http2) = (cell(case.exchanges, case.http1), cell(case.exchanges, case.http2));
        writeln!(text, "| {} | {http1} | {http2} | {note} |", case.name).expect("a string can be written");
    }
    text.push_str(
        "\n## tonic\n\nThe layer is passed to `Server::layer`. `grpc_status` is read from the trailers, or else from \
         the headers.\n\n| call | outcome | `grpc_status` | bytes |\n|---|---|---|---|\n",
    );
    for call in calls {
        let status = call.grpc_status.map_or("-".to_owned(), |code| format!("{} ({code:?})", i32::from(code)));
        writeln!(text, "| {} | {:?} | {status} | {} |", call.name, call.outcome, call.bytes)
            .expect("a string can be written");
    }
    text
}

fn cell(exchanges: usize, end: Option<End>) -> String {
    let Some(End { outcome, status, bytes }) = end else { return "-".to_owned() };
    let times = match exchanges {
        0 => return "no exchange".to_owned(),
        1 => String::new(),
        more => format!(", {more} times"),
    };
    let status = status.map_or(String::new(), |status| format!(", {status}"));
    let bytes = match bytes {
        _ if status.is_empty() => String::new(),
        Bytes::Exactly(bytes) => format!(", {bytes}"),
        Bytes::Below(limit) => format!(", below {limit}"),
    };
    format!("{outcome:?}{status}{bytes}{times}")
}
