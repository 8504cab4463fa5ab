//! The guarantees with real threads: interleavings that a single-threaded test cannot reach.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use http::{Request, Response};
use tokio::runtime::{Builder, Runtime};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_track_events::{Events, TrackError, TrackEventsHandle, TrackEventsLayer};

use crate::support::{Answer, Counter, Script, assert_conserved, without_quiet_period};

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap()
}

#[test]
fn accepted_events_have_run_when_the_drain_returns_and_later_ones_are_rejected() {
    let runtime = runtime();
    for _ in 0..300 {
        let handle = without_quiet_period();
        let (ran, drained) = (Counter::default(), Arc::new(AtomicBool::new(false)));
        let producers: Vec<_> = (0..3)
            .map(|_| {
                let (handle, ran, drained) = (handle.clone(), ran.clone(), Arc::clone(&drained));
                let runtime = runtime.handle().clone();
                thread::spawn(move || {
                    let _entered = runtime.enter();
                    let mut accepted = 0;
                    for _ in 0..10_000 {
                        let was_drained = drained.load(Ordering::SeqCst);
                        let ran = ran.clone();
                        match handle.track("event", async move { ran.add() }) {
                            Ok(()) => {
                                assert!(!was_drained, "accepted after the drain was over");
                                accepted += 1;
                            }
                            Err(error) => {
                                assert_eq!(error, TrackError::Closed);
                                break;
                            }
                        }
                        if accepted % 16 == 0 {
                            thread::yield_now();
                        }
                    }
                    accepted
                })
            })
            .collect();
        let (report, ran_at_return) = runtime.block_on(async {
            let report = handle.drain(Duration::from_secs(60)).await.unwrap();
            (report, ran.get())
        });
        drained.store(true, Ordering::SeqCst);
        let accepted: usize = producers.into_iter().map(|producer| producer.join().unwrap()).sum();
        assert_eq!((report.accepted, report.ended.completed), (accepted as u64, accepted as u64));
        assert_eq!(ran_at_return, accepted);
        assert_eq!(handle.snapshot().accepted, report.accepted);
    }
}

#[test]
fn the_last_guard_always_wakes_a_drain() {
    // Two threads drop their guards while the drain checks the counts and registers its waker.
    let runtime = runtime();
    for _ in 0..3_000 {
        let handle = without_quiet_period();
        let guards: Vec<_> = (0..2).map(|_| handle.guard().unwrap()).collect();
        let drain = runtime.spawn(handle.drain(Duration::from_secs(60)));
        let drops: Vec<_> = guards.into_iter().map(|guard| runtime.spawn(async move { drop(guard) })).collect();
        runtime.block_on(async {
            assert!(drain.await.unwrap().is_ok());
            for dropped in drops {
                dropped.await.unwrap();
            }
        });
    }
}

#[test]
fn several_drains_on_several_threads_agree() {
    let runtime = runtime();
    for _ in 0..500 {
        let handle = without_quiet_period();
        let guard = handle.guard().unwrap();
        handle.track_in(&runtime);
        let drains: Vec<_> = (0..4).map(|_| runtime.spawn(handle.drain(Duration::from_secs(60)))).collect();
        runtime.spawn(async move { drop(guard) });
        runtime.block_on(async {
            for drain in drains {
                assert_eq!(drain.await.unwrap().unwrap().ended.completed, 1);
            }
        });
    }
}

trait TrackIn {
    fn track_in(&self, runtime: &Runtime);
}

impl TrackIn for TrackEventsHandle {
    fn track_in(&self, runtime: &Runtime) {
        let _entered = runtime.enter();
        self.track("event", tokio::task::yield_now()).unwrap();
    }
}

#[test]
fn concurrent_requests_that_end_in_every_way_lose_no_event() {
    let runtime = runtime();
    let handle = without_quiet_period();
    let ran = Counter::default();
    let layer = {
        let ran = ran.clone();
        TrackEventsLayer::new(handle.clone()).track_from_request("audit", move |_| {
            let ran = ran.clone();
            move |_| async move { ran.add() }
        })
    };
    let watching = Arc::new(AtomicBool::new(true));
    let watcher = {
        let (handle, watching) = (handle.clone(), Arc::clone(&watching));
        thread::spawn(move || {
            while watching.load(Ordering::Relaxed) {
                assert_conserved(&handle.snapshot());
            }
        })
    };
    let tasks: Vec<_> = (0..4)
        .map(|task| {
            let (layer, ran) = (layer.clone(), ran.clone());
            runtime.spawn(async move {
                for round in 0..2_000 {
                    let ran = ran.clone();
                    let mut service = layer.layer(service_fn(move |request: Request<()>| {
                        let events = Events::from_extensions(request.extensions()).unwrap().clone();
                        let (tracked, dropped) = (ran.clone(), ran.clone());
                        events.track("tracked", async move { tracked.add() }).unwrap();
                        async move {
                            if round % 3 == 0 {
                                tokio::task::yield_now().await;
                            }
                            let body = Script::empty().on_drop(move || {
                                events.track("on drop", async move { dropped.add() }).unwrap();
                            });
                            Answer::Ok(Response::new(body))
                        }
                    }));
                    let call = service.ready().await.unwrap().call(Request::new(()));
                    match (round + task) % 3 {
                        0 => drop(call),
                        1 => drop(call.await),
                        _ => {
                            let response = call.await.unwrap();
                            // The body ends on another thread than the one that called the service.
                            tokio::spawn(async move { drop(response) }).await.unwrap();
                        }
                    }
                }
            })
        })
        .collect();
    let report = runtime.block_on(async {
        for task in tasks {
            task.await.unwrap();
        }
        handle.drain(Duration::from_secs(60)).await.unwrap()
    });
    watching.store(false, Ordering::Relaxed);
    watcher.join().unwrap();
    assert!(report.all_completed(), "{report}");
    assert_eq!(report.ended.completed, ran.get() as u64);
    // Each time the layer's event and the handler's, and a third wherever there was a body.
    assert!(report.accepted > 2 * 8_000, "{report}");
}

#[test]
fn an_event_tracked_while_its_exchange_ends_starts_once() {
    let runtime = runtime();
    for _ in 0..2_000 {
        let handle = without_quiet_period();
        let layer = TrackEventsLayer::new(handle.clone());
        let kept = Arc::new(Mutex::new(None));
        let keep = Arc::clone(&kept);
        let service = layer.layer(service_fn(move |request: Request<()>| {
            *keep.lock().unwrap() = Events::from_extensions(request.extensions()).cloned();
            async { Answer::Ok(Response::new(Script::empty())) }
        }));
        let ran = Counter::default();
        let response = runtime.block_on(service.oneshot(Request::new(()))).unwrap();
        let events = kept.lock().unwrap().take().unwrap();
        let racing = {
            let ran = ran.clone();
            runtime.spawn(async move { events.track("racing", async move { ran.add() }).unwrap() })
        };
        drop(response);
        runtime.block_on(async {
            racing.await.unwrap();
            handle.drain(Duration::from_secs(60)).await.unwrap();
        });
        assert_eq!(ran.get(), 1);
    }
}
