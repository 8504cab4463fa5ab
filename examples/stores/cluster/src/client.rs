//! Clients that place orders.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    sync::Notify,
    time::{Instant, sleep},
};

/// Connections to each instance.
const CLIENTS: usize = 8;

/// An order that was answered with 201.
pub(crate) struct Answered {
    pub(crate) id: String,
    pub(crate) at: Instant,
    pub(crate) took: Duration,
    /// Whether it was placed during the outage.
    pub(crate) noted: bool,
}

/// Places orders until there are enough, or no instance answers any more.
pub(crate) struct Load {
    orders: usize,
    pause: Duration,
    placed: AtomicUsize,
    answered: AtomicUsize,
    changed: Notify,
}

impl Load {
    pub(crate) fn new(orders: usize) -> Self {
        let (placed, answered) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { orders, pause: Duration::ZERO, placed, answered, changed: Notify::new() }
    }

    /// Sets how long each client waits after an order.
    pub(crate) fn paced(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }

    pub(crate) async fn answered_at_least(&self, count: usize) {
        while self.answered.load(Ordering::Relaxed) < count {
            self.changed.notified().await;
        }
    }

    pub(crate) async fn run(&self, addresses: &[SocketAddr]) -> Vec<Answered> {
        self.run_noting(addresses, &AtomicBool::new(false)).await
    }

    pub(crate) async fn run_noting(&self, addresses: &[SocketAddr], note: &AtomicBool) -> Vec<Answered> {
        let clients = addresses.iter().flat_map(|address| (0..CLIENTS).map(|_| self.client(*address, note)));
        join_all(clients).await.into_iter().flatten().collect()
    }

    async fn client(&self, address: SocketAddr, note: &AtomicBool) -> Vec<Answered> {
        let mut answered = Vec::new();
        let Some(mut requests) = connect(address).await else { return answered };
        while self.placed.fetch_add(1, Ordering::Relaxed) < self.orders {
            let (began, noted) = (Instant::now(), note.load(Ordering::Relaxed));
            let Some(id) = order(&mut requests).await else { break };
            answered.push(Answered { id, at: Instant::now(), took: began.elapsed(), noted });
            self.answered.fetch_add(1, Ordering::Relaxed);
            self.changed.notify_one();
            if !self.pause.is_zero() {
                sleep(self.pause).await;
            }
        }
        // Ends `answered_at_least`, since no more orders follow.
        self.answered.fetch_add(self.orders, Ordering::Relaxed);
        self.changed.notify_one();
        answered
    }
}

async fn connect(address: SocketAddr) -> Option<http1::SendRequest<Full<Bytes>>> {
    let socket = TcpStream::connect(address).await.ok()?;
    socket.set_nodelay(true).ok()?;
    let (requests, connection) = http1::handshake(TokioIo::new(socket)).await.ok()?;
    // An error of the connection shows at its requests.
    tokio::spawn(async { drop(connection.await) });
    Some(requests)
}

/// A client that has sent half a request: the graceful shutdown of a server waits for the rest.
pub(crate) async fn half_a_request(address: SocketAddr) -> TcpStream {
    let mut socket = TcpStream::connect(address).await.expect("the instance listens");
    let head = b"POST /orders HTTP/1.1\r\nhost: shop\r\ncontent-type: application/json\r\ncontent-length: 28\r\n\r\n{";
    socket.write_all(head).await.expect("the instance reads");
    socket
}

/// The id of the order, if it was answered with 201.
async fn order(requests: &mut http1::SendRequest<Full<Bytes>>) -> Option<String> {
    requests.ready().await.ok()?;
    let request = Request::post("/orders").header("host", "shop").header("content-type", "application/json");
    let request = request.body(Full::from(r#"{"item":"book","quantity":1}"#)).ok()?;
    let response = requests.send_request(request).await.ok()?;
    if response.status() != StatusCode::CREATED {
        return None;
    }
    let body = response.into_body().collect().await.ok()?.to_bytes();
    let answer: Value = serde_json::from_slice(&body).ok()?;
    Some(answer["id"].as_str()?.to_owned())
}
