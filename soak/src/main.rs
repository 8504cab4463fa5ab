//! A soak test: load, faults, signals and floods, with accounting for every event. It prints a table, and fails if a
//! figure is outside its bar.
//!
//! ```text
//! scripts/soak --short    under two minutes, needs nothing but Rust and a C compiler
//! scripts/soak            under ten minutes, needs wrk, h2load and valgrind as well
//! ```

#![allow(clippy::print_stdout, reason = "the program prints its results")]

mod client;
mod process;
mod serve;
mod table;

use std::{collections::HashSet, path::Path, time::Duration};

use fastrand::Rng;
use rustix::process::Signal;
use serde_json::Value;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use self::{
    client::{Http1, Http2},
    process::{Orders, Server},
    table::Table,
};

const MIB: u64 = 1 << 20;
const CAPACITY: u64 = 10_000;

/// How much of each load.
struct Amount {
    requests: u64,
    faults: u64,
    terms: u64,
    kills: u64,
    flood: Duration,
    steady: Duration,
    with_tools: bool,
}

const SHORT: Amount = Amount {
    requests: 50_000,
    faults: 2_000,
    terms: 20,
    kills: 3,
    flood: Duration::from_secs(3),
    steady: Duration::from_secs(12),
    with_tools: false,
};

const FULL: Amount = Amount {
    requests: 1_000_000,
    faults: 20_000,
    terms: 200,
    kills: 10,
    flood: Duration::from_secs(8),
    steady: Duration::from_secs(60),
    with_tools: true,
};

#[tokio::main]
async fn main() -> std::process::ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let amount = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", capacity, event_ms] => {
            let number = |text: &str| text.parse().expect("a number");
            return serve::serve(number(capacity) as usize, Duration::from_millis(number(event_ms))).await;
        }
        ["--short"] => SHORT,
        [] => FULL,
        _ => {
            eprintln!("usage: soak [--short]");
            return std::process::ExitCode::from(2);
        }
    };
    let (mut table, began) = (Table::default(), Instant::now());
    for (tool, package) in [("wrk", "wrk"), ("h2load", "nghttp2-client"), ("valgrind", "valgrind")] {
        if amount.with_tools && !process::is_there(tool) {
            eprintln!("{tool} is not installed: apt install {package}, or run with --short");
            return std::process::ExitCode::from(2);
        }
    }
    let mut random = random();
    requests(&mut table, &amount).await;
    faults(&mut table, &amount, &mut random).await;
    signals(&mut table, &amount, &mut random).await;
    for flood in [Flood::Honest, Flood::Reset, Flood::WaitAndReset] {
        attack(&mut table, &amount, flood).await;
    }
    steady(&mut table, &amount).await;
    if amount.with_tools {
        leaks(&mut table).await;
    }
    table.print(began.elapsed())
}

/// Each request has two events, one of the layer and one of the handler.
async fn requests(table: &mut Table, amount: &Amount) {
    for (name, http2) in [("HTTP/1 requests", false), ("HTTP/2 requests", true)] {
        let server = Server::start(65_536, 0).await;
        let sent = match (amount.with_tools, http2) {
            (true, false) => process::wrk(server.address, amount.requests).await,
            (true, true) => process::h2load(server.address, amount.requests).await,
            (false, false) => client::http1_load(server.address, amount.requests).await,
            (false, true) => client::http2_load(server.address, amount.requests).await,
        };
        let (code, report) = server.terminate().await;
        let count = |field: &str| report["ended"][field].as_u64().unwrap_or(0);
        table.row(name, sent, "all", sent >= amount.requests);
        // wrk disconnects during its last requests, and does not count them.
        let accepted = report["accepted"].as_u64().unwrap_or(0);
        let is_right = if amount.with_tools && !http2 { accepted >= 2 * sent } else { accepted == 2 * sent };
        table.row("  events accepted", accepted, "two for each", is_right);
        table.row("  events lost", accepted.abs_diff(count("completed")), "0", accepted == count("completed"));
        table.row("  exit code", code, "0", code == 0);
    }
}

