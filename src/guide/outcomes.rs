//! When an exchange is over, and how it ended.
//!
//! A layer does not see the client. It sees what passes through it: the call of the service, its future, the head of
//! the response, each frame of the body, and the moment in which the server drops the future or the body. From these it
//! tells eight outcomes apart. This page has a section for each, in the order in which the rule looks at them: the
//! first that matches wins.
//!
//! | outcome | what was seen | when the events start | `status`, `time_to_head` |
//! |---|---|---|---|
//! | [`Panicked`](#panicked) | the service panicked | when what panicked is dropped | `Some` if its body panicked |
//! | [`NoResponse`](#noresponse) | the future was dropped before it was ready | at that drop | `None` |
//! | [`ServiceError`](#serviceerror) | the service returned an error | at once | `None` |
//! | [`Upgraded`](#upgraded) | 101, or 2xx to `CONNECT` | when the body is dropped | `Some` |
//! | [`BodyError`](#bodyerror) | the body yielded an error | at once | `Some` |
//! | [`Complete`](#complete) | the last of the response | with the last frame, or when the body is dropped | `Some` |
//! | [`LengthMismatch`](#lengthmismatch) | an end, at another length than declared | like `Complete` | `Some` |
//! | [`Aborted`](#aborted) | none of these | when the body is dropped | `Some` |
//!
//! The events of an exchange start once, whatever the outcome. What [`Exchange`] says is fixed in that moment, and is
//! the same for all of them. `body_bytes` are the bytes of data that this layer has handed on by then, zero if there
//! was no body; `elapsed` is the time from the call of the service; `grpc_status` is [below](#grpc).
//!
//! The response being over is one thing, and the exchange being closed another: an exchange stays open, and a drain
//! waits for it, until the body has been dropped, or the future if there was no response. Its destructor may still
//! record events of this exchange.
//!
//! # A first look
//!
//! The examples of this page poll the body by hand, as a server does. `told` receives what the event of the layer is
//! told. Here a body of one frame says that it is at its end as soon as the frame was taken:
//!
//! ```
//! use std::convert::Infallible;
//!
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::{BodyExt, Full};
//! use tokio::sync::mpsc;
//! use tower::{Layer, ServiceExt, service_fn};
//! use tower_track_events::{Exchange, Outcome, TrackEventsHandle, TrackEventsLayer};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let (tell, mut told) = mpsc::unbounded_channel();
//! let handle = TrackEventsHandle::new();
//! let layer = TrackEventsLayer::builder(handle.clone())
//!     .track("tell", move |_request| {
//!         let tell = tell.clone();
//!         move |exchange: Exchange| async move { tell.send(exchange).map_err(|_| "nobody listens") }
//!     })
//!     .build();
//! let service = layer.layer(service_fn(|_: Request<()>| async {
//!     Ok::<_, Infallible>(Response::new(Full::new(Bytes::from("hello"))))
//! }));
//!
//! let mut response = service.oneshot(Request::new(())).await.unwrap();
//! assert!(told.try_recv().is_err()); // the body has not been polled
//! response.body_mut().frame().await;
//! let exchange = told.recv().await.unwrap(); // over with its last frame
//! assert_eq!((exchange.outcome, exchange.body_bytes), (Outcome::Complete, 5));
//!
//! assert_eq!(handle.snapshot().open_requests, 1); // but open until the body is dropped
//! drop(response);
//! assert_eq!(handle.snapshot().open_requests, 0);
//! # }
//! ```
//!
//! # Panicked
//!
//! The service panicked: when it was called, or while its future or body was polled. The events start when what has
//! panicked is dropped. That is part of the unwinding, unless somebody catches the panic and keeps the future for a
//! while. If a caught panic is followed by another poll they start then, and the outcome stays `Panicked`. A panic in
//! the body leaves `status`, `time_to_head` and the bytes before it in place; otherwise there was no response.
//!
//! A layer that catches panics decides what is seen. With tower-http's `CatchPanicLayer` *inside* of this layer, the
//! panic is an ordinary response: `Complete`, with status 500. With it *outside*, the exchange is `Panicked`, and the
//! 500 that the client receives is not a part of it.
//!
//! ```
//! # use std::convert::Infallible;
//! # use http::{Request, Response};
//! # use http_body_util::{BodyExt, Full};
//! # use tokio::sync::mpsc;
//! # use tower::{Layer, ServiceExt, service_fn};
//! # use tower_track_events::{Exchange, Outcome, TrackEventsHandle, TrackEventsLayer};
//! use tower_http::catch_panic::CatchPanicLayer;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! # let (tell, mut told) = mpsc::unbounded_channel();
//! # let layer = TrackEventsLayer::builder(TrackEventsHandle::new())
//! #     .track("tell", move |_request| {
//! #         let tell = tell.clone();
//! #         move |exchange: Exchange| async move { tell.send(exchange).map_err(|_| "nobody listens") }
//! #     })
//! #     .build();
//! let handler = service_fn(|request: Request<&'static str>| async move {
//!     let digits: u32 = request.into_body().parse().expect("a number");
//!     Ok::<_, Infallible>(Response::new(Full::<bytes::Bytes>::from(digits.to_string())))
//! });
//!
//! let catcher_outside = CatchPanicLayer::new().layer(layer.layer(handler));
//! let response = catcher_outside.oneshot(Request::new("twelve")).await.unwrap();
//! assert_eq!(response.status(), 500);
//! let exchange = told.recv().await.unwrap();
//! assert_eq!((exchange.outcome, exchange.status), (Outcome::Panicked, None));
//!
//! let catcher_inside = layer.layer(CatchPanicLayer::new().layer(handler));
//! let response = catcher_inside.oneshot(Request::new("twelve")).await.unwrap();
//! response.into_body().collect().await.unwrap();
//! let exchange = told.recv().await.unwrap();
//! assert_eq!((exchange.outcome, exchange.status.unwrap().as_u16()), (Outcome::Complete, 500));
//! # }
//! ```
//!
//! # NoResponse
//!
//! The response future was dropped before it was ready. The events start at that drop. Either the client left while the
//! handler was at work (over HTTP/2 it may have reset the one stream), or something around this layer gave up: a
//! timeout, or a server that was told to stop at once.
//!
//! As with panics, the order of the layers decides. With tower-http's `TimeoutLayer` *outside* of this layer, a request
//! that takes too long is `NoResponse`, and the 408 or 503 is sent by somebody else. With the timeout *inside*, it is
//! an ordinary response: `Complete`, with that status.
//!
//! ```
//! # use std::{convert::Infallible, future::pending, time::Duration};
//! # use http::{Request, Response, StatusCode};
//! # use http_body_util::{BodyExt, Empty};
//! # use tokio::sync::mpsc;
//! # use tower::{Layer, ServiceExt, service_fn};
//! # use tower_track_events::{Exchange, Outcome, TrackEventsHandle, TrackEventsLayer};
//! use tower_http::timeout::TimeoutLayer;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! # let (tell, mut told) = mpsc::unbounded_channel();
//! # let layer = TrackEventsLayer::builder(TrackEventsHandle::new())
//! #     .track("tell", move |_request| {
//! #         let tell = tell.clone();
//! #         move |exchange: Exchange| async move { tell.send(exchange).map_err(|_| "nobody listens") }
//! #     })
//! #     .build();
//! let handler = service_fn(|_: Request<()>| pending::<Result<Response<Empty<bytes::Bytes>>, Infallible>>());
//! let timeout = TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, Duration::from_millis(10));
//!
//! let timeout_outside = timeout.layer(layer.layer(handler));
//! let response = timeout_outside.oneshot(Request::new(())).await.unwrap();
//! assert_eq!(response.status(), 503);
//! let exchange = told.recv().await.unwrap();
//! assert_eq!((exchange.outcome, exchange.status), (Outcome::NoResponse, None));
//!
//! let timeout_inside = layer.layer(timeout.layer(handler));
//! let response = timeout_inside.oneshot(Request::new(())).await.unwrap();
//! response.into_body().collect().await.unwrap();
//! let exchange = told.recv().await.unwrap();
//! assert_eq!((exchange.outcome, exchange.status.unwrap().as_u16()), (Outcome::Complete, 503));
//! # }
//! ```
//!
//! # ServiceError
//!
//! The service returned `Err` in place of a response. The events start at once. This is an error of the *service*, as
//! Tower knows it, which the server answers by closing the connection or resetting the stream. Handlers of axum and
//! methods of tonic that return an `Err` make a response of it, so they are `Complete`, with a status that says so:
//! look at `status` and `grpc_status` for what went wrong in a handler.
//!
//! # Upgraded
//!
//! The response has status 101, or is a 2xx answer to `CONNECT`: a WebSocket, a tunnel. From now on the connection
//! belongs to somebody else. The events start when the body of that response is dropped, which the server does right
//! after sending its head. The bytes that go over the upgraded connection are not counted.
//!
//! Neither the exchange nor a graceful server waits for what follows. Take a [guard](crate::TrackEventsHandle::guard)
//! and move it into the task that serves the socket: a drain waits for it.
//! [How to end such a task](super::shutdown#websockets-and-other-upgrades) is a matter of the shutdown. The [`Events`]
//! of the exchange can be moved there too; what is recorded starts at once.
//!
//! # BodyError
//!
//! The body yielded an error. The events start at once, and what is polled after it changes nothing any more. The
//! server cuts the response off, so the client can tell that something is missing. `body_bytes` are those before the
//! error.
//!
//! Where the response is over before the error is seen, there is none: over HTTP/1 that is after the last declared
//! byte, and for a response to `HEAD`, whose body a server does not poll.
//!
//! # Complete
//!
//! The response was handed on in full. That does not mean that the client received it: what the server has taken may
//! lie in its buffers, or in those of the kernel, for as long as the client is slow. There are three ways to see it:
//!
//! 1. *There is no body to send*, because the request was a `HEAD`, or the status is 1xx, 204 or 304. Whatever the body
//!    holds or declares is not a part of the response. hyper drops it unpolled over HTTP/1, and the events start then.
//!    Over HTTP/2 it would send it, which the client takes for a protocol error; axum's router keeps the body of a
//!    `HEAD` back.
//! 2. *A length was declared, and that many bytes were seen.* The length is that of the `Content-Length` header, or
//!    else of the body's exact `size_hint`. Over HTTP/1, by the version of the request, the response is over with the
//!    last of these bytes. hyper does not ask for more: a stream with a `Content-Length`, a file for example, is
//!    dropped without having ended. Over HTTP/2 trailers may follow, so the events start at the end of the body, or
//!    when it is dropped.
//! 3. *No length was declared, and an end was seen*: the body yielded `None` or trailers, or it says by `is_end_stream`
//!    that nothing follows. An empty body says so from the start; its events start when it is dropped. A body that is
//!    forwarded from an HTTP/2 client may say so later than its last frame: it is asked once more when it is dropped.
//!
//! ```
//! # use std::convert::Infallible;
//! # use bytes::Bytes;
//! # use http::{Request, Response, header::CONTENT_LENGTH};
//! # use http_body::Frame;
//! # use http_body_util::{BodyExt, StreamBody};
//! # use tokio::sync::mpsc;
//! # use tower::{Layer, ServiceExt, service_fn};
//! # use tower_track_events::{Exchange, Outcome, TrackEventsHandle, TrackEventsLayer};
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! # let (tell, mut told) = mpsc::unbounded_channel();
//! # let layer = TrackEventsLayer::builder(TrackEventsHandle::new())
//! #     .track("tell", move |_request| {
//! #         let tell = tell.clone();
//! #         move |exchange: Exchange| async move { tell.send(exchange).map_err(|_| "nobody listens") }
//! #     })
//! #     .build();
//! let service = layer.layer(service_fn(|_: Request<()>| async {
//!     let frame = Ok::<_, Infallible>(Frame::data(Bytes::from("hello")));
//!     let body = StreamBody::new(futures_util::stream::iter([frame]));
//!     Response::builder().header(CONTENT_LENGTH, 5).body(body)
//! }));
//!
//! // As hyper does it for `HEAD`.
//! let response = service.clone().oneshot(Request::head("/").body(()).unwrap()).await.unwrap();
//! drop(response);
//! let exchange = told.recv().await.unwrap();
//! assert_eq!((exchange.outcome, exchange.body_bytes), (Outcome::Complete, 0));
//!
//! // As hyper does it for `GET` over HTTP/1: the end of the stream is never seen.
//! let mut response = service.oneshot(Request::new(())).await.unwrap();
//! response.body_mut().frame().await;
//! let exchange = told.recv().await.unwrap();
//! assert_eq!((exchange.outcome, exchange.body_bytes), (Outcome::Complete, 5));
//! # }
//! ```
//!
//! # LengthMismatch
//!
//! A length was declared, and the body has ended with fewer bytes, or has yielded more. With fewer, the events start at
//! that end. With more, over HTTP/1, they start with the frame that goes beyond, because the response is over there:
//! hyper cuts that frame, and the client sees a response that looks right. Over HTTP/2 they start when the body ends or
//! is dropped. `body_bytes` are those that the body has yielded, not those that were declared.
//!
//! It is a mistake in the handler or in a layer around it. A body that is dropped short of its declared length, before
//! its end, is `Aborted` instead. And over HTTP/1 frames that follow after exactly the declared length are never asked
//! for, so nobody knows of them: that is `Complete`.
//!
//! # Aborted
//!
//! The body was dropped before any of the above: the client left. The events start at that drop. A server finds out
//! when it reads or writes, so for a client that vanishes without a word this may be minutes later.
//!
//! For an endless response this is the ordinary end, and no error: server-sent events are `Aborted` when the client
//! closes the page, and `Complete` when the server ends the stream, for instance
//! [at shutdown](crate::TrackEventsHandle::draining).
//!
//! A layer outside of this one that throws the response away, to put an error page in its place, drops the body as
//! well: `Aborted`, though the client is still there.
//!
//! ```
//! # use std::convert::Infallible;
//! # use bytes::Bytes;
//! # use futures_util::{StreamExt, stream};
//! # use http::{Request, Response};
//! # use http_body::Frame;
//! # use http_body_util::{BodyExt, StreamBody};
//! # use tokio::sync::mpsc;
//! # use tower::{Layer, ServiceExt, service_fn};
//! # use tower_track_events::{Exchange, Outcome, TrackEventsHandle, TrackEventsLayer};
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! # let (tell, mut told) = mpsc::unbounded_channel();
//! # let handle = TrackEventsHandle::new();
//! # let layer = TrackEventsLayer::builder(handle.clone())
//! #     .track("tell", move |_request| {
//! #         let tell = tell.clone();
//! #         move |exchange: Exchange| async move { tell.send(exchange).map_err(|_| "nobody listens") }
//! #     })
//! #     .build();
//! let service = layer.layer(service_fn(|_: Request<()>| async {
//!     let ticks = stream::repeat_with(|| Ok::<_, Infallible>(Frame::data(Bytes::from("data: tick\n\n"))));
//!     Ok::<_, Infallible>(Response::new(StreamBody::new(ticks.take_until(Box::pin(handle.draining())))))
//! }));
//!
//! let mut response = service.clone().oneshot(Request::new(())).await.unwrap();
//! response.body_mut().frame().await;
//! drop(response); // the client closes the page
//! let exchange = told.recv().await.unwrap();
//! assert_eq!((exchange.outcome, exchange.body_bytes), (Outcome::Aborted, 12));
//!
//! let mut response = service.oneshot(Request::new(())).await.unwrap();
//! response.body_mut().frame().await;
//! handle.begin_drain(); // the server shuts down
//! assert!(response.body_mut().frame().await.is_none());
//! assert_eq!(told.recv().await.unwrap().outcome, Outcome::Complete);
//! # }
//! ```
//!
//! # Compression
//!
//! A layer counts what passes through it. With tower-http's `CompressionLayer` *outside*, `body_bytes` are those of the
//! handler; with it *inside*, they are compressed, as the client receives them. The outcome is the same either way: a
//! compression takes away the `Content-Length` that is not true any more.
//!
//! ```
//! # use std::convert::Infallible;
//! # use bytes::Bytes;
//! # use http::{Request, Response};
//! # use http_body_util::{BodyExt, Full};
//! # use tokio::sync::mpsc;
//! # use tower::{Layer, ServiceExt, service_fn};
//! # use tower_track_events::{Exchange, Outcome, TrackEventsHandle, TrackEventsLayer};
//! use tower_http::compression::CompressionLayer;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! # let (tell, mut told) = mpsc::unbounded_channel();
//! # let layer = TrackEventsLayer::builder(TrackEventsHandle::new())
//! #     .track("tell", move |_request| {
//! #         let tell = tell.clone();
//! #         move |exchange: Exchange| async move { tell.send(exchange).map_err(|_| "nobody listens") }
//! #     })
//! #     .build();
//! let handler = service_fn(|_: Request<()>| async {
//!     Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(vec![b' '; 10_000]))))
//! });
//! let request = || Request::get("/").header("accept-encoding", "gzip").body(()).unwrap();
//!
//! let outside = CompressionLayer::new().layer(layer.layer(handler));
//! let sent = outside.oneshot(request()).await.unwrap().into_body().collect().await.unwrap().to_bytes();
//! let exchange = told.recv().await.unwrap();
//! assert_eq!((exchange.outcome, exchange.body_bytes), (Outcome::Complete, 10_000));
//!
//! let inside = layer.layer(CompressionLayer::new().layer(handler));
//! inside.oneshot(request()).await.unwrap().into_body().collect().await.unwrap();
//! let exchange = told.recv().await.unwrap();
//! assert_eq!((exchange.outcome, exchange.body_bytes), (Outcome::Complete, sent.len() as u64));
//! assert!(sent.len() < 100);
//! # }
//! ```
//!
//! # gRPC
//!
//! A gRPC response is a 200 that says in its trailers how the call went, or in its headers if there is no body.
//! `grpc_status` is that number, from the trailers or else from the headers. Trailers are an end, so the exchange is
//! `Complete` whether the call was or not: `outcome` says how the response went, `grpc_status` how the call did. It is
//! `None` when the client cancels before the trailers, and the outcome is then `Aborted`, or `NoResponse` before the
//! head.
//!
//! # After the exchange
//!
//! [`Events`] may be cloned and outlive the exchange. What is recorded through it from then on starts at once, told of
//! the exchange as it ended. Such a clone keeps neither the exchange open nor a drain waiting.
//!
//! [`Events`]: crate::Events
//! [`Exchange`]: crate::Exchange
