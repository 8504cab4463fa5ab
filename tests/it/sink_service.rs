//! Sinks as Tower services: what errors mean, readiness, layers, blocking deliveries, batches in flight.

use std::{
    error::Error,
    fmt,
    future::{Ready, pending, ready},
    io,
    ops::Range,
    sync::{Arc, Mutex, mpsc},
    task::{Context, Poll},
    thread::{self, ThreadId},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, advance, sleep},
};
use tokio_test::{assert_pending, assert_ready, task};
use tower::{
    Service, ServiceBuilder, buffer::BufferLayer, limit::ConcurrencyLimitLayer, service_fn, timeout::TimeoutLayer,
};
use tower_track_events::{
    Batch, BuildError, DrainError, EventSender, OpenKind, SinkBuilder, SinkError, TrackError, TrackEventsHandle,
};

use crate::support::{Counter, OnDrop, assert_conserved, drain, run_tasks, without_quiet_period};

const HOUR: Duration = Duration::from_secs(3600);
const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

type BoxError = Box<dyn Error + Send + Sync>;

/// Batches, in the order in which something was done with them.
#[derive(Clone, Default)]
struct Batches(Arc<Mutex<Vec<Vec<u32>>>>);

impl Batches {
    fn push(&self, values: impl IntoIterator<Item = u32>) {
        self.0.lock().unwrap().push(values.into_iter().collect());
    }

    fn all(&self) -> Vec<Vec<u32>> {
        self.0.lock().unwrap().clone()
    }

    fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

/// Delivers at once, and tries again after a millisecond.
fn row(handle: &TrackEventsHandle) -> SinkBuilder<u32> {
    handle.sink("row").max_delay(Duration::ZERO).backoff(MS, MS)
}

fn send(sender: &EventSender<u32>, values: impl IntoIterator<Item = u32>) {
    values.into_iter().for_each(|value| sender.try_send(value).unwrap());
}

struct Outcome {
    taken: Vec<u32>,
    undelivered: Vec<u32>,
    attempts: Vec<Vec<u32>>,
}

/// Delivers values in one batch to a store, which notes what it takes.
async fn deliver<S>(max_attempts: u32, values: Range<u32>, store: S) -> Outcome
where
    S: Fn(&[u32], &Batches) -> Result<(), BoxError> + Clone + Send + 'static,
{
    let handle = without_quiet_period();
    let [taken, undelivered, attempts] = [(); 3].map(|()| Batches::default());
    let (takes, rest, tries) = (taken.clone(), undelivered.clone(), attempts.clone());
    let sender = row(&handle)
        .max_attempts(max_attempts)
        .on_undelivered(move |values| rest.push(values.iter().copied()))
        .deliver(move |batch| async move {
            tries.push(batch.to_vec());
            store(&batch, &takes)
        })
        .unwrap();
    send(&sender, values);
    let report = drain(&handle).await;
    assert_conserved(&handle.snapshot());
    let outcome =
        Outcome { taken: taken.all().concat(), undelivered: undelivered.all().concat(), attempts: attempts.all() };
    assert_eq!(report.ended.completed, outcome.taken.len() as u64);
    assert_eq!(report.ended.failed, outcome.undelivered.len() as u64);
    outcome
}

// What an error means.

#[tokio::test(start_paused = true)]
async fn one_bad_row_costs_one_row() {
    for bad in [vec![0], vec![300], vec![17, 400], vec![511]] {
        let rows = bad.clone();
        let Outcome { taken, undelivered, attempts } = deliver(3, 0..512, move |batch, taken| {
            if let Some(row) = batch.iter().find(|value| rows.contains(value)) {
                return Err(format!("row {row} is not valid").into());
            }
            taken.push(batch.to_vec());
            Ok(())
        })
        .await;
        assert_eq!((taken.len(), &undelivered), (512 - bad.len(), &bad));
        assert!(taken.is_sorted());
        assert!(attempts.len() <= 3 + 18 * bad.len(), "{}", attempts.len());
    }
    // If all are refused it is the store that fails, and not the rows.
    let Outcome { undelivered, attempts, .. } = deliver(3, 0..512, |_, _| Err("down".into())).await;
    assert_eq!((undelivered, attempts.len()), (Vec::from_iter(0..512), 3 + 18));
}

#[tokio::test(start_paused = true)]
async fn what_is_too_large_is_split_and_what_is_permanent_is_not_tried_again() {
    let Outcome { taken, undelivered, attempts } = deliver(1, 0..300, |batch, taken| {
        if batch.len() > 100 {
            return Err(SinkError::split("413").into());
        }
        taken.push(batch.to_vec());
        Ok(())
    })
    .await;
    assert_eq!((taken, undelivered.len(), attempts.len()), (Vec::from_iter(0..300), 0, 1 + 2 + 4));
    let Outcome { undelivered, attempts, .. } = deliver(9, 0..20, |_, _| Err(SinkError::permanent("401").into())).await;
    assert_eq!((undelivered.len(), attempts.len()), (20, 1));
}

#[tokio::test(start_paused = true)]
async fn an_error_may_name_the_values_that_it_concerns() {
    // The store takes nothing of the first attempt but these, and all of each later one.
    let first = |takes: &'static [u32], error: fn() -> SinkError| {
        move |batch: &[u32], taken: &Batches| {
            if batch.len() == 6 {
                taken.push(takes.to_vec());
                return Err(error().into());
            }
            taken.push(batch.to_vec());
            Ok(())
        }
    };
    let outcome = deliver(9, 0..6, first(&[0, 2, 3, 5], || SinkError::rejected([4, 1], "not valid"))).await;
    assert_eq!((outcome.undelivered, outcome.attempts.len()), (vec![1, 4], 1));
    let outcome = deliver(9, 0..6, first(&[], || SinkError::retry_without([4, 1], "not valid"))).await;
    assert_eq!((outcome.taken, outcome.undelivered), (vec![0, 2, 3, 5], vec![1, 4]));
    assert_eq!(outcome.attempts[1], [0, 2, 3, 5]);
    let outcome = deliver(9, 0..6, first(&[0, 2, 3, 5], || SinkError::retry_only([4, 1], "again"))).await;
    assert_eq!((outcome.taken, outcome.undelivered), (vec![0, 2, 3, 5, 1, 4], vec![]));
    assert_eq!(outcome.attempts[1], [1, 4]);
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_the_time_to_the_next_attempt_and_a_drain_cuts_it_short_once() {
    let handle = without_quiet_period();
    let (attempts, undelivered) = (Batches::default(), Batches::default());
    let (tries, rest, began) = (attempts.clone(), undelivered.clone(), Instant::now());
    let sender = row(&handle)
        .on_undelivered(move |values| rest.push(values.iter().copied()))
        .deliver(move |_| async move {
            tries.push([began.elapsed().as_millis() as u32]);
            Err::<(), _>(SinkError::retry_after(2 * SECOND, "429"))
        })
        .unwrap();
    send(&sender, [7]);
    sleep(5 * SECOND).await;
    let times = attempts.all().concat();
    assert_eq!(times.len(), 3, "{times:?}");
    assert!(times[1] - times[0] >= 2_000 && times[2] - times[1] >= 2_000, "{times:?}");
    let drained = Instant::now();
    let error = handle.drain(SECOND).await.unwrap_err();
    assert!(matches!(error, DrainError::TimedOut(_)));
    assert_eq!(drained.elapsed(), SECOND);
    assert_eq!((attempts.len(), undelivered.all()), (4, vec![vec![7]]));
}

/// An error of one's own that stands for what it contains.
#[derive(Debug)]
struct Transparent(SinkError);

impl fmt::Display for Transparent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for Transparent {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

#[tokio::test(start_paused = true)]
async fn the_meaning_of_an_error_survives_in_other_errors() {
    let wrapped: [fn(SinkError) -> BoxError; 7] = [
        |error| error.into(),
        |error| Box::new(Arc::new(error)),
        |error| io::Error::other(error).into(),
        |error| Transparent(error).into(),
        |error| anyhow::Error::from(error).into(),
        |error| anyhow::Error::from(error).context("while inserting").into(),
        |error| io::Error::other(anyhow::Error::from(io::Error::other(error))).into(),
    ];
    for (case, wrap) in wrapped.into_iter().enumerate() {
        let outcome = deliver(9, 0..3, move |_, _| Err(wrap(SinkError::permanent("401")))).await;
        assert_eq!((outcome.attempts.len(), outcome.undelivered.len()), (1, 3), "case {case}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_meaning_of_an_error_survives_towers_layers() {
    let handle = without_quiet_period();
    let undelivered = Batches::default();
    let rest = undelivered.clone();
    let layers = ServiceBuilder::new()
        .layer(BufferLayer::new(4))
        .layer(ConcurrencyLimitLayer::new(1))
        .rate_limit(100, SECOND)
        .layer(TimeoutLayer::new(SECOND));
    let sender = row(&handle)
        .on_undelivered(move |values| rest.push(values.iter().copied()))
        .layer(layers)
        .deliver(|_| async { Err::<u64, _>(SinkError::rejected([0, 2], "not valid")) })
        .unwrap();
    send(&sender, [1, 2, 3]);
    let report = drain(&handle).await;
    assert_eq!((report.ended.completed, report.ended.failed), (1, 2));
    assert_eq!(undelivered.all(), [[1, 3]]);
    assert_eq!(report.by_name["row"].last_error.as_deref(), Some("not valid"));
}

// Readiness.

type Readiness = Poll<Result<(), &'static str>>;

/// A service that is ready when the test says so.
#[derive(Clone, Default)]
struct Gate {
    /// What the next polls for readiness return. Pending if it is empty.
    script: Arc<Mutex<Vec<Readiness>>>,
    polls: Counter,
    taken: Batches,
}

impl Gate {
    fn then(&self, answer: Readiness) {
        self.script.lock().unwrap().push(answer);
    }
}

impl Service<Batch<u32>> for Gate {
    type Response = ();
    type Error = &'static str;
    type Future = Ready<Result<(), &'static str>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Readiness {
        self.polls.add();
        let mut script = self.script.lock().unwrap();
        if script.is_empty() { Poll::Pending } else { script.remove(0) }
    }

    fn call(&mut self, batch: Batch<u32>) -> Self::Future {
        self.taken.push(batch.to_vec());
        ready(Ok(()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_is_asked_whether_it_is_ready_when_a_batch_is_due_and_within_the_time_limit() {
    let handle = without_quiet_period();
    let gate = Gate::default();
    let sender = row(&handle).deliver_timeout(SECOND).service(gate.clone()).unwrap();
    run_tasks().await;
    assert_eq!(gate.polls.get(), 0);
    send(&sender, [1]);
    run_tasks().await;
    assert_eq!((gate.polls.get(), gate.taken.len()), (1, 0));
    advance(SECOND).await;
    run_tasks().await;
    assert_eq!(sender.snapshot().failed_attempts, 1);
    gate.then(Poll::Ready(Ok(())));
    advance(3 * MS).await;
    run_tasks().await;
    assert_eq!(gate.taken.all(), [[1]]);
    assert!(drain(&handle).await.all_completed());
}

#[tokio::test(start_paused = true)]
async fn a_service_that_fails_twice_before_it_is_called_is_given_up() {
    let handle = without_quiet_period();
    let (gate, undelivered) = (Gate::default(), Batches::default());
    let rest = undelivered.clone();
    for answer in [Err("away"), Ok(()), Err("away"), Err("gone")] {
        gate.then(Poll::Ready(answer));
    }
    let sender =
        row(&handle).on_undelivered(move |values| rest.push(values.iter().copied())).service(gate.clone()).unwrap();
    send(&sender, [1]);
    sender.flush(HOUR).await.unwrap();
    assert_eq!(gate.taken.all(), [[1]]);
    send(&sender, [2, 3]);
    let acked = tokio::spawn({
        let sender = sender.clone();
        async move { sender.send_acked(4).await }
    });
    sender.flush(HOUR).await.unwrap();
    assert_eq!(undelivered.all(), [[2, 3, 4]]);
    assert_eq!(acked.await.unwrap().unwrap_err().to_string(), "not delivered: gone");
    let error = sender.try_send(5).unwrap_err();
    assert_eq!((error.event, error.reason), (5, TrackError::Closed));
    let report = drain(&handle).await;
    assert_eq!((report.ended.completed, report.ended.failed, report.sinks[0].rejected), (1, 3, 1));
    // No drain was the reason.
    assert_eq!(report.rejected_closed, 0, "{report}");
}

// Size and number of batches.

#[tokio::test(start_paused = true)]
async fn batches_are_limited_in_bytes() {
    let handle = without_quiet_period();
    let taken = Batches::default();
    let takes = taken.clone();
    let sender = handle
        .sink::<u32>("row")
        .max_delay(HOUR)
        .max_batch_bytes(10, |value| *value as usize)
        .deliver(move |batch| async move { takes.push(batch.to_vec()) })
        .unwrap();
    send(&sender, [4, 5]);
    run_tasks().await;
    assert_eq!(taken.len(), 0);
    // Ten are reached. The third does not fit, and is not enough alone.
    send(&sender, [3]);
    run_tasks().await;
    assert_eq!(taken.all(), [[4, 5]]);
    send(&sender, [50, 1]);
    run_tasks().await;
    assert_eq!(taken.all(), [vec![4, 5], vec![3], vec![50]]);
    assert!(drain(&handle).await.all_completed());
    assert_eq!(taken.all(), [vec![4, 5], vec![3], vec![50], vec![1]]);
}

#[tokio::test(start_paused = true)]
async fn so_many_batches_are_delivered_at_one_time() {
    let handle = without_quiet_period();
    let (started, release) = (Batches::default(), Arc::new(Notify::new()));
    let (starts, released) = (started.clone(), Arc::clone(&release));
    let sender = row(&handle)
        .max_batch(2)
        .max_in_flight(3)
        .deliver(move |batch| async move {
            starts.push(batch.to_vec());
            released.notified().await;
        })
        .unwrap();
    send(&sender, 0..9);
    run_tasks().await;
    assert_eq!(started.all(), [[0, 1], [2, 3], [4, 5]]);
    let mut flush = task::spawn(sender.flush(HOUR));
    assert_pending!(flush.poll());
    release.notify_one();
    run_tasks().await;
    assert_eq!((started.len(), handle.snapshot().pending), (4, 7));
    release.notify_waiters();
    run_tasks().await;
    assert_pending!(flush.poll());
    release.notify_one();
    run_tasks().await;
    assert!(flush.is_woken());
    assert_ready!(flush.poll()).unwrap();
    assert_eq!(started.all()[4], [8]);
    // Those in flight are detached together, in order.
    send(&sender, 10..14);
    run_tasks().await;
    handle.abort();
    assert_eq!((handle.snapshot().ended.aborted, handle.snapshot().pending), (4, 0));
    assert!(drain(&handle).await.ended.completed == 9);
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_is_due() {
    let handle = without_quiet_period();
    let taken = Batches::default();
    let takes = taken.clone();
    let sender = handle
        .sink::<u32>("row")
        .capacity(4)
        .max_delay(HOUR)
        .deliver(move |batch| async move { takes.push(batch.to_vec()) })
        .unwrap();
    send(&sender, 0..3);
    run_tasks().await;
    assert_eq!(taken.len(), 0);
    let permit = sender.try_reserve().unwrap();
    run_tasks().await;
    assert_eq!(taken.all(), [[0, 1, 2]]);
    permit.send(3);
    send(&sender, 4..7);
    run_tasks().await;
    assert_eq!(taken.all(), [vec![0, 1, 2], vec![3, 4, 5, 6]]);
}

#[tokio::test(start_paused = true)]
async fn bursts_are_rejected_only_as_far_as_they_exceed_the_capacity() {
    let handle = without_quiet_period();
    let sender = handle.sink::<u32>("row").capacity(100).deliver(|_| async {}).unwrap();
    let mut rejected = 0;
    for _ in 0..200 {
        rejected += (0..60).filter(|value| sender.try_send(*value).is_err()).count();
        sleep(2 * MS).await;
    }
    // The second of two bursts finds 40 free slots; a full queue is delivered before the next.
    assert!(rejected <= 200 * 20 / 2 + 20, "{rejected}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_is_not_asked_often_and_the_memory_is_bounded() {
    let handle = without_quiet_period();
    let (taken, attempts, began) = (Batches::default(), Counter::default(), Instant::now());
    let (takes, tries) = (taken.clone(), attempts.clone());
    let sender = handle
        .sink::<u32>("row")
        .capacity(20_000)
        .deliver(move |batch| async move {
            if began.elapsed() < 30 * SECOND {
                tries.add();
                return Err("away");
            }
            takes.push(batch.to_vec());
            Ok(())
        })
        .unwrap();
    let mut accepted = 0;
    for tick in 0..30_000_u32 {
        // 5,000 a second.
        accepted += (0..5).filter(|value| sender.try_send(tick * 5 + value).is_ok()).count();
        assert!(handle.snapshot().pending <= 20_000);
        sleep(MS).await;
        // Somebody looks once a second.
        if tick % 1_000 == 0 {
            let _ = handle.wait_idle(Duration::ZERO).await;
            let _ = sender.flush(Duration::ZERO).await;
        }
    }
    assert!((4..=40).contains(&attempts.get()), "{}", attempts.get());
    assert!(drain(&handle).await.all_completed());
    assert_eq!(taken.all().concat().len(), accepted);
}

#[tokio::test(start_paused = true)]
async fn rejections_after_a_drain_are_counted_at_the_sink() {
    let handle = without_quiet_period();
    let sender = row(&handle).deliver(|_| async {}).unwrap();
    drain(&handle).await;
    run_tasks().await;
    for value in 0..3 {
        assert_eq!(sender.try_send(value).unwrap_err().reason, TrackError::Closed);
    }
    assert_eq!((handle.sinks()[0].rejected, sender.snapshot().rejected, handle.snapshot().rejected), (3, 3, 3));
    drop(sender);
    assert_eq!((handle.sinks()[0].rejected, handle.sinks()[0].rejected_closed, handle.snapshot().rejected), (3, 3, 3));
}

// Blocking deliveries.

#[test]
fn a_blocking_delivery_keeps_its_state_and_is_dropped_on_a_blocking_thread_before_the_drain_is_over() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let handle = without_quiet_period();
        let (dropped, drops) = mpsc::channel::<ThreadId>();
        let on_drop = OnDrop::new(move || dropped.send(thread::current().id()).unwrap());
        let (batches, mut calls) = (Batches::default(), 0);
        let takes = batches.clone();
        let sender = row(&handle)
            .max_batch(2)
            .deliver_blocking(move |batch| {
                let _ = &on_drop;
                calls += 1;
                takes.push(batch.iter().copied().chain([calls]));
                // An error, a panic, and then success.
                assert!(calls != 2, "a closure that panics");
                if calls == 1 { Err("not yet") } else { Ok(batch.len()) }
            })
            .unwrap();
        send(&sender, [10, 11, 12]);
        assert!(drain(&handle).await.all_completed());
        assert_eq!(batches.all(), [vec![10, 11, 1], vec![10, 11, 2], vec![10, 11, 3], vec![12, 4]]);
        assert_ne!(drops.try_recv().expect("dropped before the drain was over"), thread::current().id());
        assert_eq!(sender.snapshot().failed_attempts, 2);
    });
}

#[tokio::test]
async fn a_drain_waits_until_a_blocking_closure_has_been_dropped() {
    let handle = without_quiet_period();
    let (release, released) = mpsc::channel::<()>();
    let on_drop = OnDrop::new(move || {
        let _ = released.recv();
    });
    let sender = row(&handle)
        .deliver_blocking(move |_| {
            let _ = &on_drop;
        })
        .unwrap();
    send(&sender, [1]);
    let DrainError::TimedOut(report) = handle.drain(50 * MS).await.unwrap_err() else { panic!("it is not dropped") };
    assert_eq!(report.open.iter().map(|item| item.kind).collect::<Vec<_>>(), [OpenKind::Sink]);
    assert_eq!((report.ended.completed, handle.is_drained()), (1, true));
    drop(release);
    drain(&handle).await;
}

#[tokio::test]
async fn an_attempt_that_timed_out_keeps_its_thread_and_a_drain_waits_for_it() {
    let handle = without_quiet_period();
    let (release, released) = mpsc::channel::<()>();
    let (started, undelivered) = (Batches::default(), Batches::default());
    let (starts, rest) = (started.clone(), undelivered.clone());
    let sender = row(&handle)
        .on_undelivered(move |values| rest.push(values.iter().copied()))
        .layer(TimeoutLayer::new(20 * MS))
        .deliver_blocking(move |batch| {
            starts.push(batch.to_vec());
            released.recv().map_err(|error| error.to_string())
        })
        .unwrap();
    send(&sender, [1]);
    while sender.snapshot().failed_attempts < 1 {
        sleep(MS).await;
    }
    // The layer has given up. There is no second thread while the first one blocks.
    sleep(50 * MS).await;
    assert_eq!(started.all(), [[1]]);
    handle.abort();
    assert_eq!(undelivered.all(), [[1]]);
    let DrainError::TimedOut(report) = handle.drain(50 * MS).await.unwrap_err() else { panic!("the thread blocks") };
    assert_eq!(report.open.iter().map(|item| item.kind).collect::<Vec<_>>(), [OpenKind::Sink]);
    drop(release);
    drain(&handle).await;
}

#[tokio::test]
async fn a_blocking_delivery_is_one_at_a_time() {
    let handle = TrackEventsHandle::new();
    let error = row(&handle).max_in_flight(2).deliver_blocking(|_| ()).unwrap_err();
    assert_eq!(error, BuildError::MaxInFlight(2));
    assert!(error.to_string().contains("1 for `deliver_blocking`"), "{error}");
    assert_eq!(row(&handle).max_in_flight(0).deliver(|_| async {}).unwrap_err(), BuildError::MaxInFlight(0));
    assert_eq!(row(&handle).max_batch_bytes(0, |_| 1).deliver(|_| async {}).unwrap_err(), BuildError::MaxBatch);
}

// What closures may look like.

#[tokio::test(start_paused = true)]
async fn closures_need_no_types_and_may_return_what_stores_return() {
    let handle = without_quiet_period();
    let table = Arc::new(Mutex::new(Vec::new()));
    let insert = async |table: &Mutex<Vec<u32>>, rows: &[u32]| -> io::Result<usize> {
        table.lock().unwrap().extend(rows);
        Ok(rows.len())
    };
    let db = Arc::clone(&table);
    let first = handle.sink::<u32>("one").deliver(move |rows| async move { insert(&db, &rows).await }).unwrap();
    let db = Arc::clone(&table);
    let second = handle.sink("two").deliver(async move |rows: Batch<u32>| insert(&db, &rows).await).unwrap();
    let db = Arc::clone(&table);
    let third = handle.sink("three").deliver_blocking(move |rows| db.lock().unwrap().extend_from_slice(rows)).unwrap();
    let fourth = handle.sink("four").service(service_fn(async |rows: Batch<u32>| anyhow::Ok(rows.len()))).unwrap();
    for sender in [&first, &second, &third, &fourth] {
        send(sender, [7]);
    }
    assert!(drain(&handle).await.all_completed());
    assert_eq!(*table.lock().unwrap(), [7, 7, 7]);
}

/// A delivery that hangs is named, also when it is the service's future and not a closure.
#[tokio::test(start_paused = true)]
async fn a_delivery_that_hangs_ends_at_the_limit_of_the_drain() {
    let handle = without_quiet_period();
    let sender = row(&handle).deliver(|_| pending::<()>()).unwrap();
    send(&sender, [1]);
    let error = handle.drain(SECOND).await.unwrap_err();
    assert!(error.to_string().contains("row x1 queued for the sink"), "{error}");
    handle.abort();
    drain(&handle).await;
}
