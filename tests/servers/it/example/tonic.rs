//! `examples/tonic`: a gRPC server, whose health fails and whose streams end when it stops.

use std::net::SocketAddr;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, Version};
use http_body_util::Full;
use rustix::process::Signal;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::{
    HealthCheckRequest,
    health_check_response::ServingStatus::{NotServing, Serving},
    health_client::HealthClient,
};

use super::{HALF_A_PREFACE, PATIENCE, POLITE_BUT_SILENT_HTTP2, SILENT_HTTP2, SILENT_TCP, Server, UNFINISHED};

const TONIC: Server = Server { example: "tonic", versions: &[Version::HTTP_2], request: check, line: line_of_check };

/// A message without fields, behind its prefix. The answer is the same for all.
fn check(_number: usize) -> Request<Full<Bytes>> {
    let request = Request::post(CHECK).header("content-type", "application/grpc").header("te", "trailers");
    request.body(Full::new(Bytes::from_static(&[0; 5]))).unwrap()
}

const CHECK: &str = "/grpc.health.v1.Health/Check";

fn line_of_check(_number: usize) -> String {
    format!("audit {CHECK} 0 complete 7 bytes")
}

async fn connect(addr: SocketAddr) -> HealthClient<Channel> {
    HealthClient::new(Endpoint::from_shared(format!("http://{addr}")).unwrap().connect().await.unwrap())
}

#[tokio::test]
async fn each_response_has_its_line_when_the_server_stops() {
    TONIC.loses_nothing().await;
}

#[tokio::test]
async fn silent_clients_delay_the_exit_no_longer_than_the_limit() {
    let silent = [SILENT_TCP, HALF_A_PREFACE, SILENT_HTTP2, POLITE_BUT_SILENT_HTTP2];
    join_all(silent.iter().map(|silent| TONIC.is_not_held_up_by(silent))).await;
}

#[tokio::test]
async fn a_watch_ends_when_the_drain_begins_and_reports_not_serving() {
    let process = TONIC.start(&[("DRAIN_LIMIT_MS", "5000")]).await;
    let mut client = connect(process.addr).await;
    let mut watch = client.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), Serving);

    process.kill(Signal::TERM);
    let rest = async {
        let mut last = Serving;
        while let Some(message) = watch.message().await.expect("it is not aborted") {
            last = message.status();
        }
        last
    };
    let last = timeout(PATIENCE, rest).await.expect("the stream ends");
    let end = process.end().await;

    assert_eq!(last, NotServing);
    assert_eq!(end.code, Some(0), "{end:?}");
    assert!(!end.stderr.contains(UNFINISHED), "{end:?}");
    assert!(end.stdout.contains("audit /grpc.health.v1.Health/Watch 0 complete 14 bytes"), "{end:?}");
}

#[tokio::test]
async fn health_fails_during_a_drain_and_calls_are_still_answered() {
    // For a tenth of the limit the server waits for load balancers.
    let mut process = TONIC.start(&[("DRAIN_LIMIT_MS", "20000")]).await;
    let mut client = connect(process.addr).await;
    let answer = client.check(HealthCheckRequest::default()).await.unwrap();
    assert_eq!(answer.into_inner().status(), Serving);

    process.kill(Signal::TERM);
    process.is_draining().await;

    let mut newcomer = connect(process.addr).await;
    let answer = newcomer.check(HealthCheckRequest::default()).await.unwrap();
    assert_eq!(answer.into_inner().status(), NotServing);
    // A late watcher gets the status, and its stream ends.
    let mut watch = newcomer.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), NotServing);
    assert!(watch.message().await.unwrap().is_none());
    let end = process.end().await;
    assert_eq!(end.code, Some(0), "{end:?}");
    assert_eq!(end.figure("completed"), 3, "{end:?}");
}

#[tokio::test]
async fn a_call_that_does_not_end_is_named_and_fails_the_process() {
    TONIC.names_an_endless_request(CHECK).await;
}

#[tokio::test]
async fn a_second_signal_interrupts_each_wait() {
    TONIC.is_interrupted_by_a_second_signal().await;
}

#[tokio::test]
async fn an_invalid_setting_is_a_message_and_not_a_panic() {
    TONIC.rejects_invalid_settings().await;
}
