//! Each case of the outcome rule, and when the events start.

use std::{
    cell::Cell,
    convert::Infallible,
    future::{pending, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Method, Request, Response, StatusCode, Version, header};
use http_body::{Body, Frame};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_track_events::{Events, Exchange, Outcome, TrackEventsHandle, TrackEventsLayer};

use crate::support::{Answer, Counter, Script, Seen, Step, drain, next_frame, poll_once, run_tasks};
use Step::{Data, End, Error, Panic, Trailers};

/// The server polls the body until its end.
const TO_THE_END: usize = usize::MAX;

struct Case {
    what: &'static str,
    request: (Method, Version),
    response: http::response::Builder,
    body: Script,
    /// How many frames the server polls before it drops the body.
    polls: usize,
    outcome: Outcome,
    bytes: u64,
    grpc_status: Option<i32>,
}

fn case(what: &'static str, body: Script, polls: usize, outcome: Outcome, bytes: u64) -> Case {
    Case {
        what,
        request: (Method::GET, Version::HTTP_11),
        response: Response::builder(),
        body,
        polls,
        outcome,
        bytes,
        grpc_status: None,
    }
}

impl Case {
    fn method(mut self, method: Method) -> Self {
        self.request.0 = method;
        self
    }

    fn http2(mut self) -> Self {
        self.request.1 = Version::HTTP_2;
        self
    }

    fn status(mut self, status: u16) -> Self {
        self.response = self.response.status(status);
        self
    }

    fn header(mut self, name: &str, value: &str) -> Self {
        self.response = self.response.header(name, value);
        self
    }

    fn length(self, value: &str) -> Self {
        self.header("content-length", value)
    }

    fn grpc(mut self, status: i32) -> Self {
        self.grpc_status = Some(status);
        self
    }
}

fn cases() -> Vec<Case> {
    use Outcome::{Aborted, BodyError, Complete, LengthMismatch, Upgraded};
    let two = || Script::new([Data(b"ab"), Data(b"cd"), End]);
    let open = || Script::new([Data(b"ab")]);
    vec![
        // Rule 3: upgrades.
        case("101", Script::empty(), 0, Upgraded, 0).status(101),
        case("2xx to CONNECT", Script::empty(), 0, Upgraded, 0).method(Method::CONNECT),
        case("2xx to CONNECT on HTTP/2", open(), 1, Upgraded, 2).method(Method::CONNECT).http2(),
        case("a rejected CONNECT", Script::empty(), 0, Complete, 0).method(Method::CONNECT).status(403),
        // Rule 4 comes before rule 5.
        case("an error of the body", Script::new([Data(b"ab"), Error]), 2, BodyError, 2),
        case("an error before any data", Script::new([Error]), 1, BodyError, 0),
        case("an error of a body that is polled for HEAD", Script::new([Error]), 1, BodyError, 0).method(Method::HEAD),
        case("an error at the declared length on HTTP/2", Script::new([Data(b"ab"), Error]), 2, BodyError, 2)
            .length("2")
            .http2(),
        // Rule 5: no body is sent.
        case("HEAD, body dropped unpolled", two(), 0, Complete, 0).method(Method::HEAD),
        case("HEAD with a declared length", two(), 0, Complete, 0).method(Method::HEAD).length("4"),
        case("204 with a body", two(), 0, Complete, 0).status(204),
        case("304 with a length", two(), 0, Complete, 0).status(304).length("4"),
        // Rule 6: the declared length was seen.
        case("the declared length on HTTP/1, no end seen", Script::new([Data(b"ab"), Data(b"cd")]), 2, Complete, 4)
            .length("4"),
        case("the declared length on HTTP/2, no end seen", Script::new([Data(b"ab"), Data(b"cd")]), 2, Complete, 4)
            .length("4")
            .http2(),
        case("an exact size, no end seen", Script::new([Data(b"abcd")]).exact(4), 1, Complete, 4),
        case("a declared length of zero, never polled", Script::new([]), 0, Complete, 0).length("0"),
        case("the header says more than the size hint", Script::new([Data(b"ab"), End]).exact(2), 2, LengthMismatch, 2)
            .length("4"),
        // Rule 7: declared, ended, and the bytes differ.
        case("less than declared, then the end", open_end(), 2, LengthMismatch, 2).length("4"),
        case("less than declared, then trailers", Script::new([Data(b"ab"), Trailers(&[])]), 2, LengthMismatch, 2)
            .length("4"),
        case("more than declared on HTTP/1", two(), 2, LengthMismatch, 4).length("3"),
        case("more than declared on HTTP/2", two(), TO_THE_END, LengthMismatch, 4).length("3").http2(),
        case("an empty body with a declared length", Script::empty(), 0, LengthMismatch, 0).length("4"),
        // Rule 8: an end was seen.
        case("None", two(), TO_THE_END, Complete, 4),
        case("None without data", Script::new([End]), 1, Complete, 0),
        case("an empty body, never polled", Script::empty(), 0, Complete, 0),
        case("end of stream with the last frame", two().claims_end_at(1), 2, Complete, 4),
        case("trailers", Script::new([Data(b"ab"), Trailers(&[("grpc-status", "0")])]), 2, Complete, 2).http2().grpc(0),
        case(
            "trailers after the declared length",
            Script::new([Data(b"ab"), Trailers(&[("grpc-status", "5")])]),
            2,
            Complete,
            2,
        )
        .length("2")
        .http2()
        .grpc(5),
        case("grpc-status in the head", Script::empty(), 0, Complete, 0).header("grpc-status", "12").http2().grpc(12),
        case("grpc-status in both", Script::new([Trailers(&[("grpc-status", "3")])]), 1, Complete, 0)
            .header("grpc-status", "0")
            .http2()
            .grpc(3),
        case("grpc-status that is no number", Script::empty(), 0, Complete, 0).header("grpc-status", "ok"),
        // Rule 9: dropped before any of these.
        case("dropped mid-stream", two(), 1, Aborted, 2),
        case("dropped before the first frame", two(), 0, Aborted, 0),
        case("dropped while idle", open(), 2, Aborted, 2),
        case("dropped short of its declared length", two(), 1, Aborted, 2).length("4"),
        // Lengths that cannot be used declare nothing.
        case("a length that is no number", open(), 1, Aborted, 2).length("two"),
        case("a length with a sign", open(), 1, Aborted, 2).length("+2"),
        case("a length beyond 64 bits", open_end(), TO_THE_END, Complete, 2).length("99999999999999999999"),
        case("two lengths that differ", open_end(), TO_THE_END, Complete, 2).length("2").length("3"),
        case("the same length twice", open(), 1, Complete, 2).length("2").length("2"),
        // The status does not change the outcome.
        case("500, complete", two(), TO_THE_END, Complete, 4).status(500),
    ]
}

fn open_end() -> Script {
    Script::new([Data(b"ab"), End])
}

async fn exchange_of(case: Case) -> Exchange {
    let handle = TrackEventsHandle::new();
    let seen = Seen::default();
    let response = Cell::new(Some(case.response.body(case.body).unwrap()));
    let service = seen.layer(&handle).layer(service_fn(|_: Request<()>| {
        let response = response.take().unwrap();
        async move { Answer::Ok(response) }
    }));
    let (method, version) = case.request;
    let request = Request::builder().method(method).version(version).body(()).unwrap();
    let mut response = service.oneshot(request).await.unwrap();
    for _ in 0..case.polls {
        if !matches!(next_frame(pin!(response.body_mut())).await, Some(Some(_))) {
            break;
        }
    }
    drop(response);
    drain(&handle).await;
    seen.only()
}

#[tokio::test(start_paused = true)]
async fn every_response_ends_as_the_rule_says() {
    for case in cases() {
        let (what, version) = (case.what, case.request.1);
        let (outcome, bytes, grpc_status) = (case.outcome, case.bytes, case.grpc_status);
        let exchange = exchange_of(case).await;
        assert_eq!(
            (exchange.outcome, exchange.body_bytes, exchange.grpc_status),
            (outcome, bytes, grpc_status),
            "{what} ({version:?})"
        );
        assert!(exchange.status.is_some(), "{what}");
    }
}

/// How many events have started after each poll: on which frame the response is over.
async fn started_after_each_poll(case: Case) -> Vec<usize> {
    let handle = TrackEventsHandle::new();
    let seen = Seen::default();
    let response = Cell::new(Some(case.response.body(case.body).unwrap()));
    let service = seen.layer(&handle).layer(service_fn(|_: Request<()>| {
        let response = response.take().unwrap();
        async move { Answer::Ok(response) }
    }));
    let request = Request::builder().version(case.request.1).body(()).unwrap();
    let mut response = service.oneshot(request).await.unwrap();
    run_tasks().await;
    let mut started = vec![seen.all().len()];
    for _ in 0..case.polls {
        let _ = next_frame(pin!(response.body_mut())).await;
        run_tasks().await;
        started.push(seen.all().len());
    }
    drop(response);
    run_tasks().await;
    started.push(seen.all().len());
    started
}

#[tokio::test]
async fn events_start_at_the_first_terminal_frame_or_else_at_the_drop() {
    let two = || Script::new([Data(b"ab"), Data(b"cd"), End]);
    let any = Outcome::Complete;
    // Before any frame, after each, after the drop.
    assert_eq!(started_after_each_poll(case("", two(), 3, any, 0)).await, [0, 0, 0, 1, 1]);
    assert_eq!(started_after_each_poll(case("", two().claims_end_at(1), 2, any, 0)).await, [0, 0, 1, 1]);
    assert_eq!(started_after_each_poll(case("", two(), 2, any, 0).length("4")).await, [0, 0, 1, 1]);
    // Trailers may follow on HTTP/2.
    assert_eq!(started_after_each_poll(case("", two(), 2, any, 0).length("4").http2()).await, [0, 0, 0, 1]);
    assert_eq!(started_after_each_poll(case("", two(), 3, any, 0).length("4").http2()).await, [0, 0, 0, 1, 1]);
    assert_eq!(started_after_each_poll(case("", Script::new([Error, Data(b"a")]), 2, any, 0)).await, [0, 1, 1, 1]);
    // That a body is empty is known at the head, but its response is over with its drop.
    assert_eq!(started_after_each_poll(case("", Script::empty(), 0, any, 0)).await, [0, 1]);
}

#[tokio::test]
async fn an_end_that_becomes_known_between_the_last_frame_and_the_drop_is_complete() {
    let handle = TrackEventsHandle::new();
    let seen = Seen::default();
    let service = seen.layer(&handle).layer(service_fn(|_: Request<()>| async {
        Answer::Ok(Response::new(Script::new([Data(b"ab"), End]).claims_end_at(0)))
    }));
    let mut response = service.oneshot(Request::new(())).await.unwrap();
    assert!(matches!(next_frame(pin!(response.body_mut())).await, Some(Some(_))));
    assert!(!response.body().is_end_stream());
    // Not through the layer, as when the peer of a forwarded body finishes in the meantime.
    response.body_mut().get_mut().steps.clear();
    drop(response);
    drain(&handle).await;
    assert_eq!(seen.only().outcome, Outcome::Complete);
}

#[tokio::test]
async fn the_body_is_fused_after_its_end_but_not_after_an_error() {
    let (layer, _handle) = TrackEventsLayer::pair();
    let service = layer.layer(service_fn(|_: Request<()>| async {
        Answer::Ok(Response::new(Script::new([Error, Data(b"ab"), End, Data(b"never seen")])))
    }));
    let mut response = service.oneshot(Request::new(())).await.unwrap();
    let mut body = pin!(response.body_mut());
    assert!(matches!(next_frame(body.as_mut()).await, Some(Some(Err(_)))));
    assert!(matches!(next_frame(body.as_mut()).await, Some(Some(Ok(_)))));
    assert!(matches!(next_frame(body.as_mut()).await, Some(None)));
    assert!(matches!(next_frame(body.as_mut()).await, Some(None)));
}

#[tokio::test]
async fn a_service_that_fails_is_a_service_error() {
    let handle = TrackEventsHandle::new();
    let seen = Seen::default();
    let service =
        seen.layer(&handle).layer(service_fn(|_: Request<()>| async { Err::<Response<Script>, _>("out of order") }));
    assert_eq!(service.oneshot(Request::new(())).await.err(), Some("out of order"));
    drain(&handle).await;
    let exchange = seen.only();
    assert_eq!((exchange.outcome, exchange.status, exchange.time_to_head), (Outcome::ServiceError, None, None));
}

#[tokio::test]
async fn a_future_dropped_before_it_is_ready_is_no_response() {
    for polls in 0..2 {
        let handle = TrackEventsHandle::new();
        let seen = Seen::default();
        let mut service = seen.layer(&handle).layer(service_fn(|_: Request<()>| pending::<Answer>()));
        let mut future = Box::pin(service.call(Request::new(())));
        for _ in 0..polls {
            assert!(poll_once(&mut future).is_pending());
        }
        assert_eq!(handle.snapshot().open_requests, 1);
        drop(future);
        drain(&handle).await;
        assert_eq!(seen.only().outcome, Outcome::NoResponse, "{polls} polls");
    }
}

#[tokio::test]
async fn a_panic_of_the_service_differs_from_an_abort_also_when_it_is_caught() {
    // Where the service panics: in `call`, in its future, in its body.
    type Panicking = fn(Request<()>) -> std::pin::Pin<Box<dyn Future<Output = Answer> + Send>>;
    let in_call: Panicking = |_| panic!("in call");
    let in_future: Panicking = |_| Box::pin(async { panic!("in the future") });
    for panicking in [in_call, in_future] {
        let handle = TrackEventsHandle::new();
        let seen = Seen::default();
        let mut service = seen.layer(&handle).layer(service_fn(panicking));
        // Caught outside of the layer, as middleware does: at the drop the thread is not panicking.
        let caught = catch_unwind(AssertUnwindSafe(|| service.call(Request::new(()))));
        if let Ok(future) = caught {
            assert!(AssertUnwindSafe(future).catch_unwind().await.is_err());
        }
        drain(&handle).await;
        assert_eq!(seen.only().outcome, Outcome::Panicked);
    }

    let handle = TrackEventsHandle::new();
    let seen = Seen::default();
    let service = seen.layer(&handle).layer(service_fn(|_: Request<()>| async {
        Answer::Ok(Response::new(Script::new([Data(b"ab"), Panic, Data(b"cd")])))
    }));
    let mut response = service.oneshot(Request::new(())).await.unwrap();
    let mut body = pin!(response.body_mut());
    assert!(next_frame(body.as_mut()).await.is_some());
    assert!(AssertUnwindSafe(next_frame(body.as_mut())).catch_unwind().await.is_err());
    run_tasks().await;
    assert!(seen.all().is_empty(), "the response is over when the body is dropped");
    drop(response);
    drain(&handle).await;
    let exchange = seen.only();
    assert_eq!((exchange.outcome, exchange.body_bytes), (Outcome::Panicked, 2));
}

#[tokio::test]
async fn a_body_that_is_polled_after_its_panic_ends_the_exchange_as_panicked() {
    let handle = TrackEventsHandle::new();
    let seen = Seen::default();
    let service = seen.layer(&handle).layer(service_fn(|_: Request<()>| async {
        Answer::Ok(Response::new(Script::new([Panic, Data(b"ab"), End])))
    }));
    let mut response = service.oneshot(Request::new(())).await.unwrap();
    let mut body = pin!(response.body_mut());
    assert!(AssertUnwindSafe(next_frame(body.as_mut())).catch_unwind().await.is_err());
    while !matches!(next_frame(body.as_mut()).await, Some(None)) {}
    drop(response);
    drain(&handle).await;
    assert_eq!(seen.only().outcome, Outcome::Panicked);
}

/// Panics when it is polled, and counts calls of `is_end_stream`.
struct PanicsAndCounts(Counter);

impl Body for PanicsAndCounts {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        panic!("a body that panics")
    }

    fn is_end_stream(&self) -> bool {
        self.0.add();
        true
    }
}

