//! [`Progress`]: the rule by which an exchange ends.
//!
//! The layer passes its observations to [`Progress`]: the head, each frame, the end, a drop. `Progress` decides whether
//! the response is over, and with which outcome. It neither polls nor spawns anything.

use http::{HeaderMap, HeaderName, Method, StatusCode, Version, header};
use tokio::time::Instant;

use crate::exchange::{Exchange, Outcome};

static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// The observations of one exchange so far.
#[derive(Debug)]
pub(crate) struct Progress {
    began: Instant,
    is_head: bool,
    is_connect: bool,
    /// On HTTP/1 the last declared byte ends the response (RFC 9112, 6.3). HTTP/2 may send trailers after it
    /// (RFC 9113, 8.1).
    ends_at_length: bool,
    /// The status of the response. `None` before its head.
    status: Option<StatusCode>,
    /// When the head was ready.
    head_at: Option<Instant>,
    declared: Option<u64>,
    body_bytes: u64,
    grpc_status: Option<i32>,
    /// The service failed before the head, or the body after it.
    failed: bool,
    /// The body returned `None` or trailers, or `is_end_stream` was true.
    ended: bool,
}

impl Progress {
    #[inline]
    pub(crate) fn new(method: &Method, version: Version, began: Instant) -> Self {
        Self {
            began,
            is_head: *method == Method::HEAD,
            is_connect: *method == Method::CONNECT,
            ends_at_length: version <= Version::HTTP_11,
            status: None,
            head_at: None,
            declared: None,
            body_bytes: 0,
            grpc_status: None,
            failed: false,
            ended: false,
        }
    }

    /// Records that the service or the body has returned an error.
    #[inline]
    pub(crate) fn failed(&mut self) {
        self.failed = true;
    }

    /// Records the head of the response, and the exact size and end of its body before the first poll.
    pub(crate) fn head(
        &mut self,
        status: StatusCode,
        headers: &HeaderMap,
        exact_size: Option<u64>,
        ended: bool,
        now: Instant,
    ) {
        self.status = Some(status);
        self.head_at = Some(now);
        self.declared = content_length(headers).or(exact_size);
        self.grpc_status = grpc_status(headers);
        self.ended = ended;
    }

    #[inline]
    pub(crate) fn data(&mut self, bytes: usize) {
        self.body_bytes = self.body_bytes.saturating_add(bytes as u64);
    }

    pub(crate) fn trailers(&mut self, trailers: &HeaderMap) {
        self.grpc_status = grpc_status(trailers).or(self.grpc_status);
        self.body_ended();
    }

    #[inline]
    pub(crate) fn body_ended(&mut self) {
        self.ended = true;
    }

    /// Returns whether the response is over. Otherwise the drop of the body ends it.
    #[inline]
    pub(crate) fn is_over(&self) -> bool {
        let has_length = || self.declared.is_some_and(|declared| self.body_bytes >= declared);
        self.failed || self.status.is_some() && (self.ended || self.ends_at_length && has_length())
    }

    /// Returns the outcome if the exchange ends now. The first rule that matches wins.
    fn outcome(&self, has_panicked: bool) -> Outcome {
        if has_panicked {
            return Outcome::Panicked;
        }
        let Some(status) = self.status else {
            return if self.failed { Outcome::ServiceError } else { Outcome::NoResponse };
        };
        if status == StatusCode::SWITCHING_PROTOCOLS || (self.is_connect && status.is_success()) {
            return Outcome::Upgraded;
        }
        if self.failed {
            return Outcome::BodyError;
        }
        let without_body = self.is_head
            || status.is_informational()
            || status == StatusCode::NO_CONTENT
            || status == StatusCode::NOT_MODIFIED;
        if without_body {
            return Outcome::Complete;
        }
        match self.declared {
            Some(declared) if self.body_bytes == declared => Outcome::Complete,
            // Too many bytes are a mismatch, whether the body has ended or not.
            Some(declared) if self.ended || self.body_bytes > declared => Outcome::LengthMismatch,
            _ if self.ended => Outcome::Complete,
            _ => Outcome::Aborted,
        }
    }

    /// Returns the facts so far of an exchange that is open.
    pub(crate) fn facts_so_far(&self, now: Instant) -> Facts {
        let mut facts = self.facts(false, now);
        if matches!(facts.outcome, Outcome::NoResponse | Outcome::Aborted) {
            facts.outcome = Outcome::Unfinished;
        }
        facts
    }

    /// Returns the facts if the exchange ends at `now`.
    pub(crate) fn facts(&self, has_panicked: bool, now: Instant) -> Facts {
        let Self { began, head_at, status, body_bytes, grpc_status, .. } = *self;
        Facts { outcome: self.outcome(has_panicked), status, body_bytes, grpc_status, began, head_at, ended_at: now }
    }
}

/// The facts of an exchange that is over, or the facts so far. The durations are computed only for an [`Exchange`],
/// because few exchanges need them.
#[derive(Debug)]
pub(crate) struct Facts {
    outcome: Outcome,
    status: Option<StatusCode>,
    body_bytes: u64,
    grpc_status: Option<i32>,
    began: Instant,
    head_at: Option<Instant>,
    ended_at: Instant,
}

