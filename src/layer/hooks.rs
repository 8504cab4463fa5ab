//! [`HookList`]: the hooks of a layer. These are the events that it tracks for every exchange, and its observers.

use std::{
    borrow::Cow,
    fmt,
    panic::Location,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use http::request::Parts;

use crate::{
    event::{BoxedEvent, event_span},
    exchange::{
        HookListId, NO_HOOKS, Observe, Overflow, State,
        overflow::{WaitingEvent, WaitingEvents, keep_or_end},
    },
    registry::{Slot, Stage},
    util::{panic::catch, text::OneLine},
};

pub(crate) type Filter = Box<dyn Fn(&Parts) -> bool + Send + Sync>;
pub(crate) type Make = Box<dyn Fn(&Arc<State>, &Parts) -> BoxedEvent + Send + Sync>;

/// A hook that tracks one event for every exchange whose request the filter accepts.
pub(crate) struct Hook {
    pub(crate) name: &'static str,
    pub(crate) location: &'static Location<'static>,
    pub(crate) filter: Option<Filter>,
    pub(crate) make: Make,
}

pub(crate) struct Observer {
    pub(crate) location: &'static Location<'static>,
    pub(crate) observe: Observe,
}

/// Returns the name of a request for reports.
pub(crate) type Label = Arc<dyn Fn(&Parts) -> Cow<'static, str> + Send + Sync>;

/// The hooks of one layer and its clones.
#[derive(Clone)]
pub(crate) struct HookList {
    pub(crate) id: HookListId,
    pub(crate) label: Option<Label>,
    pub(crate) hooks: Vec<Arc<Hook>>,
    pub(crate) observers: Vec<Arc<Observer>>,
    pub(crate) overflow: Overflow,
}

impl HookList {
    pub(crate) fn new() -> Arc<Self> {
        let (hooks, observers) = (Vec::new(), Vec::new());
        Arc::new(Self { id: next_id(), label: None, hooks, observers, overflow: Overflow::default() })
    }

    /// Returns a changed list with a new id: a request that passes through both lists gets the hooks of both.
    pub(crate) fn change(self: Arc<Self>, change: impl FnOnce(&mut Self)) -> Arc<Self> {
        let mut list = Arc::unwrap_or_clone(self);
        list.id = next_id();
        change(&mut list);
        Arc::new(list)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.label.is_none() && self.hooks.is_empty() && self.observers.is_empty()
    }

    /// Tracks an event for each hook that applies, and returns the events that wait for capacity. A rejected event is
    /// only counted, because there is no caller to return an error to.
    pub(crate) fn track(&self, state: &Arc<State>, request: &Parts) -> Option<WaitingEvents> {
        if let Some(label) = &self.label {
            match catch(|| label(request)) {
                Ok(label) => state.set_label(label),
                Err(panic) => tracing::error!(panic = %OneLine(&panic), "label panicked; the request has no label"),
            }
        }
        if !self.hooks.is_empty() || !self.observers.is_empty() {
            state.set_request(request);
        }
        for observer in &self.observers {
            state.observe(Arc::clone(&observer.observe), observer.location);
        }
        let limit = match self.overflow {
            Overflow::Wait(limit) if !limit.is_zero() => limit,
            _ => {
                self.hooks.iter().for_each(|hook| hook.track(state, request));
                return None;
            }
        };
        let waiting: Vec<_> = self.hooks.iter().filter_map(|hook| hook.track_or_wait(state, request)).collect();
        (!waiting.is_empty()).then(|| WaitingEvents::new(state, waiting, limit))
    }
}

impl Hook {
    fn track(&self, state: &Arc<State>, request: &Parts) {
        let Self { name, location, .. } = *self;
        let Some(event) = self.event(state, request) else { return };
        // A rejected event is dropped here. Its destructor is user code and may panic.
        let _ = catch(|| {
            if let Ok(runtime) = state.shard.runtime(name) {
                let span = event_span(name);
                if let Ok(ticket) = state.shard.track_event(name, Stage::Waiting, location, state.began) {
                    keep_or_end(state, ticket, event, span, runtime);
                }
            }
        });
    }

    fn track_or_wait(&self, state: &Arc<State>, request: &Parts) -> Option<WaitingEvent> {
        let Self { name, location, .. } = *self;
        let event = self.event(state, request)?;
        let slot = state.shard.runtime(name).and_then(|runtime| Ok((state.shard.event_slot(name, location)?, runtime)));
        let Ok((slot, runtime)) = slot else {
            let _ = catch(|| drop(event));
            return None;
        };
        let span = event_span(name);
        match slot {
            Slot::Queued(slot) => Some(WaitingEvent { name, location, event, span, runtime, slot }),
            Slot::Granted(permit) => {
                keep_or_end(state, permit.fill(name, Stage::Waiting, location), event, span, runtime);
                None
            }
        }
    }

    /// Returns the event of this request, or the message of the hook's panic. `None` if the hook does not apply. The
    /// request is served in each case.
    fn event(&self, state: &Arc<State>, request: &Parts) -> Option<Result<BoxedEvent, String>> {
        let applies = || self.filter.as_ref().is_none_or(|filter| filter(request));
        catch(|| applies().then(|| (self.make)(state, request))).transpose()
    }
}

fn next_id() -> HookListId {
    static NEXT: AtomicU64 = AtomicU64::new(NO_HOOKS + 1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl fmt::Debug for HookList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id: _, label: _, hooks, observers: _, overflow: _ } = self;
        f.debug_list().entries(hooks.iter().map(|hook| hook.name)).finish()
    }
}
