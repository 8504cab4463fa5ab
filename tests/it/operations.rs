//! Plays a sequence of operations against a real handle, with a model of plain counts beside it, and compares the two
//! after every step. Shared by the property test and the fuzz target, so it needs nothing of the other tests.

use std::{
    collections::VecDeque,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread,
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use tokio::{
    runtime::{self, Builder},
    time::Instant,
};
use tower_service::Service;
use tower_track_events::{
    Drain, DrainError, DrainGuard, Events, Exchange, Overflow, Permit, Refused, ResponseBody, ResponseFuture, Snapshot,
    TrackEvents, TrackEventsHandle, TrackEventsLayer, WaitIdle, WaitIdleError,
};

/// The settings of a house.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    capacity: usize,
    event_timeout: Option<Duration>,
    settle: Duration,
    /// The layer tracks an event of its own, and does this with it when the house is full.
    hook: Option<Overflow>,
}

impl Setup {
    pub(crate) fn decode(bytes: [u8; 2]) -> Self {
        let [size, kind] = bytes;
        Self {
            capacity: usize::from(size % 8) + 1,
            event_timeout: (kind & 1 != 0).then_some(Duration::from_millis(30)),
            settle: Duration::from_millis(if kind & 2 == 0 { 0 } else { 10 }),
            hook: match kind >> 2 & 3 {
                0 => None,
                1 => Some(Overflow::Shed),
                _ => Some(Overflow::Wait(Duration::from_millis(25))),
            },
        }
    }
}

/// What an event does when it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    Complete,
    Fail,
    Panic,
    UntilReleased,
    Never,
    RecordChild,
    PanicInDestructor,
}

/// What a handler does when it is polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Body(Ending),
    Error,
    Panic,
    Never,
}

/// How a body goes on after its one data frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    End,
    Error,
    Panic,
    Never,
}

/// One step. A number chooses among what there is at the time.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Operation {
    RunTasks,
    Advance(Duration),
    Open(Answer),
    PollExchange(usize),
    DropExchange(usize),
    Record(usize, Act),
    RecordWith(usize, Act),
    ReserveIn(usize),
    Track(Act),
    TrackElsewhere(Act),
    Reserve,
    ReserveElsewhere,
    UsePermit(usize, Act),
    DropPermit(usize),
    TakeGuard,
    DropGuard(usize),
    Release,
    Abort,
    CloneHandle,
    BeginDrain,
    StartDrain(Duration),
    PollDrain(usize),
    DropDrain(usize),
    StartWait(Duration),
    PollWait(usize),
    DropWait(usize),
}

impl Operation {
    pub(crate) fn decode(bytes: [u8; 2]) -> Self {
        let [code, detail] = bytes;
        let index = usize::from(detail >> 3);
        let act = [
            Act::Complete,
            Act::Fail,
            Act::Panic,
            Act::UntilReleased,
            Act::Never,
            Act::RecordChild,
            Act::PanicInDestructor,
            Act::Complete,
        ][usize::from(detail & 7)];
        let limit = [Duration::ZERO, Duration::from_millis(20), Duration::from_millis(50), Duration::MAX];
        let limit = limit[usize::from(detail & 3)];
        let answers = [
            Answer::Body(Ending::End),
            Answer::Body(Ending::Error),
            Answer::Body(Ending::Panic),
            Answer::Body(Ending::Never),
            Answer::Error,
            Answer::Panic,
            Answer::Never,
            Answer::Body(Ending::End),
        ];
        match code % 32 {
            0 | 26 => Self::RunTasks,
            1 => Self::Track(act),
            2 | 27 => Self::Open(answers[usize::from(detail & 7)]),
            3 | 28 => Self::PollExchange(index),
            4 => Self::DropExchange(index),
            5 | 29 => Self::Record(index, act),
            6 => Self::RecordWith(index, act),
            7 => Self::ReserveIn(index),
            8 => Self::Reserve,
            9 => Self::UsePermit(index, act),
            10 => Self::DropPermit(index),
            11 => Self::TakeGuard,
            12 | 30 => Self::DropGuard(index),
            13 => Self::Release,
            14 => Self::Abort,
            15 => Self::CloneHandle,
            16 => Self::BeginDrain,
            17 => Self::StartDrain(limit),
            18 | 31 => Self::PollDrain(index),
            19 => Self::DropDrain(index),
            20 => Self::StartWait(limit),
            21 => Self::PollWait(index),
            22 => Self::DropWait(index),
            23 => Self::Advance(Duration::from_millis(u64::from(detail % 40))),
            24 => Self::TrackElsewhere(act),
            _ => Self::ReserveElsewhere,
        }
    }
}

