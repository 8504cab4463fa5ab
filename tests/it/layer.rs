//! The layer: its own events, two layers on one handle, requests after the drain, and `Events` in handlers.

use std::{
    future::pending,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{Extensions, Method, Request, Response, Version};
use tokio::sync::oneshot;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_track_events::{
    Events, Exchange, Outcome, RequestInfo, TrackError, TrackEvents, TrackEventsHandle, TrackEventsLayer,
};

use crate::support::{Answer, Counter, Script, Seen, assert_conserved, drain, poll_once, run_tasks};

async fn ok(_: Request<()>) -> Answer {
    Answer::Ok(Response::new(Script::empty()))
}

/// A handler that runs `act` on its events.
fn handler<F>(
    act: F,
) -> impl Service<Request<()>, Response = Response<Script>, Error = std::convert::Infallible, Future: Send> + Clone
where
    F: Fn(&Events) + Clone + Send + 'static,
{
    service_fn(move |request: Request<()>| {
        act(Events::from_extensions(request.extensions()).expect("the layer is there"));
        ok(request)
    })
}

#[tokio::test]
async fn each_event_of_the_layer_runs_once_for_each_exchange_that_its_filter_accepts() {
    let handle = TrackEventsHandle::new();
    let (all, some) = (Counter::default(), Counter::default());
    let (every, filtered) = (all.clone(), some.clone());
    let layer = TrackEventsLayer::new(handle.clone()).track("all", move |_| async move { every.add() }).track_when(
        "some",
        |request| request.uri.path() != "/healthz",
        async move |exchange| {
            assert_eq!(exchange.outcome, Outcome::Complete);
            assert_eq!(exchange.request.unwrap().uri.path(), "/orders");
            filtered.add();
        },
    );
    for path in ["/orders", "/healthz", "/orders"] {
        let request = Request::builder().uri(path).body(()).unwrap();
        drop(layer.layer(service_fn(ok)).oneshot(request).await.unwrap());
    }
    let report = drain(&handle).await;
    assert_eq!((all.get(), some.get()), (3, 2));
    assert_eq!((report.accepted, report.ended.completed), (5, 5), "{report}");
}

#[tokio::test]
async fn a_panic_of_a_hook_is_counted_as_its_event_and_the_request_is_served() {
    let handle = TrackEventsHandle::new();
    let ran = Counter::default();
    let last = ran.clone();
    let layer = TrackEventsLayer::new(handle.clone())
        .track_from_request("make", |_| -> fn(Exchange) -> std::future::Ready<()> { panic!("in make") })
        .track_when("filter", |_| panic!("in the filter"), |_| async {})
        .track("closure", |_| -> std::future::Ready<()> { panic!("in the closure") })
        .track("last", move |_| async move { last.add() });
    drop(layer.layer(service_fn(ok)).oneshot(Request::new(())).await.unwrap());
    let report = drain(&handle).await;
    assert_eq!((ran.get(), report.accepted), (1, 4));
    let panicked: Vec<_> = report.by_name.iter().map(|(name, failures)| (*name, failures.counts.panicked)).collect();
    assert_eq!(panicked, [("closure", 1), ("filter", 1), ("make", 1)]);
}

#[tokio::test]
async fn the_events_of_a_handler_start_whatever_the_outcome() {
    let (layer, handle) = TrackEventsLayer::pair();
    let ran = Counter::default();
    let track = {
        let ran = ran.clone();
        move |request: &Request<()>| {
            let events = Events::from_extensions(request.extensions()).unwrap();
            let ran = ran.clone();
            events.track("audit", async move { ran.add() }).unwrap();
        }
    };
    let track = &track;

    let fails = layer.layer(service_fn(|request: Request<()>| {
        track(&request);
        async { Err::<Response<Script>, _>("no") }
    }));
    assert!(fails.oneshot(Request::new(())).await.is_err());

    let mut never_ready = layer.layer(service_fn(|request: Request<()>| {
        track(&request);
        pending::<Answer>()
    }));
    let mut future = Box::pin(never_ready.call(Request::new(())));
    assert!(poll_once(&mut future).is_pending());
    run_tasks().await;
    assert_eq!(ran.get(), 1, "the exchange is open");
    drop(future);

    let panics = layer.layer(service_fn(|request: Request<()>| {
        track(&request);
        async { if request.uri().path() == "/" { panic!("in the handler") } else { ok(request).await } }
    }));
    let panicked =
        futures_util::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(panics.oneshot(Request::new(()))));
    assert!(panicked.await.is_err());

    assert_eq!(drain(&handle).await.ended.completed, 3);
    assert_eq!(ran.get(), 3);
}

