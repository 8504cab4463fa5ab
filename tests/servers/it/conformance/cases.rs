//! The table of cases: every way a response can end.

use tower_track_events::Outcome::{self, *};

use super::{
    answers::Answer::{self, *},
    clients::{Client::*, Request},
    servers::{
        Middle::*,
        Server::{self, *},
        Stack::{self, *},
    },
};

/// One exchange, or several of the same kind, and its expected facts.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) request: Request,
    pub(super) answer: Answer,
    pub(super) stack: Stack,
    /// How many exchanges the layer sees: none if a middleware outside of it answers.
    pub(super) exchanges: usize,
    /// `None` if the case is impossible on this version.
    pub(super) http1: Option<End>,
    pub(super) http2: Option<End>,
    /// Why the two versions differ, or what is unexpected.
    pub(super) note: &'static str,
    /// The servers that it runs on; empty for all.
    pub(super) servers: &'static [Server],
    /// The difference of one server.
    pub(super) except: Option<Exception>,
}

/// The end on one server and one version, where it differs from the row's.
pub(super) struct Exception {
    pub(super) server: Server,
    pub(super) version: Version,
    pub(super) end: End,
    pub(super) note: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Version {
    Http1,
    Http2,
}

/// The facts that an event gets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct End {
    pub(super) outcome: Outcome,
    pub(super) status: Option<u16>,
    pub(super) bytes: Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Bytes {
    Exactly(u64),
    /// At least one and fewer than this: the number depends on a compressor.
    Below(u64),
}

impl Bytes {
    pub(super) fn is(self, bytes: u64) -> bool {
        match self {
            Self::Exactly(expected) => bytes == expected,
            Self::Below(limit) => (1..limit).contains(&bytes),
        }
    }
}

fn end(outcome: Outcome, status: u16, bytes: u64) -> End {
    End { outcome, status: Some(status), bytes: Bytes::Exactly(bytes) }
}

/// There was no response.
fn unanswered(outcome: Outcome) -> End {
    End { outcome, status: None, bytes: Bytes::Exactly(0) }
}

fn case(name: &'static str, answer: Answer, end: End) -> Case {
    Case {
        name,
        request: Request::get(),
        answer,
        stack: Plain,
        exchanges: 1,
        http1: Some(end),
        http2: Some(end),
        note: "",
        servers: &[],
        except: None,
    }
}

impl Case {
    fn method(mut self, method: &'static str) -> Self {
        self.request.method = method;
        self
    }

    fn header(mut self, name: &'static str, value: &'static str) -> Self {
        self.request.headers.push((name, value));
        self
    }

    fn client(mut self, client: super::clients::Client) -> Self {
        self.request.client = client;
        self
    }

    fn stack(mut self, stack: Stack) -> Self {
        self.stack = stack;
        self
    }

    fn http1_only(mut self, note: &'static str) -> Self {
        (self.http2, self.note) = (None, note);
        self
    }

    fn on_http2(mut self, end: End, note: &'static str) -> Self {
        (self.http2, self.note) = (Some(end), note);
        self
    }

    fn note(mut self, note: &'static str) -> Self {
        self.note = note;
        self
    }

    fn only_on(mut self, servers: &'static [Server], note: &'static str) -> Self {
        (self.servers, self.note) = (servers, note);
        self
    }

    fn except(mut self, server: Server, version: Version, end: End, note: &'static str) -> Self {
        self.except = Some(Exception { server, version, end, note });
        self
    }

