//! `examples/axum_server`: axum-server with its `Handle`, which closes connections at its own limit.

use std::time::Duration;

use futures_util::future::join_all;
use http::Version;
use rustix::process::Signal;

use super::{
    HALF_A_HEAD, HALF_A_PREFACE, HALF_THE_NEXT_HEAD, POLITE_BUT_SILENT_HTTP2, SILENT_HTTP2, SILENT_TCP, Server, get,
    line_of_get, send_unfinished,
};

const AXUM_SERVER: Server =
    Server { example: "axum_server", versions: &[Version::HTTP_11, Version::HTTP_2], request: get, line: line_of_get };

#[tokio::test]
async fn each_response_has_its_line_when_the_server_stops() {
    AXUM_SERVER.loses_nothing().await;
}

#[tokio::test]
async fn silent_clients_delay_the_exit_no_longer_than_the_limit() {
    let silent = [SILENT_TCP, HALF_A_HEAD, HALF_THE_NEXT_HEAD, HALF_A_PREFACE, SILENT_HTTP2, POLITE_BUT_SILENT_HTTP2];
    join_all(silent.iter().map(|silent| AXUM_SERVER.is_not_held_up_by(silent))).await;
}

#[tokio::test]
async fn an_endless_stream_ends_when_the_drain_begins() {
    AXUM_SERVER.ends_its_ticker().await;
}

#[tokio::test]
async fn an_upload_that_does_not_end_is_closed_and_has_its_line() {
    for &version in AXUM_SERVER.versions {
        let process = AXUM_SERVER.start(&[("DRAIN_LIMIT_MS", "1000")]).await;
        let unfinished = send_unfinished(version, process.addr, "/upload").await;

        process.kill(Signal::TERM);
        let end = process.end().await;
        drop(unfinished);

        assert_eq!(end.code, Some(0), "{version:?}: {end:?}");
        assert!(end.stdout.contains("audit POST /upload"), "{version:?}: {end:?}");
        assert!(end.took < Duration::from_secs(3), "{version:?}: {end:?}");
    }
}

#[tokio::test]
async fn a_second_signal_interrupts_each_wait() {
    AXUM_SERVER.is_interrupted_by_a_second_signal().await;
}

#[tokio::test]
async fn readiness_fails_during_a_drain_and_requests_are_still_served() {
    AXUM_SERVER.fails_readiness_and_serves_during_a_drain().await;
}

#[tokio::test]
async fn an_invalid_setting_is_a_message_and_not_a_panic() {
    AXUM_SERVER.rejects_invalid_settings().await;
}