#[tokio::test]
async fn track_with_gets_the_facts_of_the_exchange() {
    let (layer, handle) = TrackEventsLayer::pair();
    let seen = Seen::default();
    let noted = seen.clone();
    let service = layer.layer(handler(move |events| {
        let noted = noted.clone();
        events.track_with("bill", move |exchange| async move { noted.push(exchange) }).unwrap();
    }));
    let response = service.oneshot(Request::new(())).await.unwrap();
    run_tasks().await;
    assert!(seen.all().is_empty());
    drop(response);
    drain(&handle).await;
    let exchange = seen.only();
    assert_eq!((exchange.outcome, exchange.status.unwrap().as_u16()), (Outcome::Complete, 200));
}

#[tokio::test]
async fn a_panic_of_the_closure_of_track_with_is_counted_as_its_event() {
    let (layer, handle) = TrackEventsLayer::pair();
    let service = layer.layer(handler(|events| {
        events.track_with("closure", |_| -> std::future::Ready<()> { panic!("in the closure") }).unwrap();
        events.track_blocking("after it", || {}).unwrap();
    }));
    drop(service.oneshot(Request::new(())).await.unwrap());
    let report = drain(&handle).await;
    assert_eq!((report.ended.panicked, report.ended.completed), (1, 1));
}

#[tokio::test]
async fn a_permit_of_an_exchange_starts_its_event_when_the_exchange_is_over() {
    let (layer, handle) = TrackEventsLayer::pair();
    let ran = Counter::default();
    let counted = ran.clone();
    let service = layer.layer(handler(move |events| {
        let (async_, blocking) = (counted.clone(), counted.clone());
        events.reserve().unwrap().track("reserved", async move { async_.add() });
        events.reserve().unwrap().track_blocking("reserved", move || blocking.add());
        drop(events.reserve().unwrap());
    }));
    let response = service.oneshot(Request::new(())).await.unwrap();
    run_tasks().await;
    assert_eq!((ran.get(), handle.snapshot().pending, handle.snapshot().reserved), (0, 2, 0));
    drop(response);
    drain(&handle).await;
    assert_eq!(ran.get(), 2);
}

#[tokio::test]
async fn events_tracked_after_their_exchange_start_at_once() {
    let (layer, handle) = TrackEventsLayer::pair();
    let kept = Arc::new(Mutex::new(None));
    let keep = Arc::clone(&kept);
    let service = layer.layer(handler(move |events| {
        *keep.lock().unwrap() = Some((events.clone(), events.reserve().unwrap()));
    }));
    drop(service.oneshot(Request::new(())).await.unwrap());
    let (events, permit) = kept.lock().unwrap().take().unwrap();
    assert_eq!(handle.snapshot().open_requests, 0);

    let seen = Seen::default();
    let noted = seen.clone();
    events.track_with("late", move |exchange| async move { noted.push(exchange) }).unwrap();
    run_tasks().await;
    assert_eq!(seen.only().outcome, Outcome::Complete);

    let (sender, receiver) = oneshot::channel();
    permit.track("reserved", async move { sender.send(()).map_err(|()| "no receiver") });
    receiver.await.unwrap();
    drain(&handle).await;
    // The events of an exchange that is over are rejected after a drain as well.
    assert_eq!(events.track("too late", async {}), Err(TrackError::Closed));
    assert!(events.handle().is_draining());
}

#[tokio::test]
async fn a_request_after_the_drain_is_served_and_its_events_are_rejected() {
    let handle = TrackEventsHandle::new();
    drain(&handle).await;
    let rejected = Counter::default();
    let counted = rejected.clone();
    let layer = TrackEventsLayer::new(handle.clone()).track("audit", |_| async {});
    let service = layer.layer(handler(move |events| {
        if events.track("audit", async {}) == Err(TrackError::Closed) {
            counted.add();
        }
    }));
    let response = service.oneshot(Request::new(())).await.unwrap();
    assert_eq!((response.status().as_u16(), rejected.get()), (200, 1));
    let now = handle.snapshot();
    assert_eq!((now.open_requests, now.accepted, now.rejected), (0, 0, 2));
    drop(response);
    assert!(handle.drain(Duration::ZERO).await.is_ok());
}

#[tokio::test]
async fn at_capacity_the_request_is_served_and_the_rejection_is_counted() {
    let handle = TrackEventsHandle::builder().capacity(1).build().unwrap();
    let seen = Seen::default();
    let layer = seen.layer(&handle);
    handle.track("takes the only slot", pending::<()>()).unwrap();
    drop(layer.layer(service_fn(ok)).oneshot(Request::new(())).await.unwrap());
    run_tasks().await;
    assert_eq!((seen.all().len(), handle.snapshot().rejected), (0, 1));
}

