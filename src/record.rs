//! What one exchange has recorded: its events, until it is over.

use std::{
    fmt, mem,
    panic::Location,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{self, AtomicBool, Ordering},
    },
    task::Wake,
    time::Duration,
};

use smallvec::smallvec;
use tokio::runtime;
use tracing::Span;

use crate::{
    contain::contain,
    entry::{Nanos, Stage},
    exchange::Exchange,
    house::Shard,
    inside,
    ledger::EventTicket,
    metrics,
    refused::Refused,
    task::{Launch, RecordedEvent, RecordedEvents, current_span, spawn_all},
};

/// Is told how the exchange ended, when it has.
pub(crate) type Observe = Box<dyn FnOnce(&Exchange) + Send>;

/// The name under which the panics of observers are counted.
const OBSERVER: &str = "(observer)";

/// Shared by the guard of an exchange and all clones of its `Events`.
pub(crate) struct Record {
    pub(crate) shard: Arc<Shard>,
    pub(crate) began: Nanos,
    /// The hook list of the layer that opened the exchange.
    opened_by: HookListId,
    /// The open exchange of another handle in which this one was opened.
    outer: Option<Arc<Record>>,
    /// Where its events run: where the first of them was recorded.
    runtime: OnceLock<runtime::Handle>,
    has_waited: AtomicBool,
    /// Whether anything waits for the end of the exchange.
    is_awaited: AtomicBool,
    /// Whether anything is to be told how it ended.
    is_asked: AtomicBool,
    has_span: bool,
    book: Mutex<Book>,
}

/// Tells the hook lists of layers apart.
pub(crate) type HookListId = u64;

/// No layer has it.
pub(crate) const NO_HOOKS: HookListId = 0;

#[derive(Default)]
struct Book {
    /// Set when the exchange is over; from then on nothing is recorded, and what comes starts at once.
    over: Option<Exchange>,
    recorded: RecordedEvents,
    observers: Vec<Observe>,
    /// The hook lists of inner layers that this exchange has met, so that none fires twice.
    joined: Vec<HookListId>,
    /// Released when the exchange is over: a `WebSocket` task may keep the record for hours.
    span: Option<Span>,
}

impl Record {
    pub(crate) fn new(
        shard: &Arc<Shard>,
        began: Nanos,
        opened_by: HookListId,
        outer: Option<Arc<Record>>,
    ) -> Arc<Self> {
        let span = current_span();
        let has_span = !span.is_none();
        let book = Book { span: has_span.then_some(span), ..Book::default() };
        Arc::new(Self {
            shard: Arc::clone(shard),
            began,
            opened_by,
            outer,
            runtime: OnceLock::new(),
            has_waited: AtomicBool::new(false),
            is_awaited: AtomicBool::new(false),
            is_asked: AtomicBool::new(false),
            has_span,
            book: Mutex::new(book),
        })
    }

    /// Accepts an event of this exchange, or refuses it. Then comes [`add`](Self::add).
    pub(crate) fn accept(
        self: &Arc<Self>,
        name: &'static str,
        location: &'static Location<'static>,
    ) -> Result<Launch, Refused> {
        self.find_runtime(name)?;
        Launch::accept(&self.shard, name, Stage::Recorded, location, Some(self.time()))
    }

    /// The time at which an event is recorded. The clock is not read in the first poll of the service, where most are.
    pub(crate) fn time(&self) -> Nanos {
        if self.has_waited.load(Ordering::Relaxed) { self.shard.house().now() } else { self.began }
    }

    /// The first poll of the service is over.
    pub(crate) fn waits(&self) {
        // Relaxed: nothing but a time depends on it.
        self.has_waited.store(true, Ordering::Relaxed);
    }

    /// Sees to it that there is a runtime for the event. A refusal is counted.
    pub(crate) fn find_runtime(&self, name: &'static str) -> Result<(), Refused> {
        if self.runtime.get().is_none() {
            let runtime = self.shard.runtime().inspect_err(|refused| metrics::refused(name, *refused))?;
            // Another thread may have been first, which is as good.
            let _ = self.runtime.set(runtime);
        }
        Ok(())
    }

    /// Keeps the event until the exchange is over. If it is over already the event starts now.
    pub(crate) fn add(&self, launch: Launch, mut event: RecordedEvent) {
        event.as_mut().accepted(launch);
        let mut book = self.lock();
        let Some(exchange) = book.over.clone() else {
            // Asked under the lock that an abort takes: one that has come before did not find the event.
            if event.is_aborted() {
                drop(book);
                event.as_mut().abort();
            } else {
                self.is_awaited.store(true, Ordering::Relaxed);
                if event.asks() {
                    self.is_asked.store(true, Ordering::Relaxed);
                }
                book.recorded.push(event);
            }
            return;
        };
        drop(book);
        self.start(smallvec![event], None, &Span::none(), &exchange);
    }

