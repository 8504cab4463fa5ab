//! Clients, which behave and which do not.

use std::{any::Any, convert::Infallible, net::SocketAddr, time::Duration};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future::BoxFuture};
use http::{Method, Request, Response, Version};
use http_body_util::{BodyExt, Empty};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep_until, timeout},
};

use super::process::{PATIENCE, Process};

pub(super) type Fault = Box<dyn std::error::Error + Send + Sync>;

/// Keeps a client connected.
pub(super) type Held = Box<dyn Any + Send>;

/// What a client does before the signal. It returns what it holds.
pub(super) type Client = for<'a> fn(Visit<'a>) -> BoxFuture<'a, Result<Held, Fault>>;

pub(super) struct Visit<'a> {
    pub(super) process: &'a mut Process,
    pub(super) address: SocketAddr,
    pub(super) version: Version,
}

enum Requests {
    Http1(http1::SendRequest<Empty<Bytes>>),
    Http2(http2::SendRequest<Empty<Bytes>>),
}

impl Visit<'_> {
    async fn connect(&self) -> Result<Requests, Fault> {
        let stream = TokioIo::new(TcpStream::connect(self.address).await?);
        Ok(if self.version == Version::HTTP_2 {
            let (requests, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
            tokio::spawn(connection);
            Requests::Http2(requests)
        } else {
            let (requests, connection) = http1::handshake(stream).await?;
            tokio::spawn(connection);
            Requests::Http1(requests)
        })
    }

    fn request(&self, method: Method, path: &str) -> Request<Empty<Bytes>> {
        let uri =
            if self.version == Version::HTTP_2 { format!("http://{}{path}", self.address) } else { path.to_owned() };
        let request = Request::builder().method(method).uri(uri).header("host", "localhost");
        request.body(Empty::new()).expect("the request is valid")
    }

    /// Sends a request, and returns when the head of the response is there.
    async fn get(&self, path: &str) -> Result<(Requests, Response<Incoming>), Fault> {
        let mut requests = self.connect().await?;
        let request = self.request(Method::GET, path);
        let answers = requests.send(request);
        let response = timeout(PATIENCE, answers).await??;
        if !response.status().is_success() {
            return Err(format!("{path}: {}", response.status()).into());
        }
        Ok((requests, response))
    }

    /// Sends a request and reads the response to its end.
    async fn get_all(&self, path: &str) -> Result<Requests, Fault> {
        let (requests, response) = self.get(path).await?;
        timeout(PATIENCE, response.into_body().collect()).await??;
        Ok(requests)
    }

    async fn send_raw(&self, bytes: &[u8], read: usize) -> Result<Held, Fault> {
        let mut stream = TcpStream::connect(self.address).await?;
        stream.write_all(bytes).await?;
        timeout(PATIENCE, stream.read_exact(&mut vec![0; read])).await??;
        // Connections are accepted in order: when this one is served, so is the other.
        self.get_all("/hello").await?;
        Ok(Box::new(stream))
    }
}

impl Requests {
    async fn send(&mut self, request: Request<Empty<Bytes>>) -> hyper::Result<Response<Incoming>> {
        match self {
            Self::Http1(requests) => requests.send_request(request).await,
            Self::Http2(requests) => requests.send_request(request).await,
        }
    }
}