/// Plays the steps on a paused clock. An error says which law was broken, and at which step.
pub(crate) fn play(setup: Setup, operations: &[Operation]) -> Result<(), String> {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    let mut world = World::new(setup, runtime.handle().clone());
    let book = Arc::clone(&world.book);
    let played = runtime.block_on(async {
        for (number, operation) in operations.iter().enumerate() {
            world.step(*operation).await;
            world.check();
            if let Some(broken) = world.book.lock().broken.first() {
                return Err(format!("step {number}, {operation:?}: {broken}"));
            }
        }
        Ok(())
    });
    // What the runtime drops from here on is not compared any more.
    book.lock().is_played = true;
    drop(world);
    played
}

/// The life of one event, as the event itself tells it.
struct Life {
    act: Act,
    stage: Stage,
    /// The exchange whose end it waits for.
    exchange: Option<usize>,
    started: Option<Instant>,
    starts: u32,
    returned: Option<Act>,
    is_aborted: bool,
    is_dropped: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It was handed over, and the answer is not known yet.
    Offered,
    /// The layer has made it, and it is neither accepted nor refused yet: perhaps its exchange waits for room.
    Waiting,
    Accepted,
    Refused,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Endings {
    completed: u64,
    failed: u64,
    panicked: u64,
    timed_out: u64,
    aborted: u64,
}

impl Endings {
    fn total(self) -> u64 {
        self.completed + self.failed + self.panicked + self.timed_out + self.aborted
    }
}

/// The model: what has been done, and what the events say of themselves.
struct Model {
    setup: Setup,
    lives: Vec<Life>,
    accepted: u64,
    refused: u64,
    endings: Endings,
    permits: u64,
    guards: u64,
    open_requests: u64,
    is_closed: bool,
    /// By exchange: its response is over, or may be after this step.
    over: Vec<bool>,
    releases: Vec<Waker>,
    is_released: bool,
    handle: TrackEventsHandle,
    broken: Vec<String>,
    is_played: bool,
}

struct Book(Mutex<Model>);

impl Book {
    fn lock(&self) -> MutexGuard<'_, Model> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Model {
    fn pending(&self) -> u64 {
        self.accepted - self.endings.total()
    }

    fn waiting(&self) -> u64 {
        self.lives.iter().filter(|life| life.stage == Stage::Waiting).count() as u64
    }

    /// Room that is freed goes to those who wait, as permits.
    fn reserved(&self) -> u64 {
        let free = (self.setup.capacity as u64).saturating_sub(self.pending() + self.permits);
        self.permits + free.min(self.waiting())
    }

    fn expects(&self) -> Result<(), Refused> {
        if self.is_closed {
            Err(Refused::Drained)
        } else if self.pending() + self.reserved() >= self.setup.capacity as u64 {
            Err(Refused::Full)
        } else {
            Ok(())
        }
    }

    fn is_empty(&self) -> bool {
        self.pending() + self.reserved() + self.guards + self.open_requests == 0
    }

    fn offer(&mut self, act: Act, stage: Stage, exchange: Option<usize>) -> usize {
        let life = Life {
            act,
            stage,
            exchange,
            started: None,
            starts: 0,
            returned: None,
            is_aborted: false,
            is_dropped: false,
        };
        self.lives.push(life);
        self.lives.len() - 1
    }

