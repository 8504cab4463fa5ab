//! [`ExchangeGuard`]: the one type whose drop ends an exchange.

use std::sync::Arc;

use http::{HeaderMap, StatusCode};

use crate::{
    exchange::{Exchange, Progress},
    inside::Mark,
    record::{Listeners, Record},
};

/// Held by the response future, then by the response body, always in a field after the inner value: what that records
/// in its destructor belongs to the exchange as well.
///
/// It is a pointer, because it is moved with each of them; what it knows is in the record.
pub(crate) struct ExchangeGuard(Arc<Record>);

impl ExchangeGuard {
    /// Of a record that was opened just now.
    #[inline]
    pub(crate) fn new(record: Arc<Record>) -> Self {
        Self(record)
    }

    /// Runs code of the service. Its panic is noted, and a drain of the same handle inside of it is refused.
    #[inline(always)]
    pub(crate) fn watch<T>(&self, run: impl FnOnce() -> T) -> T {
        let watch = self.begin_watch();
        let value = run();
        watch.end();
        value
    }

    /// The same for what is better not moved into a closure.
    #[inline]
    pub(crate) fn begin_watch(&self) -> Watch<'_> {
        let Self(record) = self;
        if record.progress.has_panicked() {
            // Somebody caught the panic and goes on. The exchange is over all the same.
            self.end();
        }
        record.progress.poll_begins();
        Watch { progress: &record.progress, _mark: Mark::of(record.shard.ledger_id()) }
    }

    /// The service has been polled, or waits to be.
    #[inline]
    pub(crate) fn waits(&self) {
        self.0.waits();
    }

    /// Whether it is still to be seen how the response ends.
    #[inline]
    pub(crate) fn is_watching(&self) -> bool {
        !self.0.has_ended() && !self.0.progress.has_panicked()
    }

    /// Notes what was seen, and ends the exchange if that was the last of it.
    #[inline]
    pub(crate) fn see(&self, note: impl FnOnce(&Progress)) {
        if !self.0.has_ended() {
            note(&self.0.progress);
            if self.0.progress.is_over() {
                self.end();
            }
        }
    }

    /// Notes the head of the response. That a body is empty may be known now, but the end of it is its drop.
    #[inline]
    pub(crate) fn see_head(&self, status: StatusCode, headers: &HeaderMap, exact_size: Option<u64>, is_end: bool) {
        self.waits();
        if self.0.has_ended() {
            return;
        }
        let listeners = self.0.listeners();
        if listeners == Listeners::None {
            // How the response goes on is of interest to nobody any more.
            self.end();
            return;
        }
        // The clock is read only if somebody could ask for the time.
        let to_head = (listeners == Listeners::ToFacts).then(|| self.0.age());
        self.0.progress.head(status, headers, exact_size, is_end, to_head);
    }

    /// Notes that the body was at its end when it was dropped. The drop of this guard follows.
    #[inline]
    pub(crate) fn see_end_at_drop(&self) {
        self.0.progress.body_ended();
    }

    /// Ends the exchange, whatever was seen of it.
    pub(crate) fn end_as(self, exchange: Exchange) {
        self.0.end(Listeners::ToFacts, |progress, _| progress.end_as(exchange));
    }

    #[inline]
    fn end(&self) {
        let Self(record) = self;
        record.end(record.listeners(), Progress::end);
    }
}

/// Code of the service runs. If that panics this is dropped, and does not end.
#[must_use = "what runs does not end by itself"]
pub(crate) struct Watch<'a> {
    progress: &'a Progress,
    _mark: Mark,
}

impl Watch<'_> {
    #[inline]
    pub(crate) fn end(self) {
        self.progress.poll_returned();
    }
}

impl Drop for ExchangeGuard {
    #[inline]
    fn drop(&mut self) {
        self.end();
        self.0.close_request();
    }
}