#[tokio::test]
async fn a_body_that_has_panicked_is_not_called_again() {
    let handle = TrackEventsHandle::new();
    let (seen, calls) = (Seen::default(), Counter::default());
    let service = seen.layer(&handle).layer(service_fn(|_: Request<()>| async {
        Ok::<_, Infallible>(Response::new(PanicsAndCounts(calls.clone())))
    }));
    let mut response = service.oneshot(Request::new(())).await.unwrap();
    let before = calls.get();
    assert!(AssertUnwindSafe(next_frame(pin!(response.body_mut()))).catch_unwind().await.is_err());
    drop(response);
    drain(&handle).await;
    assert_eq!((seen.only().outcome, calls.get()), (Outcome::Panicked, before));
}

#[tokio::test(start_paused = true)]
async fn times_count_from_the_call() {
    let handle = TrackEventsHandle::new();
    let seen = Seen::default();
    let service = seen.layer(&handle).layer(service_fn(|_: Request<()>| async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        Answer::Ok(Response::new(Script::new([])))
    }));
    let response = service.oneshot(Request::new(())).await.unwrap();
    tokio::time::advance(Duration::from_secs(3)).await;
    drop(response);
    drain(&handle).await;
    let exchange = seen.only();
    assert_eq!(exchange.time_to_head, Some(Duration::from_secs(2)));
    assert_eq!(exchange.elapsed, Duration::from_secs(5));
}

