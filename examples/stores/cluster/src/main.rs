//! Load, signals and outages against the stores, with accounting for every order.
//!
//! ```text
//! scripts/stores
//! ```
//!
//! starts the servers, builds the examples, and runs this program. It runs the cases whose servers are set in `PG_URL`,
//! `NATS_URL` and `REDIS_URL`, and prints which cases it left out. It prints one table, and fails if a row fails.

#![allow(clippy::print_stdout, reason = "the program prints its results")]

mod client;
mod process;
mod store;
mod table;

use std::{
    collections::HashSet,
    env, fs,
    path::Path,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rustix::process::Signal;
use tokio::{
    join,
    time::{Instant, sleep},
};

use crate::{
    client::{Answered, Load, half_a_request},
    process::{Instance, servers},
    store::{Store, order_id},
    table::Table,
};

/// How many orders a case places at most, so that it is bounded.
const ORDERS: usize = 4_000;

#[tokio::main]
async fn main() -> ExitCode {
    let began = Instant::now();
    let mut table = Table::default();
    let postgres = env::var("PG_URL").ok();
    let nats = env::var("NATS_URL").ok();
    let redis = env::var("REDIS_URL").ok();

    for (name, store) in [
        ("postgres", postgres.as_deref().map(|url| Store::Postgres(url.to_owned()))),
        ("nats", nats.as_deref().map(|url| Store::Nats(url.to_owned()))),
        ("redis", redis.as_deref().map(|url| Store::Redis(url.to_owned()))),
        ("outbox", postgres.as_deref().and(nats.as_deref()).map(|url| Store::Nats(url.to_owned()))),
    ] {
        match store {
            Some(store) => stopped_under_load(&mut table, name, &store).await,
            None => table.left_out(&format!("{name}: SIGTERM under load")),
        }
    }
    match &nats {
        Some(url) => {
            let store = Store::Nats(url.clone());
            one_of_two_is_stopped(&mut table, &store).await;
            broker_is_down(&mut table, &store).await;
            second_signal(&mut table, &store).await;
            killed(&mut table, "nats", &store).await;
            killed_many_times(&mut table, "nats", &store).await;
        }
        None => table.left_out("nats: two instances, an outage, a second signal, SIGKILL"),
    }
    match &postgres {
        Some(url) => killed_many_times(&mut table, "postgres", &Store::Postgres(url.clone())).await,
        None => table.left_out("postgres: SIGKILL"),
    }
    match (&postgres, &nats) {
        (Some(_), Some(url)) => killed(&mut table, "outbox", &Store::Nats(url.clone())).await,
        _ => table.left_out("outbox: SIGKILL"),
    }
    table.print(began.elapsed())
}

/// Every order that was answered with 201 is in the store when the process has ended.
async fn stopped_under_load(table: &mut Table, name: &str, store: &Store) {
    let instance = Instance::start(name).await;
    let addresses = [instance.address];
    let load = Load::new(ORDERS);
    let stop = async {
        load.answered_at_least(ORDERS / 4).await;
        instance.signal(Signal::TERM);
    };
    let (answered, ()) = join!(load.run(&addresses), stop);
    let code = instance.end().await;
    let found = store.ids().await;
    table.head(&format!("{name}: SIGTERM under load"));
    table.row("answered with 201", answered.len(), "> 0", !answered.is_empty());
    table.row("lost", lost(&answered, &found).count(), "0", lost(&answered, &found).count() == 0);
    table.row("exit code", code.unwrap_or(-1), "0", code == Some(0));
}

/// Two instances publish to one stream; one is stopped while orders are placed with both.
async fn one_of_two_is_stopped(table: &mut Table, store: &Store) {
    let (first, second) = join!(Instance::start("nats"), Instance::start("nats"));
    let load = Load::new(ORDERS);
    let stop = async {
        load.answered_at_least(ORDERS / 4).await;
        first.signal(Signal::TERM);
    };
    let addresses = [first.address, second.address];
    let (answered, ()) = join!(load.run(&addresses), stop);
    let first_code = first.end().await;
    second.signal(Signal::TERM);
    let second_code = second.end().await;
    let found = store.ids().await;
    let lost = lost(&answered, &found).count();
    let unique = found.iter().collect::<HashSet<_>>().len();
    let again = &found[found.len().saturating_sub(100)..];
    let dropped = store.publish_again(again).await;
    let grown = store.count().await - found.len();
    table.head("nats: one of two instances is stopped");
    table.row("answered with 201", answered.len(), "> 0", !answered.is_empty());
    table.row("lost", lost, "0", lost == 0);
    table.row("in the stream more than once", found.len() - unique, "0", found.len() == unique);
    table.row("of 100 published again, dropped", dropped, "100", dropped == 100 && grown == 0);
    table.row(
        "exit codes",
        format!("{first_code:?} {second_code:?}"),
        "0 and 0",
        first_code == second_code && first_code == Some(0),
    );
}

/// The broker is stopped for three seconds and started again, while orders are placed at a steady pace.
async fn broker_is_down(table: &mut Table, store: &Store) {
    let instance = Instance::start("nats").await;
    let addresses = [instance.address];
    let before = store.count().await;
    let load = Load::new(ORDERS).paced(Duration::from_millis(20));
    let is_down = Arc::new(AtomicBool::new(false));
    let outage = async {
        sleep(Duration::from_secs(2)).await;
        is_down.store(true, Ordering::Relaxed);
        servers("stop", "nats").await;
        sleep(Duration::from_secs(3)).await;
        servers("start", "nats").await;
        is_down.store(false, Ordering::Relaxed);
        sleep(Duration::from_secs(2)).await;
        instance.signal(Signal::TERM);
    };
    let (answered, ()) = join!(load.run_noting(&addresses, &is_down), outage);
    let code = instance.end().await;
    let found = store.ids().await;
    let lost = lost(&answered, &found).count();
    let unique = found.iter().collect::<HashSet<_>>().len();
    let (usual, during): (Vec<_>, Vec<_>) = answered.iter().partition(|answered| !answered.noted);
    let (usual, during) = (percentiles(&usual), percentiles(&during));
    table.head("nats: the broker is down for three seconds");
    table.row("answered with 201", answered.len(), "> 0", !answered.is_empty());
    table.row("  meanwhile", during.count, "> 0", during.count > 0);
    table.row("lost", lost, "0", lost == 0);
    table.row("in the stream more than once", found.len() - unique, "0", found.len() == unique);
    table.row("  new in the stream", found.len() - before, "all", found.len() - before >= answered.len());
    table.row("p50 before, ms", format!("{:.2}", usual.p50), "", true);
    table.row("p50 meanwhile, ms", format!("{:.2}", during.p50), "< 5", during.p50 < 5.0);
    table.row("p99 before, ms", format!("{:.2}", usual.p99), "", true);
    table.row("p99 meanwhile, ms", format!("{:.2}", during.p99), "< 50", during.p99 < 50.0);
    table.row("slowest before, ms", format!("{:.2}", usual.slowest), "", true);
    table.row("slowest meanwhile, ms", format!("{:.2}", during.slowest), "< 500", during.slowest < 500.0);
    table.row("exit code", code.unwrap_or(-1), "0", code == Some(0));
}

/// The broker is down and a client has sent half a request, so that neither the events nor the server can end. A second
/// signal stops the process at once, and the orders that could not be stored are in the file.
async fn second_signal(table: &mut Table, store: &Store) {
    let mut instance = Instance::start("nats").await;
    let addresses = [instance.address];
    servers("stop", "nats").await;
    let answered = Load::new(ORDERS / 10).run(&addresses).await;
    let half = half_a_request(instance.address).await;
    instance.signal(Signal::TERM);
    let draining = instance.line().await;
    // A signal within half a second of the first is the same one, forwarded.
    sleep(Duration::from_millis(600)).await;
    let signalled = Instant::now();
    instance.signal(Signal::TERM);
    let report = instance.line().await;
    let spill = instance.spill.clone();
    let code = instance.end().await;
    let took = signalled.elapsed();
    drop(half);
    servers("start", "nats").await;
    let spilled = spilled(&spill);
    let found: Vec<_> = store.ids().await.into_iter().chain(spilled.iter().cloned()).collect();
    let lost = lost(&answered, &found).count();
    table.head("nats: the broker is down, a second signal");
    table.row("answered with 201", answered.len(), "> 0", !answered.is_empty());
    table.row("in the file", spilled.len(), "> 0", !spilled.is_empty());
    table.row("lost", lost, "0", lost == 0);
    table.row("says that it drains", draining.is_some(), "true", draining.as_deref() == Some("draining"));
    table.row("says nothing of success", report.is_none(), "true", report.is_none());
    table.row("from the second signal to the end, ms", took.as_millis(), "< 1000", took < Duration::from_secs(1));
    table.row("exit code", code.unwrap_or(-1), "1", code == Some(1));
}

/// The ids in the file of orders that could not be stored. Removes the file.
fn spilled(path: &Path) -> Vec<String> {
    let Ok(text) = fs::read_to_string(path) else { return Vec::new() };
    fs::remove_file(path).expect("it can be removed");
    text.lines().map(|line| order_id(line.as_bytes())).collect()
}

/// SIGKILL under load. Then the process is started again, and stopped gracefully.
async fn killed(table: &mut Table, name: &str, store: &Store) {
    let instance = Instance::start(name).await;
    let addresses = [instance.address];
    let load = Load::new(ORDERS);
    let killed_at = AtomicUsize::new(0);
    let began = Instant::now();
    let kill = async {
        load.answered_at_least(ORDERS / 4).await;
        instance.signal(Signal::KILL);
        killed_at.store(began.elapsed().as_micros() as usize, Ordering::Relaxed);
    };
    let (answered, ()) = join!(load.run(&addresses), kill);
    instance.end().await;
    let again = Instance::start(name).await;
    again.signal(Signal::TERM);
    let code = again.end().await;
    let found = store.ids().await;
    let lost: Vec<_> = lost(&answered, &found).collect();
    let killed_at = began + Duration::from_micros(killed_at.into_inner() as u64);
    let oldest = lost.iter().map(|answered| killed_at.saturating_duration_since(answered.at)).max().unwrap_or_default();
    table.head(&format!("{name}: SIGKILL under load"));
    table.row("answered with 201", answered.len(), "> 0", !answered.is_empty());
    if name == "outbox" {
        table.row("lost", lost.len(), "0", lost.is_empty());
    } else {
        // Only orders that were pending, and none that was answered long before.
        table.row("lost", lost.len(), "what was pending", lost.len() < answered.len());
        table.row("  the first before the end, ms", oldest.as_millis(), "< 1000", oldest < Duration::from_secs(1));
    }
    table.row("exit code when started again", code.unwrap_or(-1), "0", code == Some(0));
}

/// SIGKILL under load, again and again: no order is lost that was answered when it was stored. If orders are answered
/// when they are accepted some are lost: otherwise the load would prove nothing.
async fn killed_many_times(table: &mut Table, name: &str, store: &Store) {
    const KILLS: usize = 20;
    table.head(&format!("{name}: SIGKILL under load, {KILLS} times"));
    for (ack, when) in [("1", "stored"), ("0", "accepted")] {
        let mut answered = Vec::new();
        for round in 0..KILLS {
            let instance = Instance::start_with(name, &[("ACK", ack)]).await;
            let addresses = [instance.address];
            let load = Load::new(ORDERS);
            let kill = async {
                load.answered_at_least(50 + 7 * round).await;
                instance.signal(Signal::KILL);
            };
            let (orders, ()) = join!(load.run(&addresses), kill);
            answered.extend(orders);
            instance.end().await;
        }
        let found = store.ids().await;
        let lost = lost(&answered, &found).count();
        table.row(&format!("answered when {when}"), answered.len(), "> 0", !answered.is_empty());
        let (bar, holds) = if ack == "1" { ("0", lost == 0) } else { ("> 0", lost > 0) };
        table.row("  lost", lost, bar, holds);
    }
}

/// The orders that were answered and are not in the store.
fn lost<'a>(answered: &'a [Answered], found: &[String]) -> impl Iterator<Item = &'a Answered> {
    let found: HashSet<_> = found.iter().cloned().collect();
    answered.iter().filter(move |answered| !found.contains(&answered.id))
}

/// In milliseconds.
struct Percentiles {
    count: usize,
    p50: f64,
    p99: f64,
    slowest: f64,
}

fn percentiles(answered: &[&Answered]) -> Percentiles {
    let mut times: Vec<_> = answered.iter().map(|answered| answered.took.as_secs_f64() * 1e3).collect();
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times.get((times.len() as f64 * share) as usize).or(times.last()).copied().unwrap_or(0.0);
    Percentiles { count: times.len(), p50: at(0.5), p99: at(0.99), slowest: at(1.0) }
}
