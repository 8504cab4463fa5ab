//! L6: what the code around an event does wrong costs no event.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    task::{self, Wake, Waker},
    time::Duration,
};

use http::{Request, Response};
use tower::{Layer, ServiceExt, service_fn};
use tower_track_events::{Overflow, Permit, Refused, TrackEventsHandle, TrackEventsLayer};
use tracing::{
    Event, Instrument, Metadata, Subscriber,
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{
    layer::{Context, SubscriberExt},
    util::SubscriberInitExt,
};

use crate::support::{Answer, Counter, OnDrop, Script, Seen, drain};

#[derive(Clone, Copy, PartialEq)]
enum At {
    Event,
    Span,
    Enter,
}

/// A subscriber that panics at one of its methods while it is armed.
struct Panicking {
    at: At,
    armed: Arc<AtomicBool>,
}

impl Panicking {
    fn is_due(&self, at: At) -> bool {
        self.at == at && self.armed.load(Ordering::Relaxed)
    }
}

impl Subscriber for Panicking {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        assert!(!self.is_due(At::Span), "at a span");
        Id::from_u64(1)
    }

    fn event(&self, _: &Event<'_>) {
        assert!(!self.is_due(At::Event), "at an event");
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {
        assert!(!self.is_due(At::Enter), "at an entry");
    }

    fn exit(&self, _: &Id) {}
}

/// The default subscriber of this thread, for as long as the guard lives, and its switch.
fn panicking(at: At) -> (tracing::subscriber::DefaultGuard, Arc<AtomicBool>) {
    let armed = Arc::new(AtomicBool::new(false));
    let subscriber = Panicking { at, armed: Arc::clone(&armed) };
    (tracing::subscriber::set_default(subscriber), armed)
}

async fn ok(_: Request<()>) -> Answer {
    Answer::Ok(Response::new(Script::empty()))
}

#[tokio::test]
async fn a_warning_that_panics_costs_no_event_of_the_layer_and_not_the_request() {
    let (_default, armed) = panicking(At::Event);
    let handle = TrackEventsHandle::builder().capacity(1).build().unwrap();
    let (seen, refused) = (Seen::default(), Seen::default());
    // The second layer finds no room, which it warns of.
    let service = seen.layer(&handle).layer(refused.layer(&handle).layer(service_fn(ok)));
    armed.store(true, Ordering::Relaxed);
    drop(service.oneshot(Request::new(())).await.unwrap());
    armed.store(false, Ordering::Relaxed);
    drain(&handle).await;
    assert_eq!((seen.all().len(), refused.all().len()), (1, 0));
}

#[tokio::test]
async fn a_span_that_panics_does_not_keep_an_event_from_starting() {
    let (_default, armed) = panicking(At::Span);
    let handle = TrackEventsHandle::new();
    let seen = Seen::default();
    let response = seen.layer(&handle).layer(service_fn(ok)).oneshot(Request::new(())).await.unwrap();
    armed.store(true, Ordering::Relaxed);
    drop(response);
    // The span is made when the event begins.
    let report = drain(&handle).await;
    armed.store(false, Ordering::Relaxed);
    assert!(report.all_completed());
    seen.only();
}

#[tokio::test]
async fn an_entry_into_a_span_that_panics_does_not_keep_an_event_from_running() {
    let (_default, armed) = panicking(At::Enter);
    let handle = TrackEventsHandle::builder().settle(Duration::ZERO).build().unwrap();
    let pending = Arc::new(AtomicU64::new(u64::MAX));
    let (seen, watched) = (Arc::clone(&pending), handle.clone());
    let held = OnDrop::new(move || seen.store(watched.snapshot().pending, Ordering::Relaxed));
    handle.track("runs", async move { drop(held) }).unwrap();
    armed.store(true, Ordering::Relaxed);
    let report = drain(&handle).await;
    armed.store(false, Ordering::Relaxed);
    assert!(report.all_completed());
    assert_eq!(pending.load(Ordering::Relaxed), 1, "it ends when what it owns is gone");
}

#[tokio::test]
async fn a_refusal_whose_warning_panics_is_a_refusal() {
    let (_default, armed) = panicking(At::Event);
    let handle = TrackEventsHandle::builder().capacity(1).build().unwrap();
    let _permit = handle.reserve().unwrap();
    armed.store(true, Ordering::Relaxed);
    let refused = catch_unwind(AssertUnwindSafe(|| handle.track("perhaps in a destructor", async {})));
    armed.store(false, Ordering::Relaxed);
    assert_eq!(refused.ok(), Some(Err(Refused::Full)));
}

#[tokio::test]
async fn a_refused_event_of_the_layer_whose_destructor_panics_costs_not_the_request() {
    let full = TrackEventsHandle::builder().capacity(1).build().unwrap();
    let _room = full.reserve().unwrap();
    let drained = TrackEventsHandle::new();
    drain(&drained).await;
    let wait = Overflow::Wait(Duration::MAX);
    for (handle, overflow) in [(&full, Overflow::Shed), (&drained, Overflow::Shed), (&drained, wait)] {
        let (refused, dropped) = (handle.snapshot().refused, Counter::default());
        let counter = dropped.clone();
        let layer = TrackEventsLayer::builder(handle.clone()).overflow(overflow).track("refused", move |_| {
            let counter = counter.clone();
            let made = OnDrop::new(move || {
                counter.add();
                panic!("a destructor that panics");
            });
            |_| async { drop(made) }
        });
        let response = layer.build().layer(service_fn(ok)).oneshot(Request::new(())).await.unwrap();
        assert_eq!((response.status().as_u16(), dropped.get(), handle.snapshot().refused), (200, 1, refused + 1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_is_always_ready_does_not_starve_its_time_limit() {
    let handle = TrackEventsHandle::builder().event_timeout(Duration::from_millis(50)).build().unwrap();
    handle
        .track("busy", async {
            let semaphore = tokio::sync::Semaphore::new(1);
            loop {
                // Ready at once, until the budget of the task is used up.
                drop(semaphore.acquire().await);
            }
        })
        .unwrap();
    assert_eq!(drain(&handle).await.endings.timed_out, 1);
}

#[tokio::test]
async fn debug_of_events_lets_its_writer_track() {
    struct Tracks(tower_track_events::Events);
    impl std::fmt::Write for Tracks {
        fn write_str(&mut self, _: &str) -> std::fmt::Result {
            self.0.track("from the writer", async {}).map_err(|_| std::fmt::Error)
        }
    }
    let (layer, handle) = TrackEventsLayer::pair();
    let service = layer.layer(service_fn(|request: Request<()>| {
        let events = tower_track_events::Events::from_extensions(request.extensions()).unwrap().clone();
        std::fmt::Write::write_fmt(&mut Tracks(events.clone()), format_args!("{events:?}")).unwrap();
        ok(request)
    }));
    drop(service.oneshot(Request::new(())).await.unwrap());
    assert!(drain(&handle).await.all_completed());
}

/// Looks at the handle whenever it is called: that takes all locks.
struct Looking(TrackEventsHandle);

impl<S: Subscriber> tracing_subscriber::Layer<S> for Looking {
    fn on_new_span(&self, _: &Attributes<'_>, _: &Id, _: Context<'_, S>) {
        self.0.snapshot();
    }

    fn on_follows_from(&self, _: &Id, _: &Id, _: Context<'_, S>) {
        self.0.snapshot();
    }

    fn on_event(&self, _: &Event<'_>, _: Context<'_, S>) {
        self.0.snapshot();
    }

    fn on_enter(&self, _: &Id, _: Context<'_, S>) {
        self.0.snapshot();
    }

    fn on_close(&self, _: Id, _: Context<'_, S>) {
        self.0.snapshot();
    }
}

/// A waker with something that its destructor gives back.
struct Holding(Mutex<Option<Permit>>);

impl Wake for Holding {
    fn wake(self: Arc<Self>) {}
}

impl Drop for Holding {
    fn drop(&mut self) {
        drop(self.0.lock().unwrap().take());
    }
}

#[test]
fn the_waker_of_a_request_that_waits_for_room_is_not_dropped_under_a_lock() {
    let (done, is_done) = mpsc::channel();
    // In a thread of its own: under a lock it would never end.
    let leaving = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _entered = runtime.enter();
        let handle = TrackEventsHandle::builder().capacity(1).build().unwrap();
        let waker = Waker::from(Arc::new(Holding(Mutex::new(Some(handle.reserve().unwrap())))));
        let layer = TrackEventsLayer::builder(handle.clone()).overflow(Overflow::Wait(Duration::MAX));
        let service = layer.track("waits", |_| |_| async {}).build().layer(service_fn(ok));
        let mut request = Box::pin(service.oneshot(Request::new(())));
        assert!(request.as_mut().poll(&mut task::Context::from_waker(&waker)).is_pending());
        drop(waker);
        drop(request);
        let now = handle.snapshot();
        done.send((now.reserved, now.refused, now.open_requests)).unwrap();
    };
    std::thread::spawn(leaving);
    assert_eq!(is_done.recv_timeout(Duration::from_secs(20)), Ok((0, 1, 0)));
}

#[test]
fn no_subscriber_is_called_under_a_lock() {
    let (done, is_done) = mpsc::channel();
    // In a thread of its own: under a lock it would never end.
    let looking = move || {
        let handle = TrackEventsHandle::builder().capacity(8).settle(Duration::ZERO).build().unwrap();
        let _default = tracing_subscriber::registry().with(Looking(handle.clone())).set_default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let seen = Seen::default();
            let service = seen.layer(&handle).layer(service_fn(|request: Request<()>| async move {
                let events = tower_track_events::Events::from_extensions(request.extensions()).unwrap();
                events.track("completes", async {}).unwrap();
                events.track("fails", async { Err::<(), _>("an error") }).unwrap();
                events.track_blocking("blocks", || ()).unwrap();
                events.reserve().unwrap().track("permitted", async {});
                events.handle().track("at once", std::future::pending::<()>()).unwrap();
                Answer::Ok(Response::new(Script::empty()))
            }));
            let response = service.oneshot(Request::new(())).instrument(tracing::info_span!("request"));
            drop(response.await.unwrap());
            tokio::task::yield_now().await;
            while handle.track("until it is full", std::future::pending::<()>()).is_ok() {}
            handle.abort();
            let report = drain(&handle).await;
            assert_eq!((report.endings.failed, report.endings.panicked), (1, 0));
        });
        done.send(()).unwrap();
    };
    std::thread::spawn(looking);
    is_done.recv_timeout(Duration::from_secs(20)).expect("nobody waits for a lock, and nothing fails");
}
