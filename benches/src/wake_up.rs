//! From the end of the last event to the return of the drain that waits for it.

use std::{future::Future, time::Duration};

use tokio::{runtime::Runtime, sync::oneshot, task::yield_now, time::Instant};
use tokio_util::task::TaskTracker;

use crate::handle;

pub fn drain(runtime: &Runtime, count: usize) -> f64 {
    runtime.block_on(async {
        let mut total = Duration::ZERO;
        for _ in 0..count {
            let handle = handle();
            let (last, release, ended) = last();
            handle.track("last", last).expect("within the capacity");
            let drain = tokio::spawn(handle.drain(Duration::MAX));
            yield_now().await;
            release.send(()).expect("it waits");
            drop(drain.await.expect("it ends").expect("all events end"));
            total += ended.await.expect("it sends").elapsed();
        }
        total.as_nanos() as f64 / count as f64
    })
}

pub fn tracker(runtime: &Runtime, count: usize) -> f64 {
    runtime.block_on(async {
        let mut total = Duration::ZERO;
        for _ in 0..count {
            let tracker = TaskTracker::new();
            let (last, release, ended) = last();
            tracker.spawn(last);
            tracker.close();
            let wait = tokio::spawn(async move { tracker.wait().await });
            yield_now().await;
            release.send(()).expect("it waits");
            wait.await.expect("it ends");
            total += ended.await.expect("it sends").elapsed();
        }
        total.as_nanos() as f64 / count as f64
    })
}

/// An event, what ends it, and the instant at which it ended.
fn last() -> (impl Future<Output = ()> + Send + 'static, oneshot::Sender<()>, oneshot::Receiver<Instant>) {
    let (release, released) = oneshot::channel();
    let (send_end, ended) = oneshot::channel();
    (async move { drop(released.await.map(|()| send_end.send(Instant::now()))) }, release, ended)
}
