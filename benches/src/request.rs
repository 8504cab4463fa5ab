//! Requests through a service that answers at once, and what is put around it.

use std::{convert::Infallible, hint::black_box, pin::pin};

use bytes::Bytes;
use http::{Extensions, Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Empty, Full};
use tokio::{runtime::Runtime, task::yield_now, time::Instant};
use tokio_util::task::TaskTracker;
use tower::{Layer, Service, service_fn};
use tower_http::{add_extension::AddExtensionLayer, metrics::InFlightRequestsLayer, trace::TraceLayer};
use tower_track_events::{Events, TrackEventsLayer};

use crate::{handle, no_more_tasks_than, per, yields};

pub fn bare(runtime: &Runtime, count: usize) -> f64 {
    serve(runtime, count, handler(|_| ()))
}

/// The layer, and so many events that yield once, tracked by the handler.
pub fn layer<const EVENTS: usize>(runtime: &Runtime, count: usize) -> f64 {
    serve(runtime, count, TrackEventsLayer::new(handle()).layer(handler(track::<EVENTS>)))
}

/// The equivalent with `TaskTracker`: it is in the extensions, and so many spawns of the same events by the handler.
pub fn tracker<const EVENTS: usize>(runtime: &Runtime, count: usize) -> f64 {
    serve(runtime, count, AddExtensionLayer::new(TaskTracker::new()).layer(handler(spawn::<EVENTS>)))
}

pub fn trace(runtime: &Runtime, count: usize) -> f64 {
    serve(runtime, count, TraceLayer::new_for_http().layer(handler(|_| ())))
}

pub fn in_flight(runtime: &Runtime, count: usize) -> f64 {
    let (layer, _counter) = InFlightRequestsLayer::pair();
    serve(runtime, count, layer.layer(handler(|_| ())))
}

/// A handler that does something with the extensions of its request.
pub fn handler(
    act: fn(&Extensions),
) -> impl Service<Request<Empty<Bytes>>, Response = Response<Full<Bytes>>, Error = Infallible, Future: Send>
+ Clone
+ Send
+ 'static {
    service_fn(move |request: Request<Empty<Bytes>>| {
        act(request.extensions());
        async { Ok(Response::new(Full::new(Bytes::from_static(b"hello")))) }
    })
}

fn track<const EVENTS: usize>(extensions: &Extensions) {
    if EVENTS > 0 {
        let events = Events::from_extensions(extensions).expect("the layer is there");
        (0..EVENTS).for_each(|_| events.track("bench", yields()).expect("within the capacity"));
    }
}

fn spawn<const EVENTS: usize>(extensions: &Extensions) {
    if EVENTS > 0 {
        let tracker: &TaskTracker = extensions.get().expect("the layer is there");
        (0..EVENTS).for_each(|_| drop(tracker.spawn(yields())));
    }
}

/// Sends so many requests from the calling thread, which is none of the workers if there are two, and waits until the
/// events have ended.
pub fn serve<S, B>(runtime: &Runtime, count: usize, mut service: S) -> f64
where
    S: Service<Request<Empty<Bytes>>, Response = Response<B>, Error = Infallible, Future: Send> + Send + 'static,
    B: Body<Data = Bytes, Error: std::fmt::Debug> + Send,
{
    runtime.block_on(async move {
        let start = Instant::now();
        for turn in 0..count {
            let response = service.call(Request::new(Empty::new())).await.expect("it answers");
            {
                let mut body = pin!(response.into_body());
                while let Some(frame) = body.frame().await {
                    black_box(&frame.expect("a frame").data_ref());
                }
            }
            // A server gives way to its other tasks at least this often.
            if turn % 10 == 0 {
                yield_now().await;
            }
        }
        no_more_tasks_than(0).await;
        per(count, start)
    })
}
