//! The labels of requests, in reports and log lines.

use std::{borrow::Cow, time::Duration};

use http::{Request, Response, request::Parts};
use tower::{Layer, ServiceExt, service_fn};
use tower_track_events::{DrainError, Events, Outcome, TrackEventsHandle, TrackEventsLayer};

use crate::support::{Answer, Counter, Script, drain, run_tasks, without_quiet_period};

type Body = http_body_util::Empty<bytes::Bytes>;

fn method_and_path(request: &Parts) -> Cow<'static, str> {
    Cow::Owned(format!("{} {}", request.method, request.uri.path()))
}

fn labelled(handle: &TrackEventsHandle) -> TrackEventsLayer {
    TrackEventsLayer::new(handle.clone()).label(method_and_path)
}

/// A response that is not dropped, so its request stays open.
async fn open(layer: &TrackEventsLayer, path: &str) -> Response<impl Sized + use<>> {
    let service = service_fn(async |_: Request<()>| Answer::Ok(Response::new(Script::empty())));
    let request = Request::builder().uri(path).body(()).unwrap();
    layer.layer(service).oneshot(request).await.unwrap()
}

async fn open_items(handle: &TrackEventsHandle) -> Vec<String> {
    let Err(DrainError::TimedOut(report)) = handle.drain(Duration::ZERO).await else { panic!("requests are open") };
    report.open.iter().map(|item| item.to_string().split(" (").next().unwrap().to_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_report_counts_open_requests_by_their_label() {
    let handle = without_quiet_period();
    let layer = labelled(&handle);
    let first = open(&layer, "/export").await;
    tokio::time::advance(Duration::from_secs(2)).await;
    let others = (open(&layer, "/export").await, open(&layer, "/orders/7").await);
    let without = open(&TrackEventsLayer::new(handle.clone()), "/plain").await;
    let mut items = open_items(&handle).await;
    items[1..].sort();
    assert_eq!(items, ["GET /export x2 open", "1 request open", "GET /orders/7 x1 open"]);
    let Err(error) = handle.drain(Duration::ZERO).await else { panic!("requests are open") };
    assert!(error.to_string().contains("GET /export x2 open (oldest 2.0 s)"), "{error}");
    drop((first, others, without));
    drain(&handle).await;
}

#[tokio::test]
async fn a_label_is_one_line_of_a_report() {
    let handle = without_quiet_period();
    let forged = |_: &Parts| Cow::Borrowed("GET /\ndrained 0.0 s after the signal");
    let response = open(&TrackEventsLayer::new(handle.clone()).label(forged), "/").await;
    assert_eq!(open_items(&handle).await, ["GET /\\ndrained 0.0 s after the signal x1 open"]);
    drop(response);
}

#[tokio::test]
async fn the_outermost_label_of_one_handle_names_the_request() {
    let handle = without_quiet_period();
    let inner = TrackEventsLayer::new(handle.clone()).label(|_| Cow::Borrowed("inner"));
    let service = inner.layer(service_fn(async |_: Request<()>| Answer::Ok(Response::new(Script::empty()))));
    let both = labelled(&handle).layer(service.clone()).oneshot(Request::new(())).await.unwrap();
    assert_eq!(open_items(&handle).await, ["GET / x1 open"]);
    drop(both);
    // A layer without one leaves it to the inner one.
    let one = TrackEventsLayer::new(handle.clone()).layer(service).oneshot(Request::new(())).await.unwrap();
    assert_eq!(open_items(&handle).await, ["inner x1 open"]);
    drop(one);
}

#[tokio::test]
async fn a_label_that_panics_serves_the_request_without_one() {
    let handle = without_quiet_period();
    let panics = |_: &Parts| -> Cow<'static, str> { std::panic::resume_unwind(Box::new("no name")) };
    let response = open(&TrackEventsLayer::new(handle.clone()).label(panics), "/").await;
    assert_eq!(open_items(&handle).await, ["1 request open"]);
    drop(response);
    assert_eq!(drain(&handle).await.ended.total(), 0);
}

#[tokio::test]
async fn a_layer_with_a_label_alone_is_asked_once_for_each_request() {
    let (handle, asked) = (without_quiet_period(), Counter::default());
    let counts = asked.clone();
    let label = move |_: &Parts| {
        counts.add();
        Cow::Borrowed("counted")
    };
    let layer = TrackEventsLayer::new(handle.clone()).label(label);
    let service = service_fn(async |request: Request<()>| {
        let events = Events::from_extensions(request.extensions()).unwrap();
        events.track("event", async {}).unwrap();
        Ok::<_, std::convert::Infallible>(Response::new(Body::new()))
    });
    for _ in 0..3 {
        drop(layer.layer(service).oneshot(Request::new(())).await.unwrap());
    }
    run_tasks().await;
    assert_eq!((asked.get(), handle.snapshot().ended.completed), (3, 3));
}

#[tokio::test(start_paused = true)]
async fn progress_and_the_last_call_name_the_requests() {
    let (lines, _guard) = crate::observing::Lines::capture();
    let handle = TrackEventsHandle::new();
    let service = service_fn(async |request: Request<()>| {
        let events = Events::from_extensions(request.extensions()).unwrap();
        let told = async |exchange: tower_track_events::Exchange| assert_eq!(exchange.outcome, Outcome::Unfinished);
        events.track_with("audit", told).unwrap();
        Answer::Ok(Response::new(Script::new([crate::support::Step::Data(b"abc"), crate::support::Step::End])))
    });
    let request = Request::builder().uri("/export").body(()).unwrap();
    let response = labelled(&handle).layer(service).oneshot(request).await.unwrap();
    handle.drain(Duration::from_secs(4)).await.unwrap_err();
    let lines = lines.take();
    let has = |words: &str| assert!(lines.iter().any(|line| line.contains(words)), "{words}: {lines:#?}");
    has("draining: 1 request open (GET /export x1), 1 event pending (audit x1), 1.0 s of 4.0 s");
    has(
        "last call: events start although their responses are not over events=1 requests=\"GET /export x1 open (oldest 3.0 s)\"",
    );
    assert_eq!(handle.snapshot().ended.completed, 1);
    drop(response);
}
