//! The events of one exchange share a task until each has been polled once, and nothing else.

use std::{
    convert::Infallible,
    future::{pending, ready},
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{Request, Response};
use tokio::{
    runtime,
    sync::{Notify, oneshot},
};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_track_events::{DrainError, Endings, Events, Exchange, TrackEventsHandle, TrackEventsLayer};

use crate::support::{Counter, OnDrop, Script, drain, settle, unsettled};

/// A request that records, and whose response is over when this returns.
async fn exchange(handle: &TrackEventsHandle, record: impl FnOnce(&Events)) {
    let record = Mutex::new(Some(record));
    let handler = service_fn(|request: Request<()>| {
        let record = record.lock().unwrap().take().unwrap();
        record(Events::from_extensions(request.extensions()).unwrap());
        ready(Ok::<_, Infallible>(Response::new(Script::empty())))
    });
    let response = TrackEventsLayer::new(handle.clone()).layer(handler).oneshot(Request::new(())).await;
    drop(response.unwrap());
}

#[tokio::test]
async fn each_ends_in_its_own_way() {
    let handle = unsettled();
    exchange(&handle, |events| {
        events.track("panics", async { panic!("one of them") }).unwrap();
        events.track("fails", async { Err::<(), _>("another") }).unwrap();
        events.track_with("panics", |_| -> std::future::Ready<()> { panic!("while it is made") }).unwrap();
        events.track_blocking("blocks", || ()).unwrap();
        events.track("completes", async {}).unwrap();
    })
    .await;
    let report = drain(&handle).await;
    assert_eq!((report.endings.panicked, report.endings.failed, report.endings.completed), (2, 1, 2));
}

#[tokio::test]
async fn they_are_polled_in_order_and_then_each_by_itself() {
    let handle = unsettled();
    let order = Arc::new(Mutex::new(Vec::new()));
    let gates = [(); 3].map(|()| Arc::new(Notify::new()));
    exchange(&handle, |events| {
        for (number, gate) in gates.iter().enumerate() {
            let (order, gate) = (Arc::clone(&order), Arc::clone(gate));
            let event = async move {
                let task = tokio::task::id();
                order.lock().unwrap().push((number, task));
                gate.notified().await;
                order.lock().unwrap().push((number, tokio::task::id()));
            };
            events.track("waits", event).unwrap();
        }
    })
    .await;
    settle().await;
    assert_eq!(order.lock().unwrap().iter().map(|(number, _)| *number).collect::<Vec<_>>(), [0, 1, 2]);
    for (open, left) in [(1, 2), (2, 1), (0, 0)] {
        gates[open].notify_one();
        settle().await;
        assert_eq!(handle.snapshot().pending, left, "gate {open}");
    }
    let order = order.lock().unwrap().clone();
    assert!(order[..3].iter().all(|(_, task)| *task == order[0].1), "{order:?}");
    let mut later: Vec<_> = order[3..].iter().map(|(_, task)| task.to_string()).collect();
    later.sort();
    later.dedup();
    assert_eq!(later.len(), 3, "no two share a task any more: {order:?}");
}

#[tokio::test]
async fn an_abort_reaches_those_that_have_moved() {
    let handle = unsettled();
    let dropped = Counter::default();
    exchange(&handle, |events| {
        for _ in 0..5 {
            let held = OnDrop::counting(&dropped);
            events
                .track("stuck", async move {
                    let _held = held;
                    pending::<()>().await;
                })
                .unwrap();
        }
    })
    .await;
    settle().await;
    assert_eq!(dropped.get(), 0);
    handle.abort();
    settle().await;
    assert_eq!((dropped.get(), handle.snapshot().aborted), (5, 5));
    drain(&handle).await;
}

#[tokio::test]
async fn an_abort_reaches_what_is_recorded_before_and_spares_what_comes_after() {
    let handle = unsettled();
    let (recorded, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let dropped = Counter::default();
    let service = TrackEventsLayer::new(handle.clone()).layer(service_fn(|request: Request<()>| {
        let events = Events::from_extensions(request.extensions()).unwrap().clone();
        let (recorded, go_on) = (Arc::clone(&recorded), Arc::clone(&go_on));
        let held = [OnDrop::counting(&dropped), OnDrop::counting(&dropped)];
        async move {
            held.into_iter().for_each(|held| events.track("before", async move { drop(held) }).unwrap());
            recorded.notify_one();
            go_on.notified().await;
            events.track("after", async {}).unwrap();
            recorded.notify_one();
            go_on.notified().await;
            events.track("last", async {}).unwrap();
            Ok::<_, Infallible>(Response::new(Script::empty()))
        }
    }));
    let steps = async {
        recorded.notified().await;
        handle.abort();
        assert_eq!((dropped.get(), handle.snapshot().aborted), (2, 2), "at once, and not when the exchange is over");
        go_on.notify_one();
        recorded.notified().await;
        handle.abort();
        assert_eq!(handle.snapshot().aborted, 3, "a second abort finds what came after the first");
        go_on.notify_one();
    };
    let (response, ()) = tokio::join!(service.oneshot(Request::new(())), steps);
    drop(response);
    let report = drain(&handle).await;
    assert_eq!((report.endings.aborted, report.endings.completed), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn each_has_its_own_time_limit() {
    let limit = Duration::from_secs(5);
    let handle = TrackEventsHandle::builder().settle(Duration::ZERO).event_timeout(limit).build().unwrap();
    exchange(&handle, |events| {
        events.track("slow", tokio::time::sleep(Duration::from_secs(9))).unwrap();
        events.track("quick", tokio::time::sleep(Duration::from_secs(3))).unwrap();
        events.track("slow", pending::<()>()).unwrap();
    })
    .await;
    let report = drain(&handle).await;
    assert_eq!((report.endings.timed_out, report.endings.completed, report.elapsed.as_secs()), (2, 1, 5));
}

#[test]
fn a_runtime_that_is_dropped_aborts_those_that_were_not_polled() {
    let handle = unsettled();
    let dropped = Counter::default();
    let runtime = runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(exchange(&handle, |events| {
        for _ in 0..3 {
            let held = OnDrop::counting(&dropped);
            events.track("never", async move { drop(held) }).unwrap();
        }
    }));
    assert_eq!((dropped.get(), handle.snapshot().pending), (0, 3));
    drop(runtime);
    assert_eq!((dropped.get(), handle.snapshot().aborted), (3, 3));
}

#[tokio::test]
async fn one_that_is_done_is_no_longer_waited_for_while_another_is_being_polled() {
    let handle = unsettled();
    let seen = Arc::new(Mutex::new(Endings::default()));
    exchange(&handle, |events| {
        let (watched, seen) = (handle.clone(), Arc::clone(&seen));
        events.track("first", async {}).unwrap();
        events
            .track("second", async move {
                let now = watched.snapshot();
                assert_eq!(now.pending, 1, "it is pending itself");
                seen.lock().unwrap().completed = now.completed;
            })
            .unwrap();
    })
    .await;
    drain(&handle).await;
    assert_eq!(seen.lock().unwrap().completed, 1);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_waits_for_its_request_is_as_old_as_its_record() {
    let handle = unsettled();
    let (answer, answered) = oneshot::channel::<()>();
    let answered = Mutex::new(Some(answered));
    let service = TrackEventsLayer::new(handle.clone()).layer(service_fn(|request: Request<()>| {
        let events = Events::from_extensions(request.extensions()).unwrap().clone();
        let answered = answered.lock().unwrap().take().unwrap();
        async move {
            events.track("at once", async {}).unwrap();
            tokio::time::sleep(Duration::from_secs(3)).await;
            events.track("later", async {}).unwrap();
            drop(answered.await);
            Ok::<_, Infallible>(Response::new(Script::empty()))
        }
    }));
    let look = async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        let Err(DrainError::CutShort(unfinished)) = handle.drain(Duration::ZERO).await else {
            panic!("a request is open");
        };
        let mut ages: Vec<_> = unfinished.events.iter().map(|event| (event.name, event.oldest.as_secs())).collect();
        ages.sort();
        assert_eq!(ages, [("at once", 10), ("later", 7)]);
        drop(answer);
    };
    let (response, ()) = tokio::join!(service.oneshot(Request::new(())), look);
    drop(response);
    drain(&handle).await;
}

#[tokio::test(start_paused = true)]
async fn of_events_that_were_not_polled_a_few_have_one_reading_of_the_clock() {
    let undriven = runtime::Builder::new_current_thread().build().unwrap();
    let handle =
        TrackEventsHandle::builder().settle(Duration::ZERO).runtime(undriven.handle().clone()).build().unwrap();
    let second = Duration::from_secs(1);
    handle.track("first", async {}).unwrap();
    for _ in 0..63 {
        tokio::time::advance(second).await;
        handle.track("as old as the first", async {}).unwrap();
    }
    tokio::time::advance(second).await;
    handle.track("has its own", async {}).unwrap();
    tokio::time::advance(second).await;
    let Err(DrainError::CutShort(unfinished)) = handle.drain(Duration::ZERO).await else { panic!("65 are pending") };
    let mut ages: Vec<_> = unfinished.events.iter().map(|event| (event.name, event.oldest.as_secs())).collect();
    ages.sort();
    assert_eq!(ages, [("as old as the first", 65), ("first", 65), ("has its own", 1)]);
    undriven.shutdown_background();
    assert_eq!(handle.snapshot().aborted, 65);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_starts_when_the_others_wait_or_have_ended_has_an_age_of_its_own() {
    let handle = unsettled();
    let mut expected = Vec::new();
    for (name, age) in [("first", 2), ("second", 1), ("third", 0)] {
        handle.track("ends", async {}).unwrap();
        settle().await;
        tokio::time::advance(Duration::from_secs(1)).await;
        handle.track(name, pending::<()>()).unwrap();
        settle().await;
        expected.push((name, age));
    }
    let Err(DrainError::CutShort(unfinished)) = handle.drain(Duration::ZERO).await else { panic!("three are pending") };
    let ages: Vec<_> = unfinished.events.iter().map(|event| (event.name, event.oldest.as_secs())).collect();
    assert_eq!(ages, expected);
    handle.abort();
    drain(&handle).await;
}

#[tokio::test(start_paused = true)]
async fn who_asks_for_the_facts_has_the_times_whoever_recorded_before() {
    let handle = unsettled();
    let times = Arc::new(Mutex::new(None));
    let kept = Arc::new(Mutex::new(None));
    let mut service = TrackEventsLayer::new(handle.clone()).layer(service_fn(|request: Request<()>| {
        let events = Events::from_extensions(request.extensions()).unwrap().clone();
        events.track("plain", async {}).unwrap();
        *kept.lock().unwrap() = Some(events);
        async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            Ok::<_, Infallible>(Response::new(Script::empty()))
        }
    }));
    let response = service.call(Request::new(())).await.unwrap();
    tokio::time::advance(Duration::from_secs(3)).await;
    let events: Events = kept.lock().unwrap().take().unwrap();
    let told = Arc::clone(&times);
    let tell = move |exchange: Exchange| async move {
        *told.lock().unwrap() = Some((exchange.time_to_head.unwrap().as_secs(), exchange.elapsed.as_secs()));
    };
    events.track_with("asks", tell).unwrap();
    drop(events);
    drop(response);
    drain(&handle).await;
    assert_eq!(*times.lock().unwrap(), Some((2, 5)));
}
