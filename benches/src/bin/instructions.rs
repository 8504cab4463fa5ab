//! How many instructions an event, a request and an admission take, counted by callgrind, which gives the same number
//! each time.
//!
//! ```text
//! scripts/instructions            compares with benches/instructions.tsv
//! scripts/instructions --record   records the figures in that file
//! ```
//!
//! A figure more than one per cent above the recorded one is an error; one that is as much below should be recorded.
//! With another compiler or C library than at the record, only the ratios to the rivals are compared, with a tolerance
//! of ten per cent. A figure above its bar is an error as well. `--record` prints the bars, and a miss is no error
//! there.

#![allow(clippy::print_stdout, reason = "the program prints its results")]

use std::{
    collections::BTreeMap,
    env,
    error::Error,
    fmt::Write as _,
    fs,
    hint::black_box,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use tokio::runtime::Runtime;
use tower::Layer;
use tower_track_events::{Exchange, TrackEventsLayer};
use tower_track_events_benches::{
    admission, among,
    event::{self, Kind},
    handle, request, runtime, wake_up, yields,
};

/// Gives a time, which is of no interest here.
type Subject = fn(&Runtime, usize) -> f64;

/// Each with its rival, if it has one.
const SUBJECTS: &[(&str, Option<&str>, Subject)] = &[
    ("tokio::spawn", None, |runtime, count| event::spawn(runtime, Kind::Ready, count)),
    ("TaskTracker::spawn", None, |runtime, count| event::tracker(runtime, Kind::Ready, count)),
    ("handle.track", Some("tokio::spawn"), |runtime, count| event::handle_track(runtime, Kind::Ready, count)),
    ("tokio::spawn, yields", None, |runtime, count| event::spawn(runtime, Kind::Yields, count)),
    ("TaskTracker::spawn, yields", None, |runtime, count| event::tracker(runtime, Kind::Yields, count)),
    (YIELDS, Some("tokio::spawn, yields"), |runtime, count| event::handle_track(runtime, Kind::Yields, count)),
    ("bare service", None, request::bare),
    ("TraceLayer", None, request::trace),
    ("AddExtension, one spawn", None, request::tracker::<1>),
    ("AddExtension, four spawns", None, request::tracker::<4>),
    (NO_EVENT, Some("TraceLayer"), request::layer::<0>),
    ("layer, one event", Some("AddExtension, one spawn"), request::layer::<1>),
    ("layer, four events", Some("AddExtension, four spawns"), request::layer::<4>),
    ("layer, an event of its own", Some("AddExtension, one spawn"), |runtime, count| {
        let layer = TrackEventsLayer::new(handle()).track("bench", |_: Exchange| yields());
        request::serve(runtime, count, layer.layer(request::handler(|_| ())))
    }),
    ("layer, an observer", None, |runtime, count| {
        let observe = |exchange: &Exchange| {
            black_box(exchange);
        };
        let layer = TrackEventsLayer::new(handle()).observe(observe);
        request::serve(runtime, count, layer.layer(request::handler(|_| ())))
    }),
    ("guard()", None, |_, count| admission::guard(1, count)),
    ("handle.track, 1,000 pending", None, |runtime, count| among::tracked(runtime, 1_000, count)),
    ("drain wake-up", None, wake_up::drain),
];

const YIELDS: &str = "handle.track, yields";
const NO_EVENT: &str = "layer, no event";

/// The ratio of an event that yields once to a bare spawn of the same.
const YIELDS_BAR: f64 = 1.60;
/// The instructions of a request without an event, those of the bare service included. Holds for the compiler and the C
/// library of the record. The aim is 2,511; what is above it are the reference through which an abort finds the events
/// of a request, and the lock of its exchange.
const NO_EVENT_BAR: f64 = 2_700.0;

const COUNT: usize = 2_000;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    match &*arguments.iter().map(String::as_str).collect::<Vec<_>>() {
        ["--run", number, count] => {
            let (_, _, subject) = SUBJECTS[number.parse::<usize>()?];
            subject(&runtime(1), count.parse()?);
            Ok(ExitCode::SUCCESS)
        }
        ["--record"] => record(),
        [] => compare(),
        _ => Err("nothing, or --record".into()),
    }
}

fn record() -> Result<ExitCode, Box<dyn Error>> {
    let mut text = format!("{}\n", environment()?);
    let counted = count_all()?;
    for (name, count) in &counted {
        println!("  {name:<30} {count:>8}");
        writeln!(text, "{name}\t{count}")?;
    }
    fs::write(recorded_path(), text)?;
    print_bars(&counted, true);
    Ok(ExitCode::SUCCESS)
}

