//! The table for tonic: calls whose status is in the headers, in the trailers, or missing.

use std::{net::SocketAddr, pin::Pin, sync::Arc};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{Stream, StreamExt, stream};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, oneshot},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Status, transport};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_server::{Health, HealthServer},
};
use tower_track_events::{
    Outcome::{self, *},
    TrackEventsLayer,
};

use super::{
    clients::{
        Client::{self, *},
        Request,
    },
    servers::Running,
};

/// One call, and the expected facts of its exchange.
pub(super) struct Call {
    pub(super) name: &'static str,
    method: &'static str,
    /// The name of the service in the request, which selects the answer.
    answer: &'static str,
    header: Option<(&'static str, &'static str)>,
    client: Client,
    pub(super) outcome: Outcome,
    /// Whether there is a response; its status is always 200.
    pub(super) answered: bool,
    pub(super) grpc_status: Option<Code>,
    pub(super) bytes: u64,
}

/// A message of the answer, with its prefix.
const MESSAGE: u64 = 7;

fn call(method: &'static str, answer: &'static str, name: &'static str) -> Call {
    let (client, grpc_status) = (Reads, Some(Code::Ok));
    Call { name, method, answer, header: None, client, outcome: Complete, answered: true, grpc_status, bytes: 0 }
}

pub(super) fn calls() -> Vec<Call> {
    let unary = |answer, name| call("Check", answer, name);
    let streaming = |answer, name| call("Watch", answer, name);
    vec![
        Call { bytes: MESSAGE, ..unary("one", "unary") },
        Call { grpc_status: Some(Code::NotFound), ..unary("error", "error of a handler: trailers-only") },
        Call {
            grpc_status: Some(Code::Unauthenticated),
            header: Some(("reject", "yes")),
            ..unary("one", "rejected by an interceptor: trailers-only")
        },
        Call { method: "Nonsense", grpc_status: Some(Code::Unimplemented), ..unary("", "an unknown method") },
        Call { bytes: 2 * MESSAGE, ..streaming("two", "server streaming") },
        Call { bytes: 0, ..streaming("none", "server streaming, without a message") },
        Call {
            bytes: MESSAGE,
            grpc_status: Some(Code::DataLoss),
            ..streaming("one, then an error", "error in a stream: in the trailers")
        },
        Call { grpc_status: Some(Code::NotFound), ..streaming("error", "error before a stream: trailers-only") },
        Call { outcome: Panicked, answered: false, grpc_status: None, ..unary("panic", "handler that panics") },
        Call {
            outcome: NoResponse,
            answered: false,
            grpc_status: None,
            header: Some(("grpc-timeout", "5m")),
            ..unary("never", "the deadline of the client passes: tonic's timeout is outside of every layer")
        },
        Call {
            outcome: NoResponse,
            answered: false,
            grpc_status: None,
            client: LeavesBeforeHead,
            ..unary("never", "client cancels before the head")
        },
        Call {
            outcome: Aborted,
            grpc_status: None,
            client: LeavesAfterHead,
            ..streaming("idle", "client cancels a stream before its first message")
        },
        Call {
            outcome: Aborted,
            grpc_status: None,
            client: LeavesMidBody,
            bytes: MESSAGE,
            ..streaming("one, then idle", "client cancels a stream in the middle")
        },
    ]
}

impl Call {
    pub(super) fn request(&self) -> Request {
        let mut headers = vec![("content-type", "application/grpc"), ("te", "trailers")];
        headers.extend(self.header);
        let path = match self.method {
            "Check" => "/grpc.health.v1.Health/Check",
            "Watch" => "/grpc.health.v1.Health/Watch",
            _ => "/grpc.health.v1.Health/Nonsense",
        };
        Request { method: "POST", path, headers, body: message(self.answer), client: self.client }
    }
}

/// A `HealthCheckRequest` with its prefix: uncompressed, its length, and its only field, a string.
fn message(service: &str) -> Bytes {
    let length = u8::try_from(service.len()).expect("a short name");
    let mut message = BytesMut::new();
    message.put_u8(0);
    message.put_u32(u32::from(length) + 2);
    message.put_slice(&[0x0a, length]);
    message.put_slice(service.as_bytes());
    message.freeze()
}

/// Answers as the request selects.
struct Scripted {
    started: Arc<Semaphore>,
}

fn serving() -> HealthCheckResponse {
    HealthCheckResponse { status: 1 }
}

#[tonic::async_trait]
impl Health for Scripted {
    async fn check(
        &self,
        request: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<HealthCheckResponse>, Status> {
        self.started.add_permits(1);
        match request.into_inner().service.as_str() {
            "one" => Ok(tonic::Response::new(serving())),
            "error" => Err(Status::not_found("no such service")),
            "panic" => super::answers::panic(),
            "never" => std::future::pending().await,
            other => unreachable!("no case asks for {other:?}"),
        }
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<Self::WatchStream>, Status> {
        let messages = |count| stream::iter(vec![Ok(serving()); count]);
        Ok(tonic::Response::new(match request.into_inner().service.as_str() {
            "none" => messages(0).boxed(),
            "two" => messages(2).boxed(),
            "one, then an error" => {
                messages(1).chain(stream::iter([Err(Status::data_loss("the disk is gone"))])).boxed()
            }
            "idle" => stream::pending().boxed(),
            "one, then idle" => messages(1).chain(stream::pending()).boxed(),
            "error" => return Err(Status::not_found("no such service")),
            other => unreachable!("no case asks for {other:?}"),
        }))
    }
}

/// Starts tonic, with the layer at its usual position.
pub(super) async fn start(layer: Option<TrackEventsLayer>, started: Arc<Semaphore>) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
    let address: SocketAddr = listener.local_addr().expect("a bound listener has an address");
    let (stop, stopped) = oneshot::channel::<()>();
    let returned = tokio::spawn(async move {
        let health =
            HealthServer::with_interceptor(Scripted { started }, |request: tonic::Request<()>| {
                match request.metadata().get("reject").map(|value| value.as_encoded_bytes()) {
                    Some(b"yes") => Err(Status::unauthenticated("rejected")),
                    _ => Ok(request),
                }
            });
        let (incoming, stopped) = (TcpListenerStream::new(listener), async { drop(stopped.await) });
        let mut server = transport::Server::builder();
        let served = match layer {
            Some(layer) => {
                server.layer(layer).add_service(health).serve_with_incoming_shutdown(incoming, stopped).await
            }
            None => server.add_service(health).serve_with_incoming_shutdown(incoming, stopped).await,
        };
        served.expect("tonic does not fail");
    });
    Running::new(address, stop, returned)
}
