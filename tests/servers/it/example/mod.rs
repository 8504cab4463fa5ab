//! The examples as processes that are started, get requests over loopback, and are stopped by a signal.

use std::{
    any::Any,
    collections::HashMap,
    env,
    net::SocketAddr,
    process::Stdio,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use ::hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use bytes::Bytes;
use futures_util::future::join_all;
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    net::TcpStream,
    process::{Child, ChildStderr, ChildStdout, Command},
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};

mod axum;
mod axum_server;
mod hyper;
mod orders;
mod page;
mod quickstart;
mod socket;
mod tonic;

/// Longer than any step takes, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// The command for an example, with a free port and these settings.
fn command(example: &str, settings: &[(&str, &str)]) -> Command {
    // This test is target/<profile>/deps/it-<hash>.
    let this = env::current_exe().unwrap();
    let folder = this.ancestors().nth(2).unwrap();
    let mut command = Command::new(folder.join(format!("tested-{example}")));
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

/// An example as a child process, which is killed on drop.
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

    fn pid(&self) -> Pid {
        let pid = self.child.id().expect("it has not ended");
        Pid::from_raw(pid.try_into().unwrap()).unwrap()
    }

    fn kill(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    async fn is_draining(&mut self) {
        self.has_logged("shutting down within").await;
    }

    /// Waits until its standard error contains `words`.
    async fn has_logged(&mut self, words: &str) {
        let stderr = self.stderr.as_mut().unwrap();
        let reads = async {
            let mut logged = Vec::new();
            while !String::from_utf8_lossy(&logged).contains(words) {
                assert_ne!(stderr.read_buf(&mut logged).await.unwrap(), 0, "it ended instead");
            }
        };
        timeout(PATIENCE, reads).await.expect("it logs this");
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

/// The result of a process, with the output that had not been read before.
#[derive(Debug)]
struct End {
    code: Option<i32>,
    took: Duration,
    stdout: String,
    stderr: String,
}

impl End {
    /// The number before `what` in the report.
    fn figure(&self, what: &str) -> usize {
        let mut lines = self.stdout.lines().chain(self.stderr.lines());
        let report = lines.find(|line| line.starts_with("drained")).expect("there is a report");
        let before = report.split(what).next().unwrap();
        let number = before.split_whitespace().rev().find_map(|word| word.parse().ok());
        number.unwrap_or_else(|| panic!("no number before {what:?} in: {report}"))
    }
}

/// One connection that is kept alive.
struct Client {
    addr: SocketAddr,
    requests: Requests,
    /// `None` for one that shares the connection of another.
    connection: Option<JoinHandle<::hyper::Result<()>>>,
}

enum Requests {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Client {
    async fn connect(addr: SocketAddr) -> Self {
        Self::speaking(Version::HTTP_11, addr).await
    }

    async fn speaking(version: Version, addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let io = TokioIo::new(stream);
        let (requests, connection) = if version == Version::HTTP_2 {
            let (requests, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
            (Requests::Http2(requests), tokio::spawn(connection))
        } else {
            let (requests, connection) = http1::handshake(io).await.unwrap();
            (Requests::Http1(requests), tokio::spawn(connection))
        };
        Self { addr, requests, connection: Some(connection) }
    }

    /// Another client that sends concurrent requests on the same connection, if the version allows it.
    fn share(&self) -> Option<Self> {
        match &self.requests {
            Requests::Http1(_) => None,
            Requests::Http2(requests) => {
                Some(Self { addr: self.addr, requests: Requests::Http2(requests.clone()), connection: None })
            }
        }
    }

    async fn send(&mut self, method: Method, path: &str, body: &str) -> ::hyper::Result<Response<Incoming>> {
        let body = Full::new(Bytes::copy_from_slice(body.as_bytes()));
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .header("content-type", "application/json")
            .body(body)
            .unwrap();
        self.request(request).await
    }

    async fn request(&mut self, mut request: Request<Full<Bytes>>) -> ::hyper::Result<Response<Incoming>> {
        let answers = async {
            match &mut self.requests {
                Requests::Http1(requests) => {
                    requests.ready().await?;
                    requests.send_request(request).await
                }
                Requests::Http2(requests) => {
                    requests.ready().await?;
                    let uri = Uri::builder().scheme("http").authority(self.addr.to_string());
                    *request.uri_mut() = uri.path_and_query(request.uri().path()).build().unwrap();
                    requests.send_request(request).await
                }
            }
        };
        timeout(PATIENCE, answers).await.expect("it answers")
    }

    /// Waits until the service closes the connection.
    async fn closed(self) {
        let connection = self.connection.expect("the connection is its own");
        timeout(PATIENCE, connection).await.expect("it closes the connection").unwrap().unwrap();
    }
}

// --- when a server stops ---------------------------------------------------------------------------------------------

/// An example that writes a line for each response, and a request for it.
struct Server {
    example: &'static str,
    versions: &'static [Version],
    /// A request, which contains the number if possible.
    request: fn(usize) -> Request<Full<Bytes>>,
    /// The line for its answer.
    line: fn(usize) -> String,
}

impl Server {
    async fn start(&self, settings: &[(&str, &str)]) -> Process {
        Process::start(command(self.example, settings)).await
    }

    /// Sends a request and reads the response to its end.
    async fn ask(&self, client: &mut Client, number: usize) -> ::hyper::Result<StatusCode> {
        let response = client.request((self.request)(number)).await?;
        let status = response.status();
        response.into_body().collect().await?;
        Ok(status)
    }

    /// Clients send requests until the server closes their connections. The one that gets answer number `signal_after`
    /// sends the signal, while the others continue.
    async fn loses_nothing(&self) {
        const CONNECTIONS: usize = 6;
        let mut ended_since_signal = 0;

        for signal_after in [0, 1, 3, 10, 40, 100, 200] {
            let process = self.start(&[("EVENT_DELAY_MS", "20"), ("DRAIN_LIMIT_MS", "2000")]).await;
            let (addr, pid) = (process.addr, process.pid());
            let versions = self.versions.iter().cycle().take(CONNECTIONS);
            let mut clients = join_all(versions.map(|&version| Client::speaking(version, addr))).await;
            let sharers: Vec<_> = clients.iter().flat_map(|client| [client.share(), client.share()]).collect();
            clients.extend(sharers.into_iter().flatten());
            let (asked, answers) = (&AtomicUsize::new(0), &AtomicUsize::new(0));
            if signal_after == 0 {
                kill_process(pid, Signal::TERM).unwrap();
            }
            let asks = clients.into_iter().map(|mut client| async move {
                let mut answered = Vec::new();
                loop {
                    let number = asked.fetch_add(1, Ordering::Relaxed);
                    let Ok(status) = self.ask(&mut client, number).await else { return answered };
                    assert_eq!(status, StatusCode::OK);
                    answered.push((self.line)(number));
                    if answers.fetch_add(1, Ordering::Relaxed) + 1 == signal_after {
                        kill_process(pid, Signal::TERM).unwrap();
                    }
                }
            });
            // The output is read meanwhile, or the process would block on a full pipe.
            let (end, answered) = tokio::join!(process.end(), timeout(PATIENCE, join_all(asks)));
            let answered = answered.expect("the server closes its connections").concat();

            let round = format!("{}, signal after {signal_after} of {} answers", self.example, answered.len());
            let written: Vec<_> = end.stdout.lines().filter(|line| line.starts_with("audit")).collect();
            assert_eq!(end.code, Some(0), "{round}: {end:?}");
            let count = count(written.iter().map(|line| line.to_string()));
            for (line, answers) in self::count(answered.iter().cloned()) {
                let lines = count.get(&line).copied().unwrap_or_default();
                assert!(lines >= answers, "{round}: {answers} answers and {lines} lines for {line}");
            }
            assert!(written.len() <= asked.load(Ordering::Relaxed), "{round}");
            assert_eq!(end.figure("accepted"), written.len(), "{round}");
            assert_eq!(end.figure("completed"), written.len(), "{round}");
            assert!(answered.len() >= signal_after, "{round}");
            ended_since_signal += end.figure("ended since the drain began");
        }

        // Otherwise nothing was pending, and the test proves nothing.
        assert!(ended_since_signal > 0);
    }

    /// A silent client does not keep the server from answering others, or from stopping.
    async fn is_not_held_up_by(&self, silent: &Silent) {
        let process = self.start(&[("EVENT_DELAY_MS", "700"), ("DRAIN_LIMIT_MS", "1000")]).await;
        let stream = silent.connect(process.addr).await;
        let mut client = Client::speaking(self.versions[0], process.addr).await;
        assert_eq!(self.ask(&mut client, 0).await.unwrap(), StatusCode::OK);

        process.kill(Signal::TERM);
        let end = process.end().await;
        drop(stream);

        assert_eq!(end.code, Some(0), "{silent:?}: {end:?}");
        assert!(end.took < Duration::from_secs(3), "{silent:?}: {end:?}");
        assert!(end.stdout.contains(&(self.line)(0)), "{silent:?}: {end:?}");
    }

    async fn ends_its_ticker(&self) {
        for &version in self.versions {
            let process = self.start(&[("DRAIN_LIMIT_MS", "5000")]).await;
            let mut client = Client::speaking(version, process.addr).await;
            let mut ticks = client.send(Method::GET, "/ticker", "").await.unwrap().into_body();
            let tick = ticks.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(tick, "data: tick\n\n");

            process.kill(Signal::TERM);
            timeout(PATIENCE, ticks.collect()).await.expect("the stream ends").expect("it is not aborted");
            let end = process.end().await;

            assert_eq!(end.code, Some(0), "{version:?}: {end:?}");
            assert!(!end.stderr.contains(UNFINISHED), "{version:?}: {end:?}");
            assert!(end.stdout.contains("audit GET /ticker 200 complete"), "{version:?}: {end:?}");
        }
    }

    /// The handler waits for a request body that is never complete.
    async fn names_an_endless_request(&self, path: &str) {
        for &version in self.versions {
            let process = self.start(&[("DRAIN_LIMIT_MS", "1000")]).await;
            let unfinished = send_unfinished(version, process.addr, path).await;

            process.kill(Signal::TERM);
            let end = process.end().await;
            drop(unfinished);

            assert_eq!(end.code, Some(1), "{version:?}: {end:?}");
            assert!(end.stderr.contains("1 request open"), "{version:?}: {end:?}");
            assert!(end.stdout.contains("unfinished 0 bytes"), "{version:?}: {end:?}");
            assert!(end.took < Duration::from_secs(3), "{version:?}: {end:?}");
        }
    }

    async fn fails_readiness_and_serves_during_a_drain(&self) {
        // For a tenth of the limit the server waits for load balancers.
        let mut process = self.start(&[("DRAIN_LIMIT_MS", "20000")]).await;
        let mut client = Client::connect(process.addr).await;
        let ready = client.send(Method::GET, "/healthz", "").await.unwrap();
        assert_eq!(ready.status(), StatusCode::OK);
        ready.into_body().collect().await.unwrap();

        process.kill(Signal::TERM);
        process.is_draining().await;

        let mut newcomer = Client::connect(process.addr).await;
        let unready = newcomer.send(Method::GET, "/healthz", "").await.unwrap();
        assert_eq!(unready.status(), StatusCode::SERVICE_UNAVAILABLE);
        unready.into_body().collect().await.unwrap();
        assert_eq!(self.ask(&mut newcomer, 7).await.unwrap(), StatusCode::OK);
        let end = process.end().await;
        assert_eq!(end.code, Some(0), "{end:?}");
        assert!(end.stdout.contains(&(self.line)(7)), "{end:?}");
        assert!(!end.stdout.contains("/healthz"), "{end:?}");
    }

    async fn is_interrupted_by_a_second_signal(&self) {
        #[derive(Debug, PartialEq)]
        enum Wait {
            LoadBalancers,
            Server,
            Events,
        }

        for wait in [Wait::LoadBalancers, Wait::Server, Wait::Events] {
            let mut process = self.start(&[("EVENT_DELAY_MS", "60000"), ("DRAIN_LIMIT_MS", "10000")]).await;
            let mut client = Client::speaking(self.versions[0], process.addr).await;
            assert_eq!(self.ask(&mut client, 0).await.unwrap(), StatusCode::OK);
            let mut silent = None;
            if wait == Wait::Server {
                silent = Some(SILENT_HTTP2.connect(process.addr).await);
            }

            process.kill(Signal::TERM);
            let signalled = Instant::now();
            process.is_draining().await;
            if wait != Wait::LoadBalancers {
                client.closed().await;
            }
            // A signal that follows sooner is the same one.
            sleep_until(signalled + Duration::from_millis(550)).await;
            assert!(signalled.elapsed() < Duration::from_secs(4), "{wait:?}: it did not wait for its limits");
            process.kill(Signal::INT);
            let interrupted = Instant::now();
            let end = process.end().await;
            drop(silent);

            assert_eq!(end.code, Some(1), "{wait:?}: {end:?}");
            assert!(interrupted.elapsed() < Duration::from_secs(3), "{wait:?}: {end:?}");
            assert!(end.stderr.contains("audit x1 running"), "{wait:?}: {end:?}");
            if wait == Wait::Server {
                assert!(end.stderr.contains(UNFINISHED), "{wait:?}: {end:?}");
            }
        }
    }

    async fn rejects_invalid_settings(&self) {
        let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let taken = taken.local_addr().unwrap().to_string();
        for (name, value, reason) in [
            ("ADDR", "localhost", "ADDR=localhost: invalid socket address syntax"),
            ("ADDR", &taken, "servers failed: Address already in use"),
            ("EVENT_DELAY_MS", "-1", "EVENT_DELAY_MS=-1: invalid digit"),
            ("DRAIN_LIMIT_MS", "5s", "DRAIN_LIMIT_MS=5s: invalid digit"),
        ] {
            let mut command = command(self.example, &[(name, value)]);
            let output = timeout(PATIENCE, command.output()).await.expect("it ends").unwrap();
            let stderr = String::from_utf8(output.stderr).unwrap();

            let code = if reason.starts_with(name) { 2 } else { 1 };
            assert_eq!(output.status.code(), Some(code), "{name}={value}: {stderr}");
            assert!(stderr.contains(reason), "{name}={value}: {stderr}");
            assert!(output.stdout.is_empty(), "{name}={value}");
        }
    }
}

fn count(lines: impl Iterator<Item = String>) -> HashMap<String, usize> {
    lines.fold(HashMap::new(), |mut counts, line| {
        *counts.entry(line).or_default() += 1;
        counts
    })
}

/// Sends a request without its body, and waits until it has arrived. It stays open until the returned value is dropped.
async fn send_unfinished(version: Version, addr: SocketAddr, path: &str) -> Box<dyn Any> {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    if version == Version::HTTP_2 {
        let (mut requests, mut connection) = h2::client::handshake(stream).await.unwrap();
        let mut pings = connection.ping_pong().unwrap();
        tokio::spawn(connection);
        let request = Request::post(format!("http://{addr}{path}")).header("content-type", "application/grpc");
        let (response, body) = requests.send_request(request.body(()).unwrap(), false).unwrap();
        timeout(PATIENCE, pings.ping(h2::Ping::opaque())).await.expect("it answers").unwrap();
        Box::new((requests, response, body))
    } else {
        let head = format!("POST {path} HTTP/1.1\r\nhost: lo\r\ncontent-length: 9\r\nexpect: 100-continue\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        // Sent when the handler polls the body.
        let mut answer = [0; 25];
        timeout(PATIENCE, stream.read_exact(&mut answer)).await.expect("it answers").unwrap();
        assert_eq!(&answer, b"HTTP/1.1 100 Continue\r\n\r\n");
        Box::new(stream)
    }
}

/// A client that sends some bytes, reads a part of the answer, and is then silent.
#[derive(Debug)]
struct Silent {
    sent: &'static [u8],
    read: usize,
}

impl Silent {
    async fn connect(&self, addr: SocketAddr) -> TcpStream {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(self.sent).await.unwrap();
        let answers = async { stream.read_exact(&mut vec![0; self.read]).await };
        timeout(PATIENCE, answers).await.expect("it answers").unwrap();
        stream
    }
}

const SILENT_TCP: Silent = Silent { sent: b"", read: 0 };

const HALF_A_HEAD: Silent = Silent { sent: b"GET / HTTP/1.1\r\nhost: lo", read: 0 };

/// The second request is sent in part before the response to the first, a part of which is read to know that it
/// arrived.
const HALF_THE_NEXT_HEAD: Silent =
    Silent { sent: b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\nGET / HTTP/1.1\r\nhost: lo", read: 15 };

const HALF_A_PREFACE: Silent = Silent { sent: b"PRI * HTTP/2.0\r\n", read: 0 };

/// It sends its settings and reads those of the server, which it does not acknowledge.
const SILENT_HTTP2: Silent = Silent { sent: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", read: 9 };

/// It acknowledges the settings of the server, and not the ping that the server sends when it closes the connection.
const POLITE_BUT_SILENT_HTTP2: Silent =
    Silent { sent: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\0\x04\x01\0\0\0\0", read: 9 };

fn get(number: usize) -> Request<Full<Bytes>> {
    let uri = format!("/{number}");
    Request::builder().uri(uri).header("host", "localhost").body(Full::default()).unwrap()
}

/// What the report says of servers that a client has kept from stopping.
const UNFINISHED: &str = "servers dropped unfinished";

fn line_of_get(number: usize) -> String {
    format!("audit GET /{number} 200 complete 5 bytes")
}
