//! The facts about one exchange, and the rule by which it ends.
//!
//! [`Progress`] is fed what the layer sees: the head, each frame, the end, a drop. It answers two questions: is the
//! response over, and how did it end. It neither polls nor spawns anything.

use std::{
    sync::atomic::{
        AtomicBool, AtomicU8, AtomicU16, AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
    time::Duration,
};

use http::{HeaderMap, HeaderName, Method, StatusCode, Version, header};

use crate::entry::{Nanos, nanos};

/// Not parsed anew for each response.
static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// How an exchange ended.
///
/// The first rule that matches wins, in the order of the variants of this page: a panic of the service, a future
/// dropped before it was ready, an error of the service, an upgrade, an error of the body, a response that cannot
/// have a body, a declared length that was reached or missed, an end that was seen, and else `Aborted`.
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
    /// The body ended with fewer or more bytes than its `Content-Length` (or its exact size) had declared.
    LengthMismatch,
    /// The body was dropped before its end. For an endless stream, such as server-sent events, this is the ordinary
    /// end; for any other it means that the client left.
    Aborted,
}

impl Outcome {
    /// Each in its place.
    const ALL: [Self; 8] = [
        Self::Panicked,
        Self::NoResponse,
        Self::ServiceError,
        Self::Upgraded,
        Self::BodyError,
        Self::Complete,
        Self::LengthMismatch,
        Self::Aborted,
    ];

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

    /// Gives a lower-case name, for logs and metrics.
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
        }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is known of one request and its response once the response is over.
///
/// # Examples
///
/// Bill what was handed on, whether the client stayed to the end or not:
///
/// ```
/// use tower_track_events::{Exchange, TrackEventsHandle, TrackEventsLayer};
///
/// # async fn bill(bytes: u64) {}
/// let layer = TrackEventsLayer::builder(TrackEventsHandle::new())
///     .track("bill", |_request| |exchange: Exchange| bill(exchange.body_bytes))
///     .build();
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exchange {
    /// How the exchange ended.
    pub outcome: Outcome,
    /// The status of the response; `None` when there was none.
    pub status: Option<StatusCode>,
    /// The bytes of body data that this layer handed on. A compression outside of this layer changes what the
    /// client receives; one inside of it is seen here.
    pub body_bytes: u64,
    /// The time from the call of the service to the head of its response; `None` when there was no response.
    pub time_to_head: Option<Duration>,
    /// The time from the call of the service until the response was over.
    pub elapsed: Duration,
    /// The `grpc-status`, from the trailers or else from the headers of the response; `None` when there was none.
    pub grpc_status: Option<i32>,
}

impl Exchange {
    /// Makes an exchange that ended with `outcome`, for tests: each `Option` is `None`, each number zero. Set the other fields
    /// as the test needs them.
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
        Self { outcome, status: None, body_bytes: 0, time_to_head: None, elapsed: Duration::ZERO, grpc_status: None }
    }
}

/// What the layer has seen of one exchange so far.
///
/// It stands in the record, which others have as well, but the guard of the exchange alone writes and reads it: the
/// atomics are in the place of cells.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    is_head: bool,
    is_connect: bool,
    /// On HTTP/1 the last declared byte ends the response; later versions may send trailers after it.
    ends_at_length: bool,
    /// Of the response; zero before its head.
    status: AtomicU16,
    time_to_head: Optional,
    declared: Optional,
    body_bytes: AtomicU64,
    grpc_status: Optional,
    /// The service before the head, or the body after it.
    failed: AtomicBool,
    /// `None`, trailers, or `is_end_stream` was seen.
    ended: AtomicBool,
    /// User code is being polled. It stays set when that panics.
    polling: AtomicBool,
    /// When the exchange is over; none of what it is told by is written after it.
    elapsed: AtomicU64,
    /// The place of the outcome in the list of all, from one; zero before there is one. Written last.
    outcome: AtomicU8,
}

/// A number that may be missing.
#[derive(Debug)]
struct Optional(AtomicU64);

impl Optional {
    const NONE: u64 = u64::MAX;

    fn get(&self) -> Option<u64> {
        Some(self.0.load(Relaxed)).filter(|number| *number != Self::NONE)
    }

    /// The largest number is taken for the one below it.
    fn set(&self, number: Option<u64>) {
        self.0.store(number.map_or(Self::NONE, |number| number.min(Self::NONE - 1)), Relaxed);
    }
}

impl Default for Optional {
    fn default() -> Self {
        Self(AtomicU64::new(Self::NONE))
    }
}

impl Progress {
    #[inline]
    pub(crate) fn new(method: &Method, version: Version) -> Self {
        Self {
            is_head: *method == Method::HEAD,
            is_connect: *method == Method::CONNECT,
            ends_at_length: version <= Version::HTTP_11,
            ..Self::default()
        }
    }

    /// User code is about to run. A panic leaves the mark standing, which is how it is told: under a layer that
    /// catches panics, `thread::panicking()` is false by the time of the drop.
    #[inline]
    pub(crate) fn poll_begins(&self) {
        self.polling.store(true, Relaxed);
    }

    #[inline]
    pub(crate) fn poll_returned(&self) {
        self.polling.store(false, Relaxed);
    }

    #[inline]
    pub(crate) fn has_panicked(&self) -> bool {
        self.polling.load(Relaxed)
    }

