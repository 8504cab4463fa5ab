//! An axum application whose metrics Prometheus scrapes.
//!
//! ```text
//! cargo run -p prometheus
//! curl -X POST http://127.0.0.1:3000/orders
//! curl http://127.0.0.1:3000/metrics
//! ```
//!
//! `ADDR` changes where it listens.

use std::{env, io};

use axum::{
    Router,
    routing::{get, post},
};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tower_track_events::{Events, TrackError, TrackEventsHandle};

#[tokio::main]
async fn main() {
    // Before the handle is used: what was counted earlier is not in the metrics.
    let metrics = PrometheusBuilder::new().install_recorder().expect("there is no other recorder");
    let handle = TrackEventsHandle::new();
    let app = router(&handle, metrics);
    handle
        .shutdown()
        .serve(|stop| async move {
            let addr = env::var("ADDR").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
            let listener = TcpListener::bind(addr).await?;
            eprintln!("listening on http://{}", listener.local_addr()?);
            axum::serve(listener, app).with_graceful_shutdown(stop).await?;
            io::Result::Ok(())
        })
        .await
        .exit()
}

fn router(handle: &TrackEventsHandle, metrics: PrometheusHandle) -> Router {
    Router::new()
        .route("/orders", post(create_order))
        .layer(handle.layer())
        // Outside of the layer: a scrape is no request of interest.
        .route("/metrics", get(async move || metrics.render()))
}

async fn create_order(events: Events) -> Result<&'static str, TrackError> {
    events.track("order.created", async { /* publish it */ })?;
    Ok("created\n")
}

#[cfg(test)]
mod tests {
    use std::{future::pending, time::Duration};

    use axum::{
        body::{Body, to_bytes},
        http::Request,
    };
    use tower::ServiceExt;
    use tower_track_events::{TrackError, TrackEventsHandle};

    use super::{PrometheusBuilder, router};

    /// Each metric of the guide, scraped from the application.
    #[tokio::test]
    async fn each_metric_is_scraped_with_its_value() {
        let metrics = PrometheusBuilder::new().install_recorder().unwrap();
        let handle = TrackEventsHandle::builder().capacity(2).quiet_period(Duration::ZERO).build().unwrap();
        let app = router(&handle, metrics);
        let call = async |request: Request<Body>| app.clone().oneshot(request).await.unwrap();
        let post = || Request::post("/orders").body(Body::empty()).unwrap();
        let scrape = async || {
            let body = call(Request::get("/metrics").body(Body::empty()).unwrap()).await.into_body();
            String::from_utf8(to_bytes(body, usize::MAX).await.unwrap().to_vec()).unwrap()
        };
        let has = |text: &str, line: &str| {
            assert!(text.lines().any(|other| other == line), "{line} is missing in:\n{text}");
        };

        let open = call(post()).await;
        let text = scrape().await;
        has(&text, "tower_track_events_open_requests 1");
        has(&text, "tower_track_events_pending_events 1");
        has(&text, r#"tower_track_events_accepted_total{event="order.created"} 1"#);

        handle.track("fails", async { Err::<(), _>("disk full") }).unwrap();
        assert_eq!(handle.track("rejected", async {}), Err(TrackError::Full));
        drop(open);
        handle.wait_idle(Duration::from_secs(5)).await.unwrap();
        handle.track("stuck", pending::<()>()).unwrap();
        handle.drain(Duration::ZERO).await.unwrap_err();
        handle.abort();
        handle.drain(Duration::from_secs(5)).await.unwrap();
        assert_eq!(handle.track("late", async {}), Err(TrackError::Closed));

        let text = scrape().await;
        for line in [
            "tower_track_events_open_requests 0",
            "tower_track_events_pending_events 0",
            r#"tower_track_events_accepted_total{event="stuck"} 1"#,
            r#"tower_track_events_ended_total{event="order.created",ending="completed"} 1"#,
            r#"tower_track_events_ended_total{event="fails",ending="failed"} 1"#,
            r#"tower_track_events_ended_total{event="stuck",ending="aborted"} 1"#,
            r#"tower_track_events_rejected_total{event="rejected",reason="full"} 1"#,
            r#"tower_track_events_rejected_total{event="late",reason="closed"} 1"#,
            r#"tower_track_events_event_duration_seconds_count{event="order.created"} 1"#,
            r#"tower_track_events_drain_duration_seconds_count{outcome="timed_out"} 1"#,
            r#"tower_track_events_drain_duration_seconds_count{outcome="drained"} 1"#,
        ] {
            has(&text, line);
        }
    }
}
