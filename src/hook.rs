//! The events that a layer tracks for every exchange, and its observers.

use std::{
    fmt,
    panic::Location,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use http::request::Parts;

use crate::{
    contain::contain,
    ledger::Room,
    overflow::{self, Overflow, Waiting, WaitingEvent},
    permit::fill,
    record::{HookListId, NO_HOOKS, Observe, Record},
    task::UnacceptedEvent,
};

type Filter = Box<dyn Fn(&Parts) -> bool + Send + Sync>;
pub(crate) type Make = Box<dyn Fn(&Arc<Record>, &Parts) -> UnacceptedEvent + Send + Sync>;

/// One event for every exchange that its filter lets pass.
pub(crate) struct Hook {
    pub(crate) name: &'static str,
    pub(crate) location: &'static Location<'static>,
    pub(crate) filter: Option<Filter>,
    pub(crate) make: Make,
}

/// Makes what is told how each exchange ended.
pub(crate) type Observer = Box<dyn Fn(&Parts) -> Observe + Send + Sync>;

/// The hooks of one layer and its clones.
pub(crate) struct HookList {
    pub(crate) id: HookListId,
    hooks: Box<[Hook]>,
    observers: Box<[Observer]>,
    overflow: Overflow,
}

impl HookList {
    pub(crate) fn new(hooks: Vec<Hook>, observers: Vec<Observer>, overflow: Overflow) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(NO_HOOKS + 1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self { id, hooks: hooks.into(), observers: observers.into(), overflow })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.hooks.is_empty() && self.observers.is_empty()
    }

    /// Records an event for each hook that applies, and gives those that are to wait for room. One that is refused is
    /// counted: nobody is there to take the error.
    pub(crate) fn record(&self, record: &Arc<Record>, request: &Parts) -> Option<Waiting> {
        for observer in &self.observers {
            match contain(|| observer(request)) {
                Ok(observe) => record.observe(observe),
                Err(panic) => record.observer_panicked(&panic),
            }
        }
        let limit = match self.overflow {
            Overflow::Wait(limit) if !limit.is_zero() => limit,
            _ => {
                self.hooks.iter().for_each(|hook| hook.record_or_shed(record, request));
                return None;
            }
        };
        let waiting: Vec<_> = self.hooks.iter().filter_map(|hook| hook.record_or_wait(record, request)).collect();
        (!waiting.is_empty()).then(|| Waiting::new(record, waiting, limit))
    }
}

impl Hook {
    /// Records the event, or counts it as refused: nobody is there to take the error.
    fn record_or_shed(&self, record: &Arc<Record>, request: &Parts) {
        let Some(event) = self.event(record, request) else { return };
        // What was made for an event that is refused is dropped here, which is user code.
        let _ = contain(|| match event {
            Ok(event) => record.track(self.name, self.location, |ticket, cause| event.accepted(ticket, cause)),
            Err(panic) => record.accept(self.name, self.location).map(|launch| launch.panicked(panic)),
        });
    }

    /// Records the event, counts it as refused, or gives it, because it is to wait for room.
    fn record_or_wait(&self, record: &Arc<Record>, request: &Parts) -> Option<WaitingEvent> {
        let Self { name, location, .. } = *self;
        let event = self.event(record, request)?;
        let Ok((place, room)) = overflow::room_for(record, name, location) else {
            let _ = contain(|| drop(event));
            return None;
        };
        match (room, event) {
            (Room::Granted(permit), Ok(event)) => {
                let launch = fill(permit, place, name, Some(record), location);
                record.add(launch, |ticket, cause| event.accepted(ticket, cause));
                None
            }
            (Room::Granted(permit), Err(panic)) => {
                fill(permit, place, name, Some(record), location).panicked(panic);
                None
            }
            (Room::Queued(room), event) => Some(WaitingEvent { name, location, event, place, room }),
        }
    }

    /// The event of an exchange, if it has one, or the panic of the hook. The request is served, whatever the hook does.
    fn event(&self, record: &Arc<Record>, request: &Parts) -> Option<Result<UnacceptedEvent, String>> {
        let applies = || self.filter.as_ref().is_none_or(|filter| filter(request));
        contain(|| applies().then(|| (self.make)(record, request))).transpose()
    }
}

impl fmt::Debug for HookList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id: _, hooks, observers: _, overflow: _ } = self;
        f.debug_list().entries(hooks.iter().map(|hook| hook.name)).finish()
    }
}
