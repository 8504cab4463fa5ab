//! One table of cases, run on every server, with real sockets, processes and signals.
//!
//! Each case expects the exit code, when the process ends, and what its report says.

mod cases;
mod clients;
mod document;
mod process;
mod server;

use std::{net::SocketAddr, time::Duration};

use futures_util::{StreamExt, stream};
use rustix::process::Signal;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep_until, timeout},
};

use self::{
    cases::{Case, LIMIT, Servers, Signals, When, cases, version},
    clients::{Fault, Visit},
    process::{End, PATIENCE, Process},
    server::{Extra, Framework},
};

/// How many processes run at the same time for each server.
const PROCESSES: usize = 4;

async fn every_case(server: Framework) {
    let cases = cases();
    let cases: Vec<_> = cases.iter().filter(|case| case.servers().any(|other| other == server)).collect();
    let count = cases.len();
    let runs = cases.into_iter().map(|case| async move {
        let run = timeout(2 * PATIENCE, run(case, server)).await;
        let fault = run.unwrap_or_else(|_| Err("it did not end".into())).err()?;
        Some(format!("{server:?}: {}: {fault}", case.name))
    });
    let faults: Vec<_> = stream::iter(runs).buffer_unordered(PROCESSES).filter_map(async |fault| fault).collect().await;
    assert!(faults.is_empty(), "{} of {count} cases failed:\n{}", faults.len(), faults.join("\n"));
}

#[tokio::test]
async fn axum_stops_as_the_table_says() {
    every_case(Framework::Axum).await;
}

#[tokio::test]
async fn hyper_stops_as_the_table_says() {
    every_case(Framework::Hyper).await;
}

#[tokio::test]
async fn axum_server_stops_as_the_table_says() {
    every_case(Framework::AxumServer).await;
}

#[tokio::test]
async fn tonic_stops_as_the_table_says() {
    every_case(Framework::Tonic).await;
}

#[test]
fn the_document_is_what_is_run() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/shutdown.md");
    let document = document::render(&cases());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, &document).expect("the document can be written");
    }
    let published = std::fs::read_to_string(path).expect("the document is there");
    assert_eq!(published, document, "run it again with UPDATE_DOCS=1 to write {path}");
}

async fn run(case: &Case, server: Framework) -> Result<(), Fault> {
    let mut settings = case.settings;
    settings.server = server;
    // Taken until the process has ended.
    let taken = TcpListener::bind("127.0.0.1:0").await?;
    if let Extra::PortTaken(port) = &mut settings.extra {
        *port = taken.local_addr()?.port();
    }
    let mut process = Process::start(&settings);
    let mut held = None;
    if case.signals != Signals::None {
        let address = process.address("listening on ").await?;
        held = Some((case.client)(Visit { process: &mut process, address, version: version(server) }).await?);
    }
    let signalled = Instant::now();
    match case.signals {
        Signals::None => {}
        Signals::Int => process.signal(Signal::INT),
        Signals::Term | Signals::Forwarded | Signals::Second(_) | Signals::Afterwards => process.signal(Signal::TERM),
    }
    match case.signals {
        Signals::Forwarded => {
            sleep_until(signalled + Duration::from_millis(5)).await;
            process.signal(Signal::TERM);
        }
        Signals::Second(after) => {
            sleep_until(signalled + Duration::from_millis(after)).await;
            process.signal(Signal::TERM);
        }
        Signals::Afterwards => {
            process.printed("the shutdown is over").await?;
            process.signal(Signal::TERM);
        }
        _ => {}
    }
    if settings.extra == Extra::AdminPort {
        let admin = process.address("admin on ").await?;
        // While the servers stop, and during the drain.
        for after in [LIMIT / 4, LIMIT * 5 / 8] {
            sleep_until(signalled + Duration::from_millis(after)).await;
            // On axum-server the stream is closed at the end of the servers' share, and the drain ends soon after.
            if after < LIMIT / 2 || server != Framework::AxumServer {
                is_not_ready(admin).await?;
            }
        }
    }
    let before = signalled.elapsed();
    let end = process.end().await?;
    let result = check(case, server, &end, before + end.took).map_err(|fault| format!("{fault}: {end:?}").into());
    drop(held);
    result
}

async fn is_not_ready(admin: SocketAddr) -> Result<(), Fault> {
    let mut stream = TcpStream::connect(admin).await?;
    stream.write_all(b"GET /ready HTTP/1.1\r\nhost: lo\r\nconnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await??;
    if answer.starts_with("HTTP/1.1 503") { Ok(()) } else { Err(format!("the admin port answers {answer}").into()) }
}

fn check(case: &Case, server: Framework, end: &End, took: Duration) -> Result<(), String> {
    let expected = case.end(server).expect("it is run on this server");
    let require = |holds: bool, otherwise: &str| if holds { Ok(()) } else { Err(otherwise.to_owned()) };
    require(end.code == Some(expected.code), "the exit code is another one")?;

    let report = end.stderr.lines().find(|line| line.starts_with("servers ")).ok_or("there is no report")?;
    let is_expected = match expected.servers {
        Servers::Stopped => report.starts_with("servers stopped "),
        Servers::Unfinished => report.starts_with("servers dropped unfinished "),
        Servers::Ended => report == "servers ended without a signal",
        Servers::Failed => report.starts_with("servers failed: "),
        Servers::StoppedOrNot => {
            report.starts_with("servers stopped ") || report.starts_with("servers dropped unfinished ")
        }
    };
    require(is_expected, "the report says something else of the servers")?;
    require(end.stderr.contains(expected.says), "the report does not say what it should")?;
    let has_drained = end.stderr.lines().any(|line| line.starts_with("drained "));
    require(expected.code != 0 || has_drained, "the drain was not `Ok`")?;

    let limit = Duration::from_millis(LIMIT);
    // Other processes share the cores: the bounds tell apart what differs by seconds.
    let (from, to) = match expected.when {
        When::AtOnce => (Duration::ZERO, limit / 2 - limit / 20),
        When::AfterTheServers => (limit / 2, limit - limit / 20),
        When::AtTheLimit => (limit, 2 * limit),
        When::Within => (Duration::ZERO, limit),
    };
    require(took >= from && took < to, &format!("it took {took:?}"))?;

    if let Some(outcome) = case.outcome_on(server) {
        let ran: Vec<_> = end.stdout.iter().filter_map(|line| line.strip_prefix("ran ")).collect();
        let (plain, outcomes): (Vec<_>, Vec<_>) = ran.into_iter().partition(|ran| *ran == "plain");
        require(!plain.is_empty() && plain.len() == outcomes.len(), "an event has not run")?;
        require(outcomes.iter().all(|got| *got == outcome), &format!("the outcomes of the events are {outcomes:?}"))?;
    }
    Ok(())
}
