//! The memory of a pending event: `bytes` prints the bytes that one takes when it was started by `tokio::spawn`, when
//! it was tracked by the handle, and when an open exchange keeps it. Each is the mean over futures of several sizes,
//! since the allocator rounds each size up in its own way. `cost` runs it. Events that have started have been polled,
//! and wait.

#![allow(clippy::print_stdout, reason = "the program prints its results")]

use std::{
    convert::Infallible,
    future::pending,
    hint::black_box,
    sync::atomic::{AtomicUsize, Ordering},
};

use http::{Request, Response};
use tokio::{sync::oneshot, task::yield_now};
use tower::{Layer, Service, service_fn};
use tower_track_events::{Events, TrackEventsLayer};
use tower_track_events_benches::{handle, runtime};

#[global_allocator]
static COUNTS: dhat::Alloc = dhat::Alloc;

const EVENTS: usize = 100_000;

fn main() {
    let _profiler = dhat::Profiler::builder().testing().build();
    let rows = [of::<16>(), of::<48>(), of::<80>(), of::<112>(), of::<144>(), of::<176>(), of::<208>(), of::<240>()];
    let names = ["tokio::spawn", "handle.track", "events.track, the exchange is open"];
    for (column, name) in names.into_iter().enumerate() {
        let mean = rows.iter().map(|row| row[column]).sum::<f64>() / rows.len() as f64;
        println!("Bytes of a pending event, the mean of futures of 16 to 240 bytes\t{name}\t{mean:.1}");
    }
}

/// How many events have been polled.
static POLLED: AtomicUsize = AtomicUsize::new(0);

/// An event that owns so many bytes, and does not end.
async fn waits<const BYTES: usize>() {
    POLLED.fetch_add(1, Ordering::Relaxed);
    let owned = [1_u8; BYTES];
    pending::<()>().await;
    black_box(&owned);
}

fn of<const BYTES: usize>() -> [f64; 3] {
    let spawned = {
        let runtime = runtime(1);
        runtime.block_on(bytes_when_polled(|| drop(tokio::spawn(waits::<BYTES>()))))
    };
    let tracked = {
        let (runtime, handle) = (runtime(1), handle());
        runtime.block_on(bytes_when_polled(|| handle.track("waits", waits::<BYTES>()).expect("within the capacity")))
    };
    [spawned, tracked, kept::<BYTES>()]
}

fn kept<const BYTES: usize>() -> f64 {
    let handle = handle();
    let (send_events, events) = oneshot::channel::<Events>();
    let mut send_events = Some(send_events);
    let mut service = TrackEventsLayer::new(handle.clone()).layer(service_fn(move |request: Request<String>| {
        let events = Events::from_extensions(request.extensions()).expect("the layer is there").clone();
        drop(send_events.take().map(|sender| sender.send(events)));
        pending::<Result<Response<String>, Infallible>>()
    }));
    runtime(1).block_on(async {
        let response = tokio::spawn(service.call(Request::new(String::new())));
        let events = events.await.expect("the handler has run");
        let track = || events.track("waits", waits::<BYTES>()).expect("within the capacity");
        // What is allocated once is not counted.
        track();
        let before = dhat::HeapStats::get().curr_bytes;
        (0..EVENTS).for_each(|_| track());
        let bytes = since(before);
        handle.abort();
        response.abort();
        bytes
    })
}

async fn bytes_when_polled(start: impl Fn()) -> f64 {
    start_and_poll(1, &start).await;
    let before = dhat::HeapStats::get().curr_bytes;
    start_and_poll(EVENTS, &start).await;
    since(before)
}

async fn start_and_poll(count: usize, start: &impl Fn()) {
    let all = POLLED.load(Ordering::Relaxed) + count;
    (0..count).for_each(|_| start());
    while POLLED.load(Ordering::Relaxed) < all {
        yield_now().await;
    }
}

fn since(before: usize) -> f64 {
    (dhat::HeapStats::get().curr_bytes - before) as f64 / EVENTS as f64
}
