//! What an operator reads: each message, word for word.

use std::{future::pending, time::Duration};

use http::{Request, Response};
use tower::{Layer, Service, service_fn};
use tower_track_events::{
    Batch, DrainError, InvalidSetting, Refused, TrackEventsHandle, TrackEventsLayer, WaitIdleError,
};

use crate::support::{Answer, Script, drain, settle};

#[tokio::test(start_paused = true)]
async fn a_report_is_one_line_that_accounts_for_every_event() {
    let handle = TrackEventsHandle::builder().settle(Duration::ZERO).build().unwrap();
    handle.track("order.created", async {}).unwrap();
    settle().await;
    handle.begin_drain();
    handle.track("audit", async { Err::<(), _>("disk full") }).unwrap();
    handle.track("audit", async { panic!("oops") }).unwrap();
    handle.track("mail", async { Err::<(), _>("no route") }).unwrap();
    tokio::time::advance(Duration::from_millis(1_240)).await;
    let report = drain(&handle).await;
    assert_eq!(
        report.to_string(),
        "drained 1.2 s after the signal: 4 events accepted, 1 completed, 2 failed, 1 panicked \
         (audit: 1 failed, 1 panicked; mail: 1 failed); 3 ended since the drain began"
    );
    assert_eq!(handle.track("late", async {}), Err(Refused::Drained));
    let again = drain(&handle).await.to_string();
    assert!(again.ends_with("; 1 refused"), "{again}");
}