#[tokio::test]
async fn two_layers_on_one_handle_open_one_exchange_with_the_events_of_both() {
    let handle = TrackEventsHandle::new();
    let (outer, middle, inner) = (Seen::default(), Seen::default(), Seen::default());
    let tracked = Counter::default();
    let counted = tracked.clone();
    let service =
        outer.layer(&handle).layer(middle.layer(&handle).layer(inner.layer(&handle).layer(handler(move |events| {
            let counted = counted.clone();
            events.track("tracked", async move { counted.add() }).unwrap();
        }))));
    let response = service.oneshot(Request::new(())).await.unwrap();
    assert_eq!(handle.snapshot().open_requests, 1);
    drop(response);
    drain(&handle).await;
    assert_eq!((outer.only(), tracked.get()), (inner.only(), 1));
    assert_eq!(outer.only(), middle.only());
}

#[tokio::test]
async fn the_same_layer_twice_tracks_its_events_once() {
    let handle = TrackEventsHandle::new();
    let (seen, between) = (Seen::default(), Seen::default());
    let layer = seen.layer(&handle);
    let service = layer.layer(layer.clone().layer(service_fn(ok)));
    drop(service.oneshot(Request::new(())).await.unwrap());
    run_tasks().await;
    seen.only();
    // Also with another layer between, and when the inner layer repeats.
    let other = between.layer(&handle);
    let service = layer.layer(other.layer(layer.layer(other.layer(service_fn(ok)))));
    drop(service.oneshot(Request::new(())).await.unwrap());
    drain(&handle).await;
    assert_eq!((seen.all().len(), between.all().len()), (2, 1));
}

#[tokio::test]
async fn with_different_handles_each_layer_runs_and_the_inner_one_is_extracted() {
    let (outer, inner) = (TrackEventsHandle::new(), TrackEventsHandle::new());
    let (seen_outer, seen_inner) = (Seen::default(), Seen::default());
    let service = seen_outer.layer(&outer).layer(seen_inner.layer(&inner).layer(handler(|events| {
        events.track("tracked", async {}).unwrap();
    })));
    drop(service.oneshot(Request::new(())).await.unwrap());
    assert_eq!((outer.snapshot().accepted, inner.snapshot().accepted), (1, 2));
    drain(&outer).await;
    drain(&inner).await;
    assert_eq!((seen_outer.all().len(), seen_inner.all().len()), (1, 1));
}

#[tokio::test]
async fn a_layer_inside_and_outside_of_that_of_another_handle_opens_one_exchange() {
    let (handle, other) = (TrackEventsHandle::new(), TrackEventsHandle::new());
    let (seen, between) = (Seen::default(), Seen::default());
    let layer = seen.layer(&handle);
    let service = layer.layer(between.layer(&other).layer(layer.layer(service_fn(ok))));
    let response = service.oneshot(Request::new(())).await.unwrap();
    assert_eq!((handle.snapshot().open_requests, other.snapshot().open_requests), (1, 1));
    drop(response);
    drain(&handle).await;
    drain(&other).await;
    seen.only();
    between.only();
}

#[tokio::test]
async fn the_extensions_of_an_answered_request_open_a_new_exchange() {
    let handle = TrackEventsHandle::new();
    let seen = Seen::default();
    let layer = seen.layer(&handle);
    let copied: Arc<Mutex<Option<Extensions>>> = Arc::default();
    let keep = Arc::clone(&copied);
    let service = layer.layer(service_fn(move |request: Request<()>| {
        let first = keep.lock().unwrap().replace(request.extensions().clone()).is_none();
        async move {
            assert!(first);
            Answer::Ok(Response::new(Script::empty()))
        }
    }));
    drop(service.oneshot(Request::new(())).await.unwrap());

    let mut second = Request::new(());
    *second.extensions_mut() = copied.lock().unwrap().clone().unwrap();
    let service = layer.layer(service_fn(ok));
    let response = service.oneshot(second).await.unwrap();
    assert_eq!(handle.snapshot().open_requests, 1);
    drop(response);
    drain(&handle).await;
    assert_eq!(seen.all().len(), 2);
}

#[tokio::test]
async fn an_inner_request_with_copied_extensions_is_part_of_the_open_exchange() {
    let handle = TrackEventsHandle::new();
    let seen = Seen::default();
    let layer = seen.layer(&handle);
    let again = layer.clone();
    let service = layer.layer(service_fn(move |request: Request<()>| {
        let inner = again.layer(service_fn(ok));
        async move {
            let mut subrequest = Request::new(());
            *subrequest.extensions_mut() = request.extensions().clone();
            drop(inner.oneshot(subrequest).await.unwrap());
            ok(request).await
        }
    }));
    let response = service.oneshot(Request::new(())).await.unwrap();
    run_tasks().await;
    assert!(seen.all().is_empty(), "the end of the inner request is not the end of the exchange");
    drop(response);
    drain(&handle).await;
    seen.only();
}

