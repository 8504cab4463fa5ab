//! Clients that keep everything they receive, on HTTP/1 byte by byte.

use std::{fmt::Write as _, net::SocketAddr};

use bytes::Bytes;
use h2::client;
use http::{HeaderMap, Method, Uri};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Semaphore,
    task::JoinHandle,
};

pub(super) struct Request {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    pub(super) headers: Vec<(&'static str, &'static str)>,
    pub(super) body: Bytes,
    pub(super) client: Client,
}

/// The behaviour of the client.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Client {
    /// It reads to the end.
    Reads,
    /// The same, on HTTP/1.0.
    Http10,
    /// It sends two requests in one write.
    Pipelines,
    /// It resets once the handler has started.
    LeavesBeforeHead,
    /// It resets once it has the head of the response.
    LeavesAfterHead,
    /// It resets once it has the first bytes of the body.
    LeavesMidBody,
}

impl Request {
    pub(super) fn get() -> Self {
        Self { method: "GET", path: "/case", headers: Vec::new(), body: Bytes::new(), client: Client::Reads }
    }
}

/// Waits until that many handlers have started.
async fn wait_for(count: u32, started: &Semaphore) {
    started.acquire_many(count).await.expect("nobody closes it").forget();
}

/// Sends a request on HTTP/1 and returns the response without its date; an empty text if the client left.
pub(super) async fn http1(address: SocketAddr, request: &Request, started: &Semaphore) -> String {
    let mut socket = TcpStream::connect(address).await.expect("the server listens");
    socket.write_all(head(address, request).as_bytes()).await.expect("the server reads");
    let mut seen = Vec::new();
    match request.client {
        Client::Reads | Client::Http10 | Client::Pipelines => {
            let end = socket.read_to_end(&mut seen).await.map_err(|error| error.kind());
            let text = String::from_utf8_lossy(&seen).into_owned();
            let lines = text.split_inclusive("\r\n").filter(|line| !line.starts_with("date: "));
            return format!("{}[{end:?}]", lines.collect::<String>()).replace(&format!("Ok({})", seen.len()), "end");
        }
        Client::LeavesBeforeHead => wait_for(1, started).await,
        Client::LeavesAfterHead => read_until(&mut socket, &mut seen, b"\r\n\r\n").await,
        Client::LeavesMidBody => read_until(&mut socket, &mut seen, b"first").await,
    }
    socket.set_zero_linger().expect("a socket can be reset");
    String::new()
}

fn head(address: SocketAddr, request: &Request) -> String {
    let target = if request.method == "CONNECT" { "upstream.test:80" } else { request.path };
    let one = |connection| {
        let version = if request.client == Client::Http10 { "1.0" } else { "1.1" };
        let mut head = format!("{} {target} HTTP/{version}\r\nhost: {address}\r\n", request.method);
        for (name, value) in request.headers.iter().chain(connection) {
            write!(head, "{name}: {value}\r\n").expect("a string can be written");
        }
        head + "\r\n"
    };
    let close = ("connection", "close");
    if request.client == Client::Pipelines {
        return one(None) + &one(Some(&close));
    }
    let names_connection = request.headers.iter().any(|(name, _)| *name == "connection");
    one((!names_connection).then_some(&close))
}

async fn read_until(socket: &mut TcpStream, seen: &mut Vec<u8>, end: &[u8]) {
    while !seen.windows(end.len()).any(|window| window == end) {
        assert_ne!(socket.read_buf(seen).await.expect("the server sends"), 0, "the server closed the connection");
    }
}

/// Sends a request on HTTP/2 and returns the response without its date and the size of its frames; an empty text if the
/// client left.
pub(super) async fn http2(address: SocketAddr, request: &Request, started: &Semaphore) -> String {
    let socket = TcpStream::connect(address).await.expect("the server listens");
    let (mut requests, connection) = client::handshake(socket).await.expect("the server speaks HTTP/2");
    // The whole request is queued before the connection is polled: the server may answer before it has read it.
    let stream = send(&mut requests, address, request);
    let connection = tokio::spawn(connection);
    let seen = receive(stream, request, started).await;
    drop(requests);
    // A reset is sent before the connection ends.
    let _ = connection.await.expect("the client does not panic");
    seen
}

type Stream = (client::ResponseFuture, h2::SendStream<Bytes>);

fn send(requests: &mut client::SendRequest<Bytes>, address: SocketAddr, request: &Request) -> Stream {
    let without_body = request.body.is_empty();
    let (response, mut stream) = requests
        .send_request(http2_request(address, request), without_body)
        .expect("not more streams than h2 assumes at first");
    if !without_body {
        stream.send_data(request.body.clone(), true).expect("the stream is open");
    }
    (response, stream)
}

async fn receive((response, mut stream): Stream, request: &Request, started: &Semaphore) -> String {
    if request.client == Client::LeavesBeforeHead {
        wait_for(1, started).await;
        stream.send_reset(h2::Reason::CANCEL);
        return String::new();
    }
    let mut seen = String::new();
    let response = match response.await {
        Ok(response) => response,
        Err(error) => return reset(error),
    };
    let (parts, mut body) = response.into_parts();
    writeln!(seen, "{}\n{}", parts.status, lines(parts.headers)).expect("a string can be written");
    let mut data = Vec::new();
    loop {
        if request.client == Client::LeavesAfterHead || (request.client == Client::LeavesMidBody && !data.is_empty()) {
            stream.send_reset(h2::Reason::CANCEL);
            return String::new();
        }
        match body.data().await {
            Some(Ok(bytes)) => {
                body.flow_control().release_capacity(bytes.len()).expect("that many were received");
                data.extend_from_slice(&bytes);
            }
            Some(Err(error)) => return reset(error),
            None => break,
        }
    }
    let trailers = body.trailers().await.map(|trailers| trailers.map(lines)).map_err(|error| error.reason());
    format!("{seen}{}[end, trailers: {trailers:?}]", data.escape_ascii())
}

/// A connection whose streams all have a running handler. It closes its socket abruptly on drop.
pub(super) struct Streams {
    connection: JoinHandle<()>,
    _streams: Vec<Stream>,
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

pub(super) async fn open_streams(address: SocketAddr, request: &Request, count: u32, started: &Semaphore) -> Streams {
    let socket = TcpStream::connect(address).await.expect("the server listens");
    let (mut requests, connection) = client::handshake(socket).await.expect("the server speaks HTTP/2");
    let streams = (0..count).map(|_| send(&mut requests, address, request)).collect();
    let connection = tokio::spawn(async {
        // The test closes the connection, so an error is expected.
        let _ = connection.await;
    });
    wait_for(count, started).await;
    Streams { connection, _streams: streams }
}

/// A reset discards frames that the server has queued, even the head, so how much arrives before it is random.
fn reset(error: h2::Error) -> String {
    format!("[{:?}]", error.reason())
}

fn http2_request(address: SocketAddr, request: &Request) -> http::Request<()> {
    let method: Method = request.method.parse().expect("a method");
    let uri: Uri = if method == Method::CONNECT {
        Uri::from_static("upstream.test:80")
    } else {
        format!("http://{address}{}", request.path).parse().expect("a path")
    };
    let mut built = http::Request::builder().method(method).uri(uri);
    for (name, value) in &request.headers {
        built = built.header(*name, *value);
    }
    built.body(()).expect("a valid request")
}

fn lines(headers: HeaderMap) -> String {
    let headers = headers.iter().filter(|(name, _)| *name != http::header::DATE);
    headers.map(|(name, value)| format!("{name}: {value:?}\n")).collect()
}
