//! An orders API that answers at once, writes the orders to SQLite in batches, and loses none at a shutdown.
//!
//! ```text
//! cargo run -p orders
//! ```
//!
//! It prints commands to try, and the address of a page that shows its state; Ctrl-C or SIGTERM stops it. When it exits
//! with 0, every order that was answered with 201 is in the database. Orders that it could not write in time are in a
//! file beside the database, one JSON object a line, whose name ends in `.undelivered.jsonl`. These variables change
//! it:
//!
//! - `ADDR`: where it listens, 127.0.0.1:3000 unless set; with port 0 it takes a free one.
//! - `EVENTS_DB`: the database, a file in the system's folder for temporary files unless set.
//! - `EVENT_DELAY_MS`: how slow the store is with each batch, 1 unless set.
//! - `ACK`: with 1 an order is answered with 201 when it is on the disk, and not when it is accepted. Then SIGKILL and a
//!   power failure lose no order that was answered.
//! - `DRAIN_LIMIT_MS`: the most that stopping may take, counted from the signal, 5000 unless set.
//!
//! Exit code: 0 if every order was written, 1 if not or if it could not start, 2 if a setting is invalid.

mod api;
mod page;
mod settings;
mod store;

use std::{
    error::Error,
    fmt::Display,
    io::{self, Write},
    process, thread,
};

use tokio::net::TcpListener;
use tower_track_events::{Stop, TrackEventsHandle};

use crate::{api::Shop, page::Pages, settings::Settings, store::OrderRow};

#[tokio::main]
async fn main() {
    // Ctrl-C also stops the `tee` behind a pipe. That must not end this process.
    tracing_subscriber::fmt().with_writer(io::stderr).log_internal_errors(false).init();
    let settings = Settings::from_env().unwrap_or_else(|message| {
        say(io::stderr(), message);
        process::exit(2)
    });
    let handle = TrackEventsHandle::new();
    let (limit, undelivered) = (settings.drain_limit, settings.undelivered());
    let pages = Pages::new(handle.clone());
    // For a tenth of the limit load balancers see that `/healthz` fails.
    let shutdown = handle.shutdown().limit(limit).readiness_delay(limit / 10);
    let report = shutdown.serve(|stop| serve(settings, handle, pages.clone(), stop)).await;
    pages.end(&report, &undelivered).await;
    report.exit()
}

async fn serve(
    settings: Settings,
    handle: TrackEventsHandle,
    pages: Pages,
    stop: Stop,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut db = store::open(&settings.db, settings.ack)
        .map_err(|error| format!("EVENTS_DB must be a file for SQLite, and is {:?}: {error}", settings.db))?;
    let undelivered = settings.undelivered();
    let orders = handle
        .sink::<OrderRow>("order.created")
        .on_undelivered(move |orders| {
            // After a panic here the orders are lost: that is logged, and they are counted as panicked.
            store::append(&undelivered, &orders).unwrap_or_else(|error| panic!("{}: {error}", undelivered.display()));
        })
        .deliver_blocking(move |orders| {
            thread::sleep(settings.event_delay);
            store::insert(&mut db, orders)
        })?;
    let listener = TcpListener::bind(settings.addr).await?;
    let addr = listener.local_addr()?;
    say(
        io::stdout(),
        format_args!(
            "listening on http://{addr}, orders go to {}\n\
             open http://{addr}/ in a browser\n\
             curl http://{addr}/orders -H content-type:application/json -d '{{\"item\":\"book\",\"quantity\":1}}'\n\
             curl http://{addr}/stats",
            settings.db.display(),
        ),
    );
    let app = api::router(Shop { orders, handle, ack: settings.ack }).merge(pages.routes());
    axum::serve(listener, app).with_graceful_shutdown(stop).await?;
    Ok(())
}

/// Writes a line. Nobody may read the pipe any more, where `println!` would panic.
fn say(mut to: impl Write, line: impl Display) {
    let _ = writeln!(to, "{line}").and_then(|()| to.flush());
}
