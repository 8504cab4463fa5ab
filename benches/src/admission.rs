//! An admission and its end, on each of so many threads at once.

use std::{hint::black_box, sync::Barrier, thread};

use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::{handle, per};

pub fn guard(threads: usize, count: usize) -> f64 {
    let handle = handle();
    on_each(threads, count, || drop(black_box(handle.guard().expect("it is open"))))
}

pub fn token(threads: usize, count: usize) -> f64 {
    let tracker = TaskTracker::new();
    on_each(threads, count, || drop(black_box(tracker.token())))
}

fn on_each(threads: usize, count: usize, admit: impl Fn() + Sync) -> f64 {
    let barrier = Barrier::new(threads);
    let times: Vec<f64> = thread::scope(|scope| {
        let admit_all = || {
            barrier.wait();
            let start = Instant::now();
            (0..count).for_each(|_| admit());
            per(count, start)
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(admit_all)).collect();
        threads.into_iter().map(|thread| thread.join().expect("it ends")).collect()
    });
    times.iter().sum::<f64>() / threads as f64
}
