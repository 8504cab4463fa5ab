//! What a layer does when there is no room.

use std::{future::pending, pin::Pin, time::Duration};

use http::{Request, Response};
use http_body_util::Empty;
use tokio::sync::oneshot;
use tokio_test::{assert_pending, assert_ready, task};
use tower::{Layer, Service, service_fn};
use tower_track_events::{
    DrainError, Exchange, Overflow, Permit, Refused, ResponseBody, ResponseFuture, TrackEventsHandle, TrackEventsLayer,
};

use crate::support::{Counter, assert_conserved, drain, settle};

type Body = Empty<bytes::Bytes>;
type Inner = Pin<Box<dyn Future<Output = Result<Response<Body>, std::convert::Infallible>> + Send>>;

const LIMIT: Duration = Duration::from_secs(3);

struct House {
    handle: TrackEventsHandle,
    layer: TrackEventsLayer,
    /// How many inner futures have been polled.
    served: Counter,
    /// How many events have run.
    fired: Counter,
}

impl House {
    /// A house that is full: the permits hold all of its room.
    fn full(capacity: usize, overflow: Overflow) -> (Self, Vec<Permit>) {
        let handle = TrackEventsHandle::builder().capacity(capacity).settle(Duration::ZERO).build().unwrap();
        let permits = (0..capacity).map(|_| handle.reserve().unwrap()).collect();
        let (served, fired) = (Counter::default(), Counter::default());
        let fires = fired.clone();
        let layer = TrackEventsLayer::builder(handle.clone())
            .track_when(
                "audit",
                |request| request.uri.path() != "/healthz",
                move |_request| {
                    let fires = fires.clone();
                    move |_exchange: Exchange| async move { fires.add() }
                },
            )
            .overflow(overflow)
            .build();
        (Self { handle, layer, served, fired }, permits)
    }

    fn call(&self, path: &str) -> task::Spawn<ResponseFuture<Inner>> {
        call(&self.layer, path, &self.served)
    }
}

/// Calls a service that counts how often it is polled to an answer.
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
async fn a_full_house_sheds_and_serves() {
    for overflow in [Overflow::default(), Overflow::Shed, Overflow::Wait(Duration::ZERO)] {
        let (house, _permits) = House::full(2, overflow);
        drop(answered(&mut house.call("/")));
        assert_eq!((house.handle.snapshot().refused, house.served.get(), house.fired.get()), (1, 1, 0));
    }
}

#[tokio::test]
async fn an_exchange_waits_before_its_service_is_polled_and_goes_on_when_there_is_room() {
    let (house, mut permits) = House::full(2, Overflow::Wait(LIMIT));
    let mut future = house.call("/");
    assert_pending!(future.poll());
    assert_eq!(house.served.get(), 0);

    permits.pop();
    assert!(future.is_woken());
    let response = answered(&mut future);
    assert_eq!((house.served.get(), house.handle.snapshot().pending), (1, 1));
    drop((response, permits));
    drain(&house.handle).await;
    assert_eq!((house.fired.get(), house.handle.snapshot().refused), (1, 0));
}

#[tokio::test]
async fn those_who_wait_get_room_in_their_order_and_before_anything_later() {
    let (house, mut permits) = House::full(2, Overflow::Wait(LIMIT));
    let (mut first, mut second) = (house.call("/"), house.call("/"));
    assert_pending!(first.poll());
    assert_pending!(second.poll());

    permits.pop();
    // The room is owed to the first, though it has not been polled yet.
    assert_eq!(house.handle.track("later", async {}), Err(Refused::Full));
    assert!(house.handle.reserve().is_err());
    let mut third = house.call("/");
    assert_pending!(third.poll());
    assert!(!second.is_woken());
    assert_pending!(second.poll());
    let response = answered(&mut first);
    permits.pop();
    assert_pending!(third.poll());
    let later = answered(&mut second);
    drop(response);
    settle().await;
    drop((later, answered(&mut third)));
    assert_eq!(drain(&house.handle).await.endings.completed, 3);
    assert_eq!(house.handle.snapshot().refused, 2);
}

#[tokio::test]
async fn a_client_that_leaves_gives_its_place_and_its_room_to_the_next() {
    let (house, mut permits) = House::full(1, Overflow::Wait(LIMIT));
    let (mut gone, mut granted, mut next) = (house.call("/"), house.call("/"), house.call("/"));
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
    let report = drain(&house.handle).await;
    assert_eq!((report.accepted, report.refused, house.fired.get()), (1, 2, 1));
}

#[tokio::test(start_paused = true)]
async fn it_waits_no_longer_than_its_limit_and_is_served_then() {
    let (house, _permits) = House::full(1, Overflow::Wait(LIMIT));
    let mut future = house.call("/");
    assert_pending!(future.poll());
    tokio::time::advance(LIMIT - Duration::from_millis(1)).await;
    assert_pending!(future.poll());
    tokio::time::advance(Duration::from_millis(1)).await;
    assert!(future.is_woken());
    drop(answered(&mut future));
    let now = house.handle.snapshot();
    assert_eq!((now.refused, now.accepted, house.served.get(), now.open_requests), (1, 0, 1, 0));
    assert_conserved(&now);
}

