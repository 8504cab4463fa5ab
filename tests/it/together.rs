//! Events that start together share a task until one waits, and nothing else.

use std::{
    convert::Infallible,
    future::{pending, ready},
    pin::Pin,
    sync::{Arc, Condvar, Mutex, mpsc},
    time::Duration,
};

use futures_util::FutureExt;
use http::{Request, Response};
use tokio::{
    runtime,
    sync::{Notify, Semaphore, oneshot},
};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_track_events::{DrainError, Endings, Events, Exchange, Outcome, TrackEventsHandle, TrackEventsLayer};

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
async fn they_are_polled_in_order_and_each_that_waits_keeps_its_task() {
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
    for (number, first) in &order[..3] {
        let tasks: Vec<_> = order.iter().filter(|(other, _)| other == number).map(|(_, task)| *task).collect();
        assert_eq!(tasks, [*first; 2], "it stays where it was polled first: {order:?}");
    }
    let mut tasks: Vec<_> = order[..3].iter().map(|(_, task)| task.to_string()).collect();
    tasks.sort();
    tasks.dedup();
    assert_eq!(tasks.len(), 3, "no two that wait share a task: {order:?}");
}

#[tokio::test]
async fn an_abort_reaches_those_that_wait() {
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

/// The first one blocks its thread until the last one has run.
fn first_blocks_for_the_last(count: usize, track: impl Fn(Pin<Box<dyn Future<Output = ()> + Send>>)) {
    let (tell, told) = mpsc::channel();
    let told = Mutex::new(told);
    track(Box::pin(async move {
        told.lock().unwrap().recv_timeout(Duration::from_secs(20)).expect("the others run meanwhile");
    }));
    for number in 1..count {
        let tell = (number == count - 1).then(|| tell.clone());
        track(Box::pin(async move { tell.into_iter().for_each(|tell| tell.send(()).unwrap()) }));
    }
}

#[tokio::test]
async fn on_one_thread_those_that_do_not_wait_have_one_task() {
    let handle = unsettled();
    let metrics = runtime::Handle::current().metrics();
    let before = metrics.num_alive_tasks();
    for _ in 0..100 {
        handle.track("ready", async {}).unwrap();
    }
    assert_eq!(metrics.num_alive_tasks() - before, 1);
    assert_eq!(drain(&handle).await.endings.completed, 100);
    assert_eq!(metrics.num_alive_tasks(), before);
}

#[tokio::test]
async fn on_one_thread_a_task_that_polls_many_leaves_a_turn_to_others() {
    let handle = unsettled();
    for _ in 0..100 {
        handle.track("ready", async {}).unwrap();
    }
    let seen = handle.clone();
    let completed = tokio::spawn(async move { seen.snapshot().completed }).await.unwrap();
    assert!((1..100).contains(&completed), "{completed} have completed before another task had its turn");
    assert_eq!(drain(&handle).await.endings.completed, 100);
}

#[test]
fn a_runtime_that_is_dropped_aborts_those_whose_task_was_coming_back() {
    let handle = unsettled();
    // A turn for one task, and then one for what is blocked on.
    let runtime = runtime::Builder::new_current_thread().event_interval(1).build().unwrap();
    runtime.block_on(async {
        for _ in 0..100 {
            handle.track("ready", async {}).unwrap();
        }
        tokio::task::yield_now().await;
    });
    drop(runtime);
    let now = handle.snapshot();
    assert!(now.completed > 0 && now.aborted > 0, "{now:?}");
    assert_eq!((now.completed + now.aborted, now.pending), (100, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_blocks_its_thread_does_not_hold_up_the_others() {
    for count in [2, 3, 16, 17, 100] {
        let handle = unsettled();
        let tracking = handle.clone();
        // From a task, whose thread polls next what it has spawned last.
        let task = async move {
            first_blocks_for_the_last(count, |event| tracking.track("tracked", event).unwrap());
        };
        tokio::spawn(task).await.unwrap();
        let report = drain(&handle).await;
        assert_eq!((report.endings.completed, report.endings.wrong()), (count as u64, 0), "of {count}");
    }
}

/// Each blocks its thread until all of them have begun; false if they have not in time.
struct Meeting {
    expected: usize,
    begun: Mutex<usize>,
    all_have: Condvar,
}

impl Meeting {
    fn of(expected: usize) -> Arc<Self> {
        Arc::new(Self { expected, begun: Mutex::new(0), all_have: Condvar::new() })
    }

    fn join(&self) -> Result<(), &'static str> {
        let mut begun = self.begun.lock().unwrap();
        *begun += 1;
        self.all_have.notify_all();
        let limit = Duration::from_secs(20);
        let wait = self.all_have.wait_timeout_while(begun, limit, |begun| *begun < self.expected);
        if wait.unwrap().1.timed_out() { Err("one waits for another that is being polled") } else { Ok(()) }
    }
}

#[test]
fn as_many_that_block_run_at_once_as_there_are_threads() {
    for count in [3, 4, 8] {
        let runtime = runtime::Builder::new_multi_thread().worker_threads(8).enable_all().build().unwrap();
        for of_exchange in [false, true] {
            for from_worker in [false, true] {
                let (handle, meeting) = (unsettled(), Meeting::of(count));
                let tracking = handle.clone();
                let track_all = async move {
                    let events =
                        || (0..count).map(|_| Arc::clone(&meeting)).map(|meeting| async move { meeting.join() });
                    if of_exchange {
                        exchange(&tracking, |exchange| {
                            events().for_each(|event| exchange.track("meets", event).unwrap());
                        })
                        .await;
                    } else {
                        events().for_each(|event| tracking.track("meets", event).unwrap());
                    }
                };
                if from_worker {
                    runtime.block_on(runtime.spawn(track_all)).unwrap();
                } else {
                    runtime.block_on(track_all);
                }
                let report = runtime.block_on(drain(&handle));
                assert_eq!((report.endings.completed, report.endings.wrong()), (count as u64, 0), "{report}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_blocks_does_not_hold_up_what_the_one_before_it_has_woken() {
    let handle = unsettled();
    let woken = Arc::new(Notify::new());
    let (begun, has_begun) = oneshot::channel();
    let (tell, told) = mpsc::channel();
    let (waiting, waking) = (Arc::clone(&woken), Arc::clone(&woken));
    handle
        .track("waits", async move {
            let notified = waiting.notified();
            begun.send(()).unwrap();
            notified.await;
            tell.send(()).unwrap();
        })
        .unwrap();
    has_begun.await.unwrap();
    let tracking = handle.clone();
    let task = async move {
        tracking.track("wakes", async move { waking.notify_one() }).unwrap();
        let blocks =
            async move { told.recv_timeout(Duration::from_secs(20)).map_err(|_| "the woken one runs meanwhile") };
        tracking.track("blocks", blocks).unwrap();
    };
    tokio::spawn(task).await.unwrap();
    let report = drain(&handle).await;
    assert_eq!((report.endings.completed, report.endings.wrong()), (3, 0), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_blocks_does_not_hold_up_what_the_one_before_it_has_spawned() {
    let handle = unsettled();
    let (tell, told) = mpsc::channel();
    let tracking = handle.clone();
    let task = async move {
        let spawns = async move { drop(tokio::spawn(async move { tell.send(()).unwrap() })) };
        tracking.track("spawns", spawns).unwrap();
        let blocks = async move { told.recv_timeout(Duration::from_secs(20)).map_err(|_| "the task runs meanwhile") };
        tracking.track("blocks", blocks).unwrap();
    };
    tokio::spawn(task).await.unwrap();
    let report = drain(&handle).await;
    assert_eq!((report.endings.completed, report.endings.wrong()), (2, 0), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_an_exchange_that_blocks_its_thread_does_not_hold_up_the_others() {
    for count in [2, 4, 40] {
        let handle = unsettled();
        let exchanging = handle.clone();
        let task = async move {
            exchange(&exchanging, |events| {
                first_blocks_for_the_last(count, |event| events.track("recorded", event).unwrap());
            })
            .await;
        };
        tokio::spawn(task).await.unwrap();
        let report = drain(&handle).await;
        assert_eq!((report.endings.completed, report.endings.wrong()), (count as u64, 0), "of {count}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_an_event_has_tracked_and_that_blocks_does_not_hold_up_the_next() {
    let handle = unsettled();
    let tracking = handle.clone();
    let task = async move {
        let inner = tracking.clone();
        let first = async move { first_blocks_for_the_last(2, |event| inner.track("tracked", event).unwrap()) };
        tracking.track("tracks", first).unwrap();
    };
    tokio::spawn(task).await.unwrap();
    let report = drain(&handle).await;
    assert_eq!((report.endings.completed, report.endings.wrong()), (3, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_starts_on_another_thread_is_not_left_to_the_one_that_is_blocked() {
    let handle = unsettled();
    let (begun, has_begun) = oneshot::channel();
    let (tell, told) = mpsc::channel();
    let tracking = handle.clone();
    let task = async move {
        let inner = tracking.clone();
        // Its thread has spawned the task that is on its way to the second event, and takes that event itself.
        let first = async move {
            let recorded = Events::detached(&inner);
            recorded.events().track("recorded", async move { tell.send(()).unwrap() }).unwrap();
            let second = async move {
                begun.send(recorded).map_err(drop).unwrap();
                told.recv_timeout(Duration::from_secs(20)).map_err(|_| "the recorded one runs meanwhile")
            };
            inner.track("blocks", second).unwrap();
        };
        tracking.track("first", first).unwrap();
    };
    tokio::spawn(task).await.unwrap();
    has_begun.await.unwrap().end(Exchange::new(Outcome::Complete));
    let report = drain(&handle).await;
    assert_eq!((report.endings.completed, report.endings.wrong()), (3, 0), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_that_a_task_has_tracked_do_not_wait_until_it_lets_its_thread_go() {
    let handle = unsettled();
    let tracking = handle.clone();
    let task = async move {
        let (tell, told) = mpsc::channel();
        tracking.track("tells", async move { tell.send(()).unwrap() }).unwrap();
        tracking.track("another", async {}).unwrap();
        told.recv_timeout(Duration::from_secs(20)).expect("it runs meanwhile");
    };
    tokio::spawn(task).await.unwrap();
    assert_eq!(drain(&handle).await.endings.completed, 2);
}

#[tokio::test]
async fn one_that_uses_up_the_turn_of_its_task_leaves_the_next_its_own() {
    let handle = unsettled();
    let semaphore = Arc::new(Semaphore::new(1));
    let greedy = Arc::clone(&semaphore);
    handle
        .track("greedy", async move {
            for _ in 0..1_000 {
                drop(greedy.acquire().now_or_never());
            }
        })
        .unwrap();
    handle.track("next", async move { semaphore.acquire().now_or_never().map(drop).ok_or("it is free") }).unwrap();
    assert_eq!(drain(&handle).await.endings.completed, 2);
}

#[test]
fn those_of_another_runtime_begin_in_the_order_in_which_they_were_recorded() {
    let (home, other) = (runtime::Builder::new_current_thread(), runtime::Builder::new_multi_thread());
    let [home, other] = [home, other].map(|mut runtime| runtime.worker_threads(1).enable_all().build().unwrap());
    let handle = unsettled();
    home.block_on(async { handle.track("at home", async {}).unwrap() });
    let order = Arc::new(Mutex::new(Vec::new()));
    let (detached, recording) = (Events::detached(&handle), Arc::clone(&order));
    let ends = other.spawn(async move {
        for number in 0..5 {
            let order = Arc::clone(&recording);
            let event = async move { order.lock().unwrap().push((number, runtime::Handle::current().id())) };
            detached.events().track("elsewhere", event).unwrap();
        }
        detached.end(Exchange::new(Outcome::Complete));
    });
    other.block_on(ends).unwrap();
    home.block_on(drain(&handle));
    let expected: Vec<_> = (0..5).map(|number| (number, other.handle().id())).collect();
    assert_eq!(*order.lock().unwrap(), expected);
}
