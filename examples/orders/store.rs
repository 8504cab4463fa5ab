//! The store: orders go to SQLite in batches, and to a file if that could not be done in time.

use std::{
    error::Error,
    fs::OpenOptions,
    io::{self, BufWriter, Write},
    num::NonZeroU32,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags, params};
use serde::Serialize;
use tokio::{task::spawn_blocking, time::sleep};
use tower_track_events::{Batch, EventSink, Undelivered};
use uuid::Uuid;

/// A row of the database.
#[derive(Serialize)]
pub(crate) struct OrderRow {
    pub(crate) id: Uuid,
    pub(crate) item: String,
    pub(crate) quantity: NonZeroU32,
    /// Milliseconds since 1970.
    pub(crate) created_at: i64,
}

pub(crate) struct OrderTable {
    db: Arc<Mutex<Connection>>,
    delay: Duration,
}

impl OrderTable {
    pub(crate) fn open(path: &Path, delay: Duration) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        let db = Connection::open_with_flags(path, flags)?;
        // Another process, such as the `sqlite3` shell, may hold the lock for a moment.
        db.busy_timeout(Duration::from_secs(1))?;
        // An empty path and `:memory:` are databases that end with the process. They have no WAL.
        let mode: String = db.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
        if mode != "wal" {
            return Err(format!("its journal mode is {mode}, not wal").into());
        }
        // A commit survives a crash of the process. A power failure may undo the last commits, but it would lose
        // pending events as well, so FULL, which syncs each commit to the disk, would not promise more.
        db.execute_batch(
            "PRAGMA synchronous = NORMAL;
             CREATE TABLE IF NOT EXISTS orders (
                 id TEXT PRIMARY KEY, item TEXT NOT NULL, quantity INTEGER NOT NULL, created_at INTEGER NOT NULL
             ) STRICT;",
        )?;
        Ok(Self { db: Arc::new(Mutex::new(db)), delay })
    }
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

/// Appends orders that could not be written in time, one JSON object a line.
pub(crate) fn append(path: &Path, orders: &Undelivered<OrderRow>) -> io::Result<()> {
    let mut file = BufWriter::new(OpenOptions::new().create(true).append(true).open(path)?);
    for order in orders.iter() {
        serde_json::to_writer(&mut file, order)?;
        file.write_all(b"\n")?;
    }
    file.into_inner()?.sync_all()
}
