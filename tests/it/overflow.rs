//! A layer at capacity.

use std::{future::pending, pin::Pin, time::Duration};

use http::{Request, Response};
use http_body_util::Empty;
use tokio::sync::{mpsc, oneshot};
use tokio_test::{assert_pending, assert_ready, task};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_track_events::{
    DrainError, Exchange, OpenKind, Overflow, Permit, ResponseBody, ResponseFuture, TrackError, TrackEventsHandle,
    TrackEventsLayer,
};

use crate::support::{Answer, Counter, Script, assert_conserved, drain, run_tasks};

type Body = Empty<bytes::Bytes>;
type Inner = Pin<Box<dyn Future<Output = Result<Response<Body>, std::convert::Infallible>> + Send>>;

const LIMIT: Duration = Duration::from_secs(3);

struct Setup {
    handle: TrackEventsHandle,
    layer: TrackEventsLayer,
    /// How many inner futures have been polled.
    served: Counter,
    /// How many events have run.
    fired: Counter,
}

impl Setup {
    /// A handle at capacity: the permits hold all slots.
    fn at_capacity(capacity: usize, overflow: Overflow) -> (Self, Vec<Permit>) {
        let handle = TrackEventsHandle::builder().capacity(capacity).quiet_period(Duration::ZERO).build().unwrap();
        let permits = (0..capacity).map(|_| handle.reserve().unwrap()).collect();
        let (served, fired) = (Counter::default(), Counter::default());
        let fires = fired.clone();
        let layer = TrackEventsLayer::new(handle.clone())
            .track_when(
                "audit",
                |request| request.uri.path() != "/healthz",
                move |_exchange| async move { fires.add() },
            )
            .overflow(overflow);
        (Self { handle, layer, served, fired }, permits)
    }

    fn call(&self, path: &str) -> task::Spawn<ResponseFuture<Inner>> {
        call(&self.layer, path, &self.served)
    }
}

/// Calls a service that counts how often it answers.
fn call(layer: &TrackEventsLayer, path: &str, served: &Counter) -> task::Spawn<ResponseFuture<Inner>> {
    let served = served.clone();
    let mut service = layer.layer(service_fn(move |_request: Request<()>| -> Inner {
        let served = served.clone();
        Box::pin(async move {
            served.add();
            Ok(Response::new(Empty::new()))
        })
    }));
    task::spawn(service.call(Request::get(path).body(()).unwrap()))
}

fn answered(future: &mut task::Spawn<ResponseFuture<Inner>>) -> Response<ResponseBody<Body>> {
    assert_ready!(future.poll()).unwrap()
}

#[tokio::test]
async fn at_capacity_events_are_rejected_and_requests_are_served() {
    for overflow in [Overflow::default(), Overflow::Reject, Overflow::Wait(Duration::ZERO)] {
        let (setup, _permits) = Setup::at_capacity(2, overflow);
        drop(answered(&mut setup.call("/")));
        assert_eq!((setup.handle.snapshot().rejected, setup.served.get(), setup.fired.get()), (1, 1, 0));
    }
}

#[tokio::test]
async fn a_request_waits_before_its_service_is_polled_and_continues_when_a_slot_is_free() {
    let (setup, mut permits) = Setup::at_capacity(2, Overflow::Wait(LIMIT));
    let mut future = setup.call("/");
    assert_pending!(future.poll());
    assert_eq!(setup.served.get(), 0);

    permits.pop();
    assert!(future.is_woken());
    let response = answered(&mut future);
    assert_eq!((setup.served.get(), setup.handle.snapshot().pending), (1, 1));
    drop((response, permits));
    drain(&setup.handle).await;
    assert_eq!((setup.fired.get(), setup.handle.snapshot().rejected), (1, 0));
}

#[tokio::test]
async fn waiting_requests_get_slots_in_order_and_before_later_events() {
    let (setup, mut permits) = Setup::at_capacity(2, Overflow::Wait(LIMIT));
    let (mut first, mut second) = (setup.call("/"), setup.call("/"));
    assert_pending!(first.poll());
    assert_pending!(second.poll());

    permits.pop();
    // The slot belongs to the first request, which has not been polled yet.
    assert_eq!(setup.handle.track("later", async {}), Err(TrackError::Full));
    assert!(setup.handle.reserve().is_err());
    let mut third = setup.call("/");
    assert_pending!(third.poll());
    assert!(!second.is_woken());
    assert_pending!(second.poll());
    let response = answered(&mut first);
    permits.pop();
    assert_pending!(third.poll());
    let later = answered(&mut second);
    drop(response);
    run_tasks().await;
    drop((later, answered(&mut third)));
    assert_eq!(drain(&setup.handle).await.ended.completed, 3);
    assert_eq!(setup.handle.snapshot().rejected, 2);
}

