//! Sinks: typed events in batches, with the same guarantees.

use std::{
    collections::VecDeque,
    future::pending,
    iter,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::{
    runtime,
    sync::{Notify, oneshot},
    time::{Instant, advance},
};
use tokio_test::{assert_pending, assert_ready, task};
use tower::service_fn;
use tower_track_events::{
    Batch, BuildError, DrainError, EventSender, OpenKind, SinkBuilder, SinkSnapshot, TrackError, TrackEventsHandle,
    Undelivered, WaitIdleError,
};

use crate::support::{Counter, OnDrop, assert_conserved, drain, run_tasks, without_quiet_period};

const LIMIT: Duration = Duration::from_secs(5);
const HOUR: Duration = Duration::from_secs(3600);

/// How the store reacts to an attempt. After its script it takes every batch.
#[derive(Clone, Copy)]
enum Act {
    Take,
    Fail,
    Panic,
    PanicBeforeTheFuture,
    Hang,
}

/// The attempts and batches that have reached the store; shared with the sink.
#[derive(Clone, Default)]
struct Store {
    script: Arc<Mutex<VecDeque<Act>>>,
    attempts: Arc<Mutex<Vec<Vec<u32>>>>,
    taken: Arc<Mutex<Vec<Vec<u32>>>>,
    /// Lets one hanging attempt continue.
    release: Arc<Notify>,
}

impl Store {
    fn new(script: impl IntoIterator<Item = Act>) -> Self {
        Self { script: Arc::new(Mutex::new(script.into_iter().collect())), ..Self::default() }
    }

    fn taken(&self) -> Vec<Vec<u32>> {
        self.taken.lock().unwrap().clone()
    }

    fn attempts(&self) -> Vec<Vec<u32>> {
        self.attempts.lock().unwrap().clone()
    }
}

type Delivery = Pin<Box<dyn Future<Output = Result<(), &'static str>> + Send>>;

impl Store {
    /// The closure for `SinkBuilder::deliver`.
    fn deliver(&self) -> impl FnOnce(Batch<u32>) -> Delivery + Clone + Send + use<> {
        let store = self.clone();
        move |batch| Box::pin(store.attempt(batch))
    }

    fn attempt(self, batch: Batch<u32>) -> impl Future<Output = Result<(), &'static str>> + Send {
        let act = self.script.lock().unwrap().pop_front().unwrap_or(Act::Take);
        self.attempts.lock().unwrap().push(batch.to_vec());
        assert!(!matches!(act, Act::PanicBeforeTheFuture), "a sink that panics at once");
        async move {
            match act {
                Act::Take => {}
                Act::Fail => return Err("the store is down"),
                Act::Panic | Act::PanicBeforeTheFuture => panic!("a sink that panics"),
                Act::Hang => self.release.notified().await,
            }
            self.taken.lock().unwrap().push(batch.to_vec());
            Ok(())
        }
    }
}

fn sink(handle: &TrackEventsHandle) -> SinkBuilder<u32> {
    handle.sink("row")
}

fn send(sender: &EventSender<u32>, events: impl IntoIterator<Item = u32>) {
    for event in events {
        sender.try_send(event).unwrap();
    }
}

fn collect(into: &Arc<Mutex<Vec<Vec<u32>>>>) -> impl Fn(Undelivered<u32>) + Send + Sync + use<> {
    let into = Arc::clone(into);
    move |events| into.lock().unwrap().push(events.iter().copied().collect())
}

// Batches.