    fn answered(&mut self, id: usize, expected: Result<(), Refused>, answer: Result<(), Refused>) {
        self.require(answer == expected, || format!("L3, L5: event {id} was answered {answer:?}, not {expected:?}"));
        if answer.is_ok() {
            let is_dropped = self.lives[id].is_dropped;
            self.require(!is_dropped, || format!("L4: event {id} was dropped by its acceptance"));
            self.lives[id].stage = Stage::Accepted;
            self.accepted += 1;
        } else {
            self.lives[id].stage = Stage::Refused;
            self.refused += 1;
        }
    }

    fn require(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds && !self.is_played {
            self.broken.push(otherwise());
        }
    }
}

/// The future of an event, and, before it starts, what its closure holds.
struct Play {
    id: usize,
    book: Arc<Book>,
}

impl Future for Play {
    type Output = Result<(), &'static str>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let id = self.id;
        let mut model = self.book.lock();
        if model.lives[id].started.is_none() {
            model.lives[id].started = Some(Instant::now());
            model.lives[id].starts += 1;
            let (stage, exchange) = (model.lives[id].stage, model.lives[id].exchange);
            model.require(stage == Stage::Accepted, || format!("event {id} runs and is {stage:?}"));
            let is_over = exchange.is_none_or(|exchange| model.over[exchange]);
            model.require(is_over, || format!("event {id} runs before its exchange is over"));
        }
        let is_aborted = model.lives[id].is_aborted;
        model.require(!is_aborted, || format!("event {id} is polled after it was aborted"));
        let act = model.lives[id].act;
        match act {
            Act::Never => return Poll::Pending,
            Act::UntilReleased | Act::PanicInDestructor if !model.is_released => {
                model.releases.push(cx.waker().clone());
                return Poll::Pending;
            }
            _ => {}
        }
        model.lives[id].returned = Some(act);
        let handle = model.handle.clone();
        drop(model);
        match act {
            Act::Fail => Poll::Ready(Err("it fails")),
            // Without the hook, which would print it.
            Act::Panic => resume_unwind(Box::new("an event that panics")),
            Act::RecordChild => {
                track(&self.book, Act::Complete, None, |play| handle.track("child", play));
                Poll::Ready(Ok(()))
            }
            _ => Poll::Ready(Ok(())),
        }
    }
}

impl Drop for Play {
    fn drop(&mut self) {
        let id = self.id;
        let mut guard = self.book.lock();
        let model = &mut *guard;
        if model.is_played {
            return;
        }
        let life = &mut model.lives[id];
        life.is_dropped = true;
        match life.stage {
            Stage::Offered | Stage::Refused => return,
            Stage::Waiting => {
                life.stage = Stage::Refused;
                model.refused += 1;
                return;
            }
            Stage::Accepted => {}
        }
        let limit = model.setup.event_timeout;
        let is_late = limit.is_some_and(|limit| life.started.is_some_and(|started| started.elapsed() >= limit));
        let (act, is_aborted, returned) = (life.act, life.is_aborted, life.returned);
        let seen = ended(&model.handle.snapshot());
        let before = model.endings.total();
        model.require(seen == before, || format!("event {id} is destroyed: {seen} have ended, not {before}"));
        let endings = &mut model.endings;
        *match (act, returned) {
            (Act::PanicInDestructor, _) | (_, Some(Act::Panic)) => &mut endings.panicked,
            (_, Some(Act::Fail)) => &mut endings.failed,
            (_, Some(_)) => &mut endings.completed,
            (_, None) if is_aborted => &mut endings.aborted,
            (_, None) => &mut endings.timed_out,
        } += 1;
        model.require(returned.is_some() || is_aborted || is_late, || format!("L4: event {id} is dropped unfinished"));
        drop(guard);
        if act == Act::PanicInDestructor && !thread::panicking() {
            resume_unwind(Box::new("a destructor that panics"));
        }
    }
}

fn ended(now: &Snapshot) -> u64 {
    now.completed + now.failed + now.panicked + now.timed_out + now.aborted
}

