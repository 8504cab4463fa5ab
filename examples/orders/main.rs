//! An orders API that answers at once, writes the orders to SQLite in batches, and loses none at a shutdown.
//!
//! ```text
//! cargo run --example orders
//! ```
//!
//! It prints commands to try, and the address of a page that shows its state; Ctrl-C or SIGTERM stops it. When it exits with
//! 0, every order that was answered with 201 is in the database. Orders that it could not write in time are in a file beside
//! the database, one JSON object a line, whose name ends in `.undelivered.jsonl`. These variables change it:
//!
//! - `ADDR`: where it listens, 127.0.0.1:3000 unless set; with port 0 it takes a free one.
//! - `EVENTS_DB`: the database, a file in the system's folder for temporary files unless set.
//! - `EVENT_DELAY_MS`: how slow the store is with each batch, 1 unless set.
//! - `DRAIN_LIMIT_MS`: the most that stopping may take, counted from the signal, 5000 unless set.
//!
//! Exit code: 0 if every order was written, 1 if not, 2 if it could not start.

use std::{
    convert::Infallible,
    env,
    error::Error,
    fmt::Display,
    fs::OpenOptions,
    future::ready,
    io::{self, BufWriter, Write},
    net::SocketAddr,
    num::NonZeroU32,
    path::{Path, PathBuf},
    process,
    str::FromStr,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Json, Router,
    extract::{
        State,
        rejection::JsonRejection,
        ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code},
    },
    http::StatusCode,
    response::{
        ErrorResponse, Html, IntoResponse,
        sse::{Event, Sse},
    },
    routing::{any, get, post},
};
use futures_util::{FutureExt, Stream, StreamExt, stream};
use rusqlite::{Connection, OpenFlags, params};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{
    net::TcpListener,
    select,
    signal::unix::{SignalKind, signal},
    sync::oneshot,
    task::{JoinHandle, spawn_blocking},
    time::{Instant, interval, sleep, timeout, timeout_at},
};
use tokio_stream::wrappers::{IntervalStream, SignalStream};
use tower_track_events::{
    Batch, EventSender, EventSink, Events, SinkSnapshot, Snapshot, TrackEventsHandle, TrackEventsLayer, Undelivered,
};
use tracing_subscriber::filter::LevelFilter;
use uuid::Uuid;

#[tokio::main]
async fn main() {
    // The crate logs events that fail.
    tracing_subscriber::fmt().with_max_level(LevelFilter::WARN).with_writer(io::stderr).init();
    let code = run().await.unwrap_or_else(|message| {
        say(io::stderr(), message);
        2
    });
    // Returning would drop the runtime, which waits for blocking threads without a limit, since nothing can stop them.
    // Orders that are not written by now have been reported; SQLite rolls back a transaction that was not committed.
    process::exit(code)
}

/// Returns the exit code, or why the service could not start.
async fn run() -> Result<i32, String> {
    let settings = Settings::from_env()?;
    let db = open(&settings.db)
        .map_err(|error| format!("EVENTS_DB must be a file for SQLite, and is {:?}: {error}", settings.db))?;
    let no_listener = |error| format!("ADDR must be an address that is free, and is {}: {error}", settings.addr);
    let listener = TcpListener::bind(settings.addr).await.map_err(no_listener)?;
    let addr = listener.local_addr().map_err(no_listener)?;
    let mut signals = signals().map_err(|error| format!("no signals: {error}"))?;

    let handle = TrackEventsHandle::new();
    let undelivered = settings.undelivered();
    let orders = handle
        .sink("order.created", OrderTable { db: Arc::new(Mutex::new(db)), delay: settings.event_delay })
        .on_undelivered(move |orders| {
            // After a panic here the orders are lost: that is logged, and they are counted as panicked.
            append(&undelivered, &orders).unwrap_or_else(|error| panic!("{}: {error}", undelivered.display()));
        })
        .build()
        .map_err(|error| error.to_string())?;
    let deadline = Arc::new(OnceLock::new());
    let shop = Shop { orders, handle: handle.clone(), deadline: Arc::clone(&deadline) };
    let (stop_server, stopped) = oneshot::channel::<()>();
    let server = axum::serve(listener, router(shop)).with_graceful_shutdown(async { drop(stopped.await) });
    let server = tokio::spawn(server.into_future());

    say(
        io::stdout(),
        format_args!(
            "listening on http://{addr}, orders go to {}\n\
             open http://{addr}/ in a browser\n\
             curl http://{addr}/orders -H content-type:application/json -d '{{\"item\":\"book\",\"quantity\":1}}'\n\
             curl http://{addr}/stats\n\
             curl -N http://{addr}/ticker\n\
             websocat ws://{addr}/echo",
            settings.db.display(),
        ),
    );
    signals.next().await;
    let _ = deadline.set(Instant::now() + settings.drain_limit);
    Ok(shut_down(&handle, server, stop_server, signals, settings.drain_limit).await)
}

