//! The process of a case: this test binary, which is started again to serve, and is stopped by signals.

use std::{env, net::SocketAddr, process::Stdio, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines},
    process::{Child, ChildStderr, ChildStdout, Command},
    time::{Instant, timeout},
};

use super::server::{SETTINGS, Settings};

/// Far longer than any step takes, even on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// It is killed on drop.
pub(super) struct Process {
    child: Child,
    stdout: Lines<BufReader<ChildStdout>>,
    stderr: ChildStderr,
    /// The lines of its standard output that have been read.
    seen: Vec<String>,
}

/// What is left of a process.
#[derive(Debug)]
pub(super) struct End {
    pub(super) code: Option<i32>,
    /// Since the call of [`Process::end`].
    pub(super) took: Duration,
    pub(super) stdout: Vec<String>,
    pub(super) stderr: String,
}

impl Process {
    pub(super) fn start(settings: &Settings) -> Self {
        let mut child = Command::new(env::current_exe().expect("this binary has a path"))
            .args(["--exact", "shutdown_cases::server::process", "--ignored", "--nocapture"])
            .env(SETTINGS, serde_json::to_string(settings).expect("settings are plain data"))
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("this binary can be started");
        let stdout = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let stderr = child.stderr.take().expect("it is piped");
        Self { child, stdout, stderr, seen: Vec::new() }
    }

    /// Waits until it has printed a line that starts with `start`, and returns the rest of that line.
    pub(super) async fn printed(&mut self, start: &str) -> Result<String, String> {
        if let Some(rest) = self.seen.iter().find_map(|line| line.strip_prefix(start)) {
            return Ok(rest.to_owned());
        }
        loop {
            let line = timeout(PATIENCE, self.stdout.next_line()).await;
            let line = line.map_err(|_| format!("it has not printed {start:?}"))?.map_err(|error| error.to_string())?;
            let Some(line) = line else { return Err(format!("it ended and had not printed {start:?}")) };
            self.seen.push(line.clone());
            if let Some(rest) = line.strip_prefix(start) {
                return Ok(rest.to_owned());
            }
        }
    }

    pub(super) async fn address(&mut self, of: &str) -> Result<SocketAddr, String> {
        self.printed(of).await?.trim().parse().map_err(|error| format!("{of}: {error}"))
    }

    pub(super) fn signal(&self, signal: Signal) {
        let pid = self.child.id().and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
        // An error means that it has ended, which is seen by what is left of it.
        let _ = pid.map(|pid| kill_process(pid, signal));
    }

    /// Waits until it has ended.
    pub(super) async fn end(mut self) -> Result<End, String> {
        let began = Instant::now();
        let read_stdout = async {
            while let Ok(Some(line)) = self.stdout.next_line().await {
                self.seen.push(line);
            }
        };
        let read_stderr = async {
            let mut text = String::new();
            let _ = self.stderr.read_to_string(&mut text).await;
            text
        };
        let ends = async { tokio::join!(self.child.wait(), read_stdout, read_stderr) };
        let (status, (), stderr) = timeout(PATIENCE, ends).await.map_err(|_| "it does not end")?;
        let code = status.map_err(|error| error.to_string())?.code();
        Ok(End { code, took: began.elapsed(), stdout: self.seen, stderr })
    }
}