fn compare() -> Result<ExitCode, Box<dyn Error>> {
    let text = fs::read_to_string(recorded_path())?;
    let mut lines = text.lines();
    let is_same_environment = lines.next() == Some(&*environment()?);
    let recorded: BTreeMap<&str, u64> = lines
        .filter_map(|line| line.split_once('\t'))
        .map(|(name, count)| Ok((name, count.parse()?)))
        .collect::<Result<_, Box<dyn Error>>>()?;
    let counted = count_all()?;
    let is_dearer = |new: f64, old: f64, by: f64| new / old - 1.0 > by;
    let mut dearer = 0;
    println!("{:<30} {:>8} {:>8} {:>8}  ratio to its rival", "instructions", "now", "then", "change");
    for (name, rival, _) in SUBJECTS {
        let now = counted[name] as f64;
        let then = *recorded.get(name).ok_or_else(|| format!("{name} was not recorded: --record"))? as f64;
        let mut is_wrong = is_same_environment && is_dearer(now, then, 0.01);
        let mut ratio = String::new();
        if let Some(rival) = rival {
            let ratio_now = now / counted[rival] as f64;
            let ratio_then = then / recorded.get(rival).copied().ok_or("a rival was not recorded")? as f64;
            is_wrong |= is_dearer(ratio_now, ratio_then, if is_same_environment { 0.05 } else { 0.10 });
            ratio = format!("{ratio_now:.2} (then {ratio_then:.2}) {rival}");
        }
        dearer += usize::from(is_wrong);
        // What became cheaper is no fault, but hides the next rise until it is recorded.
        let is_cheaper = is_same_environment && is_dearer(then, now, 0.01);
        let word = if is_wrong { "DEARER" } else { ["", "cheaper: record it"][usize::from(is_cheaper)] };
        println!("{name:<30} {now:>8} {then:>8} {:>+7.1}%  {ratio} {word}", (now / then - 1.0) * 100.0);
    }
    if !is_same_environment {
        println!("another compiler or C library than at the record: only the ratios were compared");
    }
    println!("{dearer} of {} figures are dearer than recorded", SUBJECTS.len());
    let missed = print_bars(&counted, is_same_environment);
    Ok(if dearer + missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Returns how many bars are missed.
fn print_bars(counted: &BTreeMap<&str, u64>, is_same_environment: bool) -> usize {
    let ratio = counted[YIELDS] as f64 / counted["tokio::spawn, yields"] as f64;
    let mut bars = vec![("an event that yields / a spawn of the same", ratio, YIELDS_BAR)];
    if is_same_environment {
        bars.push(("a request without an event", counted[NO_EVENT] as f64, NO_EVENT_BAR));
    }
    let mut missed = 0;
    for (name, value, bar) in bars {
        let holds = value <= bar;
        missed += usize::from(!holds);
        println!("{name:<45} {value:>8.2}, bar {bar:>8.2} {}", if holds { "ok" } else { "MISSED" });
    }
    missed
}

fn recorded_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("instructions.tsv")
}

/// What decides how many instructions there are, beside what is measured.
fn environment() -> Result<String, Box<dyn Error>> {
    let compiler = Command::new("rustc").arg("--version").output()?.stdout;
    // Without glibc, `ldd` has no such option, and says so in its first line.
    let library = Command::new("ldd").arg("--version").output().map(|output| output.stdout).unwrap_or_default();
    let first_line = |text| Ok(String::from_utf8(text)?.lines().next().unwrap_or("unknown").to_owned());
    let [compiler, library]: [Result<_, Box<dyn Error>>; 2] = [first_line(compiler), first_line(library)];
    Ok(format!("{}, {}, {}", compiler?, library?, env::consts::ARCH))
}

fn count_all() -> Result<BTreeMap<&'static str, u64>, Box<dyn Error>> {
    SUBJECTS.iter().enumerate().map(|(number, (name, _, _))| Ok((*name, count_one(number)?))).collect()
}

/// The difference of two runs, so that the start and the end of the program are not counted.
fn count_one(number: usize) -> Result<u64, Box<dyn Error>> {
    let (one, two) = (collect(number, COUNT)?, collect(number, 2 * COUNT)?);
    Ok((two - one) / COUNT as u64)
}

fn collect(number: usize, count: usize) -> Result<u64, Box<dyn Error>> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(env::current_exe()?)
        // The C library picks its copies by the processor. These every processor has.
        .env("GLIBC_TUNABLES", "glibc.cpu.hwcaps=-AVX2,-AVX2_Usable,-AVX_Fast_Unaligned_Load,-ERMS,-FSRM")
        .args(["--run", &number.to_string(), &count.to_string()])
        .output()
        .map_err(|error| format!("valgrind: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let count = said.lines().find_map(|line| line.split_once("Collected : "));
    let (_, count) = count.ok_or_else(|| format!("callgrind has not counted: {said}"))?;
    Ok(count.trim().parse()?)
}
