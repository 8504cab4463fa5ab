//! One table of cases, run on every server, over real sockets, with the layer and without.
//!
//! Each case expects how its exchange ends, and that exactly one event runs. The client must receive the same bytes
//! with and without the layer.

mod answers;
mod cases;
mod clients;
mod document;
mod grpc;
mod servers;

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use http::StatusCode;
use tokio::{
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tower_track_events::{Exchange, Outcome, TrackEventsHandle, TrackEventsLayer};

use self::{
    answers::Answer,
    cases::{Case, End, Version, cases},
    grpc::Call,
    servers::{App, SERVERS, Server, Stack},
};
use crate::support::without_quiet_period;

/// Far longer than any step takes: reaching it fails the test.
const LIMIT: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_response_ends_on_every_server_as_the_table_says() {
    let cases = cases();
    let mut runs = Vec::new();
    for case in &cases {
        for server in SERVERS {
            for version in [Version::Http1, Version::Http2] {
                if let Some(end) = case.end(server, version) {
                    runs.push(named(format!("{server:?} {version:?}: {}", case.name), run(case, server, version, end)));
                }
            }
        }
    }
    all_pass(runs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_ends_on_tonic_as_the_table_says() {
    let calls = grpc::calls();
    all_pass(calls.iter().map(|call| named(call.name.to_owned(), run_call(call)))).await;
}

/// Limits the time of a run, and returns its error.
async fn named(name: String, run: impl Future<Output = Result<(), String>>) -> Option<String> {
    match timeout(LIMIT, run).await {
        Ok(Ok(())) => None,
        Ok(Err(fault)) => Some(format!("{name}: {fault}")),
        Err(_) => Some(format!("{name}: did not end")),
    }
}

async fn all_pass(runs: impl IntoIterator<Item = impl Future<Output = Option<String>>>) {
    let runs = join_all(runs).await;
    let count = runs.len();
    let faults: Vec<_> = runs.into_iter().flatten().collect();
    assert!(faults.is_empty(), "{} of {count} runs failed:\n{}", faults.len(), faults.join("\n"));
}

async fn run(case: &Case, server: Server, version: Version, expected: End) -> Result<(), String> {
    let visit = async |layer| {
        let started = Arc::new(Semaphore::new(0));
        let app = App { answer: case.answer, stack: case.stack, layer, started: Arc::clone(&started) };
        let running = server.start(app).await;
        let seen = match version {
            Version::Http1 => clients::http1(running.address, &case.request, &started).await,
            Version::Http2 => clients::http2(running.address, &case.request, &started).await,
        };
        running.stop().await.expect("the server does not panic");
        seen
    };
    for exchange in compare(visit, case.exchanges).await? {
        let status = exchange.status.map(|status| status.as_u16());
        let as_expected = exchange.outcome == expected.outcome
            && status == expected.status
            && expected.bytes.is(exchange.body_bytes)
            && exchange.time_to_head.is_some() == status.is_some()
            && exchange.grpc_status.is_none();
        if !as_expected {
            return Err(format!("{exchange:?} instead of {expected:?}"));
        }
    }
    Ok(())
}

async fn run_call(call: &Call) -> Result<(), String> {
    let visit = async |layer| {
        let started = Arc::new(Semaphore::new(0));
        let running = grpc::start(layer, Arc::clone(&started)).await;
        let seen = clients::http2(running.address, &call.request(), &started).await;
        running.stop().await.expect("the server does not panic");
        seen
    };
    for exchange in compare(visit, 1).await? {
        let as_expected = exchange.outcome == call.outcome
            && exchange.status == call.answered.then_some(StatusCode::OK)
            && exchange.grpc_status == call.grpc_status.map(i32::from)
            && exchange.body_bytes == call.bytes;
        if !as_expected {
            return Err(format!("{exchange:?}"));
        }
    }
    Ok(())
}

/// Visits a server without the layer and with it. The client must receive the same, and that many events must run, each
/// once. Returns their exchanges.
async fn compare(
    visit: impl AsyncFn(Option<TrackEventsLayer>) -> String,
    exchanges: usize,
) -> Result<Vec<Exchange>, String> {
    let handle = without_quiet_period();
    let (layer, mut received) = sending_layer(&handle);
    let (bare, tracked) = (visit(None).await, visit(Some(layer)).await);
    if bare != tracked {
        return Err(format!("the client sees\n{tracked}\ninstead of\n{bare}"));
    }
    let report = handle.drain(LIMIT).await.map_err(|error| error.to_string())?;
    let mut seen = Vec::new();
    while let Ok(exchange) = received.try_recv() {
        seen.push(exchange);
    }
    if seen.len() != exchanges || report.accepted != exchanges as u64 || !report.all_completed() {
        return Err(format!("{exchanges} events were expected: {seen:?}, {report}"));
    }
    Ok(seen)
}

/// The client closes all streams when their server stops, and each has its event.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_http2_streams_closed_at_shutdown_have_an_event_each_on_every_server() {
    let runs = SERVERS.map(|server| {
        let start = async move |layer, started| {
            let (answer, stack) = (Answer::Never, Stack::Plain);
            server.start(App { answer, stack, layer: Some(layer), started }).await
        };
        named(format!("{server:?}"), close_streams(clients::Request::get(), start))
    });
    all_pass(runs).await;

    let never = grpc::calls().into_iter().find(|call| call.name == "client cancels before the head");
    let request = never.expect("there is a call that is never answered").request();
    let tonic = close_streams(request, async |layer, started| grpc::start(Some(layer), started).await);
    all_pass([named("tonic".to_owned(), tonic)]).await;
}

async fn close_streams(
    request: clients::Request,
    start: impl AsyncFnOnce(TrackEventsLayer, Arc<Semaphore>) -> servers::Running,
) -> Result<(), String> {
    const STREAMS: u32 = 100;
    let handle = without_quiet_period();
    let (layer, mut received) = sending_layer(&handle);
    let started = Arc::new(Semaphore::new(0));
    let running = start(layer, Arc::clone(&started)).await;
    let streams = clients::open_streams(running.address, &request, STREAMS, &started).await;

    let returned = running.stop();
    drop(streams);
    returned.await.expect("the server does not panic");
    let report = handle.drain(LIMIT).await.map_err(|error| error.to_string())?;

    for _ in 0..STREAMS {
        let exchange = received.try_recv().map_err(|_| format!("an event is missing: {report}"))?;
        if exchange.outcome != Outcome::NoResponse {
            return Err(format!("{exchange:?}"));
        }
    }
    if report.accepted != u64::from(STREAMS) || !report.all_completed() { Err(report.to_string()) } else { Ok(()) }
}

#[test]
fn the_published_tables_are_those_that_were_run() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/conformance.md");
    let document = document::render(&cases(), &grpc::calls());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, &document).expect("the document can be written");
    }
    let published = std::fs::read_to_string(path).expect("the document is there");
    assert_eq!(published, document, "run it again with UPDATE_DOCS=1 to write {path}");
}

/// A layer with one event, which sends its exchange to the test.
fn sending_layer(handle: &TrackEventsHandle) -> (TrackEventsLayer, mpsc::UnboundedReceiver<Exchange>) {
    let (sender, exchanges) = mpsc::unbounded_channel();
    let layer = TrackEventsLayer::new(handle.clone()).track_from_request("sent", move |_request| {
        let sender = sender.clone();
        move |exchange| async move { sender.send(exchange).map_err(|_| "no receiver") }
    });
    (layer, exchanges)
}
