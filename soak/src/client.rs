//! Clients: honest, impatient, and hostile.

use std::{future::poll_fn, net::SocketAddr};

use bytes::Bytes;
use futures_util::future::join_all;
use h2::{Reason, client};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::TcpStream, time::Instant};

async fn connect(address: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(address).await.expect("the server listens");
    socket.set_nodelay(true).expect("a socket has this option");
    socket
}

pub(crate) struct Http1(http1::SendRequest<Full<Bytes>>);

impl Http1 {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let (requests, connection) =
            http1::handshake(TokioIo::new(connect(address).await)).await.expect("the server speaks HTTP/1.1");
        tokio::spawn(async {
            // An error of the connection shows at its requests.
            let _ = connection.await;
        });
        Self(requests)
    }

    /// The status and the body; `None` if the connection is closed.
    async fn send(&mut self, request: Request<Full<Bytes>>) -> Option<(StatusCode, Bytes)> {
        self.0.ready().await.ok()?;
        let response = self.0.send_request(request).await.ok()?;
        let status = response.status();
        Some((status, response.into_body().collect().await.ok()?.to_bytes()))
    }

    pub(crate) async fn get(&mut self, path: &str) -> Option<u16> {
        let request = Request::get(path).header("host", "soak").body(Full::default()).expect("a valid request");
        Some(self.send(request).await?.0.as_u16())
    }

    pub(crate) async fn get_json(&mut self, path: &str) -> Value {
        let request = Request::get(path).header("host", "soak").body(Full::default()).expect("a valid request");
        let (_, body) = self.send(request).await.expect("the server answers");
        serde_json::from_slice(&body).expect("the answer is JSON")
    }
}

/// Sends that many requests over eight connections, and returns how many had the right answer.
pub(crate) async fn http1_load(address: SocketAddr, requests: u64) -> u64 {
    const CONNECTIONS: u64 = 8;
    let connections = (0..CONNECTIONS).map(|index| async move {
        let mut client = Http1::connect(address).await;
        let mut answered = 0;
        for _ in 0..requests / CONNECTIONS + u64::from(index < requests % CONNECTIONS) {
            answered += u64::from(client.get("/").await == Some(200));
        }
        answered
    });
    join_all(connections).await.into_iter().sum()
}

/// The ids of the orders that were answered with 201, until the server closes the connection.
pub(crate) async fn order_until_closed(address: SocketAddr) -> Vec<String> {
    let (mut client, mut ids) = (Http1::connect(address).await, Vec::new());
    loop {
        let request = Request::post("/orders").header("host", "soak").header("content-type", "application/json");
        let request = request.body(Full::from(r#"{"item":"book","quantity":1}"#)).expect("a valid request");
        let Some((StatusCode::CREATED, body)) = client.send(request).await else { return ids };
        let answer: Value = serde_json::from_slice(&body).expect("the answer is JSON");
        ids.push(answer["id"].as_str().expect("an order has an id").to_owned());
    }
}

pub(crate) struct Http2(client::SendRequest<Bytes>);

pub(crate) struct Exchange {
    response: client::ResponseFuture,
    stream: h2::SendStream<Bytes>,
}

impl Http2 {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let (requests, connection) = client::handshake(connect(address).await).await.expect("the server speaks HTTP/2");
        tokio::spawn(async {
            // An error of the connection shows at its streams.
            let _ = connection.await;
        });
        Self(requests)
    }

    /// Opens a stream, as soon as the server allows one more.
    pub(crate) async fn send(&mut self, path: &str) -> Exchange {
        self.try_send(path).await.expect("the connection is open")
    }

    async fn try_send(&mut self, path: &str) -> Result<Exchange, h2::Error> {
        poll_fn(|cx| self.0.poll_ready(cx)).await?;
        let request = Request::get(format!("http://soak{path}")).body(()).expect("a valid request");
        let (response, stream) = self.0.send_request(request, true)?;
        Ok(Exchange { response, stream })
    }
}

impl Exchange {
    pub(crate) fn reset(mut self) {
        self.stream.send_reset(Reason::CANCEL);
    }

    /// Reads the response; an error is part of the mix.
    pub(crate) async fn read_to_end(self) {
        let Ok(response) = self.response.await else { return };
        let mut body = response.into_body();
        while let Some(Ok(data)) = body.data().await {
            let _ = body.flow_control().release_capacity(data.len());
        }
    }

    /// Waits for the first bytes, which the handler sends, and leaves.
    pub(crate) async fn read_first_and_reset(mut self) {
        if let Ok(response) = self.response.await {
            let _ = response.into_body().data().await;
        }
        self.stream.send_reset(Reason::CANCEL);
    }
}

/// Sends that many requests over four connections of 32 streams, and returns how many were answered.
pub(crate) async fn http2_load(address: SocketAddr, requests: u64) -> u64 {
    const STREAMS: u64 = 128;
    let clients = join_all((0..4).map(|_| Http2::connect(address))).await;
    let streams = (0..STREAMS).map(|index| {
        let mut client = Http2(clients[index as usize % clients.len()].0.clone());
        async move {
            let mut answered = 0;
            for _ in 0..requests / STREAMS + u64::from(index < requests % STREAMS) {
                let exchange = client.send("/").await;
                let response = exchange.response.await;
                answered += u64::from(response.as_ref().is_ok_and(|response| response.status() == 200));
                if let Ok(response) = response {
                    let mut body = response.into_body();
                    while let Some(Ok(data)) = body.data().await {
                        let _ = body.flow_control().release_capacity(data.len());
                    }
                }
            }
            answered
        }
    });
    join_all(streams).await.into_iter().sum()
}

/// Sends as fast as it can over one connection at a time until `until`; returns how many it has sent.
pub(crate) async fn http2_flood<F: Future<Output = ()>>(
    address: SocketAddr,
    path: &str,
    until: Instant,
    act: impl Fn(Exchange) -> F + Copy,
) -> u64 {
    let client = Http2::connect(address).await;
    let streams = (0..64).map(|_| {
        let mut client = Http2(client.0.clone());
        async move {
            let mut sent = 0;
            while Instant::now() < until {
                match client.try_send(path).await {
                    Ok(exchange) => act(exchange).await,
                    Err(_) => client = Http2::connect(address).await,
                }
                sent += 1;
            }
            sent
        }
    });
    join_all(streams).await.into_iter().sum()
}

/// Opens streams and resets them at once; h2 closes such connections, and the client connects again.
pub(crate) async fn reset_flood(address: SocketAddr, until: Instant) -> u64 {
    let (mut client, mut sent) = (Http2::connect(address).await, 0);
    while Instant::now() < until {
        match client.try_send("/").await {
            Ok(exchange) => exchange.reset(),
            Err(_) => client = Http2::connect(address).await,
        }
        sent += 1;
        if sent % 64 == 0 {
            tokio::task::yield_now().await;
        }
    }
    sent
}
