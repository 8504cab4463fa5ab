//! Events: started in bursts by a task, until all of them have ended.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    runtime::Runtime,
    sync::oneshot,
    task::{JoinSet, yield_now},
    time::Instant,
};
use tokio_util::task::TaskTracker;
use tower_track_events::TrackEventsHandle;

use crate::{BURST, handle, in_a_task, no_more_tasks_than, per, ready, sleeps, yields};

/// What an event does.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// It is ready at the first poll.
    Ready,
    /// It yields once.
    Yields,
    /// It waits for a oneshot channel. The starting task sends when all events of the burst wait.
    Oneshot,
    /// It sleeps for a millisecond.
    Sleeps,
}

pub fn handle_track(runtime: &Runtime, kind: Kind, count: usize) -> f64 {
    let handle = handle();
    let time = measure(runtime, kind, count, Track(handle.clone()));
    assert_eq!(handle.snapshot().pending, 0);
    time
}

pub fn spawn(runtime: &Runtime, kind: Kind, count: usize) -> f64 {
    measure(runtime, kind, count, Spawn)
}

pub fn tracker(runtime: &Runtime, kind: Kind, count: usize) -> f64 {
    measure(runtime, kind, count, Tracker(TaskTracker::new()))
}

pub fn graceful(runtime: &Runtime, kind: Kind, count: usize) -> f64 {
    // The shutdown is a task. It gets a runtime of its own, because the measurement waits for all other tasks.
    let shutdown_runtime = crate::runtime(1);
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = {
        let _entered = shutdown_runtime.enter();
        tokio_graceful::Shutdown::new(async { drop(stopped.await) })
    };
    let time = measure(runtime, kind, count, Graceful(shutdown.guard()));
    drop(stop);
    shutdown_runtime.block_on(shutdown.shutdown());
    time
}

pub fn join_set(runtime: &Runtime, kind: Kind, count: usize) -> f64 {
    measure(runtime, kind, count, JoinSet::new())
}

fn measure(runtime: &Runtime, kind: Kind, count: usize, mut way: impl Start) -> f64 {
    in_a_task(runtime, async move {
        let mut senders = Vec::with_capacity(BURST);
        let waiting = Arc::new(AtomicUsize::new(0));
        let start = Instant::now();
        for _ in 0..count / BURST {
            match kind {
                Kind::Ready => (0..BURST).for_each(|_| way.start(ready())),
                Kind::Yields => (0..BURST).for_each(|_| way.start(yields())),
                Kind::Sleeps => (0..BURST).for_each(|_| way.start(sleeps())),
                Kind::Oneshot => senders.extend((0..BURST).map(|_| {
                    let (sender, receiver) = oneshot::channel::<()>();
                    let waiting = Arc::clone(&waiting);
                    way.start(async move {
                        waiting.fetch_add(1, Ordering::Relaxed);
                        drop(receiver.await);
                    });
                    sender
                })),
            }
            yield_now().await;
            if !senders.is_empty() {
                // Otherwise an event might find its value at the first poll.
                while waiting.load(Ordering::Relaxed) < BURST {
                    yield_now().await;
                }
                waiting.store(0, Ordering::Relaxed);
            }
            senders.drain(..).for_each(|sender| sender.send(()).expect("the event waits"));
            way.after_burst();
        }
        // The measurement is a task itself.
        no_more_tasks_than(1).await;
        per(count, start)
    })
}

/// A way to start an event.
trait Start: Send + 'static {
    fn start(&mut self, event: impl Future<Output = ()> + Send + 'static);

    fn after_burst(&mut self) {}
}

struct Track(TrackEventsHandle);

impl Start for Track {
    fn start(&mut self, event: impl Future<Output = ()> + Send + 'static) {
        self.0.track("bench", event).expect("within the capacity");
    }
}

struct Spawn;

impl Start for Spawn {
    fn start(&mut self, event: impl Future<Output = ()> + Send + 'static) {
        drop(tokio::spawn(event));
    }
}

struct Tracker(TaskTracker);

impl Start for Tracker {
    fn start(&mut self, event: impl Future<Output = ()> + Send + 'static) {
        drop(self.0.spawn(event));
    }
}

struct Graceful(tokio_graceful::ShutdownGuard);

impl Start for Graceful {
    fn start(&mut self, event: impl Future<Output = ()> + Send + 'static) {
        let guard = self.0.clone();
        tokio::spawn(async move {
            event.await;
            drop(guard);
        });
    }
}

impl Start for JoinSet<()> {
    fn start(&mut self, event: impl Future<Output = ()> + Send + 'static) {
        self.spawn(event);
    }

    fn after_burst(&mut self) {
        while self.try_join_next().is_some() {}
    }
}