/// Offers an event, and compares the answer with the one that is expected.
fn track(book: &Arc<Book>, act: Act, exchange: Option<usize>, offer: impl FnOnce(Play) -> Result<(), Refused>) {
    let mut model = book.lock();
    let expected = model.expects();
    let id = model.offer(act, Stage::Offered, exchange);
    drop(model);
    let answer = offer(Play { id, book: Arc::clone(book) });
    book.lock().answered(id, expected, answer);
}

/// Tells whether somebody was woken.
#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A handler that does what it is told when it is polled.
#[derive(Clone)]
struct Handler {
    book: Arc<Book>,
}

/// What a request tells its handler.
#[derive(Clone, Copy)]
struct Order {
    exchange: usize,
    answer: Answer,
}

/// The future of the handler. It keeps no `Events`: those are taken by the test when the request comes.
struct Handling {
    order: Order,
    book: Arc<Book>,
}

/// Where a request leaves its `Events`.
#[derive(Clone, Default)]
struct Taken(Arc<Mutex<Option<Events>>>);

impl Service<Request<()>> for Handler {
    type Response = Response<Script>;
    type Error = &'static str;
    type Future = Handling;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), &'static str>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<()>) -> Handling {
        let extensions = request.extensions();
        let order = *extensions.get::<Order>().expect("the request says what to do");
        let taken = extensions.get::<Taken>().expect("the request says where to leave the events");
        *taken.0.lock().unwrap() = Events::from_extensions(extensions).cloned();
        Handling { order, book: Arc::clone(&self.book) }
    }
}

impl Future for Handling {
    type Output = Result<Response<Script>, &'static str>;

    fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut model = self.book.lock();
        // The handler runs, so the event of the layer waits no more: it was shed, which its destructor has told, or not.
        for index in 0..model.lives.len() {
            if model.lives[index].stage == Stage::Waiting && model.lives[index].exchange == Some(self.order.exchange) {
                model.lives[index].stage = Stage::Accepted;
                model.accepted += 1;
            }
        }
        if self.order.answer == Answer::Error {
            model.over[self.order.exchange] = true;
        }
        drop(model);
        match self.order.answer {
            Answer::Never => Poll::Pending,
            Answer::Error => Poll::Ready(Err("the handler fails")),
            Answer::Panic => resume_unwind(Box::new("a handler that panics")),
            Answer::Body(ending) => {
                let steps = [None, Some(ending)].into();
                let (exchange, book) = (self.order.exchange, Arc::clone(&self.book));
                Poll::Ready(Ok(Response::new(Script { steps, exchange, book })))
            }
        }
    }
}

/// A body of one data frame and an ending.
struct Script {
    steps: VecDeque<Option<Ending>>,
    exchange: usize,
    book: Arc<Book>,
}

impl Body for Script {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        match self.steps.pop_front() {
            Some(None) => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"data"))))),
            None | Some(Some(Ending::Never)) => Poll::Pending,
            Some(Some(ending)) => {
                self.book.lock().over[self.exchange] = true;
                match ending {
                    Ending::Error => Poll::Ready(Some(Err("the body fails"))),
                    Ending::Panic => resume_unwind(Box::new("a body that panics")),
                    _ => Poll::Ready(None),
                }
            }
        }
    }
}

/// What is held of an exchange.
struct Held {
    id: usize,
    events: Events,
    /// It was opened before the house was closed.
    is_counted: bool,
    part: Part,
}

enum Part {
    Future(Pin<Box<ResponseFuture<Handling>>>),
    Body(Pin<Box<ResponseBody<Script>>>),
}

/// A future that is polled by hand.
struct Polled<F> {
    future: Pin<Box<F>>,
    limit: Duration,
    began: Option<Instant>,
    woken: Arc<Flag>,
}

impl<F: Future> Polled<F> {
    fn new(future: F, limit: Duration) -> Self {
        Self { future: Box::pin(future), limit, began: None, woken: Arc::default() }
    }

