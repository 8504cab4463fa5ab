//! `examples/orders`: no order is lost when the service stops, and the responses until then.

use std::{
    collections::HashSet,
    fs,
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use http::{Method, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use rusqlite::Connection;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
    time::{Instant, sleep_until, timeout},
};
use uuid::Uuid;

use super::{Client, End, PATIENCE, Process, UNFINISHED};

// --- when the service stops ------------------------------------------------------------------------------------------

#[tokio::test]
async fn no_order_is_lost_when_the_service_stops() {
    const CLIENTS: usize = 8;
    let (mut ended_since_signal, mut written_after_last_answer) = (0, 0);

    for signal_after in [0, 1, 2, 7, 20, 45, 80, 120, 160, 210, 255, 300] {
        let shop = Shop::open(&[("EVENT_DELAY_MS", "20"), ("DRAIN_LIMIT_MS", "2000")]).await;
        let clients = join_all((0..CLIENTS).map(|_| Client::connect(shop.addr))).await;
        let (posts, answers) = (AtomicUsize::new(0), AtomicUsize::new(0));
        if signal_after == 0 {
            shop.kill(Signal::TERM);
        }

        // Each client orders until the service closes its connection. The one that gets answer number `signal_after`
        // sends the signal, while the others continue.
        let orders = clients.into_iter().map(|mut client| {
            let (shop, posts, answers) = (&shop, &posts, &answers);
            async move {
                let mut ids = Vec::new();
                loop {
                    posts.fetch_add(1, Ordering::Relaxed);
                    let Ok((status, answer)) = client.order("book").await else { return ids };
                    assert_eq!(status, StatusCode::CREATED, "{answer}");
                    ids.push(order_id(&answer));
                    if answers.fetch_add(1, Ordering::Relaxed) + 1 == signal_after {
                        shop.kill(Signal::TERM);
                    }
                }
            }
        });
        let ids = timeout(PATIENCE, join_all(orders)).await.expect("the service closes its connections").concat();
        let written_by_last_answer = shop.rows().len();
        let end = shop.end().await;
        let rows = end.rows();

        let round = format!("signal after {signal_after} answers, {} orders: {end:?}", ids.len());
        assert_eq!(end.code, Some(0), "{round}");
        let written: HashSet<_> = rows.iter().collect();
        assert_eq!(written.len(), rows.len(), "an order was written twice; {round}");
        let lost: Vec<_> = ids.iter().filter(|id| !written.contains(id)).collect();
        assert!(lost.is_empty(), "{} orders answered with 201 were lost; {round}", lost.len());
        assert!(rows.len() <= posts.into_inner(), "{round}");
        assert_eq!(end.figure("accepted"), rows.len(), "{round}");
        assert_eq!(end.figure("completed"), rows.len(), "{round}");
        assert!(ids.len() >= signal_after, "{round}");
        ended_since_signal += end.figure("ended since the drain began");
        written_after_last_answer += rows.len() - written_by_last_answer;
    }

    // Otherwise nothing was pending, and the test proves nothing.
    assert!(ended_since_signal > 0);
    assert!(written_after_last_answer > 0);
}

#[tokio::test]
async fn sigkill_loses_no_order_that_was_answered_when_it_was_stored() {
    const KILLS: usize = 20;
    let lost_with = async |settings: &[(&str, &str)]| {
        let mut lost = 0;
        for round in 0..KILLS {
            let shop = Shop::open(settings).await;
            let clients = join_all((0..8).map(|_| Client::connect(shop.addr))).await;
            let answers = AtomicUsize::new(0);
            let orders = clients.into_iter().map(|mut client| {
                let (shop, answers) = (&shop, &answers);
                async move {
                    let mut ids = Vec::new();
                    while let Ok((status, answer)) = client.order("book").await {
                        assert_eq!(status, StatusCode::CREATED, "{answer}");
                        ids.push(order_id(&answer));
                        if answers.fetch_add(1, Ordering::Relaxed) == 50 + round {
                            shop.kill(Signal::KILL);
                        }
                    }
                    ids
                }
            });
            let ids = timeout(PATIENCE, join_all(orders)).await.expect("the connections end").concat();
            let end = shop.end().await;
            let written: HashSet<_> = end.rows().into_iter().collect();
            lost += ids.iter().filter(|id| !written.contains(*id)).count();
        }
        lost
    };
    assert_eq!(lost_with(&[("ACK", "1")]).await, 0);
    // Otherwise the load would prove nothing.
    assert!(lost_with(&[("EVENT_DELAY_MS", "5")]).await > 0);
}

#[tokio::test]
async fn orders_that_are_not_written_within_the_limit_are_named_spilled_to_a_file_and_fail_the_process() {
    let shop = Shop::open(&[("EVENT_DELAY_MS", "10000"), ("DRAIN_LIMIT_MS", "200")]).await;
    let mut client = Client::connect(shop.addr).await;
    let mut ids = Vec::new();
    for item in ["book", "pen"] {
        ids.push(order_id(&client.order(item).await.unwrap().1));
    }

    shop.kill(Signal::TERM);
    let end = shop.end().await;

    assert_eq!(end.code, Some(1), "{end:?}");
    assert!(end.stderr.contains("order.created x2 undelivered, passed to on_undelivered"), "{end:?}");
    assert!(end.took < Duration::from_secs(5), "it waited for the store: {end:?}");
    assert!(end.rows().is_empty());
    let spilled = end.spilled();
    assert_eq!(spilled.iter().map(order_id).collect::<Vec<_>>(), ids);
    assert_eq!((&spilled[1]["item"], &spilled[1]["quantity"]), (&json!("pen"), &json!(1)));
}

#[tokio::test]
async fn orders_that_cannot_be_written_are_spilled_to_a_file_and_fail_the_process() {
    let shop = Shop::open(&[("DRAIN_LIMIT_MS", "2000")]).await;
    shop.database().execute_batch("DROP TABLE orders").unwrap();
    let mut client = Client::connect(shop.addr).await;
    let (_, answer) = client.order("book").await.unwrap();

    shop.kill(Signal::TERM);
    let end = shop.end().await;

    assert_eq!(end.code, Some(1), "{end:?}");
    assert!(end.stderr.contains("(order.created: 1 failed, last: no such table: orders: "), "{end:?}");
    assert_eq!(end.spilled().iter().map(order_id).collect::<Vec<_>>(), [order_id(&answer)]);
}

#[tokio::test]
async fn a_store_that_is_back_within_the_limit_gets_every_order() {
    let mut shop = Shop::open(&[("DRAIN_LIMIT_MS", "20000")]).await;
    shop.database().execute_batch("ALTER TABLE orders RENAME TO away").unwrap();
    let mut client = Client::connect(shop.addr).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(order_id(&client.order("book").await.unwrap().1));
    }
    shop.has_logged("batch not delivered, and will be retried").await;
    shop.kill(Signal::TERM);
    shop.is_draining().await;
    shop.database().execute_batch("ALTER TABLE away RENAME TO orders").unwrap();
    let end = shop.end().await;

    assert_eq!(end.code, Some(0), "{end:?}");
    assert_eq!(end.rows(), ids);
}