/// Readiness fails, load balancers stop routing to this instance, the server stops, the events end: all within one limit.
async fn shut_down(
    handle: &TrackEventsHandle,
    server: JoinHandle<io::Result<()>>,
    stop_server: oneshot::Sender<()>,
    mut signals: impl Stream<Item = ()> + Send + Unpin + 'static,
    limit: Duration,
) -> i32 {
    let signalled = Instant::now();
    handle.begin_drain();
    say(io::stdout(), format_args!("draining for at most {limit:?}; a second signal interrupts it"));
    let interrupted = async move { drop(timeout_at(signalled + limit, signals.next()).await) }.shared();

    // `/healthz` is 503 from now on. Until the load balancers have seen it, requests still arrive and are served.
    let _ = timeout_at(signalled + limit / 10, interrupted.clone()).await;
    drop(stop_server);
    // Without a limit, a client that has sent half a request, or is silent on HTTP/2, would keep the server from stopping.
    select! {
        biased;
        _ = server => {}
        _ = timeout_at(signalled + limit / 2, interrupted.clone()) => {
            say(io::stderr(), "the server was abandoned before it had stopped");
        }
    }
    // The drain also waits for requests on connections of a server that was abandoned, so that none of their orders is lost.
    match handle.drain_until(interrupted).await {
        Ok(report) => {
            say(io::stdout(), &report);
            if report.all_completed() { 0 } else { 1 }
        }
        Err(error) => {
            say(io::stderr(), error);
            1
        }
    }
}

#[derive(Clone)]
struct Shop {
    orders: EventSender<OrderRow>,
    handle: TrackEventsHandle,
    /// When the drain times out; set after the signal.
    deadline: Arc<OnceLock<Instant>>,
}

fn router(shop: Shop) -> Router {
    let layer = TrackEventsLayer::new(shop.handle.clone());
    Router::new()
        .route("/orders", post(create_order))
        .route("/healthz", get(healthz))
        .route("/stats", get(stats))
        .route("/ticker", get(ticker))
        .route("/echo", any(echo))
        .layer(layer)
        // Outside of the layer: they show the drain, which would wait for them.
        .route("/", get(page))
        .route("/live", get(live))
        .with_state(shop)
}

/// The body of a request.
#[derive(Deserialize)]
struct Order {
    item: String,
    quantity: NonZeroU32,
}

/// A row of the database.
#[derive(Serialize)]
struct OrderRow {
    id: Uuid,
    item: String,
    quantity: NonZeroU32,
    /// Milliseconds since 1970.
    created_at: i64,
}

async fn create_order(
    State(shop): State<Shop>,
    order: Result<Json<Order>, JsonRejection>,
) -> axum::response::Result<impl IntoResponse> {
    let Json(Order { item, quantity }) = order.map_err(|rejection| error(rejection.status(), rejection.body_text()))?;
    if item.trim().is_empty() {
        return Err(error(StatusCode::UNPROCESSABLE_ENTITY, "item: must not be empty"));
    }
    let id = Uuid::new_v4();
    let created_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64;
    // Pending from here on. If it is rejected, the client gets 503 and can try again.
    shop.orders.send(OrderRow { id, item, quantity, created_at })?;
    Ok((StatusCode::CREATED, Json(json!({ "id": id }))))
}