    pub(super) fn end(&self, server: Server, version: Version) -> Option<End> {
        if !self.servers.is_empty() && !self.servers.contains(&server) {
            return None;
        }
        match &self.except {
            Some(except) if except.server == server && except.version == version => Some(except.end),
            _ => match version {
                Version::Http1 => self.http1,
                Version::Http2 => self.http2,
            },
        }
    }
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        // --- responses that are handed on in full
        case("full body", Full, end(Complete, 200, 5)),
        case("empty body", Empty, end(Complete, 200, 0)),
        case("204", Status(204), end(Complete, 204, 0)),
        case("304", Status(304), end(Complete, 304, 0)),
        case("103 as the only response", Status(103), end(Complete, 103, 0))
            .note("hyper cannot send it: the client sees 500 or nothing, which a layer cannot see"),
        case("204 that carries a body", FullWith(204), end(Complete, 204, 0))
            .on_http2(end(Complete, 204, 5), "on HTTP/1 the body is never polled, on HTTP/2 it is sent"),
        case("304 that carries a body", FullWith(304), end(Complete, 304, 0))
            .on_http2(end(Complete, 304, 5), "on HTTP/1 the body is never polled, on HTTP/2 it is sent"),
        case("HEAD", Full, end(Complete, 200, 0)).method("HEAD").except(
            Hyper,
            Version::Http2,
            end(Complete, 200, 5),
            "hyper sends the body, axum removes it",
        ),
        case("HEAD, stream", Stream, end(Complete, 200, 0)).method("HEAD").except(
            Hyper,
            Version::Http2,
            end(Complete, 200, 10),
            "hyper sends the body, axum removes it",
        ),
        case("stream", Stream, end(Complete, 200, 10)),
        case("stream, HTTP/1.0", Stream, end(Complete, 200, 10))
            .client(Http10)
            .http1_only("the end of the connection is the end of the body"),
        case("full body, HTTP/1.0", Full, end(Complete, 200, 5)).client(Http10).http1_only("another version"),
        case("stream with its Content-Length", Declared(10), end(Complete, 200, 10)),
        case("stream with Content-Length: 0", DeclaredEmpty, end(Complete, 200, 0)),
        case("file of ServeFile", File, end(Complete, 200, 100)),
        case("HEAD of ServeFile", File, end(Complete, 200, 0)).method("HEAD"),
        case("range of ServeFile", File, end(Complete, 206, 10)).header("range", "bytes=10-19"),
        case("unsatisfiable range of ServeFile", File, end(Complete, 416, 0)).header("range", "bytes=500-"),
        case("stream with trailers", Trailers, end(Complete, 200, 5)).header("te", "trailers"),
        case("full body with trailers", FullWithTrailers, end(Complete, 200, 5)),
        Case {
            exchanges: 2,
            ..case("two pipelined requests", Full, end(Complete, 200, 5))
                .client(Pipelines)
                .http1_only("HTTP/2 has streams instead")
        },
        // --- lengths that are not kept
        case("stream shorter than its Content-Length", Declared(20), end(LengthMismatch, 200, 10)),
        case("stream longer than its Content-Length", Declared(7), end(LengthMismatch, 200, 10)),
        // --- streams that fail, and bodies that panic
        case("body that fails", Fails, end(BodyError, 200, 5)),
        case("body that fails at once", FailsAtOnce, end(BodyError, 200, 0)),
        case("body that panics", BodyPanics, end(Panicked, 200, 5)),
        case("body that panics inside CatchPanicLayer", BodyPanics, end(Panicked, 200, 5)).stack(Outside(CatchPanic)),
        // --- services without a response
        case("handler that panics", Panics, unanswered(Panicked)),
        case("service that fails", ServiceFails, unanswered(ServiceError))
            .only_on(&[Hyper], "a service in an axum router cannot fail"),
        // --- clients that leave
        case("client leaves before the head", Never, unanswered(NoResponse)).client(LeavesBeforeHead),
        case("client leaves after the head", Idle, end(Aborted, 200, 0)).client(LeavesAfterHead),
        case("client leaves in the middle", Stalls, end(Aborted, 200, 5)).client(LeavesMidBody),
        case("client leaves a declared length in the middle", StallsDeclared, end(Aborted, 200, 5))
            .client(LeavesMidBody),
        // --- upgrades
        case("101 upgrade", Upgrade, end(Upgraded, 101, 0))
            .header("connection", "upgrade")
            .header("upgrade", "echo")
            .http1_only("HTTP/2 has no Upgrade"),
        case("CONNECT", Connect, end(Upgraded, 200, 0)).method("CONNECT").only_on(&[Hyper], "axum routes by path"),
        case("CONNECT that is declined", FullWith(403), end(Complete, 403, 5))
            .method("CONNECT")
            .only_on(&[Hyper], "axum routes by path"),
        // --- middleware on both sides
        case("inside CompressionLayer", Text, end(Complete, 200, 100))
            .header("accept-encoding", "gzip")
            .stack(Outside(Compression)),
        case("around CompressionLayer", Text, End { bytes: Bytes::Below(100), ..end(Complete, 200, 0) })
            .header("accept-encoding", "gzip")
            .stack(Inside(Compression)),
        case("client leaves inside CompressionLayer", StallsText, end(Aborted, 200, 100))
            .header("accept-encoding", "gzip")
            .stack(Outside(Compression))
            .client(LeavesAfterHead),
        case("inside TimeoutLayer", Never, unanswered(NoResponse)).stack(Outside(Timeout)),
        case("around TimeoutLayer", Never, end(Complete, 408, 0)).stack(Inside(Timeout)),
        case("panic inside CatchPanicLayer", Panics, unanswered(Panicked)).stack(Outside(CatchPanic)),
        case("panic around CatchPanicLayer", Panics, end(Complete, 500, 16)).stack(Inside(CatchPanic)),
        case("inside CorsLayer", Full, end(Complete, 200, 5)).header("origin", "http://a.test").stack(Outside(Cors)),
        Case {
            exchanges: 0,
            ..case("preflight inside CorsLayer", Full, end(Complete, 200, 0))
                .method("OPTIONS")
                .header("origin", "http://a.test")
                .header("access-control-request-method", "GET")
                .stack(Outside(Cors))
        },
        case("preflight around CorsLayer", Full, end(Complete, 200, 0))
            .method("OPTIONS")
            .header("origin", "http://a.test")
            .header("access-control-request-method", "GET")
            .stack(Inside(Cors)),
    ]
}
