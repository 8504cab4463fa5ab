//! The shared state of one exchange: its events and observers until it is over, and its facts from then on. At the last
//! call events and observers get the facts so far.
//!
//! No user code runs under the lock of an exchange, and no lock is taken under it but that of a shard, by `waiting`.

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

/// Is called when the exchange is over.
pub(crate) type Observe = Arc<dyn Fn(&Exchange) + Send + Sync>;

/// The name under which the panics of observers are counted.
const OBSERVER: &str = "(observer)";

/// Tells the hook lists of layers apart.
pub(crate) type HookListId = u64;

/// No layer has it.
pub(crate) const NO_HOOKS: HookListId = 0;

/// Shared by the guard of an exchange and all clones of its `Events`.
pub(crate) struct State {
    pub(crate) shard: Arc<Shard>,
    /// The age of events that wait for the end of the exchange counts from here, which spares a clock reading for each.
    pub(crate) began: Instant,
    /// The hook list of the layer that opened the exchange.
    opened_by: HookListId,
    /// The open exchange of another handle in which this one was opened.
    outer: Option<Arc<State>>,
    /// The request, if a layer has hooks.
    request: OnceLock<Box<RequestInfo>>,
    /// What the request is called in reports, if a layer names it.
    label: OnceLock<Cow<'static, str>>,
    phase: Mutex<Phase>,
}

enum Phase {
    Open(Open),
    Over(Over),
}

/// How the exchange ended.
enum Over {
    Seen(Facts),
    /// A test has said so.
    Given(Box<Exchange>),
}

/// What was seen of the exchange so far, and what waits for its end or for the last call.
struct Open {
    progress: Progress,
    events: Vec<Kept>,
    /// With the locations where they were added.
    observers: Vec<(Observe, &'static Location<'static>)>,
    /// The hook lists of inner layers that have added theirs, so that none fires twice.
    joined: Vec<HookListId>,
    /// After the last call nothing waits for the end of the exchange.
    is_last_call: bool,
}

/// What an inner layer finds in the exchange of an outer one.
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

    /// Keeps the request for the hooks. The first one stays.
    pub(crate) fn set_request(&self, request: &Parts) {
        self.request.get_or_init(|| Box::new(request.into()));
    }

    /// Names the request in reports. The first name stays.
    pub(crate) fn set_label(&self, label: Cow<'static, str>) {
        let _ = self.label.set(label);
    }

    /// Accepts an event, or rejects it. It is kept until the exchange is over, and starts now if it is already.
    pub(crate) fn track(
        &self,
        name: &'static str,
        location: &'static Location<'static>,
        event: BoxedEvent,
    ) -> Result<(), TrackError> {
        let runtime = self.shard.runtime(name)?;
        let span = event_span(name);
        // A rejection is counted and logged before the event is dropped, whose destructor is user code.
        let ticket = self.shard.track_event(name, Stage::Waiting, location, self.began)?;
        self.keep(event, ticket, span, runtime);
        Ok(())
    }

    /// Keeps an event that was accepted until the exchange is over. Starts it now if that is over, after the last call,
    /// or if an abort was faster: its first poll ends it then.
    pub(crate) fn keep(&self, mut event: BoxedEvent, ticket: Ticket, span: Option<Span>, runtime: runtime::Handle) {
        event.as_mut().accept(ticket, span);
        let kept = Kept::new(event, runtime);
        let mut phase = self.lock();
        match &mut *phase {
            // An abort takes this lock after it has advanced the epoch: it finds the event here, or is seen here.
            Phase::Open(open) if !open.is_last_call && !kept.ticket().is_some_and(Ticket::is_aborted) => {
                open.events.push(kept);
            }
            _ => {
                drop(phase);
                kept.spawn(Instant::now());
            }
        }
    }

    /// Keeps an observer until the exchange is over, or calls it now if it is already, and after the last call.
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

    /// Counts the panic of an observer, or of the hook that makes it.
    pub(crate) fn observer_panicked(&self, panic: &str, location: &'static Location<'static>) {
        tracing::error!(event = OBSERVER, panic = %OneLine(panic), "observer panicked; the request was served");
        self.shard.count_panicked(OBSERVER, location, one_line(panic));
        metrics::panicked_at_once(OBSERVER);
    }

    /// Notes what was seen, and ends the exchange if it is over then. Returns whether it is over.
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

    /// Notes what was seen, which does not end the exchange.
    pub(super) fn note(&self, note: impl FnOnce(&mut Progress)) {
        if let Phase::Open(Open { progress, .. }) = &mut *self.lock() {
            note(progress);
        }
    }

    /// Ends the exchange as what was seen of it says, unless it is over.
    pub(super) fn end_as_seen(&self, has_panicked: bool) {
        let phase = self.lock();
        if let Phase::Open(Open { progress, .. }) = &*phase {
            let now = Instant::now();
            let over = Over::Seen(progress.facts(has_panicked, now));
            self.end(phase, over, now);
        }
    }

    /// Ends the exchange with these facts, whatever was seen of it, unless it is over.
    pub(super) fn end_as(&self, exchange: Exchange) {
        self.end(self.lock(), Over::Given(Box::new(exchange)), Instant::now());
    }

    /// Calls the observers and starts the events. What is tracked from now on starts at once.
    fn end(&self, mut phase: MutexGuard<'_, Phase>, over: Over, now: Instant) {
        let Phase::Open(Open { events, observers, .. }) = &mut *phase else { return };
        let (events, observers) = (mem::take(events), mem::take(observers));
        *phase = Phase::Over(over);
        self.release(phase, events, observers, now);
    }

    /// Calls the observers and starts the events with what is known of the exchange. Returns how many events these
    /// were.
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

    /// The facts, for an event that runs: of an exchange that is over, or so far.
    pub(crate) fn exchange(&self) -> Exchange {
        self.with_request(self.lock().exchange())
    }

    /// Whether neither an event nor an observer waits for the end of the exchange.
    pub(super) fn is_unheard(&self) -> bool {
        matches!(&*self.lock(), Phase::Open(Open { events, observers, .. }) if events.is_empty() && observers.is_empty())
    }

    /// The names of the events that wait for the end of the exchange, in the order in which they were tracked.
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

    /// This exchange, and those of other handles around it, from the inside out.
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
        // Without the lock: each counts as aborted as it is dropped, which is user code.
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
