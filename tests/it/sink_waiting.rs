//! Senders that wait: for capacity, and for the delivery of their event.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, advance},
};
use tokio_test::{assert_pending, assert_ready, assert_ready_err, assert_ready_ok, task};
use tower_track_events::{
    AckError, EventSender, SinkError, TrackError, TrackEventsHandle, WaitIdleError, test::TestExchange,
};

use crate::support::{assert_conserved, drain, run_tasks, without_quiet_period};

const HOUR: Duration = Duration::from_secs(3600);

/// A store that takes a batch each time it is released, and notes it.
#[derive(Clone, Default)]
struct Store {
    release: Arc<Notify>,
    taken: Arc<Mutex<Vec<Vec<u32>>>>,
}

impl Store {
    async fn take(self, batch: impl AsRef<[u32]>) {
        self.release.notified().await;
        self.taken.lock().unwrap().push(batch.as_ref().to_vec());
    }

    fn taken(&self) -> Vec<Vec<u32>> {
        self.taken.lock().unwrap().clone()
    }

    async fn release(&self) {
        self.release.notify_one();
        run_tasks().await;
    }
}

fn sink(handle: &TrackEventsHandle, capacity: usize) -> (EventSender<u32>, Store) {
    let store = Store::default();
    let takes = store.clone();
    let sender = handle
        .sink::<u32>("row")
        .capacity(capacity)
        .max_delay(HOUR)
        .deliver(move |batch| async move { takes.take(&*batch).await })
        .unwrap();
    (sender, store)
}

// For capacity.

#[tokio::test(start_paused = true)]
async fn senders_wait_for_capacity_first_come_first_served() {
    let handle = without_quiet_period();
    let (sender, store) = sink(&handle, 2);
    sender.send(1).await.unwrap();
    sender.send(2).await.unwrap();
    let mut third = task::spawn(sender.send(3));
    let mut fourth = task::spawn(sender.reserve());
    let mut fifth = task::spawn(sender.send(5));
    assert_pending!(third.poll());
    assert_pending!(fourth.poll());
    assert_pending!(fifth.poll());
    run_tasks().await;
    store.release().await;
    // Both slots have their owners: a later sender does not overtake them.
    assert!(third.is_woken() && fourth.is_woken() && !fifth.is_woken());
    assert_eq!(sender.try_send(9).unwrap_err().reason, TrackError::Full);
    let mut late = task::spawn(sender.send(6));
    assert_pending!(late.poll());
    assert_ready_ok!(third.poll());
    let permit = assert_ready_ok!(fourth.poll());
    let now = handle.snapshot();
    assert_eq!((now.pending, now.reserved), (1, 1));
    // A permit that is not used is passed on.
    drop(permit);
    assert!(fifth.is_woken());
    assert_ready_ok!(fifth.poll());
    drop((third, fifth));
    run_tasks().await;
    store.release().await;
    assert_ready_ok!(late.poll());
    drop(late);
    store.release.notify_one();
    assert!(drain(&handle).await.all_completed());
    assert_eq!(store.taken(), [vec![1, 2], vec![3, 5], vec![6]]);
}

#[tokio::test(start_paused = true)]
async fn a_sender_that_is_dropped_loses_no_slot() {
    let handle = without_quiet_period();
    let (sender, store) = sink(&handle, 1);
    send(&sender, 1);
    let mut waits = [2, 3, 4].map(|value| task::spawn(sender.send(value)));
    waits.iter_mut().for_each(|wait| assert_pending!(wait.poll()));
    let [second, third, mut fourth] = waits;
    // One that waits, and one that was given the slot and has not taken it.
    drop(third);
    run_tasks().await;
    store.release().await;
    assert!(second.is_woken() && !fourth.is_woken());
    drop(second);
    assert!(fourth.is_woken());
    assert_ready_ok!(fourth.poll());
    drop(fourth);
    run_tasks().await;
    store.release().await;
    assert_eq!(store.taken(), [[1], [4]]);
    // Nobody waits: the slot is free.
    send(&sender, 5);
    assert_eq!(sender.snapshot().pending, 1);
}

