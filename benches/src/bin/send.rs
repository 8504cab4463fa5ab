//! What it costs to send an event to a sink, against what a user would pick instead.
//!
//! ```text
//! cargo run --release -p tower-track-events-benches --bin send
//! ```
//!
//! A value of 64 bytes is sent, and everything that follows from it is counted in: the task that takes the batches, or
//! runs the spawned future. Wall time for each value, as medians of runs in turn, so that whatever else the machine
//! does hits all of them. Ends with an error if a bar is missed: 0.12 of a spawn, and one and a half times the
//! channel.

#![allow(clippy::print_stdout, reason = "the program prints its results")]

use std::{
    future::Future,
    hint::black_box,
    process::ExitCode,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    runtime::{self, Runtime},
    sync::mpsc,
    task::yield_now,
    time::Instant,
};
use tower_track_events::TrackEventsHandle;

type Value = [u8; 64];

const VALUES: usize = 200_000;
/// Sent without giving way, as by a busy handler.
const BURST: usize = 1_000;
const RUNS: usize = 31;

/// Who sends, and on how many worker threads all of it runs.
#[derive(Clone, Copy)]
struct Setting {
    name: &'static str,
    workers: usize,
    senders: usize,
    /// The bar for the ratio to a spawn. There is none where two threads fight for one lock: what that takes differs
    /// from run to run by half.
    of_spawn: Option<f64>,
}

const SETTINGS: [Setting; 3] = [
    Setting { name: "one thread", workers: 1, senders: 1, of_spawn: Some(0.12) },
    Setting { name: "two threads, one sends", workers: 2, senders: 1, of_spawn: Some(0.12) },
    Setting { name: "two threads, both send", workers: 2, senders: 2, of_spawn: None },
];

impl Setting {
    fn runtime(self) -> Runtime {
        let mut builder = match self.workers {
            1 => runtime::Builder::new_current_thread(),
            _ => runtime::Builder::new_multi_thread(),
        };
        builder.worker_threads(self.workers).enable_all().build().expect("a runtime")
    }

    /// Lets each sender send its part.
    async fn send_all(self, send: impl Fn() + Clone + Send + 'static) {
        let senders: Vec<_> = (0..self.senders)
            .map(|_| {
                let send = send.clone();
                tokio::spawn(async move {
                    for _ in 0..VALUES / self.senders / BURST {
                        (0..BURST).for_each(|_| send());
                        yield_now().await;
                    }
                })
            })
            .collect();
        for sender in senders {
            sender.await.expect("a sender ends");
        }
    }

    /// Nanoseconds for each value.
    fn time<F: Future>(self, run: impl FnOnce() -> F) -> f64 {
        self.runtime().block_on(async {
            let began = Instant::now();
            run().await;
            began.elapsed().as_nanos() as f64 / VALUES as f64
        })
    }

    fn sink(self) -> f64 {
        self.time(|| async move {
            let handle = TrackEventsHandle::builder().quiet_period(Duration::ZERO).build().expect("valid settings");
            let sink = handle.sink::<Value>("bench").capacity(VALUES);
            let sender = sink.deliver(|batch| async move { drop(black_box(batch)) }).expect("valid settings");
            self.send_all(move || sender.try_send(black_box([7; 64])).expect("within the capacity")).await;
            let report = handle.drain(Duration::MAX).await.expect("all is delivered");
            assert_eq!(report.ended.completed, VALUES as u64);
        })
    }

    fn channel(self) -> f64 {
        self.time(|| async move {
            let (sender, mut receiver) = mpsc::unbounded_channel::<Value>();
            let taken = tokio::spawn(async move {
                let (mut batch, mut taken) = (Vec::with_capacity(512), 0);
                while receiver.recv_many(&mut batch, 512).await > 0 {
                    black_box(&batch[..]);
                    taken += batch.len();
                    batch.clear();
                }
                taken
            });
            self.send_all(move || sender.send(black_box([7; 64])).expect("it is open")).await;
            assert_eq!(taken.await.expect("it ends"), VALUES);
        })
    }

    fn spawn(self) -> f64 {
        self.time(|| async move {
            self.send_all(|| {
                let value: Value = black_box([7; 64]);
                tokio::spawn(async move {
                    black_box(value);
                });
            })
            .await;
        })
    }

    /// The least that a queue with an order can cost.
    fn mutex(self) -> f64 {
        self.time(|| async move {
            let queue = Arc::new(Mutex::new(Vec::<Value>::new()));
            self.send_all(move || {
                let mut queue = queue.lock().expect("nobody panics");
                queue.push(black_box([7; 64]));
                if queue.len() == 512 {
                    queue.clear();
                }
            })
            .await;
        })
    }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() -> ExitCode {
    let mut missed = 0;
    println!(
        "{:<24} {:>8} {:>8} {:>8} {:>8} {:>14} {:>14}",
        "ns a value", "send", "mpsc", "spawn", "mutex", "of spawn", "of mpsc"
    );
    for setting in SETTINGS {
        let mut times: [Vec<f64>; 4] = Default::default();
        for _ in 0..RUNS {
            let once = [setting.sink(), setting.channel(), setting.spawn(), setting.mutex()];
            times.iter_mut().zip(once).for_each(|(times, time)| times.push(time));
        }
        let [send, channel, spawn, mutex] = times.map(median);
        let (of_spawn, of_channel) = (send / spawn, send / channel);
        missed += usize::from(setting.of_spawn.is_some_and(|bar| of_spawn > bar)) + usize::from(of_channel > 1.50);
        println!(
            "{:<24} {send:>8.1} {channel:>8.1} {spawn:>8.1} {mutex:>8.1} {of_spawn:>14.3} {of_channel:>14.2}",
            setting.name
        );
    }
    println!("{missed} bars missed");
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
