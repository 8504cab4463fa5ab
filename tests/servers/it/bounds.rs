//! The bounds of servers, beside those that the tests of the crate check.

use std::{convert::Infallible, future::pending, io, net::TcpListener};

use axum::{Router, ServiceExt};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::io::DuplexStream;
use tower::{Layer, service_fn};
use tower_track_events::{TrackEventsHandle, TrackEventsLayer};

fn layer() -> TrackEventsLayer {
    TrackEventsLayer::new(TrackEventsHandle::new())
}

#[tokio::test]
async fn axum_server_accepts_the_service() {
    let listener = || TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let server = || axum_server::from_tcp(listener()).expect("a listener that is bound");
    let hello = async |_| Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("hello")));
    let service = layer().layer(service_fn(hello));
    drop(server().serve(ServiceExt::<Request<Incoming>>::into_make_service(service)));
    drop(server().serve(Router::new().layer(layer()).into_make_service()));
}

#[tokio::test]
async fn tonic_accepts_the_layer() {
    let (_reporter, health) = tonic_health::server::health_reporter();
    let incoming = tokio_stream::empty::<Result<DuplexStream, io::Error>>();
    let server = tonic::transport::Server::builder()
        .layer(layer())
        .layer(layer())
        .add_service(health.clone())
        .serve_with_incoming_shutdown(incoming, pending());
    // It is `Send`.
    drop::<BoxFuture<'_, _>>(Box::pin(server));
    let server = tonic::transport::Server::builder().layer(layer()).add_service(health).serve(([0; 4], 0).into());
    drop::<BoxFuture<'_, _>>(Box::pin(server));
}
