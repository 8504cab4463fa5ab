//! The instances of the examples, and the servers.

use std::{
    env,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{self, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

/// Far longer than any process takes to start or to stop.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Instance {
    child: Child,
    pub(crate) address: SocketAddr,
    /// The file for orders that it could not store in time.
    pub(crate) spill: PathBuf,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Instance {
    /// Starts an example, which is built beside this program.
    pub(crate) async fn start(name: &str) -> Self {
        Self::start_with(name, &[]).await
    }

    /// With these environment variables.
    pub(crate) async fn start_with(name: &str, settings: &[(&str, &str)]) -> Self {
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        let program = env::current_exe().expect("this program has a path");
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let spill = env::temp_dir().join(format!("orders-{}-{number}.undelivered.jsonl", process::id()));
        let mut child = Command::new(program.with_file_name(format!("stores-{name}")))
            .env("ADDR", "127.0.0.1:0")
            .env("DRAIN_LIMIT_MS", "10000")
            .env("SPILL", &spill)
            .envs(settings.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("the examples are built: cargo build -p 'stores-*'");
        let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let mut instance = Self { child, address: (Ipv4Addr::UNSPECIFIED, 0).into(), spill, lines };
        let line = instance.line().await.unwrap_or_else(|| panic!("stores-{name} cannot start"));
        let address = line.strip_prefix("listening on http://").expect("it says where it listens");
        instance.address = address.parse().expect("an address");
        instance
    }

    /// Its next line of output; `None` at the end. The output is too short to fill the pipe.
    pub(crate) async fn line(&mut self) -> Option<String> {
        timeout(PATIENCE, self.lines.next_line()).await.expect("a line comes").expect("it can be read")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let id = self.child.id().expect("it has not been waited for");
        let pid = Pid::from_raw(id as i32).expect("a process has an id above zero");
        kill_process(pid, signal).expect("it runs");
    }

    /// Its exit code; `None` if a signal has ended it.
    pub(crate) async fn end(mut self) -> Option<i32> {
        let status = timeout(PATIENCE, self.child.wait()).await.expect("it ends").expect("it can be waited for");
        status.code()
    }
}

/// Starts or stops one of the servers.
pub(crate) async fn servers(verb: &str, name: &str) {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../scripts/servers");
    let status = Command::new(script).args([verb, name]).status().await.expect("the script is there");
    assert!(status.success(), "{verb} {name}");
}