    fn start(&self, mut events: RecordedEvents, now: Option<Nanos>, span: &Span, exchange: &Exchange) {
        if let Some(runtime) = self.runtime.get() {
            EventTicket::start_all(events.iter_mut().filter_map(|event| event.as_mut().ticket()), now);
            events.retain(|event| event.as_mut().begin(runtime, span, exchange));
            spawn_all(runtime, events);
        }
    }

    /// Keeps an observer until the exchange is over.
    pub(crate) fn observe(&self, observe: Observe) {
        let mut book = self.lock();
        let Some(exchange) = book.over.clone() else {
            self.is_asked.store(true, Ordering::Relaxed);
            book.observers.push(observe);
            return;
        };
        drop(book);
        self.tell(observe, &Span::none(), &exchange);
    }

    fn tell(&self, observe: Observe, span: &Span, exchange: &Exchange) {
        let told = inside::enter(self.shard.ledger_id(), || contain(|| span.in_scope(|| observe(exchange))));
        if let Err(panic) = told {
            self.observer_panicked(&panic);
        }
    }

    /// Counts the panic of an observer, or of what makes it.
    pub(crate) fn observer_panicked(&self, panic: &str) {
        let _ = contain(|| tracing::error!(panic, "observer of an exchange panicked"));
        self.shard.count_panicked(OBSERVER);
        metrics::panicked_in_place(OBSERVER);
    }

    /// This exchange, and those of other handles around it, from the inside out.
    pub(crate) fn and_outer(self: &Arc<Self>) -> impl Iterator<Item = &Arc<Self>> {
        std::iter::successors(Some(self), |record| record.outer.as_ref())
    }

    pub(crate) fn is_over(&self) -> bool {
        self.lock().over.is_some()
    }

    /// Enters the hook list of an inner layer, if the exchange is open and has not met it yet.
    pub(crate) fn join(&self, list: HookListId) -> Joined {
        let mut book = self.lock();
        if book.over.is_some() {
            return Joined::Over;
        }
        if self.opened_by == list || book.joined.contains(&list) {
            return Joined::Again;
        }
        book.joined.push(list);
        Joined::New
    }

    /// Who is left to be told that the exchange is over. `others` are the references to the record of which is known
    /// that they record nothing.
    pub(crate) fn listeners(self: &Arc<Self>, others: usize) -> Listeners {
        if Arc::strong_count(self) > 1 + others {
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

    /// Ends the exchange: starts what was recorded, and lets what is recorded from now on start at once. The clock is
    /// read only if somebody asks for the time.
    pub(crate) fn close(self: &Arc<Self>, listeners: Listeners, end: impl FnOnce(Duration) -> Exchange) {
        if listeners == Listeners::None {
            if self.has_span {
                let span = self.lock().span.take();
                let _ = contain(|| drop(span));
            }
            return;
        }
        let now = (listeners == Listeners::ToFacts).then(|| self.shard.house().now());
        let elapsed = now.map_or(Duration::ZERO, |now| Duration::from_nanos(now.saturating_sub(self.began)));
        let exchange = end(elapsed);
        let mut book = self.lock();
        book.over = Some(exchange.clone());
        let recorded = mem::take(&mut book.recorded);
        let observers = mem::take(&mut book.observers);
        let span = book.span.take().unwrap_or_else(Span::none);
        drop(book);
        for observe in observers {
            self.tell(observe, &span, &exchange);
        }
        self.start(recorded, now, &span, &exchange);
        let _ = contain(|| drop(span));
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        // Nothing that runs under the lock is user code.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An abort wakes whoever holds an event.
impl Wake for Record {
    fn wake(self: Arc<Self>) {
        let mut book = self.lock();
        let (aborted, kept): (RecordedEvents, _) =
            mem::take(&mut book.recorded).into_iter().partition(|event| event.is_aborted());
        book.recorded = kept;
        drop(book);
        for mut event in aborted {
            event.as_mut().abort();
        }
    }
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
        let book = self.lock();
        let (over, recorded) = (book.over.clone(), book.recorded.len());
        drop(book);
        f.debug_struct("Record").field("over", &over).field("recorded", &recorded).finish_non_exhaustive()
    }
}