    /// Polls it, and says whether it had to be: at first, and after it was woken.
    fn poll(&mut self) -> (Poll<F::Output>, bool) {
        let was_due = self.woken.0.swap(false, Ordering::Relaxed) || self.began.is_none();
        self.began.get_or_insert_with(Instant::now);
        let waker = Waker::from(Arc::clone(&self.woken));
        (self.future.as_mut().poll(&mut Context::from_waker(&waker)), was_due)
    }

    fn is_late(&self) -> bool {
        self.began.is_some_and(|began| began.elapsed() >= self.limit)
    }
}

/// The real house and what is held of it, with the model.
struct World {
    handle: TrackEventsHandle,
    service: TrackEvents<Handler>,
    runtime: runtime::Handle,
    book: Arc<Book>,
    exchanges: Vec<Held>,
    permits: Vec<(Permit, Option<usize>)>,
    guards: Vec<DrainGuard>,
    drains: Vec<Polled<Drain>>,
    /// Each with the events that it waits for, from its first poll on.
    waits: Vec<(Polled<WaitIdle>, Vec<usize>)>,
}

impl World {
    fn new(setup: Setup, runtime: runtime::Handle) -> Self {
        let builder = TrackEventsHandle::builder().capacity(setup.capacity).settle(setup.settle);
        let builder = builder.progress(Duration::ZERO);
        let handle = match setup.event_timeout {
            Some(limit) => builder.event_timeout(limit),
            None => builder,
        };
        let handle = handle.build().expect("the settings are in range");
        let model = Model {
            setup,
            lives: Vec::new(),
            accepted: 0,
            refused: 0,
            endings: Endings::default(),
            permits: 0,
            guards: 0,
            open_requests: 0,
            is_closed: false,
            over: Vec::new(),
            releases: Vec::new(),
            is_released: false,
            handle: handle.clone(),
            broken: Vec::new(),
            is_played: false,
        };
        let book = Arc::new(Book(Mutex::new(model)));
        let mut layer = TrackEventsLayer::builder(handle.clone());
        if let Some(overflow) = setup.hook {
            let book = Arc::clone(&book);
            layer = layer.overflow(overflow).track("hook", move |parts| {
                let order = *parts.extensions.get::<Order>().expect("the request says what to do");
                let id = book.lock().offer(Act::Complete, Stage::Waiting, Some(order.exchange));
                let play = Play { id, book: Arc::clone(&book) };
                move |_exchange: Exchange| play
            });
        }
        let service = tower_layer::Layer::layer(&layer.build(), Handler { book: Arc::clone(&book) });
        Self {
            handle,
            service,
            runtime,
            book,
            exchanges: Vec::new(),
            permits: Vec::new(),
            guards: Vec::new(),
            drains: Vec::new(),
            waits: Vec::new(),
        }
    }

