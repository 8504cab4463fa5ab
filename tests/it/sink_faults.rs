//! Sinks when code of the user panics where it should not, and at the limits of what a builder accepts.

use std::{
    env,
    error::Error,
    fmt,
    future::pending,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    task::{Context, Poll},
    thread,
    time::Duration,
};

use tokio::{
    runtime::{self, Runtime},
    sync::Notify,
    task::{JoinError, yield_now},
    time::{Instant, timeout},
};
use tokio_test::{assert_pending, task};
use tower::{Service, ServiceBuilder, buffer::BufferLayer, layer::layer_fn};
use tower_track_events::{EventSender, SinkBuilder, SinkError, TrackEventsHandle, WaitIdleError};

use crate::support::{OnDrop, assert_conserved, drain, run_tasks, without_quiet_period};

const HOUR: Duration = Duration::from_secs(3600);
const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

fn current_thread() -> Runtime {
    runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

// A batch without a limit of its own.

fn unlimited(handle: &TrackEventsHandle) -> SinkBuilder<u32> {
    handle.sink("row").max_batch(usize::MAX).max_delay(HOUR)
}

#[tokio::test(start_paused = true)]
async fn an_awaited_event_makes_an_unlimited_batch_due() {
    let handle = without_quiet_period();
    let sender = unlimited(&handle).deliver(|_| async {}).unwrap();
    sender.try_send(1).unwrap();
    run_tasks().await;
    assert_eq!(timeout(SECOND, sender.send_acked(2)).await, Ok(Ok(())));
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_makes_an_unlimited_batch_due() {
    let handle = without_quiet_period();
    let sender = unlimited(&handle).capacity(2).deliver(|_| async {}).unwrap();
    for value in 0..2 {
        sender.try_send(value).unwrap();
        run_tasks().await;
    }
    assert_eq!(sender.snapshot().ended.completed, 2);
}

#[tokio::test(start_paused = true)]
async fn a_limit_in_bytes_makes_an_unlimited_batch_due() {
    let handle = without_quiet_period();
    let sender = unlimited(&handle).max_batch_bytes(10, |value| *value as usize).deliver(|_| async {}).unwrap();
    sender.try_send(1).unwrap();
    run_tasks().await;
    assert_eq!(sender.snapshot().pending, 1);
    sender.try_send(20).unwrap();
    run_tasks().await;
    assert_eq!(sender.snapshot().pending, 0);
}

#[tokio::test(start_paused = true)]
async fn sizes_are_added_up_beyond_the_largest_number() {
    let handle = without_quiet_period();
    let rows = handle.sink::<usize>("row").max_batch(usize::MAX).max_delay(HOUR);
    let sender = rows.max_batch_bytes(10, |value| *value).deliver(|_| async {}).unwrap();
    for value in [usize::MAX, usize::MAX, 9] {
        sender.try_send(value).unwrap();
    }
    run_tasks().await;
    assert_eq!((sender.snapshot().pending, sender.snapshot().delivered_batches), (1, 2));
    sender.try_send(1).unwrap();
    run_tasks().await;
    assert_eq!(sender.snapshot().pending, 0);
}

// Panics.

#[tokio::test(start_paused = true)]
async fn a_size_that_panics_releases_the_slot_of_its_permit() {
    let handle = without_quiet_period();
    let size = |value: &u32| if *value == 13 { panic!("no size") } else { 1 };
    let sender = handle.sink("row").capacity(1).max_batch_bytes(10, size).deliver(|_| async {}).unwrap();
    let panics: [fn(&EventSender<u32>); 4] = [
        |sender| sender.try_send(13).unwrap(),
        |sender| sender.try_reserve().unwrap().send(13),
        |sender| assert!(task::spawn(sender.send(13)).poll().is_ready()),
        |sender| assert!(task::spawn(sender.send_acked(13)).poll().is_ready()),
    ];
    for send in panics {
        assert!(catch_unwind(AssertUnwindSafe(|| send(&sender))).is_err());
        assert_eq!((sender.snapshot().reserved, sender.snapshot().accepted), (0, 0));
    }
    sender.try_send(1).unwrap();
    assert_eq!(drain(&handle).await.ended.completed, 1);
}

/// An error whose destructor panics.
struct Bomb;

impl fmt::Debug for Bomb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bomb")
    }
}

impl fmt::Display for Bomb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bomb")
    }
}

impl Error for Bomb {}

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("the destructor of an error");
    }
}

