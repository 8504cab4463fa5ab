//! Guarantee 6: user code runs without a lock, and its failures affect no other event.

use std::{
    sync::{Arc, Mutex, mpsc},
    task::{self, Wake, Waker},
    time::Duration,
};

use http::{Request, Response};
use tower::{Layer, ServiceExt, service_fn};
use tower_track_events::{Overflow, Permit, TrackEventsHandle, TrackEventsLayer};
use tracing::{
    Event, Instrument, Subscriber,
    span::{Attributes, Id},
};
use tracing_subscriber::{
    layer::{Context, SubscriberExt},
    util::SubscriberInitExt,
};

use crate::support::{Answer, Counter, OnDrop, Script, Seen, drain};

async fn ok(_: Request<()>) -> Answer {
    Answer::Ok(Response::new(Script::empty()))
}

#[tokio::test]
async fn a_rejected_event_of_the_layer_whose_destructor_panics_does_not_cost_the_request() {
    let full = TrackEventsHandle::builder().capacity(1).build().unwrap();
    let _slot = full.reserve().unwrap();
    let drained = TrackEventsHandle::new();
    drain(&drained).await;
    let wait = Overflow::Wait(Duration::MAX);
    for (handle, overflow) in [(&full, Overflow::Reject), (&drained, Overflow::Reject), (&drained, wait)] {
        let (rejected, dropped) = (handle.snapshot().rejected, Counter::default());
        let counter = dropped.clone();
        let layer =
            TrackEventsLayer::new(handle.clone()).overflow(overflow).track_from_request("rejected", move |_| {
                let counter = counter.clone();
                let made = OnDrop::new(move || {
                    counter.add();
                    panic!("a destructor that panics");
                });
                |_| async { drop(made) }
            });
        let response = layer.layer(service_fn(ok)).oneshot(Request::new(())).await.unwrap();
        assert_eq!((response.status().as_u16(), dropped.get(), handle.snapshot().rejected), (200, 1, rejected + 1));
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
    assert_eq!(drain(&handle).await.ended.timed_out, 1);
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

/// Takes a snapshot of the handle, and with it all locks, whenever it is called.
struct TakesSnapshots(TrackEventsHandle);

impl<S: Subscriber> tracing_subscriber::Layer<S> for TakesSnapshots {
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

/// A waker that holds a permit, which its destructor releases.
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
fn the_waker_of_a_request_that_waits_for_capacity_is_not_dropped_under_a_lock() {
    let (done, is_done) = mpsc::channel();
    // On another thread, since it would never end under a lock.
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _entered = runtime.enter();
        let handle = TrackEventsHandle::builder().capacity(1).build().unwrap();
        let waker = Waker::from(Arc::new(Holding(Mutex::new(Some(handle.reserve().unwrap())))));
        let layer = TrackEventsLayer::new(handle.clone()).overflow(Overflow::Wait(Duration::MAX));
        let service = layer.track("waits", |_| async {}).layer(service_fn(ok));
        let mut request = Box::pin(service.oneshot(Request::new(())));
        assert!(request.as_mut().poll(&mut task::Context::from_waker(&waker)).is_pending());
        drop(waker);
        drop(request);
        let now = handle.snapshot();
        done.send((now.reserved, now.rejected, now.open_requests)).unwrap();
    };
    std::thread::spawn(run);
    assert_eq!(is_done.recv_timeout(Duration::from_secs(20)), Ok((0, 1, 0)));
}

#[test]
fn no_subscriber_is_called_under_a_lock() {
    let (done, is_done) = mpsc::channel();
    // On another thread, since it would never end under a lock.
    let run = move || {
        let handle = TrackEventsHandle::builder().capacity(8).quiet_period(Duration::ZERO).build().unwrap();
        let _default = tracing_subscriber::registry().with(TakesSnapshots(handle.clone())).set_default();
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
            assert_eq!((report.ended.failed, report.ended.panicked), (1, 0));
        });
        done.send(()).unwrap();
    };
    std::thread::spawn(run);
    is_done.recv_timeout(Duration::from_secs(20)).expect("nothing waits for a lock, and nothing fails");
}
