//! The sequence of `handle.shutdown()`, on a paused clock; `shutdown_cases` has real servers and signals.

use std::{
    cell::RefCell,
    future::{pending, poll_fn, ready},
    io,
    rc::Rc,
    task::Poll,
    time::Duration,
};

use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout},
};
use tower_track_events::{DrainError, OpenKind, Outcome, StepOutcome, Stop, TrackEventsHandle, test::TestExchange};

const SECOND: Duration = Duration::from_secs(1);

/// What happened and how long after the start, in the order in which it happened.
#[derive(Clone)]
struct Steps(Rc<RefCell<Vec<(&'static str, Duration)>>>, Instant);

impl Steps {
    fn new() -> Self {
        Self(Rc::default(), Instant::now())
    }

    fn add(&self, step: &'static str) {
        self.0.borrow_mut().push((step, self.1.elapsed()));
    }

    fn of(&self, step: &str) -> Duration {
        let steps = self.0.borrow();
        steps.iter().find(|(name, _)| *name == step).unwrap_or_else(|| panic!("no {step} in {steps:?}")).1
    }

    fn names(&self) -> Vec<&'static str> {
        self.0.borrow().iter().map(|(name, _)| *name).collect()
    }
}

/// Timers have a resolution of a millisecond.
#[track_caller]
fn assert_about(actual: Duration, expected: Duration) {
    assert!(actual >= expected && actual < expected + Duration::from_millis(5), "{actual:?} is not {expected:?}");
}

#[tokio::test(start_paused = true)]
async fn the_steps_come_in_their_order_and_each_at_its_time() {
    let handle = TrackEventsHandle::builder().quiet_period(Duration::ZERO).build().unwrap();
    let steps = Steps::new();
    // Not `Send`, on purpose: nothing is spawned.
    let (signal, on_signal, servers, flush) = (steps.clone(), steps.clone(), steps.clone(), steps.clone());
    let (draining, tracks) = (handle.clone(), handle.clone());
    let report = handle
        .shutdown()
        .limit(20 * SECOND)
        .readiness_delay(4 * SECOND)
        .signal(async move {
            sleep(SECOND).await;
            signal.add("signal");
        })
        .on_signal(async move {
            assert!(draining.is_draining());
            on_signal.add("on_signal");
        })
        .flush(async move { flush.add("flush") })
        .serve(|stop| async move {
            let deadline = stop.clone();
            assert_eq!(deadline.deadline(), None);
            stop.await;
            // Half of the 16 seconds that are left.
            assert_about(deadline.deadline().unwrap() - Instant::now(), 8 * SECOND);
            servers.add("stop");
            tracks.track("last", async { sleep(2 * SECOND).await }).unwrap();
            sleep(SECOND).await;
            servers.add("stopped");
        })
        .await;
    assert_eq!(steps.names(), ["signal", "on_signal", "stop", "stopped", "flush"]);
    for (step, after) in [("on_signal", 1), ("stop", 5), ("stopped", 6), ("flush", 7)] {
        assert_about(steps.of(step), after * SECOND);
    }
    assert_eq!(report.exit_code(), 0);
    let lines = report.to_string();
    let lines: Vec<_> = lines.lines().collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!(lines[0], "servers stopped 5.0 s after the signal");
    assert!(lines[1].starts_with("drained 6.0 s after the signal: 1 event accepted, 1 completed"), "{lines:?}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_stop_costs_its_share_and_is_polled_until_the_drain_has_ended() {
    let handle = TrackEventsHandle::new();
    let steps = Steps::new();
    let (servers, exchange) = (steps.clone(), TestExchange::new(&handle));
    let began = Instant::now();
    let report = handle
        .shutdown()
        .limit(8 * SECOND)
        .signal(ready(()))
        .serve(|stop| async move {
            stop.await;
            servers.add("stop");
            // After the share of the servers, during the drain:
            sleep(5 * SECOND).await;
            servers.add("response");
            drop(exchange);
            pending::<()>().await;
        })
        .await;
    assert_eq!(steps.names(), ["stop", "response"]);
    assert_about(began.elapsed(), 5 * SECOND + Duration::from_millis(100));
    assert_eq!((&report.servers, report.exit_code()), (&StepOutcome::Unfinished, 0));
    assert!(report.to_string().starts_with("servers dropped unfinished 5.1 s after the signal\ndrained"), "{report}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_cannot_start_is_reported_at_once_and_the_events_are_drained() {
    let handle = TrackEventsHandle::new();
    handle.track("migration", sleep(SECOND)).unwrap();
    let began = Instant::now();
    let in_use = || io::Error::from(io::ErrorKind::AddrInUse);
    let report = handle.shutdown().serve(|_stop| ready(Err::<(), _>(in_use()))).await;
    assert_about(began.elapsed(), SECOND);
    assert_eq!(report.servers, StepOutcome::Failed("address in use".into()));
    assert_eq!((report.drain.as_ref().unwrap().ended.completed, report.exit_code()), (1, 1));
    assert!(report.to_string().starts_with("servers failed: address in use\ndrained"), "{report}");
}

#[tokio::test(start_paused = true)]
async fn the_report_of_a_server_that_cannot_start_does_not_ask_for_the_layer() {
    let in_use = || io::Error::from(io::ErrorKind::AddrInUse);
    let report = TrackEventsHandle::new().shutdown().serve(|_stop| ready(Err::<(), _>(in_use()))).await;
    assert_eq!(report.to_string(), "servers failed: address in use\ndrained: no request has come");
    // These servers have run until the signal.
    let fails_to_stop = async |stop: Stop| {
        stop.await;
        Err::<(), _>(in_use())
    };
    let report = TrackEventsHandle::new().shutdown().signal(ready(())).serve(fails_to_stop).await;
    assert!(report.to_string().contains("is this the handle of your layer?"), "{report}");
    let report = TrackEventsHandle::new().shutdown().serve(|_stop| ready(())).await;
    assert!(report.to_string().contains("is this the handle of your layer?"), "{report}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_ends_by_itself_needs_no_signal_and_no_delay() {
    let handle = TrackEventsHandle::new();
    let began = Instant::now();
    let report = handle.shutdown().readiness_delay(SECOND).serve(|_stop| ready(())).await;
    assert_about(began.elapsed(), Duration::from_millis(100));
    assert_eq!((&report.servers, report.exit_code()), (&StepOutcome::Completed, 0));
    assert!(report.to_string().starts_with("servers ended without a signal\ndrained"), "{report}");
}

#[tokio::test(start_paused = true)]
async fn panics_of_each_future_are_reported_and_the_others_run() {
    fn panics(message: &'static str) -> impl Future<Output = ()> {
        poll_fn(move |_| -> Poll<()> { panic!("{message}") })
    }
    let handle = TrackEventsHandle::new();
    let report = handle
        .shutdown()
        .signal(panics("signal"))
        .on_signal(panics("on_signal"))
        .flush(panics("flush"))
        .serve(|_stop| panics("servers"))
        .await;
    let panicked = |message: &str| StepOutcome::Panicked(message.into());
    assert_eq!(report.servers, panicked("servers"));
    assert_eq!((&report.on_signal, &report.flush), (&panicked("on_signal"), &panicked("flush")));
    assert!(report.drain.is_ok());
    assert_eq!(report.exit_code(), 1);
    assert!(report.to_string().ends_with("\non_signal panicked: on_signal\nflush panicked: flush"), "{report}");

    let report = handle.shutdown().serve(|_stop| -> std::future::Ready<()> { panic!("closure") }).await;
    assert_eq!(report.servers, panicked("closure"));
}

#[tokio::test(start_paused = true)]
async fn on_signal_and_flush_that_hang_cost_no_more_than_the_limit() {
    let handle = TrackEventsHandle::new();
    let began = Instant::now();
    let shutdown = handle.shutdown().signal(ready(())).on_signal(pending::<()>()).flush(pending::<()>());
    let report = shutdown
        .serve(|stop| async move {
            stop.await;
            assert_about(began.elapsed(), Duration::ZERO);
        })
        .await;
    assert_about(began.elapsed(), 9 * SECOND);
    assert_eq!((&report.on_signal, &report.flush), (&StepOutcome::Unfinished, &StepOutcome::Unfinished));
    assert!(report.to_string().ends_with("\non_signal dropped unfinished\nflush dropped unfinished"), "{report}");
    assert_eq!(report.exit_code(), 1, "what was not flushed may be lost");

    let shutdown = TrackEventsHandle::new().shutdown().on_signal(pending::<()>());
    assert_eq!(shutdown.serve(|_stop| ready(())).await.exit_code(), 0, "nothing waits for `on_signal`");
}

#[tokio::test(start_paused = true)]
async fn an_event_that_hangs_is_named_and_flush_runs_with_nothing_left_of_the_limit() {
    let handle = TrackEventsHandle::new();
    handle.track("stuck", pending::<()>()).unwrap();
    let steps = Steps::new();
    let flush = steps.clone();
    let shutdown = handle.shutdown().limit(SECOND).signal(ready(())).flush(async move { flush.add("flush") });
    let report = shutdown.serve(|stop| stop).await;
    let Err(DrainError::TimedOut(timed_out)) = &report.drain else { panic!("{report}") };
    assert_eq!(timed_out.open[0].name.as_deref(), Some("stuck"));
    assert_eq!(timed_out.exit_code(), 1);
    assert_about(steps.of("flush"), SECOND);
    assert_eq!((report.flush.clone(), report.exit_code()), (StepOutcome::Completed, 1));
}

#[tokio::test(start_paused = true)]
async fn begin_drain_begins_the_shutdown_and_its_limit() {
    let handle = TrackEventsHandle::new();
    let exchange = TestExchange::new(&handle);
    let (begins, began) = (handle.clone(), Instant::now());
    let shutdown = handle.shutdown().limit(4 * SECOND);
    let serving = shutdown.serve(|stop| async move {
        sleep(SECOND).await;
        begins.begin_drain();
        stop.await;
    });
    let report = serving.await;
    assert_about(began.elapsed(), 5 * SECOND);
    assert!(report.to_string().starts_with("servers stopped 0.0 ms after `begin_drain`\ndrain timed out"), "{report}");
    drop(exchange);
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_began_before_the_shutdown_does_not_use_up_its_limit() {
    let handle = TrackEventsHandle::new();
    handle.begin_drain();
    sleep(60 * SECOND).await;
    let began = Instant::now();
    handle.track("short", sleep(2 * SECOND)).unwrap();
    let report = handle.shutdown().limit(4 * SECOND).serve(|stop| stop).await;
    assert_about(began.elapsed(), 2 * SECOND);
    assert_eq!(report.exit_code(), 0, "{report}");
}

#[tokio::test(start_paused = true)]
async fn events_know_the_deadline_from_the_signal_on() {
    let handle = TrackEventsHandle::new();
    let (asks, began) = (handle.clone(), Instant::now());
    let serve = |stop: tower_track_events::Stop| async move {
        assert_eq!(asks.drain_deadline(), None);
        asks.draining().await;
        assert_about(asks.drain_deadline().unwrap() - began, 10 * SECOND);
        stop.await;
    };
    let shutdown = handle.shutdown().limit(9 * SECOND).signal(sleep(SECOND)).readiness_delay(SECOND);
    assert_eq!(shutdown.serve(serve).await.exit_code(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_cannot_keep_an_event_from_running() {
    let handle = TrackEventsHandle::new();
    let exchange = TestExchange::new(&handle);
    let (send, sent) = oneshot::channel();
    let audit = |exchange: tower_track_events::Exchange| async move { send.send(exchange.outcome).map_err(|_| "gone") };
    exchange.events().track_with("audit", audit).unwrap();
    let report = handle.shutdown().limit(8 * SECOND).signal(ready(())).serve(|_stop| pending::<()>()).await;
    assert_eq!(sent.await, Ok(Outcome::Unfinished));
    let Err(DrainError::TimedOut(timed_out)) = &report.drain else { panic!("{report}") };
    let open: Vec<_> = timed_out.open.iter().map(|item| item.kind).collect();
    assert_eq!((open, timed_out.ended.completed), (vec![OpenKind::Request], 1));
    drop(exchange);
}

/// Even if the servers would take all of the limit.
#[tokio::test(start_paused = true)]
async fn the_share_of_the_servers_ends_in_time_for_the_last_call() {
    let handle = TrackEventsHandle::new();
    let exchange = TestExchange::new(&handle);
    exchange.events().track("audit", sleep(2 * SECOND)).unwrap();
    let shutdown = handle.shutdown().limit(20 * SECOND).server_limit(60 * SECOND).signal(ready(()));
    let report = shutdown.serve(|_stop| pending::<()>()).await;
    assert_eq!(report.drain.as_ref().unwrap_err().report().unwrap().ended.completed, 1, "{report}");
    drop(exchange);
}

#[tokio::test(start_paused = true)]
async fn a_limit_of_zero_polls_each_step_once() {
    let handle = TrackEventsHandle::new();
    let began = Instant::now();
    let report = handle.shutdown().limit(Duration::ZERO).signal(ready(())).serve(|stop| stop).await;
    assert_eq!(
        (began.elapsed(), report.servers.clone(), report.exit_code()),
        (Duration::ZERO, StepOutcome::Completed, 0)
    );

    let handle = TrackEventsHandle::new();
    handle.track("stuck", pending::<()>()).unwrap();
    let report = handle.shutdown().limit(Duration::ZERO).signal(ready(())).serve(|_stop| pending::<()>()).await;
    assert_eq!(
        (began.elapsed(), report.servers.clone(), report.exit_code()),
        (Duration::ZERO, StepOutcome::Unfinished, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn without_a_limit_it_waits_for_as_long_as_it_takes() {
    let handle = TrackEventsHandle::new();
    let hour = 3600 * SECOND;
    handle.track("export", sleep(hour)).unwrap();
    let began = Instant::now();
    let report = handle
        .shutdown()
        .limit(Duration::MAX)
        .signal(ready(()))
        .serve(|stop| async move {
            stop.clone().await;
            assert_eq!(stop.deadline(), None);
            sleep(hour / 2).await;
        })
        .await;
    assert_about(began.elapsed(), hour);
    assert_eq!(report.exit_code(), 0, "{report}");
}

#[tokio::test(start_paused = true)]
async fn what_failed_before_the_signal_is_not_in_the_exit_code_and_what_fails_after_it_is() {
    let handle = TrackEventsHandle::new();
    handle.track("early", ready(Err::<(), _>("disk full"))).unwrap();
    let report = handle.shutdown().signal(sleep(3600 * SECOND)).serve(|stop| stop).await;
    let drained = report.drain.as_ref().unwrap();
    assert_eq!((drained.ended.failed, drained.all_completed(), report.exit_code()), (1, false, 0));

    let handle = TrackEventsHandle::new();
    handle
        .track("late", async {
            sleep(2 * SECOND).await;
            Err::<(), _>("disk full")
        })
        .unwrap();
    let report = handle.shutdown().signal(sleep(SECOND)).serve(|stop| stop).await;
    assert_eq!(report.exit_code(), 1, "{report}");
}

#[tokio::test(start_paused = true)]
async fn two_handles_nest() {
    let (outer, inner) = (TrackEventsHandle::new(), TrackEventsHandle::new());
    outer.track("outer", sleep(3 * SECOND)).unwrap();
    inner.track("inner", sleep(2 * SECOND)).unwrap();
    let began = Instant::now();
    let report = outer
        .shutdown()
        .signal(sleep(SECOND))
        .serve(|stop| async move {
            let report = inner.shutdown().signal(stop).limit(4 * SECOND).serve(|stop| stop).await;
            assert_about(began.elapsed(), 2 * SECOND);
            if report.exit_code() == 0 { Ok(()) } else { Err(report.to_string()) }
        })
        .await;
    assert_about(began.elapsed(), 3 * SECOND);
    assert_eq!((report.servers.clone(), report.exit_code()), (StepOutcome::Completed, 0), "{report}");
}

#[tokio::test(start_paused = true)]
async fn each_clone_of_stop_ends_at_the_same_time_and_after_the_shutdown_was_dropped() {
    let handle = TrackEventsHandle::new();
    let (send, stops) = oneshot::channel();
    let serving = handle.shutdown().serve(|stop| async move {
        let _ = send.send((stop.clone(), stop));
        pending::<()>().await;
    });
    assert!(timeout(SECOND, serving).await.is_err(), "nothing has told it to end");
    let (one, two) = stops.await.unwrap();
    assert!(format!("{one:?}").contains("deadline: None"));
    tokio::join!(one, two);
}

#[test]
fn outside_a_runtime_the_report_has_the_error() {
    let handle = TrackEventsHandle::new();
    let shutdown = handle.shutdown();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let report = runtime.block_on(shutdown.serve(|_stop| -> std::future::Ready<()> { panic!("not called") }));
    let StepOutcome::Failed(error) = &report.servers else { panic!("{report}") };
    assert_eq!(error, "cannot listen for SIGTERM and Ctrl-C: there is no tokio runtime");
    assert_eq!(report.exit_code(), 1);
}

#[test]
fn a_runtime_without_an_io_driver_is_an_error_and_no_panic() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let report = runtime.block_on(async {
        TrackEventsHandle::new().shutdown().serve(|_stop| -> std::future::Ready<()> { panic!("not called") }).await
    });
    let StepOutcome::Failed(error) = &report.servers else { panic!("{report}") };
    assert!(error.starts_with("cannot listen for SIGTERM and Ctrl-C: "), "{error}");
    assert!(report.drain.is_ok());
}

#[test]
fn a_runtime_without_timers_waits_for_nothing_and_says_so() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let report = runtime.block_on(async {
        let handle = TrackEventsHandle::new();
        handle.shutdown().signal(ready(())).serve(|_stop| pending::<()>()).await
    });
    assert!(matches!(report.drain, Err(DrainError::NoTimer)), "{report}");
    assert_eq!(report.exit_code(), 1);
}

#[tokio::test]
async fn the_future_is_send_if_what_it_is_given_is() {
    fn assert_send<T: Send>(future: T) -> T {
        future
    }
    let handle = TrackEventsHandle::new();
    let serving = assert_send(handle.shutdown().signal(ready(())).serve(|stop| stop));
    assert_eq!(tokio::spawn(serving).await.unwrap().exit_code(), 0);
}
