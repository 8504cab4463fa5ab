//! An exchange without a server, as the test of a handler opens it.

use std::time::Duration;

use tower_track_events::{DrainError, Events, Exchange, Outcome, Refused, TrackEventsHandle};

use crate::support::Seen;

fn record(events: &Events, seen: &Seen) -> Result<(), Refused> {
    let seen = seen.clone();
    events.track_with("look", |exchange: Exchange| async move { seen.push(exchange) })
}

async fn idle(handle: &TrackEventsHandle) {
    handle.wait_idle(Duration::from_secs(1)).await.unwrap();
}

#[tokio::test]
async fn its_events_start_when_it_is_ended_and_are_told_what_the_test_says() {
    let (handle, seen) = (TrackEventsHandle::new(), Seen::default());
    let detached = Events::detached(&handle);
    record(detached.events(), &seen).unwrap();
    tokio::task::yield_now().await;
    assert!(seen.all().is_empty());
    assert_eq!(handle.snapshot().open_requests, 1);

    let events = detached.events().clone();
    let mut exchange = Exchange::new(Outcome::Complete);
    exchange.body_bytes = 7;
    exchange.elapsed = Duration::from_secs(3);
    detached.end(exchange.clone());
    idle(&handle).await;
    assert_eq!(seen.all(), [exchange.clone()]);
    assert_eq!(handle.snapshot().open_requests, 0);

    // From now on at once, as after any exchange.
    record(&events, &seen).unwrap();
    idle(&handle).await;
    assert_eq!(seen.all(), [exchange.clone(), exchange]);
}

#[tokio::test]
async fn dropped_it_ends_as_if_the_client_had_left() {
    let (handle, seen) = (TrackEventsHandle::new(), Seen::default());
    let detached = Events::detached(&handle);
    record(detached.events(), &seen).unwrap();
    drop(detached);
    idle(&handle).await;
    assert_eq!(seen.only().outcome, Outcome::NoResponse);
    assert_eq!(handle.snapshot().open_requests, 0);
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_it_and_says_where_its_events_were_recorded() {
    let handle = TrackEventsHandle::new();
    let detached = Events::detached(&handle);
    detached.events().track("audit", async {}).unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    detached.events().track("later", async {}).unwrap();
    let Err(DrainError::CutShort(unfinished)) = handle.drain(Duration::from_secs(1)).await else {
        panic!("a drain came to its end while the exchange was open");
    };
    assert_eq!(unfinished.open_requests, 1);
    let ages: Vec<_> = unfinished.events.iter().map(|event| (event.name, event.oldest.as_secs())).collect();
    assert_eq!(ages, [("audit", 3), ("later", 1)]);
    assert!(unfinished.events[0].location.file().ends_with("detached.rs"));
    detached.end(Exchange::new(Outcome::Complete));
    assert!(handle.drain(Duration::from_secs(1)).await.unwrap().all_completed());
}

#[tokio::test]
async fn an_abort_ends_what_it_has_recorded() {
    let (handle, seen) = (TrackEventsHandle::new(), Seen::default());
    let detached = Events::detached(&handle);
    record(detached.events(), &seen).unwrap();
    handle.abort();
    assert_eq!(handle.snapshot().aborted, 1);
    detached.end(Exchange::new(Outcome::Complete));
    idle(&handle).await;
    assert!(seen.all().is_empty());
}

#[tokio::test]
async fn opened_after_the_drain_it_is_refused_its_events() {
    let handle = TrackEventsHandle::new();
    handle.drain(Duration::from_secs(1)).await.unwrap();
    let detached = Events::detached(&handle);
    assert_eq!(detached.events().track("audit", async {}), Err(Refused::Drained));
    detached.end(Exchange::new(Outcome::Complete));
    assert_eq!(handle.snapshot().open_requests, 0);
}
