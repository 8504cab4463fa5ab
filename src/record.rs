//! What one exchange has recorded: its events, until it is over.

use std::{
    fmt,
    panic::Location,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{self, AtomicBool, Ordering},
    },
};

use tracing::Span;

use crate::{
    contain::contain,
    entry::{Nanos, Stage},
    exchange::{Exchange, Outcome, Progress},
    house::{EventTask, House, Shard},
    inside,
    ledger::{Begun, EventTicket, NewEvent, RequestKey},
    metrics,
    output::EventOutput,
    refused::Refused,
    start::{Place, begin},
    task::{Cause, Launch, UnacceptedEvent, unaccepted},
};

/// Is told how the exchange ended, when it has.
pub(crate) type Observe = Box<dyn FnOnce(&Exchange) + Send>;

/// The name under which the panics of observers are counted.
const OBSERVER: &str = "(observer)";

/// Shared by the guard of an exchange and all clones of its `Events`.
///
/// There is one for every request, and most record nothing: what only some need is in the book, which is made when it is
/// first written into. The events that it records are in the ledger, beside the entry of the request.
pub(crate) struct Record {
    pub(crate) shard: Arc<Shard>,
    began: Nanos,
    /// None once the house is drained; the request is served nevertheless.
    request: Option<RequestKey>,
    /// The hook list of the layer that opened the exchange.
    opened_by: HookListId,
    /// The open exchange of another handle in which this one was opened.
    outer: Option<Arc<Record>>,
    pub(crate) progress: Progress,
    /// It is over, whether anybody is told how it ended or not. Of the guard alone.
    has_ended: AtomicBool,
    has_waited: AtomicBool,
    /// Whether an event was recorded that starts where the others of its shard do.
    is_at_home: AtomicBool,
    /// Whether anything waits for the end of the exchange.
    is_awaited: AtomicBool,
    /// Whether anything is to be told how it ended.
    is_asked: AtomicBool,
    has_span: bool,
    book: Mutex<Option<Box<Book>>>,
}

/// Tells the hook lists of layers apart.
pub(crate) type HookListId = u64;

/// No layer has it.
pub(crate) const NO_HOOKS: HookListId = 0;

#[derive(Default)]
struct Book {
    observers: Vec<Observe>,
    /// The hook lists of inner layers that this exchange has met, so that none fires twice.
    joined: Vec<HookListId>,
    /// Released when the exchange is over: a `WebSocket` task may keep the record for hours.
    span: Cause,
}

impl Record {
    /// Opens a request, which somebody has to [close](Self::close_request).
    #[inline]
    pub(crate) fn open(
        shard: &Arc<Shard>,
        progress: Progress,
        opened_by: HookListId,
        outer: Option<Arc<Record>>,
    ) -> Arc<Self> {
        let span = Cause::current();
        let has_span = span.span().is_some();
        let book = has_span.then(|| Box::new(Book { span, ..Book::default() }));
        let began = shard.house().now();
        let request = shard.open_request(began).ok();
        if request.is_some() {
            metrics::request_opened();
        }
        Arc::new(Self {
            shard: Arc::clone(shard),
            began,
            request,
            opened_by,
            outer,
            progress,
            has_ended: AtomicBool::new(false),
            has_waited: AtomicBool::new(false),
            is_at_home: AtomicBool::new(false),
            is_awaited: AtomicBool::new(false),
            is_asked: AtomicBool::new(false),
            has_span,
            book: Mutex::new(book),
        })
    }

    /// Until then a drain waits. To be called once, after all else.
    #[inline]
    pub(crate) fn close_request(&self) {
        if let Some(request) = &self.request {
            metrics::request_closed();
            self.shard.close_request(request);
        }
    }

    /// The time since the exchange has begun.
    pub(crate) fn age(&self) -> Nanos {
        self.shard.house().now().saturating_sub(self.began)
    }