    async fn step(&mut self, operation: Operation) {
        match operation {
            Operation::RunTasks => self.run_tasks().await,
            Operation::Advance(time) => tokio::time::advance(time).await,
            Operation::Open(answer) => self.open(answer),
            Operation::PollExchange(index) => self.poll_exchange(index),
            Operation::DropExchange(index) => {
                if let Some(held) = take(&mut self.exchanges, index) {
                    self.book.lock().over[held.id] = true;
                    self.let_go(held);
                }
            }
            Operation::Record(index, act) => {
                if let Some(held) = pick(&mut self.exchanges, index) {
                    track(&self.book, act, Some(held.id), |play| held.events.track("recorded", play));
                }
            }
            Operation::RecordWith(index, act) => {
                if let Some(held) = pick(&mut self.exchanges, index) {
                    track(&self.book, act, Some(held.id), |play| held.events.track_with("told", move |_| play));
                }
            }
            Operation::ReserveIn(index) => {
                if let Some(held) = pick(&mut self.exchanges, index) {
                    let (id, events) = (held.id, held.events.clone());
                    self.reserve(Some(id), || events.reserve());
                }
            }
            Operation::Track(act) => track(&self.book, act, None, |play| self.handle.track("tracked", play)),
            Operation::TrackElsewhere(act) => {
                track(&self.book, act, None, |play| self.elsewhere(|| self.handle.track("tracked elsewhere", play)))
            }
            Operation::Reserve => {
                let handle = self.handle.clone();
                self.reserve(None, || handle.reserve());
            }
            Operation::ReserveElsewhere => {
                let (handle, runtime) = (self.handle.clone(), self.runtime.clone());
                self.reserve(None, || elsewhere(&runtime, || handle.reserve()));
            }
            Operation::UsePermit(index, act) => {
                if let Some((permit, exchange)) = take(&mut self.permits, index) {
                    let mut model = self.book.lock();
                    let id = model.offer(act, Stage::Accepted, exchange);
                    model.permits -= 1;
                    model.accepted += 1;
                    drop(model);
                    permit.track("permitted", Play { id, book: Arc::clone(&self.book) });
                }
            }
            Operation::DropPermit(index) => {
                if let Some(permit) = take(&mut self.permits, index) {
                    self.book.lock().permits -= 1;
                    drop(permit);
                }
            }
            Operation::TakeGuard => self.take_guard(),
            Operation::DropGuard(index) => {
                if let Some(guard) = take(&mut self.guards, index) {
                    self.book.lock().guards -= 1;
                    drop(guard);
                }
            }
            Operation::Release => {
                let mut model = self.book.lock();
                model.is_released = !model.is_released;
                let wakers = std::mem::take(&mut model.releases);
                drop(model);
                wakers.into_iter().for_each(Waker::wake);
            }
            Operation::Abort => self.abort(),
            Operation::CloneHandle => self.handle = self.handle.clone(),
            Operation::BeginDrain => self.handle.begin_drain(),
            Operation::StartDrain(limit) => self.drains.push(Polled::new(self.handle.drain(limit), limit)),
            Operation::PollDrain(index) => self.poll_drain(index),
            Operation::DropDrain(index) => drop(take(&mut self.drains, index)),
            Operation::StartWait(limit) => {
                self.waits.push((Polled::new(self.handle.wait_idle(limit), limit), Vec::new()));
            }
            Operation::PollWait(index) => self.poll_wait(index),
            Operation::DropWait(index) => drop(take(&mut self.waits, index)),
        }
    }

    async fn run_tasks(&self) {
        for _ in 0..16 {
            tokio::task::yield_now().await;
        }
        let mut guard = self.book.lock();
        let model = &mut *guard;
        for (id, life) in model.lives.iter().enumerate().filter(|(_, life)| life.stage == Stage::Accepted) {
            let has_begun = life.starts > 0 || life.is_dropped;
            let is_held = life.exchange.is_some_and(|exchange| !model.over[exchange]);
            let is_body_held = life.exchange.is_some_and(|id| self.exchanges.iter().any(|held| held.id == id));
            if !has_begun && !is_held && !is_body_held {
                model.broken.push(format!("L4: event {id} does not start"));
            }
            if life.is_aborted && !life.is_dropped {
                model.broken.push(format!("event {id} was aborted and lives"));
            }
        }
    }

