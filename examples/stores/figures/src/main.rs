//! Compares batches with single rows: rows a second into SQLite and PostgreSQL, and the latency of an API.
//!
//! ```text
//! eval "$(scripts/servers env)"
//! cargo run --release -p stores-figures
//! ```
//!
//! A sink is compared with one event and one INSERT for each row, through the same client. An API that answers when the
//! row is stored is measured with `send_acked`, and with a statement of its own for each request. Each figure is the
//! median of alternating runs, and the bar is on the ratio. What needs `PG_URL` or `NATS_URL` is left out without it. The
//! exit code is 1 if a bar is missed.

#![allow(clippy::print_stdout, reason = "the program prints its results")]

use std::{
    env,
    error::Error,
    fs,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    process::ExitCode,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{Request, StatusCode},
    routing::post,
    serve::ListenerExt,
};
use http_body_util::BodyExt;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rusqlite::Connection;
use stores_nats::OrderStream;
use stores_shop::Order;
use tokio::{
    net::{TcpListener, TcpStream},
    task::spawn_blocking,
    time::{Instant, sleep},
};
use tokio_postgres::{Client, NoTls};
use tower_track_events::{BuildError, EventSender, TrackEventsHandle};
use uuid::Uuid;

type Failure = Box<dyn Error + Send + Sync>;