#[tokio::test]
async fn nothing_is_lost_after_the_output_is_closed() {
    let mut shop = Shop::open(&[("EVENT_DELAY_MS", "500"), ("DRAIN_LIMIT_MS", "2000")]).await;
    let mut client = Client::connect(shop.addr).await;
    let (_, answer) = client.order("book").await.unwrap();

    // As when Ctrl-C ends the process that reads the pipe.
    shop.stdout = None;
    shop.stderr = None;
    shop.kill(Signal::INT);
    let end = shop.end().await;

    assert_eq!(end.code, Some(0), "{end:?}");
    assert_eq!(end.rows(), [order_id(&answer)]);
}

#[tokio::test]
async fn readiness_fails_during_a_drain_and_orders_are_still_accepted() {
    // For a tenth of the limit the server waits for load balancers.
    let mut shop = Shop::open(&[("DRAIN_LIMIT_MS", "20000")]).await;
    let mut client = Client::connect(shop.addr).await;
    assert_eq!(client.get("/healthz").await.0, StatusCode::OK);

    shop.kill(Signal::TERM);
    shop.is_draining().await;

    assert_eq!(client.get("/healthz").await.0, StatusCode::SERVICE_UNAVAILABLE);
    let mut newcomer = Client::connect(shop.addr).await;
    assert_eq!(newcomer.get("/healthz").await.0, StatusCode::SERVICE_UNAVAILABLE);
    let (status, answer) = newcomer.order("book").await.unwrap();
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    let end = shop.end().await;
    assert_eq!(end.code, Some(0), "{end:?}");
    assert_eq!(end.rows(), [order_id(&answer)]);
}

