//! [`ExchangeGuard`]: the one type whose drop ends an exchange.

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

/// Held by the response future, then by the response body, always in a field after the inner value: what that tracks in
/// its destructor belongs to the exchange as well.
pub(crate) struct ExchangeGuard {
    state: Arc<State>,
    /// `None` if the registry was closed. The request is served nevertheless.
    request: Option<Ticket>,
    /// User code is being polled. It stays set when that panics. `thread::panicking` would not do: under a layer that
    /// catches panics it is false by the time of the drop.
    is_polling: bool,
    /// The exchange is over, or nothing asks how it ends.
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

    /// User code is about to run: a panic of it will be noted, and a drain of the same handle in it will be an error.
    #[inline]
    pub(crate) fn poll_begins(&mut self) -> Mark {
        if self.is_polling {
            // Something caught the panic and goes on. The exchange is over all the same.
            self.end();
        }
        self.is_polling = true;
        Mark::new(self.state.shard.registry.id())
    }

    /// User code has returned.
    #[inline]
    pub(crate) fn poll_returned(&mut self, mark: Mark) {
        drop(mark);
        self.is_polling = false;
    }

    /// Whether neither the end of the response nor a panic has been seen.
    #[inline]
    pub(crate) fn is_watching(&self) -> bool {
        !self.has_ended && !self.is_polling
    }

    /// Notes what was seen, and ends the exchange if that was the last of it.
    #[inline]
    pub(crate) fn see(&mut self, note: impl FnOnce(&mut Progress)) {
        if !self.has_ended {
            self.has_ended = self.state.see(note);
        }
    }

    /// Notes the head of the response. That a body is empty may be known now, but the end of it is its drop.
    #[inline]
    pub(crate) fn see_head(&mut self, status: StatusCode, headers: &HeaderMap, exact_size: Option<u64>, is_end: bool) {
        if self.has_ended {
            return;
        }
        if self.is_unheard() {
            self.has_ended = true;
            return;
        }
        self.state.note(|progress| progress.head(status, headers, exact_size, is_end, Instant::now()));
        if self.state.shard.registry.is_last_call() {
            // The request was opened after it, or the call has reached it already.
            self.state.last_call();
        }
    }

    /// Whether nothing can ask any more how the exchange ends: no event and no observer waits for it, and its `Events`
    /// are gone. Most requests of a service that tracks little are like that, and need no clock and no facts.
    fn is_unheard(&self) -> bool {
        // One reference is that of this guard, another that of the registry.
        let references = 1 + usize::from(self.request.is_some());
        if Arc::strong_count(&self.state) > references {
            return false;
        }
        // What was tracked through references that are gone is seen.
        atomic::fence(atomic::Ordering::Acquire);
        self.state.is_unheard()
    }

    /// Notes that the body was at its end when it was dropped. The drop of this guard follows.
    #[inline]
    pub(crate) fn see_end_at_drop(&mut self) {
        self.state.note(Progress::body_ended);
    }

    /// Ends the exchange with these facts, whatever was seen of it.
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
