//! The axum extractor.

use axum::{Router, body::Body, routing::get};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use tower::ServiceExt;
use tower_track_events::{Events, TrackError, TrackEventsHandle, TrackEventsLayer};

use crate::support::drain;

async fn tracked(events: Events) -> Result<&'static str, TrackError> {
    events.track("greeting.sent", async {})?;
    Ok("hello")
}

async fn perhaps(events: Option<Events>) -> &'static str {
    if events.is_some() { "tracked" } else { "untracked" }
}

fn routes() -> Router {
    Router::new().route("/tracked", get(tracked)).route("/perhaps", get(perhaps))
}

async fn answer(app: &Router, path: &str) -> (StatusCode, String) {
    let request = Request::builder().uri(path).body(Body::empty()).unwrap();
    let response = app.clone().oneshot(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn a_handler_extracts_its_events() {
    let (layer, handle) = TrackEventsLayer::pair();
    for app in [routes().layer(layer.clone()), routes().route_layer(layer.clone())] {
        assert_eq!(answer(&app, "/tracked").await, (StatusCode::OK, "hello".to_owned()));
        assert_eq!(answer(&app, "/perhaps").await.1, "tracked");
    }
    assert_eq!(drain(&handle).await.ended.completed, 2);
}

#[tokio::test]
async fn without_the_layer_the_answer_names_it() {
    let app = routes();
    let (status, message) = answer(&app, "/tracked").await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(message.contains("`TrackEventsLayer`"), "{message}");
    assert_eq!(answer(&app, "/perhaps").await, (StatusCode::OK, "untracked".to_owned()));
}

#[tokio::test]
async fn a_rejection_answers_503_with_its_reason() {
    let handle = TrackEventsHandle::new();
    let app = routes().layer(TrackEventsLayer::new(handle.clone()));
    drain(&handle).await;
    let (status, message) = answer(&app, "/tracked").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(message, "rejected: the server is shutting down and accepts no more events");
}
