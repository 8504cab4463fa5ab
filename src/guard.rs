//! [`ExchangeGuard`]: the one type whose drop ends an exchange.

use std::{sync::Arc, task::Waker};

use http::{HeaderMap, StatusCode};

use crate::{
    exchange::{Exchange, Progress},
    inside,
    ledger::RequestKey,
    metrics,
    record::{Listeners, Record},
};

/// Held by the response future, then by the response body, always in a field after the inner value: what that records
/// in its destructor belongs to the exchange as well.
pub(crate) struct ExchangeGuard {
    progress: Progress,
    record: Arc<Record>,
    over: bool,
    /// Closed after all else: until then a drain waits. There is none once the house is drained; the request is served
    /// nevertheless.
    request: Option<RequestKey>,
}

impl ExchangeGuard {
    pub(crate) fn new(progress: Progress, record: Arc<Record>) -> Self {
        let request = record.shard.open_request(record.began, || Waker::from(Arc::clone(&record))).ok();
        if request.is_some() {
            metrics::request_opened();
        }
        Self { progress, record, over: false, request }
    }

    fn listeners(&self) -> Listeners {
        // An open request has a waker, which is a reference to the record.
        self.record.listeners(usize::from(self.request.is_some()))
    }

    /// Runs code of the service. Its panic is noted, and a drain of the same handle inside of it is refused.
    pub(crate) fn watch<T>(&mut self, run: impl FnOnce() -> T) -> T {
        if self.progress.has_panicked() {
            // Somebody caught the panic and goes on. The exchange is over all the same.
            self.end();
        }
        self.progress.poll_begins();
        let value = inside::enter(self.record.shard.ledger_id(), run);
        self.progress.poll_returned();
        value
    }

    /// The service has been polled, or waits to be.
    pub(crate) fn waits(&self) {
        self.record.waits();
    }

    pub(crate) fn has_panicked(&self) -> bool {
        self.progress.has_panicked()
    }

    /// Notes what was seen, and ends the exchange if that was the last of it.
    pub(crate) fn see(&mut self, note: impl FnOnce(&mut Progress)) {
        if !self.over {
            note(&mut self.progress);
            if self.progress.is_over() {
                self.end();
            }
        }
    }

    /// Notes the head of the response. That a body is empty may be known now, but the end of it is its drop.
    pub(crate) fn see_head(&mut self, status: StatusCode, headers: &HeaderMap, exact_size: Option<u64>, is_end: bool) {
        self.waits();
        // The clock is read only if somebody could ask for the time.
        let to_head =
            (self.listeners() == Listeners::ToFacts).then(|| self.record.shard.house().age(self.record.began));
        self.progress.head(status, headers, exact_size, is_end, to_head);
    }

    /// Notes that the body was at its end when it was dropped. The drop of this guard follows.
    pub(crate) fn see_end_at_drop(&mut self) {
        self.progress.body_ended();
    }

    /// Ends the exchange, whatever was seen of it.
    pub(crate) fn end_as(mut self, exchange: Exchange) {
        self.over = true;
        self.record.close(Listeners::ToFacts, |_| exchange);
    }

    fn end(&mut self) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        let progress = &self.progress;
        self.record.close(self.listeners(), |elapsed| progress.exchange(elapsed));
    }
}

impl Drop for ExchangeGuard {
    fn drop(&mut self) {
        self.end();
        if let Some(request) = self.request.take() {
            metrics::request_closed();
            self.record.shard.close_request(request);
        }
    }
}