#[tokio::test(start_paused = true)]
async fn events_wait_for_the_delay_and_are_delivered_together_in_order() {
    let handle = TrackEventsHandle::new();
    let store = Store::default();
    let sender = sink(&handle).max_delay(Duration::from_millis(10)).deliver(store.deliver()).unwrap();
    send(&sender, [1, 2]);
    run_tasks().await;
    advance(Duration::from_millis(9)).await;
    run_tasks().await;
    send(&sender, [3]);
    run_tasks().await;
    assert_eq!(store.taken(), Vec::<Vec<u32>>::new());
    assert_eq!(handle.snapshot().pending, 3);

    advance(Duration::from_millis(1)).await;
    run_tasks().await;
    assert_eq!(store.taken(), [[1, 2, 3]]);
    let now = handle.snapshot();
    assert_eq!((now.accepted, now.pending, now.ended.completed), (3, 0, 3));
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_is_full_does_not_wait() {
    let handle = TrackEventsHandle::new();
    let store = Store::default();
    let sender = sink(&handle).max_delay(HOUR).max_batch(3).deliver(store.deliver()).unwrap();
    send(&sender, [1, 2]);
    run_tasks().await;
    assert_eq!(store.taken().len(), 0);
    send(&sender, [3]);
    run_tasks().await;
    assert_eq!(store.taken(), [[1, 2, 3]]);
}

#[tokio::test]
async fn a_long_queue_is_delivered_in_several_batches_in_order() {
    let handle = TrackEventsHandle::new();
    let store = Store::default();
    let sender = sink(&handle).max_batch(4).deliver(store.deliver()).unwrap();
    send(&sender, 0..10);
    sender.flush(LIMIT).await.unwrap();
    assert_eq!(store.taken(), [vec![0, 1, 2, 3], vec![4, 5, 6, 7], vec![8, 9]]);
    assert_eq!(sender.snapshot().delivered_batches, 3);
}

#[tokio::test]
async fn without_a_delay_an_event_is_delivered_at_once_and_later_ones_together() {
    let handle = TrackEventsHandle::new();
    let store = Store::new([Act::Hang]);
    let sender = sink(&handle).max_delay(Duration::ZERO).deliver(store.deliver()).unwrap();
    send(&sender, [1]);
    run_tasks().await;
    assert_eq!(store.attempts(), [[1]]);
    send(&sender, [2, 3]);
    store.release.notify_one();
    run_tasks().await;
    assert_eq!(store.taken(), [vec![1], vec![2, 3]]);
}

#[tokio::test]
async fn closures_are_sinks_and_their_errors_need_only_be_displayed() {
    let handle = TrackEventsHandle::new();
    let (sum, mut fails) = (Arc::new(Mutex::new(0)), true);
    let into = Arc::clone(&sum);
    let sender = handle
        .sink("number")
        .backoff(Duration::ZERO, Duration::ZERO)
        .service(service_fn(move |batch: Batch<u32>| {
            let (into, fails) = (Arc::clone(&into), std::mem::take(&mut fails));
            async move {
                if fails {
                    return Err(format_args!("not yet").to_string());
                }
                *into.lock().unwrap() += batch.iter().sum::<u32>();
                Ok(())
            }
        }))
        .unwrap();
    send(&sender, [1, 2, 3]);
    assert!(drain(&handle).await.all_completed());
    assert_eq!(*sum.lock().unwrap(), 6);
}

// A store that fails.

#[tokio::test(start_paused = true)]
async fn a_failed_batch_is_retried_until_it_is_delivered_and_later_ones_wait() {
    let handle = TrackEventsHandle::new();
    let store = Store::new([Act::Fail, Act::Panic, Act::PanicBeforeTheFuture, Act::Hang, Act::Take]);
    let sender = sink(&handle).max_delay(Duration::ZERO).deliver(store.deliver()).unwrap();
    send(&sender, [1, 2]);
    run_tasks().await;
    send(&sender, [3]);
    assert_eq!(handle.snapshot().pending, 3);
    assert_eq!(sender.snapshot().last_error.as_deref(), Some("the store is down"));

    sender.flush(HOUR).await.unwrap();
    assert_eq!(store.attempts(), [vec![1, 2], vec![1, 2], vec![1, 2], vec![1, 2], vec![1, 2], vec![3]]);
    assert_eq!(store.taken(), [vec![1, 2], vec![3]]);
    let now = sender.snapshot();
    assert_eq!((now.failed_attempts, now.delivered_batches, now.ended.completed), (4, 2, 3));
    assert_eq!(now.last_error, None);
    assert_conserved(&handle.snapshot());
}

#[tokio::test(start_paused = true)]
async fn the_back_off_doubles_up_to_the_longest_with_jitter() {
    let handle = TrackEventsHandle::new();
    let (at, began) = (Arc::new(Mutex::new(Vec::new())), Instant::now());
    let into = Arc::clone(&at);
    let sender = handle
        .sink("row")
        .max_delay(Duration::ZERO)
        .backoff(Duration::from_secs(1), Duration::from_secs(4))
        .service(service_fn(move |_: Batch<u32>| {
            into.lock().unwrap().push(began.elapsed());
            async { Err::<(), _>("down") }
        }))
        .unwrap();
    send(&sender, [1]);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let at = at.lock().unwrap().clone();
    let waits: Vec<_> = at.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
    for (wait, least) in waits.iter().zip([1.0, 2.0, 4.0].into_iter().chain(iter::repeat(4.0))) {
        assert!((least..=2.0 * least + 0.002).contains(wait), "{waits:?}");
    }
    assert!(waits.iter().any(|wait| wait.fract() > 0.01), "no jitter: {waits:?}");
}

#[tokio::test(start_paused = true)]
async fn a_flush_and_a_wait_for_idleness_leave_the_back_off_alone() {
    let handle = TrackEventsHandle::new();
    let store = Store::new([Act::Fail; 8]);
    let (first, longest) = (Duration::from_secs(1), Duration::from_secs(1024));
    let sender = sink(&handle).backoff(first, longest).deliver(store.deliver()).unwrap();
    send(&sender, [1]);
    while store.attempts().len() < 6 {
        advance(first).await;
        run_tasks().await;
    }
    // The next attempt follows after at least 32 seconds.
    let mut flush = task::spawn(sender.flush(Duration::MAX));
    let mut idle = task::spawn(handle.wait_idle(Duration::MAX));
    assert_pending!(flush.poll());
    assert_pending!(idle.poll());
    advance(31 * first).await;
    run_tasks().await;
    assert_eq!(store.attempts().len(), 6);
    // A drain makes one at once, and starts again at the first time.
    let mut drain = task::spawn(handle.drain(Duration::MAX));
    assert_pending!(drain.poll());
    run_tasks().await;
    assert_eq!(store.attempts().len(), 7);
    advance(2 * first + Duration::from_millis(2)).await;
    run_tasks().await;
    assert_eq!(store.attempts().len(), 8);
}

#[tokio::test(start_paused = true)]
async fn a_hanging_attempt_is_dropped_at_its_time_limit() {
    let handle = TrackEventsHandle::new();
    let store = Store::new([Act::Hang]);
    let sender = sink(&handle).deliver_timeout(LIMIT).deliver(store.deliver()).unwrap();
    send(&sender, [7]);
    let began = Instant::now();
    sender.flush(HOUR).await.unwrap();
    assert!(began.elapsed() >= LIMIT && began.elapsed() < 2 * LIMIT, "{:?}", began.elapsed());
    assert_eq!(store.taken(), [[7]]);
    assert_eq!(sender.snapshot().failed_attempts, 1);
}

#[tokio::test(start_paused = true)]
async fn a_batch_fails_after_its_last_attempt_and_the_next_is_delivered() {
    let handle = without_quiet_period();
    // Three for the batch, and one for each half.
    let store = Store::new([Act::Fail; 5]);
    let taken = Arc::default();
    let sender =
        sink(&handle).max_batch(2).max_attempts(3).on_undelivered(collect(&taken)).deliver(store.deliver()).unwrap();
    send(&sender, [1, 2, 3]);
    let report = drain(&handle).await;
    assert_eq!(taken.lock().unwrap().as_slice(), [[1], [2]]);
    assert_eq!(store.taken(), [[3]]);
    assert_eq!((report.ended.failed, report.ended.completed), (2, 1));
    assert_eq!(report.by_name["row"].counts.failed, 2);
}

// Drains.

#[tokio::test(start_paused = true)]
async fn a_drain_does_not_wait_for_the_delay() {
    let handle = without_quiet_period();
    let store = Store::default();
    let sender = sink(&handle).max_delay(HOUR).deliver(store.deliver()).unwrap();
    send(&sender, [1, 2]);
    run_tasks().await;
    assert_eq!(store.taken().len(), 0);
    let began = Instant::now();
    let report = drain(&handle).await;
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(store.taken(), [[1, 2]]);
    assert_eq!(report.ended.completed, 2);
    assert_eq!((report.sinks[0].name, report.sinks[0].ended.completed), ("row", 2));
}

#[tokio::test(start_paused = true)]
async fn a_waiting_drain_delivers_later_events_without_the_delay() {
    let handle = without_quiet_period();
    let store = Store::default();
    let sender = sink(&handle).max_delay(HOUR).deliver(store.deliver()).unwrap();
    let guard = handle.guard().unwrap();
    let mut drain = task::spawn(handle.drain(LIMIT));
    assert_pending!(drain.poll());
    send(&sender, [1]);
    run_tasks().await;
    assert_eq!(store.taken(), [[1]]);
    drop(guard);
    assert_pending!(drain.poll());
    assert!(handle.is_drained(), "it waits until the sink has been dropped");
    run_tasks().await;
    assert!(assert_ready!(drain.poll()).unwrap().all_completed());
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_the_back_off() {
    let handle = without_quiet_period();
    let store = Store::new([Act::Fail]);
    let sender = sink(&handle).max_delay(Duration::ZERO).backoff(HOUR, HOUR).deliver(store.deliver()).unwrap();
    send(&sender, [1]);
    run_tasks().await;
    assert_eq!(store.attempts().len(), 1);
    let began = Instant::now();
    drain(&handle).await;
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(store.taken(), [[1]]);
}

#[tokio::test(start_paused = true)]
async fn events_not_delivered_within_the_limit_are_passed_to_on_undelivered_in_order_and_named() {
    let handle = without_quiet_period();
    let store = Store::new([Act::Fail, Act::Fail, Act::Hang]);
    let taken = Arc::default();
    let sender = sink(&handle)
        .max_batch(2)
        .backoff(Duration::from_millis(10), Duration::from_millis(10))
        .on_undelivered(collect(&taken))
        .deliver(store.deliver())
        .unwrap();
    send(&sender, 0..5);
    let guard = handle.guard().unwrap();
    let mut draining = task::spawn(handle.drain(LIMIT));
    assert_pending!(draining.poll());
    run_tasks().await;
    send(&sender, 5..7);
    advance(Duration::from_millis(100)).await;
    run_tasks().await;
    advance(Duration::from_millis(100)).await;
    run_tasks().await;
    assert_eq!(store.attempts(), [[0, 1], [0, 1], [0, 1]]);
    assert_eq!(*taken.lock().unwrap(), Vec::<Vec<u32>>::new());
    advance(LIMIT).await;

    let error = assert_ready!(draining.poll()).unwrap_err();
    assert_eq!(*taken.lock().unwrap(), [[0, 1, 2, 3, 4, 5, 6]]);
    let DrainError::TimedOut(report) = &error else { panic!("{error}") };
    let kinds: Vec<_> = report.open.iter().map(|item| (item.kind, item.count)).collect();
    // The delivery that hangs has not been dropped yet.
    assert_eq!(kinds, [(OpenKind::Guard, 1), (OpenKind::UndeliveredEvent, 7), (OpenKind::Sink, 1)]);
    assert_eq!(report.by_name["row"].last_error.as_deref(), Some("the store is down"));
    assert_eq!(report.ended.failed, 7);
    let line = error.to_string();
    assert!(line.contains("row x7 undelivered, passed to on_undelivered (oldest 5.2 s, tests/it/sink.rs:"), "{line}");
    assert!(line.contains("(row: 7 failed, last: the store is down)"), "{line}");

    // The attempt whose batch was detached returns too late to count.
    store.release.notify_waiters();
    store.release.notify_one();
    run_tasks().await;
    let now = handle.snapshot();
    assert_eq!((now.pending, now.ended.failed, now.ended.completed), (0, 7, 0));
    // Nothing is closed.
    send(&sender, [7]);
    drop(guard);
    let report = drain(&handle).await;
    assert_eq!((report.ended.failed, report.ended.completed), (7, 1));
    assert_eq!(store.taken(), [[7]]);
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_hands_events_over_times_out_even_if_nothing_else_is_open() {
    let handle = without_quiet_period();
    let store = Store::new([Act::Hang]);
    let taken = Arc::default();
    let sender = sink(&handle).on_undelivered(collect(&taken)).deliver(store.deliver()).unwrap();
    send(&sender, [1]);
    let error = handle.drain(Duration::ZERO).await.unwrap_err();
    assert!(matches!(error, DrainError::TimedOut(report) if report.open[0].count == 1));
    assert_eq!(*taken.lock().unwrap(), [[1]]);
    assert_eq!(drain(&handle).await.ended.failed, 1);
}

#[tokio::test(start_paused = true)]
async fn without_on_undelivered_events_stay_pending_and_are_named() {
    let handle = without_quiet_period();
    let store = Store::new([Act::Hang]);
    let sender = sink(&handle).max_batch(2).deliver(store.deliver()).unwrap();
    send(&sender, [1, 2, 3]);
    run_tasks().await;
    let error = handle.drain(Duration::from_secs(1)).await.unwrap_err();
    let DrainError::TimedOut(report) = &error else { panic!("{error}") };
    let events = &report.open[0];
    assert_eq!((events.name.as_deref(), events.count, events.kind), (Some("row"), 3, OpenKind::QueuedEvent));
    assert_eq!(events.oldest, Duration::from_secs(1));
    assert!(error.to_string().contains("row x3 queued for the sink (oldest 1.0 s, tests/it/sink.rs:"), "{error}");

    store.release.notify_one();
    assert!(drain(&handle).await.all_completed());
    assert_eq!(store.taken(), [vec![1, 2], vec![3]]);
}

#[tokio::test(start_paused = true)]
async fn events_sent_in_the_quiet_period_are_delivered_and_do_not_extend_it() {
    let quiet_period = Duration::from_millis(100);
    let handle = TrackEventsHandle::builder().quiet_period(quiet_period).build().unwrap();
    let store = Store::default();
    let sender = sink(&handle).deliver(store.deliver()).unwrap();
    let began = Instant::now();
    let mut drain = task::spawn(handle.drain(LIMIT));
    assert_pending!(drain.poll());
    advance(quiet_period / 2).await;
    send(&sender, [1]);
    run_tasks().await;
    assert_eq!(store.taken(), [[1]]);
    assert_pending!(drain.poll());
    let report = drain.await.unwrap();
    assert!(began.elapsed() < quiet_period * 11 / 10, "{:?}", began.elapsed());
    assert!(report.all_completed());
}

#[tokio::test]
async fn a_dropped_drain_hands_nothing_over() {
    let handle = without_quiet_period();
    let store = Store::new([Act::Hang]);
    let taken = Arc::default();
    let sender = sink(&handle).on_undelivered(collect(&taken)).deliver(store.deliver()).unwrap();
    send(&sender, [1]);
    let mut dropped = task::spawn(handle.drain(LIMIT));
    assert_pending!(dropped.poll());
    run_tasks().await;
    drop(dropped);
    store.release.notify_one();
    assert!(drain(&handle).await.all_completed());
    assert_eq!(taken.lock().unwrap().len(), 0);
}

#[tokio::test]
async fn after_a_drain_send_returns_the_event_and_the_sink_is_dropped() {
    let handle = without_quiet_period();
    let (gone, is_gone) = oneshot::channel();
    let on_drop = OnDrop::new(move || gone.send(()).unwrap());
    let sender = handle
        .sink("row")
        .service(service_fn(move |_: Batch<String>| {
            let _ = &on_drop;
            async { Ok::<_, &str>(()) }
        }))
        .unwrap();
    sender.try_send("one".to_owned()).unwrap();
    drain(&handle).await;
    let error = sender.try_send("two".to_owned()).unwrap_err();
    assert_eq!((error.event.as_str(), error.reason), ("two", TrackError::Closed));
    assert_eq!(error.to_string(), TrackError::Closed.to_string());
    assert_eq!(sender.try_reserve().unwrap_err(), TrackError::Closed);
    is_gone.await.unwrap();
    assert_eq!(handle.snapshot().rejected, 2);
    // A sink that is built now is closed as well.
    let late = sink(&handle).deliver(Store::default().deliver()).unwrap();
    assert_eq!(late.try_send(1).unwrap_err().reason, TrackError::Closed);
}

#[tokio::test]
async fn a_drain_inside_a_sink_of_its_own_handle_is_an_error() {
    let handle = without_quiet_period();
    let (answer, answered) = oneshot::channel();
    let (inside, mut answer) = (handle.clone(), Some(answer));
    let sender = handle
        .sink("row")
        .service(service_fn(move |_: Batch<u32>| {
            let (inside, answer) = (inside.clone(), answer.take());
            async move {
                if let Some(answer) = answer {
                    let _ = answer.send(inside.drain(LIMIT).await);
                }
                Ok::<_, &str>(())
            }
        }))
        .unwrap();
    send(&sender, [1]);
    assert!(matches!(answered.await.unwrap(), Err(DrainError::InsideItself)));
    assert!(drain(&handle).await.all_completed());
}

// Capacity and permits.

#[tokio::test]
async fn a_sink_has_its_own_exact_capacity() {
    let handle = TrackEventsHandle::builder().capacity(1).quiet_period(Duration::ZERO).build().unwrap();
    let store = Store::new([Act::Hang]);
    let sender = sink(&handle).capacity(3).deliver(store.deliver()).unwrap();
    send(&sender, [1, 2]);
    let permit = sender.try_reserve().unwrap();
    let error = sender.try_send(4).unwrap_err();
    assert_eq!((error.event, error.reason), (4, TrackError::Full));
    assert_eq!(sender.try_reserve().unwrap_err(), TrackError::Full);
    let now = handle.snapshot();
    assert_eq!((now.pending, now.reserved, now.rejected), (2, 1, 2));
    // Other events have their own capacity.
    handle.track("other", async {}).unwrap();
    permit.send(3);
    assert_eq!(sender.try_send(4).unwrap_err().reason, TrackError::Full);
    run_tasks().await;
    store.release.notify_one();
    sender.flush(LIMIT).await.unwrap();
    send(&sender, [5]);
    assert_eq!(drain(&handle).await.ended.completed, 5);
    assert_eq!(store.taken().concat(), [1, 2, 3, 5]);
}

#[tokio::test]
async fn a_drain_waits_for_a_permit_and_names_it() {
    let handle = without_quiet_period();
    let store = Store::default();
    let sender = sink(&handle).deliver(store.deliver()).unwrap();
    let [used, unused] = [(); 2].map(|()| sender.try_reserve().unwrap());
    let error = handle.drain(Duration::ZERO).await.unwrap_err();
    assert!(error.to_string().contains("2 permits held (oldest "), "{error}");
    let mut waits = task::spawn(handle.drain(LIMIT));
    assert_pending!(waits.poll());
    used.send(1);
    assert_pending!(waits.poll());
    run_tasks().await;
    assert_pending!(waits.poll());
    drop(unused);
    assert!(waits.is_woken());
    assert_pending!(waits.poll());
    assert!(handle.is_drained(), "it waits until the sink has been dropped");
    run_tasks().await;
    let report = assert_ready!(waits.poll()).unwrap();
    assert_eq!((report.accepted, report.ended.completed), (1, 1));
    assert_eq!(store.taken(), [[1]]);
}

// Waits.

#[tokio::test(start_paused = true)]
async fn a_flush_waits_for_earlier_events_of_its_own_sink() {
    let handle = TrackEventsHandle::new();
    let (store, other) = (Store::new([Act::Hang, Act::Hang]), Store::default());
    let sender = sink(&handle).max_delay(HOUR).deliver(store.deliver()).unwrap();
    let other = handle.sink("other").max_delay(HOUR).deliver(other.deliver()).unwrap();
    handle.track("task", pending::<()>()).unwrap();
    send(&sender, [1]);
    send(&other, [1]);
    let mut flush = task::spawn(sender.flush(LIMIT));
    assert_pending!(flush.poll());
    run_tasks().await;
    send(&sender, [2]);
    store.release.notify_one();
    run_tasks().await;
    assert!(flush.is_woken());
    assert_ready!(flush.poll()).unwrap();
    assert_eq!((sender.snapshot().pending, other.snapshot().pending), (1, 1));
    // Nothing is left to wait for.
    let empty = handle.sink("empty").deliver(Store::default().deliver()).unwrap();
    assert_ready!(task::spawn(empty.flush(LIMIT)).poll()).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_flush_and_wait_idle_end_the_delay() {
    let handle = TrackEventsHandle::new();
    let store = Store::default();
    let sender = sink(&handle).max_delay(HOUR).deliver(store.deliver()).unwrap();
    let began = Instant::now();
    send(&sender, [1]);
    run_tasks().await;
    sender.flush(LIMIT).await.unwrap();
    send(&sender, [2]);
    run_tasks().await;
    handle.wait_idle(LIMIT).await.unwrap();
    assert_eq!(store.taken(), [[1], [2]]);
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn a_flush_waits_for_the_last_of_several_batches() {
    let handle = TrackEventsHandle::new();
    let store = Store::new([Act::Take, Act::Hang]);
    let sender = sink(&handle).max_batch(2).deliver(store.deliver()).unwrap();
    send(&sender, [1, 2, 3]);
    let mut flush = task::spawn(sender.flush(Duration::MAX));
    assert_pending!(flush.poll());
    run_tasks().await;
    assert_eq!(store.taken(), [[1, 2]]);
    assert!(!flush.is_woken());
    assert_pending!(flush.poll());
    store.release.notify_one();
    run_tasks().await;
    assert_ready!(flush.poll()).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_timed_out_flush_names_the_pending_events() {
    let handle = TrackEventsHandle::new();
    let store = Store::new([Act::Hang]);
    let sender = sink(&handle).deliver(store.deliver()).unwrap();
    send(&sender, [1, 2]);
    let flush = sender.flush(LIMIT);
    let error = flush.await.unwrap_err();
    let WaitIdleError::TimedOut { open, after, .. } = error else { panic!("{error}") };
    assert_eq!(after, LIMIT);
    assert_eq!((open[0].name.as_deref(), open[0].count, open[0].kind), (Some("row"), 2, OpenKind::QueuedEvent));
    store.release.notify_one();
    sender.flush(LIMIT).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn wait_idle_waits_for_sinks_and_flushes_them() {
    let handle = TrackEventsHandle::new();
    let (one, two) = (Store::new([Act::Hang]), Store::default());
    let first = sink(&handle).max_delay(HOUR).deliver(one.deliver()).unwrap();
    let second = handle.sink("second").max_delay(HOUR).deliver(two.deliver()).unwrap();
    let (release, released) = oneshot::channel::<()>();
    handle.track("task", async move { drop(released.await) }).unwrap();
    send(&first, [1]);
    send(&second, [2]);
    let mut wait = task::spawn(handle.wait_idle(HOUR));
    assert_pending!(wait.poll());
    run_tasks().await;
    assert_eq!(two.taken(), [[2]]);
    one.release.notify_one();
    run_tasks().await;
    assert_pending!(wait.poll());
    send(&first, [3]);
    release.send(()).unwrap();
    run_tasks().await;
    assert!(wait.is_woken());
    // Another value has been sent, which is flushed as well.
    assert_pending!(wait.poll());
    run_tasks().await;
    assert!(wait.is_woken());
    assert_ready!(wait.poll()).unwrap();
    assert_eq!(one.taken(), [[1], [3]]);
}

// Events that end without a delivery.

#[tokio::test]
async fn an_abort_detaches_all_events_of_a_sink_and_counts_them_as_aborted() {
    let handle = without_quiet_period();
    let store = Store::new([Act::Hang]);
    let taken = Arc::default();
    let sender = sink(&handle).max_batch(2).on_undelivered(collect(&taken)).deliver(store.deliver()).unwrap();
    let without_handover = handle.sink("other").deliver(Store::new([Act::Hang]).deliver()).unwrap();
    send(&sender, [1, 2, 3]);
    send(&without_handover, [1]);
    run_tasks().await;
    handle.abort();
    assert_eq!(*taken.lock().unwrap(), [[1, 2, 3]]);
    let now = handle.snapshot();
    assert_eq!((now.pending, now.ended.aborted), (0, 4));
    // Later events are delivered as before.
    send(&sender, [4]);
    let report = drain(&handle).await;
    assert_eq!((report.ended.aborted, report.ended.completed), (4, 1));
    assert_eq!(store.taken(), [[4]]);
}

#[tokio::test(start_paused = true)]
async fn an_event_aborted_between_two_attempts_is_not_retried_and_the_next_is_delivered() {
    let handle = without_quiet_period();
    let store = Store::new([Act::Fail]);
    let sender = sink(&handle).backoff(HOUR, HOUR).deliver(store.deliver()).unwrap();
    send(&sender, [1]);
    advance(Duration::from_millis(10)).await;
    run_tasks().await;
    assert_eq!(store.attempts(), [[1]]);
    handle.abort();
    send(&sender, [2]);
    run_tasks().await;
    advance(Duration::from_millis(10)).await;
    run_tasks().await;
    assert_eq!(store.attempts(), [[1], [2]]);
    assert_eq!(handle.snapshot().ended.aborted, 1);
}

#[tokio::test(start_paused = true)]
async fn an_abort_drops_the_current_attempt_and_later_events_are_delivered() {
    let handle = without_quiet_period();
    let store = Store::new([Act::Hang]);
    let sender = sink(&handle).max_delay(Duration::ZERO).deliver(store.deliver()).unwrap();
    send(&sender, [1]);
    run_tasks().await;
    handle.abort();
    send(&sender, [2]);
    run_tasks().await;
    assert_eq!(store.taken(), [[2]]);
}

#[test]
fn nothing_is_delivered_while_on_undelivered_runs() {
    let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let handle = without_quiet_period();
    let (delivered, is_delivered) = std::sync::mpsc::channel();
    let is_delivered = Mutex::new(is_delivered);
    let overtaken = Arc::new(Mutex::new(None));
    let into = Arc::clone(&overtaken);
    let sender_inside = Arc::new(Mutex::new(None::<EventSender<u32>>));
    let sender = {
        let _entered = runtime.enter();
        let sender = Arc::clone(&sender_inside);
        handle
            .sink("row")
            .max_delay(Duration::ZERO)
            .on_undelivered(move |_| {
                sender.lock().unwrap().take().unwrap().try_send(2).unwrap();
                // Not a synchronisation: a delivery that must not happen has time to happen.
                let overtakes = is_delivered.lock().unwrap().recv_timeout(Duration::from_millis(100));
                *into.lock().unwrap() = Some(overtakes.is_ok());
            })
            .service(service_fn(move |batch: Batch<u32>| {
                let delivered = delivered.clone();
                async move {
                    if *batch == [1] {
                        pending::<()>().await;
                    }
                    delivered.send(batch.to_vec()).unwrap();
                    Ok::<_, &str>(())
                }
            }))
            .unwrap()
    };
    *sender_inside.lock().unwrap() = Some(sender.clone());
    send(&sender, [1]);
    runtime.block_on(handle.drain(Duration::ZERO)).unwrap_err();
    assert_eq!(*overtaken.lock().unwrap(), Some(false));
    let report = runtime.block_on(drain(&handle));
    assert_eq!((report.ended.failed, report.ended.completed), (1, 1));
}

#[test]
fn a_timed_out_drain_returns_after_on_undelivered_has_returned() {
    let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    for round in 0..500 {
        let handle = without_quiet_period();
        let taken = Counter::default();
        let takes = taken.clone();
        let (started, has_started) = std::sync::mpsc::channel();
        let sender = {
            let _entered = runtime.enter();
            let sink = move |_: Batch<u32>| {
                started.send(()).unwrap();
                pending::<Result<(), &str>>()
            };
            let take = move |_| {
                // Not a synchronisation: a drain that does not wait for this has time to return.
                thread::sleep(Duration::from_millis(1));
                takes.add();
            };
            handle.sink("row").max_delay(Duration::ZERO).on_undelivered(take).service(service_fn(sink)).unwrap()
        };
        send(&sender, [1]);
        has_started.recv().unwrap();
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            // The worker checks repeatedly whether its batch is still to be delivered.
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    drop(runtime.block_on(sender.flush(Duration::ZERO)));
                }
            });
            let answer = runtime.block_on(handle.drain(Duration::ZERO));
            let taken = taken.get();
            is_over.store(true, Ordering::Relaxed);
            assert_eq!((answer.is_err(), taken), (true, 1), "round {round}: {answer:?}");
        });
    }
}

#[tokio::test]
async fn a_queue_is_dropped_with_its_last_sender() {
    let handle = without_quiet_period();
    let gone = Counter::default();
    let counter = gone.clone();
    let on_drop = OnDrop::new(move || counter.add());
    let sender = sink(&handle)
        .on_undelivered(move |_| {
            let _ = &on_drop;
        })
        .deliver(Store::default().deliver())
        .unwrap();
    let permit = sender.try_reserve().unwrap();
    drop(sender);
    run_tasks().await;
    assert_eq!(gone.get(), 0);
    drop(permit);
    run_tasks().await;
    assert_eq!(gone.get(), 1);
    drain(&handle).await;
}

/// Logs in its destructor how many events are pending.
struct Witness(TrackEventsHandle, Arc<Mutex<Vec<u64>>>);

impl Drop for Witness {
    fn drop(&mut self) {
        let pending = self.0.snapshot().pending;
        self.1.lock().unwrap().push(pending);
    }
}

#[tokio::test]
async fn events_end_after_their_destructors() {
    let handle = without_quiet_period();
    let seen = Arc::default();
    let sender = handle.sink("witness").service(service_fn(|_: Batch<Witness>| async { Ok::<_, &str>(()) })).unwrap();
    for _ in 0..3 {
        assert!(sender.try_send(Witness(handle.clone(), Arc::clone(&seen))).is_ok());
    }
    drain(&handle).await;
    assert_eq!(*seen.lock().unwrap(), [3, 3, 3]);
}

#[test]
fn a_runtime_that_shuts_down_hands_over_its_events_and_later_ones_are_rejected() {
    let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let handle =
        TrackEventsHandle::builder().runtime(runtime.handle().clone()).quiet_period(Duration::ZERO).build().unwrap();
    let store = Store::new([Act::Hang]);
    let taken = Arc::default();
    let sender = sink(&handle).on_undelivered(collect(&taken)).deliver(store.deliver()).unwrap();
    send(&sender, [1, 2]);
    runtime.block_on(run_tasks());
    send(&sender, [3]);
    let permit = sender.try_reserve().unwrap();
    drop(runtime);
    assert_eq!(*taken.lock().unwrap(), [[1, 2, 3]]);
    assert_eq!(sender.try_send(4).unwrap_err().reason, TrackError::NoRuntime);
    let now = handle.snapshot();
    assert_conserved(&now);
    assert_eq!((now.pending, now.ended.aborted, now.reserved), (0, 3, 1));
    permit.send(5);
    assert_eq!(*taken.lock().unwrap(), [vec![1, 2, 3], vec![5]]);
    assert_eq!(handle.snapshot().ended.aborted, 4);
    let other = runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let report = other.block_on(drain(&handle));
    assert_eq!((report.ended.aborted, report.rejected), (4, 1));
    assert_eq!(sender.try_send(6).unwrap_err().event, 6);
    assert_eq!(handle.snapshot().rejected, 2);
}

#[tokio::test(start_paused = true)]
async fn after_the_last_sender_is_dropped_the_rest_is_delivered_and_the_counts_stay() {
    let handle = without_quiet_period();
    let store = Store::new([Act::Take, Act::Fail]);
    let sender =
        sink(&handle).max_delay(HOUR).max_batch(2).backoff(Duration::ZERO, HOUR).deliver(store.deliver()).unwrap();
    send(&sender, [1, 2]);
    run_tasks().await;
    send(&sender, [3]);
    drop(sender.clone());
    run_tasks().await;
    assert_eq!(store.taken(), [[1, 2]]);
    drop(sender);
    run_tasks().await;
    advance(Duration::from_millis(1)).await;
    run_tasks().await;
    assert_eq!(store.taken(), [vec![1, 2], vec![3]]);
    // The sink, which had the only other clone, was dropped.
    assert_eq!(Arc::strong_count(&store.taken), 1);
    // The next sink of this name continues the counts.
    let again = sink(&handle).deliver(store.deliver()).unwrap();
    send(&again, [4]);
    let SinkSnapshot { name, pending, accepted, ended, failed_attempts, .. } = handle.sinks().remove(0);
    assert_eq!((name, pending, accepted, ended.completed, failed_attempts), ("row", 1, 4, 3, 1));
    assert_conserved(&handle.snapshot());
    let report = drain(&handle).await;
    assert_eq!((report.accepted, report.ended.completed), (4, 4));
    assert_eq!((report.sinks.len(), report.sinks[0].ended.completed), (1, 4));
}

// User code.

#[tokio::test]
async fn a_panic_of_on_undelivered_is_counted() {
    let handle = without_quiet_period();
    let sender = sink(&handle)
        .on_undelivered(|_| panic!("the disk is full"))
        .deliver(Store::new([Act::Hang]).deliver())
        .unwrap();
    send(&sender, [1, 2]);
    handle.drain(Duration::ZERO).await.unwrap_err();
    let now = handle.snapshot();
    assert_conserved(&now);
    assert_eq!((now.pending, now.ended.panicked), (0, 2));
    assert_eq!(drain(&handle).await.ended.panicked, 2);
}

/// Calls methods that take a lock from user code, where no lock may be held, and may panic.
struct Meddler {
    handle: TrackEventsHandle,
    sender: Option<EventSender<Meddler>>,
    panics: bool,
}

impl Meddler {
    fn meddle(&self) {
        assert_conserved(&self.handle.snapshot());
        let _ = self.handle.sinks();
        if let Some(sender) = &self.sender {
            let _ = sender.try_send(Meddler { handle: self.handle.clone(), sender: None, panics: false });
        }
    }
}

impl Drop for Meddler {
    fn drop(&mut self) {
        self.meddle();
        assert!(!self.panics || thread::panicking(), "a destructor that panics");
    }
}

#[tokio::test]
async fn user_code_runs_without_a_lock_and_its_panics_lose_nothing() {
    let handle = without_quiet_period();
    let inside = handle.clone();
    let mut fails = true;
    let sender = handle
        .sink("meddler")
        .backoff(Duration::ZERO, Duration::ZERO)
        .on_undelivered(|events| events.iter().for_each(Meddler::meddle))
        .service(service_fn(move |batch: Batch<Meddler>| {
            inside.snapshot();
            batch.iter().for_each(Meddler::meddle);
            let fails = std::mem::take(&mut fails);
            async move {
                batch.iter().for_each(Meddler::meddle);
                if fails { Err("not yet") } else { Ok(()) }
            }
        }))
        .unwrap();
    for panics in [false, true, false] {
        let event = Meddler { handle: handle.clone(), sender: Some(sender.clone()), panics };
        assert!(sender.try_send(event).is_ok());
    }
    run_tasks().await;
    let now = {
        sender.flush(LIMIT).await.unwrap();
        handle.wait_idle(LIMIT).await.unwrap();
        handle.snapshot()
    };
    assert_conserved(&now);
    // Two attempts with two calls each, and one in each destructor.
    assert_eq!((now.accepted, now.ended.completed), (3 + 3 * 5, 3 + 3 * 5));
    let event = Meddler { handle: handle.clone(), sender: Some(sender.clone()), panics: true };
    assert!(sender.try_send(event).is_ok());
    handle.abort();
    handle.wait_idle(LIMIT).await.unwrap();
    let now = handle.snapshot();
    assert_conserved(&now);
    assert_eq!((now.ended.panicked, now.pending), (1, 0));
}

/// Panics in its destructor.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(thread::panicking(), "a destructor that panics");
    }
}