const RUNS: usize = 5;
/// Rows of one run by the sink, and by events.
const BY_SINK: u64 = 50_000;
const BY_EVENTS: u64 = 1_000;
const ALL_ROWS: i64 = RUNS as i64 * (BY_SINK + BY_EVENTS) as i64;

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<ExitCode, Failure> {
    let mut missed = 0;
    println!("{:<44} {:>10} {:>10} {:>8}", "", "sink", "without", "ratio");
    let mut row = |name: &str, sink: f64, without: f64, bar: &str, holds: fn(f64) -> bool| {
        let ratio = sink / without;
        let result = if holds(ratio) { "ok" } else { "MISSED" };
        missed += usize::from(!holds(ratio));
        println!("{name:<44} {sink:>10.1} {without:>10.1} {ratio:>8.2}   {bar} {result}");
    };

    let sqlite = Sqlite::open()?;
    let (sink, events) = alternating(async || sqlite.by_sink().await, async || sqlite.by_events().await).await?;
    row("rows a second into SQLite, thousands", sink, events, ">= 20", |ratio| ratio >= 20.0);
    sqlite.check()?;
    drop(sqlite);

    match env::var("PG_URL") {
        Ok(url) => {
            let postgres = Postgres::connect(&url).await?;
            let (sink, events) =
                alternating(async || postgres.by_sink().await, async || postgres.by_events().await).await?;
            row("rows a second into PostgreSQL, thousands", sink, events, ">= 20", |ratio| ratio >= 20.0);
            postgres.check().await?;
        }
        Err(_) => println!("rows into PostgreSQL: left out, since PG_URL is not set"),
    }

    // On a fast disk the processor is the limit. With a slower one it is the commit, as in most deployments.
    for slower in [Duration::ZERO, Duration::from_millis(5)] {
        let (mut sqlite, handle) = (Sqlite::open()?, handle()?);
        sqlite.slower = slower;
        let commit = sqlite.commit().await?;
        let acked = group_commit(Fate::Acked(sqlite.sender(&handle)?), Fate::Alone(sqlite.alone()));
        let [[rate, p99], [rate_alone, p99_alone]] = acked.await?;
        let name = format!("answers a second, SQLite, a commit takes {commit:.0} µs");
        if slower.is_zero() {
            row(&name, rate, rate_alone, "", |_| true);
            row("  p99, µs: send_acked / a commit alone", p99, commit, "", |_| true);
        } else {
            row(&name, rate, rate_alone, ">= 10", |ratio| ratio >= 10.0);
            row("  p99, µs: send_acked / a commit alone", p99, commit, "<= 3", |ratio| ratio <= 3.0);
        }
        row("  p99, µs: send_acked / a commit per request", p99, p99_alone, "", |_| true);
    }
    match env::var("PG_URL") {
        Ok(url) => {
            let (postgres, handle) = (Postgres::connect(&url).await?, handle()?);
            let acked =
                group_commit(Fate::Acked(postgres.sender(&handle).await?), Fate::Alone(postgres.alone().await?));
            let [[rate, p99], [rate_alone, p99_alone]] = acked.await?;
            row("answers a second, PostgreSQL", rate, rate_alone, "", |_| true);
            row("  p99, µs: send_acked / a commit per request", p99, p99_alone, "", |_| true);
            postgres.client.batch_execute("DROP TABLE figures").await?;
        }
        Err(_) => println!("answers stored in PostgreSQL: left out, since PG_URL is not set"),
    }
    match env::var("NATS_URL") {
        Ok(url) => {
            let (stream, handle) = (OrderStream::connect(&url).await?, handle()?);
            let publishes = stream.clone();
            let sender = handle.sink::<u64>("row").deliver(move |batch| async move {
                let orders: Vec<_> = batch.iter().map(|_| new_order()).collect();
                publishes.publish(&orders).await
            })?;
            let alone: Alone = Arc::new(move |_| {
                let stream = stream.clone();
                Box::pin(async move { stream.publish(&[new_order()]).await })
            });
            let [[rate, p99], [rate_alone, p99_alone]] = group_commit(Fate::Acked(sender), Fate::Alone(alone)).await?;
            row("answers a second, JetStream", rate, rate_alone, "", |_| true);
            row("  p99, µs: send_acked / a publish per request", p99, p99_alone, "", |_| true);
        }
        Err(_) => println!("answers stored in JetStream: left out, since NATS_URL is not set"),
    }

    let [without, sink, waiting] = latencies().await?;
    for (name, at) in [("p50", 0), ("p99", 1)] {
        let name = format!("{name} of the API, µs: 20 ms store / no events");
        row(&name, sink[at], without[at], "<= 1.05", |ratio| ratio <= 1.05);
    }
    println!("{:<44} {:>10.1} {:>10.1}", "  p50 and p99 if the handler waits, µs", waiting[0], waiting[1]);
    println!("{missed} bars missed");
    Ok(if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The medians of two measures, whose runs alternate.
async fn alternating(
    one: impl AsyncFn() -> Result<f64, Failure>,
    other: impl AsyncFn() -> Result<f64, Failure>,
) -> Result<(f64, f64), Failure> {
    let (mut ones, mut others) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        ones.push(one().await?);
        others.push(other().await?);
    }
    Ok((median(ones), median(others)))
}

fn handle() -> Result<TrackEventsHandle, Failure> {
    Ok(TrackEventsHandle::builder().quiet_period(Duration::ZERO).capacity(1 << 20).build()?)
}

/// Drains, and returns thousands of rows a second.
async fn rate(handle: &TrackEventsHandle, rows: u64, began: Instant) -> Result<f64, Failure> {
    let report = handle.drain(Duration::from_secs(60)).await?;
    assert_eq!(report.ended.completed, rows, "{report}");
    Ok(rows as f64 / began.elapsed().as_secs_f64() / 1e3)
}

/// A database with the durability of an audit log: each commit is on the disk before it is acknowledged.
#[derive(Clone)]
struct Sqlite {
    _file: Arc<Removed>,
    db: Arc<Mutex<Connection>>,
    /// How much longer than on this disk a commit takes.
    slower: Duration,
}

impl Sqlite {
    fn open() -> Result<Self, Failure> {
        static OPENED: AtomicUsize = AtomicUsize::new(0);
        let number = OPENED.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("figures-{}-{number}.db", std::process::id()));
        let db = Connection::open(&path)?;
        db.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
             CREATE TABLE rows (number INTEGER NOT NULL, text TEXT NOT NULL)",
        )?;
        Ok(Self { _file: Arc::new(Removed(path)), db: Arc::new(Mutex::new(db)), slower: Duration::ZERO })
    }

    /// Fails unless every row was written.
    fn check(&self) -> Result<(), Failure> {
        let rows: i64 =
            self.db.lock().expect("nobody panics").query_row("SELECT count(*) FROM rows", (), |row| row.get(0))?;
        assert_eq!(rows, ALL_ROWS);
        Ok(())
    }

    fn sender(&self, handle: &TrackEventsHandle) -> Result<EventSender<u64>, BuildError> {
        let (db, slower) = (Arc::clone(&self.db), self.slower);
        handle.sink::<u64>("row").deliver_blocking(move |batch| {
            let mut db = db.lock().expect("nobody panics");
            let transaction = db.transaction()?;
            for number in batch {
                insert(&transaction, *number)?;
            }
            thread::sleep(slower);
            transaction.commit()
        })
    }

    /// A commit of its own.
    fn insert(&self, number: u64) -> rusqlite::Result<()> {
        let db = self.db.lock().expect("nobody panics");
        thread::sleep(self.slower);
        insert(&db, number)
    }

    fn alone(&self) -> Alone {
        let sqlite = self.clone();
        Arc::new(move |number| {
            let sqlite = sqlite.clone();
            Box::pin(async move { Ok(spawn_blocking(move || sqlite.insert(number)).await??) })
        })
    }

    /// The time of a commit of one row, in microseconds.
    async fn commit(&self) -> Result<f64, Failure> {
        let sqlite = self.clone();
        spawn_blocking(move || {
            let mut times = Vec::new();
            for number in 0..200 {
                let began = Instant::now();
                sqlite.insert(number)?;
                times.push(began.elapsed().as_secs_f64() * 1e6);
            }
            Ok(median(times))
        })
        .await?
    }

    async fn by_sink(&self) -> Result<f64, Failure> {
        let handle = handle()?;
        let sender = self.sender(&handle)?;
        let began = Instant::now();
        for number in 0..BY_SINK {
            sender.try_send(number)?;
        }
        rate(&handle, BY_SINK, began).await
    }

    async fn by_events(&self) -> Result<f64, Failure> {
        let handle = handle()?;
        let began = Instant::now();
        for number in 0..BY_EVENTS {
            let sqlite = self.clone();
            handle.track_blocking("row", move || sqlite.insert(number))?;
        }
        rate(&handle, BY_EVENTS, began).await
    }
}

