//! The examples as their users meet them: processes that are started, asked over loopback, and told to stop.
//!
//! The tests need the built examples. `cargo test` builds them first; with `--test it`, run `cargo build --examples`.

use std::{env, net::SocketAddr, process::Stdio, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::Full;
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines},
    net::TcpStream,
    process::{Child, ChildStderr, ChildStdout, Command},
    task::JoinHandle,
    time::{Instant, timeout},
};

mod axum;

/// More than anything takes here, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// An example that is built, with a free port and these settings.
fn command(example: &str, settings: &[(&str, &str)]) -> Command {
    // This test is target/<profile>/deps/it-<hash>.
    let this = env::current_exe().unwrap();
    let path = this.ancestors().nth(2).unwrap().join("examples").join(example);
    assert!(path.exists(), "{} is missing: run `cargo build --examples`", path.display());
    let mut command = Command::new(path);
    command
        .env("ADDR", "127.0.0.1:0")
        .env_remove("EVENT_DELAY_MS")
        .env_remove("DRAIN_LIMIT_MS")
        .envs(settings.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// An example as a child process. It is killed when this is dropped.
struct Process {
    child: Child,
    addr: SocketAddr,
    stdout: Option<Lines<BufReader<ChildStdout>>>,
    stderr: Option<ChildStderr>,
}

impl Process {
    /// Starts it and waits until it listens.
    async fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut stderr = child.stderr.take().unwrap();
        let Some(line) = timeout(PATIENCE, stdout.next_line()).await.expect("it starts").unwrap() else {
            let mut message = String::new();
            stderr.read_to_string(&mut message).await.unwrap();
            panic!("it did not start: {message}");
        };
        let words = line.strip_prefix("listening on http://").and_then(|rest| rest.split(',').next());
        let addr = words.and_then(|addr| addr.parse().ok()).unwrap_or_else(|| panic!("no address in: {line}"));
        Self { child, addr, stdout: Some(stdout), stderr: Some(stderr) }
    }

    fn kill(&self, signal: Signal) {
        let pid = self.child.id().expect("it has not ended");
        kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), signal).unwrap();
    }

    async fn has_begun_to_drain(&mut self) {
        let lines = self.stdout.as_mut().unwrap();
        let reads = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if line.starts_with("draining") {
                    return;
                }
            }
            panic!("it ended instead");
        };
        timeout(PATIENCE, reads).await.expect("it drains");
    }

    /// Waits until it has ended.
    async fn end(self) -> End {
        let Self { mut child, addr: _, stdout, stderr } = self;
        let began = Instant::now();
        let read_stdout = async {
            let mut text = String::new();
            if let Some(lines) = stdout {
                lines.into_inner().read_to_string(&mut text).await.unwrap();
            }
            text
        };
        let read_stderr = async {
            let mut text = String::new();
            if let Some(mut stderr) = stderr {
                stderr.read_to_string(&mut text).await.unwrap();
            }
            text
        };
        let (status, stdout, stderr) =
            timeout(PATIENCE, async { tokio::join!(child.wait(), read_stdout, read_stderr) }).await.expect("it ends");
        End { code: status.unwrap().code(), took: began.elapsed(), stdout, stderr }
    }
}

/// What is left of the process. The output is what had not been read by then.
#[derive(Debug)]
struct End {
    code: Option<i32>,
    took: Duration,
    stdout: String,
    stderr: String,
}

impl End {
    /// The number in the report that stands before `what`.
    fn figure(&self, what: &str) -> usize {
        let report = self.stdout.lines().find(|line| line.starts_with("drained")).expect("there is a report");
        let before = report.split(what).next().unwrap();
        let number = before.split_whitespace().rev().find_map(|word| word.parse().ok());
        number.unwrap_or_else(|| panic!("no number before {what:?} in: {report}"))
    }
}

/// One HTTP/1 connection that is kept alive.
struct Client {
    requests: SendRequest<Full<Bytes>>,
    connection: JoinHandle<hyper::Result<()>>,
}

impl Client {
    async fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (requests, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        Self { requests, connection: tokio::spawn(connection) }
    }

    async fn send(&mut self, method: Method, path: &str, body: &str) -> hyper::Result<Response<Incoming>> {
        let body = Full::new(Bytes::copy_from_slice(body.as_bytes()));
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .header("content-type", "application/json")
            .body(body)
            .unwrap();
        self.requests.ready().await?;
        timeout(PATIENCE, self.requests.send_request(request)).await.expect("it answers")
    }

    /// Waits until the service closes the connection.
    async fn closed(self) {
        timeout(PATIENCE, self.connection).await.expect("it closes the connection").unwrap().unwrap();
    }
}