#[tokio::test]
async fn a_handle_from_events_is_the_same_handle() {
    let (layer, handle) = TrackEventsLayer::pair();
    let service = layer.layer(handler(|events| {
        let guard = events.handle().guard().unwrap();
        assert_eq!(events.handle().snapshot().open_guards, 1);
        drop(guard);
        events.handle().track("at once", async {}).unwrap();
    }));
    // Also when the handle and the layer have been dropped.
    let watch = handle.clone();
    let mut alone = TrackEvents::new(
        service_fn(|request: Request<()>| async move {
            let events = Events::from_extensions(request.extensions()).unwrap().clone();
            Ok::<_, std::convert::Infallible>(Response::new(Script::empty().on_drop(move || {
                events.handle().track("at once", async {}).unwrap();
            })))
        }),
        TrackEventsHandle::new(),
    );
    let orphan = alone.call(Request::new(())).await.unwrap();
    drop(alone);
    drop(orphan);
    drop(service.oneshot(Request::new(())).await.unwrap());
    assert_conserved(&watch.snapshot());
    assert_eq!(drain(&watch).await.ended.completed, 1);
}

#[tokio::test]
async fn the_service_returns_its_inner_service_and_its_handle() {
    let (layer, handle) = TrackEventsLayer::pair();
    let mut service = layer.layer(7);
    *service.get_mut() += 1;
    assert_eq!((*service.get_ref(), layer.handle().is_draining()), (8, false));
    handle.begin_drain();
    assert!(service.handle().is_draining());
    assert_eq!(service.into_inner(), 8);
}

#[tokio::test]
async fn the_request_is_known_where_a_layer_has_hooks() {
    let handle = TrackEventsHandle::new();
    let seen = Seen::default();
    let track = {
        let seen = seen.clone();
        move |events: &Events| {
            let sees = seen.clone();
            events.track_with("audit", async move |exchange| sees.push(exchange)).unwrap();
        }
    };
    let request = || Request::put("/orders/7?dry=1").version(Version::HTTP_2).body(()).unwrap();
    let without = TrackEventsLayer::new(handle.clone());
    drop(without.layer(handler(track.clone())).oneshot(request()).await.unwrap());
    drop(without.observe(|_| {}).layer(handler(track)).oneshot(request()).await.unwrap());
    drain(&handle).await;

    let all = seen.all();
    assert_eq!(all[0].request, None);
    let RequestInfo { method, uri, version, .. } = all[1].request.clone().unwrap();
    assert_eq!((method, uri.to_string().as_str(), version), (Method::PUT, "/orders/7?dry=1", Version::HTTP_2));
}

/// The forms that people write first; state that events share is in an `Arc`.
#[tokio::test]
async fn a_hook_is_cloned_for_each_event() {
    #[derive(Clone)]
    struct Db(Counter);
    impl Db {
        async fn audit(&self, exchange: &Exchange) -> std::io::Result<()> {
            assert_eq!(exchange.outcome, Outcome::Complete);
            self.0.add();
            Ok(())
        }
    }
    let handle = TrackEventsHandle::new();
    let (first, second, third) = (Db(Counter::default()), Db(Counter::default()), Db(Counter::default()));
    let (one, two, three) = (first.clone(), second.clone(), third.clone());
    let layer = handle
        .layer()
        .track("closure", move |exchange| async move { one.audit(&exchange).await })
        .track("async closure", async move |exchange| two.audit(&exchange).await)
        .track_when(
            "filtered",
            |request| request.method == Method::GET,
            async move |exchange| three.audit(&exchange).await,
        );
    for method in [Method::GET, Method::POST, Method::GET] {
        let request = Request::builder().method(method).body(()).unwrap();
        drop(layer.layer(service_fn(ok)).oneshot(request).await.unwrap());
    }
    drain(&handle).await;
    assert_eq!([first, second, third].map(|db| db.0.get()), [3, 3, 2]);
}

#[tokio::test]
async fn a_clone_that_is_changed_is_another_layer() {
    let handle = TrackEventsHandle::new();
    let (base, more) = (Counter::default(), Counter::default());
    let (counts, counts_more) = (base.clone(), more.clone());
    let layer = handle.layer().observe(move |_| counts.add());
    let changed = layer.clone().observe(move |_| counts_more.add());
    drop(layer.layer(service_fn(ok)).oneshot(Request::new(())).await.unwrap());
    assert_eq!((base.get(), more.get()), (1, 0));
    // Around each other they are two layers, and each adds its own.
    drop(changed.layer(layer.layer(service_fn(ok))).oneshot(Request::new(())).await.unwrap());
    assert_eq!((base.get(), more.get()), (3, 1));
    drain(&handle).await;
}