impl From<&Facts> for Exchange {
    fn from(facts: &Facts) -> Self {
        let Facts { outcome, status, body_bytes, grpc_status, began, head_at, ended_at } = *facts;
        let since = |at: Instant| at.saturating_duration_since(began);
        let (request, time_to_head, elapsed) = (None, head_at.map(since), since(ended_at));
        Self { request, outcome, status, body_bytes, time_to_head, elapsed, grpc_status }
    }
}

/// Returns the declared length. `None` also if the header is not a number, or if two headers differ.
fn content_length(headers: &HeaderMap) -> Option<u64> {
    let mut values = headers.get_all(header::CONTENT_LENGTH).iter();
    let first = values.next()?;
    if values.any(|other| other != first) {
        return None;
    }
    let text = first.to_str().ok()?;
    // `u64::from_str` would accept a leading plus sign. RFC 9110, 8.6 allows digits only.
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

fn grpc_status(headers: &HeaderMap) -> Option<i32> {
    headers.get(&GRPC_STATUS)?.to_str().ok()?.parse().ok()
}

#[cfg(all(test, not(track_events_loom)))]
mod tests {
    use std::time::Duration;

    use http::{HeaderMap, Method, StatusCode, Version, header};
    use tokio::time::Instant;

    use super::{Progress, content_length, grpc_status};
    use crate::exchange::{Exchange, Outcome};

    fn headers(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::CONTENT_LENGTH, value.parse().expect("a header value"));
        }
        headers
    }

    fn progress(method: &Method, version: Version) -> Progress {
        Progress::new(method, version, Instant::now())
    }

    #[test]
    fn a_declared_length_is_one_number_in_digits() {
        assert_eq!(content_length(&headers(&["12"])), Some(12));
        assert_eq!(content_length(&headers(&["12", "12"])), Some(12));
        for bad in [&["12", "13"][..], &["+12"], &["-1"], &["12, 12"], &[""], &["99999999999999999999"], &[]] {
            assert_eq!(content_length(&headers(bad)), None, "{bad:?}");
        }
    }

    #[test]
    fn a_grpc_status_is_a_number() {
        let mut headers = HeaderMap::new();
        assert_eq!(grpc_status(&headers), None);
        headers.insert("grpc-status", "13".parse().expect("a header value"));
        assert_eq!(grpc_status(&headers), Some(13));
        headers.insert("grpc-status", "x".parse().expect("a header value"));
        assert_eq!(grpc_status(&headers), None);
    }

    #[test]
    fn the_last_declared_byte_ends_a_response_on_http1_and_not_on_http2() {
        for (version, is_over) in [(Version::HTTP_10, true), (Version::HTTP_11, true), (Version::HTTP_2, false)] {
            let mut progress = progress(&Method::GET, version);
            progress.head(StatusCode::OK, &headers(&["3"]), None, false, Instant::now());
            progress.data(2);
            assert!(!progress.is_over());
            assert_eq!(progress.outcome(false), Outcome::Aborted);
            progress.data(1);
            assert_eq!((progress.is_over(), progress.outcome(false)), (is_over, Outcome::Complete));
            progress.data(1);
            assert_eq!(progress.outcome(false), Outcome::LengthMismatch);
        }
    }

    #[test]
    fn an_exchange_that_goes_on_is_unfinished_unless_its_outcome_is_known() {
        let now = Instant::now();
        let so_far = |progress: &Progress| progress.facts_so_far(now).outcome;
        let mut progress = progress(&Method::GET, Version::HTTP_2);
        assert_eq!(so_far(&progress), Outcome::Unfinished);
        progress.head(StatusCode::OK, &headers(&["3"]), None, false, now);
        progress.data(2);
        assert_eq!(so_far(&progress), Outcome::Unfinished);
        progress.data(1);
        assert_eq!(so_far(&progress), Outcome::Complete, "only trailers may follow");
        progress.data(1);
        assert_eq!(so_far(&progress), Outcome::LengthMismatch);
        progress.head(StatusCode::SWITCHING_PROTOCOLS, &HeaderMap::new(), None, false, now);
        assert_eq!(so_far(&progress), Outcome::Upgraded);
    }

    #[test]
    fn a_panic_comes_before_every_other_outcome() {
        let mut progress = progress(&Method::GET, Version::HTTP_11);
        assert_eq!(progress.outcome(false), Outcome::NoResponse);
        progress.failed();
        assert_eq!((progress.is_over(), progress.outcome(false)), (true, Outcome::ServiceError));
        assert_eq!(progress.outcome(true), Outcome::Panicked);
    }

    #[test]
    fn trailers_end_a_response_and_their_grpc_status_wins() {
        let mut progress = progress(&Method::POST, Version::HTTP_2);
        let second = Duration::from_secs(1);
        let began = progress.began;
        let mut head = HeaderMap::new();
        head.insert("grpc-status", "0".parse().expect("a header value"));
        progress.head(StatusCode::OK, &head, None, false, began + second);
        progress.trailers(&HeaderMap::new());
        assert_eq!(progress.facts(false, began).grpc_status, Some(0));
        head.insert("grpc-status", "7".parse().expect("a header value"));
        progress.trailers(&head);
        let exchange = Exchange::from(&progress.facts(false, began + 2 * second));
        assert_eq!((exchange.outcome, exchange.grpc_status), (Outcome::Complete, Some(7)));
        assert_eq!((exchange.time_to_head, exchange.elapsed), (Some(second), 2 * second));
    }
}
