//! An exchange: one request and its response, its facts, and its events until it is over.

mod events;
mod guard;
pub(crate) mod overflow;
mod progress;
mod state;
mod test;

use std::{fmt, time::Duration};

use http::{Method, StatusCode, Uri, Version, request::Parts};

pub use self::{events::Events, overflow::Overflow, test::TestExchange};
pub(crate) use self::{
    events::with_exchange,
    guard::ExchangeGuard,
    progress::Progress,
    state::{HookListId, Joined, NO_HOOKS, Observe, State},
};

/// How an exchange ended.
///
/// The first rule that matches wins:
///
/// 1. The service panicked: `Panicked`.
/// 2. The response future was dropped before it was ready: `NoResponse`. The service returned an error: `ServiceError`.
/// 3. The connection was upgraded (RFC 9110, 7.8 and 9.3.6): `Upgraded`.
/// 4. The body yielded an error: `BodyError`.
/// 5. The response cannot have a body (RFC 9110, 6.4.1: a response to `HEAD`, 1xx, 204, 304): `Complete`.
/// 6. The body has a declared length and reached it: `Complete`. It exceeded the length, or ended before it:
///    `LengthMismatch`.
/// 7. The body ended: `Complete`.
/// 8. The body was dropped before its end: `Aborted`.
///
/// At the [last call](crate::TrackEventsHandle::make_last_call), an exchange for which only `NoResponse` or `Aborted`
/// would match is `Unfinished`.
///
/// *Complete* means that this layer passed the response on in full. It does not mean that the client has received it:
/// bytes that the server has buffered may still be lost.
///
/// [A page of the guide](crate::guide::outcomes) explains each outcome and its surprising cases.
///
/// # Examples
///
/// ```
/// use tower_track_events::Outcome;
///
/// assert!(Outcome::Complete.is_complete());
/// assert_eq!(Outcome::Aborted.to_string(), "aborted");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// The service panicked, while it was called or while its future or body was polled.
    Panicked,
    /// The response future was dropped before it was ready: the client left, or a timeout around the layer passed.
    NoResponse,
    /// The service returned an error instead of a response.
    ServiceError,
    /// The connection was upgraded: status 101, or a 2xx response to `CONNECT`. The upgraded connection is not a part
    /// of the exchange: hold a [guard](crate::TrackEventsHandle::guard) while it lives.
    Upgraded,
    /// The body yielded an error.
    BodyError,
    /// The response was passed on in full.
    Complete,
    /// The body ended with fewer or more bytes than its `Content-Length`, or else its exact size, had declared.
    LengthMismatch,
    /// The body was dropped before its end. For an endless stream, such as server-sent events, this is the ordinary
    /// end. For any other body it means that the client left.
    Aborted,
    /// The response was not over at the [last call](crate::TrackEventsHandle::make_last_call) of a drain, or began
    /// after it. The other facts are those of the time at which the event started. The request goes on.
    Unfinished,
}

impl Outcome {
    /// Returns whether the response was passed on in full.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_track_events::Outcome;
    ///
    /// assert!(Outcome::Complete.is_complete());
    /// assert!(!Outcome::Upgraded.is_complete());
    /// ```
    pub fn is_complete(self) -> bool {
        self == Self::Complete
    }

    /// Returns the name in lower case with underscores, for logs and metrics.
    ///
    /// # Examples
    ///
    /// ```
    /// assert_eq!(tower_track_events::Outcome::NoResponse.as_str(), "no_response");
    /// ```
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Panicked => "panicked",
            Self::NoResponse => "no_response",
            Self::ServiceError => "service_error",
            Self::Upgraded => "upgraded",
            Self::BodyError => "body_error",
            Self::Complete => "complete",
            Self::LengthMismatch => "length_mismatch",
            Self::Aborted => "aborted",
            Self::Unfinished => "unfinished",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The facts of one request and its response, when the response is over or at the last call of a drain.
///
/// # Examples
///
/// Bill the bytes that were passed on, whether the client stayed until the end or not:
///
/// ```
/// use tower_track_events::{Exchange, TrackEventsHandle, TrackEventsLayer};
///
/// # async fn bill(bytes: u64) {}
/// let layer = TrackEventsLayer::new(TrackEventsHandle::new())
///     .track("bill", |exchange: Exchange| bill(exchange.body_bytes));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exchange {
    /// The head of the request. `None` if no layer has a hook, because it is stored for hooks only.
    pub request: Option<RequestInfo>,
    /// How the exchange ended.
    pub outcome: Outcome,
    /// The status of the response. `None` if there was no response.
    pub status: Option<StatusCode>,
    /// The bytes of body data that this layer passed on. Compression inside of the layer is included. Compression
    /// outside of it changes the bytes for the client, and not this number.
    pub body_bytes: u64,
    /// The time from the call of the service to the head of its response. `None` if there was no response.
    pub time_to_head: Option<Duration>,
    /// The time from the call of the service until the response was over, or until now if it is
    /// [unfinished](Outcome::Unfinished).
    pub elapsed: Duration,
    /// The `grpc-status`, from the trailers or else from the headers of the response. `None` if there was none, or if
    /// it is not a number.
    pub grpc_status: Option<i32>,
}

impl Exchange {
    /// Makes an exchange that ended with `outcome`, for tests.
    ///
    /// Each `Option` is `None`, and each number and duration is zero. Set the fields that the test needs.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_track_events::{Exchange, Outcome};
    ///
    /// let mut exchange = Exchange::new(Outcome::Aborted);
    /// exchange.body_bytes = 1_000;
    /// assert_eq!(exchange.status, None);
    /// ```
    pub fn new(outcome: Outcome) -> Self {
        Self {
            request: None,
            outcome,
            status: None,
            body_bytes: 0,
            time_to_head: None,
            elapsed: Duration::ZERO,
            grpc_status: None,
        }
    }
}

/// The method, URI and version of a request, as the outermost layer with hooks received it.
///
/// # Examples
///
/// ```
/// use http::Request;
/// use tower_track_events::{Exchange, Outcome, RequestInfo};
///
/// let (parts, ()) = Request::get("/orders").body(()).unwrap().into_parts();
/// let mut exchange = Exchange::new(Outcome::Complete);
/// exchange.request = Some(RequestInfo::from(&parts));
/// assert_eq!(exchange.request.unwrap().uri.path(), "/orders");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RequestInfo {
    /// The method.
    pub method: Method,
    /// The URI. On HTTP/1 it usually consists of the path and the query only.
    pub uri: Uri,
    /// The HTTP version.
    pub version: Version,
}

impl From<&Parts> for RequestInfo {
    fn from(parts: &Parts) -> Self {
        Self { method: parts.method.clone(), uri: parts.uri.clone(), version: parts.version }
    }
}