/// A client that has got a response and keeps its connection.
pub(super) fn polite(visit: Visit<'_>) -> BoxFuture<'_, Result<Held, Fault>> {
    async move { Ok(Box::new(visit.get_all("/hello").await?) as Held) }.boxed()
}

pub(super) fn nobody(_: Visit<'_>) -> BoxFuture<'_, Result<Held, Fault>> {
    async { Ok(Box::new(()) as Held) }.boxed()
}

pub(super) fn half_a_head(visit: Visit<'_>) -> BoxFuture<'_, Result<Held, Fault>> {
    let half: &[u8] = if visit.version == Version::HTTP_2 { b"PRI * HTTP/2.0\r\n" } else { b"GET /hello HTT" };
    async move { visit.send_raw(half, 0).await }.boxed()
}

/// It sends its settings, reads those of the server, and is silent from then on.
pub(super) fn silent_http2(visit: Visit<'_>) -> BoxFuture<'_, Result<Held, Fault>> {
    async move { visit.send_raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", 9).await }.boxed()
}

pub(super) fn silent_tcp(visit: Visit<'_>) -> BoxFuture<'_, Result<Held, Fault>> {
    async move { visit.send_raw(b"", 0).await }.boxed()
}

async fn reads_one_frame(visit: Visit<'_>, path: &str) -> Result<Held, Fault> {
    let (requests, mut response) = visit.get(path).await?;
    timeout(PATIENCE, response.body_mut().frame()).await?.ok_or("the stream has ended")??;
    // Its end is read, so that the connection can close.
    let body = response.into_body();
    let reading = tokio::spawn(body.collect());
    Ok(Box::new((requests, reading)))
}

pub(super) fn stream(visit: Visit<'_>) -> BoxFuture<'_, Result<Held, Fault>> {
    reads_one_frame(visit, "/sse").boxed()
}

pub(super) fn stream_that_ends(visit: Visit<'_>) -> BoxFuture<'_, Result<Held, Fault>> {
    reads_one_frame(visit, "/sse-draining").boxed()
}

pub(super) fn web_socket(visit: Visit<'_>) -> BoxFuture<'_, Result<Held, Fault>> {
    async move {
        let (mut socket, _) = tokio_tungstenite::connect_async(format!("ws://{}/socket", visit.address)).await?;
        let reading = tokio::spawn(async move { while let Some(Ok(_)) = socket.next().await {} });
        Ok(Box::new(reading) as Held)
    }
    .boxed()
}

/// It sends a request for 128 MB and reads nothing but the head.
pub(super) fn never_reads(visit: Visit<'_>) -> BoxFuture<'_, Result<Held, Fault>> {
    async move { Ok(Box::new(visit.get("/download/134217728").await?) as Held) }.boxed()
}

pub(super) fn fifty_never_read(visit: Visit<'_>) -> BoxFuture<'_, Result<Held, Fault>> {
    async move {
        let mut held = Vec::new();
        // Two events each.
        for _ in 0..50 {
            held.push(visit.get("/download/134217728").await?);
        }
        Ok(Box::new(held) as Held)
    }
    .boxed()
}

pub(super) fn never_reads_after_the_last_call(visit: Visit<'_>) -> BoxFuture<'_, Result<Held, Fault>> {
    async move {
        visit.get_all("/last-call").await?;
        Ok(Box::new(visit.get("/download/134217728").await?) as Held)
    }
    .boxed()
}

/// Reads a download of so many MB at so many MB/s, in a task.
async fn reads_slowly(visit: Visit<'_>, megabytes: u64, per_second: u64) -> Result<Held, Fault> {
    let (requests, response) = visit.get(&format!("/download/{}", megabytes << 20)).await?;
    let mut body = response.into_body();
    let reading = tokio::spawn(async move {
        let (began, mut read) = (Instant::now(), 0);
        while let Some(Ok(frame)) = body.frame().await {
            read += frame.data_ref().map_or(0, Bytes::len) as u64;
            sleep_until(began + Duration::from_micros(read / per_second)).await;
        }
        drop(requests);
        Ok::<_, Infallible>(read)
    });
    Ok(Box::new(reading))
}

pub(super) fn downloads_in_time(visit: Visit<'_>) -> BoxFuture<'_, Result<Held, Fault>> {
    reads_slowly(visit, 64, 26).boxed()
}

pub(super) fn downloads_too_slowly(visit: Visit<'_>) -> BoxFuture<'_, Result<Held, Fault>> {
    reads_slowly(visit, 128, 4).boxed()
}

/// A request that is answered after 2.4 seconds.
pub(super) fn commits(visit: Visit<'_>) -> BoxFuture<'_, Result<Held, Fault>> {
    async move {
        let mut requests = visit.connect().await?;
        let request = visit.request(Method::POST, "/commit/2400");
        let answer = tokio::spawn(async move {
            let response = requests.send(request).await?;
            response.into_body().collect().await
        });
        visit.process.printed("committing").await?;
        Ok(Box::new(answer) as Held)
    }
    .boxed()
}

/// A stream without an end, and probes of the admin port, which end with the first that fails.
pub(super) fn stream_and_probes(visit: Visit<'_>) -> BoxFuture<'_, Result<Held, Fault>> {
    async move {
        let address = visit.process.address("admin on ").await?;
        let admin = Visit { process: &mut *visit.process, address, version: Version::HTTP_11 };
        admin.get_all("/ready").await?;
        Ok(Box::new((address, reads_one_frame(visit, "/sse").await?)) as Held)
    }
    .boxed()
}