    fn elsewhere<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        elsewhere(&self.runtime, run)
    }

    fn open(&mut self, answer: Answer) {
        let mut model = self.book.lock();
        let exchange = model.over.len();
        model.over.push(false);
        let expected = model.expects();
        let is_counted = !model.is_closed;
        model.open_requests += u64::from(is_counted);
        let (hook, lives) = (model.setup.hook, model.lives.len());
        drop(model);
        let taken = Taken::default();
        let mut request = Request::new(());
        request.extensions_mut().insert(Order { exchange, answer });
        request.extensions_mut().insert(taken.clone());
        let future = Box::pin(self.service.call(request));
        let events = taken.0.lock().unwrap().take().expect("the layer gives each request its events");
        self.exchanges.push(Held { id: exchange, events, is_counted, part: Part::Future(future) });

        let mut model = self.book.lock();
        let is_made = model.lives.len() > lives;
        model.require(is_made == hook.is_some(), || "the hook was not asked, or there is none".to_owned());
        // Made before it is accepted or refused; one that was refused is dropped by now, and counted by its destructor.
        let is_taken = model.lives.get(lives).is_some_and(|life| !life.is_dropped);
        let may_wait = matches!(hook, Some(Overflow::Wait(_)));
        match (hook, expected) {
            (None, _) => {}
            (Some(_), Ok(())) => {
                model.require(is_taken, || "L3: the event of the layer was refused".to_owned());
                if is_taken {
                    model.lives[lives].stage = Stage::Accepted;
                    model.accepted += 1;
                }
            }
            (Some(_), Err(Refused::Full)) if may_wait => {
                model.require(is_taken, || "the event of the layer does not wait".to_owned());
            }
            (Some(_), Err(refused)) => {
                model.require(!is_taken, || format!("L2, L5: the event of the layer is accepted, though {refused}"));
            }
        }
    }

    fn poll_exchange(&mut self, index: usize) {
        let count = self.exchanges.len();
        if count == 0 {
            return;
        }
        let index = index % count;
        let mut cx = Context::from_waker(Waker::noop());
        let held = &mut self.exchanges[index];
        // A panic leaves the exchange open until the future or body is dropped, and it must not be polled again.
        let is_done = match &mut held.part {
            Part::Future(future) => match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut cx))) {
                Ok(Poll::Ready(Ok(response))) => {
                    held.part = Part::Body(Box::pin(response.into_body()));
                    false
                }
                Ok(Poll::Pending) => false,
                Ok(Poll::Ready(Err(_))) | Err(_) => true,
            },
            Part::Body(body) => catch_unwind(AssertUnwindSafe(|| body.as_mut().poll_frame(&mut cx))).is_err(),
        };
        if is_done {
            let held = self.exchanges.remove(index);
            self.book.lock().over[held.id] = true;
            self.let_go(held);
        }
    }

    fn let_go(&self, held: Held) {
        self.book.lock().open_requests -= u64::from(held.is_counted);
        drop(held);
    }

    fn reserve(&mut self, exchange: Option<usize>, reserve: impl FnOnce() -> Result<Permit, Refused>) {
        let expected = self.book.lock().expects();
        let answer = reserve();
        let mut model = self.book.lock();
        let refused = answer.as_ref().err().copied();
        model.require(refused == expected.err(), || format!("L3, L5: a permit: {refused:?}, expected {expected:?}"));
        match answer {
            Ok(permit) => {
                model.permits += 1;
                self.permits.push((permit, exchange));
            }
            Err(_) => model.refused += 1,
        }
    }

    fn take_guard(&mut self) {
        let answer = self.handle.guard();
        let mut model = self.book.lock();
        let is_closed = model.is_closed;
        model.require(answer.is_err() == is_closed, || format!("L2, L3: a guard is answered {answer:?}"));
        match answer {
            Ok(guard) => {
                model.guards += 1;
                self.guards.push(guard);
            }
            Err(_) => model.refused += 1,
        }
    }

    fn abort(&self) {
        let mut model = self.book.lock();
        for life in model.lives.iter_mut().filter(|life| life.stage == Stage::Accepted && !life.is_dropped) {
            life.is_aborted = true;
        }
        drop(model);
        self.handle.abort();
        let mut model = self.book.lock();
        let model = &mut *model;
        for (id, life) in model.lives.iter().enumerate().filter(|(_, life)| life.stage == Stage::Accepted) {
            let waits = life.exchange.is_some_and(|exchange| !model.over[exchange]);
            if waits && !life.is_dropped {
                model.broken.push(format!("event {id} waits for its exchange and was not aborted"));
            }
        }
    }

    fn poll_drain(&mut self, index: usize) {
        let count = self.drains.len();
        if count == 0 {
            return;
        }
        let index = index % count;
        let (answer, was_due) = self.drains[index].poll();
        let is_late = self.drains[index].is_late();
        let mut model = self.book.lock();
        let (is_empty, is_closed) = (model.is_empty(), model.is_closed);
        let at_once = is_closed || is_empty && model.setup.settle.is_zero();
        match &answer {
            Poll::Pending => model.require(!at_once, || "a drain waits for nothing".to_owned()),
            Poll::Ready(Ok(_)) => {
                model.require(is_empty || is_closed, || "L2: drained, and something is left".to_owned());
                model.is_closed = true;
            }
            Poll::Ready(Err(DrainError::CutShort(_))) => {
                model.require(is_late && !is_empty && !is_closed, || "a drain is cut short for nothing".to_owned());
            }
            Poll::Ready(Err(error)) => model.broken.push(format!("a drain fails: {error}")),
        }
        model.require(answer.is_pending() || was_due, || "a drain that is ready was not woken".to_owned());
        drop(model);
        if answer.is_ready() {
            self.drains.remove(index);
        }
    }

    fn poll_wait(&mut self, index: usize) {
        let count = self.waits.len();
        if count == 0 {
            return;
        }
        let index = index % count;
        let (wait, events) = &mut self.waits[index];
        if wait.began.is_none() {
            let model = self.book.lock();
            let is_pending = |life: &Life| life.stage == Stage::Accepted && !life.is_dropped;
            events.extend((0..model.lives.len()).filter(|id| is_pending(&model.lives[*id])));
        }
        let (answer, was_due) = wait.poll();
        let mut model = self.book.lock();
        let have_ended = events.iter().all(|id| model.lives[*id].is_dropped);
        let as_promised = match &answer {
            Poll::Pending => !have_ended,
            Poll::Ready(Ok(())) => have_ended,
            Poll::Ready(Err(WaitIdleError::TimedOut { .. })) => !have_ended && wait.is_late(),
            Poll::Ready(Err(_)) => false,
        };
        model.require(as_promised, || format!("a wait: {answer:?}, and all have ended is {have_ended}"));
        model.require(answer.is_pending() || was_due, || "a wait that is ready was not woken".to_owned());
        drop(model);
        if answer.is_ready() {
            self.waits.remove(index);
        }
    }

    /// Compares the whole snapshot with the model.
    fn check(&self) {
        let now = self.handle.snapshot();
        let mut guard = self.book.lock();
        let model = &mut *guard;
        let Endings { completed, failed, panicked, timed_out, aborted } = model.endings;
        let expected = [
            ("open requests", now.open_requests, model.open_requests),
            ("open guards", now.open_guards, model.guards),
            ("reserved", now.reserved, model.reserved()),
            ("pending", now.pending, model.pending()),
            ("accepted", now.accepted, model.accepted),
            ("completed", now.completed, completed),
            ("failed", now.failed, failed),
            ("panicked", now.panicked, panicked),
            ("timed out", now.timed_out, timed_out),
            ("aborted", now.aborted, aborted),
            ("refused", now.refused, model.refused),
        ];
        for (what, real, modelled) in expected {
            model.require(real == modelled, || format!("{what}: {real}, and the model has {modelled}"));
        }
        model.require(now.accepted == ended(&now) + now.pending, || format!("L1: {now:?}"));
        let capacity = model.setup.capacity as u64;
        model.require(now.pending + now.reserved <= capacity, || format!("L5: {now:?}"));
        let twice = model.lives.iter().position(|life| life.starts > 1);
        model.require(twice.is_none(), || format!("L4: event {twice:?} was started twice"));
    }
}

/// Runs it on another thread, whose room lies elsewhere in the ledger, and waits for it.
fn elsewhere<T: Send>(runtime: &runtime::Handle, run: impl FnOnce() -> T + Send) -> T {
    let inside = || {
        let _inside = runtime.enter();
        run()
    };
    thread::scope(|scope| scope.spawn(inside).join().expect("the thread does not panic"))
}

fn pick<T>(list: &mut [T], index: usize) -> Option<&mut T> {
    let count = list.len();
    (count > 0).then(|| &mut list[index % count])
}

fn take<T>(list: &mut Vec<T>, index: usize) -> Option<T> {
    let count = list.len();
    (count > 0).then(|| list.remove(index % count))
}
