//! The CPU time of a real server per request: what the layer and its events cost where the caches are cold and wake-ups
//! are real.
//!
//! ```text
//! scripts/end-to-end
//! end-to-end [--runs N] [--rounds N] [--seconds S] [--connections C] [--modes A,B,..] [--baseline DIRECTORY]
//! ```
//!
//! For each mode of `server`, `wrk` loads a server on the loopback interface for some seconds. The user and the system
//! time of the server's process, from `/proc`, is divided by the requests that `wrk` counts. The modes, and with a
//! baseline, whose server is in `DIRECTORY`, the two revisions, run in turn. Each figure is the first quartile over the
//! rounds. Each round starts the server anew, so that the address layout of one process decides nothing. *Behind* is
//! the longest time, in milliseconds, from the end of the load to the end of the last event.
//!
//! The exit status is 1 if the crate as it is misses a bar, as the median of the runs.

#![allow(clippy::print_stdout, reason = "the program prints its results")]

use std::{
    env,
    error::Error,
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, ExitCode, Stdio},
    time::Duration,
};

use tokio::time::Instant;
use tower_track_events_benches::statistics::{first_quartile, median};

/// The modes, and how many events each has for a request.
const MODES: [(&str, u64); 7] =
    [("bare", 0), ("layer", 0), ("tracker", 1), ("handle", 1), ("kept", 1), ("tracker4", 4), ("kept4", 4)];

struct Bar {
    name: &'static str,
    mode: &'static str,
    rival: &'static str,
    time: fn(&Times) -> f64,
    bar: Option<f64>,
    /// How far below the baseline the ratio must be in each run.
    below_baseline: Option<f64>,
}

#[rustfmt::skip]
const BARS: [Bar; 5] = [
    Bar { name: "kept / tracker", mode: "kept", rival: "tracker", time: Times::total, bar: Some(1.12), below_baseline: Some(0.08) },
    Bar { name: "kept / tracker, user time", mode: "kept", rival: "tracker", time: Times::user, bar: Some(1.35), below_baseline: None },
    Bar { name: "layer / bare", mode: "layer", rival: "bare", time: Times::total, bar: Some(1.05), below_baseline: None },
    Bar { name: "kept4 / tracker4", mode: "kept4", rival: "tracker4", time: Times::total, bar: None, below_baseline: None },
    Bar { name: "handle / tracker", mode: "handle", rival: "tracker", time: Times::total, bar: None, below_baseline: None },
];

/// Microseconds per request, for each round.
#[derive(Default)]
struct Times {
    user: Vec<f64>,
    system: Vec<f64>,
    total: Vec<f64>,
    /// The longest time from the end of the load to the end of the last event.
    behind: Duration,
}

impl Times {
    fn push(&mut self, round: &Round) {
        self.user.push(round.user);
        self.system.push(round.system);
        self.total.push(round.user + round.system);
        self.behind = self.behind.max(round.behind);
    }

    fn user(&self) -> f64 {
        first_quartile(&self.user)
    }

    fn system(&self) -> f64 {
        first_quartile(&self.system)
    }

    fn total(&self) -> f64 {
        first_quartile(&self.total)
    }
}

/// The crate at one revision.
struct Revision {
    name: &'static str,
    server: PathBuf,
}

