//! The client side of a WebSocket.

use futures_util::StreamExt;
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, tungstenite::Message};

use super::PATIENCE;

pub(super) type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

pub(super) async fn connect(url: &str) -> Socket {
    connect_async(url).await.unwrap().0
}

/// The next message; `None` once the socket is closed.
pub(super) async fn next_message(socket: &mut Socket) -> Option<Message> {
    timeout(PATIENCE, socket.next()).await.expect("it answers").transpose().unwrap()
}
