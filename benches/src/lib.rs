//! The subjects of the benchmarks: an event, a request, an admission, an event among many others, and the end of a
//! drain, by this crate and by what a user would pick instead.
//!
//! Each function runs its subject `count` times and returns the nanoseconds per run. `round` measures their time for
//! `cost`, `instructions` counts their instructions, and the criterion benchmark measures single ones closely.
//!
//! The sources of this library and of the binaries `round`, `bytes` and `server` compile against older revisions of the
//! crate too, so that `scripts/costs --baseline` and `scripts/end-to-end --baseline` compare two revisions in one run.
//! They call only what every revision has.

#![allow(missing_docs, reason = "the name of a function says what it measures")]

use std::{hint::black_box, time::Duration};

use tokio::{
    runtime::{self, Runtime},
    task::yield_now,
    time::{Instant, sleep},
};
use tower_track_events::{TrackEventsHandle, TrackEventsHandleBuilder};

pub mod admission;
pub mod among;
pub mod event;
pub mod request;
pub mod statistics;
pub mod wake_up;

/// Events start in bursts of this size, so that no queue gets longer than that of a real server.
const BURST: usize = 100;

/// A runtime on the calling thread for one worker, and on threads of its own for more.
pub fn runtime(workers: usize) -> Runtime {
    let mut builder = match workers {
        1 => runtime::Builder::new_current_thread(),
        _ => runtime::Builder::new_multi_thread(),
    };
    builder.worker_threads(workers).enable_all().build().expect("a runtime")
}

/// A handle that admits every event and whose drain waits for nothing but requests and events.
pub fn handle() -> TrackEventsHandle {
    let builder = TrackEventsHandle::builder().capacity(1 << 22);
    builder
        .settle(Duration::ZERO)
        .quiet_period(Duration::ZERO)
        .progress(Duration::ZERO)
        .build()
        .expect("valid settings")
}

/// Setters that only some revisions of the crate have. Where the builder has a method of the same name, that one is
/// called, since inherent methods come first; otherwise the method here does nothing.
pub trait SettingsOfSomeRevisions: Sized {
    fn settle(self, _time: Duration) -> Self {
        self
    }

    fn quiet_period(self, _time: Duration) -> Self {
        self
    }

    fn progress(self, _interval: Duration) -> Self {
        self
    }
}

impl SettingsOfSomeRevisions for TrackEventsHandleBuilder {}

/// An event that is ready at the first poll, such as one that sends to an unbounded channel.
pub async fn ready() {
    black_box(());
}

/// An event that waits once and is woken at once.
pub async fn yields() {
    yield_now().await;
}

/// An event that waits for a timer.
pub async fn sleeps() {
    sleep(Duration::from_millis(1)).await;
}

/// Runs a measurement as a task of the runtime, as the tasks of a server run.
fn in_a_task(runtime: &Runtime, measure: impl Future<Output = f64> + Send + 'static) -> f64 {
    runtime.block_on(runtime.spawn(measure)).expect("the measurement does not panic")
}

/// Waits until the runtime has no more tasks than this.
async fn no_more_tasks_than(count: usize) {
    let metrics = runtime::Handle::current().metrics();
    while metrics.num_alive_tasks() > count {
        yield_now().await;
    }
}

/// Nanoseconds for each of `count`.
fn per(count: usize, start: Instant) -> f64 {
    start.elapsed().as_nanos() as f64 / count as f64
}
