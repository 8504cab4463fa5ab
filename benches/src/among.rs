//! An event that is ready at once, while so many others are pending.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{runtime::Runtime, sync::Semaphore, task::yield_now, time::Instant};

use crate::{BURST, handle, in_a_task, per, ready};

pub fn tracked(runtime: &Runtime, pending: usize, count: usize) -> f64 {
    in_a_task(runtime, async move {
        let handle = handle();
        let release = wait(pending, |event| handle.track("waits", event).expect("within the capacity")).await;
        let time = in_bursts(count, || handle.track("bench", ready()).expect("within the capacity")).await;
        end(release, pending).await;
        time
    })
}

pub fn spawned(runtime: &Runtime, pending: usize, count: usize) -> f64 {
    in_a_task(runtime, async move {
        let release = wait(pending, |event| drop(tokio::spawn(event))).await;
        let time = in_bursts(count, || drop(tokio::spawn(ready()))).await;
        end(release, pending).await;
        time
    })
}

/// Starts so many events that wait for permits, and returns when all of them wait.
async fn wait(count: usize, mut start: impl FnMut(Pin<Box<dyn Future<Output = ()> + Send>>)) -> Arc<Semaphore> {
    let (release, waiting) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    for _ in 0..count {
        let (release, waiting) = (Arc::clone(&release), Arc::clone(&waiting));
        start(Box::pin(async move {
            waiting.fetch_add(1, Ordering::Relaxed);
            drop(waiting);
            drop(release.acquire().await);
        }));
    }
    while waiting.load(Ordering::Relaxed) < count {
        yield_now().await;
    }
    release
}

async fn in_bursts(count: usize, start_event: impl Fn()) -> f64 {
    let start = Instant::now();
    for _ in 0..count / BURST {
        (0..BURST).for_each(|_| start_event());
        yield_now().await;
    }
    per(count, start)
}

/// Lets the pending events end. Each holds the semaphore until then.
async fn end(release: Arc<Semaphore>, pending: usize) {
    release.add_permits(pending);
    while Arc::strong_count(&release) > 1 {
        yield_now().await;
    }
}