#[tokio::test]
async fn a_blocking_delivery_survives_the_destructor_of_an_error_that_nobody_awaits() {
    let handle = without_quiet_period();
    let (enter, entered) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let mut calls = 0;
    let deliver = move |_: &[u32]| {
        calls += 1;
        if calls > 1 {
            return Ok(());
        }
        enter.send(()).unwrap();
        let _ = released.recv();
        Err(Bomb)
    };
    let sender = handle.sink("row").max_delay(Duration::ZERO).deliver_blocking(deliver).unwrap();
    sender.try_send(1).unwrap();
    while entered.try_recv().is_err() {
        yield_now().await;
    }
    handle.abort();
    run_tasks().await;
    drop(release);
    assert_eq!(timeout(60 * SECOND, sender.send_acked(2)).await, Ok(Ok(())));
}

#[tokio::test(start_paused = true)]
async fn a_delivery_survives_the_destructor_of_an_error() {
    let handle = without_quiet_period();
    let sender = handle
        .sink("row")
        .max_attempts(1)
        .deliver(|batch| async move { if batch[0] == 1 { Err(Bomb) } else { Ok(()) } });
    let sender: EventSender<u32> = sender.unwrap();
    assert!(sender.send_acked(1).await.is_err());
    sender.send_acked(2).await.unwrap();
}

/// Set for the process that is expected to survive.
const CHILD: &str = "SINK_FAULTS_CHILD";

#[test]
fn a_runtime_that_shuts_down_survives_the_destructors_of_two_deliveries() {
    if env::var_os(CHILD).is_none() {
        let name = "sink_faults::a_runtime_that_shuts_down_survives_the_destructors_of_two_deliveries";
        let child = Command::new(env::current_exe().unwrap()).args(["--exact", name]).env(CHILD, "1").output().unwrap();
        assert!(child.status.success(), "{}: {}", child.status, String::from_utf8_lossy(&child.stderr));
        return;
    }
    let runtime = current_thread();
    let handle = without_quiet_period();
    runtime.block_on(async {
        let deliver = |_| async {
            let _on_drop = OnDrop::new(|| panic!("a destructor"));
            pending::<()>().await
        };
        let sender = handle.sink("row").max_batch(1).max_in_flight(2).deliver(deliver).unwrap();
        sender.try_send(1).unwrap();
        sender.try_send(2).unwrap();
        run_tasks().await;
    });
    let _ = catch_unwind(AssertUnwindSafe(|| drop(runtime)));
    assert_eq!((handle.snapshot().pending, handle.snapshot().ended.aborted), (0, 2));
}

// What ends, and when.

