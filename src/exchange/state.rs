//! [`State`]: the events and observers of one exchange until it is over, and its facts from then on. At the last call
//! events and observers get the facts so far.
//!
//! No user code runs under the lock of an exchange. The only lock that is taken under it is that of a shard, by
//! `waiting`.

use std::{
    borrow::Cow,
    fmt, iter, mem,
    panic::Location,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use http::request::Parts;
use tokio::{runtime, time::Instant};
use tracing::Span;

use crate::{
    context::{Shard, Ticket},
    error::TrackError,
    event::{
        BoxedEvent, event_span,
        together::{self, Kept},
    },
    exchange::{Exchange, Progress, RequestInfo, progress::Facts},
    metrics,
    registry::{Epoch, OpenRequest, Stage},
    util::{
        panic::catch,
        reentrancy,
        text::{OneLine, one_line},
    },
};

/// An observer, which is called when the exchange is over.
pub(crate) type Observe = Arc<dyn Fn(&Exchange) + Send + Sync>;

/// The name under which the panics of observers are counted.
const OBSERVER: &str = "(observer)";

/// Identifies the hook list of a layer.
pub(crate) type HookListId = u64;

/// The identifier that no layer has.
pub(crate) const NO_HOOKS: HookListId = 0;

/// The state of an exchange, which its guard, its `Events` and its registry share.
pub(crate) struct State {
    pub(crate) shard: Arc<Shard>,
    /// The age of events that wait for the end of the exchange counts from here. So they need no clock reading each.
    pub(crate) began: Instant,
    /// The hook list of the layer that opened the exchange.
    opened_by: HookListId,
    /// The open exchange of another handle in which this one was opened.
    outer: Option<Arc<State>>,
    /// The request, if a layer has hooks.
    request: OnceLock<Box<RequestInfo>>,
    /// The name of the request in reports, if a layer has a label.
    label: OnceLock<Cow<'static, str>>,
    phase: Mutex<Phase>,
}

enum Phase {
    Open(Open),
    Over(Over),
}

/// The facts of an exchange that is over.
enum Over {
    Seen(Facts),
    /// The facts that a test has passed.
    Given(Box<Exchange>),
}

/// The observations of an open exchange, and the events and observers that wait for its end or for the last call.
struct Open {
    progress: Progress,
    events: Vec<Kept>,
    /// The observers, with the locations where they were added.
    observers: Vec<(Observe, &'static Location<'static>)>,
    /// The hook lists of inner layers that have added their hooks, so that no hook is added twice.
    joined: Vec<HookListId>,
    /// After the last call no event and no observer waits for the end of the exchange.
    is_last_call: bool,
}

/// The result of [`State::join`].
pub(crate) enum Joined {
    /// The exchange is open, and these hooks are new to it.
    New,
    /// The exchange is open and has these hooks.
    Again,
    /// The exchange is over.
    Over,
}

impl State {
    #[inline]
    pub(super) fn new(
        shard: &Arc<Shard>,
        began: Instant,
        progress: Progress,
        opened_by: HookListId,
        outer: Option<Arc<State>>,
    ) -> Arc<Self> {
        let open =
            Open { progress, events: Vec::new(), observers: Vec::new(), joined: Vec::new(), is_last_call: false };
        let phase = Mutex::new(Phase::Open(open));
        let (request, label) = (OnceLock::new(), OnceLock::new());
        Arc::new(Self { shard: Arc::clone(shard), began, opened_by, outer, request, label, phase })
    }

    /// Stores the request for the hooks. Later calls do nothing.
    pub(crate) fn set_request(&self, request: &Parts) {
        self.request.get_or_init(|| Box::new(request.into()));
    }

    /// Sets the name of the request in reports. Later calls do nothing.
    pub(crate) fn set_label(&self, label: Cow<'static, str>) {
        let _ = self.label.set(label);
    }

    /// Accepts an event, or rejects it. An accepted event starts when the exchange is over.
    pub(crate) fn track(
        &self,
        name: &'static str,
        location: &'static Location<'static>,
        event: BoxedEvent,
    ) -> Result<(), TrackError> {
        let runtime = self.shard.runtime(name)?;
        let span = event_span(name);
        // A rejection is counted and logged before the event is dropped, because its destructor is user code.
        let ticket = self.shard.track_event(name, Stage::Waiting, location, self.began)?;
        self.keep(event, ticket, span, runtime);
        Ok(())
    }

    /// Keeps an accepted event until the exchange is over. Starts it now if the exchange is over, after the last call,
    /// or if the event was aborted meanwhile: then its first poll ends it.
    pub(crate) fn keep(&self, mut event: BoxedEvent, ticket: Ticket, span: Option<Span>, runtime: runtime::Handle) {
        event.as_mut().accept(ticket, span);
        let kept = Kept::new(event, runtime);
        let mut phase = self.lock();
        match &mut *phase {
            // An abort takes this lock after it has advanced the epoch. Either it finds the event in the list, or this
            // check sees the new epoch.
            Phase::Open(open) if !open.is_last_call && !kept.ticket().is_some_and(Ticket::is_aborted) => {
                open.events.push(kept);
            }
            _ => {
                drop(phase);
                kept.spawn(Instant::now());
            }
        }
    }

    /// Keeps an observer until the exchange is over. Calls it now if the exchange is over, or after the last call.
    pub(crate) fn observe(&self, observe: Observe, location: &'static Location<'static>) {
        let mut phase = self.lock();
        match &mut *phase {
            Phase::Open(open) if !open.is_last_call => open.observers.push((observe, location)),
            known => {
                let exchange = self.with_request(known.exchange());
                drop(phase);
                self.call(observe, location, &exchange);
            }
        }
    }

    fn call(&self, observe: Observe, location: &'static Location<'static>, exchange: &Exchange) {
        let called = reentrancy::enter(self.shard.registry.id(), || catch(|| observe(exchange)));
        if let Err(panic) = called {
            self.observer_panicked(&panic, location);
        }
    }

    /// Logs and counts the panic of an observer.
    pub(crate) fn observer_panicked(&self, panic: &str, location: &'static Location<'static>) {
        tracing::error!(event = OBSERVER, panic = %OneLine(panic), "observer panicked; the request was served");
        self.shard.count_panicked(OBSERVER, location, one_line(panic));
        metrics::panicked_at_once(OBSERVER);
    }

    /// Records an observation, and ends the exchange if the response is over then. Returns whether it is over.
    pub(super) fn see(&self, note: impl FnOnce(&mut Progress)) -> bool {
        let mut phase = self.lock();
        let Phase::Open(Open { progress, .. }) = &mut *phase else { return true };
        note(progress);
        let is_over = progress.is_over();
        if is_over {
            let now = Instant::now();
            let over = Over::Seen(progress.facts(false, now));
            self.end(phase, over, now);
        }
        is_over
    }

    /// Records an observation that does not end the exchange.
    pub(super) fn note(&self, note: impl FnOnce(&mut Progress)) {
        if let Phase::Open(Open { progress, .. }) = &mut *self.lock() {
            note(progress);
        }
    }

    /// Ends the exchange with the observed facts, unless it is over.
    pub(super) fn end_as_seen(&self, has_panicked: bool) {
        let phase = self.lock();
        if let Phase::Open(Open { progress, .. }) = &*phase {
            let now = Instant::now();
            let over = Over::Seen(progress.facts(has_panicked, now));
            self.end(phase, over, now);
        }
    }

    /// Ends the exchange with these facts instead of the observed ones, unless it is over.
    pub(super) fn end_as(&self, exchange: Exchange) {
        self.end(self.lock(), Over::Given(Box::new(exchange)), Instant::now());
    }

    /// Ends the exchange: calls the observers and starts the events. Events that are tracked later start at once.
    fn end(&self, mut phase: MutexGuard<'_, Phase>, over: Over, now: Instant) {
        let Phase::Open(Open { events, observers, .. }) = &mut *phase else { return };
        let (events, observers) = (mem::take(events), mem::take(observers));
        *phase = Phase::Over(over);
        self.release(phase, events, observers, now);
    }

    /// Calls the observers with the facts so far, and starts the events. Returns the number of events.
    fn release(
        &self,
        phase: MutexGuard<'_, Phase>,
        events: Vec<Kept>,
        observers: Vec<(Observe, &'static Location<'static>)>,
        now: Instant,
    ) -> usize {
        let for_observers = (!observers.is_empty()).then(|| self.with_request(phase.exchange()));
        drop(phase);
        if let Some(exchange) = for_observers {
            observers.into_iter().for_each(|(observe, location)| self.call(observe, location, &exchange));
        }
        let count = events.len();
        together::spawn(events, now);
        count
    }

    /// Returns the facts of an exchange that is over, or the facts so far.
    pub(crate) fn exchange(&self) -> Exchange {
        self.with_request(self.lock().exchange())
    }

    /// Returns whether neither an event nor an observer waits for the end of the exchange.
    pub(super) fn nothing_waits(&self) -> bool {
        matches!(
            &*self.lock(),
            Phase::Open(Open { events, observers, .. }) if events.is_empty() && observers.is_empty()
        )
    }

    /// Returns the names of the events that wait for the end of the exchange, in the order in which they were tracked.
    pub(super) fn waiting(&self) -> Vec<&'static str> {
        match &*self.lock() {
            Phase::Open(open) => {
                open.events.iter().filter_map(Kept::ticket).map(|ticket| ticket.name_and_location().0).collect()
            }
            Phase::Over(_) => Vec::new(),
        }
    }

    fn with_request(&self, mut exchange: Exchange) -> Exchange {
        if exchange.request.is_none() {
            exchange.request = self.request.get().map(|request| (**request).clone());
        }
        exchange
    }

    pub(crate) fn is_over(&self) -> bool {
        matches!(*self.lock(), Phase::Over(_))
    }

    /// Returns this exchange, and the exchanges of other handles around it, from the innermost to the outermost.
    pub(crate) fn and_outer(self: &Arc<Self>) -> impl Iterator<Item = &Arc<Self>> {
        iter::successors(Some(self), |state| state.outer.as_ref())
    }

    /// Adds the hook list of an inner layer, if the exchange is open and does not have it.
    pub(crate) fn join(&self, list: HookListId) -> Joined {
        match &mut *self.lock() {
            Phase::Over(_) => Joined::Over,
            Phase::Open(open) if self.opened_by == list || open.joined.contains(&list) => Joined::Again,
            Phase::Open(open) => {
                open.joined.push(list);
                Joined::New
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Phase> {
        // No user code runs under the lock.
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Phase {
    fn exchange(&self) -> Exchange {
        match self {
            Self::Open(open) => (&open.progress.facts_so_far(Instant::now())).into(),
            Self::Over(Over::Seen(facts)) => facts.into(),
            Self::Over(Over::Given(exchange)) => (**exchange).clone(),
        }
    }
}

impl OpenRequest for State {
    fn abort(&self, epoch: Epoch) {
        let mut aborted = Vec::new();
        if let Phase::Open(open) = &mut *self.lock() {
            let events = mem::take(&mut open.events).into_iter();
            let is_before = |kept: &Kept| kept.ticket().is_some_and(|ticket| ticket.is_before(epoch));
            (aborted, open.events) = events.partition(is_before);
        }
        // Without the lock: the drop counts each event as aborted, and runs user code.
        drop(aborted);
    }

    fn label(&self) -> Option<Cow<'static, str>> {
        self.label.get().cloned()
    }

    fn last_call(&self) -> usize {
        let mut phase = self.lock();
        let Phase::Open(Open { events, observers, is_last_call, .. }) = &mut *phase else { return 0 };
        *is_last_call = true;
        let (events, observers) = (mem::take(events), mem::take(observers));
        self.release(phase, events, observers, Instant::now())
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("over", &self.is_over()).finish_non_exhaustive()
    }
}