#[tokio::test]
async fn a_destructor_of_on_undelivered_may_panic() {
    let handle = without_quiet_period();
    let bomb = Bomb;
    let sender = sink(&handle)
        .on_undelivered(move |_| {
            let _ = &bomb;
        })
        .deliver(Store::default().deliver())
        .unwrap();
    // The worker ends first, so that the sender is the last owner.
    drain(&handle).await;
    run_tasks().await;
    drop(sender);
    assert_conserved(&handle.snapshot());
}

#[tokio::test]
async fn a_sink_survives_panicking_destructors_of_aborted_events() {
    let handle = without_quiet_period();
    let mut hangs = true;
    let sender = handle
        .sink("bomb")
        .max_delay(Duration::ZERO)
        .service(service_fn(move |batch: Batch<Option<Bomb>>| {
            let hangs = std::mem::take(&mut hangs);
            async move {
                if hangs {
                    // Without the batch: the queue has the last clone.
                    drop(batch);
                    pending::<()>().await;
                }
                Ok::<_, &str>(())
            }
        }))
        .unwrap();
    assert!(sender.try_send(Some(Bomb)).is_ok());
    run_tasks().await;
    handle.abort();
    run_tasks().await;
    assert!(sender.try_send(None).is_ok());
    sender.flush(LIMIT).await.unwrap();
    let now = handle.snapshot();
    assert_conserved(&now);
    assert_eq!((now.ended.completed, now.pending), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_never_waits_does_not_starve_other_tasks() {
    let handle = TrackEventsHandle::new();
    let failing = handle
        .sink("failing")
        .max_delay(Duration::ZERO)
        .backoff(Duration::ZERO, Duration::ZERO)
        .service(service_fn(|_: Batch<u32>| async { Err::<(), _>("down") }))
        .unwrap();
    let taking: Arc<Mutex<Option<EventSender<u32>>>> = Arc::default();
    let again = Arc::clone(&taking);
    let endless = handle
        .sink("endless")
        .max_delay(Duration::ZERO)
        .service(service_fn(move |_: Batch<u32>| {
            // Sends the next event.
            let sent = again.lock().unwrap().as_ref().map(|sender| sender.try_send(0).is_ok());
            async move { sent.map(|_| ()).ok_or("the test is over") }
        }))
        .unwrap();
    *taking.lock().unwrap() = Some(endless.clone());
    send(&failing, [1]);
    send(&endless, [0]);
    for _ in 0..3 {
        // The clock of tokio counts milliseconds.
        advance(Duration::from_millis(2)).await;
        run_tasks().await;
    }
    assert!(failing.snapshot().failed_attempts > 1);
    assert!(endless.snapshot().delivered_batches > 1);
    taking.lock().unwrap().take();
    handle.abort();
}

#[tokio::test(start_paused = true)]
async fn a_sink_built_during_a_drain_delivers_without_the_delay() {
    let handle = without_quiet_period();
    let guard = handle.guard().unwrap();
    let mut drain = task::spawn(handle.drain(LIMIT));
    assert_pending!(drain.poll());
    let store = Store::default();
    let sender = sink(&handle).max_delay(HOUR).deliver(store.deliver()).unwrap();
    send(&sender, [1]);
    run_tasks().await;
    assert_eq!(store.taken(), [[1]]);
    drop(guard);
    assert_pending!(drain.poll());
    assert!(handle.is_drained(), "it waits until the sink has been dropped");
    run_tasks().await;
    assert_ready!(drain.poll()).unwrap();
}

#[tokio::test]
async fn settings_out_of_range_are_errors() {
    let handle = TrackEventsHandle::new();
    let store = Store::default();
    let error = |builder: SinkBuilder<u32>| builder.deliver(store.deliver()).unwrap_err();
    assert_eq!(error(sink(&handle).capacity(0)), BuildError::Capacity(0));
    assert_eq!(error(sink(&handle).capacity(1 << 32)), BuildError::Capacity(1 << 32));
    assert_eq!(error(sink(&handle).max_batch(0)), BuildError::MaxBatch);
    assert_eq!(error(sink(&handle).max_attempts(0)), BuildError::MaxAttempts);
    assert_eq!(error(sink(&handle).deliver_timeout(Duration::ZERO)), BuildError::DeliverTimeout);
    let outside = sink(&handle);
    let (thread_handle, thread_store) = (handle.clone(), store.clone());
    let without_runtime =
        thread::spawn(move || sink(&thread_handle).deliver(thread_store.deliver()).unwrap_err()).join().unwrap();
    assert_eq!(without_runtime, BuildError::NoRuntime);
    // The longest durations are valid.
    let sender = outside
        .max_delay(Duration::MAX)
        .deliver_timeout(Duration::MAX)
        .backoff(Duration::MAX, Duration::MAX)
        .capacity(u32::MAX as usize)
        .max_batch(usize::MAX)
        .deliver(store.deliver())
        .unwrap();
    store.script.lock().unwrap().push_back(Act::Fail);
    send(&sender, [1]);
    let mut flush = task::spawn(sender.flush(Duration::MAX));
    assert_pending!(flush.poll());
    run_tasks().await;
    assert_eq!(sender.snapshot().failed_attempts, 1);
    assert!(drain(&handle).await.all_completed());
    assert_ready!(flush.poll()).unwrap();
}

#[test]
fn a_sink_needs_a_runtime_with_timers() {
    let runtime = runtime::Builder::new_current_thread().build().unwrap();
    let handle = TrackEventsHandle::new();
    let built = runtime.block_on(async { sink(&handle).deliver(Store::default().deliver()) });
    assert_eq!(built.unwrap_err(), BuildError::NoRuntime);
}

// Many threads.

#[test]
fn nothing_is_lost_or_reordered_when_threads_send_during_failures_and_a_drain() {
    const THREADS: u32 = 4;
    const EACH: u32 = 2_000;
    for round in 0..20_u32 {
        let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let handle = without_quiet_period();
        let stored = Arc::new(Mutex::new(Vec::new()));
        let spilled = Arc::new(Mutex::new(Vec::new()));
        let (into, spill, mut attempt) = (Arc::clone(&stored), Arc::clone(&spilled), round);
        let sender = {
            let _entered = runtime.enter();
            handle
                .sink("row")
                .max_batch(64)
                .max_delay(Duration::from_millis(u64::from(round % 2)))
                .backoff(Duration::ZERO, Duration::ZERO)
                .on_undelivered(move |events| spill.lock().unwrap().extend(events.iter().copied()))
                .service(service_fn(move |batch: Batch<(u32, u32)>| {
                    attempt += 1;
                    let (into, attempt) = (Arc::clone(&into), attempt);
                    async move {
                        tokio::task::yield_now().await;
                        assert!(attempt % 7 != 0, "a sink that panics");
                        if attempt % 3 == 0 {
                            return Err("down");
                        }
                        into.lock().unwrap().extend(batch.iter().copied());
                        Ok(())
                    }
                }))
                .unwrap()
        };
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let sender = sender.clone();
                thread::spawn(move || (0..EACH).filter(|number| sender.try_send((thread, *number)).is_ok()).count())
            })
            .collect();
        // In half of the rounds a drain races with the senders, and some of these drains time out.
        let first = (round % 2 == 0).then(|| runtime.block_on(handle.drain(Duration::from_micros(100))));
        let accepted: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
        let report = runtime.block_on(drain(&handle));
        let stored = stored.lock().unwrap().clone();
        let spilled = spilled.lock().unwrap().clone();
        assert_eq!(report.accepted as usize, accepted);
        assert_eq!(report.ended.completed + report.ended.failed, report.accepted, "{first:?}");
        assert_eq!(report.ended.failed as usize, spilled.len());
        // A batch whose attempt was dropped may have been stored as well.
        assert!(stored.len() >= report.ended.completed as usize);
        let mut all = [stored.clone(), spilled.clone()].concat();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), accepted);
        for events in [stored, spilled] {
            for thread in 0..THREADS {
                let numbers: Vec<_> = events.iter().filter(|event| event.0 == thread).map(|event| event.1).collect();
                assert!(numbers.is_sorted(), "thread {thread} in round {round}");
            }
        }
    }
}

