//! The same subjects as those of `cost`, each closely: `cargo bench -p tower-track-events-benches`, with a part of a name
//! after `--` for one of them. Take ratios from `cost`, which runs the rivals in turn.

#![allow(missing_docs, reason = "`criterion_group!` makes a public function")]

use std::{hint::black_box, time::Duration};

use criterion::{Criterion, criterion_group, criterion_main};
use tower_track_events_benches::{
    admission, among,
    event::{self, Kind},
    request, runtime, wake_up,
};

type Subject<'a> = &'a dyn Fn(usize) -> f64;

/// The least that is done at once: a few bursts.
const LEAST: u64 = 1_000;

fn measure(criterion: &mut Criterion, group: &str, subjects: &[(&str, Subject<'_>)]) {
    let mut group = criterion.benchmark_group(group);
    group.sample_size(20).measurement_time(Duration::from_secs(2));
    for (name, subject) in subjects {
        group.bench_function(*name, |bencher| {
            bencher.iter_custom(|count| {
                let nanos = black_box(subject(count.next_multiple_of(LEAST) as usize));
                Duration::from_nanos((nanos * count as f64) as u64)
            });
        });
    }
}

fn events(criterion: &mut Criterion) {
    for (workers, place) in [(1, "one thread"), (2, "two workers")] {
        let runtime = &runtime(workers);
        measure(
            criterion,
            &format!("event, {place}"),
            &[
                ("handle.track, ready", &|count| event::handle_track(runtime, Kind::Ready, count)),
                ("tokio spawn, ready", &|count| event::spawn(runtime, Kind::Ready, count)),
                ("handle.track, yields", &|count| event::handle_track(runtime, Kind::Yields, count)),
                ("tokio spawn, yields", &|count| event::spawn(runtime, Kind::Yields, count)),
                ("TaskTracker, yields", &|count| event::tracker(runtime, Kind::Yields, count)),
            ],
        );
    }
}

fn requests(criterion: &mut Criterion) {
    let runtime = &runtime(1);
    measure(
        criterion,
        "request",
        &[
            ("bare", &|count| request::bare(runtime, count)),
            ("no event", &|count| request::layer::<0>(runtime, count)),
            ("one event", &|count| request::layer::<1>(runtime, count)),
            ("four events", &|count| request::layer::<4>(runtime, count)),
            ("TraceLayer", &|count| request::trace(runtime, count)),
            ("AddExtension and spawn", &|count| request::tracker::<1>(runtime, count)),
        ],
    );
}

fn others(criterion: &mut Criterion) {
    let runtime = &runtime(1);
    measure(
        criterion,
        "admission",
        &[("guard", &|count| admission::guard(1, count)), ("guard, two threads", &|count| admission::guard(2, count))],
    );
    measure(criterion, "among", &[("1,000 pending", &|count| among::tracked(runtime, 1_000, count))]);
    measure(
        criterion,
        "wake-up",
        &[
            ("Drain", &|count| wake_up::drain(runtime, count)),
            ("TaskTracker wait", &|count| wake_up::tracker(runtime, count)),
        ],
    );
}

criterion_group!(costs, events, requests, others);
criterion_main!(costs);
