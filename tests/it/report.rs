//! The text of each message.

use std::{future::pending, time::Duration};

use http::{Request, Response};
use tower::{Layer, Service, service_fn};
use tower_track_events::{
    Batch, BuildError, DrainError, OpenItem, OpenKind, TrackError, TrackEventsHandle, TrackEventsLayer, WaitIdleError,
    test::TestExchange,
};

use crate::support::{Answer, Script, drain, open, run_tasks, without_quiet_period};

#[tokio::test(start_paused = true)]
async fn a_report_is_one_line_that_counts_every_event() {
    let handle = TrackEventsHandle::builder().quiet_period(Duration::ZERO).build().unwrap();
    handle.track("order.created", async {}).unwrap();
    run_tasks().await;
    handle.begin_drain();
    handle.track("audit", async { Err::<(), _>("disk full") }).unwrap();
    handle.track("audit", async { panic!("oops") }).unwrap();
    handle.track("mail", async { Err::<(), _>("no route") }).unwrap();
    tokio::time::advance(Duration::from_millis(1_240)).await;
    let report = drain(&handle).await;
    assert_eq!(
        report.to_string(),
        "drained 1.2 s after the signal: 4 events accepted, 1 completed, 2 failed, 1 panicked \
         (audit: 1 failed, 1 panicked, last: oops; mail: 1 failed, last: no route); 3 ended since the drain began"
    );
    assert_eq!(handle.track("late", async {}), Err(TrackError::Closed));
    let again = drain(&handle).await.to_string();
    assert!(again.ends_with("; 1 rejected, 1 of them because a drain was closing or had ended"), "{again}");
}

