//! Typed events in batches: the same laws without tasks.

use std::{
    collections::VecDeque,
    future::pending,
    iter,
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
use tower_track_events::{
    Batch, DrainError, EventSender, EventSink, InvalidSetting, Refused, SinkBuilder, SinkSnapshot, TrackEventsHandle,
    Undelivered, WaitIdleError,
};

use crate::support::{Counter, OnDrop, assert_conserved, drain, settle, unsettled};

const LIMIT: Duration = Duration::from_secs(5);
const HOUR: Duration = Duration::from_secs(3600);

/// What the store does with one attempt. It takes all that come after the last of its script.
#[derive(Clone, Copy)]
enum Act {
    Take,
    Fail,
    Panic,
    PanicBeforeTheFuture,
    Hang,
}

/// What has reached the store, and when; shared with the sink.
#[derive(Clone, Default)]
struct Store {
    script: Arc<Mutex<VecDeque<Act>>>,
    attempts: Arc<Mutex<Vec<Vec<u32>>>>,
    taken: Arc<Mutex<Vec<Vec<u32>>>>,
    /// Lets one attempt that hangs go on.
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

impl EventSink<u32> for Store {
    type Error = &'static str;

    fn deliver(&mut self, batch: Batch<u32>) -> impl Future<Output = Result<(), &'static str>> + Send {
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

fn sink(handle: &TrackEventsHandle, store: &Store) -> SinkBuilder<u32, Store> {
    handle.sink("row", store.clone())
}

fn send(sender: &EventSender<u32>, events: impl IntoIterator<Item = u32>) {
    for event in events {
        sender.send(event).unwrap();
    }
}

fn collect(into: &Arc<Mutex<Vec<Vec<u32>>>>) -> impl Fn(Undelivered<u32>) + Send + Sync + use<> {
    let into = Arc::clone(into);
    move |events| into.lock().unwrap().push(events.iter().copied().collect())
}

// Batches.

#[tokio::test(start_paused = true)]
async fn events_wait_for_others_for_as_long_as_the_delay_and_are_delivered_together_in_order() {
    let handle = TrackEventsHandle::new();
    let store = Store::default();
    let sender = sink(&handle, &store).max_delay(Duration::from_millis(10)).build().unwrap();
    send(&sender, [1, 2]);
    settle().await;
    advance(Duration::from_millis(9)).await;
    settle().await;
    send(&sender, [3]);
    settle().await;
    assert_eq!(store.taken(), Vec::<Vec<u32>>::new());
    assert_eq!(handle.snapshot().pending, 3);

    advance(Duration::from_millis(1)).await;
    settle().await;
    assert_eq!(store.taken(), [[1, 2, 3]]);
    let now = handle.snapshot();
    assert_eq!((now.accepted, now.pending, now.completed), (3, 0, 3));
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_is_full_does_not_wait() {
    let handle = TrackEventsHandle::new();
    let store = Store::default();
    let sender = sink(&handle, &store).max_delay(HOUR).max_batch(3).build().unwrap();
    send(&sender, [1, 2]);
    settle().await;
    assert_eq!(store.taken().len(), 0);
    send(&sender, [3]);
    settle().await;
    assert_eq!(store.taken(), [[1, 2, 3]]);
}

#[tokio::test]
async fn a_queue_that_is_too_long_for_one_batch_makes_several_in_order() {
    let handle = TrackEventsHandle::new();
    let store = Store::default();
    let sender = sink(&handle, &store).max_batch(4).build().unwrap();
    send(&sender, 0..10);
    sender.flush(LIMIT).await.unwrap();
    assert_eq!(store.taken(), [vec![0, 1, 2, 3], vec![4, 5, 6, 7], vec![8, 9]]);
    assert_eq!(sender.snapshot().delivered_batches, 3);
}

#[tokio::test]
async fn without_a_delay_an_event_is_delivered_at_once_and_those_behind_it_together() {
    let handle = TrackEventsHandle::new();
    let store = Store::new([Act::Hang]);
    let sender = sink(&handle, &store).max_delay(Duration::ZERO).build().unwrap();
    send(&sender, [1]);
    settle().await;
    assert_eq!(store.attempts(), [[1]]);
    send(&sender, [2, 3]);
    store.release.notify_one();
    settle().await;
    assert_eq!(store.taken(), [vec![1], vec![2, 3]]);
}

#[tokio::test]
async fn closures_are_sinks_and_their_errors_need_only_be_displayed() {
    let handle = TrackEventsHandle::new();
    let (sum, mut fails) = (Arc::new(Mutex::new(0)), true);
    let into = Arc::clone(&sum);
    let sender = handle
        .sink("number", move |batch: Batch<u32>| {
            let (into, fails) = (Arc::clone(&into), std::mem::take(&mut fails));
            async move {
                if fails {
                    return Err(format_args!("not yet").to_string());
                }
                *into.lock().unwrap() += batch.iter().sum::<u32>();
                Ok(())
            }
        })
        .backoff(Duration::ZERO, Duration::ZERO)
        .build()
        .unwrap();
    send(&sender, [1, 2, 3]);
    assert!(drain(&handle).await.all_completed());
    assert_eq!(*sum.lock().unwrap(), 6);
}

// A store that fails.

#[tokio::test(start_paused = true)]
async fn a_batch_that_is_not_taken_is_tried_again_until_it_is_and_those_behind_it_wait() {
    let handle = TrackEventsHandle::new();
    let store = Store::new([Act::Fail, Act::Panic, Act::PanicBeforeTheFuture, Act::Hang, Act::Take]);
    let sender = sink(&handle, &store).max_delay(Duration::ZERO).build().unwrap();
    send(&sender, [1, 2]);
    settle().await;
    send(&sender, [3]);
    assert_eq!(handle.snapshot().pending, 3);
    assert_eq!(sender.snapshot().last_error.as_deref(), Some("the store is down"));

    sender.flush(HOUR).await.unwrap();
    assert_eq!(store.attempts(), [vec![1, 2], vec![1, 2], vec![1, 2], vec![1, 2], vec![1, 2], vec![3]]);
    assert_eq!(store.taken(), [vec![1, 2], vec![3]]);
    let now = sender.snapshot();
    assert_eq!((now.failed_attempts, now.delivered_batches, now.endings.completed), (4, 2, 3));
    assert_eq!(now.last_error, None);
    assert_conserved(&handle.snapshot());
}

#[tokio::test(start_paused = true)]
async fn the_time_between_attempts_doubles_up_to_the_longest_and_at_most_doubles_by_chance() {
    let handle = TrackEventsHandle::new();
    let (at, began) = (Arc::new(Mutex::new(Vec::new())), Instant::now());
    let into = Arc::clone(&at);
    let sender = handle
        .sink("row", move |_: Batch<u32>| {
            into.lock().unwrap().push(began.elapsed());
            async { Err("down") }
        })
        .max_delay(Duration::ZERO)
        .backoff(Duration::from_secs(1), Duration::from_secs(4))
        .build()
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
async fn whoever_waits_makes_the_time_between_attempts_begin_anew() {
    let handle = TrackEventsHandle::new();
    let store = Store::new([Act::Fail; 8]);
    let (first, longest) = (Duration::from_secs(1), Duration::from_secs(1024));
    let sender = sink(&handle, &store).backoff(first, longest).build().unwrap();
    send(&sender, [1]);
    while store.attempts().len() < 6 {
        advance(first).await;
        settle().await;
    }
    // The next would come in 32 seconds at the least.
    let mut flush = task::spawn(sender.flush(Duration::MAX));
    assert_pending!(flush.poll());
    settle().await;
    assert_eq!(store.attempts().len(), 7);
    advance(2 * first + Duration::from_millis(2)).await;
    settle().await;
    assert_eq!(store.attempts().len(), 8);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_hangs_is_dropped_when_its_time_is_over() {
    let handle = TrackEventsHandle::new();
    let store = Store::new([Act::Hang]);
    let sender = sink(&handle, &store).deliver_timeout(LIMIT).build().unwrap();
    send(&sender, [7]);
    let began = Instant::now();
    sender.flush(HOUR).await.unwrap();
    assert!(began.elapsed() >= LIMIT && began.elapsed() < 2 * LIMIT, "{:?}", began.elapsed());
    assert_eq!(store.taken(), [[7]]);
    assert_eq!(sender.snapshot().failed_attempts, 1);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_was_attempted_for_the_last_time_fails_and_the_next_has_its_turn() {
    let handle = unsettled();
    let store = Store::new([Act::Fail; 3]);
    let taken = Arc::default();
    let sender = sink(&handle, &store).max_batch(2).max_attempts(3).on_undelivered(collect(&taken)).build().unwrap();
    send(&sender, [1, 2, 3]);
    let report = drain(&handle).await;
    assert_eq!(taken.lock().unwrap().as_slice(), [[1, 2]]);
    assert_eq!(store.taken(), [[3]]);
    assert_eq!((report.endings.failed, report.endings.completed), (2, 1));
    assert_eq!((report.wrong[0].name, report.wrong[0].endings.failed), ("row", 2));
}

// Drains.

#[tokio::test(start_paused = true)]
async fn a_drain_does_not_wait_for_the_delay() {
    let handle = unsettled();
    let store = Store::default();
    let sender = sink(&handle, &store).max_delay(HOUR).build().unwrap();
    send(&sender, [1, 2]);
    settle().await;
    assert_eq!(store.taken().len(), 0);
    let began = Instant::now();
    let report = drain(&handle).await;
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(store.taken(), [[1, 2]]);
    assert_eq!(report.endings.completed, 2);
    assert_eq!((report.sinks[0].name, report.sinks[0].endings.completed), ("row", 2));
}

#[tokio::test(start_paused = true)]
async fn a_drain_does_not_wait_for_what_is_sent_while_it_waits() {
    let handle = unsettled();
    let store = Store::default();
    let sender = sink(&handle, &store).max_delay(HOUR).build().unwrap();
    let guard = handle.guard().unwrap();
    let mut drain = task::spawn(handle.drain(LIMIT));
    assert_pending!(drain.poll());
    send(&sender, [1]);
    settle().await;
    assert_eq!(store.taken(), [[1]]);
    drop(guard);
    assert!(assert_ready!(drain.poll()).unwrap().all_completed());
}

#[tokio::test(start_paused = true)]
async fn a_drain_cuts_the_time_between_attempts_short() {
    let handle = unsettled();
    let store = Store::new([Act::Fail]);
    let sender = sink(&handle, &store).max_delay(Duration::ZERO).backoff(HOUR, HOUR).build().unwrap();
    send(&sender, [1]);
    settle().await;
    assert_eq!(store.attempts().len(), 1);
    let began = Instant::now();
    drain(&handle).await;
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(store.taken(), [[1]]);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_delivered_when_the_limit_comes_is_handed_over_whole_in_order_and_named() {
    let handle = unsettled();
    let store = Store::new([Act::Fail, Act::Fail, Act::Hang]);
    let taken = Arc::default();
    let sender = sink(&handle, &store)
        .max_batch(2)
        .backoff(Duration::from_millis(10), Duration::from_millis(10))
        .on_undelivered(collect(&taken))
        .build()
        .unwrap();
    send(&sender, 0..5);
    let guard = handle.guard().unwrap();
    let mut cut_short = task::spawn(handle.drain(LIMIT));
    assert_pending!(cut_short.poll());
    settle().await;
    send(&sender, 5..7);
    advance(Duration::from_millis(100)).await;
    settle().await;
    advance(Duration::from_millis(100)).await;
    settle().await;
    assert_eq!(store.attempts(), [[0, 1], [0, 1], [0, 1]]);
    assert_eq!(*taken.lock().unwrap(), Vec::<Vec<u32>>::new());
    advance(LIMIT).await;

    let error = assert_ready!(cut_short.poll()).unwrap_err();
    assert_eq!(*taken.lock().unwrap(), [[0, 1, 2, 3, 4, 5, 6]]);
    let DrainError::CutShort(unfinished) = &error else { panic!("{error}") };
    assert_eq!((unfinished.undelivered[0].name, unfinished.undelivered[0].count), ("row", 7));
    assert_eq!(unfinished.undelivered[0].last_error.as_deref(), Some("the store is down"));
    assert_eq!((unfinished.events.len(), unfinished.guards.len()), (0, 1));
    assert_eq!(unfinished.report.endings.failed, 7);
    let line = error.to_string();
    assert!(line.contains("row x7 undelivered and handed over (tests/it/sink.rs:"), "{line}");
    assert!(line.contains("last error: the store is down)"), "{line}");

    // The answer of an attempt that was taken away comes too late to count.
    store.release.notify_waiters();
    store.release.notify_one();
    settle().await;
    let now = handle.snapshot();
    assert_eq!((now.pending, now.failed, now.completed), (0, 7, 0));
    // Nothing is closed.
    send(&sender, [7]);
    drop(guard);
    let report = drain(&handle).await;
    assert_eq!((report.endings.failed, report.endings.completed), (7, 1));
    assert_eq!(store.taken(), [[7]]);
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_hands_over_is_cut_short_though_nothing_else_is_open() {
    let handle = unsettled();
    let store = Store::new([Act::Hang]);
    let taken = Arc::default();
    let sender = sink(&handle, &store).on_undelivered(collect(&taken)).build().unwrap();
    send(&sender, [1]);
    let error = handle.drain(Duration::ZERO).await.unwrap_err();
    assert!(matches!(error, DrainError::CutShort(unfinished) if unfinished.undelivered[0].count == 1));
    assert_eq!(*taken.lock().unwrap(), [[1]]);
    assert_eq!(drain(&handle).await.endings.failed, 1);
}

#[tokio::test(start_paused = true)]
async fn without_a_taker_events_stay_pending_and_are_named() {
    let handle = unsettled();
    let store = Store::new([Act::Hang]);
    let sender = sink(&handle, &store).max_batch(2).build().unwrap();
    send(&sender, [1, 2, 3]);
    settle().await;
    let error = handle.drain(Duration::from_secs(1)).await.unwrap_err();
    let DrainError::CutShort(unfinished) = &error else { panic!("{error}") };
    let events = &unfinished.events[0];
    assert_eq!((events.name, events.count, events.queued, events.started), ("row", 3, true, false));
    assert_eq!(events.oldest, Duration::from_secs(1));
    assert!(error.to_string().contains("row x3 queued for the sink (oldest 1.0 s, tests/it/sink.rs:"), "{error}");

    store.release.notify_one();
    assert!(drain(&handle).await.all_completed());
    assert_eq!(store.taken(), [vec![1, 2], vec![3]]);
}

#[tokio::test(start_paused = true)]
async fn what_is_sent_and_delivered_while_the_house_settles_makes_it_settle_anew() {
    let settle_time = Duration::from_millis(100);
    let handle = TrackEventsHandle::builder().settle(settle_time).build().unwrap();
    let store = Store::default();
    let sender = sink(&handle, &store).build().unwrap();
    let began = Instant::now();
    let mut drain = task::spawn(handle.drain(LIMIT));
    assert_pending!(drain.poll());
    advance(settle_time / 2).await;
    send(&sender, [1]);
    settle().await;
    assert_eq!(store.taken(), [[1]]);
    assert_pending!(drain.poll());
    advance(settle_time * 3 / 4).await;
    assert_pending!(drain.poll());
    let report = drain.await.unwrap();
    assert!(began.elapsed() >= settle_time * 3 / 2, "{:?}", began.elapsed());
    assert!(report.all_completed());
}

#[tokio::test]
async fn a_drain_that_is_dropped_takes_nothing_away() {
    let handle = unsettled();
    let store = Store::new([Act::Hang]);
    let taken = Arc::default();
    let sender = sink(&handle, &store).on_undelivered(collect(&taken)).build().unwrap();
    send(&sender, [1]);
    let mut given_up = task::spawn(handle.drain(LIMIT));
    assert_pending!(given_up.poll());
    settle().await;
    drop(given_up);
    store.release.notify_one();
    assert!(drain(&handle).await.all_completed());
    assert_eq!(taken.lock().unwrap().len(), 0);
}

#[tokio::test]
async fn a_drained_house_gives_the_event_back_and_drops_the_sink() {
    let handle = unsettled();
    let (gone, is_gone) = oneshot::channel();
    let on_drop = OnDrop::new(move || gone.send(()).unwrap());
    let sender = handle
        .sink("row", move |_: Batch<String>| {
            let _ = &on_drop;
            async { Ok::<_, &str>(()) }
        })
        .build()
        .unwrap();
    sender.send("one".to_owned()).unwrap();
    drain(&handle).await;
    let error = sender.send("two".to_owned()).unwrap_err();
    assert_eq!((error.event.as_str(), error.refused), ("two", Refused::Drained));
    assert_eq!(error.to_string(), Refused::Drained.to_string());
    assert_eq!(sender.reserve().unwrap_err(), Refused::Drained);
    is_gone.await.unwrap();
    assert_eq!(handle.snapshot().refused, 2);
    // A sink that is made now is closed as well.
    let late = sink(&handle, &Store::default()).build().unwrap();
    assert_eq!(late.send(1).unwrap_err().refused, Refused::Drained);
}

#[tokio::test]
async fn a_drain_inside_the_sink_of_its_own_handle_is_refused() {
    let handle = unsettled();
    let (answer, answered) = oneshot::channel();
    let (inside, mut answer) = (handle.clone(), Some(answer));
    let sender = handle
        .sink("row", move |_: Batch<u32>| {
            let (inside, answer) = (inside.clone(), answer.take());
            async move {
                if let Some(answer) = answer {
                    let _ = answer.send(inside.drain(LIMIT).await);
                }
                Ok::<_, &str>(())
            }
        })
        .build()
        .unwrap();
    send(&sender, [1]);
    assert_eq!(answered.await.unwrap(), Err(DrainError::InsideItself));
    assert!(drain(&handle).await.all_completed());
}

// Bounds and permits.

#[tokio::test]
async fn a_sink_has_a_bound_of_its_own_which_is_exact() {
    let handle = TrackEventsHandle::builder().capacity(1).settle(Duration::ZERO).build().unwrap();
    let store = Store::new([Act::Hang]);
    let sender = sink(&handle, &store).capacity(3).build().unwrap();
    send(&sender, [1, 2]);
    let permit = sender.reserve().unwrap();
    let error = sender.send(4).unwrap_err();
    assert_eq!((error.event, error.refused), (4, Refused::Full));
    assert_eq!(sender.reserve().unwrap_err(), Refused::Full);
    let now = handle.snapshot();
    assert_eq!((now.pending, now.reserved, now.refused), (2, 1, 2));
    // The room of others is not taken.
    handle.track("other", async {}).unwrap();
    permit.send(3);
    assert_eq!(sender.send(4).unwrap_err().refused, Refused::Full);
    settle().await;
    store.release.notify_one();
    sender.flush(LIMIT).await.unwrap();
    send(&sender, [5]);
    assert_eq!(drain(&handle).await.endings.completed, 5);
    assert_eq!(store.taken().concat(), [1, 2, 3, 5]);
}

#[tokio::test]
async fn a_drain_waits_for_a_permit_and_names_it() {
    let handle = unsettled();
    let store = Store::default();
    let sender = sink(&handle, &store).build().unwrap();
    let [used, unused] = [(); 2].map(|()| sender.reserve().unwrap());
    let error = handle.drain(Duration::ZERO).await.unwrap_err();
    assert!(error.to_string().contains("2 permits held (oldest "), "{error}");
    let mut waits = task::spawn(handle.drain(LIMIT));
    assert_pending!(waits.poll());
    used.send(1);
    assert_pending!(waits.poll());
    settle().await;
    assert_pending!(waits.poll());
    drop(unused);
    assert!(waits.is_woken());
    let report = assert_ready!(waits.poll()).unwrap();
    assert_eq!((report.accepted, report.endings.completed), (1, 1));
    assert_eq!(store.taken(), [[1]]);
}

// Waits.

#[tokio::test(start_paused = true)]
async fn a_flush_waits_for_what_was_sent_before_its_first_poll_and_for_this_sink_only() {
    let handle = TrackEventsHandle::new();
    let (store, other) = (Store::new([Act::Hang, Act::Hang]), Store::default());
    let sender = sink(&handle, &store).max_delay(HOUR).build().unwrap();
    let other = handle.sink("other", other).max_delay(HOUR).build().unwrap();
    handle.track("task", pending::<()>()).unwrap();
    send(&sender, [1]);
    send(&other, [1]);
    let mut flush = task::spawn(sender.flush(LIMIT));
    assert_pending!(flush.poll());
    settle().await;
    send(&sender, [2]);
    store.release.notify_one();
    settle().await;
    assert!(flush.is_woken());
    assert_ready!(flush.poll()).unwrap();
    assert_eq!((sender.snapshot().pending, other.snapshot().pending), (1, 1));
    // Nothing is left to wait for.
    let empty = handle.sink("empty", Store::default()).build().unwrap();
    assert_ready!(task::spawn(empty.flush(LIMIT)).poll()).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_flush_and_a_wait_for_idleness_wake_whoever_waits_for_more() {
    let handle = TrackEventsHandle::new();
    let store = Store::default();
    let sender = sink(&handle, &store).max_delay(HOUR).build().unwrap();
    let began = Instant::now();
    send(&sender, [1]);
    settle().await;
    sender.flush(LIMIT).await.unwrap();
    send(&sender, [2]);
    settle().await;
    handle.wait_idle(LIMIT).await.unwrap();
    assert_eq!(store.taken(), [[1], [2]]);
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn a_flush_waits_for_the_last_of_several_batches() {
    let handle = TrackEventsHandle::new();
    let store = Store::new([Act::Take, Act::Hang]);
    let sender = sink(&handle, &store).max_batch(2).build().unwrap();
    send(&sender, [1, 2, 3]);
    let mut flush = task::spawn(sender.flush(Duration::MAX));
    assert_pending!(flush.poll());
    settle().await;
    assert_eq!(store.taken(), [[1, 2]]);
    assert!(!flush.is_woken());
    assert_pending!(flush.poll());
    store.release.notify_one();
    settle().await;
    assert_ready!(flush.poll()).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_flush_that_is_not_done_in_time_says_what_is_pending() {
    let handle = TrackEventsHandle::new();
    let store = Store::new([Act::Hang]);
    let sender = sink(&handle, &store).build().unwrap();
    send(&sender, [1, 2]);
    let flush = sender.flush(LIMIT);
    let error = flush.await.unwrap_err();
    let WaitIdleError::TimedOut { pending, after, .. } = error else { panic!("{error}") };
    assert_eq!(after, LIMIT);
    assert_eq!((pending[0].name, pending[0].count, pending[0].queued), ("row", 2, true));
    store.release.notify_one();
    sender.flush(LIMIT).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_idleness_covers_sinks_and_hurries_them() {
    let handle = TrackEventsHandle::new();
    let (one, two) = (Store::new([Act::Hang]), Store::default());
    let first = sink(&handle, &one).max_delay(HOUR).build().unwrap();
    let second = handle.sink("second", two.clone()).max_delay(HOUR).build().unwrap();
    let (release, released) = oneshot::channel::<()>();
    handle.track("task", async move { drop(released.await) }).unwrap();
    send(&first, [1]);
    send(&second, [2]);
    let mut wait = task::spawn(handle.wait_idle(HOUR));
    assert_pending!(wait.poll());
    settle().await;
    assert_eq!(two.taken(), [[2]]);
    one.release.notify_one();
    settle().await;
    assert_pending!(wait.poll());
    send(&first, [3]);
    release.send(()).unwrap();
    settle().await;
    assert!(wait.is_woken());
    assert_ready!(wait.poll()).unwrap();
    assert_eq!(handle.snapshot().pending, 1);
}

// Ends that are no delivery.

#[tokio::test]
async fn an_abort_takes_everything_from_the_sink_and_counts_it_as_aborted() {
    let handle = unsettled();
    let store = Store::new([Act::Hang]);
    let taken = Arc::default();
    let sender = sink(&handle, &store).max_batch(2).on_undelivered(collect(&taken)).build().unwrap();
    let without_taker = handle.sink("other", Store::new([Act::Hang])).build().unwrap();
    send(&sender, [1, 2, 3]);
    send(&without_taker, [1]);
    settle().await;
    handle.abort();
    assert_eq!(*taken.lock().unwrap(), [[1, 2, 3]]);
    let now = handle.snapshot();
    assert_eq!((now.pending, now.aborted), (0, 4));
    // Later events are delivered as before.
    send(&sender, [4]);
    let report = drain(&handle).await;
    assert_eq!((report.endings.aborted, report.endings.completed), (4, 1));
    assert_eq!(store.taken(), [[4]]);
}

#[tokio::test(start_paused = true)]
async fn what_was_aborted_between_two_attempts_is_not_attempted_again_and_the_next_is() {
    let handle = unsettled();
    let store = Store::new([Act::Fail]);
    let sender = sink(&handle, &store).backoff(HOUR, HOUR).build().unwrap();
    send(&sender, [1]);
    advance(Duration::from_millis(10)).await;
    settle().await;
    assert_eq!(store.attempts(), [[1]]);
    handle.abort();
    send(&sender, [2]);
    settle().await;
    advance(Duration::from_millis(10)).await;
    settle().await;
    assert_eq!(store.attempts(), [[1], [2]]);
    assert_eq!(handle.snapshot().aborted, 1);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_under_way_is_dropped_by_an_abort_and_the_next_events_are_delivered() {
    let handle = unsettled();
    let store = Store::new([Act::Hang]);
    let sender = sink(&handle, &store).max_delay(Duration::ZERO).build().unwrap();
    send(&sender, [1]);
    settle().await;
    handle.abort();
    send(&sender, [2]);
    settle().await;
    assert_eq!(store.taken(), [[2]]);
}

#[test]
fn nothing_is_delivered_while_somebody_takes_what_came_before() {
    let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let handle = unsettled();
    let (delivered, is_delivered) = std::sync::mpsc::channel();
    let is_delivered = Mutex::new(is_delivered);
    let overtaken = Arc::new(Mutex::new(None));
    let into = Arc::clone(&overtaken);
    let sender_inside = Arc::new(Mutex::new(None::<EventSender<u32>>));
    let sender = {
        let _entered = runtime.enter();
        let sender = Arc::clone(&sender_inside);
        handle
            .sink("row", move |batch: Batch<u32>| {
                let delivered = delivered.clone();
                async move {
                    if *batch == [1] {
                        pending::<()>().await;
                    }
                    delivered.send(batch.to_vec()).unwrap();
                    Ok::<_, &str>(())
                }
            })
            .max_delay(Duration::ZERO)
            .on_undelivered(move |_| {
                sender.lock().unwrap().take().unwrap().send(2).unwrap();
                // Not a synchronisation: what must not come is given time to come.
                let overtakes = is_delivered.lock().unwrap().recv_timeout(Duration::from_millis(100));
                *into.lock().unwrap() = Some(overtakes.is_ok());
            })
            .build()
            .unwrap()
    };
    *sender_inside.lock().unwrap() = Some(sender.clone());
    send(&sender, [1]);
    runtime.block_on(handle.drain(Duration::ZERO)).unwrap_err();
    assert_eq!(*overtaken.lock().unwrap(), Some(false));
    let report = runtime.block_on(drain(&handle));
    assert_eq!((report.endings.failed, report.endings.completed), (1, 1));
}

#[test]
fn a_drain_that_is_cut_short_returns_when_what_is_not_delivered_has_been_taken() {
    let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    for round in 0..500 {
        let handle = unsettled();
        let taken = Counter::default();
        let takes = taken.clone();
        let (begun, has_begun) = std::sync::mpsc::channel();
        let sender = {
            let _entered = runtime.enter();
            let sink = move |_: Batch<u32>| {
                begun.send(()).unwrap();
                pending::<Result<(), &str>>()
            };
            let take = move |_| {
                // Not a synchronisation: whoever does not wait for this is given time to be seen.
                thread::sleep(Duration::from_millis(1));
                takes.add();
            };
            handle.sink("row", sink).max_delay(Duration::ZERO).on_undelivered(take).build().unwrap()
        };
        send(&sender, [1]);
        has_begun.recv().unwrap();
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            // Whoever delivers looks again and again whether its batch is still to be delivered.
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
async fn a_queue_is_gone_when_its_last_sender_is() {
    let handle = unsettled();
    let gone = Counter::default();
    let counter = gone.clone();
    let on_drop = OnDrop::new(move || counter.add());
    let sender = sink(&handle, &Store::default())
        .on_undelivered(move |_| {
            let _ = &on_drop;
        })
        .build()
        .unwrap();
    let permit = sender.reserve().unwrap();
    drop(sender);
    settle().await;
    assert_eq!(gone.get(), 0);
    drop(permit);
    settle().await;
    assert_eq!(gone.get(), 1);
    drain(&handle).await;
}

/// Notes in its destructor how many events are pending.
struct Witness(TrackEventsHandle, Arc<Mutex<Vec<u64>>>);

impl Drop for Witness {
    fn drop(&mut self) {
        let pending = self.0.snapshot().pending;
        self.1.lock().unwrap().push(pending);
    }
}

#[tokio::test]
async fn events_end_after_their_destructors() {
    let handle = unsettled();
    let seen = Arc::default();
    let sender = handle.sink("witness", |_: Batch<Witness>| async { Ok::<_, &str>(()) }).build().unwrap();
    for _ in 0..3 {
        assert!(sender.send(Witness(handle.clone(), Arc::clone(&seen))).is_ok());
    }
    drain(&handle).await;
    assert_eq!(*seen.lock().unwrap(), [3, 3, 3]);
}

#[test]
fn a_runtime_that_shuts_down_hands_its_events_over_and_refuses_more() {
    let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let handle = TrackEventsHandle::builder().runtime(runtime.handle().clone()).settle(Duration::ZERO).build().unwrap();
    let store = Store::new([Act::Hang]);
    let taken = Arc::default();
    let sender = sink(&handle, &store).on_undelivered(collect(&taken)).build().unwrap();
    send(&sender, [1, 2]);
    runtime.block_on(settle());
    send(&sender, [3]);
    let permit = sender.reserve().unwrap();
    drop(runtime);
    assert_eq!(*taken.lock().unwrap(), [[1, 2, 3]]);
    assert_eq!(sender.send(4).unwrap_err().refused, Refused::NoRuntime);
    let now = handle.snapshot();
    assert_conserved(&now);
    assert_eq!((now.pending, now.aborted, now.reserved), (0, 3, 1));
    permit.send(5);
    assert_eq!(*taken.lock().unwrap(), [vec![1, 2, 3], vec![5]]);
    assert_eq!(handle.snapshot().aborted, 4);
    let elsewhere = runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let report = elsewhere.block_on(drain(&handle));
    assert_eq!((report.endings.aborted, report.refused), (4, 1));
    assert_eq!(sender.send(6).unwrap_err().event, 6);
    assert_eq!(handle.snapshot().refused, 2);
}

#[tokio::test(start_paused = true)]
async fn when_the_last_sender_is_dropped_the_rest_is_delivered_and_the_account_is_kept() {
    let handle = unsettled();
    let store = Store::new([Act::Take, Act::Fail]);
    let sender = sink(&handle, &store).max_delay(HOUR).max_batch(2).backoff(Duration::ZERO, HOUR).build().unwrap();
    send(&sender, [1, 2]);
    settle().await;
    send(&sender, [3]);
    drop(sender.clone());
    settle().await;
    assert_eq!(store.taken(), [[1, 2]]);
    drop(sender);
    settle().await;
    advance(Duration::from_millis(1)).await;
    settle().await;
    assert_eq!(store.taken(), [vec![1, 2], vec![3]]);
    // Only the sink had another.
    assert_eq!(Arc::strong_count(&store.taken), 1);
    // The next of this name goes on with the account.
    let again = sink(&handle, &store).build().unwrap();
    send(&again, [4]);
    let SinkSnapshot { name, pending, accepted, endings, failed_attempts, .. } = handle.sinks().remove(0);
    assert_eq!((name, pending, accepted, endings.completed, failed_attempts), ("row", 1, 4, 3, 1));
    assert_conserved(&handle.snapshot());
    let report = drain(&handle).await;
    assert_eq!((report.accepted, report.endings.completed), (4, 4));
    assert_eq!((report.sinks.len(), report.sinks[0].endings.completed), (1, 4));
}

// Code of the user.

#[tokio::test]
async fn a_taker_that_panics_is_counted() {
    let handle = unsettled();
    let sender =
        sink(&handle, &Store::new([Act::Hang])).on_undelivered(|_| panic!("no room on the disk")).build().unwrap();
    send(&sender, [1, 2]);
    handle.drain(Duration::ZERO).await.unwrap_err();
    let now = handle.snapshot();
    assert_conserved(&now);
    assert_eq!((now.pending, now.panicked), (0, 2));
    assert_eq!(drain(&handle).await.endings.panicked, 2);
}

/// Asks everything that takes a lock, from where no lock may be held, and panics.
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
            let _ = sender.send(Meddler { handle: self.handle.clone(), sender: None, panics: false });
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
async fn no_code_of_the_user_runs_under_a_lock_and_its_panics_lose_nothing() {
    let handle = unsettled();
    let inside = handle.clone();
    let mut fails = true;
    let sender = handle
        .sink("meddler", move |batch: Batch<Meddler>| {
            inside.snapshot();
            batch.iter().for_each(Meddler::meddle);
            let fails = std::mem::take(&mut fails);
            async move {
                batch.iter().for_each(Meddler::meddle);
                if fails { Err("not yet") } else { Ok(()) }
            }
        })
        .backoff(Duration::ZERO, Duration::ZERO)
        .on_undelivered(|events| events.iter().for_each(Meddler::meddle))
        .build()
        .unwrap();
    for panics in [false, true, false] {
        let event = Meddler { handle: handle.clone(), sender: Some(sender.clone()), panics };
        assert!(sender.send(event).is_ok());
    }
    settle().await;
    let now = {
        sender.flush(LIMIT).await.unwrap();
        handle.wait_idle(LIMIT).await.unwrap();
        handle.snapshot()
    };
    assert_conserved(&now);
    // Two attempts, each of two meddlings, and one in each destructor.
    assert_eq!((now.accepted, now.completed), (3 + 3 * 5, 3 + 3 * 5));
    let event = Meddler { handle: handle.clone(), sender: Some(sender.clone()), panics: true };
    assert!(sender.send(event).is_ok());
    handle.abort();
    handle.wait_idle(LIMIT).await.unwrap();
    let now = handle.snapshot();
    assert_conserved(&now);
    assert_eq!((now.panicked, now.pending), (1, 0));
}

/// Panics in its destructor.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(thread::panicking(), "a destructor that panics");
    }
}

#[tokio::test]
async fn what_a_taker_owns_may_panic_when_it_is_dropped() {
    let handle = unsettled();
    let bomb = Bomb;
    let sender = sink(&handle, &Store::default())
        .on_undelivered(move |_| {
            let _ = &bomb;
        })
        .build()
        .unwrap();
    // The task is gone first, so that the last owner is here.
    drain(&handle).await;
    settle().await;
    drop(sender);
    assert_conserved(&handle.snapshot());
}

#[tokio::test]
async fn a_sink_outlives_the_destructors_of_events_that_were_taken_from_an_attempt() {
    let handle = unsettled();
    let mut hangs = true;
    let sender = handle
        .sink("bomb", move |batch: Batch<Option<Bomb>>| {
            let hangs = std::mem::take(&mut hangs);
            async move {
                if hangs {
                    // Without the batch: the queue has the last clone.
                    drop(batch);
                    pending::<()>().await;
                }
                Ok::<_, &str>(())
            }
        })
        .max_delay(Duration::ZERO)
        .build()
        .unwrap();
    assert!(sender.send(Some(Bomb)).is_ok());
    settle().await;
    handle.abort();
    settle().await;
    assert!(sender.send(None).is_ok());
    sender.flush(LIMIT).await.unwrap();
    let now = handle.snapshot();
    assert_conserved(&now);
    assert_eq!((now.completed, now.pending), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_never_waits_leaves_the_thread_to_others() {
    let handle = TrackEventsHandle::new();
    let failing = handle
        .sink("failing", |_: Batch<u32>| async { Err("down") })
        .max_delay(Duration::ZERO)
        .backoff(Duration::ZERO, Duration::ZERO)
        .build()
        .unwrap();
    let taking: Arc<Mutex<Option<EventSender<u32>>>> = Arc::default();
    let again = Arc::clone(&taking);
    let endless = handle
        .sink("endless", move |_: Batch<u32>| {
            // There is always one more.
            let sent = again.lock().unwrap().as_ref().map(|sender| sender.send(0).is_ok());
            async move { sent.map(|_| ()).ok_or("the test is over") }
        })
        .max_delay(Duration::ZERO)
        .build()
        .unwrap();
    *taking.lock().unwrap() = Some(endless.clone());
    send(&failing, [1]);
    send(&endless, [0]);
    for _ in 0..3 {
        // The clock of tokio counts milliseconds.
        advance(Duration::from_millis(2)).await;
        settle().await;
    }
    assert!(failing.snapshot().failed_attempts > 1);
    assert!(endless.snapshot().delivered_batches > 1);
    taking.lock().unwrap().take();
    handle.abort();
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_is_made_while_the_house_drains_does_not_wait_for_more_either() {
    let handle = unsettled();
    let guard = handle.guard().unwrap();
    let mut drain = task::spawn(handle.drain(LIMIT));
    assert_pending!(drain.poll());
    let store = Store::default();
    let sender = sink(&handle, &store).max_delay(HOUR).build().unwrap();
    send(&sender, [1]);
    settle().await;
    assert_eq!(store.taken(), [[1]]);
    drop(guard);
    assert_ready!(drain.poll()).unwrap();
}

#[tokio::test]
async fn settings_out_of_range_are_errors() {
    let handle = TrackEventsHandle::new();
    let store = Store::default();
    let error = |builder: SinkBuilder<u32, Store>| builder.build().unwrap_err();
    assert_eq!(error(sink(&handle, &store).capacity(0)), InvalidSetting::Capacity(0));
    assert_eq!(error(sink(&handle, &store).capacity(1 << 32)), InvalidSetting::Capacity(1 << 32));
    assert_eq!(error(sink(&handle, &store).max_batch(0)), InvalidSetting::MaxBatch);
    assert_eq!(error(sink(&handle, &store).max_attempts(0)), InvalidSetting::MaxAttempts);
    assert_eq!(error(sink(&handle, &store).deliver_timeout(Duration::ZERO)), InvalidSetting::DeliverTimeout);
    let outside = sink(&handle, &store);
    let (elsewhere, builder) = (handle.clone(), store.clone());
    let without_runtime = thread::spawn(move || sink(&elsewhere, &builder).build().unwrap_err()).join().unwrap();
    assert_eq!(without_runtime, InvalidSetting::NoRuntime);
    // The longest times there are do no harm.
    let sender = outside
        .max_delay(Duration::MAX)
        .deliver_timeout(Duration::MAX)
        .backoff(Duration::MAX, Duration::MAX)
        .capacity(u32::MAX as usize)
        .max_batch(usize::MAX)
        .build()
        .unwrap();
    store.script.lock().unwrap().push_back(Act::Fail);
    send(&sender, [1]);
    let mut flush = task::spawn(sender.flush(Duration::MAX));
    assert_pending!(flush.poll());
    settle().await;
    assert_eq!(sender.snapshot().failed_attempts, 1);
    assert!(drain(&handle).await.all_completed());
    assert_ready!(flush.poll()).unwrap();
}

#[test]
fn a_runtime_without_timers_is_none_for_a_sink() {
    let runtime = runtime::Builder::new_current_thread().build().unwrap();
    let handle = TrackEventsHandle::new();
    let built = runtime.block_on(async { sink(&handle, &Store::default()).build() });
    assert_eq!(built.unwrap_err(), InvalidSetting::NoRuntime);
}

// Many threads.

#[test]
fn nothing_is_lost_and_order_is_kept_when_threads_send_while_the_store_fails_and_the_house_drains() {
    const THREADS: u32 = 4;
    const EACH: u32 = 2_000;
    for round in 0..20_u32 {
        let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let handle = unsettled();
        let stored = Arc::new(Mutex::new(Vec::new()));
        let spilled = Arc::new(Mutex::new(Vec::new()));
        let (into, spill, mut attempt) = (Arc::clone(&stored), Arc::clone(&spilled), round);
        let sender = {
            let _entered = runtime.enter();
            handle
                .sink("row", move |batch: Batch<(u32, u32)>| {
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
                })
                .max_batch(64)
                .max_delay(Duration::from_millis(u64::from(round % 2)))
                .backoff(Duration::ZERO, Duration::ZERO)
                .on_undelivered(move |events| spill.lock().unwrap().extend(events.iter().copied()))
                .build()
                .unwrap()
        };
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let sender = sender.clone();
                thread::spawn(move || (0..EACH).filter(|number| sender.send((thread, *number)).is_ok()).count())
            })
            .collect();
        // In half of the rounds the drain races with the senders, and some of these are cut short.
        let first = (round % 2 == 0).then(|| runtime.block_on(handle.drain(Duration::from_micros(100))));
        let accepted: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
        let report = runtime.block_on(drain(&handle));
        let stored = stored.lock().unwrap().clone();
        let spilled = spilled.lock().unwrap().clone();
        assert_eq!(report.accepted as usize, accepted);
        assert_eq!(report.endings.completed + report.endings.failed, report.accepted, "{first:?}");
        assert_eq!(report.endings.failed as usize, spilled.len());
        // An attempt that was cut short may have been taken as well.
        assert!(stored.len() >= report.endings.completed as usize);
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
fn answers_that_come_as_their_batch_is_taken_away_count_once() {
    let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let handle = unsettled();
    let spilled = Counter::default();
    let spill = spilled.clone();
    let sender = {
        let _entered = runtime.enter();
        handle
            .sink("row", |_: Batch<u32>| async { Ok::<_, &str>(()) })
            .max_delay(Duration::ZERO)
            .on_undelivered(move |events| events.iter().for_each(|_| spill.add()))
            .build()
            .unwrap()
    };
    // With it no drain comes to its end: each takes away what it finds, sooner or later after the send.
    let guard = handle.guard().unwrap();
    let mut sent = 0;
    for round in 0..20_000 {
        send(&sender, 0..3);
        sent += 3;
        (0..round % 200 * 20).for_each(|_| std::hint::spin_loop());
        runtime.block_on(handle.drain(Duration::ZERO)).unwrap_err();
        let now = handle.snapshot();
        assert_conserved(&now);
        if round >= 2_000 && now.completed >= 300 && now.failed >= 300 {
            break;
        }
    }
    drop(guard);
    let report = runtime.block_on(drain(&handle));
    assert_eq!(report.accepted, sent);
    assert_eq!(report.endings.failed as usize, spilled.get());
    assert_eq!(report.endings.completed + report.endings.failed, sent);
    assert!(report.endings.completed > 0 && report.endings.failed > 0, "{report}");
}