#[tokio::test]
async fn the_exchange_stays_open_until_the_body_is_dropped() {
    let (layer, handle) = TrackEventsLayer::pair();
    let billed = Counter::default();
    let service = {
        let billed = billed.clone();
        layer.layer(service_fn(move |request: Request<()>| {
            let events = Events::from_extensions(request.extensions()).unwrap().clone();
            let billed = billed.clone();
            let body = Script::new([Data(b"ab"), End]).on_drop(move || {
                events.track("bill", async move { billed.add() }).unwrap();
            });
            async move { Answer::Ok(Response::new(body)) }
        }))
    };
    let mut response = service.oneshot(Request::new(())).await.unwrap();
    let mut body = pin!(response.body_mut());
    assert!(matches!(next_frame(body.as_mut()).await, Some(Some(_))));
    assert!(matches!(next_frame(body.as_mut()).await, Some(None)));
    // The response is over and its events have started, but the destructor has not run.
    assert!(matches!(poll_once(handle.drain(Duration::ZERO)), Poll::Ready(Err(_))));
    assert_eq!(handle.snapshot().open_requests, 1);
    drop(response);
    assert_eq!((handle.snapshot().open_requests, handle.snapshot().pending), (0, 1));
    drain(&handle).await;
    assert_eq!(billed.get(), 1);
}