fn send(sender: &EventSender<u32>, value: u32) {
    sender.try_send(value).unwrap();
}

#[tokio::test(start_paused = true)]
async fn senders_that_wait_get_their_event_back_when_a_drain_closes() {
    let handle = without_quiet_period();
    let (sender, store) = sink(&handle, 1);
    send(&sender, 1);
    let mut outside = task::spawn(sender.send(2));
    assert_pending!(outside.poll());
    // What runs inside of an event is still accepted.
    let inside = sender.clone();
    handle.track("inside", async move { inside.send(3).await }).unwrap();
    run_tasks().await;
    let mut draining = task::spawn(handle.drain(HOUR));
    assert_pending!(draining.poll());
    run_tasks().await;
    assert!(outside.is_woken());
    let error = assert_ready_err!(outside.poll());
    assert_eq!((error.event, error.reason), (2, TrackError::Closed));
    store.release().await;
    run_tasks().await;
    store.release().await;
    let report = draining.await.unwrap();
    assert!(report.all_completed(), "{report}");
    assert_eq!(store.taken(), [[1], [3]]);
    assert_eq!(sender.send(4).await.unwrap_err().reason, TrackError::Closed);
}

#[test]
fn senders_that_wait_get_their_event_back_when_the_runtime_has_gone() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let handle = without_quiet_period();
    let (sender, _store) = runtime.block_on(async { sink(&handle, 1) });
    send(&sender, 1);
    let mut wait = task::spawn(sender.send(2));
    assert_pending!(wait.poll());
    drop(runtime);
    assert!(wait.is_woken());
    assert_eq!(assert_ready_err!(wait.poll()).reason, TrackError::NoRuntime);
}

#[tokio::test(start_paused = true)]
async fn inside_its_own_delivery_nothing_waits() {
    let handle = without_quiet_period();
    let answers = Arc::new(Mutex::new(Vec::new()));
    let own: Arc<Mutex<Option<EventSender<u32>>>> = Arc::default();
    let (sends, notes) = (Arc::clone(&own), Arc::clone(&answers));
    let sender = handle
        .sink::<u32>("row")
        .capacity(1)
        .deliver(move |_| async move {
            let Some(sender) = sends.lock().unwrap().take() else { return };
            let flush = sender.flush(HOUR).await.unwrap_err();
            notes.lock().unwrap().push(format!("{}", matches!(flush, WaitIdleError::InsideItself)));
            let sent = sender.send(2).await.unwrap_err();
            notes.lock().unwrap().push(format!("{:?}", sent.reason));
            let reserved = sender.reserve().await.unwrap_err();
            notes.lock().unwrap().push(format!("{reserved:?}"));
            let acked = sender.send_acked(3).await.unwrap_err();
            notes.lock().unwrap().push(format!("{acked:?}"));
        })
        .unwrap();
    *own.lock().unwrap() = Some(sender.clone());
    send(&sender, 1);
    assert!(drain(&handle).await.all_completed());
    assert_eq!(*answers.lock().unwrap(), ["true", "Full", "Full", "InsideItself(..)"]);
}

// For the delivery.