fn error(status: StatusCode, message: impl Display) -> ErrorResponse {
    (status, Json(json!({ "error": message.to_string() }))).into()
}

async fn healthz(State(shop): State<Shop>) -> (StatusCode, &'static str) {
    if shop.handle.is_draining() { (StatusCode::SERVICE_UNAVAILABLE, "draining") } else { (StatusCode::OK, "ok") }
}

async fn stats(State(shop): State<Shop>) -> Json<Snapshot> {
    Json(shop.handle.snapshot())
}

async fn page() -> Html<&'static str> {
    Html(include_str!("page.html"))
}

/// The state that the page shows.
#[derive(Serialize)]
struct Live {
    #[serde(flatten)]
    counts: Snapshot,
    sinks: Vec<SinkSnapshot>,
    drain_left_ms: Option<u64>,
}

impl Live {
    fn of(shop: &Shop) -> Self {
        let left = shop.deadline.get().map(|deadline| deadline.saturating_duration_since(Instant::now()));
        Self {
            counts: shop.handle.snapshot(),
            sinks: shop.handle.sinks(),
            drain_left_ms: left.map(|left| left.as_millis() as u64),
        }
    }

    /// Whether this is the last state to show.
    fn is_drained(&self) -> bool {
        self.drain_left_ms.is_some() && self.counts.open_requests == 0 && self.counts.pending == 0
    }
}

/// Ends when the drain has nothing more to wait for, so that the server can stop.
async fn live(State(shop): State<Shop>) -> Sse<impl Stream<Item = Result<Event, axum::Error>>> {
    let ticks = IntervalStream::new(interval(Duration::from_millis(100)));
    let states = ticks.scan(false, move |is_over, _| {
        let live = Live::of(&shop);
        let state = (!*is_over).then(|| Event::default().json_data(&live));
        *is_over = live.is_drained();
        ready(state)
    });
    Sse::new(states)
}

/// An endless stream, which ends when the drain begins: it would keep the server from stopping.
async fn ticker(State(shop): State<Shop>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let ticks = IntervalStream::new(interval(Duration::from_secs(1)));
    Sse::new(ticks.map(|_| Ok(Event::default().data("tick"))).take_until(shop.handle.draining()))
}

/// A WebSocket is not part of the exchange that opened it, and the server does not wait for it. The guard makes the drain
/// wait for it.
async fn echo(events: Events, upgrade: WebSocketUpgrade) -> axum::response::Result<impl IntoResponse> {
    let handle = events.handle();
    let guard = handle.guard()?;
    Ok(upgrade.on_upgrade(async move |mut socket| {
        select! {
            _ = echo_all(&mut socket) => {}
            _ = handle.draining() => say_goodbye(&mut socket).await,
        }
        drop(socket);
        drop(guard);
    }))
}

async fn echo_all(socket: &mut WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        let echoed = match message {
            Message::Text(_) | Message::Binary(_) => socket.send(message).await,
            // Answered by axum.
            Message::Ping(_) | Message::Pong(_) | Message::Close(_) => Ok(()),
        };
        if echoed.is_err() {
            return;
        }
    }
}

/// Sends a close frame and waits a second for the client's.
async fn say_goodbye(socket: &mut WebSocket) {
    let away = CloseFrame { code: close_code::AWAY, reason: "the server stops".into() };
    let closing = async {
        if socket.send(Message::Close(Some(away))).await.is_ok() {
            while let Some(Ok(_)) = socket.recv().await {}
        }
    };
    let _ = timeout(Duration::from_secs(1), closing).await;
}

fn open(path: &Path) -> Result<Connection, Box<dyn Error>> {
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?;
    // Another process, such as the `sqlite3` shell, may hold the lock for a moment.
    db.busy_timeout(Duration::from_secs(1))?;
    // An empty path and `:memory:` are databases that end with the process. They have no WAL.
    let mode: String = db.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if mode != "wal" {
        return Err(format!("its journal mode is {mode}, not wal").into());
    }
    // A commit survives a crash of the process. A power failure may undo the last commits, but it would lose pending events
    // as well, so FULL, which syncs each commit to the disk, would not promise more.
    db.execute_batch(
        "PRAGMA synchronous = NORMAL;
         CREATE TABLE IF NOT EXISTS orders (
             id TEXT PRIMARY KEY, item TEXT NOT NULL, quantity INTEGER NOT NULL, created_at INTEGER NOT NULL
         ) STRICT;",
    )?;
    Ok(db)
}

