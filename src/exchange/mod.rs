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
/// The first rule that matches wins, in the order of the variants of this page: a panic of the service, a future
/// dropped before it was ready, an error of the service, an upgrade, an error of the body, a response that cannot
/// have a body, a declared length that was reached or missed, an end that was seen, and else `Aborted`. An exchange
/// whose events start before any of these, at the [last call](crate::TrackEventsHandle::make_last_call), is
/// `Unfinished`.
///
/// *Complete* means that this layer handed the response on in full. It does not mean that the client received it:
/// what the server has taken may still be lost on the way.
///
/// [A page of the guide](crate::guide::outcomes) goes through each of them and its surprising cases.
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
    /// The response future was dropped before it was ready: the client left, or a timeout around it ran out.
    NoResponse,
    /// The service returned an error instead of a response.
    ServiceError,
    /// The connection was handed over: 101, or a 2xx answer to `CONNECT`. What follows is not part of the exchange;
    /// hold a [guard](crate::TrackEventsHandle::guard) for as long as it lives.
    Upgraded,
    /// The body yielded an error.
    BodyError,
    /// The response was handed on in full.
    Complete,
    /// The body ended with fewer or more bytes than its `Content-Length`, or else its exact size, had declared.
    LengthMismatch,
    /// The body was dropped before its end. For an endless stream, such as server-sent events, this is the ordinary
    /// end; for any other it means that the client left.
    Aborted,
    /// The response was not over at the [last call](crate::TrackEventsHandle::make_last_call) of a drain, or began
    /// after it. The other facts are those that were known when the event started; the request goes on.
    Unfinished,
}

impl Outcome {
    /// Whether the response was handed on in full.
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

    /// Returns a lower-case name, for logs and metrics.
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

/// What is known of one request and its response once the response is over, or at the last call of a drain.
///
/// # Examples
///
/// Bill what was handed on, whether the client stayed to the end or not:
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
    /// The request; `None` where no layer has hooks, since it is kept for them alone.
    pub request: Option<RequestInfo>,
    /// How the exchange ended.
    pub outcome: Outcome,
    /// The status of the response; `None` when there was none.
    pub status: Option<StatusCode>,
    /// The bytes of body data that this layer handed on. A compression outside of this layer changes what the
    /// client receives; one inside of it is seen here.
    pub body_bytes: u64,
    /// The time from the call of the service to the head of its response; `None` when there was no response.
    pub time_to_head: Option<Duration>,
    /// The time from the call of the service until the response was over, or so far if it is
    /// [unfinished](Outcome::Unfinished).
    pub elapsed: Duration,
    /// The `grpc-status`, from the trailers or else from the headers of the response; `None` when there was none.
    pub grpc_status: Option<i32>,
}

impl Exchange {
    /// Makes an exchange that ended with `outcome`, for tests: each `Option` is `None`, each number zero. Set the other
    /// fields as the test needs them.
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

/// The head of a request, as the outermost layer with hooks has seen it, without the headers.
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
    /// Its method.
    pub method: Method,
    /// Its URI. On HTTP/1 that is usually the path and the query alone.
    pub uri: Uri,
    /// Its version.
    pub version: Version,
}

impl From<&Parts> for RequestInfo {
    fn from(parts: &Parts) -> Self {
        Self { method: parts.method.clone(), uri: parts.uri.clone(), version: parts.version }
    }
}