#[tokio::test(start_paused = true)]
async fn an_awaited_event_is_delivered_at_once_and_those_that_come_meanwhile_together() {
    let handle = without_quiet_period();
    let (sender, store) = sink(&handle, 100);
    let began = Instant::now();
    let mut first = task::spawn(sender.send_acked(1));
    assert_pending!(first.poll());
    run_tasks().await;
    let mut others = [2, 3, 4].map(|value| task::spawn(sender.send_acked(value)));
    others.iter_mut().for_each(|wait| assert_pending!(wait.poll()));
    // Not awaited, and delivered with the others.
    send(&sender, 5);
    store.release().await;
    assert_ready_ok!(first.poll());
    assert!(others.iter().all(|wait| !wait.is_woken()));
    store.release().await;
    others.iter_mut().for_each(|wait| assert_ready_ok!(wait.poll()));
    assert_eq!(store.taken(), [vec![1], vec![2, 3, 4, 5]]);
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn awaited_events_share_a_batch_also_where_several_may_be_in_flight() {
    let handle = without_quiet_period();
    let store = Store::default();
    let takes = store.clone();
    let sender = handle
        .sink::<u32>("row")
        .max_delay(HOUR)
        .max_in_flight(4)
        .deliver(move |batch| async move { takes.take(&*batch).await })
        .unwrap();
    let mut waits = Vec::new();
    for value in 0..4 {
        waits.push(task::spawn(sender.send_acked(value)));
        assert_pending!(waits[value as usize].poll());
        run_tasks().await;
    }
    store.release().await;
    store.release().await;
    waits.iter_mut().for_each(|wait| assert_ready_ok!(wait.poll()));
    assert_eq!(store.taken(), [vec![0], vec![1, 2, 3]]);
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_told_why_the_event_was_not_delivered() {
    let handle = without_quiet_period();
    let sender = handle
        .sink::<u32>("row")
        .deliver(|batch| async move {
            let bad: Vec<_> = (0..batch.len()).filter(|index| batch[*index] % 2 == 1).collect();
            if bad.is_empty() { Ok(()) } else { Err(SinkError::rejected(bad, "odd")) }
        })
        .unwrap();
    let mut waits = [1, 2, 3, 4].map(|value| task::spawn(sender.send_acked(value)));
    waits.iter_mut().for_each(|wait| assert_pending!(wait.poll()));
    run_tasks().await;
    for (value, wait) in (1..).zip(&mut waits) {
        let expected = (value % 2 == 1).then(|| AckError::Undelivered { last_error: Some("odd".to_owned()) });
        assert_eq!(assert_ready!(wait.poll()).err(), expected, "{value}");
    }
    assert_conserved(&handle.snapshot());
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_told_of_an_abort_and_of_a_drain_that_times_out() {
    let handle = without_quiet_period();
    let (sender, _store) = sink(&handle, 100);
    let mut aborted = task::spawn(sender.send_acked(1));
    assert_pending!(aborted.poll());
    run_tasks().await;
    let mut queued = task::spawn(sender.send_acked(2));
    assert_pending!(queued.poll());
    handle.abort();
    for wait in [&mut aborted, &mut queued] {
        assert!(wait.is_woken());
        let error = assert_ready_err!(wait.poll());
        assert_eq!(error.to_string(), "not delivered");
    }
    drain(&handle).await;
    let error = sender.send_acked(3).await.unwrap_err();
    assert!(matches!(error, AckError::NotSent(error) if error.event == 3 && error.reason == TrackError::Closed));
}

#[tokio::test(start_paused = true)]
async fn an_event_whose_sender_does_not_wait_any_more_is_delivered() {
    let handle = without_quiet_period();
    let (sender, store) = sink(&handle, 100);
    let mut wait = task::spawn(sender.send_acked(1));
    assert_pending!(wait.poll());
    drop(wait);
    store.release.notify_one();
    assert!(drain(&handle).await.all_completed());
    assert_eq!(store.taken(), [[1]]);
}

#[tokio::test(start_paused = true)]
async fn a_flush_works_in_handlers_and_events() {
    let handle = without_quiet_period();
    let (sender, store) = sink(&handle, 100);
    let flushes = sender.clone();
    let event = async move {
        send(&flushes, 1);
        flushes.flush(HOUR).await
    };
    handle.track("event", event).unwrap();
    let exchange = TestExchange::new(&handle);
    let flushes = sender.clone();
    exchange.events().track("kept", async move { flushes.flush(HOUR).await }).unwrap();
    drop(exchange);
    run_tasks().await;
    store.release().await;
    advance(Duration::from_millis(1)).await;
    assert!(drain(&handle).await.all_completed());
    assert_eq!(store.taken(), [[1]]);
}
