//! The table of results.

use std::{fmt::Display, process::ExitCode, time::Duration};

#[derive(Default)]
pub(crate) struct Table {
    failed: usize,
    count: usize,
    left_out: Vec<String>,
}

impl Table {
    pub(crate) fn head(&mut self, name: &str) {
        println!("{name}");
    }

    /// Adds a figure with its bar.
    pub(crate) fn row(&mut self, name: &str, figure: impl Display, bar: &str, holds: bool) {
        self.count += 1;
        self.failed += usize::from(!holds);
        let result = if holds { "ok" } else { "FAILED" };
        println!("  {name:<34} {:>18}   {bar:<18} {result}", figure.to_string());
    }

    pub(crate) fn left_out(&mut self, name: &str) {
        self.left_out.push(name.to_owned());
    }

    pub(crate) fn print(self, took: Duration) -> ExitCode {
        for name in &self.left_out {
            println!("left out, since its server does not run: {name}");
        }
        println!("{} of {} rows failed, {:.0} s", self.failed, self.count, took.as_secs_f64());
        if self.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