#[tokio::test(start_paused = true)]
async fn a_clean_report_is_short() {
    let handle = TrackEventsHandle::builder().quiet_period(Duration::ZERO).build().unwrap();
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
async fn a_timed_out_drain_names_what_is_open_with_its_age_and_location() {
    let handle = TrackEventsHandle::builder().last_call(Duration::ZERO).build().unwrap();
    let layer = TrackEventsLayer::new(handle.clone()).track("audit", |_| async {});
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
    let DrainError::TimedOut(report) = &error else {
        panic!("{error}");
    };
    let line = |items: &[&OpenItem]| items[0].location.unwrap().line();
    let [layers, guards, permits, events] = [
        line(&open(report, OpenKind::WaitingEvent)),
        line(&open(report, OpenKind::Guard)),
        line(&open(report, OpenKind::Permit)),
        line(&open(report, OpenKind::RunningEvent)),
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
            "drain timed out 5.0 s after the signal: 1 request open (oldest 65.0 s), 1 guard held (oldest 65.0 s, {}), \
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
        "drain needs a tokio runtime with timers for its limit and its quiet period: enable them with `enable_time`"
    );
    assert_eq!(
        TrackError::Full.to_string(),
        "rejected: as many events are pending as the capacity allows; try again when some have ended"
    );
    assert_eq!(
        TrackError::NoRuntime.to_string(),
        "rejected: there is no tokio runtime to run the event on: track it inside one, or pass one to the builder of the \
         handle"
    );
    assert_eq!(TrackError::Closed.to_string(), "rejected: the server is shutting down and accepts no more events");
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
fn the_error_of_an_invalid_setting_names_the_range() {
    let texts = [
        (BuildError::Capacity(0), "the capacity must be from 1 to 4294967295, and is 0"),
        (BuildError::EventTimeout, "the event timeout must be longer than zero; leave it out for no limit"),
        (BuildError::DeliverTimeout, "the time limit of a delivery must be longer than zero"),
        (BuildError::MaxBatch, "the maximum size of a batch must be at least one event, and one byte"),
        (BuildError::MaxAttempts, "the maximum number of attempts must be at least one; leave it out for no limit"),
        (
            BuildError::NoRuntime,
            "a sink needs a tokio runtime with timers: build it inside one, or pass one to the builder of the handle",
        ),
    ];
    for (setting, text) in texts {
        assert_eq!(setting.to_string(), text);
    }
}

#[tokio::test(start_paused = true)]
async fn the_error_of_a_timed_out_wait_names_the_pending_events() {
    let handle = TrackEventsHandle::new();
    handle.track("order.created", pending::<()>()).unwrap();
    let line = line!() - 1;
    let error = handle.wait_idle(Duration::from_secs(2)).await.unwrap_err();
    let text = error.to_string();
    let start = "events were pending after 2.0 s: order.created x1 running (oldest 2.0 s, tests/it/report.rs:";
    assert_eq!(text.strip_prefix(start).and_then(|rest| rest.split_once(':')?.0.parse().ok()), Some(line), "{text}");
}

#[tokio::test]
async fn a_send_error_shows_its_reason_and_not_the_event() {
    let handle = TrackEventsHandle::new();
    let sender = handle.sink("cards").service(service_fn(|_: Batch<&str>| async { Ok::<_, String>(()) })).unwrap();
    handle.drain(Duration::from_secs(1)).await.unwrap();
    let error = sender.try_send("4000 0012 3456 7899").unwrap_err();
    assert_eq!(error.to_string(), TrackError::Closed.to_string());
    assert_eq!(format!("{error:?}"), "TrySendError { reason: Closed, .. }");
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_and_a_report_are_serialized_under_the_names_of_their_fields() {
    let handle = TrackEventsHandle::new();
    handle.track("audit", async { Err::<(), _>("disk full") }).unwrap();
    let _guard = handle.guard().unwrap();
    run_tasks().await;
    assert_eq!(
        serde_json::to_value(handle.snapshot()).unwrap(),
        serde_json::json!({
            "open_requests": 0, "open_guards": 1, "reserved": 0, "pending": 0, "accepted": 1,
            "ended": { "completed": 0, "failed": 1, "panicked": 0, "timed_out": 0, "aborted": 0 },
            "rejected": 0, "rejected_closed": 0,
        })
    );
    let Err(DrainError::TimedOut(report)) = handle.drain(Duration::ZERO).await else {
        panic!("a guard is held");
    };
    let value = serde_json::to_value(&report).unwrap();
    assert!(value["open"][0]["location"].as_str().unwrap().contains("report.rs:"), "{value}");
    assert_eq!(value["open"][0]["kind"], "guard");
    assert_eq!(value["by_name"]["audit"]["counts"]["failed"], 1);
    assert_eq!(value["by_name"]["audit"]["last_error"], "disk full");
}

#[tokio::test]
async fn debug_shows_the_state() {
    let (layer, handle) = TrackEventsLayer::pair();
    let text = format!("{handle:?} {layer:?} {:?} {:?}", handle.drain(Duration::MAX), handle.guard());
    for word in ["TrackEventsHandle", "draining: false", "pending: 0", "TrackEventsLayer", "Drain {", "DrainGuard"] {
        assert!(text.contains(word), "{word} in {text}");
    }
    let service = layer.layer(service_fn(|_: Request<()>| async { Answer::Ok(Response::new(Script::empty())) }));
    assert!(format!("{:?}", service.clone().call(Request::new(()))).contains("ResponseFuture"));
}

#[tokio::test]
async fn what_a_program_holds_prints_its_name() {
    let handle = TrackEventsHandle::new();
    let exchange = TestExchange::new(&handle);
    let events = exchange.events().clone();
    let printed = [
        (format!("{handle:?}"), "TrackEventsHandle {"),
        (format!("{:?}", handle.draining()), "Draining {"),
        (format!("{:?}", handle.wait_idle(Duration::ZERO)), "WaitIdle {"),
        (format!("{:?}", handle.drain(Duration::ZERO)), "Drain {"),
        (format!("{:?}", handle.shutdown()), "Shutdown {"),
        (format!("{exchange:?}"), "TestExchange {"),
        (format!("{events:?}"), "Events("),
    ];
    for (printed, name) in printed {
        assert!(printed.starts_with(name), "{printed}");
    }
    assert!(format!("{events:?}").contains("over: false"));
    drop(exchange);
    assert!(format!("{events:?}").contains("over: true"));
}

#[tokio::test(start_paused = true)]
async fn a_drain_of_a_handle_that_nothing_used_says_so() {
    let unused =
        "drained 0.0 ms after the signal: no request and no event has ever come: is this the handle of your layer?";
    assert_eq!(drain(&without_quiet_period()).await.to_string(), unused);
    // A request without an event, a guard, an event and a rejection are uses.
    let uses: [fn(&TrackEventsHandle); 4] = [
        |handle| drop(TestExchange::new(handle)),
        |handle| drop(handle.guard().unwrap()),
        |handle| handle.track("event", async {}).unwrap(),
        |handle| drop(handle.reserve().unwrap()),
    ];
    for uses in uses {
        let handle = without_quiet_period();
        uses(&handle);
        assert!(drain(&handle).await.to_string().contains(" accepted, "));
    }
}
