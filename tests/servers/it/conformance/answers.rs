//! The handler of each case: one answer each.

use std::{fs, io, path::PathBuf, sync::LazyLock};

use axum::{BoxError, body::Body};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper_util::rt::TokioIo;
use tokio::{io::AsyncWriteExt, sync::Semaphore};
use tower::ServiceExt;
use tower_http::services::ServeFile;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Answer {
    /// Five bytes at once.
    Full,
    FullWith(u16),
    FullWithTrailers,
    Empty,
    Status(u16),
    /// Two frames of five bytes, then the end.
    Stream,
    /// The same with a Content-Length.
    Declared(u64),
    /// A stream without a frame, and Content-Length: 0.
    DeclaredEmpty,
    /// One frame of five bytes, then trailers.
    Trailers,
    /// A hundred bytes on the disk.
    File,
    /// A stream of a hundred bytes.
    Text,
    Fails,
    FailsAtOnce,
    BodyPanics,
    Panics,
    ServiceFails,
    /// There is never a response.
    Never,
    /// A stream that never has a frame.
    Idle,
    /// One frame of five bytes, then nothing.
    Stalls,
    StallsDeclared,
    /// A hundred bytes, then nothing.
    StallsText,
    /// 101, and a few bytes on the connection.
    Upgrade,
    /// 200 to CONNECT, and the connection is closed.
    Connect,
}

/// A panic that is part of a case, without a backtrace.
pub(super) fn panic() -> ! {
    std::panic::resume_unwind(Box::new("part of the case"))
}

const TEXT: &[u8; 100] = &[b'a'; 100];

static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    // One file for each run of the tests: its time and tag are compared, and two runs may be concurrent.
    let name = format!("conformance-{}.txt", std::process::id());
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, TEXT).expect("the target folder can be written");
    path
});

impl Answer {
    /// Answers a request; adds a permit to `started` when the handler runs.
    pub(super) async fn give(self, started: &Semaphore, request: Request<Body>) -> Result<Response<Body>, BoxError> {
        started.add_permits(1);
        let response = Response::builder();
        let stream = |frames| response_of(Body::new(StreamBody::new(tokio_stream::iter(frames))));
        let stalling = |frames| {
            let pending = futures_util::stream::pending::<Result<Frame<Bytes>, io::Error>>();
            response_of(Body::new(StreamBody::new(futures_util::StreamExt::chain(tokio_stream::iter(frames), pending))))
        };
        Ok(match self {
            Self::Full => response_of(Body::from("hello")),
            Self::FullWith(status) => response.status(status).body(Body::from("hello"))?,
            Self::FullWithTrailers => {
                let full = http_body_util::Full::new(Bytes::from_static(b"hello"));
                response_of(Body::new(full.with_trailers(async { Some(Ok(trailers())) })))
            }
            Self::Empty => response_of(Body::empty()),
            Self::Status(status) => response.status(status).body(Body::empty())?,
            Self::Stream => stream(vec![data(b"first"), data(b"later")]),
            Self::Declared(length) => with_length(stream(vec![data(b"first"), data(b"later")]), length),
            Self::DeclaredEmpty => with_length(stream(vec![]), 0),
            Self::Trailers => stream(vec![data(b"first"), Ok(Frame::trailers(trailers()))]),
            Self::File => ServeFile::new(&*FILE).oneshot(request).await?.map(Body::new),
            Self::Text => stream(vec![data(TEXT)]),
            Self::Fails => stream(vec![data(b"first"), Err(io::Error::other("the disk is gone"))]),
            Self::FailsAtOnce => stream(vec![Err(io::Error::other("the disk is gone"))]),
            Self::BodyPanics => {
                let mut polls = 0;
                let frames = futures_util::stream::poll_fn(move |_| {
                    polls += 1;
                    if polls > 1 { panic() } else { std::task::Poll::Ready(Some(data(b"first"))) }
                });
                response_of(Body::new(StreamBody::new(frames)))
            }
            Self::Panics => panic(),
            Self::ServiceFails => return Err("the service is broken".into()),
            Self::Never => std::future::pending().await,
            Self::Idle => stalling(vec![]),
            Self::Stalls => stalling(vec![data(b"first")]),
            Self::StallsDeclared => with_length(stalling(vec![data(b"first")]), 10),
            Self::StallsText => stalling(vec![data(TEXT)]),
            Self::Upgrade => {
                tokio::spawn(async {
                    let connection = hyper::upgrade::on(request).await.expect("the client upgrades");
                    let mut connection = TokioIo::new(connection);
                    connection.write_all(b"upgraded").await.expect("the client reads");
                    connection.shutdown().await.expect("the client reads");
                });
                let switching = response.status(StatusCode::SWITCHING_PROTOCOLS);
                switching.header(header::CONNECTION, "upgrade").header(header::UPGRADE, "echo").body(Body::empty())?
            }
            Self::Connect => {
                tokio::spawn(async { drop(hyper::upgrade::on(request).await) });
                response_of(Body::empty())
            }
        })
    }
}

fn response_of(body: Body) -> Response<Body> {
    Response::new(body)
}

fn data(bytes: &'static [u8]) -> io::Result<Frame<Bytes>> {
    Ok(Frame::data(Bytes::from_static(bytes)))
}

fn trailers() -> HeaderMap {
    HeaderMap::from_iter([(header::HeaderName::from_static("checksum"), header::HeaderValue::from_static("7"))])
}

fn with_length(mut response: Response<Body>, length: u64) -> Response<Body> {
    response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    response
}