#[tokio::test]
async fn an_event_tracked_by_the_destructor_of_the_future_belongs_to_the_exchange() {
    struct BillOnDrop(Events, Counter);
    impl Drop for BillOnDrop {
        fn drop(&mut self) {
            let billed = self.1.clone();
            self.0.track("bill", async move { billed.add() }).unwrap();
        }
    }
    let (layer, handle) = TrackEventsLayer::pair();
    let billed = Counter::default();
    let mut service = {
        let billed = billed.clone();
        layer.layer(service_fn(move |request: Request<()>| {
            let bill = BillOnDrop(Events::from_extensions(request.extensions()).unwrap().clone(), billed.clone());
            async move {
                let _bill = bill;
                pending::<Answer>().await
            }
        }))
    };
    let mut future = Box::pin(service.call(Request::new(())));
    assert!(poll_once(&mut future).is_pending());
    drop(future);
    assert_eq!((handle.snapshot().open_requests, handle.snapshot().pending), (0, 1));
    drain(&handle).await;
    assert_eq!(billed.get(), 1);
}

#[tokio::test]
async fn the_future_is_dropped_when_it_is_ready_and_not_with_its_wrapper() {
    /// A future that owns something until it is dropped, ready or not.
    struct Owner(Counter);
    impl Future for Owner {
        type Output = Answer;
        fn poll(self: std::pin::Pin<&mut Self>, _: &mut std::task::Context<'_>) -> Poll<Answer> {
            Poll::Ready(Ok(Response::new(Script::empty())))
        }
    }
    impl Drop for Owner {
        fn drop(&mut self) {
            self.0.add();
        }
    }
    let (layer, _handle) = TrackEventsLayer::pair();
    let dropped = Counter::default();
    let mut service = layer.layer(service_fn(|_: Request<()>| Owner(dropped.clone())));
    let mut future = service.call(Request::new(()));
    let Poll::Ready(Ok(_response)) = poll_once(&mut future) else { panic!("ready at once") };
    assert_eq!(dropped.get(), 1, "an event of its destructor belongs to the open exchange");
}