    /// Accepts an event of this exchange, or refuses it. It is kept until the exchange is over; if it is already, the event
    /// starts now.
    #[inline]
    pub(crate) fn track(
        &self,
        name: &'static str,
        location: &'static Location<'static>,
        task: impl FnOnce(EventTicket<House>, Cause) -> EventTask,
    ) -> Result<(), Refused> {
        let shard = &self.shard;
        let place = self.place(name)?;
        let cause = self.cause();
        let mut begun = Begun::default();
        // A refusal is told before the event is dropped, whose destructor is user code.
        let event = self.event(name, location);
        let acceptance = shard.accept(&event).inspect_err(|refused| shard.tell_refused(*refused, name))?;
        // Asked under the lock of the shard, which whoever ends the exchange takes after it is over.
        let is_over = || self.is_over();
        let task = |ticket| place.of(task(ticket, cause));
        acceptance.record(event, self.request.as_ref(), is_over, task, &mut begun);
        self.is_awaited.store(true, Ordering::Relaxed);
        begin(shard, begun);
        // Not before it is on its way: a recorder may be slow.
        metrics::accepted(name);
        Ok(())
    }

    /// Where an event starts that is recorded here and now. If one was recorded at home all that follow are.
    #[inline]
    pub(crate) fn place(&self, name: &'static str) -> Result<Place, Refused> {
        // Acquire and release: who sees it sees the runtime of the shard as well.
        if self.is_at_home.load(Ordering::Acquire) {
            return Ok(Place::HOME);
        }
        let place = Place::here(&self.shard, name)?;
        self.is_at_home.store(place.is_home(), Ordering::Release);
        Ok(place)
    }

    /// Accepts an event that cannot be made, because its hook has panicked, or refuses it.
    pub(crate) fn accept(&self, name: &'static str, location: &'static Location<'static>) -> Result<Launch, Refused> {
        Launch::accept(&self.shard, self.place(name)?, self.event(name, location))
    }

    #[inline]
    pub(crate) fn event(&self, name: &'static str, location: &'static Location<'static>) -> NewEvent {
        NewEvent { name, stage: Stage::Recorded, location, since: Some(self.time()) }
    }

    /// The time at which an event is recorded. The clock is not read in the first poll of the service, where most are.
    fn time(&self) -> Nanos {
        if self.has_waited.load(Ordering::Relaxed) { self.shard.house().now() } else { self.began }
    }

    /// The first poll of the service is over.
    #[inline]
    pub(crate) fn waits(&self) {
        // Relaxed: nothing but a time depends on it.
        self.has_waited.store(true, Ordering::Relaxed);
    }

    /// Keeps the event until the exchange is over. If it is over already the event starts now.
    pub(crate) fn add(&self, launch: Launch, task: impl FnOnce(EventTicket<House>, Cause) -> EventTask) {
        let Launch { ticket, place } = launch;
        let id = ticket.id();
        let event = place.of(task(ticket, self.cause()));
        self.is_awaited.store(true, Ordering::Relaxed);
        let mut begun = Begun::default();
        self.shard.record(self.request.as_ref(), || self.is_over(), id, event, &mut begun);
        begin(&self.shard, begun);
    }

    fn cause(&self) -> Cause {
        if !self.has_span {
            return Cause::default();
        }
        self.lock().as_ref().map(|book| book.span.clone()).unwrap_or_default()
    }

    /// How the exchange ended, for an event of it: none begins before that.
    fn exchange(&self) -> Exchange {
        self.progress.exchange().unwrap_or_else(|| Exchange::new(Outcome::NoResponse))
    }

    /// Keeps an observer until the exchange is over.
    pub(crate) fn observe(&self, observe: Observe) {
        let mut guard = self.lock();
        if let Some(exchange) = self.progress.exchange() {
            drop(guard);
            self.tell(observe, None, &exchange);
        } else {
            self.is_asked.store(true, Ordering::Relaxed);
            book(&mut guard).observers.push(observe);
        }
    }

    fn tell(&self, observe: Observe, span: Option<&Span>, exchange: &Exchange) {
        let observe = || observe(exchange);
        let told = inside::enter(self.shard.ledger_id(), || {
            contain(|| match span {
                Some(span) => span.in_scope(observe),
                None => observe(),
            })
        });
        if let Err(panic) = told {
            self.observer_panicked(&panic);
        }
    }