#[tokio::test]
async fn a_second_signal_interrupts_each_wait() {
    #[derive(Debug, PartialEq)]
    enum Wait {
        LoadBalancers,
        Server,
        Events,
    }

    for (wait, first, second) in [
        (Wait::LoadBalancers, Signal::INT, Signal::INT),
        (Wait::Server, Signal::TERM, Signal::INT),
        (Wait::Events, Signal::TERM, Signal::TERM),
    ] {
        let mut shop = Shop::open(&[("EVENT_DELAY_MS", "60000"), ("DRAIN_LIMIT_MS", "10000")]).await;
        let mut client = Client::connect(shop.addr).await;
        assert_eq!(client.order("book").await.unwrap().0, StatusCode::CREATED);
        let mut half_sent = TcpStream::connect(shop.addr).await.unwrap();
        if wait == Wait::Server {
            half_sent.write_all(b"GET /healthz HT").await.unwrap();
        }

        shop.kill(first);
        let signalled = Instant::now();
        shop.is_draining().await;
        if wait != Wait::LoadBalancers {
            client.closed().await;
        }
        if wait == Wait::Events {
            // Nothing was sent on it, and the server closes it.
            assert_eq!(half_sent.read(&mut [0]).await.unwrap(), 0);
        }
        // A signal that follows sooner is the same one.
        sleep_until(signalled + Duration::from_millis(550)).await;
        shop.kill(second);
        let interrupted = Instant::now();
        let end = shop.end().await;

        assert_eq!(end.code, Some(1), "{wait:?}: {end:?}");
        assert!(interrupted.elapsed() < Duration::from_secs(3), "{wait:?}: {end:?}");
        assert!(end.stderr.contains("order.created x1 undelivered"), "{wait:?}: {end:?}");
        if wait == Wait::Server {
            assert!(end.stderr.contains(UNFINISHED), "{wait:?}: {end:?}");
        }
    }
}

#[tokio::test]
async fn clients_that_never_finish_a_request_delay_the_exit_no_longer_than_the_limit() {
    let shop = Shop::open(&[("DRAIN_LIMIT_MS", "1000")]).await;
    let mut client = Client::connect(shop.addr).await;
    let (_, answer) = client.order("book").await.unwrap();
    let mut silent = Vec::new();
    for sent in ["POST /orders HTTP/1.1\r\nhost: sh", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"] {
        let mut stream = TcpStream::connect(shop.addr).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        silent.push(stream);
    }
    // The service sends its settings first, which shows that it has read the preface.
    silent[1].read_exact(&mut [0; 9]).await.unwrap();

    shop.kill(Signal::TERM);
    let end = shop.end().await;

    // Every order was written, and none of these clients had sent one.
    assert_eq!(end.code, Some(0), "{end:?}");
    assert!(end.stderr.contains(UNFINISHED), "{end:?}");
    assert!(end.took < Duration::from_secs(3), "{end:?}");
    assert_eq!(end.rows(), [order_id(&answer)]);
}

// --- responses -------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn an_order_is_written_as_it_was_sent() {
    let shop = Shop::open(&[]).await;
    let mut client = Client::connect(shop.addr).await;
    let order = json!({ "item": "Bücher; DROP TABLE orders", "quantity": u32::MAX });
    let (status, answer) = client.post(&order.to_string()).await.unwrap();
    assert_eq!(status, StatusCode::CREATED, "{answer}");

    shop.kill(Signal::TERM);
    let end = shop.end().await;

    assert_eq!(end.code, Some(0), "{end:?}");
    let row = database(end.folder.path()).query_row("SELECT * FROM orders", [], |row| {
        Ok((row.get::<_, String>("id")?, row.get::<_, String>("item")?, row.get::<_, u32>("quantity")?))
    });
    assert_eq!(row.unwrap(), (order_id(&answer), "Bücher; DROP TABLE orders".to_owned(), u32::MAX));
}

