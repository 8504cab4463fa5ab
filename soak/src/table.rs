//! The table of results.

use std::{fmt::Display, process::ExitCode, time::Duration};

#[derive(Default)]
pub(crate) struct Table {
    failed: usize,
    rows: Vec<String>,
}

impl Table {
    /// Adds a figure with its bar, and prints the row at once, since the next may take a while.
    pub(crate) fn row(&mut self, name: &str, figure: impl Display, bar: &str, holds: bool) {
        self.failed += usize::from(!holds);
        let result = if holds { "ok" } else { "FAILED" };
        let row = format!("{name:<34} {:>12}   {bar:<22} {result}", figure.to_string());
        eprintln!("{row}");
        self.rows.push(row);
    }

    pub(crate) fn print(self, took: Duration) -> ExitCode {
        println!("\n{:<34} {:>12}   {:<22}", "what", "figure", "bar");
        self.rows.iter().for_each(|row| println!("{row}"));
        println!("{} of {} rows failed, {:.0} s", self.failed, self.rows.len(), took.as_secs_f64());
        if self.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