#[tokio::test(start_paused = true)]
async fn a_clean_report_is_short() {
    let handle = TrackEventsHandle::builder().settle(Duration::ZERO).build().unwrap();
    handle.begin_drain();
    handle.track("order.created", async {}).unwrap();
    tokio::time::advance(Duration::from_millis(250)).await;
    let report = drain(&handle).await;
    assert_eq!(
        report.to_string(),
        "drained 250 ms after the signal: 1 event accepted, 1 completed; 1 ended since the drain began"
    );
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_was_cut_short_says_what_was_open_how_old_and_from_where() {
    let handle = TrackEventsHandle::new();
    let layer = TrackEventsLayer::builder(handle.clone()).track("audit", |_| |_| async {}).build();
    let mut service = layer.layer(service_fn(|_: Request<()>| pending::<Answer>()));
    let _request = service.call(Request::new(()));
    let _guard = handle.guard().unwrap();
    tokio::time::advance(Duration::from_secs(60)).await;
    let _permit = handle.reserve().unwrap();
    for _ in 0..3 {
        handle.track("order.created", pending::<()>()).unwrap();
    }
    handle.track("done", async {}).unwrap();
    let error = handle.drain(Duration::from_secs(5)).await.unwrap_err();
    let DrainError::CutShort(unfinished) = &error else {
        panic!("{error}");
    };
    let line = |location: &std::panic::Location<'_>| location.line();
    let [layers, guards, permits, events] = [
        line(unfinished.events[0].location),
        line(unfinished.guards[0].location),
        line(unfinished.permits[0].location),
        line(unfinished.events[1].location),
    ];
    let column = |part: &str| {
        let text = error.to_string();
        let rest = text.split_once(part).unwrap().1.to_owned();
        rest.split([')', ',']).next().unwrap().to_owned()
    };
    let here = "tests/it/report.rs";
    let at = |line: u32| {
        let place = format!("{here}:{line}:");
        format!("{place}{}", column(&place))
    };
    assert_eq!(
        error.to_string(),
        format!(
            "drain cut short 5.0 s after the signal: 1 request open (oldest 65.0 s), 1 guard held (oldest 65.0 s, {}), \
             1 permit held (oldest 5.0 s, {}), audit x1 waiting for the response (oldest 65.0 s, {}), \
             order.created x3 running (oldest 5.0 s, {}); 5 events accepted, 1 completed; 1 ended since the drain began",
            at(guards),
            at(permits),
            at(layers),
            at(events)
        )
    );
}

#[test]
fn the_other_errors_say_what_to_do() {
    assert_eq!(
        DrainError::InsideItself.to_string(),
        "drain was polled inside an event, a handler or a body of its own handle and would wait for itself: \
         drain from the task that stops the server"
    );
    assert_eq!(
        DrainError::NoTimer.to_string(),
        "drain needs a tokio runtime with timers for its limit and its settle time: enable them with `enable_time`"
    );
    assert_eq!(
        Refused::Full.to_string(),
        "refused: as many events are pending as the capacity allows; try again when some have ended"
    );
    assert_eq!(
        Refused::NoRuntime.to_string(),
        "refused: there is no tokio runtime to run the event on: track it inside one, or give one to the builder of the \
         handle"
    );
    assert_eq!(Refused::Drained.to_string(), "refused: the server is shutting down and its events are drained");
    assert_eq!(
        WaitIdleError::InsideItself.to_string(),
        "the wait was polled inside an event, a handler or a body of its own handle and would wait for itself: wait in a \
         task of its own"
    );
    assert_eq!(
        WaitIdleError::NoTimer.to_string(),
        "the wait needs a tokio runtime with timers: enable them with `enable_time`, or pass a limit of zero"
    );
}

#[test]
fn an_invalid_setting_says_what_is_valid() {
    let texts = [
        (InvalidSetting::Capacity(0), "the capacity must be from 1 to 4294967295, and is 0"),
        (InvalidSetting::EventTimeout, "the event timeout must be longer than zero; leave it out for no limit"),
        (InvalidSetting::DeliverTimeout, "the time limit of a delivery must be longer than zero"),
        (InvalidSetting::MaxBatch, "a batch must have room for at least one event"),
        (InvalidSetting::MaxAttempts, "a batch must be attempted at least once; leave it out for no limit"),
        (
            InvalidSetting::NoRuntime,
            "a sink needs a tokio runtime with timers: build it inside one, or give one to the builder of the handle",
        ),
    ];
    for (setting, text) in texts {
        assert_eq!(setting.to_string(), text);
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_ran_out_says_what_was_pending() {
    let handle = TrackEventsHandle::new();
    handle.track("order.created", pending::<()>()).unwrap();
    let line = line!() - 1;
    let error = handle.wait_idle(Duration::from_secs(2)).await.unwrap_err();
    let text = error.to_string();
    let start = "events were pending after 2.0 s: order.created x1 running (oldest 2.0 s, tests/it/report.rs:";
    assert_eq!(text.strip_prefix(start).and_then(|rest| rest.split_once(':')?.0.parse().ok()), Some(line), "{text}");
}

#[tokio::test]
async fn an_event_that_was_not_sent_says_why_and_not_what_it_was() {
    let handle = TrackEventsHandle::new();
    let sender = handle.sink("cards", |_: Batch<&str>| async { Ok::<_, String>(()) }).build().unwrap();
    handle.drain(Duration::from_secs(1)).await.unwrap();
    let error = sender.send("4000 0012 3456 7899").unwrap_err();
    assert_eq!(error.to_string(), Refused::Drained.to_string());
    assert_eq!(format!("{error:?}"), "SendError { refused: Drained, .. }");
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_and_a_report_are_serialized_under_the_names_of_their_fields() {
    let handle = TrackEventsHandle::new();
    handle.track("audit", async { Err::<(), _>("disk full") }).unwrap();
    let _guard = handle.guard().unwrap();
    settle().await;
    assert_eq!(
        serde_json::to_value(handle.snapshot()).unwrap(),
        serde_json::json!({
            "open_requests": 0, "open_guards": 1, "reserved": 0, "pending": 0, "accepted": 1, "completed": 0,
            "failed": 1, "panicked": 0, "timed_out": 0, "aborted": 0, "refused": 0,
        })
    );
    let Err(DrainError::CutShort(unfinished)) = handle.drain(Duration::ZERO).await else {
        panic!("a guard is held");
    };
    let value = serde_json::to_value(&unfinished).unwrap();
    assert!(value["guards"][0]["location"].as_str().unwrap().contains("report.rs:"), "{value}");
    assert_eq!(value["report"]["wrong"][0]["name"], "audit");
    assert_eq!(value["report"]["wrong"][0]["endings"]["failed"], 1);
}

#[tokio::test]
async fn debug_says_what_is_there() {
    let (layer, handle) = TrackEventsLayer::pair();
    let text = format!("{handle:?} {layer:?} {:?} {:?}", handle.drain(Duration::MAX), handle.guard());
    for word in ["TrackEventsHandle", "draining: false", "pending: 0", "TrackEventsLayer", "Drain {", "DrainGuard"] {
        assert!(text.contains(word), "{word} in {text}");
    }
    let service = layer.layer(service_fn(|_: Request<()>| async { Answer::Ok(Response::new(Script::empty())) }));
    assert!(format!("{:?}", service.clone().call(Request::new(()))).contains("ResponseFuture"));
}
