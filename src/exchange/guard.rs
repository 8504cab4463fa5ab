//! [`ExchangeGuard`]: its drop ends an exchange.

use std::sync::{Arc, atomic};

use http::{HeaderMap, Method, StatusCode, Version};
use tokio::time::Instant;

use crate::{
    context::{Shard, Ticket},
    exchange::{Exchange, HookListId, Progress, State},
    metrics,
    registry::OpenRequest,
    util::reentrancy::Mark,
};

/// Keeps an exchange open. The response future owns it, and then the response body.
///
/// It is always in a field after the inner future or body, so that it is dropped later. An event that a destructor of
/// the inner value tracks belongs to the exchange.
pub(crate) struct ExchangeGuard {
    state: Arc<State>,
    /// `None` if the registry was closed. The request is served nevertheless.
    request: Option<Ticket>,
    /// User code is being polled. The flag stays set when that code panics. `thread::panicking` would not work: under a
    /// layer that catches panics it is false at the time of the drop.
    is_polling: bool,
    /// The exchange is over, or nothing needs its outcome.
    has_ended: bool,
}

impl ExchangeGuard {
    /// Opens an exchange.
    pub(crate) fn open(
        shard: &Arc<Shard>,
        method: &Method,
        version: Version,
        opened_by: HookListId,
        outer: Option<Arc<State>>,
    ) -> Self {
        let began = Instant::now();
        let state = State::new(shard, began, Progress::new(method, version, began), opened_by, outer);
        let request = shard.open_request(began, Arc::clone(&state) as Arc<dyn OpenRequest>);
        if request.is_some() {
            metrics::request_opened();
        }
        Self { state, request, is_polling: false, has_ended: false }
    }

    #[inline]
    pub(crate) fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// Called before user code runs, so that a panic of it is detected, and so that a drain of the same handle inside
    /// of it is an error.
    #[inline]
    pub(crate) fn poll_begins(&mut self) -> Mark {
        if self.is_polling {
            // The last poll panicked, and the caller polls again. The exchange ends as panicked.
            self.end();
        }
        self.is_polling = true;
        Mark::new(self.state.shard.registry.id())
    }

    /// Called after user code has returned.
    #[inline]
    pub(crate) fn poll_returned(&mut self, mark: Mark) {
        drop(mark);
        self.is_polling = false;
    }

    /// Returns whether neither the end of the response nor a panic has been observed.
    #[inline]
    pub(crate) fn is_watching(&self) -> bool {
        !self.has_ended && !self.is_polling
    }

    /// Records an observation, and ends the exchange if the response is over then.
    #[inline]
    pub(crate) fn see(&mut self, note: impl FnOnce(&mut Progress)) {
        if !self.has_ended {
            self.has_ended = self.state.see(note);
        }
    }

    /// Records the head of the response. This does not end the exchange, even if the body is empty: its drop does.
    #[inline]
    pub(crate) fn see_head(&mut self, status: StatusCode, headers: &HeaderMap, exact_size: Option<u64>, is_end: bool) {
        if self.has_ended {
            return;
        }
        if self.needs_no_outcome() {
            self.has_ended = true;
            return;
        }
        self.state.note(|progress| progress.head(status, headers, exact_size, is_end, Instant::now()));
        if self.state.shard.registry.is_last_call() {
            // A request that was opened after the last call starts its events here. For others this does nothing.
            self.state.last_call();
        }
    }

    /// Returns whether nothing can need the outcome any more: no event and no observer waits for it, and all `Events`
    /// of the exchange have been dropped. Such a request needs no clock readings and no facts.
    fn needs_no_outcome(&self) -> bool {
        // One reference is that of this guard, another that of the registry.
        let references = 1 + usize::from(self.request.is_some());
        if Arc::strong_count(&self.state) > references {
            return false;
        }
        // Events that were tracked through references which are dropped now are visible after this.
        atomic::fence(atomic::Ordering::Acquire);
        self.state.nothing_waits()
    }

    /// Records that the body was at its end when it was dropped. The drop of this guard follows.
    #[inline]
    pub(crate) fn see_end_at_drop(&mut self) {
        self.state.note(Progress::body_ended);
    }

    /// Ends the exchange with these facts instead of the observed ones.
    pub(crate) fn end_as(mut self, exchange: Exchange) {
        self.has_ended = true;
        self.state.end_as(exchange);
    }

    #[inline]
    fn end(&mut self) {
        if !self.has_ended {
            self.has_ended = true;
            self.state.end_as_seen(self.is_polling);
        }
    }
}

impl Drop for ExchangeGuard {
    #[inline]
    fn drop(&mut self) {
        self.end();
        if self.request.is_some() {
            metrics::request_closed();
        }
    }
}
