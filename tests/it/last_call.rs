//! The last call: events of responses that are open start, and their requests go on.

use std::{
    convert::Infallible,
    future::pending,
    pin::pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{Request, Response, StatusCode};
use tokio::{sync::oneshot, time::Instant};
use tokio_test::{assert_pending, assert_ready, task};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_track_events::{
    Batch, DrainError, Events, Exchange, OpenKind, Outcome, Overflow, TrackEventsHandle, TrackEventsLayer,
    test::TestExchange,
};

use crate::support::{
    Answer, Counter, Script, Seen, Step, assert_conserved, drain, next_frame, open, run_tasks, without_quiet_period,
};
use Step::{Data, End};

const LIMIT: Duration = Duration::from_secs(8);
/// A quarter of the limit before the deadline.
const LAST_CALL: Duration = Duration::from_secs(6);

/// A response of three bytes and a client that reads no more of it.
async fn unread(
    layer: &TrackEventsLayer,
) -> (Events, Response<impl http_body::Body<Data = bytes::Bytes, Error = &'static str> + use<>>) {
    let (sender, events) = oneshot::channel();
    let mut sender = Some(sender);
    let mut service = layer.layer(service_fn(move |request: Request<()>| {
        let events = Events::from_extensions(request.extensions()).unwrap().clone();
        assert!(sender.take().unwrap().send(events).is_ok());
        let response = Response::builder().status(StatusCode::CREATED);
        std::future::ready(Answer::Ok(response.body(Script::new([Data(b"abc"), Data(b"de"), End])).unwrap()))
    }));
    let response = service.call(Request::new(())).await.unwrap();
    (events.await.unwrap(), response)
}

/// Tracks an event that keeps its exchange.
fn track(events: &Events, seen: &Seen) {
    let seen = seen.clone();
    events.track_with("seen", move |exchange| async move { seen.push(exchange) }).unwrap();
}

fn facts(exchange: &Exchange) -> (Outcome, Option<u16>, u64) {
    (exchange.outcome, exchange.status.map(|status| status.as_u16()), exchange.body_bytes)
}

#[tokio::test(start_paused = true)]
async fn events_start_with_the_facts_so_far_and_the_request_stays_open() {
    let (handle, seen, plain) = (without_quiet_period(), Seen::default(), Counter::default());
    let (events, response) = unread(&seen.layer(&handle)).await;
    events
        .track("plain", {
            let plain = plain.clone();
            async move { plain.add() }
        })
        .unwrap();
    let mut body = pin!(response.into_body());
    assert!(next_frame(body.as_mut()).await.unwrap().unwrap().is_ok());
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(seen.all().is_empty());

    handle.make_last_call();
    run_tasks().await;
    assert_eq!(facts(&seen.only()), (Outcome::Unfinished, Some(201), 3));
    assert_eq!((seen.only().time_to_head, seen.only().elapsed.as_secs()), (Some(Duration::ZERO), 1));
    assert_eq!(plain.get(), 1);
    assert_eq!((handle.snapshot().open_requests, handle.snapshot().pending), (1, 0));

    // What is tracked later starts at once, with the facts of that moment.
    let later = Seen::default();
    assert!(next_frame(body.as_mut()).await.unwrap().unwrap().is_ok());
    track(&events, &later);
    run_tasks().await;
    assert_eq!(facts(&later.only()), (Outcome::Unfinished, Some(201), 5));

    // The client reads on.
    assert!(next_frame(body.as_mut()).await.unwrap().is_none());
    let after = Seen::default();
    track(&events, &after);
    run_tasks().await;
    assert_eq!(facts(&after.only()), (Outcome::Complete, Some(201), 5));
    assert_eq!((seen.all().len(), later.all().len()), (1, 1), "no event runs twice");
    assert_conserved(&handle.snapshot());
}

#[tokio::test]
async fn without_a_head_nothing_is_known_of_the_response() {
    let (handle, seen) = (TrackEventsHandle::new(), Seen::default());
    let mut service = seen.layer(&handle).layer(service_fn(|_: Request<()>| pending::<Answer>()));
    let mut request = task::spawn(service.call(Request::new(())));
    assert!(request.poll().is_pending());
    handle.make_last_call();
    run_tasks().await;
    assert_eq!(facts(&seen.only()), (Outcome::Unfinished, None, 0));
    assert_eq!(seen.only().time_to_head, None);
}

#[tokio::test]
async fn an_exchange_that_is_over_or_has_all_its_bytes_keeps_its_outcome() {
    let (handle, seen) = (without_quiet_period(), Seen::default());
    let request = TestExchange::new(&handle);
    track(request.events(), &seen);
    request.complete(StatusCode::OK);
    let layer = seen.layer(&handle);
    let mut service = layer.layer(service_fn(|_: Request<()>| async {
        Answer::Ok(Response::builder().status(StatusCode::NO_CONTENT).body(Script::empty()).unwrap())
    }));
    let response = service.call(Request::new(())).await.unwrap();
    handle.make_last_call();
    run_tasks().await;
    let outcomes: Vec<_> = seen.all().iter().map(|exchange| exchange.outcome).collect();
    assert_eq!(outcomes, [Outcome::Complete, Outcome::Complete]);
    drop(response);
    assert_eq!(drain(&handle).await.ended.completed, 2);
}

#[tokio::test]
async fn the_events_of_a_request_that_opens_later_start_with_its_head() {
    let (handle, seen) = (TrackEventsHandle::new(), Seen::default());
    handle.make_last_call();
    let (answer, answered) = oneshot::channel::<()>();
    let mut answered = Some(answered);
    let mut service = seen.layer(&handle).layer(service_fn(move |_: Request<()>| {
        let answered = answered.take().unwrap();
        async move {
            answered.await.unwrap();
            Answer::Ok(Response::new(Script::new([Data(b"abc")])))
        }
    }));
    let mut request = task::spawn(service.call(Request::new(())));
    assert!(request.poll().is_pending());
    run_tasks().await;
    assert!(seen.all().is_empty());
    answer.send(()).unwrap();
    let response = assert_ready!(request.poll()).unwrap();
    run_tasks().await;
    assert_eq!(facts(&seen.only()), (Outcome::Unfinished, Some(200), 0));
    drop(response);
    run_tasks().await;
    assert_eq!(seen.all().len(), 1);
}

#[tokio::test]
async fn another_call_reaches_the_requests_that_have_opened_since() {
    let (handle, seen) = (TrackEventsHandle::new(), Seen::default());
    handle.make_last_call();
    let mut service = seen.layer(&handle).layer(service_fn(|_: Request<()>| pending::<Answer>()));
    let mut request = task::spawn(service.call(Request::new(())));
    assert!(request.poll().is_pending());
    run_tasks().await;
    assert!(seen.all().is_empty());
    handle.make_last_call();
    run_tasks().await;
    assert_eq!(facts(&seen.only()), (Outcome::Unfinished, None, 0));
}

#[tokio::test]
async fn observers_are_called_once_with_the_facts_so_far() {
    let (handle, seen) = (TrackEventsHandle::new(), Seen::default());
    let sees = seen.clone();
    let layer = TrackEventsLayer::new(handle.clone()).observe(move |exchange| sees.push(exchange.clone()));
    let (_, response) = unread(&layer).await;
    handle.make_last_call();
    assert_eq!(facts(&seen.only()), (Outcome::Unfinished, Some(201), 0));
    drop(response);
    assert_eq!(seen.all().len(), 1);
}

#[tokio::test]
async fn the_hooks_of_an_inner_layer_start_at_once() {
    let (handle, seen) = (TrackEventsHandle::new(), Seen::default());
    let outer = TrackEventsLayer::new(handle.clone());
    let (inner, calls) = (seen.layer(&handle), handle.clone());
    let service = service_fn(|_: Request<()>| pending::<Answer>());
    let mut service = outer.layer(service_fn(move |request: Request<()>| {
        calls.make_last_call();
        inner.clone().layer(service).call(request)
    }));
    let mut request = task::spawn(service.call(Request::new(())));
    assert!(request.poll().is_pending());
    run_tasks().await;
    assert_eq!(facts(&seen.only()), (Outcome::Unfinished, None, 0));
}

#[tokio::test]
async fn permits_and_blocking_events_of_an_open_response_are_included() {
    let (handle, ran) = (TrackEventsHandle::new(), Counter::default());
    let exchange = TestExchange::new(&handle);
    let permit = exchange.events().reserve().unwrap();
    let (sender, done) = oneshot::channel();
    exchange.events().track_blocking("blocking", move || sender.send(()).unwrap()).unwrap();
    handle.make_last_call();
    done.await.unwrap();
    permit.track("reserved", {
        let ran = ran.clone();
        async move { ran.add() }
    });
    run_tasks().await;
    assert_eq!(ran.get(), 1);
    assert_eq!(handle.snapshot().open_requests, 1);
}

#[tokio::test]
async fn an_event_that_has_started_at_the_last_call_can_be_aborted() {
    let handle = TrackEventsHandle::new();
    let exchange = TestExchange::new(&handle);
    exchange.events().track("endless", pending::<()>()).unwrap();
    handle.make_last_call();
    run_tasks().await;
    assert_eq!(handle.snapshot().pending, 1);
    handle.abort();
    run_tasks().await;
    assert_eq!((handle.snapshot().pending, handle.snapshot().ended.aborted), (0, 1));
}

// Overflow.

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_for_capacity_goes_on_and_its_event_is_rejected() {
    let handle = TrackEventsHandle::builder().capacity(1).quiet_period(Duration::ZERO).build().unwrap();
    let seen = Seen::default();
    let sees = seen.clone();
    let layer = TrackEventsLayer::new(handle.clone())
        .track_from_request("seen", move |_request| {
            let sees = sees.clone();
            move |exchange: Exchange| async move { sees.push(exchange) }
        })
        .overflow(Overflow::Wait(LIMIT));
    let respond = |_: Request<()>| std::future::ready(Ok::<_, Infallible>(Response::new(Script::new([Data(b"abc")]))));
    let mut service = layer.layer(service_fn(respond));
    let first = service.call(Request::new(())).await.unwrap();
    let mut waiting = task::spawn(service.call(Request::new(())));
    assert!(waiting.poll().is_pending());

    handle.make_last_call();
    assert!(waiting.is_woken());
    let second = assert_ready!(waiting.poll()).unwrap();
    assert_eq!((handle.snapshot().rejected, handle.snapshot().open_requests), (1, 2));
    run_tasks().await;
    assert_eq!(facts(&seen.only()), (Outcome::Unfinished, Some(200), 0));

    // The capacity is free again. When it is not, nobody waits for it any more.
    let permit = handle.reserve().unwrap();
    let third = assert_ready!(task::spawn(service.call(Request::new(()))).poll()).unwrap();
    assert_eq!(handle.snapshot().rejected, 2);
    drop((first, second, third, permit));
    assert_eq!(drain(&handle).await.ended.completed, 1);
}

// The last call of a drain.

/// When the events of an open response start, in seconds after the first poll of the drain.
async fn starts_after(handle: &TrackEventsHandle, mut drains: Vec<tower_track_events::Drain>) -> Option<f64> {
    let seen = Seen::default();
    let exchange = TestExchange::new(handle);
    track(exchange.events(), &seen);
    let began = Instant::now();
    let mut waits = tokio::spawn(async move {
        for drain in drains.drain(1..) {
            tokio::spawn(drain);
        }
        drop(drains.remove(0).await);
    });
    for _ in 0..2_000 {
        if !seen.all().is_empty() {
            waits.abort();
            return Some(began.elapsed().as_secs_f64());
        }
        if waits.is_finished() {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    waits.abort();
    assert!((&mut waits).await.is_err());
    None
}

fn with_last_call(last_call: Duration) -> TrackEventsHandle {
    TrackEventsHandle::builder().last_call(last_call).build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_drain_makes_it_when_a_quarter_of_its_limit_is_left_and_at_most_five_seconds() {
    for (limit, expected) in [(8, 6.0), (16, 12.0), (20, 15.0)] {
        let handle = TrackEventsHandle::new();
        let drain = handle.drain(Duration::from_secs(limit));
        let started = starts_after(&handle, vec![drain]).await.unwrap();
        assert!((expected..expected + 0.1).contains(&started), "{limit}: {started}");
    }
    // 25 seconds would be a quarter of it.
    let handle = TrackEventsHandle::new();
    let mut drain = task::spawn(handle.drain(Duration::from_secs(100)));
    let seen = Seen::default();
    let exchange = TestExchange::new(&handle);
    track(exchange.events(), &seen);
    assert_pending!(drain.poll());
    tokio::time::advance(Duration::from_secs(94)).await;
    run_tasks().await;
    assert_pending!(drain.poll());
    assert!(seen.all().is_empty());
    tokio::time::advance(Duration::from_millis(1001)).await;
    assert_pending!(drain.poll());
    run_tasks().await;
    assert_eq!(seen.only().outcome, Outcome::Unfinished);
}

#[tokio::test(start_paused = true)]
async fn the_builder_sets_when_a_drain_makes_it() {
    for (last_call, expected) in [(1, 7.0), (7, 1.0), (8, 0.0), (60, 0.0)] {
        let handle = with_last_call(Duration::from_secs(last_call));
        let drain = handle.drain(LIMIT);
        let started = starts_after(&handle, vec![drain]).await.unwrap();
        assert!((expected..expected + 0.1).contains(&started), "{last_call}: {started}");
    }
    let handle = with_last_call(Duration::ZERO);
    let drain = handle.drain(LIMIT);
    assert_eq!(starts_after(&handle, vec![drain]).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_look_and_drains_without_a_limit_make_none() {
    let handle = TrackEventsHandle::new();
    let looks = handle.drain(Duration::ZERO);
    assert_eq!(starts_after(&handle, vec![looks]).await, None);
    let endless = handle.drain(Duration::MAX);
    assert_eq!(starts_after(&handle, vec![endless]).await, None);
    let until = handle.drain_until(tokio::time::sleep(LIMIT));
    assert_eq!(starts_after(&handle, vec![until]).await, None);
}

#[tokio::test(start_paused = true)]
async fn of_several_drains_the_latest_makes_it() {
    let handle = TrackEventsHandle::new();
    let drains = vec![handle.drain(LIMIT * 2), handle.drain(LIMIT)];
    let started = starts_after(&handle, drains).await.unwrap();
    assert!((12.0..12.1).contains(&started), "{started}");
    // The deadline of the one is not known.
    let handle = TrackEventsHandle::new();
    let drains = vec![handle.drain(LIMIT), handle.drain_until(pending::<()>())];
    assert_eq!(starts_after(&handle, drains).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_drain_leaves_it_to_the_others() {
    let (handle, seen) = (TrackEventsHandle::new(), Seen::default());
    let exchange = TestExchange::new(&handle);
    track(exchange.events(), &seen);
    let mut later = task::spawn(handle.drain(LIMIT * 2));
    assert_pending!(later.poll());
    let mut drain = task::spawn(handle.drain(LIMIT));
    assert_pending!(drain.poll());
    tokio::time::advance(LAST_CALL + Duration::from_millis(1)).await;
    assert_pending!(drain.poll());
    run_tasks().await;
    assert!(seen.all().is_empty());
    drop(later);
    assert!(drain.is_woken());
    assert_pending!(drain.poll());
    run_tasks().await;
    assert_eq!(seen.only().outcome, Outcome::Unfinished);
}

#[tokio::test(start_paused = true)]
async fn the_deadline_is_the_latest_one_that_is_known() {
    let handle = TrackEventsHandle::new();
    assert_eq!(handle.drain_deadline(), None);
    let _guard = handle.guard().unwrap();
    let began = Instant::now();
    let mut drain = task::spawn(handle.drain(LIMIT));
    assert_eq!(handle.drain_deadline(), None, "it counts from the first poll");
    assert_pending!(drain.poll());
    assert_eq!(handle.drain_deadline(), Some(began + LIMIT));
    let mut later = task::spawn(handle.drain(LIMIT * 2));
    assert_pending!(later.poll());
    assert_eq!(handle.drain_deadline(), Some(began + LIMIT * 2));
    let mut until = task::spawn(handle.drain_until(pending::<()>()));
    assert_pending!(until.poll());
    assert_eq!(handle.drain_deadline(), None);
    drop((until, later));
    assert_eq!(handle.drain_deadline(), Some(began + LIMIT));
    drop(drain);
    assert_eq!(handle.drain_deadline(), None);
}

/// The case of the issue: the response is stuck, and its event has run by the end of the drain.
#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_keeps_no_event_from_running() {
    let (handle, seen) = (TrackEventsHandle::new(), Seen::default());
    let (_events, response) = unread(&seen.layer(&handle)).await;
    let Err(DrainError::TimedOut(report)) = handle.drain(LIMIT).await else { panic!("the request is open") };
    assert_eq!(seen.only().outcome, Outcome::Unfinished);
    assert_eq!((report.ended.completed, report.open.len()), (1, 1));
    assert_eq!(open(&report, OpenKind::Request)[0].count, 1);
    drop(response);
}

// Sinks, which a drain waits for.

#[tokio::test(start_paused = true)]
async fn only_the_latest_drain_hands_over_what_a_sink_has_not_taken() {
    let (handle, undelivered) = (without_quiet_period(), Counter::default());
    let counts = undelivered.clone();
    let sender = handle
        .sink("row")
        .on_undelivered(move |_| counts.add())
        .service(service_fn(|_: Batch<u32>| pending::<Result<(), std::io::Error>>()))
        .unwrap();
    sender.try_send(1).unwrap();
    let mut later = task::spawn(handle.drain(LIMIT * 2));
    assert_pending!(later.poll());
    assert!(handle.drain(LIMIT).await.is_err());
    assert!(handle.drain(Duration::ZERO).await.is_err());
    assert_eq!((undelivered.get(), handle.snapshot().pending), (0, 1));
    tokio::time::advance(LIMIT).await;
    assert!(assert_ready!(later.poll()).is_err());
    assert_eq!((undelivered.get(), handle.snapshot().pending), (1, 0));
}

#[tokio::test]
async fn a_sink_is_dropped_before_a_drain_is_ok() {
    for _ in 0..20 {
        let (handle, dropped) = (without_quiet_period(), Counter::default());
        let on_drop = crate::support::OnDrop::counting(&dropped);
        let sender = handle
            .sink("row")
            .service(service_fn(move |_: Batch<u32>| {
                let _ = &on_drop;
                async { Ok::<_, std::io::Error>(()) }
            }))
            .unwrap();
        sender.try_send(1).unwrap();
        let report = drain(&handle).await;
        assert_eq!((report.ended.completed, dropped.get()), (1, 1));
        assert!(handle.is_drained());
    }
}

#[tokio::test]
async fn a_drain_names_a_sink_that_is_not_dropped_in_time() {
    let handle = without_quiet_period();
    let _sender =
        handle.sink("row").service(service_fn(|_: Batch<u32>| async { Ok::<_, std::io::Error>(()) })).unwrap();
    let Err(DrainError::TimedOut(report)) = handle.drain(Duration::ZERO).await else { panic!("the sink has a task") };
    let sink = open(&report, OpenKind::Sink)[0];
    assert_eq!((sink.name.as_deref(), sink.count, report.open.len()), (Some("row"), 1, 1));
    assert!(sink.location.unwrap().file().ends_with("last_call.rs"));
    assert!(sink.to_string().starts_with("sink row still running (oldest "), "{sink}");
    assert!(handle.is_drained());
    assert!(drain(&handle).await.open.is_empty());
}

#[tokio::test]
async fn an_abandoned_delivery_is_open_until_its_future_has_been_dropped() {
    let (handle, dropped) = (without_quiet_period(), Counter::default());
    let counts = dropped.clone();
    let sender = handle
        .sink("row")
        .max_delay(Duration::ZERO)
        .service(service_fn(move |_: Batch<u32>| {
            let on_drop = crate::support::OnDrop::counting(&counts);
            async move {
                let _on_drop = on_drop;
                pending::<Result<(), std::io::Error>>().await
            }
        }))
        .unwrap();
    sender.try_send(1).unwrap();
    run_tasks().await;
    assert_eq!(sender.snapshot().delivered_batches, 0);
    handle.abort();
    assert_eq!((handle.snapshot().pending, dropped.get()), (0, 0));
    let mut drained = task::spawn(handle.drain(LIMIT));
    assert_pending!(drained.poll());
    assert!(!handle.is_drained(), "the delivery still runs");
    run_tasks().await;
    assert_eq!(dropped.get(), 1);
    assert!(drained.is_woken());
    assert!(drained.await.is_ok());
}

/// An inner layer joins the exchange after the last call.
#[tokio::test]
async fn an_observer_that_is_added_after_the_last_call_is_called_at_once() {
    let handle = TrackEventsHandle::new();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let observed = Arc::clone(&seen);
    let inner = TrackEventsLayer::new(handle.clone());
    let inner = inner.observe(move |exchange| observed.lock().unwrap().push(exchange.outcome));
    let inner = inner.layer(service_fn(async |_: Request<()>| Answer::Ok(Response::new(Script::empty()))));
    let (calls, sees) = (handle.clone(), Arc::clone(&seen));
    let outer = service_fn(move |request: Request<()>| {
        calls.make_last_call();
        let response = inner.clone().oneshot(request);
        assert_eq!(*sees.lock().unwrap(), []);
        response
    });
    let response = TrackEventsLayer::new(handle.clone()).layer(outer).oneshot(Request::new(())).await.unwrap();
    assert_eq!(*seen.lock().unwrap(), [Outcome::Unfinished]);
    drop(response);
    drain(&handle).await;
    assert_eq!(seen.lock().unwrap().len(), 1);
}
