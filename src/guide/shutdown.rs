//! How to shut a server down, so that neither requests nor events are lost.
//!
//! # The steps
//!
//! 1. *The signal.* Listen for SIGTERM, which is what orchestrators send, as well as for Ctrl-C. From now on one
//!    deadline counts.
//! 2. *[`begin_drain`].* Readiness probes that ask [`is_draining`] answer 503; endless streams that wait for
//!    [`draining`] end themselves. Nothing is refused: requests arrive and are served, their events are taken.
//! 3. *A pause*, until the load balancers have looked away. A server that stops listening before that sends the clients
//!    of the meantime into a closed port.
//! 4. *Stop the server gracefully, within a limit.* Alone it may never return: see
//!    [below](#when-a-servers-shutdown-returns).
//! 5. *[`drain`] with what is left of the time.* It waits for the requests that are still at work, also those of a
//!    server that has returned or was abandoned, and for their events. It comes after the server, because once it is
//!    `Ok` everything is refused.
//! 6. *Flush what the events have written to*: a broker's client, a pool, a writer with a buffer.
//! 7. *Telemetry last*, since all of the above logs.
//!
//! # One deadline
//!
//! Give each step an instant to be over at, counted from the signal, and not a duration of its own. Durations add up,
//! and the kill is counted from the signal too. With instants, what a step does not need is left for the next ones: the
//! drain has at least its share, and mostly more.
//!
//! ```no_run
//! use std::{error::Error, process, time::Duration};
//!
//! use axum::{Router, extract::State, http::StatusCode, routing::get};
//! use tokio::{
//!     net::TcpListener,
//!     select,
//!     signal::unix::{SignalKind, signal},
//!     sync::oneshot,
//!     time::{Instant, sleep_until, timeout_at},
//! };
//! use tower_track_events::{TrackEventsHandle, TrackEventsLayer};
//!
//! async fn ready(State(handle): State<TrackEventsHandle>) -> StatusCode {
//!     if handle.is_draining() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }
//! }
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn Error>> {
//!     let (layer, handle) = TrackEventsLayer::pair();
//!     let app = Router::new().route("/ready", get(ready)).with_state(handle.clone()).layer(layer);
//!     let listener = TcpListener::bind("0.0.0.0:3000").await?;
//!     let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
//!
//!     let (stop, stopped) = oneshot::channel::<()>();
//!     let server = axum::serve(listener, app).with_graceful_shutdown(async { drop(stopped.await) });
//!     let server = tokio::spawn(server.into_future());
//!
//!     select! {
//!         _ = terminate.recv() => {}
//!         _ = interrupt.recv() => {}
//!     }
//!     let signalled = Instant::now();
//!     let at = |seconds| signalled + Duration::from_secs(seconds);
//!
//!     handle.begin_drain();
//!     sleep_until(at(5)).await; // the load balancers look away
//!     drop(stop);
//!     let _ = timeout_at(at(17), server).await; // the server; abandoned after that
//!     let drained = handle.drain_until(sleep_until(at(25))).await; // its requests, and the events
//!     // .. flush the clients, until at(28); then telemetry
//!
//!     let code = match drained {
//!         Ok(report) if report.all_completed() => 0,
//!         Ok(report) => {
//!             eprintln!("{report}");
//!             1
//!         }
//!         Err(error) => {
//!             eprintln!("{error}");
//!             1
//!         }
//!     };
//!     process::exit(code)
//! }
//! ```
//!
//! # The budget
//!
//! What counts is when the process is killed: SIGKILL cannot be handled.
//!
//! | platform | from the signal to the kill, unless set | set by |
//! |---|---|---|
//! | Kubernetes | 30 s, *including* the `preStop` hook | `terminationGracePeriodSeconds` |
//! | systemd | 90 s | `TimeoutStopSec` |
//! | Docker | 10 s | `docker stop -t`, `stop_grace_period` in a compose file |
//! | Amazon ECS | 30 s | `stopTimeout` |
//! | Cloud Run | 10 s | |
//! | AWS Lambda | 0.3 to 0.5 s, see [below](#aws-lambda) | |
//!
//! For the 30 seconds of Kubernetes, the example above takes
//!
//! ```text
//! 30 s = 5 s pause + 12 s server + 8 s events + 3 s flush + 2 s slack
//! ```
//!
//! Kubernetes takes a terminating pod out of its services by itself; the pause is for the time until every proxy knows.
//! A load balancer that goes by the readiness probe needs as long as the probe takes to fail. The pause may as well be
//! a `preStop` hook that sleeps. Then it is not a part of the program, but the grace period runs meanwhile: the signal
//! comes after 5 seconds and leaves 25.
//!
//! With 10 seconds in all, 2 + 4 + 3 + 0.5 + 0.5 is a start. Where no load balancer stands in front, there is no pause.
//!
//! The share of the events is as long as the slowest of them may take, so bound that too: with an
//! [`event_timeout`](crate::TrackEventsHandleBuilder::event_timeout). The
//! [settle time](crate::TrackEventsHandleBuilder::settle) is a part of the drain, 100 ms unless set.
//!
//! # When a server's shutdown returns
//!
//! A graceful shutdown waits for connections, and some never end by themselves. This is when it returned, with one
//! client in the given state:
//!
//! | the client | axum | hyper-util `GracefulShutdown` | axum-server, with a limit | tonic |
//! |---|---|---|---|---|
//! | is connected and silent | at once | at once | at once | never |
//! | has sent half of its first request head | never | never, without a timer | at the limit | never |
//! | keeps an idle HTTP/1 connection | at once | at once | at once | |
//! | is silent on HTTP/2 | never | never, without pings | at the limit | never |
//! | waits for a handler | after the handler | after the handler | after the handler | after the handler |
//! | reads an endless stream | never | never | at the limit, its request maybe still open | never |
//! | has upgraded its connection | at once | at once | at once | |
//!
//! For tonic a load balancer that keeps a TCP connection open without a word is enough. So:
//!
//! - Bound the wait. A `timeout` around a server only abandons its connections: they go on, and answer their clients,
//!   for as long as the process does. The drain waits for the requests that they have brought. One that comes after the
//!   drain was `Ok` is served too, but its events are refused.
//! - Let endless streams end themselves, with `take_until(handle.draining())`. Then axum has returned within some
//!   milliseconds in the sixth row.
//! - *At once* in the last row does not mean that the WebSocket is closed: nobody waits for it, unless it has a
//!   [guard](#websockets-and-other-upgrades).
//!
//! # Wiring
//!
//! ## axum
//!
//! The whole of it is [above](#one-deadline). `Router::layer` also wraps the fallback, so requests that match no route
//! are exchanges too; `Router::route_layer` leaves them out. To have the layer outside of the `Router`, in front of its
//! routing, give `axum::serve` back the body that it knows:
//!
//! ```no_run
//! # #[tokio::main] async fn main() -> std::io::Result<()> {
//! use axum::{Router, ServiceExt, extract::Request, response::IntoResponse};
//! use tower::ServiceBuilder;
//! use tower_track_events::TrackEventsLayer;
//!
//! let (layer, handle) = TrackEventsLayer::pair();
//! let app = ServiceBuilder::new().map_response(IntoResponse::into_response).layer(layer).service(Router::new());
//! let listener = tokio::net::TcpListener::bind("0.0.0.0:3000").await?;
//! axum::serve(listener, ServiceExt::<Request>::into_make_service(app)).await
//! # }
//! ```
//!
//! ## hyper-util
//!
//! Some things are for the user to do:
//!
//! - *The executor.* HTTP/2 streams that are spawned on `handle.executor(..)` (feature `hyper`) are known to a drain
//!   before they have begun, which no layer can see. The settle time can be zero then. The connections are spawned as
//!   ever: the graceful shutdown waits for them. On that executor each would hold a guard, and a silent one would cut
//!   the drain short.
//! - *Time limits.* Without a timer hyper has none. With one, it limits the time for a request head (30 s unless set),
//!   and can ping HTTP/2 clients that are silent: give both limits, shorter than the wait for the server.
//! - *The watcher.* `watcher()` counts a connection from its accept on, and can be moved into its task, where it may
//!   begin only after a TLS handshake.
//! - *The listener.* Drop it before the wait, so that nobody connects to it any more.
//!
//! ```no_run
//! # async fn terminated() {}
//! use std::{convert::Infallible, error::Error, time::Duration};
//!
//! use http::{Request, Response};
//! use http_body_util::Full;
//! use hyper::body::Incoming;
//! use hyper_util::{
//!     rt::{TokioExecutor, TokioIo, TokioTimer},
//!     server::{conn::auto, graceful::GracefulShutdown},
//!     service::TowerToHyperService,
//! };
//! use tokio::{net::TcpListener, pin, select, time::{Instant, sleep_until, timeout_at}};
//! use tower::{Layer, service_fn};
//! use tower_track_events::{TrackEventsHandle, TrackEventsLayer};
//!
//! # #[tokio::main] async fn main() -> Result<(), Box<dyn Error>> {
//! let handle = TrackEventsHandle::builder().settle(Duration::ZERO).build()?;
//! let service = TrackEventsLayer::new(handle.clone()).layer(service_fn(|_: Request<Incoming>| async {
//!     Ok::<_, Infallible>(Response::new(Full::<bytes::Bytes>::from("hello")))
//! }));
//!
//! let mut server = auto::Builder::new(handle.executor(TokioExecutor::new()));
//! let time_limit = Duration::from_secs(5);
//! server.http1().timer(TokioTimer::new()).header_read_timeout(time_limit);
//! server.http2().timer(TokioTimer::new()).keep_alive_interval(time_limit).keep_alive_timeout(time_limit);
//! let graceful = GracefulShutdown::new();
//! let listener = TcpListener::bind("0.0.0.0:3000").await?;
//! let signal = terminated(); // as above
//! pin!(signal);
//! loop {
//!     let socket = select! {
//!         accepted = listener.accept() => match accepted {
//!             Ok((socket, _)) => TokioIo::new(socket),
//!             Err(_) => continue, // better: log it, and wait a moment in case that no file descriptor is free
//!         },
//!         _ = &mut signal => break,
//!     };
//!     let connection = server.serve_connection_with_upgrades(socket, TowerToHyperService::new(service.clone()));
//!     let (connection, watcher) = (connection.into_owned(), graceful.watcher());
//!     tokio::spawn(async move {
//!         let _ = watcher.watch(connection).await; // the error of a client that left
//!     });
//! }
//! let signalled = Instant::now();
//! let at = |seconds| signalled + Duration::from_secs(seconds);
//!
//! handle.begin_drain();
//! drop(listener);
//! let _ = timeout_at(at(12), graceful.shutdown()).await;
//! match handle.drain_until(sleep_until(at(20))).await {
//!     Ok(report) => println!("{report}"),
//!     Err(error) => eprintln!("{error}"),
//! }
//! # Ok(()) }
//! ```
//!
//! This stops accepting with the signal. For a pause, go on with the loop until the pause is over.
//!
//! The task that serves an upgraded connection is spawned by whoever upgrades it: it takes a
//! [guard](#websockets-and-other-upgrades).
//!
//! ## axum-server
//!
//! Its limit is its own, and ends the wait by shutting the connections down. It may return while their requests are
//! open still: the drain waits for them.
//!
//! ```no_run
//! # async fn terminated() {}
//! # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::{net::SocketAddr, time::Duration};
//!
//! use axum::Router;
//! use tokio::time::{Instant, sleep_until};
//! use tower_track_events::TrackEventsLayer;
//!
//! let (layer, handle) = TrackEventsLayer::pair();
//! let app = Router::new().layer(layer);
//! let server = axum_server::Handle::new();
//! let address = SocketAddr::from(([0, 0, 0, 0], 3000));
//! let serving = axum_server::bind(address).handle(server.clone()).serve(app.into_make_service());
//! let serving = tokio::spawn(serving);
//!
//! terminated().await; // as above
//! let signalled = Instant::now();
//! handle.begin_drain();
//! sleep_until(signalled + Duration::from_secs(5)).await;
//! server.graceful_shutdown(Some(Duration::from_secs(12)));
//! serving.await??;
//! match handle.drain_until(sleep_until(signalled + Duration::from_secs(25))).await {
//!     Ok(report) => println!("{report}"),
//!     Err(error) => eprintln!("{error}"),
//! }
//! # Ok(()) }
//! ```
//!
//! ## tonic
//!
//! Readiness is the health service's: set it to not serving along with `begin_drain`. Endless calls end themselves
//! through [`draining`], as other streams do. tonic's own limits (load shedding, the concurrency limit and the
//! `grpc-timeout` of a call) stand outside of the layers of a user: a call that is shed opens no exchange, and one
//! whose time has run out is [`NoResponse`](super::outcomes#noresponse).
//!
//! ```no_run
//! # async fn terminated() {}
//! # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//!
//! use tokio::{sync::oneshot, time::{Instant, sleep_until, timeout_at}};
//! use tonic::transport::Server;
//! use tonic_health::ServingStatus;
//! use tower_track_events::TrackEventsLayer;
//!
//! let (layer, handle) = TrackEventsLayer::pair();
//! let (reporter, health) = tonic_health::server::health_reporter();
//! let (stop, stopped) = oneshot::channel::<()>();
//! let server = Server::builder()
//!     .layer(layer)
//!     .add_service(health)
//!     .serve_with_shutdown(([0, 0, 0, 0], 3000).into(), async { drop(stopped.await) });
//! let server = tokio::spawn(server);
//!
//! terminated().await; // as above
//! let signalled = Instant::now();
//! let at = |seconds| signalled + Duration::from_secs(seconds);
//! handle.begin_drain();
//! reporter.set_service_status("", ServingStatus::NotServing).await; // "" is the whole server
//! sleep_until(at(5)).await;
//! drop(stop);
//! let _ = timeout_at(at(17), server).await;
//! match handle.drain_until(sleep_until(at(25))).await {
//!     Ok(report) => println!("{report}"),
//!     Err(error) => eprintln!("{error}"),
//! }
//! # Ok(()) }
//! ```
//!
//! # WebSockets and other upgrades
//!
//! The exchange of an upgrade is over with the upgrade, and no server waits for what follows. A guard does, and
//! `draining` tells the task to say goodbye:
//!
//! ```
//! use axum::{
//!     Router,
//!     extract::ws::{Message, WebSocketUpgrade},
//!     response::Response,
//!     routing::get,
//! };
//! use tower_track_events::{Events, Refused, TrackEventsLayer};
//!
//! async fn upgrade(events: Events, upgrade: WebSocketUpgrade) -> Result<Response, Refused> {
//!     let guard = events.handle().guard()?;
//!     Ok(upgrade.on_upgrade(async move |mut socket| {
//!         let draining = events.handle().draining();
//!         tokio::pin!(draining);
//!         loop {
//!             let message = tokio::select! {
//!                 message = socket.recv() => message,
//!                 () = &mut draining => Some(Ok(Message::Close(None))),
//!             };
//!             let Some(Ok(message)) = message else { break };
//!             let last = matches!(message, Message::Close(_));
//!             if socket.send(message).await.is_err() || last {
//!                 break;
//!             }
//!         }
//!         // The guard is held: no drain can have been `Ok`, and this starts at once.
//!         if let Err(refused) = events.track("chat.left", async { /* write an audit row */ }) {
//!             eprintln!("chat.left: {refused}"); // no room
//!         }
//!         drop(guard);
//!     }))
//! }
//!
//! let (layer, handle) = TrackEventsLayer::pair();
//! let app: Router = Router::new().route("/chat", get(upgrade)).layer(layer);
//! ```
//!
//! Take the guard in the handler, where the exchange is still open, and not in the task, which a drain might forestall.
//!
//! # A second signal
//!
//! Who sends a second signal does not want to wait any longer. [`drain_until`] takes any future:
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! # let handle = tower_track_events::TrackEventsHandle::new();
//! # let deadline = tokio::time::Instant::now();
//! use tokio::{signal::ctrl_c, time::timeout_at};
//!
//! let drained = handle.drain_until(timeout_at(deadline, ctrl_c())).await;
//! # drained.unwrap();
//! # }
//! ```
//!
//! The steps before the drain want to be cut short as well. `examples/axum.rs` in the repository shares one such future
//! among all of them.
//!
//! # What the report says
//!
//! `Ok` means that nothing is left, and not that all went well. [`all_completed`](crate::DrainReport::all_completed)
//! says that; [`wrong`](crate::DrainReport::wrong) names the events that failed, panicked, timed out or were aborted.
//! [`refused`](crate::DrainReport::refused) counts what was never accepted. If
//! [`Snapshot::refused`](crate::Snapshot::refused) grows after a drain was `Ok`, requests came after it: the settle
//! time is too short for a machine as busy as this one.
//!
//! [`CutShort`](crate::DrainError::CutShort) says what was open: requests, guards and permits with their age, events by
//! name and by the place where they were recorded, and whether they were running or waited for their request. It
//! cancels nothing. What is pending goes on until the process ends, so there may be another drain. To let destructors
//! run instead of being torn apart by the exit, [`abort`](crate::TrackEventsHandle::abort) what is left and drain again
//! for a moment. While a drain waits it logs [a line each second](super::observing#log-lines).
//!
//! Both have a `Display` of one line, to be logged as it is.
//!
//! # The exit
//!
//! Exit with 0 when the drain was `Ok` and `all_completed`, and with another code when not: then it shows on a
//! dashboard without a log being read. Whether an event that failed is a failed shutdown is for you to say; one that
//! was cut short is.
//!
//! Leave with `process::exit`, which runs no destructors, or with `Runtime::shutdown_timeout`. When `main` returns, the
//! runtime is dropped, and that waits for [blocking events](crate::TrackEventsHandle::track_blocking) beyond any
//! deadline.
//!
//! # AWS Lambda
//!
//! Lambda freezes a process as soon as it has the response, and thaws it for the next request, if there is one. An
//! event that starts after the response is thus held up for minutes, or lost. What must be done has to be done before
//! the runtime is given the response. [`wait_idle`] is for that: around the layer, once the response is complete in
//! memory, it waits for the events that were accepted so far and closes nothing, so the next request finds the house
//! open. A signal comes only to functions with an extension, and leaves 0.3 to 0.5 s.
//!
//! ```
//! use std::time::Duration;
//!
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::{BodyExt, Full};
//! use tower::{BoxError, Layer, Service, ServiceExt, service_fn};
//! use tower_track_events::{Events, TrackEventsHandle, TrackEventsLayer};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), BoxError> {
//! async fn handler(request: Request<()>) -> Result<Response<Full<Bytes>>, BoxError> {
//!     let events = Events::from_extensions(request.extensions()).ok_or("no layer")?;
//!     events.track("audit", async { /* write a row */ })?;
//!     Ok(Response::new(Full::from("hello")))
//! }
//!
//! let (layer, handle) = TrackEventsLayer::pair();
//! let inner = layer.layer(service_fn(handler));
//! let waits = handle.clone();
//! let service = service_fn(move |request: Request<()>| {
//!     let (inner, waits) = (inner.clone(), waits.clone());
//!     async move {
//!         let (head, body) = inner.oneshot(request).await?.into_parts();
//!         let body = Full::new(body.collect().await?.to_bytes()); // over, and dropped
//!         if let Err(pending) = waits.wait_idle(Duration::from_millis(500)).await {
//!             eprintln!("{pending}"); // they go on when the process is thawed, if it is
//!         }
//!         Ok::<_, BoxError>(Response::from_parts(head, body))
//!     }
//! });
//!
//! service.oneshot(Request::new(())).await?;
//! assert_eq!(handle.snapshot().completed, 1); // before the runtime has the response
//! # Ok(()) }
//! ```
//!
//! [`begin_drain`]: crate::TrackEventsHandle::begin_drain
//! [`is_draining`]: crate::TrackEventsHandle::is_draining
//! [`draining`]: crate::TrackEventsHandle::draining
//! [`drain`]: crate::TrackEventsHandle::drain
//! [`wait_idle`]: crate::TrackEventsHandle::wait_idle
//! [`drain_until`]: crate::TrackEventsHandle::drain_until