struct OrderTable {
    db: Arc<Mutex<Connection>>,
    delay: Duration,
}

/// Writes each batch in one transaction. The crate logs an `Err`, and retries the batch.
impl EventSink<OrderRow> for OrderTable {
    type Error = Box<dyn Error + Send + Sync>;

    async fn deliver(&mut self, orders: Batch<OrderRow>) -> Result<(), Self::Error> {
        sleep(self.delay).await;
        let db = Arc::clone(&self.db);
        spawn_blocking(move || insert(&mut db.lock().unwrap_or_else(PoisonError::into_inner), &orders)).await??;
        Ok(())
    }
}

fn insert(db: &mut Connection, orders: &[OrderRow]) -> rusqlite::Result<()> {
    let transaction = db.transaction()?;
    {
        // An attempt that timed out may have written the order already.
        let mut insert = transaction
            .prepare_cached("INSERT OR IGNORE INTO orders (id, item, quantity, created_at) VALUES (?, ?, ?, ?)")?;
        for OrderRow { id, item, quantity, created_at } in orders {
            insert.execute(params![id.to_string(), item, quantity.get(), created_at])?;
        }
    }
    transaction.commit()
}

fn append(path: &Path, orders: &Undelivered<OrderRow>) -> io::Result<()> {
    let mut file = BufWriter::new(OpenOptions::new().create(true).append(true).open(path)?);
    for order in orders.iter() {
        serde_json::to_writer(&mut file, order)?;
        file.write_all(b"\n")?;
    }
    file.into_inner()?.sync_all()
}

struct Settings {
    addr: SocketAddr,
    db: PathBuf,
    event_delay: Duration,
    drain_limit: Duration,
}

impl Settings {
    /// The file for orders that could not be written in time.
    fn undelivered(&self) -> PathBuf {
        let mut path = self.db.clone().into_os_string();
        path.push(".undelivered.jsonl");
        path.into()
    }

    fn from_env() -> Result<Self, String> {
        let db = env::var_os("EVENTS_DB").map(PathBuf::from);
        Ok(Self {
            addr: variable("ADDR", "an IP address and a port, such as 127.0.0.1:3000")?
                .unwrap_or(SocketAddr::from(([127, 0, 0, 1], 3000))),
            db: db.unwrap_or_else(|| env::temp_dir().join("tower-track-events-orders.db")),
            event_delay: milliseconds("EVENT_DELAY_MS", 1)?,
            drain_limit: milliseconds("DRAIN_LIMIT_MS", 5000)?,
        })
    }
}

fn milliseconds(name: &str, default: u32) -> Result<Duration, String> {
    let value: Option<u32> = variable(name, "a number of milliseconds from 0 to 4294967295")?;
    Ok(Duration::from_millis(value.unwrap_or(default).into()))
}

fn variable<T: FromStr>(name: &str, allowed: &str) -> Result<Option<T>, String> {
    let Some(value) = env::var_os(name) else { return Ok(None) };
    let parsed = value.to_str().and_then(|text| text.parse().ok());
    parsed.map(Some).ok_or_else(|| format!("{name} must be {allowed}, and is {value:?}"))
}

/// Writes a line. If that fails the drain continues, where `println!` would panic: Ctrl-C also stops the `tee` behind a pipe.
fn say(mut to: impl Write, line: impl Display) {
    let _ = writeln!(to, "{line}").and_then(|()| to.flush());
}

fn signals() -> io::Result<impl Stream<Item = ()> + Send + Unpin + 'static> {
    let [terminate, interrupt] = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
    Ok(stream::select(SignalStream::new(terminate), SignalStream::new(interrupt)))
}