    /// Counts the panic of an observer, or of what makes it.
    pub(crate) fn observer_panicked(&self, panic: &str) {
        let _ = contain(|| tracing::error!(event = OBSERVER, panic, "observer panicked; the request was served"));
        self.shard.count_panicked(OBSERVER);
        metrics::panicked_in_place(OBSERVER);
    }

    /// This exchange, and those of other handles around it, from the inside out.
    pub(crate) fn and_outer(self: &Arc<Self>) -> impl Iterator<Item = &Arc<Self>> {
        std::iter::successors(Some(self), |record| record.outer.as_ref())
    }

    #[inline]
    pub(crate) fn is_over(&self) -> bool {
        self.progress.has_outcome()
    }

    /// Enters the hook list of an inner layer, if the exchange is open and has not met it yet.
    pub(crate) fn join(&self, list: HookListId) -> Joined {
        let mut guard = self.lock();
        if self.is_over() {
            return Joined::Over;
        }
        let book = book(&mut guard);
        if self.opened_by == list || book.joined.contains(&list) {
            return Joined::Again;
        }
        book.joined.push(list);
        Joined::New
    }

    /// Who is left to be told that the exchange is over.
    #[inline]
    pub(crate) fn listeners(self: &Arc<Self>) -> Listeners {
        // That of its guard is one.
        if Arc::strong_count(self) > 1 {
            return Listeners::ToFacts;
        }
        // What those have recorded who had it before is seen.
        atomic::fence(Ordering::Acquire);
        match (self.is_asked.load(Ordering::Relaxed), self.is_awaited.load(Ordering::Relaxed)) {
            (true, _) => Listeners::ToFacts,
            (false, true) => Listeners::ToEnd,
            (false, false) => Listeners::None,
        }
    }

    #[inline]
    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Relaxed)
    }

    /// Ends the exchange, once: starts what was recorded, and lets what is recorded from now on start at once. The clock is
    /// read only if somebody asks for the time.
    #[inline]
    pub(crate) fn end(&self, listeners: Listeners, end: impl FnOnce(&Progress, Nanos)) {
        // Not swapped, because the guard alone does this.
        if self.has_ended() {
            return;
        }
        self.has_ended.store(true, Ordering::Relaxed);
        if listeners == Listeners::None {
            if self.has_span {
                let book = self.lock().take();
                // Not under the lock: the end of a span is user code.
                drop(book);
            }
            return;
        }
        let now = (listeners == Listeners::ToFacts).then(|| {
            let now = self.shard.house().now();
            end(&self.progress, now.saturating_sub(self.began));
            now
        });
        // Where nobody is told the facts nobody else writes, either.
        let book = if self.has_span || now.is_some() { self.lock().take() } else { None };
        let Book { observers, span, .. } = book.map(|book| *book).unwrap_or_default();
        if !observers.is_empty() {
            let exchange = self.exchange();
            for observe in observers {
                self.tell(observe, span.span(), &exchange);
            }
        }
        drop(span);
        if let Some(request) = &self.request {
            let mut begun = Begun::default();
            self.shard.start_recorded(request, now, &mut begun);
            begin(&self.shard, begun);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Box<Book>>> {
        // Nothing that runs under the lock is user code.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn book(guard: &mut Option<Box<Book>>) -> &mut Book {
    guard.get_or_insert_default()
}

/// An event of an exchange whose future is made when it is known how that ended.
pub(crate) fn unaccepted_with<M, F>(record: &Arc<Record>, make: M) -> UnacceptedEvent
where
    M: FnOnce(Exchange) -> F + Send + 'static,
    F: Future + Send + 'static,
    F::Output: EventOutput,
{
    let record = Arc::clone(record);
    unaccepted(move || make(record.exchange()))
}

/// Who is to be told that an exchange is over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listeners {
    None,
    /// They need to know that it is over, and not how.
    ToEnd,
    ToFacts,
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

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record").field("over", &self.progress.exchange()).finish_non_exhaustive()
    }
}
