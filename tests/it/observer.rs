//! Observers of the layer: called synchronously with the facts of each exchange, without a task.

use std::{
    future::pending,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{Request, Response, StatusCode};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_track_events::{Batch, DrainError, Exchange, Outcome, TrackEventsHandle, TrackEventsLayer};

use crate::support::{Answer, Counter, Script, Step, assert_conserved, drain, poll_once, without_quiet_period};

async fn ok(_: Request<()>) -> Answer {
    Answer::Ok(Response::new(Script::new([Step::Data(b"hello"), Step::End])))
}

type Log = Arc<Mutex<Vec<(String, Outcome, Option<StatusCode>, u64)>>>;

/// Adds an observer that logs the path of the request, and how the exchange ended.
fn observing(layer: TrackEventsLayer, log: &Log) -> TrackEventsLayer {
    let log = Arc::clone(log);
    layer.observe(move |exchange| {
        let Exchange { request, outcome, status, body_bytes, .. } = exchange;
        let path = request.as_ref().unwrap().uri.path().to_owned();
        log.lock().unwrap().push((path, *outcome, *status, *body_bytes));
    })
}

#[tokio::test]
async fn an_observer_is_called_once_when_an_exchange_is_over_and_before_its_events_start() {
    let handle = without_quiet_period();
    let log = Log::default();
    let at_start = Arc::new(Mutex::new(None));
    let (seen, into) = (Arc::clone(&log), Arc::clone(&at_start));
    let layer = TrackEventsLayer::new(handle.clone()).track("event", move |_| {
        *into.lock().unwrap() = Some(seen.lock().unwrap().len());
        async {}
    });
    let layer = observing(layer, &log);
    let request = Request::builder().uri("/orders").body(()).unwrap();
    let response = layer.layer(service_fn(ok)).oneshot(request).await.unwrap();
    assert_eq!(log.lock().unwrap().len(), 0);
    drop(response);
    assert_eq!(*log.lock().unwrap(), [("/orders".to_owned(), Outcome::Aborted, Some(StatusCode::OK), 0)]);
    let report = drain(&handle).await;
    // The observer is not an event, and takes no slot.
    assert_eq!((report.accepted, report.ended.completed), (1, 1));
    assert_eq!(log.lock().unwrap().len(), 1);
    assert_eq!(*at_start.lock().unwrap(), Some(1));
}

#[tokio::test]
async fn an_observer_is_called_also_without_a_response() {
    let handle = without_quiet_period();
    let log = Log::default();
    let layer = observing(TrackEventsLayer::new(handle.clone()), &log);
    let mut service = layer.layer(service_fn(|_: Request<()>| pending::<Answer>()));
    let mut future = Box::pin(service.call(Request::new(())));
    assert!(poll_once(future.as_mut()).is_pending());
    drop(future);
    assert_eq!(*log.lock().unwrap(), [("/".to_owned(), Outcome::NoResponse, None, 0)]);
    drain(&handle).await;
}

#[tokio::test]
async fn a_panic_of_an_observer_is_counted_and_the_request_is_served() {
    let handle = without_quiet_period();
    let after = Counter::default();
    let last = after.clone();
    let layer =
        TrackEventsLayer::new(handle.clone()).observe(|_| panic!("in the observer")).observe(move |_| last.add());
    let response = layer.layer(service_fn(ok)).oneshot(Request::new(())).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    drop(response);
    assert_eq!(after.get(), 1);
    assert_conserved(&handle.snapshot());
    let report = drain(&handle).await;
    assert_eq!((report.accepted, report.ended.panicked), (1, 1));
    assert_eq!(report.by_name["(observer)"].counts.panicked, 1);
    assert!(!report.all_completed());
}

#[tokio::test]
async fn layers_on_one_handle_share_the_exchange_and_each_observer_is_called_once() {
    let handle = without_quiet_period();
    let (outer, inner) = (Log::default(), Log::default());
    let outside = observing(TrackEventsLayer::new(handle.clone()), &outer);
    let inside = observing(TrackEventsLayer::new(handle.clone()), &inner);
    let service = outside.layer(outside.layer(inside.layer(service_fn(ok))));
    drop(service.oneshot(Request::new(())).await.unwrap());
    assert_eq!((outer.lock().unwrap().len(), inner.lock().unwrap().len()), (1, 1));
    drain(&handle).await;
}

#[tokio::test]
async fn values_that_an_observer_sends_during_a_drain_are_delivered() {
    let handle = without_quiet_period();
    let (stored, rejected) = (Counter::default(), Counter::default());
    let (store, counted) = (stored.clone(), rejected.clone());
    let log = handle
        .sink("access.log")
        .max_delay(Duration::from_secs(3600))
        .service(service_fn(move |batch: Batch<u16>| {
            batch.iter().for_each(|_| store.add());
            async { Ok::<_, &str>(()) }
        }))
        .unwrap();
    let layer = TrackEventsLayer::new(handle.clone()).observe(move |exchange| {
        if log.try_send(exchange.status.map_or(0, |status| status.as_u16())).is_err() {
            counted.add();
        }
    });
    let response = layer.layer(service_fn(ok)).oneshot(Request::new(())).await.unwrap();
    let drain = tokio::spawn(handle.drain(Duration::from_secs(60)));
    tokio::task::yield_now().await;
    assert_eq!(handle.snapshot().open_requests, 1);
    drop(response);
    assert!(drain.await.unwrap().unwrap().all_completed());
    assert_eq!((stored.get(), rejected.get()), (1, 0));
    // A request after the drain is served. Its value is rejected and counted.
    drop(layer.layer(service_fn(ok)).oneshot(Request::new(())).await.unwrap());
    assert_eq!((stored.get(), rejected.get(), handle.snapshot().rejected), (1, 1, 1));
}

#[tokio::test]
async fn a_drain_inside_an_observer_is_an_error() {
    let handle = TrackEventsHandle::new();
    let (inside, answer) = (handle.clone(), Arc::new(Mutex::new(None)));
    let into = Arc::clone(&answer);
    let layer = TrackEventsLayer::new(handle.clone());
    let layer = layer.observe(move |_| *into.lock().unwrap() = Some(poll_once(inside.drain(Duration::MAX))));
    drop(layer.layer(service_fn(ok)).oneshot(Request::new(())).await.unwrap());
    assert!(matches!(*answer.lock().unwrap(), Some(std::task::Poll::Ready(Err(DrainError::InsideItself)))));
}