#[tokio::test]
async fn a_client_that_leaves_passes_its_slot_to_the_next() {
    let (setup, mut permits) = Setup::at_capacity(1, Overflow::Wait(LIMIT));
    let (mut gone, mut granted, mut next) = (setup.call("/"), setup.call("/"), setup.call("/"));
    assert_pending!(gone.poll());
    assert_pending!(granted.poll());
    assert_pending!(next.poll());
    drop(gone);
    permits.pop();
    assert!(granted.is_woken());
    assert!(!next.is_woken());
    drop(granted);
    assert!(next.is_woken());
    drop(answered(&mut next));
    let report = drain(&setup.handle).await;
    assert_eq!((report.accepted, report.rejected, setup.fired.get()), (1, 2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_no_longer_than_its_limit_and_is_served() {
    let (setup, _permits) = Setup::at_capacity(1, Overflow::Wait(LIMIT));
    let mut future = setup.call("/");
    assert_pending!(future.poll());
    tokio::time::advance(LIMIT - Duration::from_millis(1)).await;
    assert_pending!(future.poll());
    tokio::time::advance(Duration::from_millis(1)).await;
    assert!(future.is_woken());
    drop(answered(&mut future));
    let now = setup.handle.snapshot();
    assert_eq!((now.rejected, now.accepted, setup.served.get(), now.open_requests), (1, 0, 1, 0));
    assert_conserved(&now);
}

#[tokio::test(start_paused = true)]
async fn idle_streams_that_hold_all_slots_delay_requests_up_to_the_limit_and_never_a_probe() {
    const CAPACITY: usize = 16;
    let (setup, permits) = Setup::at_capacity(CAPACITY, Overflow::Wait(LIMIT));
    drop(permits);
    let streams: Vec<_> = (0..CAPACITY).map(|_| answered(&mut setup.call("/"))).collect();
    let mut probes: Vec<_> = (0..CAPACITY).map(|_| setup.call("/")).collect();
    for probe in &mut probes {
        assert_pending!(probe.poll());
    }
    drop(answered(&mut setup.call("/healthz")));

    tokio::time::advance(LIMIT).await;
    for probe in &mut probes {
        drop(answered(probe));
    }
    drop(streams);
    assert_eq!(drain(&setup.handle).await.ended.completed, CAPACITY as u64);
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_waiting_requests_up_to_its_limit() {
    let (setup, mut permits) = Setup::at_capacity(1, Overflow::Wait(Duration::from_secs(60)));
    let mut future = setup.call("/");
    assert_pending!(future.poll());
    assert!(setup.handle.drain_until(tokio::time::sleep(LIMIT)).await.is_err());

    permits.pop();
    drop(answered(&mut future));
    assert_eq!(drain(&setup.handle).await.ended.completed, 1);
    // After the drain a request does not wait.
    drop(answered(&mut setup.call("/")));
    assert_eq!(setup.handle.snapshot().rejected, 1);
}

#[test]
fn without_a_timer_events_are_rejected_at_once() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let (setup, _permits) = Setup::at_capacity(1, Overflow::Wait(LIMIT));
        drop(answered(&mut setup.call("/")));
        assert_eq!(setup.handle.snapshot().rejected, 1);
    });
}

#[tokio::test]
async fn a_hook_that_panics_at_capacity_is_counted_when_a_slot_is_free() {
    let handle = TrackEventsHandle::builder().capacity(1).quiet_period(Duration::ZERO).build().unwrap();
    let permit = handle.reserve().unwrap();
    let layer = TrackEventsLayer::new(handle.clone())
        .track_from_request("bomb", |_request| -> fn(Exchange) -> std::future::Ready<()> { panic!("a hook") })
        .overflow(Overflow::Wait(LIMIT));
    let mut future = call(&layer, "/", &Counter::default());
    assert_pending!(future.poll());
    drop(permit);
    drop(assert_ready!(future.poll()).unwrap());
    assert_eq!(drain(&handle).await.ended.panicked, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bound_holds_and_no_slot_is_lost_when_many_clients_wait_and_leave() {
    const CAPACITY: usize = 3;
    let (setup, permits) = Setup::at_capacity(CAPACITY, Overflow::Wait(Duration::from_secs(30)));
    drop(permits);
    let mut clients = tokio::task::JoinSet::new();
    for index in 0..600 {
        let mut future = setup.call("/").into_inner();
        let handle = setup.handle.clone();
        clients.spawn(async move {
            if index % 5 == 0 {
                // The client leaves while its request waits, or right after it got a slot.
                let _ = futures_util::poll!(&mut future);
                tokio::task::yield_now().await;
            } else {
                drop(future.await.unwrap());
            }
            let now = handle.snapshot();
            assert!(now.pending + now.reserved <= CAPACITY as u64, "{now:?}");
            assert_conserved(&now);
        });
    }
    while let Some(task) = clients.join_next().await {
        task.unwrap();
    }
    let report = drain(&setup.handle).await;
    assert_eq!((report.accepted + report.rejected, report.accepted as usize), (600, setup.fired.get()));
    assert!(report.rejected <= 120, "only clients that left may have lost their event: {report}");
}

#[tokio::test]
async fn an_abort_frees_slots_for_waiting_requests() {
    let handle = TrackEventsHandle::builder().capacity(1).build().unwrap();
    handle.track("endless", pending::<()>()).unwrap();
    let (sender, receiver) = oneshot::channel();
    let sender = std::sync::Mutex::new(Some(sender));
    let layer = TrackEventsLayer::new(handle.clone())
        .track_from_request("audit", move |_request| {
            let sender = sender.lock().unwrap().take();
            move |_exchange: Exchange| async move { sender.unwrap().send(()).unwrap() }
        })
        .overflow(Overflow::Wait(LIMIT));
    let mut future = call(&layer, "/", &Counter::default());
    assert_pending!(future.poll());
    handle.abort();
    run_tasks().await;
    drop(assert_ready!(future.poll()).unwrap());
    receiver.await.unwrap();
}

#[tokio::test]
async fn a_slot_released_by_another_thread_is_counted_with_its_request() {
    let (setup, permits) = Setup::at_capacity(1, Overflow::Wait(LIMIT));
    drop(permits);
    // Some of the new threads use another shard than this one.
    for ended in 1..=8 {
        let reserving = setup.handle.clone();
        let permit = std::thread::spawn(move || reserving.reserve().unwrap()).join().unwrap();
        let mut waiting = setup.call("/");
        assert_pending!(waiting.poll());
        drop(permit);
        let response = answered(&mut waiting);
        let now = setup.handle.snapshot();
        assert_eq!((now.open_requests, now.pending, now.reserved), (1, 1, 0));
        drop(response);
        assert_eq!(setup.handle.snapshot().open_requests, 0);
        let Err(DrainError::TimedOut(report)) = setup.handle.drain(Duration::ZERO).await else {
            panic!("an event is pending");
        };
        assert_eq!((report.open[0].kind, report.open[0].count), (OpenKind::RunningEvent, 1));
        run_tasks().await;
        assert_eq!((setup.fired.get(), setup.handle.snapshot().ended.completed), (ended, ended as u64));
    }
    drain(&setup.handle).await;
}

/// A handler may keep the response future of an inner layer beyond its own response.
#[tokio::test]
async fn a_slot_that_is_granted_while_a_drain_is_closing_keeps_it_from_closing() {
    let handle = TrackEventsHandle::builder().capacity(1).quiet_period(Duration::ZERO).build().unwrap();
    let (release, released) = oneshot::channel::<()>();
    handle.track("first", async { drop(released.await) }).unwrap();
    let layer = TrackEventsLayer::new(handle.clone()).overflow(Overflow::Wait(Duration::MAX));
    let inner = layer.track("waits", |_| async {});
    let inner = inner.layer(service_fn(async |_: Request<()>| Answer::Ok(Response::new(Script::empty()))));
    let (keep, mut kept) = mpsc::unbounded_channel();
    let outer = service_fn(move |request: Request<()>| {
        assert!(keep.send(inner.clone().call(request)).is_ok());
        async { Answer::Ok(Response::new(Script::empty())) }
    });
    drop(TrackEventsLayer::new(handle.clone()).layer(outer).oneshot(Request::new(())).await.unwrap());
    let waiting = kept.recv().await.unwrap();

    let mut drain = task::spawn(handle.drain(Duration::MAX));
    assert_pending!(drain.poll());
    assert_eq!(handle.guard().err(), Some(TrackError::Closed));
    release.send(()).unwrap();
    run_tasks().await;
    assert_eq!(handle.snapshot().reserved, 1);
    assert!(handle.guard().is_ok(), "a permit is open, so nobody is rejected");
    drop(waiting);
    assert_ready!(drain.poll()).unwrap();
}
