//! One round of one group of figures: `round events|requests|admission|among|wake-up`. `cost` runs it.
//!
//! Prints a line for each measurement: the table in which the figure stands, its name, and nanoseconds, with tabs
//! between. The subjects run in turn, so that other load on the machine hits all of them.

#![allow(clippy::print_stdout, reason = "the program prints its results")]

use std::{env, error::Error};

use tower_track_events_benches::{
    admission, among,
    event::{self, Kind},
    request, runtime, wake_up,
};

/// Turns after the first, which only warms up.
const TURNS: usize = 3;
const EVENTS: usize = 20_000;
/// More, since the last millisecond of the measurement is spent waiting.
const SLEEPS: usize = 60_000;
const REQUESTS: usize = 10_000;
const ADMISSIONS: usize = 300_000;
const WAKE_UPS: usize = 1_000;

const WORKERS: [(usize, &str); 2] = [(1, "one thread"), (2, "two workers")];

type Subject<'a> = (&'a str, Box<dyn FnMut() -> f64 + 'a>);

fn main() -> Result<(), Box<dyn Error>> {
    match env::args().nth(1).as_deref() {
        Some("events") => events(),
        Some("requests") => requests(),
        Some("admission") => admissions(),
        Some("among") => among_many(),
        Some("wake-up") => wake_ups(),
        _ => return Err("round events|requests|admission|among|wake-up".into()),
    }
    Ok(())
}

/// Runs the subjects in turn. What is printed is their time less that of `base`, if there is one.
fn in_turn(table: &str, mut base: impl FnMut() -> f64, subjects: &mut [Subject<'_>]) {
    for turn in 0..=TURNS {
        let base = base();
        for (name, subject) in &mut *subjects {
            let time = subject() - base;
            if turn > 0 {
                println!("{table}\t{name}\t{time:.2}");
            }
        }
    }
}

fn nothing() -> f64 {
    0.0
}

fn events() {
    for (workers, place) in WORKERS {
        let runtime = &runtime(workers);
        for (kind, what, count) in [
            (Kind::Yields, "yields once", EVENTS),
            (Kind::Sleeps, "sleeps 1 ms", SLEEPS),
            (Kind::Oneshot, "waits for a oneshot", EVENTS),
            (Kind::Ready, "is ready at once", EVENTS),
        ] {
            let mut subjects: Vec<Subject<'_>> = vec![
                ("handle.track", Box::new(move || event::handle_track(runtime, kind, count))),
                ("tokio::spawn", Box::new(move || event::spawn(runtime, kind, count))),
                ("TaskTracker::spawn", Box::new(move || event::tracker(runtime, kind, count))),
            ];
            if matches!(kind, Kind::Yields) {
                subjects.push(("tokio-graceful's guard", Box::new(move || event::graceful(runtime, kind, count))));
                subjects.push(("JoinSet::spawn", Box::new(move || event::join_set(runtime, kind, count))));
            }
            in_turn(&format!("An event that {what}, {place}"), nothing, &mut subjects);
        }
    }
}

fn requests() {
    for (workers, place) in WORKERS {
        let runtime = &runtime(workers);
        let subject =
            |measure: fn(&_, usize) -> f64| -> Box<dyn FnMut() -> f64> { Box::new(move || measure(runtime, REQUESTS)) };
        in_turn(
            &format!("A request, beyond a bare service, {place}"),
            || request::bare(runtime, REQUESTS),
            &mut [
                ("the layer, no event", subject(request::layer::<0>)),
                ("the layer, one event that yields", subject(request::layer::<1>)),
                ("the layer, four events that yield", subject(request::layer::<4>)),
                ("AddExtension<TaskTracker>, no spawn", subject(request::tracker::<0>)),
                ("AddExtension<TaskTracker>, one spawn", subject(request::tracker::<1>)),
                ("AddExtension<TaskTracker>, four spawns", subject(request::tracker::<4>)),
                ("TraceLayer without a subscriber", subject(request::trace)),
                ("InFlightRequestsLayer", subject(request::in_flight)),
            ],
        );
    }
}

fn admissions() {
    in_turn(
        "An admission and its end",
        nothing,
        &mut [
            ("handle.guard(), one thread", Box::new(|| admission::guard(1, ADMISSIONS))),
            ("handle.guard(), each of two threads", Box::new(|| admission::guard(2, ADMISSIONS))),
            ("TaskTracker::token(), one thread", Box::new(|| admission::token(1, ADMISSIONS))),
            ("TaskTracker::token(), each of two threads", Box::new(|| admission::token(2, ADMISSIONS))),
        ],
    );
}

/// Once each, since a million tasks take seconds, and in this order, since the memory that a million leave behind slows
/// down what follows.
fn among_many() {
    let runtime = &runtime(1);
    let print =
        |name: &str, time: f64| println!("An event that is ready at once, while others are pending\t{name}\t{time:.2}");
    among::tracked(runtime, 1, EVENTS);
    among::spawned(runtime, 1, EVENTS);
    print("handle.track, 1 pending", among::tracked(runtime, 1, EVENTS));
    print("tokio::spawn, 1 pending", among::spawned(runtime, 1, EVENTS));
    print("handle.track, 1,000 pending", among::tracked(runtime, 1_000, EVENTS));
    print("handle.track, 1,000,000 pending", among::tracked(runtime, 1_000_000, EVENTS));
    print("tokio::spawn, 1,000,000 pending", among::spawned(runtime, 1_000_000, EVENTS));
}

fn wake_ups() {
    let runtime = &runtime(1);
    in_turn(
        "From the end of the last event to the return of what waits for it",
        nothing,
        &mut [
            ("Drain", Box::new(|| wake_up::drain(runtime, WAKE_UPS))),
            ("TaskTracker::wait", Box::new(|| wake_up::tracker(runtime, WAKE_UPS))),
        ],
    );
}