#[tokio::test(start_paused = true)]
async fn the_limit_of_an_attempt_does_not_count_the_wait_for_other_batches() {
    for in_flight in [1, 4] {
        let handle = without_quiet_period();
        let sender = handle
            .sink("row")
            .max_batch(1)
            .max_in_flight(in_flight)
            .deliver_timeout(SECOND)
            .max_attempts(1)
            .layer(ServiceBuilder::new().rate_limit(1, 600 * MS))
            .deliver(|_| async {})
            .unwrap();
        for value in 0..8 {
            sender.try_send(value).unwrap();
        }
        let report = drain(&handle).await;
        assert!(report.all_completed(), "{in_flight} in flight: {report}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_takes_some_values_is_no_failure_in_a_row() {
    let handle = without_quiet_period();
    let undelivered = Arc::new(Mutex::new(Vec::new()));
    let rest = Arc::clone(&undelivered);
    // Of six values, a search gives up after six failures in a row: these are five for the first half, and the
    // attempt of the second half would be the sixth.
    let sender = handle
        .sink::<u32>("row")
        .max_attempts(1)
        .on_undelivered(move |values| rest.lock().unwrap().extend(values.iter().copied()))
        .deliver(|batch| async move {
            match &*batch {
                [3, _, _] => Err(SinkError::retry_only([1, 2], "busy")),
                batch if batch.iter().any(|value| *value < 3) => Err(SinkError::retry("a bad row")),
                _ => Ok(()),
            }
        })
        .unwrap();
    for value in 0..6 {
        sender.try_send(value).unwrap();
    }
    drain(&handle).await;
    assert_eq!(*undelivered.lock().unwrap(), [0, 1, 2]);
}

#[test]
fn a_sink_whose_runtime_ends_during_an_abort_is_dropped() {
    let runtime = current_thread();
    let handle = without_quiet_period();
    let (enter, entered) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let owned = Arc::new(());
    let is_alive = Arc::downgrade(&owned);
    let on_undelivered = move |_| {
        let _owned = &owned;
        enter.send(()).unwrap();
        let _ = released.lock().unwrap().recv();
    };
    let sender = {
        let _entered = runtime.enter();
        handle.sink("row").on_undelivered(on_undelivered).deliver(|_| pending::<()>()).unwrap()
    };
    sender.try_send(1).unwrap();
    thread::scope(|scope| {
        let abort = scope.spawn(|| handle.abort());
        entered.recv().unwrap();
        drop((sender, runtime, release));
        abort.join().unwrap();
    });
    assert_conserved(&handle.snapshot());
    assert_eq!(handle.snapshot().pending, 0);
    drop(handle);
    assert!(is_alive.upgrade().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_a_closure_that_a_layer_has_moved_to_another_task() {
    let handle = without_quiet_period();
    let (has_ended, release) = (Arc::new(AtomicBool::new(false)), Arc::new(Notify::new()));
    let (ends, released) = (Arc::clone(&has_ended), Arc::clone(&release));
    let sender = handle
        .sink("row")
        .max_delay(Duration::ZERO)
        .layer(BufferLayer::new(1))
        .layer(layer_fn(Spawned))
        .deliver(move |_| async move {
            released.notified().await;
            ends.store(true, Ordering::SeqCst);
        })
        .unwrap();
    sender.try_send(1).unwrap();
    run_tasks().await;
    handle.abort();
    run_tasks().await;
    let mut drained = task::spawn(handle.drain(HOUR));
    assert_pending!(drained.poll());
    run_tasks().await;
    assert_pending!(drained.poll());
    release.notify_one();
    drained.await.unwrap();
    assert!(has_ended.load(Ordering::SeqCst));
}

/// Spawns each future of its service.
#[derive(Clone)]
struct Spawned<S>(S);

impl<S, R> Service<R> for Spawned<S>
where
    S: Service<R, Future: Send + 'static, Response: Send + 'static, Error: Send + 'static>,
{
    type Response = ();
    type Error = JoinError;
    type Future = Pin<Box<dyn Future<Output = Result<(), JoinError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: R) -> Self::Future {
        let response = tokio::spawn(self.0.call(request));
        Box::pin(async { response.await.map(drop) })
    }
}

#[tokio::test(start_paused = true)]
async fn a_flush_inside_on_undelivered_would_wait_for_itself() {
    let handle = without_quiet_period();
    let own: Arc<Mutex<Option<EventSender<u32>>>> = Arc::default();
    let answers = Arc::new(Mutex::new(Vec::new()));
    let (takes, notes) = (Arc::clone(&own), Arc::clone(&answers));
    let on_undelivered = move |_| {
        let sender = takes.lock().unwrap().take().unwrap();
        let polled = task::spawn(sender.flush(HOUR)).poll();
        notes.lock().unwrap().push(polled == Poll::Ready(Err(WaitIdleError::InsideItself)));
    };
    let sender = handle
        .sink("row")
        .on_undelivered(on_undelivered)
        .deliver(|_| async { Err::<(), _>(SinkError::permanent("401")) })
        .unwrap();
    *own.lock().unwrap() = Some(sender.clone());
    sender.try_send(1).unwrap();
    drain(&handle).await;
    assert_eq!(*answers.lock().unwrap(), [true]);
}

/// A wait that flushed before it registered its waker missed an event that was sent and came between the two.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_for_idleness_flushes_what_is_sent_while_it_looks() {
    let handle = without_quiet_period();
    let sender = handle.sink("row").max_delay(HOUR).deliver(|_| async {}).unwrap();
    let is_over = Arc::new(AtomicBool::new(false));
    let (sends, ends) = (sender.clone(), Arc::clone(&is_over));
    let other = thread::spawn(move || {
        while !ends.load(Ordering::Relaxed) {
            if sends.snapshot().pending == 0 {
                sends.try_send(1).unwrap();
            }
        }
    });
    let began = Instant::now();
    let mut idle = Ok(());
    while idle.is_ok() && began.elapsed() < 2 * SECOND {
        idle = handle.wait_idle(10 * SECOND).await;
        yield_now().await;
    }
    is_over.store(true, Ordering::Relaxed);
    other.join().unwrap();
    assert_eq!(idle, Ok(()));
}