/// Random numbers from the seed of the variable `SOAK_SEED`, or else from one that is printed.
fn random() -> Rng {
    let set = std::env::var("SOAK_SEED").ok().map(|seed| seed.parse().expect("SOAK_SEED is a number"));
    let seed = set.unwrap_or_else(|| Rng::new().get_seed());
    println!("SOAK_SEED={seed}");
    Rng::with_seed(seed)
}

/// A mix of faults, each with an outcome or an ending of its own.
async fn faults(table: &mut Table, amount: &Amount, random: &mut Rng) {
    let server = Server::start(65_536, 0).await;
    let mut client = Http2::connect(server.address).await;
    const PATHS: [&str; 7] = ["/", "/panic", "/body-error", "/event-fails", "/event-panics", "/stall", "/never"];
    let mut asked = [0_u64; PATHS.len()];
    let mut left = amount.faults;
    while left > 0 {
        let batch = left.min(40);
        left -= batch;
        let mut never = Vec::new();
        for _ in 0..batch {
            let kind = random.usize(..PATHS.len());
            asked[kind] += 1;
            match PATHS[kind] {
                "/never" => never.push(client.send(PATHS[kind]).await),
                // The client leaves in the middle of the body.
                "/stall" => client.send(PATHS[kind]).await.read_first_and_reset().await,
                _ => client.send(PATHS[kind]).await.read_to_end().await,
            }
        }
        // The client leaves before the head, once the handlers run.
        while server.stats().await["now"]["open_requests"].as_u64() < Some(never.len() as u64) {
            sleep(Duration::from_millis(1)).await;
        }
        never.into_iter().for_each(client::Exchange::reset);
    }
    drop(client);
    let (code, report) = server.terminate().await;
    let outcomes = &report["outcomes"];
    for (outcome, kinds) in [
        ("panicked", &[1][..]),
        ("body_error", &[2]),
        ("aborted", &[5]),
        ("no_response", &[6]),
        ("complete", &[0, 3, 4]),
    ] {
        let expected: u64 = kinds.iter().map(|kind| asked[*kind]).sum();
        let seen = outcomes[outcome].as_u64().unwrap_or(0);
        table.row(&format!("faults: {outcome}"), seen, &expected.to_string(), seen == expected);
    }
    for (ending, kind) in [("failed", 3), ("panicked", 4)] {
        let seen = report["ended"][ending].as_u64().unwrap_or(0);
        table.row(&format!("faults: events {ending}"), seen, &asked[kind].to_string(), seen == asked[kind]);
    }
    // Events failed, so the exit code is not 0.
    table.row("  exit code", code, "1", code == 1);
}

/// The example is stopped or killed at a random moment. The client counts its own orders.
async fn signals(table: &mut Table, amount: &Amount, random: &mut Rng) {
    let (mut answered, mut lost, mut unclean) = (0, 0, 0);
    for _ in 0..amount.terms {
        let round = stop_at_a_random_moment(random, Signal::TERM, 5).await;
        answered += round.answered;
        lost += round.lost;
        unclean += u64::from(round.code != Some(0));
    }
    table.row("SIGTERMs, orders answered", answered, "more than 0", answered > 0);
    table.row("  orders lost", lost, "0", lost == 0);
    table.row("  exit codes other than 0", unclean, "0", unclean == 0);

    // The control: a check that finds no loss here would find none above either.
    let mut lost = 0;
    for _ in 0..amount.kills {
        lost += stop_at_a_random_moment(random, Signal::KILL, 50).await.lost;
    }
    table.row("SIGKILLs, orders lost", lost, "more than 0", lost > 0);
}

struct Round {
    answered: u64,
    lost: u64,
    code: Option<i32>,
}

async fn stop_at_a_random_moment(random: &mut Rng, signal: Signal, event_ms: u64) -> Round {
    let orders = Orders::start(event_ms).await;
    let mut clients = JoinSet::new();
    for _ in 0..8 {
        clients.spawn(client::order_until_closed(orders.address));
    }
    sleep(Duration::from_millis(random.u64(20..200))).await;
    orders.signal(signal);
    let mut answered = Vec::new();
    while let Some(ids) = clients.join_next().await {
        answered.extend(ids.expect("a client does not panic"));
    }
    let (code, rows) = orders.end().await;
    let written: HashSet<_> = rows.into_iter().collect();
    let lost = answered.iter().filter(|id| !written.contains(*id)).count() as u64;
    Round { answered: answered.len() as u64, lost, code }
}

