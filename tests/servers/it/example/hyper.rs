//! `examples/hyper.rs`: hyper-util with its `GracefulShutdown`, for HTTP/1.1 and HTTP/2.

use futures_util::future::join_all;
use http::Version;

use super::{
    HALF_A_HEAD, HALF_A_PREFACE, HALF_THE_NEXT_HEAD, POLITE_BUT_SILENT_HTTP2, SILENT_HTTP2, SILENT_TCP, Server, get,
    line_of_get,
};

const HYPER: Server =
    Server { example: "hyper", versions: &[Version::HTTP_11, Version::HTTP_2], request: get, line: line_of_get };

#[tokio::test]
async fn each_response_has_its_line_when_the_server_stops() {
    HYPER.loses_nothing().await;
}

#[tokio::test]
async fn silent_clients_delay_the_exit_no_longer_than_the_limit() {
    let silent = [SILENT_TCP, HALF_A_HEAD, HALF_THE_NEXT_HEAD, HALF_A_PREFACE, SILENT_HTTP2, POLITE_BUT_SILENT_HTTP2];
    join_all(silent.iter().map(|silent| HYPER.is_not_held_up_by(silent))).await;
}

#[tokio::test]
async fn an_upload_that_does_not_end_is_named_and_fails_the_process() {
    HYPER.names_an_endless_request("/upload").await;
}

#[tokio::test]
async fn a_second_signal_interrupts_each_wait() {
    HYPER.is_interrupted_by_a_second_signal().await;
}

#[tokio::test]
async fn readiness_fails_during_a_drain_and_requests_are_still_served() {
    HYPER.fails_readiness_and_serves_during_a_drain().await;
}

#[tokio::test]
async fn an_invalid_setting_is_a_message_and_not_a_panic() {
    HYPER.rejects_invalid_settings().await;
}