fn insert(db: &Connection, number: u64) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT INTO rows (number, text) VALUES (?, ?)")?.execute((number as i64, "GET /orders"))?;
    Ok(())
}

/// A database file that is removed at the end.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        for suffix in ["", "-wal", "-shm"] {
            let _ = fs::remove_file(format!("{}{suffix}", self.0.display()));
        }
    }
}

struct Postgres {
    client: Arc<Client>,
}

impl Postgres {
    async fn connect(url: &str) -> Result<Self, Failure> {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        tokio::spawn(async { drop(connection.await) });
        let table = "SET client_min_messages = warning;
             DROP TABLE IF EXISTS figures;
             CREATE TABLE figures (number bigint NOT NULL, text text NOT NULL)";
        client.batch_execute(table).await?;
        Ok(Self { client: Arc::new(client) })
    }

    async fn check(&self) -> Result<(), Failure> {
        let rows: i64 = self.client.query_one("SELECT count(*) FROM figures", &[]).await?.get(0);
        assert_eq!(rows, ALL_ROWS);
        self.client.batch_execute("DROP TABLE figures").await?;
        Ok(())
    }

    async fn sender(&self, handle: &TrackEventsHandle) -> Result<EventSender<u64>, Failure> {
        let client = Arc::clone(&self.client);
        let insert =
            client.prepare("INSERT INTO figures (number, text) SELECT * FROM UNNEST($1::bigint[], $2::text[])").await?;
        let sender = handle.sink::<u64>("row").deliver(async move |batch| {
            let numbers: Vec<_> = batch.iter().map(|number| *number as i64).collect();
            let texts = vec!["GET /orders"; batch.len()];
            client.execute(&insert, &[&numbers, &texts]).await
        })?;
        Ok(sender)
    }

    /// A statement of its own. The connection sends the next one without waiting for the last.
    async fn alone(&self) -> Result<Alone, Failure> {
        let client = Arc::clone(&self.client);
        let insert = client.prepare("INSERT INTO figures (number, text) VALUES ($1, $2)").await?;
        Ok(Arc::new(move |number| {
            let (client, insert) = (Arc::clone(&client), insert.clone());
            Box::pin(async move {
                client.execute(&insert, &[&(number as i64), &"GET /orders"]).await?;
                Ok(())
            })
        }))
    }

    async fn by_sink(&self) -> Result<f64, Failure> {
        let handle = handle()?;
        let sender = self.sender(&handle).await?;
        let began = Instant::now();
        for number in 0..BY_SINK {
            sender.try_send(number)?;
        }
        rate(&handle, BY_SINK, began).await
    }

    async fn by_events(&self) -> Result<f64, Failure> {
        let (handle, insert) = (handle()?, self.alone().await?);
        let began = Instant::now();
        for number in 0..BY_EVENTS {
            handle.track("row", insert(number))?;
        }
        rate(&handle, BY_EVENTS, began).await
    }
}

/// Stores one row and waits until it is stored.
type Alone = Arc<dyn Fn(u64) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>> + Send + Sync>;

/// JetStream drops a message whose id it has seen.
fn new_order() -> Order {
    Order { id: Uuid::new_v4().to_string(), item: "book".to_owned(), quantity: 1, created_at: 0 }
}

/// What happens to an order.
#[derive(Clone)]
enum Fate {
    Forgotten,
    Sent(EventSender<u64>),
    /// The answer waits for a commit with this order.
    Acked(EventSender<u64>),
    /// The handler makes a commit of its own.
    Alone(Alone),
    /// The handler waits for the store.
    Stored,
}

/// A store that takes 20 ms.
async fn store() {
    sleep(Duration::from_millis(20)).await;
}

