//! The server under test: each request has an event of the layer, and some have one of the handler.

use std::{
    collections::BTreeMap,
    io,
    process::ExitCode,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{Json, Router, body::Body, extract::State, routing::get};
use bytes::Bytes;
use futures_util::{StreamExt, future::pending, stream};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    time::{sleep, timeout},
};
use tower_track_events::{Events, Exchange, TrackEventsHandle, TrackEventsLayer};

#[derive(Clone)]
struct Soaked {
    handle: TrackEventsHandle,
    event: Duration,
    peak: Arc<AtomicU64>,
    outcomes: Arc<Mutex<BTreeMap<&'static str, u64>>>,
}

pub(crate) async fn serve(capacity: usize, event: Duration) -> ExitCode {
    let handle = TrackEventsHandle::builder().capacity(capacity).build().expect("a valid capacity");
    let soaked = Soaked { handle: handle.clone(), event, peak: Arc::default(), outcomes: Arc::default() };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
    println!("{}", listener.local_addr().expect("a bound listener has an address"));

    // The panics of the mix print no backtraces.
    std::panic::set_hook(Box::new(|_| {}));
    let watched = soaked.clone();
    tokio::spawn(async move {
        loop {
            let now = watched.handle.snapshot();
            watched.peak.fetch_max(now.pending + now.reserved, Ordering::Relaxed);
            sleep(Duration::from_millis(2)).await;
        }
    });
    let mut terminate = signal(SignalKind::terminate()).expect("a signal");
    let signalled = handle.clone();
    let server = axum::serve(listener, router(soaked.clone())).with_graceful_shutdown(async move {
        terminate.recv().await;
        signalled.begin_drain();
    });
    let server = tokio::spawn(server.into_future());
    handle.draining().await;
    let _ = timeout(Duration::from_secs(2), server).await;
    let (mut report, all_completed) = match handle.drain(Duration::from_secs(30)).await {
        Ok(report) => (json!(report), report.all_completed()),
        Err(error) => (json!({ "error": error.to_string() }), false),
    };
    report["outcomes"] = json!(*soaked.outcomes.lock().expect("nobody panics with it"));
    println!("{report}");
    if all_completed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn router(soaked: Soaked) -> Router {
    let audited = soaked.clone();
    let layer = TrackEventsLayer::new(soaked.handle.clone()).track_from_request("audit", move |_request| {
        let audited = audited.clone();
        move |exchange: Exchange| async move {
            *audited.outcomes.lock().expect("nobody panics with it").entry(exchange.outcome.as_str()).or_default() += 1;
            if !audited.event.is_zero() {
                sleep(audited.event).await;
            }
        }
    });
    Router::new()
        .route("/", get(hello))
        .route("/panic", get(async || -> &'static str { panic!("part of the mix") }))
        .route("/body-error", get(async || streamed(stream::iter([Err(io::Error::other("part of the mix"))]))))
        .route("/event-fails", get(event_fails))
        .route("/event-panics", get(event_panics))
        .route("/stall", get(async || streamed(stream::pending())))
        .route("/never", get(pending::<&'static str>))
        .layer(layer)
        // Outside of the layer, so that it is not counted itself.
        .route("/stats", get(stats))
        .with_state(soaked)
}

async fn hello(events: Events) -> &'static str {
    // Rejected at capacity: that is counted, and the request is served.
    let _ = events.track("handler", async {});
    "hello"
}

async fn event_fails(events: Events) {
    let _ = events.track("fails", async { Err::<(), _>("part of the mix") });
}

async fn event_panics(events: Events) {
    let _ = events.track("panics", async { panic!("part of the mix") });
}

/// A body of one frame and the rest.
fn streamed(rest: impl stream::Stream<Item = io::Result<Bytes>> + Send + 'static) -> Body {
    Body::from_stream(stream::iter([Ok(Bytes::from_static(b"first"))]).chain(rest))
}

async fn stats(State(soaked): State<Soaked>) -> Json<Value> {
    Json(json!({ "now": soaked.handle.snapshot(), "peak": soaked.peak.load(Ordering::Relaxed) }))
}