#[tokio::test]
async fn an_invalid_order_is_a_client_error_with_a_message() {
    let shop = Shop::open(&[]).await;
    let mut client = Client::connect(shop.addr).await;
    for (order, reason) in [
        ("", "EOF"),
        ("{", "EOF"),
        ("[]", "struct Order"),
        (r#"{"item":"book"}"#, "quantity"),
        (r#"{"quantity":1}"#, "item"),
        (r#"{"item":"","quantity":1}"#, "item"),
        (r#"{"item":" ","quantity":1}"#, "item"),
        (r#"{"item":null,"quantity":1}"#, "item"),
        (r#"{"item":"book","quantity":0}"#, "quantity"),
        (r#"{"item":"book","quantity":-1}"#, "quantity"),
        (r#"{"item":"book","quantity":1.5}"#, "quantity"),
        (r#"{"item":"book","quantity":4294967296}"#, "quantity"),
    ] {
        let (status, answer) = client.post(order).await.unwrap();
        assert!(status.is_client_error(), "{order}: {status}");
        let message = answer["error"].as_str().unwrap_or_else(|| panic!("{order}: {answer}"));
        assert!(message.contains(reason), "{order}: {message}");
    }
    assert_eq!(client.get("/stats").await.1["accepted"], 0);
}

#[tokio::test]
async fn stats_are_the_snapshot() {
    let shop = Shop::open(&[("EVENT_DELAY_MS", "60000")]).await;
    let mut client = Client::connect(shop.addr).await;
    client.order("book").await.unwrap();

    let (status, stats) = client.get("/stats").await;

    assert_eq!(status, StatusCode::OK);
    assert_eq!(
        stats,
        json!({
            "open_requests": 1, "open_guards": 0, "reserved": 0, "pending": 1, "accepted": 1,
            "ended": { "completed": 0, "failed": 0, "panicked": 0, "timed_out": 0, "aborted": 0 },
            "rejected": 0, "rejected_closed": 0,
        })
    );
}

// --- start -----------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn an_invalid_setting_is_a_message_and_not_a_panic() {
    let folder = Folder::new();
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let not_a_database = folder.path().join("text");
    fs::write(&not_a_database, "This is a text that is longer than the header of a database. ".repeat(9)).unwrap();

    for (name, value, reason) in [
        ("ADDR", "", "127.0.0.1:3000"),
        ("ADDR", "localhost", "127.0.0.1:3000"),
        ("ADDR", "127.0.0.1:65536", "127.0.0.1:3000"),
        ("ADDR", &taken, "servers failed: Address already in use"),
        ("EVENTS_DB", "", "servers failed: EVENTS_DB must be a file for SQLite, and is \"\": its journal mode is"),
        ("EVENTS_DB", ":memory:", "wal"),
        ("EVENTS_DB", "/no/such/folder/orders.db", "unable to open"),
        ("EVENTS_DB", not_a_database.to_str().unwrap(), "not a database"),
        ("EVENT_DELAY_MS", "", "0 to 4294967295"),
        ("EVENT_DELAY_MS", "-1", "0 to 4294967295"),
        ("DRAIN_LIMIT_MS", "5s", "0 to 4294967295"),
        ("DRAIN_LIMIT_MS", "4294967296", "0 to 4294967295"),
    ] {
        let mut command = command(&folder, &[(name, value)]);
        let output = timeout(PATIENCE, command.output()).await.expect("it ends").unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();

        // What is found when the server starts is in its report, which has a line for the drain.
        let (code, lines) = if stderr.starts_with(name) { (2, 1) } else { (1, 2) };
        let count = stderr.lines().filter(|line| !line.contains("INFO")).count();
        assert_eq!((output.status.code(), count), (Some(code), lines), "{name}={value}: {stderr}");
        assert!(stderr.contains(name) || value == taken, "{name}={value}: {stderr}");
        assert!(stderr.contains(reason), "{name}={value}: {stderr}");
        assert!(stderr.contains(&format!("and is {value:?}")) || value == taken, "{name}={value}: {stderr}");
        assert!(output.stdout.is_empty(), "{name}={value}");
    }
}

#[tokio::test]
async fn its_first_lines_name_the_address_and_commands_to_try() {
    let shop = Shop::open(&[]).await;
    let addr = shop.addr;
    assert_ne!(addr.port(), 0);
    shop.kill(Signal::INT);
    let end = shop.end().await;

    // The line with the address was read before.
    let is_try = |line: &&str| line.starts_with("open ") || line.starts_with("curl ");
    let tries: Vec<_> = end.stdout.lines().take_while(is_try).collect();
    assert_eq!(tries.len(), 3, "{end:?}");
    for (line, path) in tries.iter().zip(["", "orders", "stats"]) {
        assert!(line.contains(&format!("http://{addr}/{path}")), "{line}");
    }
}

// --- the process and its database ------------------------------------------------------------------------------------

/// The example, with its own database.
pub(super) struct Shop {
    process: Process,
    pub(super) folder: Folder,
}

impl Shop {
    /// Starts it on a free port, with an empty database.
    pub(super) async fn open(settings: &[(&str, &str)]) -> Self {
        let folder = Folder::new();
        let process = Process::start(command(&folder, settings)).await;
        Self { process, folder }
    }

    /// Waits until it has ended.
    pub(super) async fn end(self) -> Closed {
        Closed { end: self.process.end().await, folder: self.folder }
    }

    pub(super) fn database(&self) -> Connection {
        database(self.folder.path())
    }

    fn rows(&self) -> Vec<String> {
        rows(&self.database())
    }
}

impl Deref for Shop {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl DerefMut for Shop {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// The output and the folder of a shop that has ended.
#[derive(Debug)]
pub(super) struct Closed {
    end: End,
    folder: Folder,
}

impl Closed {
    pub(super) fn rows(&self) -> Vec<String> {
        rows(&database(self.folder.path()))
    }

    /// The orders that could not be written.
    pub(super) fn spilled(&self) -> Vec<Value> {
        let lines = fs::read_to_string(self.folder.path().join("orders.db.undelivered.jsonl")).unwrap();
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Deref for Closed {
    type Target = End;

    fn deref(&self) -> &End {
        &self.end
    }
}

fn command(folder: &Folder, settings: &[(&str, &str)]) -> Command {
    let mut command = super::command("orders", &[]);
    command.env("EVENTS_DB", folder.path().join("orders.db")).envs(settings.iter().copied());
    command
}

fn database(folder: &Path) -> Connection {
    Connection::open(folder.join("orders.db")).unwrap()
}

fn rows(database: &Connection) -> Vec<String> {
    let mut select = database.prepare("SELECT id FROM orders ORDER BY rowid").unwrap();
    let rows = select.query_map([], |row| row.get(0)).unwrap();
    rows.collect::<Result<_, _>>().unwrap()
}

/// A folder of one test, which is removed on drop.
#[derive(Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new() -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(Uuid::new_v4().to_string());
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

// --- its clients -----------------------------------------------------------------------------------------------------

impl Client {
    async fn get(&mut self, path: &str) -> (StatusCode, Value) {
        read(self.send(Method::GET, path, "").await.unwrap()).await.unwrap()
    }

    async fn post(&mut self, order: &str) -> hyper::Result<(StatusCode, Value)> {
        read(self.send(Method::POST, "/orders", order).await?).await
    }

    pub(super) async fn order(&mut self, item: &str) -> hyper::Result<(StatusCode, Value)> {
        self.post(&json!({ "item": item, "quantity": 1 }).to_string()).await
    }
}

async fn read(response: Response<Incoming>) -> hyper::Result<(StatusCode, Value)> {
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    Ok((status, serde_json::from_slice(&body).unwrap_or_else(|_| String::from_utf8_lossy(&body).into_owned().into())))
}

/// The id in an answer, which is a UUID of version 4.
fn order_id(answer: &Value) -> String {
    let id = answer["id"].as_str().unwrap_or_else(|| panic!("no id in: {answer}"));
    assert_eq!(Uuid::parse_str(id).unwrap().get_version_num(), 4, "{id}");
    id.to_owned()
}