#[test]
fn a_batch_that_ends_while_it_is_detached_counts_once() {
    let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let handle = without_quiet_period();
    let spilled = Counter::default();
    let spill = spilled.clone();
    let sender = {
        let _entered = runtime.enter();
        handle
            .sink("row")
            .max_delay(Duration::ZERO)
            .on_undelivered(move |events| events.iter().for_each(|_| spill.add()))
            .service(service_fn(|_: Batch<u32>| async { Ok::<_, &str>(()) }))
            .unwrap()
    };
    // With the guard no drain is `Ok`: each detaches the events that are queued, at a random time after the send.
    let guard = handle.guard().unwrap();
    let mut sent = 0;
    for round in 0..20_000 {
        send(&sender, 0..3);
        sent += 3;
        (0..round % 200 * 20).for_each(|_| std::hint::spin_loop());
        runtime.block_on(handle.drain(Duration::ZERO)).unwrap_err();
        let now = handle.snapshot();
        assert_conserved(&now);
        if round >= 2_000 && now.ended.completed >= 300 && now.ended.failed >= 300 {
            break;
        }
    }
    drop(guard);
    let report = runtime.block_on(drain(&handle));
    assert_eq!(report.accepted, sent);
    assert_eq!(report.ended.failed as usize, spilled.get());
    assert_eq!(report.ended.completed + report.ended.failed, sent);
    assert!(report.ended.completed > 0 && report.ended.failed > 0, "{report}");
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_idleness_flushes_what_is_sent_while_it_waits() {
    let handle = TrackEventsHandle::new();
    let store = Store::new([Act::Hang]);
    let sender = sink(&handle).max_delay(HOUR).deliver(store.deliver()).unwrap();
    let _permit = sender.try_reserve().unwrap();
    send(&sender, [1]);
    let mut wait = task::spawn(handle.wait_idle(HOUR));
    assert_pending!(wait.poll());
    run_tasks().await;
    // After the look of the wait, and while the first value is being delivered.
    send(&sender, [2]);
    store.release.notify_one();
    run_tasks().await;
    assert!(wait.is_woken());
    assert_pending!(wait.poll());
    run_tasks().await;
    assert!(wait.is_woken());
    assert_ready!(wait.poll()).unwrap();
    assert_eq!(store.taken().concat(), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_sink_whose_runtime_has_gone_while_a_drain_was_closing_says_so_once_the_drain_has_timed_out() {
    let handle = without_quiet_period();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let sender = {
        let _entered = runtime.enter();
        sink(&handle).deliver(Store::default().deliver()).unwrap()
    };
    handle.track("keeps the drain closing", std::future::pending::<()>()).unwrap();
    let mut drain = task::spawn(handle.drain(LIMIT));
    assert_pending!(drain.poll());
    assert_eq!(sender.try_send(1).unwrap_err().reason, TrackError::Closed);
    std::thread::spawn(move || drop(runtime)).join().unwrap();
    assert_eq!(sender.try_send(2).unwrap_err().reason, TrackError::NoRuntime);
    drop(drain);
    assert_eq!(sender.try_send(3).unwrap_err().reason, TrackError::NoRuntime);
    handle.abort();
}

#[tokio::test]
async fn a_sink_that_is_gone_takes_its_own_counts_along_and_no_others() {
    let handle = TrackEventsHandle::new();
    let sink = || |_: Batch<u32>| async { Ok::<_, std::convert::Infallible>(()) };
    let kept = handle.sink("kept").max_delay(Duration::ZERO).service(service_fn(sink())).unwrap();
    let gone = handle.sink("gone").max_delay(Duration::ZERO).service(service_fn(sink())).unwrap();
    gone.try_send(1).unwrap();
    drop(gone);
    run_tasks().await;
    kept.try_send(1).unwrap();
    kept.try_send(2).unwrap();
    let now = handle.sinks();
    let counts: Vec<_> = now.iter().map(|sink| (sink.name, sink.accepted, sink.pending)).collect();
    assert_eq!(counts, [("gone", 1, 0), ("kept", 2, 2)]);
    drain(&handle).await;
}
