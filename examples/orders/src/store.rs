//! The store: orders go to SQLite in batches, and to a file if that could not be done in time.

use std::{
    error::Error,
    fs::OpenOptions,
    io::{self, BufWriter, Write},
    num::NonZeroU32,
    path::Path,
    time::Duration,
};

use rusqlite::{Connection, OpenFlags, params};
use serde::Serialize;
use tower_track_events::Undelivered;
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

/// Opens the database. With `sync` a commit is on the disk before it returns.
pub(crate) fn open(path: &Path, sync: bool) -> Result<Connection, Box<dyn Error + Send + Sync>> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
    let db = Connection::open_with_flags(path, flags)?;
    // Another process, such as the `sqlite3` shell, may hold the lock for a moment.
    db.busy_timeout(Duration::from_secs(1))?;
    // An empty path and `:memory:` are databases that end with the process. They have no WAL.
    let mode: String = db.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if mode != "wal" {
        return Err(format!("its journal mode is {mode}, not wal").into());
    }
    // With NORMAL a commit survives a crash of the process, and a power failure may undo the last commits. If the answer
    // does not wait for the commit, a power failure loses pending events as well, and FULL would not promise more.
    db.pragma_update(None, "synchronous", if sync { "FULL" } else { "NORMAL" })?;
    db.execute_batch(
        "CREATE TABLE IF NOT EXISTS orders (
             id TEXT PRIMARY KEY, item TEXT NOT NULL, quantity INTEGER NOT NULL, created_at INTEGER NOT NULL
         ) STRICT;",
    )?;
    Ok(db)
}

/// Writes a batch in one transaction.
pub(crate) fn insert(db: &mut Connection, orders: &[OrderRow]) -> rusqlite::Result<()> {
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
