//! What an event, a request and a drain cost, against what a user would pick instead.
//!
//! ```text
//! scripts/costs
//! ```
//!
//! Wall time, in process, without a network. Each figure is the median of runs in turn with its rivals, so that whatever
//! else the machine does hits all of them; the bars are on ratios. Ends with an error if a bar is missed. What is given as
//! an argument is a file into which the figures are written for the plot.

#![allow(clippy::print_stdout, reason = "the program prints its results")]

use std::{env, error::Error, fmt::Write as _, fs, process::Command, process::ExitCode};

use tower_track_events_benches::{admission, among, event, ready, request, runtime, wake_up, yields};

const RUNS: usize = 31;
const EVENTS: usize = 20_000;
const REQUESTS: usize = 10_000;
const ADMISSIONS: usize = 300_000;
const WAKE_UPS: usize = 1_000;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let mut table = Table::default();
    events(&mut table);
    requests(&mut table);
    admissions(&mut table);
    among_many(&mut table);
    wake_ups(&mut table);
    bytes(&mut table)?;
    if let Some(path) = env::args().nth(1) {
        fs::write(path, &table.figures)?;
    }
    println!("\n{} of {} bars missed", table.missed, table.bars);
    Ok(if table.missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[derive(Default)]
struct Table {
    bars: usize,
    missed: usize,
    /// A line for each figure of the plot: group, name and value, with tabs between.
    figures: String,
    group: String,
}

impl Table {
    fn head(&mut self, text: &str) {
        println!("\n{text}");
        text.clone_into(&mut self.group);
    }

    fn figure(&mut self, name: &str, value: f64, unit: &str) {
        println!("  {name:<58} {value:>9.1} {unit}");
        writeln!(self.figures, "{}\t{name}\t{value:.1}", self.group).expect("a string takes all");
    }

    fn nanos(&mut self, figures: &[(&str, f64)]) {
        for (name, value) in figures {
            self.figure(name, *value, "ns");
        }
    }

    /// One that is there to compare with.
    fn ratio(&self, name: &str, value: f64) {
        println!("  {name:<58} {value:>9.2}");
    }

    fn bar(&mut self, name: &str, value: f64, bar: f64) {
        let holds = value <= bar;
        self.bars += 1;
        self.missed += usize::from(!holds);
        println!("= {name:<58} {value:>9.2}    <= {bar:.2} {}", if holds { "ok" } else { "MISSED" });
    }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// The medians of candidates that run in turn.
fn in_turn<const N: usize>(runs: usize, mut candidates: [&mut dyn FnMut() -> f64; N]) -> [f64; N] {
    let mut times = [const { Vec::new() }; N];
    for _ in 0..runs {
        for (candidate, times) in candidates.iter_mut().zip(&mut times) {
            times.push(candidate());
        }
    }
    times.map(median)
}

fn events(table: &mut Table) {
    for (workers, place, bar) in [(1, "one thread", 1.35), (2, "two workers", 1.20)] {
        let runtime = runtime(workers);
        let [ours, spawn, counted, tracker, graceful, set] = in_turn(
            RUNS,
            [
                &mut || event::by_handle(&runtime, ready, EVENTS),
                &mut || event::by_spawn(&runtime, ready, EVENTS),
                &mut || event::by_counted_spawn(&runtime, ready, EVENTS),
                &mut || event::by_tracker(&runtime, ready, EVENTS),
                &mut || event::by_graceful(&runtime, ready, EVENTS),
                &mut || event::by_join_set(&runtime, ready, EVENTS),
            ],
        );
        table.head(&format!("An event that is ready at once, {place}"));
        table.nanos(&[
            ("handle.track", ours),
            ("tokio::spawn", spawn),
            ("tokio::spawn, counted by hand", counted),
            ("TaskTracker::spawn", tracker),
            ("tokio-graceful's guard", graceful),
            ("JoinSet::spawn", set),
        ]);
        table.bar(&format!("handle.track / tokio::spawn, {place}"), ours / spawn, bar);
        let [ours, spawn, tracker] = in_turn(
            RUNS,
            [
                &mut || event::by_handle(&runtime, yields, EVENTS),
                &mut || event::by_spawn(&runtime, yields, EVENTS),
                &mut || event::by_tracker(&runtime, yields, EVENTS),
            ],
        );
        table.head(&format!("An event that waits once, {place}"));
        table.nanos(&[("handle.track", ours), ("tokio::spawn", spawn), ("TaskTracker::spawn", tracker)]);
    }
}

fn requests(table: &mut Table) {
    let runtime = &runtime(1);
    let [
        bare,
        none,
        one,
        four,
        layer,
        observer,
        trace,
        flight,
        extension,
        spawn_one,
        spawn_four,
        bare_four,
        part,
        part_event,
    ] = in_turn(
        RUNS,
        [
            &mut || request::bare(runtime, REQUESTS),
            &mut || request::ours::<0>(runtime, REQUESTS),
            &mut || request::ours::<1>(runtime, REQUESTS),
            &mut || request::ours::<4>(runtime, REQUESTS),
            &mut || request::layer_event(runtime, REQUESTS),
            &mut || request::observer(runtime, REQUESTS),
            &mut || request::trace(runtime, REQUESTS),
            &mut || request::in_flight(runtime, REQUESTS),
            &mut || request::extension::<0>(runtime, REQUESTS),
            &mut || request::extension::<1>(runtime, REQUESTS),
            &mut || request::extension::<4>(runtime, REQUESTS),
            &mut || request::bare_spawns::<4>(runtime, REQUESTS),
            &mut || request::by_hand::<false>(runtime, REQUESTS),
            &mut || request::by_hand::<true>(runtime, REQUESTS),
        ],
    );
    table.head("A request: what is added to a bare service");
    println!("  {:<58} {bare:>9.1} ns", "(the bare service itself)");
    table.nanos(&[
        ("our layer, no event", none - bare),
        ("our layer, one event", one - bare),
        ("our layer, four events", four - bare),
        ("our layer, one event of the layer", layer - bare),
        ("our layer, an observer", observer - bare),
        ("TraceLayer, without a subscriber", trace - bare),
        ("InFlightRequestsLayer", flight - bare),
        ("AddExtensionLayer<TaskTracker>", extension - bare),
        ("AddExtensionLayer<TaskTracker>, one spawn", spawn_one - bare),
        ("AddExtensionLayer<TaskTracker>, four spawns", spawn_four - bare),
        ("four bare spawns", bare_four - bare),
        ("a part of it by hand, no event", part - bare),
        ("a part of it by hand, one event of the layer", part_event - bare),
    ]);
    table.bar("no event / TraceLayer", (none - bare) / (trace - bare), 0.50);
    table.bar("one event / AddExtension and spawn", (one - bare) / (spawn_one - bare), 1.60);
    table.bar("four events / four bare spawns", (four - bare) / (bare_four - bare), 1.40);
    table.bar("one event of the layer / AddExtension and spawn", (layer - bare) / (spawn_one - bare), 1.60);
    table.ratio("a part of it by hand, no event / TraceLayer", (part - bare) / (trace - bare));
    table.ratio("a part of it by hand, one event / AddExtension and spawn", (part_event - bare) / (spawn_one - bare));
}

fn admissions(table: &mut Table) {
    let [one, two, token_one, token_two] = in_turn(
        RUNS,
        [
            &mut || admission::guard(1, ADMISSIONS),
            &mut || admission::guard(2, ADMISSIONS),
            &mut || admission::token(1, ADMISSIONS),
            &mut || admission::token(2, ADMISSIONS),
        ],
    );
    table.head("An admission and the end of it");
    table.nanos(&[
        ("guard(), one thread", one),
        ("guard(), two threads at once, each", two),
        ("TaskTracker::token(), one thread", token_one),
        ("TaskTracker::token(), two threads at once, each", token_two),
    ]);
    table.bar("guard(), two threads / one", two / one, 1.50);
    table.ratio("TaskTracker::token(), two threads / one", token_two / token_one);
}

fn among_many(table: &mut Table) {
    let runtime = &runtime(1);
    // Apart, because the memory that a million leaves behind slows down whoever comes next.
    let [one, thousand, many, million] = [1, 1_000, 100_000, 1_000_000]
        .map(|pending| median((0..9).map(|_| among::tracked(runtime, pending, EVENTS)).collect()));
    let [spawn_one, spawn_million] =
        [1, 1_000_000].map(|pending| median((0..9).map(|_| among::spawned(runtime, pending, EVENTS)).collect()));
    table.head("An event while others are pending");
    table.nanos(&[
        ("handle.track, 1 pending", one),
        ("handle.track, 1,000 pending", thousand),
        ("handle.track, 100,000 pending", many),
        ("handle.track, 1,000,000 pending", million),
        ("tokio::spawn, 1 pending", spawn_one),
        ("tokio::spawn, 1,000,000 pending", spawn_million),
    ]);
    table.bar("handle.track, a million pending / one", million / one, 1.30);
    table.ratio("tokio::spawn, a million pending / one", spawn_million / spawn_one);
}

fn wake_ups(table: &mut Table) {
    let runtime = &runtime(1);
    let [ours, rival, part] = in_turn(
        RUNS,
        [&mut || wake_up::drain(runtime, WAKE_UPS), &mut || wake_up::tracker(runtime, WAKE_UPS), &mut || {
            wake_up::by_hand(runtime, WAKE_UPS)
        }],
    );
    table.head("From the end of the last event to the return of who waits for it");
    table.nanos(&[("Drain", ours), ("TaskTracker::wait", rival), ("a part of it by hand", part)]);
    table.bar("Drain / TaskTracker::wait", ours / rival, 1.20);
    table.ratio("a part of it by hand / TaskTracker::wait", part / rival);
}

/// Counted in a process of its own, whose allocator is slow because it counts.
fn bytes(table: &mut Table) -> Result<(), Box<dyn Error>> {
    let bytes = env::current_exe()?.with_file_name("bytes");
    let output = Command::new(&bytes).output().map_err(|error| format!("{}: {error}", bytes.display()))?;
    let output = String::from_utf8(output.stdout)?;
    let means = output.lines().last().unwrap_or_default().split(' ');
    let means: Vec<f64> = means.map(str::parse).collect::<Result<_, _>>()?;
    let [spawned, tracked, recorded] = means[..] else { return Err(format!("bytes: {output}").into()) };
    table.head("Memory of a pending event, the mean of futures of 16 to 240 bytes");
    for (name, bytes) in
        [("tokio::spawn", spawned), ("handle.track", tracked), ("events.track, its exchange open", recorded)]
    {
        println!("  {name:<58} {bytes:>9.1} bytes");
    }
    table.bar("handle.track, bytes more than tokio::spawn", tracked - spawned, 128.0);
    Ok(())
}