struct Arguments {
    runs: usize,
    rounds: usize,
    seconds: u64,
    connections: usize,
    modes: Vec<(&'static str, u64)>,
    baseline: Option<PathBuf>,
}

impl Arguments {
    fn parse() -> Result<Self, Box<dyn Error>> {
        let mut parsed =
            Self { runs: 1, rounds: 15, seconds: 2, connections: 16, modes: MODES.to_vec(), baseline: None };
        let mut arguments = env::args().skip(1);
        while let Some(option) = arguments.next() {
            let value = arguments.next().ok_or_else(|| format!("{option} needs a value"))?;
            match &*option {
                "--runs" => parsed.runs = value.parse()?,
                "--rounds" => parsed.rounds = value.parse()?,
                "--seconds" => parsed.seconds = value.parse()?,
                "--connections" => parsed.connections = value.parse()?,
                "--modes" => parsed.modes = modes(&value)?,
                "--baseline" => parsed.baseline = Some(value.into()),
                _ => return Err(format!("no such option: {option}").into()),
            }
        }
        let bounds =
            [(parsed.runs, 10), (parsed.rounds, 100), (parsed.seconds as usize, 30), (parsed.connections, 1_000)];
        if bounds.iter().any(|(value, most)| !(1..=*most).contains(value)) {
            return Err("1 to 10 runs, 1 to 100 rounds, 1 to 30 seconds, 1 to 1000 connections".into());
        }
        Ok(parsed)
    }
}

fn modes(list: &str) -> Result<Vec<(&'static str, u64)>, String> {
    let mode = |name| MODES.into_iter().find(|(mode, _)| *mode == name).ok_or_else(|| format!("no such mode: {name}"));
    list.split(',').map(mode).collect()
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments = Arguments::parse()?;
    let mut revisions = vec![Revision { name: "now", server: env::current_exe()?.with_file_name("server") }];
    let baseline = arguments.baseline.as_ref();
    revisions.extend(baseline.map(|place| Revision { name: "baseline", server: place.join("server") }));

    let mut ratios: Vec<Vec<Vec<f64>>> = Vec::new();
    for run in 1..=arguments.runs {
        let times = measure(&arguments, &revisions)?;
        println!("\nRun {run}: microseconds of CPU time per request, first quartiles of {} rounds", arguments.rounds);
        print_times(&arguments, &revisions, &times);
        ratios.push(print_ratios(&arguments, &revisions, &times));
    }
    let missed = print_bars(&revisions, &ratios);
    println!("\n{missed} bars missed");
    Ok(if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Returns the times of each mode, in the order of the arguments, and of each revision.
fn measure(arguments: &Arguments, revisions: &[Revision]) -> Result<Vec<Vec<Times>>, Box<dyn Error>> {
    let mut times: Vec<Vec<Times>> =
        arguments.modes.iter().map(|_| revisions.iter().map(|_| Times::default()).collect()).collect();
    for round in 0..arguments.rounds {
        eprint!("\rround {} of {}", round + 1, arguments.rounds);
        for ((mode, events), times) in arguments.modes.iter().zip(&mut times) {
            for turn in 0..revisions.len() {
                // Neither revision is always the first.
                let number = (turn + round) % revisions.len();
                let round = one_round(&revisions[number].server, mode, *events, arguments)
                    .map_err(|error| format!("{mode}, {}: {error}", revisions[number].name))?;
                times[number].push(&round);
            }
        }
    }
    eprintln!();
    Ok(times)
}

/// One server under load.
fn one_round(binary: &Path, mode: &str, events: u64, arguments: &Arguments) -> Result<Round, Box<dyn Error>> {
    let mut server = Server::start(binary, mode)?;
    let before = server.cpu_time()?;
    let requests = load(&server.address, arguments)?;
    // What is left of the events is part of the cost.
    let loaded = Instant::now();
    server.all_events(requests * events)?;
    let behind = loaded.elapsed();
    let after = server.cpu_time()?;
    let [user, system] = [0, 1].map(|part| (after[part] - before[part]) / requests as f64);
    Ok(Round { user, system, behind })
}

struct Round {
    /// Microseconds of CPU time per request.
    user: f64,
    system: f64,
    /// From the end of the load to the end of the last event.
    behind: Duration,
}

/// A server in a process of its own, which is killed at the latest when this is dropped.
struct Server {
    child: Child,
    output: BufReader<ChildStdout>,
    address: String,
}

impl Server {
    fn start(binary: &Path, mode: &str) -> Result<Self, Box<dyn Error>> {
        let child = Command::new(binary).arg(mode).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.map_err(|error| format!("{}: {error}", binary.display()))?;
        let output = BufReader::new(child.stdout.take().ok_or("it has no output")?);
        let mut server = Self { child, output, address: String::new() };
        server.output.read_line(&mut server.address)?;
        server.address.truncate(server.address.trim_end().len());
        if server.address.is_empty() {
            return Err("it did not start".into());
        }
        Ok(server)
    }

    /// Microseconds of user and of system time so far.
    fn cpu_time(&self) -> Result<[f64; 2], Box<dyn Error>> {
        // Linux gives them in hundredths of a second on every common architecture.
        const TICK: f64 = 10_000.0;
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The name in parentheses may contain spaces. Fields 14 and 15 of proc_pid_stat(5) are the 12th and 13th after
        // it.
        let (_, fields) = stat.rsplit_once(") ").ok_or("no name in stat")?;
        let fields: Vec<_> = fields.split(' ').collect();
        let time =
            |field: usize| Ok::<_, Box<dyn Error>>(fields.get(field).ok_or("too few fields")?.parse::<f64>()? * TICK);
        Ok([time(11)?, time(12)?])
    }

    /// Waits until so many events have ended.
    fn all_events(&mut self, count: u64) -> Result<(), Box<dyn Error>> {
        writeln!(self.child.stdin.as_mut().ok_or("it has no input")?, "{count}")?;
        let mut ended = String::new();
        self.output.read_line(&mut ended)?;
        match ended.trim().parse::<u64>()? {
            ended if ended < count => Err(format!("{ended} of {count} events have ended").into()),
            _ => Ok(()),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Loads the server, and returns how many requests were answered.
fn load(address: &str, arguments: &Arguments) -> Result<u64, Box<dyn Error>> {
    let output = Command::new("wrk")
        .args(["-t1", &format!("-c{}", arguments.connections), &format!("-d{}s", arguments.seconds)])
        .arg(format!("http://{address}/"))
        .output()
        .map_err(|error| format!("wrk: {error}"))?;
    let output = String::from_utf8(output.stdout)?;
    if output.contains("Non-2xx") || output.contains("Socket errors") {
        return Err(format!("wrk: {output}").into());
    }
    let requests = output.lines().find_map(|line| line.trim().split_once(" requests in "));
    Ok(requests.ok_or_else(|| format!("wrk: {output}"))?.0.parse()?)
}

fn print_times(arguments: &Arguments, revisions: &[Revision], times: &[Vec<Times>]) {
    print!("  {:<28}", "");
    revisions
        .iter()
        .for_each(|revision| print!("  {:>8} {:>6} {:>6} {:>6}", revision.name, "user", "system", "behind"));
    println!();
    for ((mode, _), times) in arguments.modes.iter().zip(times) {
        print!("  {mode:<28}");
        for times in times {
            let behind = times.behind.as_millis();
            print!("  {:>8.2} {:>6.2} {:>6.2} {behind:>6}", times.total(), times.user(), times.system());
        }
        println!();
    }
}

/// Prints and returns the ratio of each bar for each revision; NaN where a mode was left out.
fn print_ratios(arguments: &Arguments, revisions: &[Revision], times: &[Vec<Times>]) -> Vec<Vec<f64>> {
    let of = |mode: &str| arguments.modes.iter().position(|(name, _)| *name == mode).map(|place| &times[place]);
    let ratios_of = |bar: &Bar| match (of(bar.mode), of(bar.rival)) {
        (Some(times), Some(rivals)) => {
            times.iter().zip(rivals).map(|(times, rival)| (bar.time)(times) / (bar.time)(rival)).collect()
        }
        _ => vec![f64::NAN; revisions.len()],
    };
    let ratios: Vec<Vec<f64>> = BARS.iter().map(ratios_of).collect();
    for (bar, ratios) in BARS.iter().zip(&ratios).filter(|(_, ratios)| !ratios[0].is_nan()) {
        print!("  {:<28}", bar.name);
        ratios.iter().for_each(|ratio| print!("  {ratio:>8.3} {:>20}", ""));
        println!();
    }
    ratios
}

/// Prints the median of each ratio over the runs, and returns how many bars are missed.
fn print_bars(revisions: &[Revision], runs: &[Vec<Vec<f64>>]) -> usize {
    println!("\nRatios, medians of {} runs", runs.len());
    let mut missed = 0;
    for (number, bar) in BARS.iter().enumerate() {
        let ratio_of = |revision: usize| median(&runs.iter().map(|run| run[number][revision]).collect::<Vec<_>>());
        let ratio = ratio_of(0);
        if ratio.is_nan() {
            continue;
        }
        print!("  {:<28}", bar.name);
        (0..revisions.len()).for_each(|revision| print!(" {:>8.3}", ratio_of(revision)));
        let mut check = |text: String, holds: bool| {
            missed += usize::from(!holds);
            print!("   {text} {}", if holds { "ok" } else { "MISSED" });
        };
        if let Some(most) = bar.bar {
            check(format!("bar {most:.2}"), ratio <= most);
        }
        if let (Some(below), 2) = (bar.below_baseline, revisions.len()) {
            let holds = runs.iter().all(|run| run[number][0] <= run[number][1] - below);
            check(format!("{below:.2} below the baseline in each run"), holds);
        }
        println!();
    }
    missed
}
