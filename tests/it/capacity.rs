//! Guarantee 5: the bound holds, and an event is rejected as `Full` only at capacity.

use std::{
    future::pending,
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::runtime::Builder;
use tower_track_events::{BuildError, TrackError, TrackEventsHandle};

use crate::support::{assert_conserved, drain};

fn with_capacity(capacity: usize) -> TrackEventsHandle {
    TrackEventsHandle::builder().capacity(capacity).quiet_period(Duration::ZERO).build().unwrap()
}

#[tokio::test]
async fn one_thread_may_use_all_of_the_capacity() {
    for capacity in [1, 2, 3, 7, 64, 1_000, 5_000] {
        let handle = with_capacity(capacity);
        let mut held = Vec::new();
        for index in 0..capacity {
            // Both kinds count.
            if index % 2 == 0 {
                held.push(handle.reserve().unwrap());
            } else {
                handle.track("held", pending::<()>()).unwrap();
            }
        }
        assert_eq!(handle.track("one too many", async {}), Err(TrackError::Full), "capacity {capacity}");
        assert_eq!(handle.reserve().err(), Some(TrackError::Full));
        assert_eq!(handle.snapshot().rejected, 2);
        held.pop();
        handle.track("in the slot that was released", pending::<()>()).unwrap();
        assert_eq!(handle.track("one too many", async {}), Err(TrackError::Full), "capacity {capacity}");
    }
}

#[tokio::test]
async fn a_permit_takes_a_slot_and_releases_it() {
    let handle = with_capacity(2);
    let permit = handle.reserve().unwrap();
    handle.track("held", pending::<()>()).unwrap();
    assert_eq!(handle.track("full", async {}), Err(TrackError::Full));
    drop(permit);
    let permit = handle.reserve().unwrap();
    assert_eq!(handle.reserve().err(), Some(TrackError::Full));
    permit.track("cannot fail", pending::<()>());
    assert_eq!(handle.track("full", async {}), Err(TrackError::Full));
    assert_eq!((handle.snapshot().pending, handle.snapshot().reserved), (2, 0));
}

#[tokio::test]
async fn guards_take_no_slot() {
    let handle = with_capacity(1);
    let _guards: Vec<_> = (0..10).map(|_| handle.guard().unwrap()).collect();
    handle.track("fits", async {}).unwrap();
}

#[test]
fn slots_released_by_other_threads_are_available() {
    // Each thread reserves and releases a slot in its shard; one thread can then take all slots.
    let handle = with_capacity(1_000);
    let runtime = Builder::new_current_thread().build().unwrap();
    let _entered = runtime.enter();
    drop(handle.reserve().unwrap());
    for _ in 0..40 {
        let handle = handle.clone();
        let runtime = runtime.handle().clone();
        thread::spawn(move || {
            let _entered = runtime.enter();
            drop(handle.reserve().unwrap());
        })
        .join()
        .unwrap();
    }
    let all: Vec<_> = (0..1_000).map(|_| handle.reserve().unwrap()).collect();
    assert_eq!(handle.reserve().err(), Some(TrackError::Full));
    drop(all);
}

#[test]
fn nothing_is_rejected_while_a_slot_is_free() {
    const THREADS: usize = 4;
    const HELD: usize = 3;
    // At most as many as the capacity are held at once, so nothing may be rejected.
    let handle = with_capacity(THREADS * HELD);
    let runtime = Builder::new_current_thread().build().unwrap();
    let start = Arc::new(Barrier::new(THREADS));
    let threads: Vec<_> = (0..THREADS)
        .map(|_| {
            let (handle, runtime, start) = (handle.clone(), runtime.handle().clone(), Arc::clone(&start));
            thread::spawn(move || {
                let _entered = runtime.enter();
                start.wait();
                for _ in 0..20_000 {
                    let held: Vec<_> = (0..HELD).map(|_| handle.reserve()).collect();
                    assert!(held.iter().all(Result::is_ok));
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!((handle.snapshot().rejected, handle.snapshot().reserved), (0, 0));
}

#[test]
fn the_bound_holds_at_every_instant() {
    for capacity in [1, 3, 50] {
        let handle = with_capacity(capacity);
        let runtime = Builder::new_multi_thread().worker_threads(2).build().unwrap();
        let done = Arc::new(AtomicBool::new(false));
        let producers: Vec<_> = (0..3)
            .map(|_| {
                let (handle, runtime) = (handle.clone(), runtime.handle().clone());
                thread::spawn(move || {
                    let _entered = runtime.enter();
                    let mut accepted = 0;
                    for round in 0..20_000 {
                        let permit = handle.reserve();
                        accepted += u64::from(handle.track("e", async {}).is_ok());
                        match permit {
                            Ok(permit) if round % 2 == 0 => {
                                permit.track("p", async {});
                                accepted += 1;
                            }
                            _ => {}
                        }
                    }
                    accepted
                })
            })
            .collect();
        let observer = {
            let (handle, done) = (handle.clone(), Arc::clone(&done));
            thread::spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    let now = handle.snapshot();
                    assert_conserved(&now);
                    assert!(now.pending + now.reserved <= capacity as u64, "{now:?}");
                }
            })
        };
        let accepted: u64 = producers.into_iter().map(|producer| producer.join().unwrap()).sum();
        done.store(true, Ordering::Relaxed);
        observer.join().unwrap();
        assert_eq!(handle.snapshot().accepted, accepted);
        // All slots are free again: none has leaked.
        let waiting = Builder::new_current_thread().enable_time().build().unwrap();
        waiting.block_on(async {
            let mut all = Vec::new();
            while all.len() < capacity {
                match handle.reserve() {
                    Ok(permit) => all.push(permit),
                    Err(_) => tokio::task::yield_now().await,
                }
            }
            assert_eq!(handle.reserve().err(), Some(TrackError::Full));
            drop(all);
            assert_eq!(drain(&handle).await.ended.completed, accepted);
        });
    }
}

#[test]
fn a_setting_out_of_range_is_an_error_that_names_the_range() {
    let zero = TrackEventsHandle::builder().capacity(0).build().unwrap_err();
    assert_eq!(zero.to_string(), "the capacity must be from 1 to 4294967295, and is 0");
    let beyond = TrackEventsHandle::builder().capacity(1 << 32).build().unwrap_err();
    assert_eq!(beyond, BuildError::Capacity(1 << 32));
    let no_time = TrackEventsHandle::builder().event_timeout(Duration::ZERO).build().unwrap_err();
    assert_eq!(no_time.to_string(), "the event timeout must be longer than zero; leave it out for no limit");
    assert!(TrackEventsHandle::builder().capacity(u32::MAX as usize).build().is_ok());
}
