//! `TestExchange`: an exchange without a server.

use std::time::Duration;

use axum::{Router, body::Body, routing::post};
use http::{Request, StatusCode};
use tower::ServiceExt;
use tower_track_events::{
    DrainError, Events, Exchange, OpenKind, Outcome, TrackError, TrackEventsHandle, test::TestExchange,
};

use crate::support::{Seen, open};

fn track(events: &Events, seen: &Seen) -> Result<(), TrackError> {
    let seen = seen.clone();
    events.track_with("audit", |exchange: Exchange| async move { seen.push(exchange) })
}

async fn idle(handle: &TrackEventsHandle) {
    handle.wait_idle(Duration::from_secs(1)).await.unwrap();
}

#[tokio::test]
async fn its_events_start_when_it_ends_and_get_its_facts() {
    let (handle, seen) = (TrackEventsHandle::new(), Seen::default());
    let request = TestExchange::new(&handle);
    track(request.events(), &seen).unwrap();
    tokio::task::yield_now().await;
    assert!(seen.all().is_empty());
    assert_eq!(handle.snapshot().open_requests, 1);

    let events = request.events().clone();
    let mut exchange = Exchange::new(Outcome::Complete);
    exchange.body_bytes = 7;
    exchange.elapsed = Duration::from_secs(3);
    request.end(exchange.clone());
    idle(&handle).await;
    assert_eq!(seen.all(), [exchange.clone()]);
    assert_eq!(handle.snapshot().open_requests, 0);

    // From now on events start at once, as after any exchange.
    track(&events, &seen).unwrap();
    idle(&handle).await;
    assert_eq!(seen.all(), [exchange.clone(), exchange]);
}

#[tokio::test]
async fn a_dropped_exchange_ends_as_no_response() {
    let (handle, seen) = (TrackEventsHandle::new(), Seen::default());
    let request = TestExchange::new(&handle);
    track(request.events(), &seen).unwrap();
    drop(request);
    idle(&handle).await;
    assert_eq!(seen.only().outcome, Outcome::NoResponse);
    assert_eq!(handle.snapshot().open_requests, 0);
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_it_and_reports_where_its_events_were_tracked() {
    let handle = TrackEventsHandle::builder().last_call(Duration::ZERO).build().unwrap();
    let request = TestExchange::new(&handle);
    request.events().track("audit", async {}).unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    request.events().track("later", async {}).unwrap();
    let Err(DrainError::TimedOut(report)) = handle.drain(Duration::from_secs(1)).await else {
        panic!("the exchange is open");
    };
    assert_eq!(open(&report, OpenKind::Request)[0].count, 1);
    let events = open(&report, OpenKind::WaitingEvent);
    let ages: Vec<_> = events.iter().map(|event| (event.name.as_deref().unwrap(), event.oldest.as_secs())).collect();
    // Both count from the begin of their exchange.
    assert_eq!(ages, [("audit", 3), ("later", 3)]);
    assert!(events[0].location.unwrap().file().ends_with("test_exchange.rs"));
    request.end(Exchange::new(Outcome::Complete));
    assert!(handle.drain(Duration::from_secs(1)).await.unwrap().all_completed());
}

#[tokio::test]
async fn an_abort_ends_its_events() {
    let (handle, seen) = (TrackEventsHandle::new(), Seen::default());
    let request = TestExchange::new(&handle);
    track(request.events(), &seen).unwrap();
    handle.abort();
    assert_eq!(handle.snapshot().ended.aborted, 1);
    request.end(Exchange::new(Outcome::Complete));
    idle(&handle).await;
    assert!(seen.all().is_empty());
}

#[tokio::test]
async fn after_the_drain_its_events_are_rejected() {
    let handle = TrackEventsHandle::new();
    handle.drain(Duration::from_secs(1)).await.unwrap();
    let request = TestExchange::new(&handle);
    assert_eq!(request.events().track("audit", async {}), Err(TrackError::Closed));
    request.end(Exchange::new(Outcome::Complete));
    assert_eq!(handle.snapshot().open_requests, 0);
}

#[tokio::test]
async fn a_request_gets_its_events_through_the_extensions() {
    let (handle, seen) = (TrackEventsHandle::new(), Seen::default());
    let exchange = TestExchange::new(&handle);
    let mut request = Request::new(());
    exchange.attach(&mut request);
    track(Events::from_extensions(request.extensions()).unwrap(), &seen).unwrap();
    exchange.complete(StatusCode::CREATED);
    idle(&handle).await;
    let all = seen.all();
    assert_eq!((all.len(), all[0].outcome, all[0].status), (1, Outcome::Complete, Some(StatusCode::CREATED)));
}

#[tokio::test]
async fn what_waits_for_its_end_is_listed_in_order() {
    let handle = TrackEventsHandle::new();
    let exchange = TestExchange::new(&handle);
    assert!(exchange.tracked().is_empty());
    let permit = exchange.events().reserve().unwrap();
    for name in ["one", "two", "three"] {
        exchange.events().track(name, async {}).unwrap();
    }
    assert_eq!(exchange.tracked(), ["one", "two", "three"]);
    permit.track("four", async {});
    assert_eq!(exchange.tracked(), ["one", "two", "three", "four"]);
    // An event of another exchange and one of the handle do not wait for this one.
    let other = TestExchange::new(&handle);
    other.events().track("five", async {}).unwrap();
    handle.track("six", async {}).unwrap();
    assert_eq!((exchange.tracked().len(), other.tracked()), (4, vec!["five"]));
    handle.abort();
    assert!(exchange.tracked().is_empty());
    exchange.events().track("seven", async {}).unwrap();
    assert_eq!(exchange.tracked(), ["seven"]);
    handle.make_last_call();
    assert!(exchange.tracked().is_empty());
    exchange.complete(StatusCode::OK);
    idle(&handle).await;
    assert_eq!((handle.snapshot().ended.aborted, handle.snapshot().ended.completed), (6, 1));
}

#[tokio::test]
async fn a_router_uses_it_with_and_without_the_layer() {
    async fn create(events: Events) -> Result<StatusCode, TrackError> {
        events.track("order.created", async {})?;
        Ok(StatusCode::CREATED)
    }
    let handle = TrackEventsHandle::new();
    let bare = Router::new().route("/", post(create));
    let layered = bare.clone().layer(handle.layer().track("access", async |_| ()));
    for (app, tracked) in [(bare, ["order.created"].as_slice()), (layered, &["access", "order.created"])] {
        let exchange = TestExchange::new(&handle);
        let mut request = Request::post("/").body(Body::empty()).unwrap();
        exchange.attach(&mut request);
        let response = app.oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::CREATED);
        drop(response);
        // The exchange of the test is the one of the request: the response does not end it.
        assert_eq!(exchange.tracked(), tracked);
        assert_eq!(handle.snapshot().open_requests, 1);
        exchange.complete(StatusCode::CREATED);
        idle(&handle).await;
    }
    assert_eq!(handle.snapshot().ended.completed, 3);
}
