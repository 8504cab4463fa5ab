//! `examples/axum.rs`: `axum::serve`, an endless stream, and WebSockets that the drain waits for.

use std::{net::SocketAddr, time::Duration};

use futures_util::{SinkExt, future::join_all};
use http::Version;
use rustix::process::Signal;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::{Message, protocol::frame::coding::CloseCode};

use super::{
    HALF_A_HEAD, HALF_A_PREFACE, HALF_THE_NEXT_HEAD, POLITE_BUT_SILENT_HTTP2, SILENT_HTTP2, SILENT_TCP, Server,
    UNFINISHED, get, line_of_get,
    socket::{self, Socket, next_message},
};

const AXUM: Server =
    Server { example: "axum", versions: &[Version::HTTP_11, Version::HTTP_2], request: get, line: line_of_get };

#[tokio::test]
async fn each_response_has_its_line_when_the_server_stops() {
    AXUM.loses_nothing().await;
}

#[tokio::test]
async fn silent_clients_delay_the_exit_no_longer_than_the_limit() {
    let silent = [SILENT_TCP, HALF_A_HEAD, HALF_THE_NEXT_HEAD, HALF_A_PREFACE, SILENT_HTTP2, POLITE_BUT_SILENT_HTTP2];
    join_all(silent.iter().map(|silent| AXUM.is_not_held_up_by(silent))).await;
}

#[tokio::test]
async fn an_endless_stream_ends_when_the_drain_begins() {
    AXUM.ends_its_ticker().await;
}

#[tokio::test]
async fn an_upload_that_does_not_end_is_named_and_fails_the_process() {
    AXUM.names_an_endless_request("/upload").await;
}

#[tokio::test]
async fn a_second_signal_interrupts_each_wait() {
    AXUM.is_interrupted_by_a_second_signal().await;
}

#[tokio::test]
async fn readiness_fails_during_a_drain_and_requests_are_still_served() {
    AXUM.fails_readiness_and_serves_during_a_drain().await;
}

#[tokio::test]
async fn an_invalid_setting_is_a_message_and_not_a_panic() {
    AXUM.rejects_invalid_settings().await;
}

#[tokio::test]
async fn a_websocket_echoes_and_is_closed_with_a_reason() {
    let process = AXUM.start(&[("DRAIN_LIMIT_MS", "5000")]).await;
    let mut socket = connect_socket(process.addr).await;
    socket.send(Message::text("hello")).await.unwrap();
    assert_eq!(next_message(&mut socket).await, Some(Message::text("hello")));

    process.kill(Signal::TERM);
    let Some(Message::Close(Some(frame))) = next_message(&mut socket).await else { panic!("no close frame") };
    assert_eq!((frame.code, frame.reason.as_str()), (CloseCode::Away, "the server stops"));
    assert_eq!(next_message(&mut socket).await, None);
    let end = process.end().await;

    assert_eq!(end.code, Some(0), "{end:?}");
    assert!(!end.stderr.contains(UNFINISHED), "{end:?}");
}

#[tokio::test]
async fn the_drain_waits_for_a_websocket_whose_client_does_not_answer() {
    let process = AXUM.start(&[("DRAIN_LIMIT_MS", "5000")]).await;
    let mut idle = connect_socket(process.addr).await;
    idle.send(Message::text("hello")).await.unwrap();
    assert_eq!(next_message(&mut idle).await, Some(Message::text("hello")));
    // It sends more than the buffers hold, and never reads: the echo has to wait for it.
    let mut not_reading = connect_socket(process.addr).await;
    let floods = async { while not_reading.send(Message::binary(vec![0; 1 << 20])).await.is_ok() {} };
    let signalled = Instant::now();
    process.kill(Signal::TERM);
    let (_, end) = tokio::join!(floods, process.end());

    // The server has returned before, since it does not wait for WebSockets.
    assert!(signalled.elapsed() >= Duration::from_secs(1), "{end:?}");
    assert_eq!(end.code, Some(0), "{end:?}");
    assert!(!end.stderr.contains(UNFINISHED), "{end:?}");
    drop(idle);
}

async fn connect_socket(addr: SocketAddr) -> Socket {
    socket::connect(&format!("ws://{addr}/echo")).await
}