    /// The service has returned an error, or its body has.
    #[inline]
    pub(crate) fn failed(&self) {
        self.failed.store(true, Relaxed);
    }

    /// The head of the response, with what its body says of itself before it is polled.
    pub(crate) fn head(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        exact_size: Option<u64>,
        ended: bool,
        time_to_head: Option<Nanos>,
    ) {
        self.status.store(status.as_u16(), Relaxed);
        self.time_to_head.set(time_to_head);
        self.declared.set(content_length(headers).or(exact_size));
        self.grpc_status.set(grpc_status(headers).map(to_number));
        self.ended.store(ended, Relaxed);
    }

    #[inline]
    pub(crate) fn data(&self, bytes: usize) {
        self.body_bytes.store(self.body_bytes.load(Relaxed).saturating_add(bytes as u64), Relaxed);
    }

    pub(crate) fn trailers(&self, trailers: &HeaderMap) {
        if let Some(status) = grpc_status(trailers) {
            self.grpc_status.set(Some(to_number(status)));
        }
        self.body_ended();
    }

    #[inline]
    pub(crate) fn body_ended(&self) {
        self.ended.store(true, Relaxed);
    }

    fn status(&self) -> Option<StatusCode> {
        StatusCode::from_u16(self.status.load(Relaxed)).ok()
    }

    /// Whether the last thing that was seen ends the response; otherwise the drop will.
    #[inline]
    pub(crate) fn is_over(&self) -> bool {
        if self.failed.load(Relaxed) {
            return true;
        }
        let has_length = || self.declared.get().is_some_and(|declared| self.body_bytes.load(Relaxed) >= declared);
        self.status.load(Relaxed) != 0 && (self.ended.load(Relaxed) || (self.ends_at_length && has_length()))
    }

    /// How the exchange ends if nothing more is seen of it: the rule, first match wins.
    fn outcome(&self) -> Outcome {
        if self.has_panicked() {
            return Outcome::Panicked;
        }
        let (failed, ended) = (self.failed.load(Relaxed), self.ended.load(Relaxed));
        let Some(status) = self.status() else {
            return if failed { Outcome::ServiceError } else { Outcome::NoResponse };
        };
        if status == StatusCode::SWITCHING_PROTOCOLS || (self.is_connect && status.is_success()) {
            return Outcome::Upgraded;
        }
        if failed {
            return Outcome::BodyError;
        }
        let without_body = self.is_head
            || status.is_informational()
            || status == StatusCode::NO_CONTENT
            || status == StatusCode::NOT_MODIFIED;
        if without_body {
            return Outcome::Complete;
        }
        let body_bytes = self.body_bytes.load(Relaxed);
        match self.declared.get() {
            Some(declared) if body_bytes == declared => Outcome::Complete,
            // More than was declared cannot become right again, whether an end is seen or not.
            Some(declared) if ended || body_bytes > declared => Outcome::LengthMismatch,
            _ if ended => Outcome::Complete,
            _ => Outcome::Aborted,
        }
    }

    /// The exchange is over: from now on others see how it ended.
    pub(crate) fn end(&self, elapsed: Nanos) {
        self.end_with(self.outcome(), elapsed);
    }

    /// It is over, and was all as is said here.
    pub(crate) fn end_as(&self, exchange: Exchange) {
        let Exchange { outcome, status, body_bytes, time_to_head, elapsed, grpc_status } = exchange;
        self.status.store(status.map_or(0, |status| status.as_u16()), Relaxed);
        self.body_bytes.store(body_bytes, Relaxed);
        self.time_to_head.set(time_to_head.map(nanos));
        self.grpc_status.set(grpc_status.map(to_number));
        self.end_with(outcome, nanos(elapsed));
    }

    #[inline]
    fn end_with(&self, outcome: Outcome, elapsed: Nanos) {
        self.elapsed.store(elapsed, Relaxed);
        self.outcome.store(outcome as u8 + 1, Release);
    }

    #[inline]
    pub(crate) fn has_outcome(&self) -> bool {
        self.outcome.load(Acquire) > 0
    }

    /// How the exchange ended; `None` before it has.
    pub(crate) fn exchange(&self) -> Option<Exchange> {
        let outcome = Outcome::ALL[usize::from(self.outcome.load(Acquire).checked_sub(1)?)];
        Some(Exchange {
            outcome,
            status: self.status(),
            body_bytes: self.body_bytes.load(Relaxed),
            time_to_head: self.time_to_head.get().map(Duration::from_nanos),
            elapsed: Duration::from_nanos(self.elapsed.load(Relaxed)),
            grpc_status: self.grpc_status.get().map(|number| number as u32 as i32),
        })
    }
}

/// Not the largest number there is.
fn to_number(status: i32) -> u64 {
    u64::from(status as u32)
}

/// The declared length; `None` as well when the header is not a number or says two different things.
fn content_length(headers: &HeaderMap) -> Option<u64> {
    let mut values = headers.get_all(header::CONTENT_LENGTH).iter();
    let first = values.next()?;
    if values.any(|other| other != first) {
        return None;
    }
    let text = first.to_str().ok()?;
    // `u64::from_str` would take a leading plus sign.
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

fn grpc_status(headers: &HeaderMap) -> Option<i32> {
    headers.get(&GRPC_STATUS)?.to_str().ok()?.parse().ok()
}