#[tokio::test(start_paused = true)]
async fn the_facts_of_an_exchange_are_those_of_its_end() {
    let (layer, handle) = TrackEventsLayer::pair();
    let kept = std::sync::Mutex::new(None);
    let service = layer.layer(service_fn(|request: Request<()>| {
        *kept.lock().unwrap() = Events::from_extensions(request.extensions()).cloned();
        async { Answer::Ok(Response::new(Script::new([Data(b"ab"), Error, Data(b"cd"), End]))) }
    }));
    let mut response = service.oneshot(Request::new(())).await.unwrap();
    let events = kept.lock().unwrap().take().unwrap();
    let seen = Seen::default();
    let track = || {
        let seen = seen.clone();
        events.track_with("facts", |exchange| async move { seen.push(exchange) }).unwrap();
    };
    tokio::time::advance(Duration::from_secs(1)).await;
    for _ in 0..4 {
        // Tracked before the end, and after each later frame.
        track();
        let _ = next_frame(pin!(response.body_mut())).await;
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    drop(response);
    track();
    drain(&handle).await;
    let all = seen.all();
    assert_eq!((all.len(), all[0].outcome, all[0].body_bytes), (5, Outcome::BodyError, 2));
    assert_eq!(all[0].elapsed.as_secs(), 2);
    assert!(all.iter().all(|exchange| *exchange == all[0]), "{all:?}");
}

#[tokio::test]
async fn a_response_after_a_panic_changes_no_facts() {
    let handle = TrackEventsHandle::new();
    let seen = Seen::default();
    let (early, late) = (seen.clone(), seen.clone());
    let kept = std::sync::Mutex::new(None);
    let service = TrackEventsLayer::new(handle.clone()).layer(service_fn(|request: Request<()>| {
        *kept.lock().unwrap() = Events::from_extensions(request.extensions()).cloned();
        let mut has_panicked = false;
        poll_fn(move |_| {
            if !std::mem::replace(&mut has_panicked, true) {
                panic!("a service that panics and continues");
            }
            Poll::Ready(Answer::Ok(Response::builder().status(201).body(Script::new([Data(b"ab"), End])).unwrap()))
        })
    }));
    let mut response = pin!(service.oneshot(Request::new(())));
    assert!(catch_unwind(AssertUnwindSafe(|| poll_once(response.as_mut()))).is_err());
    let events = kept.lock().unwrap().take().unwrap();
    events.track_with("early", |exchange| async move { early.push(exchange) }).unwrap();
    let mut response = response.await.unwrap();
    while !matches!(next_frame(pin!(response.body_mut())).await, Some(None)) {}
    drop(response);
    events.track_with("late", |exchange| async move { late.push(exchange) }).unwrap();
    drain(&handle).await;
    for exchange in seen.all() {
        assert_eq!((exchange.outcome, exchange.status, exchange.body_bytes), (Outcome::Panicked, None, 0));
    }
    assert_eq!(seen.all().len(), 2);
}

#[tokio::test]
async fn status_headers_size_and_end_pass_through() {
    let (layer, _handle) = TrackEventsLayer::pair();
    let service = layer.layer(service_fn(|_: Request<()>| async {
        let body = Script::new([Data(b"ab")]).exact(2).claims_end_at(0);
        Answer::Ok(Response::builder().status(418).header(header::ETAG, "x").body(body).unwrap())
    }));
    let mut response = service.oneshot(Request::new(())).await.unwrap();
    assert_eq!(response.status(), StatusCode::IM_A_TEAPOT);
    assert_eq!(response.headers().len(), 1);
    assert_eq!(response.body().size_hint().exact(), Some(2));
    assert!(!response.body().is_end_stream());
    let frame = next_frame(pin!(response.body_mut())).await.unwrap().unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), "ab");
    assert!(response.body().is_end_stream());
}

