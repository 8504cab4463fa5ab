//! An axum server on one worker thread, whose handler leaves work behind in one of several ways: `server MODE`.
//! `end-to-end` starts it, loads it and reads its CPU time.
//!
//! Listens on a free port of the loopback interface and prints its address. It reads how many events it should have
//! had, waits until that many have ended, five seconds at most, and prints how many have. When its standard input ends,
//! it exits. So it never outlives the process that started it.

#![allow(clippy::print_stdout, reason = "the program prints its results")]

use std::{
    env,
    error::Error,
    io, process,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use axum::{Extension, Router, extract::State, routing::get};
use tokio::{net::TcpListener, task::yield_now, time::sleep};
use tokio_util::task::TaskTracker;
use tower_track_events::{Events, TrackEventsHandle, TrackEventsLayer};

const ANSWER: &str = "hello";

static ENDED: AtomicU64 = AtomicU64::new(0);

/// What each mode leaves behind.
async fn event() {
    yield_now().await;
    sleep(Duration::from_millis(1)).await;
    ENDED.fetch_add(1, Ordering::Relaxed);
}

async fn bare() -> &'static str {
    ANSWER
}

async fn tracker<const EVENTS: usize>(Extension(tracker): Extension<TaskTracker>) -> &'static str {
    (0..EVENTS).for_each(|_| drop(tracker.spawn(event())));
    ANSWER
}

async fn handle(State(handle): State<TrackEventsHandle>) -> &'static str {
    handle.track("event", event()).expect("within the capacity");
    ANSWER
}

async fn kept<const EVENTS: usize>(events: Events) -> &'static str {
    (0..EVENTS).for_each(|_| events.track("event", event()).expect("within the capacity"));
    ANSWER
}

fn app(mode: &str) -> Result<Router, Box<dyn Error>> {
    let track_handle = TrackEventsHandle::builder().capacity(1 << 22).build()?;
    let layer = TrackEventsLayer::new(track_handle.clone());
    let extension = Extension(TaskTracker::new());
    Ok(match mode {
        "bare" => Router::new().route("/", get(bare)),
        "layer" => Router::new().route("/", get(bare)).layer(layer),
        "tracker" => Router::new().route("/", get(tracker::<1>)).layer(extension),
        "tracker4" => Router::new().route("/", get(tracker::<4>)).layer(extension),
        "handle" => Router::new().route("/", get(handle)).with_state(track_handle),
        "kept" => Router::new().route("/", get(kept::<1>)).layer(layer),
        "kept4" => Router::new().route("/", get(kept::<4>)).layer(layer),
        _ => return Err(format!("no such mode: {mode}").into()),
    })
}

/// Follows the standard input until its end.
fn follow_input() {
    for line in io::stdin().lines() {
        let Some(events) = line.ok().and_then(|line| line.parse().ok()) else { return };
        for _ in 0..5_000 {
            if ENDED.load(Ordering::Relaxed) >= events {
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
        println!("{}", ENDED.load(Ordering::Relaxed));
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() -> Result<(), Box<dyn Error>> {
    let app = app(&env::args().nth(1).ok_or("server MODE")?)?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    thread::spawn(|| {
        follow_input();
        process::exit(0);
    });
    axum::serve(listener, app).await?;
    Ok(())
}
