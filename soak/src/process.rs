//! The processes: the soaked server, the example, and the tools.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::Stdio,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

use crate::client::Http1;

/// Far longer than any process takes to start or to stop.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Server {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    pub(crate) address: SocketAddr,
}

impl Server {
    pub(crate) async fn start(capacity: u64, event_ms: u64) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
        command.args(["serve", &capacity.to_string(), &event_ms.to_string()]);
        Self::spawn(command).await
    }

    pub(crate) async fn start_under_valgrind() -> Self {
        let mut command = Command::new("valgrind");
        command.args(["--quiet", "--undef-value-errors=no", "--leak-check=full"]);
        command.args(["--errors-for-leak-kinds=definite", "--error-exitcode=9"]);
        command.arg(std::env::current_exe().expect("this program has a path"));
        command.args(["serve", "65536", "1"]);
        Self::spawn(command).await
    }

    async fn spawn(mut command: Command) -> Self {
        // It logs the events that fail, which are part of the mix.
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("the server can be started");
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let line = next_line(&mut lines).await;
        Self { child, lines, address: line.parse().expect("its first line is its address") }
    }

    /// Counts of the server, over a connection of its own.
    pub(crate) async fn stats(&self) -> Value {
        Http1::connect(self.address).await.get_json("/stats").await
    }

    pub(crate) fn resident(&self) -> u64 {
        self.memory("VmRSS:")
    }

    pub(crate) fn peak_resident(&self) -> u64 {
        self.memory("VmHWM:")
    }

    fn memory(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid().as_raw_nonzero()));
        let status = status.expect("the server runs");
        let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("Linux says so");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number of kB");
        kib * 1024
    }

    fn pid(&self) -> Pid {
        pid(&self.child)
    }

    /// Its exit code and its report.
    pub(crate) async fn terminate(mut self) -> (i32, Value) {
        kill_process(self.pid(), Signal::TERM).expect("the server runs");
        let report = next_line(&mut self.lines).await;
        let status = timeout(PATIENCE, self.child.wait()).await.expect("it ends").expect("it can be waited for");
        (status.code().unwrap_or(-1), serde_json::from_str(&report).expect("its last line is its report"))
    }

    pub(crate) async fn kill(mut self) {
        self.child.kill().await.expect("the server runs");
    }
}

async fn next_line(lines: &mut Lines<BufReader<ChildStdout>>) -> String {
    let line = timeout(PATIENCE, lines.next_line()).await.expect("a line comes");
    line.expect("the output can be read").expect("the process says something before it ends")
}

fn pid(child: &Child) -> Pid {
    let id = child.id().expect("the process has not been waited for");
    Pid::from_raw(id as i32).expect("a process has an id above zero")
}

/// The example, an orders API that writes to SQLite.
pub(crate) struct Orders {
    child: Child,
    folder: PathBuf,
    pub(crate) address: SocketAddr,
}

impl Orders {
    pub(crate) async fn start(event_ms: u64) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("soak-{}-{number}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder for the database");
        let mut child = Command::new(crate::example())
            .env("ADDR", "127.0.0.1:0")
            .env("EVENTS_DB", folder.join("orders.db"))
            .env("EVENT_DELAY_MS", event_ms.to_string())
            .env("DRAIN_LIMIT_MS", "5000")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("the example is built: cargo build --release -p orders");
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let line = next_line(&mut lines).await;
        let address = line.split("http://").nth(1).and_then(|rest| rest.split(',').next()).map(str::parse);
        let address = address.expect("its first line says where it listens").expect("an address");
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { child, folder, address }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(pid(&self.child), signal).expect("the example runs");
    }

    /// Its exit code, and the orders that are in its database.
    pub(crate) async fn end(mut self) -> (Option<i32>, Vec<String>) {
        let status = timeout(PATIENCE, self.child.wait()).await.expect("it ends").expect("it can be waited for");
        let database = rusqlite::Connection::open(self.folder.join("orders.db")).expect("there is a database");
        let mut select = database.prepare("SELECT id FROM orders").expect("there is a table");
        let rows = select.query_map([], |row| row.get(0)).expect("it can be read");
        let rows = rows.collect::<Result<_, _>>().expect("each id is a text");
        drop(select);
        drop(database);
        fs::remove_dir_all(&self.folder).expect("the folder is ours");
        (status.code(), rows)
    }
}

pub(crate) fn is_there(tool: &str) -> bool {
    std::process::Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

/// Runs wrk until it has had that many answers.
pub(crate) async fn wrk(address: SocketAddr, requests: u64) -> u64 {
    let mut answered = 0;
    while answered < requests {
        let output = tool("wrk", &["-t1", "-c32", "-d10s", &format!("http://{address}/")]).await;
        let line = output.lines().find(|line| line.contains(" requests in ")).expect("wrk counts its requests");
        let count: u64 = line.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a number");
        assert!(count > 0, "wrk had no answer: {output}");
        answered += count;
    }
    answered
}

/// Runs h2load with that many requests.
pub(crate) async fn h2load(address: SocketAddr, requests: u64) -> u64 {
    let requests = requests.to_string();
    let output = tool("h2load", &["-c8", "-m32", "-n", &requests, &format!("http://{address}/")]).await;
    let line = output.lines().find(|line| line.starts_with("requests:")).expect("h2load counts its requests");
    let mut words = line.split_whitespace();
    let succeeded = words.by_ref().position(|word| word.starts_with("succeeded"));
    let before = line.split_whitespace().nth(succeeded.expect("it says so").saturating_sub(1));
    before.and_then(|word| word.parse().ok()).expect("a number")
}

async fn tool(name: &str, arguments: &[&str]) -> String {
    let output = Command::new(name).args(arguments).output().await.expect("the tool is there");
    assert!(output.status.success(), "{name} failed: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