#[tokio::test]
async fn a_service_that_is_not_send_works() {
    let (layer, handle) = TrackEventsLayer::pair();
    let calls = Rc::new(Cell::new(0));
    let mut service = layer.layer(service_fn(|request: Request<()>| {
        let calls = Rc::clone(&calls);
        async move {
            calls.set(calls.get() + 1);
            Events::from_extensions(request.extensions()).unwrap().track("audit", async {}).unwrap();
            Ok::<_, Infallible>(Response::new(Script::empty()))
        }
    }));
    drop(service.ready().await.unwrap().call(Request::new(())).await.unwrap());
    assert_eq!((calls.get(), drain(&handle).await.ended.completed), (1, 1));
}

#[test]
fn each_outcome_has_its_name_and_one_is_complete() {
    let names = [
        (Outcome::Panicked, "panicked"),
        (Outcome::NoResponse, "no_response"),
        (Outcome::ServiceError, "service_error"),
        (Outcome::Upgraded, "upgraded"),
        (Outcome::BodyError, "body_error"),
        (Outcome::Complete, "complete"),
        (Outcome::LengthMismatch, "length_mismatch"),
        (Outcome::Aborted, "aborted"),
        (Outcome::Unfinished, "unfinished"),
    ];
    for (outcome, name) in names {
        assert_eq!((outcome.as_str(), outcome.to_string().as_str()), (name, name));
        assert_eq!(outcome.is_complete(), outcome == Outcome::Complete);
    }
}
