//! The events that a layer tracks for every exchange.

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
    record::{HookListId, Record, Start},
};

type Filter = Box<dyn Fn(&Parts) -> bool + Send + Sync>;
type Make = Box<dyn Fn(&Parts) -> Start + Send + Sync>;

/// One event for every exchange that its filter lets pass.
pub(crate) struct Hook {
    pub(crate) name: &'static str,
    pub(crate) location: &'static Location<'static>,
    pub(crate) filter: Option<Filter>,
    pub(crate) make: Make,
}

/// The hooks of one layer and its clones.
pub(crate) struct HookList {
    pub(crate) id: HookListId,
    pub(crate) hooks: Box<[Hook]>,
}

impl HookList {
    pub(crate) fn new(hooks: Vec<Hook>) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Arc::new(Self { id: NEXT.fetch_add(1, Ordering::Relaxed), hooks: hooks.into() })
    }

    /// Records an event for each hook. One that is refused is counted: nobody is there to take the error.
    pub(crate) fn record(&self, record: &Record, request: &Parts) {
        for hook in &self.hooks {
            hook.record(record, request);
        }
    }
}

impl Hook {
    fn record(&self, record: &Record, request: &Parts) {
        let applies = contain(|| self.filter.as_ref().is_none_or(|filter| filter(request)));
        if matches!(applies, Ok(false)) {
            return;
        }
        let Ok((launch, runtime)) = record.accept(self.name, self.location) else {
            return;
        };
        // The request is served, whatever the hook does.
        match applies.and_then(|_| contain(|| (self.make)(request))) {
            Ok(start) => record.add(launch, runtime, start),
            Err(panic) => launch.panicked(panic),
        }
    }
}

impl fmt::Debug for HookList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id: _, hooks } = self;
        f.debug_list().entries(hooks.iter().map(|hook| hook.name)).finish()
    }
}