async fn create_order(State(fate): State<Fate>, body: String) -> (StatusCode, String) {
    match fate {
        Fate::Forgotten => {}
        Fate::Sent(sender) => {
            if sender.try_send(body.len() as u64).is_err() {
                return (StatusCode::SERVICE_UNAVAILABLE, body);
            }
        }
        Fate::Stored => store().await,
        Fate::Acked(sender) => {
            if sender.send_acked(body.len() as u64).await.is_err() {
                return (StatusCode::SERVICE_UNAVAILABLE, body);
            }
        }
        Fate::Alone(store) => {
            if store(body.len() as u64).await.is_err() {
                return (StatusCode::SERVICE_UNAVAILABLE, body);
            }
        }
    }
    (StatusCode::CREATED, body)
}

/// The p50 and p99 of each variant in microseconds, as medians of alternating rounds: sequential requests over one
/// loopback connection.
async fn latencies() -> Result<[[f64; 2]; 3], Failure> {
    const ROUNDS: usize = 31;
    let handle = handle()?;
    let sender = handle.sink::<u64>("order.created").deliver(|_| store())?;
    let mut variants = Vec::new();
    for (fate, requests) in [(Fate::Forgotten, 1_000), (Fate::Sent(sender), 1_000), (Fate::Stored, 5)] {
        let router = Router::new().route("/orders", post(create_order)).with_state(fate).layer(handle.layer());
        variants.push((connect(serve(router).await?).await?, requests));
    }
    let mut rounds: [[Vec<f64>; 2]; 3] = Default::default();
    for _ in 0..ROUNDS {
        for ((client, requests), rounds) in variants.iter_mut().zip(&mut rounds) {
            let [p50, p99] = round(client, *requests).await?;
            rounds[0].push(p50);
            rounds[1].push(p99);
        }
    }
    drop(variants);
    handle.drain(Duration::from_secs(60)).await?;
    Ok(rounds.map(|round| round.map(median)))
}

/// Answers a second and the p99 in microseconds, for 64 connections: medians of alternating rounds.
async fn group_commit(one: Fate, other: Fate) -> Result<[[f64; 2]; 2], Failure> {
    const CONNECTIONS: usize = 64;
    const ROUND: Duration = Duration::from_secs(1);
    let mut rounds: [[Vec<f64>; 2]; 2] = Default::default();
    for _ in 0..RUNS {
        for (fate, rounds) in [&one, &other].into_iter().zip(&mut rounds) {
            let router = Router::new().route("/orders", post(create_order)).with_state(fate.clone());
            let addr = serve(router).await?;
            let began = Instant::now();
            let clients: Vec<_> = (0..CONNECTIONS)
                .map(|_| {
                    tokio::spawn(async move {
                        let mut client = connect(addr).await?;
                        let mut times = Vec::new();
                        while began.elapsed() < ROUND {
                            times.push(order(&mut client).await?);
                        }
                        Ok::<_, Failure>(times)
                    })
                })
                .collect();
            let mut times = Vec::new();
            for client in clients {
                times.extend(client.await??);
            }
            times.sort_by(f64::total_cmp);
            rounds[0].push(times.len() as f64 / began.elapsed().as_secs_f64());
            rounds[1].push(times[times.len() * 99 / 100]);
        }
    }
    Ok(rounds.map(|round| round.map(median)))
}

async fn serve(router: Router) -> Result<SocketAddr, Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    tokio::spawn(axum::serve(listener.tap_io(|socket| drop(socket.set_nodelay(true))), router).into_future());
    Ok(addr)
}

async fn connect(addr: SocketAddr) -> Result<SendRequest<String>, Failure> {
    let socket = TcpStream::connect(addr).await?;
    socket.set_nodelay(true)?;
    let (client, connection) = http1::handshake(TokioIo::new(socket)).await?;
    tokio::spawn(async { drop(connection.await) });
    Ok(client)
}

/// Places an order, and returns how long that took in microseconds.
async fn order(client: &mut SendRequest<String>) -> Result<f64, Failure> {
    let request = Request::post("/orders").header("host", "shop").body(r#"{"item":"book","quantity":1}"#.to_owned())?;
    let began = Instant::now();
    client.ready().await?;
    let response = client.send_request(request).await?;
    assert_eq!(response.status(), StatusCode::CREATED);
    response.into_body().collect().await?;
    Ok(began.elapsed().as_secs_f64() * 1e6)
}

async fn round(client: &mut SendRequest<String>, requests: usize) -> Result<[f64; 2], Failure> {
    let mut times = Vec::with_capacity(requests);
    // The first requests of a round, with cold caches, do not count.
    for _ in 0..requests + requests / 4 {
        times.push(order(client).await?);
    }
    times.drain(..requests / 4);
    times.sort_by(f64::total_cmp);
    Ok([times[times.len() / 2], times[times.len() * 99 / 100]])
}