#[derive(Clone, Copy)]
enum Flood {
    Honest,
    Reset,
    WaitAndReset,
}

/// One client sends as fast as it can, each event takes ten seconds, and an honest client asks beside it.
async fn attack(table: &mut Table, amount: &Amount, flood: Flood) {
    let name = match flood {
        Flood::Honest => "flood of requests",
        Flood::Reset => "flood of HEADERS + RST",
        Flood::WaitAndReset => "flood of HEADERS, handler, RST",
    };
    let server = Server::start(CAPACITY, 10_000).await;
    let (address, before) = (server.address, server.resident());
    let until = Instant::now() + amount.flood;
    let honest = tokio::spawn(async move {
        let (mut client, mut failed, mut worst) = (Http1::connect(address).await, 0_u64, Duration::ZERO);
        while Instant::now() < until {
            let asked = Instant::now();
            failed += u64::from(client.get("/").await != Some(200));
            worst = worst.max(asked.elapsed());
            sleep(Duration::from_millis(20)).await;
        }
        (failed, worst)
    });
    let sent = match flood {
        Flood::Honest => client::http2_flood(address, "/", until, |exchange| exchange.read_to_end()).await,
        Flood::Reset => client::reset_flood(address, until).await,
        Flood::WaitAndReset => {
            client::http2_flood(address, "/stall", until, |exchange| exchange.read_first_and_reset()).await
        }
    };
    let (failed, worst) = honest.await.expect("the honest client does not panic");
    let stats = server.stats().await;
    let peak = stats["peak"].as_u64().unwrap_or(u64::MAX);
    let growth = server.peak_resident().saturating_sub(before) / MIB;
    table.row(name, sent, "more than 0", sent > 0);
    table.row("  pending at peak", peak, &format!("at most {CAPACITY}"), peak <= CAPACITY);
    if !matches!(flood, Flood::Reset) {
        let rejected = stats["now"]["rejected"].as_u64().unwrap_or(0);
        table.row("  events rejected", rejected, "more than 0", rejected > 0 && peak == CAPACITY);
    }
    table.row("  growth of memory, MiB", growth, "under 64", growth < 64);
    table.row("  honest requests failed", failed, "0", failed == 0);
    table.row("  slowest of them, ms", worst.as_millis(), "under 1000", worst < Duration::from_secs(1));
    table.row("  conserved", is_conserved(&stats["now"]), "true", is_conserved(&stats["now"]));
    server.kill().await;
}

fn is_conserved(now: &Value) -> bool {
    let count = |value: &Value| value.as_u64().unwrap_or(u64::MAX / 16);
    let ended: u64 = ["completed", "failed", "panicked", "timed_out", "aborted"]
        .map(|ending| count(&now["ended"][ending]))
        .iter()
        .sum();
    count(&now["accepted"]) == ended + count(&now["pending"])
}

/// Memory does not grow under a steady load.
async fn steady(table: &mut Table, amount: &Amount) {
    let server = Server::start(65_536, 1).await;
    let (address, until) = (server.address, Instant::now() + amount.steady);
    let load = tokio::spawn(async move {
        let mut requests = 0;
        while Instant::now() < until {
            requests += client::http1_load(address, 2_000).await + client::http2_load(address, 2_000).await;
        }
        requests
    });
    sleep(amount.steady / 3).await;
    let early = server.resident();
    let requests = load.await.expect("the client does not panic");
    let growth = server.resident().saturating_sub(early) / MIB;
    table.row("steady load, requests", requests, "more than 0", requests > 0);
    table.row("  growth of memory, MiB", growth, "under 8", growth < 8);
    let (code, _) = server.terminate().await;
    table.row("  exit code", code, "0", code == 0);
}

/// The whole life of a server under valgrind.
async fn leaks(table: &mut Table) {
    let server = Server::start_under_valgrind().await;
    let sent = client::http1_load(server.address, 200).await + client::http2_load(server.address, 200).await;
    let (code, _) = server.terminate().await;
    table.row("requests under valgrind", sent, "400", sent == 400);
    table.row("  exit code, 9 for a leak", code, "0", code == 0);
}

/// Where the example was built.
fn example() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/release/orders"))
}
