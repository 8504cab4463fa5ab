//! `examples/quickstart.rs`, which is also the first code of the README: what a new user copies stops safely.

use std::time::Duration;

use futures_util::future::join_all;
use http::{Method, StatusCode};
use rustix::process::Signal;
use tokio::time::{Instant, timeout};

use super::{Client, HALF_A_HEAD, PATIENCE, Process, SILENT_HTTP2, SILENT_TCP, UNFINISHED, command};

#[tokio::test]
async fn both_signals_stop_it() {
    for signal in [Signal::TERM, Signal::INT] {
        let process = Process::start(command("quickstart", &[])).await;
        let mut client = Client::connect(process.addr).await;
        assert_eq!(client.send(Method::POST, "/orders", "").await.unwrap().status(), StatusCode::OK);
        process.kill(signal);
        let end = process.end().await;
        assert_eq!((end.code, end.figure("accepted"), end.figure("completed")), (Some(0), 1, 1), "{end:?}");
    }
}

#[tokio::test]
async fn silent_clients_cost_the_share_of_the_servers_and_no_more() {
    let stops = [HALF_A_HEAD, SILENT_HTTP2, SILENT_TCP].map(|silent| async move {
        let process = Process::start(command("quickstart", &[])).await;
        let _stream = silent.connect(process.addr).await;
        process.kill(Signal::TERM);
        let signalled = Instant::now();
        let end = process.end().await;
        assert_eq!(end.code, Some(0), "{silent:?}: {end:?}");
        // Half of nine seconds.
        assert!(signalled.elapsed() < Duration::from_secs(7), "{silent:?}: {end:?}");
        assert_eq!(
            end.stderr.contains(UNFINISHED),
            signalled.elapsed() > Duration::from_secs(4),
            "{silent:?}: {end:?}"
        );
    });
    join_all(stops).await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_its_error_at_once() {
    let first = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = first.local_addr().unwrap().to_string();
    let output = timeout(PATIENCE, command("quickstart", &[("ADDR", &taken)]).output()).await.unwrap().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.starts_with("servers failed: Address already in use"), "{stderr}");
}