#[tokio::test(start_paused = true)]
async fn idle_streams_that_hold_all_room_delay_others_no_longer_than_the_limit_and_a_probe_not_at_all() {
    const CAPACITY: usize = 16;
    let (house, permits) = House::full(CAPACITY, Overflow::Wait(LIMIT));
    drop(permits);
    let streams: Vec<_> = (0..CAPACITY).map(|_| answered(&mut house.call("/"))).collect();
    let mut probes: Vec<_> = (0..CAPACITY).map(|_| house.call("/")).collect();
    for probe in &mut probes {
        assert_pending!(probe.poll());
    }
    drop(answered(&mut house.call("/healthz")));

    tokio::time::advance(LIMIT).await;
    for probe in &mut probes {
        drop(answered(probe));
    }
    drop(streams);
    assert_eq!(drain(&house.handle).await.endings.completed, CAPACITY as u64);
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_who_waits_for_room_and_no_longer_than_its_limit() {
    let (house, mut permits) = House::full(1, Overflow::Wait(Duration::from_secs(60)));
    let mut future = house.call("/");
    assert_pending!(future.poll());
    assert!(house.handle.drain(LIMIT).await.is_err());

    permits.pop();
    drop(answered(&mut future));
    assert_eq!(drain(&house.handle).await.endings.completed, 1);
    // Nobody waits for what will not come.
    drop(answered(&mut house.call("/")));
    assert_eq!(house.handle.snapshot().refused, 1);
}

#[test]
fn without_a_timer_events_are_shed_at_once() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let (house, _permits) = House::full(1, Overflow::Wait(LIMIT));
        drop(answered(&mut house.call("/")));
        assert_eq!(house.handle.snapshot().refused, 1);
    });
}

#[tokio::test]
async fn a_hook_that_panics_while_there_is_no_room_is_accounted_for_when_there_is() {
    let handle = TrackEventsHandle::builder().capacity(1).settle(Duration::ZERO).build().unwrap();
    let permit = handle.reserve().unwrap();
    let layer = TrackEventsLayer::builder(handle.clone())
        .track("bomb", |_request| -> fn(Exchange) -> std::future::Ready<()> { panic!("a hook") })
        .overflow(Overflow::Wait(LIMIT))
        .build();
    let mut future = call(&layer, "/", &Counter::default());
    assert_pending!(future.poll());
    drop(permit);
    drop(assert_ready!(future.poll()).unwrap());
    assert_eq!(drain(&handle).await.endings.panicked, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bound_holds_and_no_room_is_lost_under_a_crowd_that_comes_and_leaves() {
    const CAPACITY: usize = 3;
    let (house, permits) = House::full(CAPACITY, Overflow::Wait(Duration::from_secs(30)));
    drop(permits);
    let mut crowd = tokio::task::JoinSet::new();
    for index in 0..600 {
        let mut future = house.call("/").into_inner();
        let handle = house.handle.clone();
        crowd.spawn(async move {
            if index % 5 == 0 {
                // It leaves while it waits, or right after it was granted room.
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
    while let Some(task) = crowd.join_next().await {
        task.unwrap();
    }
    let report = drain(&house.handle).await;
    assert_eq!((report.accepted + report.refused, report.accepted as usize), (600, house.fired.get()));
    assert!(report.refused <= 120, "only those who left may have lost their event: {report}");
}

#[tokio::test]
async fn an_abort_frees_the_room_that_others_wait_for() {
    let handle = TrackEventsHandle::builder().capacity(1).build().unwrap();
    handle.track("endless", pending::<()>()).unwrap();
    let (tell, told) = oneshot::channel();
    let tell = std::sync::Mutex::new(Some(tell));
    let layer = TrackEventsLayer::builder(handle.clone())
        .track("audit", move |_request| {
            let tell = tell.lock().unwrap().take();
            move |_exchange: Exchange| async move { tell.unwrap().send(()).unwrap() }
        })
        .overflow(Overflow::Wait(LIMIT))
        .build();
    let mut future = call(&layer, "/", &Counter::default());
    assert_pending!(future.poll());
    handle.abort();
    settle().await;
    drop(assert_ready!(future.poll()).unwrap());
    told.await.unwrap();
}

#[tokio::test]
async fn room_that_another_thread_gives_back_is_accounted_for_with_its_request() {
    let (house, permits) = House::full(1, Overflow::Wait(LIMIT));
    drop(permits);
    // New threads one after the other: some of them have another part of the ledger than this one.
    for ended in 1..=8 {
        let reserving = house.handle.clone();
        let permit = std::thread::spawn(move || reserving.reserve().unwrap()).join().unwrap();
        let mut waiting = house.call("/");
        assert_pending!(waiting.poll());
        drop(permit);
        let response = answered(&mut waiting);
        let now = house.handle.snapshot();
        assert_eq!((now.open_requests, now.pending, now.reserved), (1, 1, 0));
        drop(response);
        assert_eq!(house.handle.snapshot().open_requests, 0);
        let Err(DrainError::CutShort(unfinished)) = house.handle.drain(Duration::ZERO).await else {
            panic!("an event is pending");
        };
        assert_eq!((unfinished.events[0].name, unfinished.events[0].started), ("audit", true));
        settle().await;
        assert_eq!((house.fired.get(), house.handle.snapshot().completed), (ended, ended as u64));
    }
    drain(&house.handle).await;
}
