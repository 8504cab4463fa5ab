//! Log lines, spans and metrics.

use std::{
    future::pending,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, Once, OnceLock},
    time::Duration,
};

use http::{Request, Response};
use http_body_util::Empty;
use metrics_util::{
    CompositeKey,
    debugging::{DebugValue, DebuggingRecorder},
};
use tower::{Layer, ServiceExt, service_fn};
use tower_track_events::{Batch, Events, Exchange, TrackError, TrackEventsHandle, TrackEventsLayer};
use tracing::{
    Dispatch, Instrument, Subscriber,
    field::{Field, Visit},
    span::{self, Attributes},
    subscriber::DefaultGuard,
};
use tracing_subscriber::{
    Registry,
    layer::{Context, SubscriberExt},
    registry::LookupSpan,
};

use tower_track_events::test::TestExchange;

use crate::support::{OnDrop, drain, run_tasks};

/// The lines that are logged on this thread.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<u8>>>);

/// Registers the callsite of each line before a test captures lines.
///
/// tracing caches with each callsite whether a subscriber is interested in it, when the line is first written. With a
/// single subscriber only that of the current thread is asked: a line that another test writes first, on a thread
/// without one, would be disabled in all tests. Here there are always two subscribers, and each line has been written
/// once.
fn write_each_line_once() {
    static ONCE: Once = Once::new();
    static OTHER: OnceLock<Dispatch> = OnceLock::new();
    let write = async || {
        tokio::time::pause();
        let every = Duration::from_millis(10);
        let builder = TrackEventsHandle::builder().capacity(8).quiet_period(Duration::ZERO).progress(every);
        let handle = builder.event_timeout(2 * every).build().unwrap();
        handle.track("late", pending::<()>()).unwrap();
        handle.wait_idle(Duration::MAX).await.unwrap();
        handle.track("fails", async { Err::<(), _>("as it must") }).unwrap();
        handle.track("panics", async { std::panic::resume_unwind(Box::new("as it must")) }).unwrap();
        (0..6).for_each(|_| handle.track("aborted", pending::<()>()).unwrap());
        handle.track("rejected", async {}).unwrap_err();
        handle.drain(every).await.unwrap_err();
        handle.abort();
        run_tasks().await;
        let mut attempts = 0;
        let sink = move |_: Batch<u8>| {
            attempts += 1;
            let result = if attempts == 2 { Ok(()) } else { Err("as it must") };
            async move { result }
        };
        let sender = handle.sink("sink").capacity(1).service(service_fn(sink)).unwrap();
        sender.try_send(0).unwrap();
        sender.try_send(1).unwrap_err();
        sender.flush(Duration::MAX).await.unwrap();
        sender.try_send(2).unwrap();
        handle.abort();
    };
    ONCE.call_once(|| {
        OTHER.get_or_init(|| Dispatch::new(tracing_subscriber::fmt().with_writer(io::sink).finish()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        std::thread::spawn(move || runtime.block_on(write())).join().unwrap();
    });
}

impl Lines {
    pub(crate) fn capture() -> (Self, DefaultGuard) {
        write_each_line_once();
        let lines = Self::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .without_time()
            .with_ansi(false)
            .with_target(false)
            .with_writer(move || writer.clone())
            .finish();
        (lines, tracing::subscriber::set_default(subscriber))
    }

    pub(crate) fn take(&self) -> Vec<String> {
        let bytes = std::mem::take(&mut *self.0.lock().unwrap());
        String::from_utf8(bytes).unwrap().lines().map(|line| line.trim().to_owned()).collect()
    }
}

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_logs_each_second_what_is_open() {
    let (lines, _guard) = Lines::capture();
    let handle = TrackEventsHandle::new();
    for _ in 0..3 {
        handle.track("order.created", pending::<()>()).unwrap();
    }
    handle.track("audit", pending::<()>()).unwrap();
    let (guard, permit) = (handle.guard().unwrap(), handle.reserve().unwrap());

    handle.drain(Duration::from_millis(2_500)).await.unwrap_err();

    let open =
        "INFO draining: 0 requests open, 1 guard held, 1 permit held, 4 events pending (order.created x3, audit x1)";
    assert_eq!(lines.take(), [format!("{open}, 1.0 s of 2.5 s"), format!("{open}, 2.0 s of 2.5 s")]);
    drop((guard, permit));
    handle.drain_until(tokio::time::sleep(Duration::from_millis(1_500))).await.unwrap_err();
    assert_eq!(lines.take(), ["INFO draining: 0 requests open, 4 events pending (order.created x3, audit x1), 1.0 s"]);
    handle.abort();
    drain(&handle).await;

    let quiet = TrackEventsHandle::builder().quiet_period(Duration::from_millis(1_500)).build().unwrap();
    quiet.drain(Duration::from_secs(5)).await.unwrap();
    let lines: Vec<_> = lines.take().into_iter().filter(|line| line.contains("draining")).collect();
    assert_eq!(lines, ["INFO draining: nothing open, waiting for the quiet period to pass, 1.0 s of 5.0 s"]);
}

#[tokio::test(start_paused = true)]
async fn a_drain_logs_at_the_interval_of_the_builder_or_never() {
    for (every, expected) in [(Duration::ZERO, 0), (Duration::from_millis(300), 3), (Duration::from_secs(5), 0)] {
        let (lines, _guard) = Lines::capture();
        let handle = TrackEventsHandle::builder().progress(every).build().unwrap();
        handle.track("pending", pending::<()>()).unwrap();
        handle.drain(Duration::from_secs(1)).await.unwrap_err();
        assert_eq!(lines.take().len(), expected, "{every:?}");
    }
}

#[tokio::test]
async fn exhausted_capacity_is_logged_once_and_so_is_its_end() {
    let (lines, _guard) = Lines::capture();
    for capacity in [1, 4, 100] {
        let handle = TrackEventsHandle::builder().capacity(capacity).quiet_period(Duration::ZERO).build().unwrap();
        let mut held: Vec<_> = (0..capacity).map(|_| handle.reserve().unwrap()).collect();
        // One slot is released and taken again, and again.
        for _ in 0..10 {
            assert_eq!(handle.track("audit", async {}), Err(TrackError::Full));
            if capacity > 1 {
                held.pop();
                held.push(handle.reserve().unwrap());
            }
        }
        let full = format!(
            "WARN events are rejected: the handle is at capacity; raise it, or see why pending events do not end event=\"audit\" capacity={capacity}"
        );
        assert_eq!(lines.take(), std::slice::from_ref(&full));
        held.clear();
        assert_eq!(lines.take(), [format!("INFO events are accepted again capacity={capacity}")]);

        held.extend((0..capacity).map(|_| handle.reserve().unwrap()));
        assert_eq!(handle.track("audit", async {}), Err(TrackError::Full));
        assert_eq!(lines.take(), [full]);
        held.clear();
        drain(&handle).await;
        lines.take();
    }
}

#[tokio::test]
async fn a_rejection_is_logged_before_the_destructor_of_the_event_can_panic() {
    let (lines, _guard) = Lines::capture();
    let bomb = || OnDrop::new(|| std::panic::resume_unwind(Box::new("a destructor that panics")));
    let full = || {
        let handle = TrackEventsHandle::builder().capacity(1).build().unwrap();
        let permit = handle.reserve().unwrap();
        (handle, permit)
    };
    let is_logged = || lines.take().iter().any(|line| line.starts_with("WARN events are rejected"));

    let (handle, _permit) = full();
    let made = bomb();
    let tracked = catch_unwind(AssertUnwindSafe(|| handle.track("rejected", async move { drop(made) })));
    assert!(tracked.is_err() && is_logged());

    let (handle, _permit) = full();
    let exchange = TestExchange::new(&handle);
    let made = bomb();
    let tracked = catch_unwind(AssertUnwindSafe(|| exchange.events().track("rejected", async move { drop(made) })));
    assert!(tracked.is_err() && is_logged());

    let (handle, _permit) = full();
    let layer = TrackEventsLayer::new(handle).track_from_request("rejected", move |_| {
        let made = bomb();
        |_: Exchange| async { drop(made) }
    });
    let service = service_fn(async |_: Request<()>| Ok::<_, io::Error>(Response::new(Empty::<bytes::Bytes>::new())));
    layer.layer(service).oneshot(Request::new(())).await.unwrap();
    assert!(is_logged());
}

#[tokio::test(start_paused = true)]
async fn each_ending_other_than_completed_is_logged_with_the_name_of_its_event() {
    let (lines, _guard) = Lines::capture();
    let handle = TrackEventsHandle::new();
    handle.track("fine", async {}).unwrap();
    handle.track("fails", async { Err::<(), _>("disk full") }).unwrap();
    handle.track("panics", async { std::panic::resume_unwind(Box::new("no ink")) }).unwrap();
    handle.track("is aborted", pending::<()>()).unwrap();
    run_tasks().await;
    let exchange = TestExchange::new(&handle);
    exchange.events().track("is aborted unpolled", async {}).unwrap();
    handle.abort();
    drop(exchange);
    drain(&handle).await;
    let limit = Duration::from_secs(1);
    let limited = TrackEventsHandle::builder().event_timeout(limit).progress(Duration::ZERO).build().unwrap();
    limited.track("is late", pending::<()>()).unwrap();
    drain(&limited).await;

    let lines = lines.take();
    let has = |level: &str, words: &[&str]| {
        lines.iter().any(|line| line.starts_with(level) && words.iter().all(|word| line.contains(word)))
    };
    assert_eq!(lines.len(), 5, "{lines:#?}");
    assert!(has("ERROR", &["event failed", "event=\"fails\"", "error=\"disk full\""]), "{lines:#?}");
    assert!(has("ERROR", &["event panicked", "event=\"panics\"", "panic=\"no ink\""]), "{lines:#?}");
    assert!(has("ERROR", &["event timed out", "event=\"is late\"", "limit=1s"]), "{lines:#?}");
    let by_abort = "event aborted by `TrackEventsHandle::abort`";
    assert!(has("WARN", &[by_abort, "event=\"is aborted\""]), "{lines:#?}");
    assert!(has("WARN", &[by_abort, "event=\"is aborted unpolled\""]), "{lines:#?}");
}

/// The span of the event is around its code, and its lines name the span.
#[tokio::test]
async fn the_lines_of_an_event_are_in_its_span() {
    let (lines, _guard) = Lines::capture();
    let handle = TrackEventsHandle::new();
    let fails = async {
        tracing::info!("it runs");
        Err::<(), _>("disk full")
    };
    handle.track("audit", fails).unwrap();
    drain(&handle).await;
    let lines = lines.take();
    let is_in_span =
        |words: &str| lines.iter().any(|line| line.contains("event{name=\"audit\"") && line.contains(words));
    assert!(is_in_span("it runs") && is_in_span("event failed"), "{lines:#?}");
}

#[test]
fn a_runtime_that_goes_away_or_has_no_timer_is_logged_once() {
    let (lines, _guard) = Lines::capture();
    let runtime = || tokio::runtime::Builder::new_current_thread().build().unwrap();
    let handle = TrackEventsHandle::builder().event_timeout(Duration::from_secs(1)).build().unwrap();
    runtime().block_on(async {
        let yields = async {
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
        };
        handle.track("no timer", yields).unwrap();
        run_tasks().await;
        assert_eq!(handle.snapshot().ended.completed, 1);
    });
    let handle = TrackEventsHandle::new();
    runtime().block_on(async { handle.track("left", pending::<()>()).unwrap() });
    assert_eq!(handle.snapshot().ended.aborted, 1);
    let lines = lines.take();
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert!(lines[0].contains("event runs without its time limit") && lines[0].contains("no timer"), "{lines:#?}");
    assert!(lines[1].contains("its runtime shut down") && lines[1].contains("left"), "{lines:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_sink_logs_failed_attempts_and_how_they_end() {
    let (lines, _guard) = Lines::capture();
    let handle = TrackEventsHandle::builder().quiet_period(Duration::ZERO).progress(Duration::ZERO).build().unwrap();
    let mut attempts = 0;
    let sink = move |_: Batch<u8>| {
        attempts += 1;
        let result = if attempts == 2 { Ok(()) } else { Err("disk full") };
        async move { result }
    };
    let sender = handle.sink("row").capacity(4).service(service_fn(sink)).unwrap();
    (0..4).for_each(|event| sender.try_send(event).unwrap());
    for _ in 0..3 {
        assert!(sender.try_send(4).is_err());
    }
    sender.flush(Duration::MAX).await.unwrap();
    sender.try_send(5).unwrap();
    handle.drain(Duration::from_millis(50)).await.unwrap_err();
    handle.abort();

    let lines = lines.take();
    let expected: [(&str, &[&str]); 6] = [
        (
            "WARN events are rejected: the sink is at capacity; see whether its deliveries fail or are slow",
            &["sink=\"row\"", "capacity=4"],
        ),
        (
            "WARN",
            &[
                "batch not delivered, and will be retried",
                "sink=\"row\"",
                "events=4",
                "attempt=1",
                "error=\"disk full\"",
                "retry_in=",
            ],
        ),
        ("INFO", &["batch delivered", "sink=\"row\"", "events=4", "attempt=2"]),
        ("INFO events are accepted again: the sink has capacity", &["sink=\"row\""]),
        ("WARN", &["batch not delivered, and will be retried", "events=1", "attempt=1"]),
        (
            "ERROR events were not delivered, and are dropped: the sink has no `on_undelivered`",
            &["sink=\"row\"", "events=1", "error=\"disk full\""],
        ),
    ];
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    for (line, (start, words)) in lines.iter().zip(expected) {
        assert!(line.starts_with(start) && words.iter().all(|word| line.contains(word)), "{line} {start} {words:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_row_that_is_given_up_is_not_logged_as_retried() {
    let (lines, _guard) = Lines::capture();
    let handle = TrackEventsHandle::builder().quiet_period(Duration::ZERO).progress(Duration::ZERO).build().unwrap();
    let deliver = |rows: Batch<u8>| async move { if rows.contains(&1) { Err("a bad row") } else { Ok(()) } };
    let sender = handle.sink("row").max_attempts(1).deliver(deliver).unwrap();
    (1..3).for_each(|row| sender.try_send(row).unwrap());
    sender.flush(Duration::MAX).await.unwrap();

    let lines = lines.take();
    let [retried, given_up] = &lines[..] else { panic!("{lines:#?}") };
    assert!(retried.contains("will be retried") && retried.contains("events=2"), "{retried}");
    assert!(given_up.starts_with("ERROR events were not delivered") && given_up.contains("events=1"), "{given_up}");
}

/// The spans of events that were made on this thread: their fields, their parent, and what they follow from.
#[derive(Clone, Default)]
struct Spans(Arc<Mutex<Vec<SeenSpan>>>);

#[derive(Clone, Debug, Default, PartialEq)]
struct SeenSpan {
    fields: Vec<(String, String)>,
    has_parent: bool,
    follows: Vec<&'static str>,
    id: u64,
}

impl Visit for SeenSpan {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.fields.push((field.name().to_owned(), format!("{value:?}")));
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> tracing_subscriber::Layer<S> for Spans {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &span::Id, context: Context<'_, S>) {
        if attributes.metadata().name() == "event" {
            let has_parent = context.span(id).is_some_and(|span| span.parent().is_some());
            let mut span = SeenSpan { has_parent, id: id.into_u64(), ..SeenSpan::default() };
            attributes.record(&mut span);
            self.0.lock().unwrap().push(span);
        }
    }

    fn on_follows_from(&self, id: &span::Id, follows: &span::Id, context: Context<'_, S>) {
        let name = context.span(follows).map_or("gone", |span| span.name());
        let mut spans = self.0.lock().unwrap();
        spans.iter_mut().filter(|span| span.id == id.into_u64()).for_each(|span| span.follows.push(name));
    }
}

#[tokio::test]
async fn the_span_of_an_event_has_its_name_no_parent_and_follows_from_the_request() {
    write_each_line_once();
    let spans = Spans::default();
    let _guard = tracing::subscriber::set_default(Registry::default().with(spans.clone()));
    let handle = TrackEventsHandle::new();
    let service = TrackEventsLayer::new(handle.clone()).layer(service_fn(|request: Request<()>| async move {
        let events = Events::from_extensions(request.extensions()).unwrap();
        events.track("audit", async {}).unwrap();
        Ok::<_, std::convert::Infallible>(Response::new(Empty::<bytes::Bytes>::new()))
    }));
    let request = Request::get("/secret?token=1").header("authorization", "secret").body(()).unwrap();
    let span = tracing::info_span!("request");
    // `call` happens in the span: with `instrument` alone only the polls would.
    let response = async { service.oneshot(request).await.unwrap() }.instrument(span).await;
    // Neither the span in which the response is over nor that of the caller becomes a parent.
    tracing::info_span!("server").in_scope(|| drop(response));
    tracing::info_span!("caller").in_scope(|| handle.track("at once", async {}).unwrap());
    drain(&handle).await;

    let spans = spans.0.lock().unwrap().clone();
    let seen: Vec<_> = spans.iter().map(|span| (&span.fields[..], span.has_parent, &span.follows[..])).collect();
    let name = |name: &str| [("name".to_owned(), format!("{name:?}"))];
    assert_eq!(seen, [(&name("audit")[..], false, &["request"][..]), (&name("at once")[..], false, &["caller"][..])]);
}

#[tokio::test]
async fn an_event_follows_from_the_span_in_which_it_is_tracked() {
    write_each_line_once();
    let spans = Spans::default();
    let _guard = tracing::subscriber::set_default(Registry::default().with(spans.clone()));
    let handle = TrackEventsHandle::new();
    // As with `#[instrument]` on a handler, or with a `TraceLayer` outside of this layer.
    let handler = |events: Events| {
        async move {
            tokio::task::yield_now().await;
            events.track("of the handler", async {}).unwrap();
        }
        .instrument(tracing::info_span!("handler"))
    };
    let request = TestExchange::new(&handle);
    handler(request.events().clone()).await;
    request.complete(http::StatusCode::OK);
    drain(&handle).await;
    let spans = spans.0.lock().unwrap().clone();
    assert_eq!(spans.iter().map(|span| &span.follows[..]).collect::<Vec<_>>(), [["handler"]]);
}

#[tokio::test]
async fn an_error_of_many_lines_is_one_line_in_logs_and_reports() {
    let (lines, _guard) = Lines::capture();
    let handle = TrackEventsHandle::builder().quiet_period(Duration::ZERO).progress(Duration::ZERO).build().unwrap();
    let page = format!("<html>\r\nERROR event failed event=\"forged\"\u{2028}{}", "x".repeat(1_000_000));
    handle.track("fails", async move { Err::<(), _>(page) }).unwrap();
    handle.track("panics", async { assert_eq!(1, 2, "numbers") }).unwrap();
    let sink = handle
        .sink("row")
        .max_attempts(1)
        .service(service_fn(|_: Batch<u8>| async { Err::<(), _>("one\ntwo") }))
        .unwrap();
    sink.try_send(1).unwrap();
    let report = drain(&handle).await;
    assert_eq!((report.ended.failed, report.ended.panicked), (2, 1));
    let text = report.to_string();
    assert!(text.lines().count() == 1 && text.len() < 2_000, "{} bytes", text.len());
    assert!(text.contains(r#"<html>\r\nERROR event failed event="forged"\u{2028}xxx"#), "{text}");
    assert!(text.contains(r"row: 1 failed, last: one\ntwo"), "{text}");
    let lines = lines.take();
    assert!(lines.iter().all(|line| line.starts_with("ERROR event") && line.len() < 1_000), "{lines:#?}");
    assert_eq!(lines.len(), 3, "{lines:#?}");
}

/// A metric by its name and labels, summed over several snapshots: each has the counts since the one before.
fn value(snapshots: &[(CompositeKey, DebugValue)], name: &str, labels: &[&str]) -> Option<f64> {
    let of_key = snapshots.iter().filter(|(key, _)| {
        let key = key.key();
        key.name() == name && key.labels().map(metrics::Label::value).eq(labels.iter().copied())
    });
    of_key.fold(None, |sum, (_, value)| match value {
        DebugValue::Counter(count) => Some(sum.unwrap_or(0.0) + *count as f64),
        DebugValue::Gauge(value) => Some(sum.unwrap_or(0.0) + value.into_inner()),
        DebugValue::Histogram(values) => Some(sum.unwrap_or(0.0) + values.len() as f64),
    })
}

#[test]
fn metrics_count_by_name_and_ending_and_return_to_zero() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut all = Vec::new();
    metrics::with_local_recorder(&recorder, || {
        runtime.block_on(async {
            let handle = TrackEventsHandle::builder().capacity(4).quiet_period(Duration::ZERO).build().unwrap();
            handle.track("fine", async {}).unwrap();
            handle.track("fails", async { Err::<(), _>("disk full") }).unwrap();
            handle.track("is aborted", pending::<()>()).unwrap();
            let permit = handle.reserve().unwrap();
            assert_eq!(handle.track("fine", async {}), Err(TrackError::Full));
            run_tasks().await;
            let service = TrackEventsLayer::new(handle.clone()).layer(service_fn(|_: Request<()>| async {
                Ok::<_, std::convert::Infallible>(Response::new(Empty::<bytes::Bytes>::new()))
            }));
            let response = service.oneshot(Request::new(())).await.unwrap();

            all.extend(snapshot(&snapshotter));
            assert_eq!(value(&all, "tower_track_events_open_requests", &[]), Some(1.0));
            assert_eq!(value(&all, "tower_track_events_pending_events", &[]), Some(1.0));

            drop(response);
            permit.track("fine", async {});
            run_tasks().await;
            handle.abort();
            drain(&handle).await;
            assert_eq!(handle.track("too late", async {}), Err(TrackError::Closed));
        });
    });

    all.extend(snapshot(&snapshotter));
    for (name, labels, expected) in [
        ("tower_track_events_accepted_total", &["fine"][..], 2.0),
        ("tower_track_events_ended_total", &["fine", "completed"], 2.0),
        ("tower_track_events_ended_total", &["fails", "failed"], 1.0),
        ("tower_track_events_ended_total", &["is aborted", "aborted"], 1.0),
        ("tower_track_events_rejected_total", &["fine", "full"], 1.0),
        ("tower_track_events_rejected_total", &["too late", "closed"], 1.0),
        ("tower_track_events_open_requests", &[], 0.0),
        ("tower_track_events_pending_events", &[], 0.0),
        ("tower_track_events_event_duration_seconds", &["fine"], 2.0),
        ("tower_track_events_drain_duration_seconds", &["drained"], 1.0),
    ] {
        assert_eq!(value(&all, name, labels), Some(expected), "{name} {labels:?}");
    }
}

#[test]
fn metrics_count_values_of_a_sink_and_panics_of_an_observer() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    metrics::with_local_recorder(&recorder, || {
        runtime.block_on(async {
            let handle = TrackEventsHandle::builder().quiet_period(Duration::ZERO).build().unwrap();
            let sender =
                handle.sink("row").capacity(3).service(service_fn(|_: Batch<u8>| async { Ok::<_, &str>(()) })).unwrap();
            (0..3).for_each(|event| sender.try_send(event).unwrap());
            assert!(sender.try_send(3).is_err());
            sender.flush(Duration::MAX).await.unwrap();
            sender.try_send(4).unwrap();
            handle.abort();
            let layer = TrackEventsLayer::new(handle.clone()).observe(|_| panic!("no ink"));
            let service = layer.layer(service_fn(|_: Request<()>| async {
                Ok::<_, std::convert::Infallible>(Response::new(Empty::<bytes::Bytes>::new()))
            }));
            drop(service.oneshot(Request::new(())).await.unwrap());
            drain(&handle).await;
        });
    });
    let all = snapshot(&snapshotter);
    for (name, labels, expected) in [
        ("tower_track_events_accepted_total", &["row"][..], 4.0),
        ("tower_track_events_ended_total", &["row", "completed"], 3.0),
        ("tower_track_events_ended_total", &["row", "aborted"], 1.0),
        ("tower_track_events_rejected_total", &["row", "full"], 1.0),
        ("tower_track_events_accepted_total", &["(observer)"], 1.0),
        ("tower_track_events_ended_total", &["(observer)", "panicked"], 1.0),
        ("tower_track_events_pending_events", &[], 0.0),
    ] {
        assert_eq!(value(&all, name, labels), Some(expected), "{name} {labels:?}");
    }
}

fn snapshot(snapshotter: &metrics_util::debugging::Snapshotter) -> Vec<(CompositeKey, DebugValue)> {
    let all = snapshotter.snapshot().into_vec();
    all.into_iter().map(|(key, _unit, _description, value)| (key, value)).collect()
}
