//! What an event, a request and a drain cost, against what a user would pick instead: tables, and a bar for each ratio.
//!
//! ```text
//! scripts/costs
//! cost [--rounds N] [--baseline DIRECTORY] [--figures FILE]
//! ```
//!
//! Wall time, without a network. Each figure is the median over rounds. Each round is a process of its own (`round`),
//! and with a baseline, whose binaries are in `DIRECTORY`, the two revisions run in turn. `--figures` writes the
//! figures for `plot`. The exit status is 1 if the crate as it is misses a bar.

#![allow(clippy::print_stdout, reason = "the program prints its results")]

use std::{
    env,
    error::Error,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use tower_track_events_benches::statistics::median;

const GROUPS: [&str; 5] = ["events", "requests", "admission", "among", "wake-up"];

/// A ratio, or a difference, of two figures of one table.
struct Bar {
    name: &'static str,
    table: &'static str,
    figure: &'static str,
    rival: &'static str,
    of: fn(f64, f64) -> f64,
    bar: f64,
}

impl Bar {
    const fn ratio(
        name: &'static str,
        table: &'static str,
        figure: &'static str,
        rival: &'static str,
        bar: f64,
    ) -> Self {
        Self { name, table, figure, rival, of: |figure, rival| figure / rival, bar }
    }

    fn value(&self, figures: &Figures) -> Result<f64, Box<dyn Error>> {
        Ok((self.of)(figures.median(self.table, self.figure)?, figures.median(self.table, self.rival)?))
    }
}

#[rustfmt::skip]
const BARS: [Bar; 17] = [
    Bar::ratio("event that yields once / tokio::spawn, one thread", "An event that yields once, one thread", "handle.track", "tokio::spawn", 1.7),
    Bar::ratio("event that yields once / tokio::spawn, two workers", "An event that yields once, two workers", "handle.track", "tokio::spawn", 1.7),
    Bar::ratio("event that sleeps 1 ms / tokio::spawn, one thread", "An event that sleeps 1 ms, one thread", "handle.track", "tokio::spawn", 1.3),
    Bar::ratio("event that sleeps 1 ms / tokio::spawn, two workers", "An event that sleeps 1 ms, two workers", "handle.track", "tokio::spawn", 1.3),
    Bar::ratio("event behind a oneshot / tokio::spawn, one thread", "An event that waits for a oneshot, one thread", "handle.track", "tokio::spawn", 1.5),
    Bar::ratio("event behind a oneshot / tokio::spawn, two workers", "An event that waits for a oneshot, two workers", "handle.track", "tokio::spawn", 1.5),
    Bar::ratio("event that is ready at once / tokio::spawn, one thread", "An event that is ready at once, one thread", "handle.track", "tokio::spawn", 1.7),
    Bar::ratio("event that is ready at once / tokio::spawn, two workers", "An event that is ready at once, two workers", "handle.track", "tokio::spawn", 1.7),
    Bar::ratio("layer, one event / AddExtension and one spawn, one thread", "A request, beyond a bare service, one thread", "the layer, one event that yields", "AddExtension<TaskTracker>, one spawn", 2.2),
    Bar::ratio("layer, one event / AddExtension and one spawn, two workers", "A request, beyond a bare service, two workers", "the layer, one event that yields", "AddExtension<TaskTracker>, one spawn", 2.2),
    Bar::ratio("layer, four events / AddExtension and four spawns, one thread", "A request, beyond a bare service, one thread", "the layer, four events that yield", "AddExtension<TaskTracker>, four spawns", 1.1),
    Bar::ratio("layer, four events / AddExtension and four spawns, two workers", "A request, beyond a bare service, two workers", "the layer, four events that yield", "AddExtension<TaskTracker>, four spawns", 1.1),
    Bar::ratio("layer, no event / TraceLayer without a subscriber", "A request, beyond a bare service, one thread", "the layer, no event", "TraceLayer without a subscriber", 0.8),
    Bar { name: "bytes of a pending event more than of a spawned task", table: BYTES, figure: "handle.track", rival: "tokio::spawn", of: |figure, rival| figure - rival, bar: 160.0 },
    Bar::ratio("handle.guard(), two threads / one thread", "An admission and its end", "handle.guard(), each of two threads", "handle.guard(), one thread", 1.5),
    Bar::ratio("event among 1,000,000 pending / among 1", "An event that is ready at once, while others are pending", "handle.track, 1,000,000 pending", "handle.track, 1 pending", 1.3),
    Bar::ratio("Drain / TaskTracker::wait, from the last event to the return", "From the end of the last event to the return of what waits for it", "Drain", "TaskTracker::wait", 1.2),
];

/// The table that `bytes` prints.
const BYTES: &str = "Bytes of a pending event, the mean of futures of 16 to 240 bytes";

/// What one revision of the crate was measured at, in the order in which it was printed first.
#[derive(Default)]
struct Figures(Vec<(String, String, Vec<f64>)>);

impl Figures {
    /// Runs a binary and collects what it prints.
    fn collect(&mut self, binary: &Path, argument: Option<&str>) -> Result<(), Box<dyn Error>> {
        let output = Command::new(binary).args(argument).output();
        let output = output.map_err(|error| format!("{}: {error}", binary.display()))?;
        if !output.status.success() {
            return Err(format!("{}: {}", binary.display(), String::from_utf8_lossy(&output.stderr)).into());
        }
        for line in String::from_utf8(output.stdout)?.lines() {
            let [table, name, value] = *line.split('\t').collect::<Vec<_>>() else {
                return Err(format!("not a figure: {line}").into());
            };
            let value = value.parse()?;
            match self.0.iter_mut().find(|(of, figure, _)| of == table && figure == name) {
                Some((.., values)) => values.push(value),
                None => self.0.push((table.to_owned(), name.to_owned(), vec![value])),
            }
        }
        Ok(())
    }

    fn median(&self, table: &str, name: &str) -> Result<f64, String> {
        let figure = self.0.iter().find(|(of, figure, _)| of == table && figure == name);
        figure.map(|(.., values)| median(values)).ok_or_else(|| format!("no figure: {table}, {name}"))
    }
}

struct Arguments {
    rounds: usize,
    baseline: Option<PathBuf>,
    figures: Option<PathBuf>,
}

impl Arguments {
    fn parse() -> Result<Self, Box<dyn Error>> {
        let mut parsed = Self { rounds: 11, baseline: None, figures: None };
        let mut arguments = env::args().skip(1);
        while let Some(option) = arguments.next() {
            let value = arguments.next().ok_or_else(|| format!("{option} needs a value"))?;
            match &*option {
                "--rounds" => parsed.rounds = value.parse()?,
                "--baseline" => parsed.baseline = Some(value.into()),
                "--figures" => parsed.figures = Some(value.into()),
                _ => return Err(format!("no such option: {option}").into()),
            }
        }
        if parsed.rounds == 0 {
            return Err("at least one round".into());
        }
        Ok(parsed)
    }
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments = Arguments::parse()?;
    let own = env::current_exe()?.parent().ok_or("no directory")?.to_owned();
    let mut revisions = vec![(own, Figures::default())];
    revisions.extend(arguments.baseline.map(|directory| (directory, Figures::default())));

    for round in 1..=arguments.rounds {
        eprint!("\rround {round} of {}", arguments.rounds);
        for group in GROUPS {
            for (directory, figures) in &mut revisions {
                figures.collect(&directory.join("round"), Some(group))?;
            }
            // Neither revision is always the first.
            revisions.reverse();
        }
    }
    eprintln!();
    if (arguments.rounds * GROUPS.len()) % 2 == 1 {
        revisions.reverse();
    }
    for (directory, figures) in &mut revisions {
        // Exact, so once is enough.
        figures.collect(&directory.join("bytes"), None)?;
    }

    let revisions: Vec<_> = revisions.into_iter().map(|(_, figures)| figures).collect();
    print_figures(&revisions)?;
    if let Some(path) = arguments.figures {
        fs::write(path, for_plot(&revisions[0]))?;
    }
    let missed = print_bars(&revisions)?;
    println!("\n{missed} of {} bars missed", BARS.len());
    Ok(if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints a column for each revision, the crate as it is first.
fn print_figures(revisions: &[Figures]) -> Result<(), Box<dyn Error>> {
    let mut last = "";
    for (table, name, _) in &revisions[0].0 {
        if table != last {
            let unit = if table == BYTES { "" } else { ", nanoseconds" };
            println!("\n{table}{unit}");
            print_head(revisions.len());
            last = table;
        }
        print!("  {name:<62}");
        for figures in revisions {
            print!(" {:>9.1}", figures.median(table, name)?);
        }
        println!();
    }
    Ok(())
}

/// Prints the ratios, and returns how many bars the crate as it is misses.
fn print_bars(revisions: &[Figures]) -> Result<usize, Box<dyn Error>> {
    println!("\nRatios of medians, and the difference in bytes");
    print_head(revisions.len());
    let mut missed = 0;
    for bar in &BARS {
        print!("  {:<62}", bar.name);
        for figures in revisions {
            print!(" {:>9.2}", bar.value(figures)?);
        }
        let holds = bar.value(&revisions[0])? <= bar.bar;
        missed += usize::from(!holds);
        println!("  bar {:>6.2} {}", bar.bar, if holds { "ok" } else { "MISSED" });
    }
    Ok(missed)
}

fn print_head(revisions: usize) {
    if revisions > 1 {
        println!("  {:<62} {:>9} {:>9}", "", "now", "baseline");
    }
}

/// A line for each figure that is a time: table, name and value, with tabs between.
fn for_plot(figures: &Figures) -> String {
    let mut lines = String::new();
    for (table, name, values) in figures.0.iter().filter(|(table, ..)| table != BYTES) {
        writeln!(lines, "{table}\t{name}\t{:.1}", median(values)).expect("a string takes everything");
    }
    lines
}
