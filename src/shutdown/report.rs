//! [`ShutdownReport`]: how each step of a shutdown ended.

use std::{
    fmt,
    io::{self, Write},
    process,
    time::Duration,
};

use crate::{
    drain::{DrainError, DrainReport},
    util::text::Seconds,
};

/// The result of a [shutdown](crate::Shutdown): how the servers, the drain and the other steps ended.
///
/// `Display` writes a line for the servers, one for the drain, and one for each other step that did not complete.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use tower_track_events::{StepOutcome, TrackEventsHandle};
///
/// let handle = TrackEventsHandle::new();
/// let report = handle.shutdown().serve(|_stop| async { Err::<(), _>("the port is taken") }).await;
/// assert_eq!(report.servers, StepOutcome::Failed("the port is taken".into()));
/// assert!(report.drain.is_ok());
/// assert_eq!(report.exit_code(), 1);
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "print it and end the process with its exit code: `.exit()`"]
#[non_exhaustive]
pub struct ShutdownReport {
    /// How the future of [`serve`](crate::Shutdown::serve) ended.
    pub servers: StepOutcome,
    /// How the future of [`on_signal`](crate::Shutdown::on_signal) ended.
    pub on_signal: StepOutcome,
    /// The result of the drain.
    pub drain: Result<DrainReport, DrainError>,
    /// How the future of [`flush`](crate::Shutdown::flush) ended.
    pub flush: StepOutcome,
    pub(super) cause: Cause,
    /// The time from the signal to the end of the servers.
    pub(super) servers_elapsed: Duration,
}

/// How a step of a [shutdown](crate::Shutdown) ended.
///
/// # Examples
///
/// ```
/// use tower_track_events::{ShutdownReport, StepOutcome};
///
/// fn needs_more_time(report: &ShutdownReport) -> bool {
///     report.servers == StepOutcome::Unfinished
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum StepOutcome {
    /// The step ended by itself.
    Completed,
    /// The step returned an error. Contains the error and its causes, in one line.
    Failed(String),
    /// The step panicked. Contains the message, in one line.
    Panicked(String),
    /// The step was dropped before its end: its time was over, or there was a second signal.
    Unfinished,
}

/// What began a shutdown.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cause {
    OsSignal(&'static str),
    /// The future that the user set instead of the operating system's signals.
    Signal,
    BeginDrain,
    ServersEnded,
}

impl ShutdownReport {
    /// Returns the exit code for the process: 0 or 1.
    ///
    /// It is 0 if all of these are true, and 1 otherwise:
    ///
    /// - The drain was `Ok`, and its [own code](DrainReport::exit_code) is 0.
    /// - The servers and `on_signal` neither failed nor panicked.
    /// - `flush` completed.
    ///
    /// Servers that were dropped unfinished do not count, because a client with half a request head is no failure. If a
    /// request of such a server was still open, the drain was not `Ok`.
    pub fn exit_code(&self) -> i32 {
        let Self { servers, on_signal, drain, flush, .. } = self;
        let has_failed = |step: &StepOutcome| matches!(step, StepOutcome::Failed(_) | StepOutcome::Panicked(_));
        let drained = drain.as_ref().is_ok_and(|report| report.exit_code() == 0);
        let is_good = drained && !has_failed(servers) && !has_failed(on_signal) && *flush == StepOutcome::Completed;
        i32::from(!is_good)
    }

    /// Prints the report to standard error and ends the process with the [exit code](Self::exit_code).
    ///
    /// It runs no destructors of `main`: flush clients and files in [`flush`](crate::Shutdown::flush). A return from
    /// `main` would drop the runtime, which waits for blocking threads without a limit.
    pub fn exit(self) -> ! {
        // Standard error may be closed. That is no reason to panic.
        let _ = writeln!(io::stderr(), "{self}");
        process::exit(self.exit_code())
    }
}

impl fmt::Display for ShutdownReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { servers, on_signal, drain, flush, cause, servers_elapsed } = self;
        let elapsed = Seconds(*servers_elapsed);
        match (servers, cause) {
            (StepOutcome::Completed, Cause::ServersEnded) => write!(f, "servers ended without a signal")?,
            (StepOutcome::Completed, _) => write!(f, "servers stopped {elapsed} after {cause}")?,
            (StepOutcome::Unfinished, _) => write!(f, "servers dropped unfinished {elapsed} after {cause}")?,
            (failed, _) => write!(f, "servers {failed}")?,
        }
        let have_failed = matches!(servers, StepOutcome::Failed(_) | StepOutcome::Panicked(_));
        let have_never_served = have_failed && matches!(cause, Cause::ServersEnded);
        match drain {
            // The line of an unused handle would ask whether it is the handle of the layer. Servers that could not
            // start have had no request to pass to it, so the question would mislead.
            Ok(report) if have_never_served && report.is_unused() => f.write_str("\ndrained: no request has come")?,
            Ok(report) => write!(f, "\n{report}")?,
            Err(error) => write!(f, "\n{error}")?,
        }
        for (name, step) in [("on_signal", on_signal), ("flush", flush)] {
            if *step != StepOutcome::Completed {
                write!(f, "\n{name} {step}")?;
            }
        }
        Ok(())
    }
}

/// Writes `failed: Address already in use (os error 98)`.
impl fmt::Display for StepOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Completed => f.write_str("completed"),
            Self::Failed(error) => write!(f, "failed: {error}"),
            Self::Panicked(message) => write!(f, "panicked: {message}"),
            Self::Unfinished => f.write_str("dropped unfinished"),
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OsSignal(name) => name,
            Self::Signal => "the signal",
            Self::BeginDrain => "`begin_drain`",
            Self::ServersEnded => "the end of the servers",
        })
    }
}
