//! An axum application whose requests and events are spans of OpenTelemetry. The span of an event has a link to the
//! span of the request that tracked it.
//!
//! ```text
//! cargo run -p opentelemetry-spans
//! curl -X POST http://127.0.0.1:3000/orders
//! ```
//!
//! `ADDR` changes where it listens.

use std::{env, io};

use axum::{Router, routing::post};
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use opentelemetry_stdout::SpanExporter;
use tokio::{net::TcpListener, task::spawn_blocking};
use tower_http::trace::{DefaultMakeSpan, HttpMakeClassifier, TraceLayer};
use tower_track_events::{Events, TrackError, TrackEventsHandle};
use tracing::{Level, Subscriber};
use tracing_subscriber::{Registry, layer::SubscriberExt, registry::LookupSpan, util::SubscriberInitExt};

#[tokio::main]
async fn main() {
    let provider = SdkTracerProvider::builder().with_batch_exporter(SpanExporter::default()).build();
    Registry::default().with(spans(&provider)).init();
    let handle = TrackEventsHandle::new();
    // The trace layer is the outer one, so that a hook of the inner one is called in the span of the request as well.
    let app = router().layer(handle.layer()).layer(request_spans());
    handle
        .shutdown()
        // Sends the spans of the last events. The task begins when the future is polled, after the drain.
        .flush(async move { spawn_blocking(move || provider.shutdown()).await })
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

/// A span for each request, which the filter `info` lets through as well.
fn request_spans() -> TraceLayer<HttpMakeClassifier, DefaultMakeSpan> {
    TraceLayer::new_for_http().make_span_with(DefaultMakeSpan::new().level(Level::INFO))
}

/// Gives the spans of tracing to OpenTelemetry, which understands `follows_from` as a link.
fn spans<S>(provider: &SdkTracerProvider) -> impl tracing_subscriber::Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    tracing_opentelemetry::layer().with_tracer(provider.tracer("orders"))
}

fn router() -> Router {
    Router::new().route("/orders", post(create_order))
}

async fn create_order(events: Events) -> Result<&'static str, TrackError> {
    events.track("order.created", async { /* publish it */ })?;
    Ok("created\n")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::{body::Body, http::Request};
    use opentelemetry::KeyValue;
    use opentelemetry_sdk::trace::{InMemorySpanExporter, SpanData};
    use tower::ServiceExt;
    use tower_track_events::TrackEventsLayer;

    use super::*;

    /// One request through both layers. Returns its span, and those of the events of the handler and of the hook.
    async fn spans_of_a_request(build: impl FnOnce(Router, TrackEventsLayer) -> Router) -> [SpanData; 3] {
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
        let _guard = Registry::default().with(spans(&provider)).set_default();
        let handle = TrackEventsHandle::new();
        let app = build(router(), handle.layer().track("access", async |_| ()));
        let request = Request::post("/orders").body(Body::empty()).unwrap();
        drop(app.oneshot(request).await.unwrap());
        handle.drain(Duration::from_secs(5)).await.unwrap();
        let all = exporter.get_finished_spans().unwrap();
        let is_event = |span: &SpanData, event| span.attributes.contains(&KeyValue::new("name", event));
        let find = |is: &dyn Fn(&SpanData) -> bool| all.iter().find(|span| is(span)).unwrap().clone();
        [
            find(&|span| span.name == "request"),
            find(&|span| is_event(span, "order.created")),
            find(&|span| is_event(span, "access")),
        ]
    }

    fn is_linked(event: &SpanData, request: &SpanData) -> bool {
        event.links.iter().any(|link| link.span_context == request.span_context)
    }

    #[tokio::test]
    async fn inside_of_the_trace_layer_every_event_is_linked_to_its_request() {
        let [request, order, access] = spans_of_a_request(|app, events| app.layer(events).layer(request_spans())).await;
        assert!(is_linked(&order, &request) && is_linked(&access, &request));
        // A link, and no child: the span of the request does not wait for its events.
        assert_ne!(order.span_context.trace_id(), request.span_context.trace_id());
    }

    #[tokio::test]
    async fn outside_of_it_the_events_of_handlers_are_linked_and_those_of_hooks_are_not() {
        let [request, order, access] = spans_of_a_request(|app, events| app.layer(request_spans()).layer(events)).await;
        assert!(is_linked(&order, &request));
        assert!(access.links.is_empty());
    }
}
