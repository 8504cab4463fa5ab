//! The memory of a pending event: prints the bytes that one takes by `tokio::spawn`, by `handle.track`, and recorded in an
//! exchange that is open. `cost` runs it.

use http::{Request, Response};
use tokio::task::yield_now;
use tower::{Layer, Service, service_fn};
use tower_track_events::{Events, TrackEventsLayer};
use tower_track_events_benches::{among, handle, runtime};

#[global_allocator]
static COUNTS: dhat::Alloc = dhat::Alloc;

const EVENTS: usize = 100_000;

fn main() {
    let _profiler = dhat::Profiler::builder().testing().build();
    let runtime = runtime(1);
    // The future of the event itself is among what both count.
    let (spawned, tracked, recorded) = runtime.block_on(async {
        let spawned = bytes_of(async || {
            let release = among::wait(EVENTS, |wait| drop(tokio::spawn(wait))).await;
            (release, ())
        });
        let spawned = spawned.await;
        let tracked = bytes_of(async || {
            let handle = handle();
            let release = among::wait(EVENTS, |wait| handle.track("waits", wait).expect("there is room")).await;
            (release, handle)
        });
        let tracked = tracked.await;
        (spawned, tracked, bytes_of_recorded().await)
    });
    println!("{spawned:.1} {tracked:.1} {recorded:.1}");
}

/// The bytes for each event that waits, which are let go afterwards.
async fn bytes_of<T>(start: impl AsyncFnOnce() -> (std::sync::Arc<tokio::sync::Semaphore>, T)) -> f64 {
    let before = dhat::HeapStats::get().curr_bytes;
    let (release, held) = start().await;
    let bytes = dhat::HeapStats::get().curr_bytes - before;
    release.add_permits(EVENTS);
    while std::sync::Arc::strong_count(&release) > 1 {
        yield_now().await;
    }
    drop(held);
    bytes as f64 / EVENTS as f64
}

async fn bytes_of_recorded() -> f64 {
    let (open, opened) = tokio::sync::oneshot::channel::<Events>();
    let mut open = Some(open);
    let mut service = TrackEventsLayer::new(handle()).layer(service_fn(move |request: Request<String>| {
        let events = Events::from_extensions(request.extensions()).expect("the layer is there").clone();
        drop(open.take().map(|open| open.send(events)));
        std::future::pending::<Result<Response<String>, std::convert::Infallible>>()
    }));
    let response = tokio::spawn(service.call(Request::new(String::new())));
    let events = opened.await.expect("the handler has run");
    let before = dhat::HeapStats::get().curr_bytes;
    // The box that `among::wait` starts is of the same size as this.
    (0..EVENTS).for_each(|_| events.track("waits", Box::pin(std::future::pending::<()>())).expect("there is room"));
    let bytes = dhat::HeapStats::get().curr_bytes - before;
    events.handle().abort();
    response.abort();
    bytes as f64 / EVENTS as f64
}
