//! Runs a sequence of operations against a real handle, with a model of plain counts beside it, and compares the two
//! after every step. Shared by the property test and the fuzz target, so it needs nothing of the other tests.

use std::{
    collections::VecDeque,
    fmt,
    future::Future,
    mem,
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
    Drain, DrainError, DrainGuard, EventCounts, Events, Exchange, Outcome, Overflow, Permit, ResponseBody,
    ResponseFuture, TrackError, TrackEvents, TrackEventsHandle, TrackEventsLayer, WaitIdle, WaitIdleError,
};

/// The settings of a handle and its layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    capacity: usize,
    event_timeout: Option<Duration>,
    quiet_period: Duration,
    concurrency_limit: Option<usize>,
    /// How long before its deadline a drain makes the last call.
    last_call: Option<Duration>,
    /// The layer tracks an event of its own, and does this with it at capacity.
    hook: Option<Overflow>,
}

impl Setup {
    pub(crate) fn decode(bytes: [u8; 2]) -> Self {
        let [size, kind] = bytes;
        Self {
            capacity: usize::from(size % 8) + 1,
            event_timeout: (kind & 1 != 0).then_some(Duration::from_millis(30)),
            quiet_period: Duration::from_millis(if kind & 2 == 0 { 0 } else { 10 }),
            concurrency_limit: usize::from(size / 8 % 4).checked_sub(1).filter(|limit| *limit > 0),
            last_call: match kind >> 4 & 3 {
                0 | 1 => None,
                2 => Some(Duration::ZERO),
                _ => Some(Duration::from_millis(30)),
            },
            hook: match kind >> 2 & 3 {
                0 => None,
                1 => Some(Overflow::Reject),
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
    /// When it is released, it tracks an event.
    TrackChild,
    /// When it is released, it tracks an event that tracks another.
    TrackGrandchild,
    TrackInDestructor,
    PanicInDestructor,
    /// When it is released, it takes a guard that outlives it.
    TakeGuard,
    /// When it is released, it reserves a permit that outlives it.
    Reserve,
}

impl Act {
    fn decode(bits: u8) -> Self {
        match bits % 16 {
            1 => Self::Fail,
            2 => Self::Panic,
            3 | 11 => Self::UntilReleased,
            4 => Self::Never,
            5 | 12 => Self::TrackChild,
            6 => Self::PanicInDestructor,
            7 | 13 => Self::TrackGrandchild,
            8 => Self::TrackInDestructor,
            9 => Self::TakeGuard,
            10 => Self::Reserve,
            _ => Self::Complete,
        }
    }

    fn waits_for_release(self) -> bool {
        !matches!(self, Self::Complete | Self::Fail | Self::Panic | Self::Never | Self::TrackInDestructor)
    }
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
    TrackIn(usize, Act),
    TrackWithIn(usize, Act),
    ReserveIn(usize),
    /// Through `Events` that have outlived their exchange.
    TrackAfter(usize, Act),
    Track(Act),
    TrackOnThread(Act),
    Reserve,
    ReserveOnThread,
    UsePermit(usize, Act),
    DropPermit(usize),
    TakeGuard,
    DropGuard(usize),
    /// Tracks in the scope of a guard, where a drain and a wait are errors.
    Scope(usize, Act),
    Release,
    Abort,
    MakeLastCall,
    CloneHandle,
    BeginDrain,
    StartDrain(Duration),
    PollDrain(usize),
    DropDrain(usize),
    /// Drops all requests, guards and permits, lets the quiet period pass, and polls all drains, at least one.
    Close,
    StartWait(Duration),
    PollWait(usize),
    DropWait(usize),
}

impl Operation {
    pub(crate) fn decode(bytes: [u8; 2]) -> Self {
        let [code, detail] = bytes;
        let index = usize::from(detail >> 4);
        let act = Act::decode(detail);
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
        match code % 43 {
            0 | 26 | 32 => Self::RunTasks,
            1 => Self::Track(act),
            2 | 27 => Self::Open(answers[usize::from(detail & 7)]),
            3 | 28 => Self::PollExchange(index),
            4 | 33 => Self::DropExchange(index),
            5 | 29 => Self::TrackIn(index, act),
            6 => Self::TrackWithIn(index, act),
            7 => Self::ReserveIn(index),
            8 => Self::Reserve,
            9 => Self::UsePermit(index, act),
            10 | 34 => Self::DropPermit(index),
            11 => Self::TakeGuard,
            12 | 30 => Self::DropGuard(index),
            13 | 35 => Self::Release,
            14 => Self::Abort,
            15 => Self::CloneHandle,
            16 => Self::BeginDrain,
            17 => Self::StartDrain(limit),
            18 | 31 | 36 => Self::PollDrain(index),
            19 => Self::DropDrain(index),
            20 => Self::StartWait(limit),
            21 => Self::PollWait(index),
            22 => Self::DropWait(index),
            23 | 37 => Self::Advance(Duration::from_millis(u64::from(detail % 40))),
            24 => Self::TrackOnThread(act),
            38 => Self::TrackAfter(index, act),
            39 => Self::Scope(index, act),
            40 | 41 => Self::Close,
            42 => Self::MakeLastCall,
            _ => Self::ReserveOnThread,
        }
    }
}

/// Runs the operations on a paused clock. An error names the guarantee that does not hold, and the step.
pub(crate) fn run(setup: Setup, operations: &[Operation]) -> Result<(), String> {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    let mut system = System::new(setup, runtime.handle().clone());
    let shared = Arc::clone(&system.shared);
    let result = runtime.block_on(async {
        for (number, operation) in operations.iter().enumerate() {
            system.step(*operation).await;
            system.check();
            if let Some(failure) = system.shared.lock().failures.first() {
                return Err(format!("step {number}, {operation:?}: {failure}"));
            }
        }
        Ok(())
    });
    // What is dropped from here on is not compared any more.
    shared.lock().has_ended = true;
    drop(mem::take(&mut *shared.taken()));
    drop(system);
    result
}

/// An event as the model sees it: what the event itself reports.
struct EventModel {
    act: Act,
    stage: Stage,
    /// The exchange whose end it waits for.
    exchange: Option<usize>,
    started: Option<Instant>,
    starts: u32,
    returned: Option<Act>,
    is_aborted: bool,
    /// It was tracked inside an event, and needs no turn.
    is_nested: bool,
    /// The last call has taken it from the queue for capacity.
    is_dismissed: bool,
    is_dropped: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It is being tracked, and the result is not known yet.
    Offered,
    /// The layer has made it, and it is neither accepted nor rejected yet: perhaps its exchange waits for capacity.
    Waiting,
    Accepted,
    Rejected,
}

/// Who is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    Closing,
    Drained,
}

/// Where something is tracked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Inside an event.
    Event,
    /// In the scope of a guard.
    Inside,
    Outside,
}

/// The model: what has been done, and what the events report.
struct Model {
    setup: Setup,
    phase: Phase,
    events: Vec<EventModel>,
    accepted: u64,
    rejected: u64,
    rejected_closed: u64,
    ended: EventCounts,
    permits: u64,
    guards: u64,
    open_requests: u64,
    /// How many requests, guards and permits were ever opened.
    opened: u64,
    /// How many drains have been polled and are pending.
    polled_drains: usize,
    is_last_call: bool,
    /// By exchange: its response is over, or may be after this step.
    over: Vec<bool>,
    /// By exchange: the last call has reached it, so its events need not wait.
    called: Vec<bool>,
    wakers: Vec<Waker>,
    is_released: bool,
    handle: TrackEventsHandle,
    failures: Vec<String>,
    has_ended: bool,
}

/// What events have taken and left behind.
#[derive(Default)]
struct Taken {
    guards: Vec<DrainGuard>,
    permits: Vec<Permit>,
}

struct Shared {
    model: Mutex<Model>,
    taken: Mutex<Taken>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Model {
    fn pending(&self) -> u64 {
        self.accepted - self.ended.total()
    }

    fn waiting(&self) -> u64 {
        self.events.iter().filter(|event| event.stage == Stage::Waiting && !event.is_dismissed).count() as u64
    }

    /// Slots that become free go to the requests that wait, as permits.
    fn reserved(&self) -> u64 {
        let free = (self.setup.capacity as u64).saturating_sub(self.pending() + self.permits);
        self.permits + free.min(self.waiting())
    }

    /// Requests, guards and permits.
    fn holders(&self) -> u64 {
        self.reserved() + self.guards + self.open_requests
    }

    /// Whether something may enter that needs no capacity.
    fn expects_open(&self, place: Place) -> Result<(), TrackError> {
        match (self.phase, place) {
            (Phase::Open, _) | (Phase::Closing, Place::Inside | Place::Event) => Ok(()),
            (Phase::Closing, Place::Outside) | (Phase::Drained, _) => Err(TrackError::Closed),
        }
    }

    /// Whether an event or a permit may enter.
    fn expects(&self, place: Place) -> Result<(), TrackError> {
        self.expects_open(place)?;
        let is_full = self.pending() + self.reserved() >= self.setup.capacity as u64;
        if is_full { Err(TrackError::Full) } else { Ok(()) }
    }

    /// A request, a guard or a permit has been opened: a drain that is closing accepts everything again.
    fn opens(&mut self) {
        self.opened += 1;
        if self.phase == Phase::Closing {
            self.phase = Phase::Open;
        }
    }

    fn rejects(&mut self, error: TrackError) {
        self.rejected += 1;
        self.rejected_closed += u64::from(error == TrackError::Closed);
    }

    /// Whether fewer events run than the concurrency limit.
    fn has_turn(&self) -> bool {
        let runs = |event: &&EventModel| event.started.is_some() && !event.is_dropped && !event.is_nested;
        self.setup.concurrency_limit.is_none_or(|limit| self.events.iter().filter(runs).count() < limit)
    }

    /// A request that was opened after the last call is reached by it with its head.
    fn head_is_there(&mut self, exchange: usize) {
        self.called[exchange] |= self.is_last_call;
    }

    /// The events that wait for an exchange start, and those that wait for a slot are rejected.
    fn last_call(&mut self) {
        self.is_last_call = true;
        self.called.fill(true);
        let granted = self.reserved() - self.permits;
        let waiting = self.events.iter_mut().filter(|event| event.stage == Stage::Waiting && !event.is_dismissed);
        waiting.skip(granted as usize).for_each(|event| event.is_dismissed = true);
    }

    /// A polled drain has ended or was dropped. When none is left, everything is accepted again.
    fn drain_is_gone(&mut self) {
        self.polled_drains -= 1;
        if self.polled_drains == 0 && self.phase == Phase::Closing {
            self.phase = Phase::Open;
        }
    }

    fn offer(&mut self, act: Act, stage: Stage, exchange: Option<usize>) -> usize {
        self.events.push(EventModel {
            act,
            stage,
            exchange,
            started: None,
            starts: 0,
            returned: None,
            is_aborted: false,
            is_nested: false,
            is_dismissed: false,
            is_dropped: false,
        });
        self.events.len() - 1
    }

    fn tracked(&mut self, id: usize, expected: Result<(), TrackError>, result: Result<(), TrackError>) {
        self.require(result == expected, || format!("guarantees 3, 5: event {id}: {result:?}, expected {expected:?}"));
        match result {
            Ok(()) => {
                let is_dropped = self.events[id].is_dropped;
                self.require(!is_dropped, || format!("guarantee 4: event {id} was dropped when it was accepted"));
                self.events[id].stage = Stage::Accepted;
                self.accepted += 1;
            }
            Err(error) => {
                self.events[id].stage = Stage::Rejected;
                self.rejects(error);
            }
        }
    }

    fn require(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds && !self.has_ended {
            self.failures.push(otherwise());
        }
    }
}

/// The future of an event, and, before it starts, what its closure owns.
struct EventFuture {
    id: usize,
    shared: Arc<Shared>,
}

impl EventFuture {
    /// The outcome that its closure is given.
    fn sees(&self, outcome: Outcome) {
        let mut model = self.shared.lock();
        let exchange = model.events[self.id].exchange.expect("it was tracked in an exchange");
        let is_over = model.over[exchange];
        let is_right = is_over == (outcome != Outcome::Unfinished);
        model.require(is_right, || format!("an event sees {outcome:?}, and that its exchange is over is {is_over}"));
    }
}

impl Future for EventFuture {
    type Output = Result<(), &'static str>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let id = self.id;
        let mut model = self.shared.lock();
        if model.events[id].started.is_none() {
            let has_turn = model.events[id].is_nested || model.has_turn();
            model.require(has_turn, || format!("event {id} runs beyond the concurrency limit"));
            model.events[id].started = Some(Instant::now());
            model.events[id].starts += 1;
            let (stage, exchange) = (model.events[id].stage, model.events[id].exchange);
            model.require(stage == Stage::Accepted, || format!("event {id} runs and is {stage:?}"));
            let may_start = exchange.is_none_or(|exchange| model.over[exchange] || model.called[exchange]);
            model.require(may_start, || format!("event {id} runs before its exchange is over"));
        }
        let is_aborted = model.events[id].is_aborted;
        model.require(!is_aborted, || format!("event {id} is polled after it was aborted"));
        let act = model.events[id].act;
        if act == Act::Never {
            return Poll::Pending;
        }
        if act.waits_for_release() && !model.is_released {
            model.wakers.push(cx.waker().clone());
            return Poll::Pending;
        }
        model.events[id].returned = Some(act);
        let handle = model.handle.clone();
        drop(model);
        let track_child = |act| {
            track(&self.shared, Place::Event, act, None, |future| handle.track("child", future));
        };
        match act {
            Act::Fail => return Poll::Ready(Err("it fails")),
            // Without the panic hook, which would print it.
            Act::Panic => resume_unwind(Box::new("an event that panics")),
            Act::TrackChild => track_child(Act::Complete),
            Act::TrackGrandchild => track_child(Act::TrackChild),
            Act::TakeGuard => {
                let guard = take_guard(&self.shared, Place::Event, &handle);
                self.shared.taken().guards.extend(guard);
            }
            Act::Reserve => {
                let permit = reserve(&self.shared, Place::Event, || handle.reserve());
                self.shared.taken().permits.extend(permit);
            }
            _ => {}
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for EventFuture {
    fn drop(&mut self) {
        let id = self.id;
        let mut guard = self.shared.lock();
        if guard.has_ended {
            return;
        }
        let EventModel { act, stage, .. } = guard.events[id];
        if act == Act::TrackInDestructor && stage == Stage::Accepted {
            // The event is pending until its destructor has returned.
            let handle = guard.handle.clone();
            drop(guard);
            track(&self.shared, Place::Event, Act::Complete, None, |future| handle.track("child", future));
            guard = self.shared.lock();
        }
        let model = &mut *guard;
        let event = &mut model.events[id];
        event.is_dropped = true;
        match event.stage {
            Stage::Offered | Stage::Rejected => return,
            Stage::Waiting => {
                event.stage = Stage::Rejected;
                // A request that waits for capacity keeps the handle from being drained.
                model.rejects(if model.phase == Phase::Drained { TrackError::Closed } else { TrackError::Full });
                return;
            }
            Stage::Accepted => {}
        }
        let limit = model.setup.event_timeout;
        let is_late = limit.is_some_and(|limit| event.started.is_some_and(|started| started.elapsed() >= limit));
        let (is_aborted, returned) = (event.is_aborted, event.returned);
        let ended = model.handle.snapshot().ended.total();
        let before = model.ended.total();
        model.require(ended == before, || format!("event {id} is being dropped: {ended} have ended, not {before}"));
        *match (act, returned) {
            (Act::PanicInDestructor, _) | (_, Some(Act::Panic)) => &mut model.ended.panicked,
            (_, Some(Act::Fail)) => &mut model.ended.failed,
            (_, Some(_)) => &mut model.ended.completed,
            (_, None) if is_aborted => &mut model.ended.aborted,
            (_, None) => &mut model.ended.timed_out,
        } += 1;
        let may_end = returned.is_some() || is_aborted || is_late;
        model.require(may_end, || format!("guarantee 4: event {id} is dropped before its end"));
        drop(guard);
        if act == Act::PanicInDestructor && !thread::panicking() {
            resume_unwind(Box::new("a destructor that panics"));
        }
    }
}

/// Tracks an event, and compares the result with the one that is expected.
fn track(
    shared: &Arc<Shared>,
    place: Place,
    act: Act,
    exchange: Option<usize>,
    track: impl FnOnce(EventFuture) -> Result<(), TrackError>,
) {
    let mut model = shared.lock();
    let expected = model.expects(place);
    let id = model.offer(act, Stage::Offered, exchange);
    model.events[id].is_nested = place == Place::Event;
    drop(model);
    let result = track(EventFuture { id, shared: Arc::clone(shared) });
    shared.lock().tracked(id, expected, result);
}

fn reserve(shared: &Shared, place: Place, reserve: impl FnOnce() -> Result<Permit, TrackError>) -> Option<Permit> {
    let expected = shared.lock().expects(place);
    let result = reserve();
    let mut model = shared.lock();
    let error = result.as_ref().err().copied();
    model.require(error == expected.err(), || format!("guarantees 3, 5: a permit: {error:?}, expected {expected:?}"));
    match error {
        None => {
            model.permits += 1;
            model.opens();
        }
        Some(error) => model.rejects(error),
    }
    result.ok()
}

fn take_guard(shared: &Shared, place: Place, handle: &TrackEventsHandle) -> Option<DrainGuard> {
    let expected = shared.lock().expects_open(place);
    let result = handle.guard();
    let mut model = shared.lock();
    let error = result.as_ref().err().copied();
    model.require(error == expected.err(), || format!("guarantees 2, 3: a guard: {error:?}, expected {expected:?}"));
    match error {
        None => {
            model.guards += 1;
            model.opens();
        }
        Some(error) => model.rejects(error),
    }
    result.ok()
}

/// Remembers a wake-up.
#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A handler that does what its request says.
#[derive(Clone)]
struct Handler {
    shared: Arc<Shared>,
}

/// What a request asks of the handler.
#[derive(Clone, Copy)]
struct Order {
    exchange: usize,
    answer: Answer,
}

/// The future of the handler. It keeps no `Events`: the test takes those when the request comes.
struct HandlerFuture {
    order: Order,
    shared: Arc<Shared>,
}

/// Where a request leaves its `Events`.
#[derive(Clone, Default)]
struct LeftEvents(Arc<Mutex<Option<Events>>>);

impl Service<Request<()>> for Handler {
    type Response = Response<ScriptedBody>;
    type Error = &'static str;
    type Future = HandlerFuture;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), &'static str>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<()>) -> HandlerFuture {
        let extensions = request.extensions();
        let order = *extensions.get::<Order>().expect("the request says what to do");
        let left = extensions.get::<LeftEvents>().expect("the request says where to leave the events");
        *left.0.lock().unwrap() = Events::from_extensions(extensions).cloned();
        HandlerFuture { order, shared: Arc::clone(&self.shared) }
    }
}

impl Future for HandlerFuture {
    type Output = Result<Response<ScriptedBody>, &'static str>;

    fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut model = self.shared.lock();
        // The handler runs, so the event of the layer has been accepted, or rejected and dropped.
        for index in 0..model.events.len() {
            let event = &mut model.events[index];
            if event.stage == Stage::Waiting && event.exchange == Some(self.order.exchange) {
                event.stage = Stage::Accepted;
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
                self.shared.lock().head_is_there(self.order.exchange);
                let steps = [None, Some(ending)].into();
                let (exchange, shared) = (self.order.exchange, Arc::clone(&self.shared));
                Poll::Ready(Ok(Response::new(ScriptedBody { steps, exchange, shared })))
            }
        }
    }
}

/// A body of one data frame and an ending.
struct ScriptedBody {
    steps: VecDeque<Option<Ending>>,
    exchange: usize,
    shared: Arc<Shared>,
}

impl Body for ScriptedBody {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        match self.steps.pop_front() {
            Some(None) => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"data"))))),
            None | Some(Some(Ending::Never)) => Poll::Pending,
            Some(Some(ending)) => {
                self.shared.lock().over[self.exchange] = true;
                match ending {
                    Ending::Error => Poll::Ready(Some(Err("the body fails"))),
                    Ending::Panic => resume_unwind(Box::new("a body that panics")),
                    _ => Poll::Ready(None),
                }
            }
        }
    }
}

/// An exchange whose future or body is held.
struct HeldExchange {
    id: usize,
    events: Events,
    /// It was opened before the handle was drained.
    is_counted: bool,
    part: Part,
}

enum Part {
    Future(Pin<Box<ResponseFuture<HandlerFuture>>>),
    Body(Pin<Box<ResponseBody<ScriptedBody>>>),
}

/// A future that is polled manually.
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

    /// Polls it, and returns whether an executor would have polled it too: at first, and after it was woken.
    fn poll(&mut self) -> (Poll<F::Output>, bool) {
        let is_due = self.woken.0.swap(false, Ordering::Relaxed) || self.began.is_none();
        self.began.get_or_insert_with(Instant::now);
        let waker = Waker::from(Arc::clone(&self.woken));
        (self.future.as_mut().poll(&mut Context::from_waker(&waker)), is_due)
    }

    fn is_late(&self) -> bool {
        self.limit.is_zero() || self.began.is_some_and(|began| began.elapsed() >= self.limit)
    }
}

/// A drain, and the quiet period that it has seen begin.
struct HeldDrain {
    drain: Polled<Drain>,
    quiet: Option<Quiet>,
    has_made_last_call: bool,
}

#[derive(Clone, Copy)]
struct Quiet {
    /// How many requests, guards and permits had ever been opened.
    opened: u64,
    since: Instant,
}

/// The result of the poll of a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drained {
    Pending,
    Ok,
    TimedOut,
}

impl HeldDrain {
    fn new(handle: &TrackEventsHandle, limit: Duration) -> Self {
        Self { drain: Polled::new(handle.drain(limit), limit), quiet: None, has_made_last_call: false }
    }

    /// Its deadline, once it has been polled; that is `None` if it has no limit.
    fn deadline(&self) -> Option<Option<Instant>> {
        let Polled { began, limit, .. } = self.drain;
        began.map(|began| (limit != Duration::MAX).then(|| began + limit))
    }

    /// Whether it makes the last call in this poll, if no other drain has a later deadline.
    fn is_last_call_due(&self, model: &Model) -> bool {
        let Polled { began, limit, .. } = self.drain;
        let before = model.setup.last_call.unwrap_or(limit / 4);
        let is_limited = !limit.is_zero() && limit != Duration::MAX && !before.is_zero();
        let is_due = began.is_some_and(|began| began.elapsed() >= limit.saturating_sub(before));
        is_limited && is_due && !self.has_made_last_call
    }

    /// Lets the model do what the poll of this drain does.
    fn expects(&mut self, model: &mut Model, is_latest: bool) -> Drained {
        if is_latest && self.is_last_call_due(model) {
            self.has_made_last_call = true;
            model.last_call();
        }
        let is_late = self.drain.is_late();
        if model.phase == Phase::Drained {
            return Drained::Ok;
        }
        if model.holders() > 0 {
            self.quiet = None;
            return if is_late { Drained::TimedOut } else { Drained::Pending };
        }
        let Model { opened, setup: Setup { quiet_period, .. }, .. } = *model;
        let quiet = self.quiet.filter(|quiet| quiet.opened == opened);
        let is_quiet = quiet_period.is_zero() || quiet.is_some_and(|quiet| quiet.since.elapsed() >= quiet_period);
        let is_closing = model.phase == Phase::Closing || is_quiet && !is_late;
        if model.pending() == 0 && (is_closing || is_late) {
            model.phase = Phase::Drained;
            return Drained::Ok;
        }
        if is_late {
            return Drained::TimedOut;
        }
        if is_closing {
            model.phase = Phase::Closing;
        } else {
            self.quiet = Some(quiet.unwrap_or_else(|| Quiet { opened, since: Instant::now() }));
        }
        Drained::Pending
    }
}

/// The handle under test and what is held of it, with the model.
struct System {
    handle: TrackEventsHandle,
    service: TrackEvents<Handler>,
    runtime: runtime::Handle,
    shared: Arc<Shared>,
    exchanges: Vec<HeldExchange>,
    /// Of exchanges that are over.
    outlived: Vec<(Events, usize)>,
    permits: Vec<(Permit, Option<usize>)>,
    guards: Vec<DrainGuard>,
    drains: Vec<HeldDrain>,
    waits: Vec<Polled<WaitIdle>>,
}

impl System {
    fn new(setup: Setup, runtime: runtime::Handle) -> Self {
        let builder = TrackEventsHandle::builder().capacity(setup.capacity).quiet_period(setup.quiet_period);
        let builder = builder.progress(Duration::ZERO);
        let builder = match setup.concurrency_limit {
            Some(limit) => builder.concurrency_limit(limit),
            None => builder,
        };
        let builder = match setup.last_call {
            Some(before) => builder.last_call(before),
            None => builder,
        };
        let handle = match setup.event_timeout {
            Some(limit) => builder.event_timeout(limit),
            None => builder,
        };
        let handle = handle.build().expect("the settings are in range");
        let model = Model {
            setup,
            phase: Phase::Open,
            events: Vec::new(),
            accepted: 0,
            rejected: 0,
            rejected_closed: 0,
            ended: EventCounts::default(),
            permits: 0,
            guards: 0,
            open_requests: 0,
            opened: 0,
            polled_drains: 0,
            is_last_call: false,
            over: Vec::new(),
            called: Vec::new(),
            wakers: Vec::new(),
            is_released: false,
            handle: handle.clone(),
            failures: Vec::new(),
            has_ended: false,
        };
        let shared = Arc::new(Shared { model: Mutex::new(model), taken: Mutex::default() });
        let mut layer = TrackEventsLayer::new(handle.clone());
        if let Some(overflow) = setup.hook {
            let shared = Arc::clone(&shared);
            layer = layer.overflow(overflow).track_from_request("hook", move |parts| {
                let order = *parts.extensions.get::<Order>().expect("the request says what to do");
                let id = shared.lock().offer(Act::Complete, Stage::Waiting, Some(order.exchange));
                let future = EventFuture { id, shared: Arc::clone(&shared) };
                move |_exchange: Exchange| future
            });
        }
        let service = tower_layer::Layer::layer(&layer, Handler { shared: Arc::clone(&shared) });
        Self {
            handle,
            service,
            runtime,
            shared,
            exchanges: Vec::new(),
            outlived: Vec::new(),
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
                if let Some(exchange) = take(&mut self.exchanges, index) {
                    self.end_exchange(exchange);
                }
            }
            Operation::TrackIn(index, act) => {
                if let Some(exchange) = pick(&mut self.exchanges, index) {
                    let HeldExchange { id, events, .. } = exchange;
                    track(&self.shared, Place::Outside, act, Some(*id), |future| events.track("tracked in", future));
                }
            }
            Operation::TrackWithIn(index, act) => {
                if let Some(exchange) = pick(&mut self.exchanges, index) {
                    let HeldExchange { id, events, .. } = exchange;
                    track(&self.shared, Place::Outside, act, Some(*id), |future| {
                        events.track_with("tracked with", move |exchange: Exchange| {
                            future.sees(exchange.outcome);
                            future
                        })
                    });
                }
            }
            Operation::ReserveIn(index) => {
                if let Some(HeldExchange { id, events, .. }) = pick(&mut self.exchanges, index) {
                    let permit = reserve(&self.shared, Place::Outside, || events.reserve());
                    self.permits.extend(permit.map(|permit| (permit, Some(*id))));
                }
            }
            Operation::TrackAfter(index, act) => {
                if let Some((events, id)) = pick(&mut self.outlived, index) {
                    track(&self.shared, Place::Outside, act, Some(*id), |future| events.track("tracked after", future));
                }
            }
            Operation::Track(act) => {
                track(&self.shared, Place::Outside, act, None, |future| self.handle.track("tracked", future));
            }
            Operation::TrackOnThread(act) => track(&self.shared, Place::Outside, act, None, |future| {
                on_thread(&self.runtime, || self.handle.track("tracked on a thread", future))
            }),
            Operation::Reserve => {
                let permit = reserve(&self.shared, Place::Outside, || self.handle.reserve());
                self.permits.extend(permit.map(|permit| (permit, None)));
            }
            Operation::ReserveOnThread => {
                let permit =
                    reserve(&self.shared, Place::Outside, || on_thread(&self.runtime, || self.handle.reserve()));
                self.permits.extend(permit.map(|permit| (permit, None)));
            }
            Operation::UsePermit(index, act) => self.use_permit(index, act),
            Operation::DropPermit(index) => {
                if let Some(permit) = take(&mut self.permits, index) {
                    self.shared.lock().permits -= 1;
                    drop(permit);
                }
            }
            Operation::TakeGuard => self.guards.extend(take_guard(&self.shared, Place::Outside, &self.handle)),
            Operation::DropGuard(index) => {
                if let Some(guard) = take(&mut self.guards, index) {
                    self.shared.lock().guards -= 1;
                    drop(guard);
                }
            }
            Operation::Scope(index, act) => self.scope(index, act),
            Operation::Release => {
                let mut model = self.shared.lock();
                model.is_released = !model.is_released;
                let wakers = mem::take(&mut model.wakers);
                drop(model);
                wakers.into_iter().for_each(Waker::wake);
            }
            Operation::Abort => self.abort(),
            Operation::MakeLastCall => {
                self.handle.make_last_call();
                self.shared.lock().last_call();
            }
            Operation::CloneHandle => self.handle = self.handle.clone(),
            Operation::BeginDrain => self.handle.begin_drain(),
            Operation::StartDrain(limit) => {
                self.drains.push(HeldDrain::new(&self.handle, limit));
            }
            Operation::PollDrain(index) => self.poll_drain(index),
            Operation::DropDrain(index) => {
                if let Some(HeldDrain { drain, .. }) = take(&mut self.drains, index) {
                    if drain.began.is_some() {
                        self.shared.lock().drain_is_gone();
                    }
                    drop(drain);
                }
            }
            Operation::Close => self.close().await,
            Operation::StartWait(limit) => self.waits.push(Polled::new(self.handle.wait_idle(limit), limit)),
            Operation::PollWait(index) => self.poll_wait(index),
            Operation::DropWait(index) => drop(take(&mut self.waits, index)),
        }
        // What events have taken is held like everything else.
        let Taken { guards, permits } = mem::take(&mut *self.shared.taken());
        self.guards.extend(guards);
        self.permits.extend(permits.into_iter().map(|permit| (permit, None)));
    }

    async fn run_tasks(&self) {
        // Each turn may pass on in a round of its own.
        for _ in 0..128 {
            tokio::task::yield_now().await;
        }
        let mut guard = self.shared.lock();
        let model = &mut *guard;
        let has_turn = model.has_turn();
        for (id, event) in model.events.iter().enumerate().filter(|(_, event)| event.stage == Stage::Accepted) {
            let has_started = event.starts > 0 || event.is_dropped;
            let may_wait = event.exchange.is_some_and(|id| {
                let is_held = self.exchanges.iter().any(|exchange| exchange.id == id);
                !model.called[id] && (!model.over[id] || is_held)
            });
            if !has_started && !may_wait && (has_turn || event.is_nested) {
                model.failures.push(format!("guarantee 4: event {id} does not start"));
            }
            if event.is_aborted && !event.is_dropped {
                model.failures.push(format!("event {id} was aborted and lives"));
            }
        }
    }

    fn open(&mut self, answer: Answer) {
        let mut model = self.shared.lock();
        let exchange = model.over.len();
        model.over.push(false);
        model.called.push(false);
        let is_counted = model.phase != Phase::Drained;
        if is_counted {
            model.open_requests += 1;
            model.opens();
        }
        let expected = model.expects(Place::Outside);
        let (hook, next) = (model.setup.hook, model.events.len());
        drop(model);
        let left = LeftEvents::default();
        let mut request = Request::new(());
        request.extensions_mut().insert(Order { exchange, answer });
        request.extensions_mut().insert(left.clone());
        let future = Box::pin(self.service.call(request));
        let events = left.0.lock().unwrap().take().expect("the layer gives each request its events");
        self.exchanges.push(HeldExchange { id: exchange, events, is_counted, part: Part::Future(future) });

        let mut model = self.shared.lock();
        let is_made = model.events.len() > next;
        model.require(is_made == hook.is_some(), || "the hook was not called, or there is none".to_owned());
        // One that was rejected is dropped by now, and its destructor has counted it.
        let is_kept = model.events.get(next).is_some_and(|event| !event.is_dropped);
        let may_wait = matches!(hook, Some(Overflow::Wait(_))) && !model.is_last_call;
        match (hook, expected) {
            (None, _) => {}
            (Some(_), Ok(())) => {
                model.require(is_kept, || "guarantee 3: the event of the layer was rejected".to_owned());
                if is_kept {
                    model.events[next].stage = Stage::Accepted;
                    model.accepted += 1;
                }
            }
            (Some(_), Err(TrackError::Full)) if may_wait => {
                model.require(is_kept, || "the event of the layer does not wait".to_owned());
            }
            (Some(_), Err(error)) => {
                model.require(!is_kept, || format!("guarantees 2, 5: the event of the layer is accepted, not {error}"));
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
        let exchange = &mut self.exchanges[index];
        let id = exchange.id;
        // A panic leaves the exchange open until the future or body is dropped, and it must not be polled again.
        let is_done = match &mut exchange.part {
            Part::Future(future) => match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut cx))) {
                Ok(Poll::Ready(Ok(response))) => {
                    exchange.part = Part::Body(Box::pin(response.into_body()));
                    false
                }
                Ok(Poll::Pending) => false,
                Ok(Poll::Ready(Err(_))) | Err(_) => true,
            },
            Part::Body(body) => catch_unwind(AssertUnwindSafe(|| body.as_mut().poll_frame(&mut cx))).is_err(),
        };
        let mut model = self.shared.lock();
        let is_stuck = |event: &EventModel| event.exchange == Some(id) && event.is_dismissed && !event.is_dropped;
        let is_stuck = model.events.iter().any(is_stuck);
        model.require(!is_stuck, || format!("exchange {id} waits for a slot after the last call"));
        drop(model);
        if is_done {
            let exchange = self.exchanges.remove(index);
            self.end_exchange(exchange);
        }
    }

    fn end_exchange(&mut self, exchange: HeldExchange) {
        let mut model = self.shared.lock();
        model.over[exchange.id] = true;
        model.open_requests -= u64::from(exchange.is_counted);
        drop(model);
        self.outlived.push((exchange.events.clone(), exchange.id));
        drop(exchange);
    }

    fn use_permit(&mut self, index: usize, act: Act) {
        if let Some((permit, exchange)) = take(&mut self.permits, index) {
            let mut model = self.shared.lock();
            let id = model.offer(act, Stage::Accepted, exchange);
            model.permits -= 1;
            model.accepted += 1;
            drop(model);
            permit.track("permitted", EventFuture { id, shared: Arc::clone(&self.shared) });
        }
    }

    fn scope(&mut self, index: usize, act: Act) {
        let Some(guard) = take(&mut self.guards, index) else { return };
        let scope = guard.scope(async {
            let drained = self.handle.drain(Duration::ZERO).await;
            let idle = self.handle.wait_idle(Duration::ZERO).await;
            let are_inside =
                matches!(drained, Err(DrainError::InsideItself)) && idle == Err(WaitIdleError::InsideItself);
            self.shared.lock().require(are_inside, || format!("in a scope: {drained:?}, {idle:?}"));
            track(&self.shared, Place::Inside, act, None, |future| self.handle.track("tracked in a scope", future));
        });
        let mut scope = Box::pin(scope);
        let polled = scope.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        let mut model = self.shared.lock();
        model.require(polled.is_ready(), || "a scope waits".to_owned());
        model.guards -= 1;
        drop(model);
        drop(scope);
    }

    fn abort(&self) {
        let mut model = self.shared.lock();
        for event in model.events.iter_mut().filter(|event| event.stage == Stage::Accepted && !event.is_dropped) {
            event.is_aborted = true;
        }
        drop(model);
        self.handle.abort();
        let mut model = self.shared.lock();
        let model = &mut *model;
        for (id, event) in model.events.iter().enumerate().filter(|(_, event)| event.is_aborted) {
            let is_waiting = event.exchange.is_some_and(|id| !model.over[id] && !model.called[id]);
            if is_waiting && !event.is_dropped {
                model.failures.push(format!("event {id} waits for its exchange and was not aborted"));
            }
        }
    }

    fn poll_drain(&mut self, index: usize) {
        let count = self.drains.len();
        if count == 0 {
            return;
        }
        let index = index % count;
        let held = &mut self.drains[index];
        let is_first = held.drain.began.is_none();
        let (answer, is_due) = held.drain.poll();
        let deadline = held.deadline().expect("it was polled");
        let is_latest = self.drains.iter().filter_map(HeldDrain::deadline).all(|other| match (deadline, other) {
            (Some(deadline), Some(other)) => deadline >= other,
            (deadline, other) => deadline.is_none() || other.is_some(),
        });
        let mut model = self.shared.lock();
        model.polled_drains += usize::from(is_first);
        let expected = self.drains[index].expects(&mut model, is_latest);
        let drained = match &answer {
            Poll::Pending => Drained::Pending,
            Poll::Ready(Ok(_)) => Drained::Ok,
            Poll::Ready(Err(DrainError::TimedOut(_))) => Drained::TimedOut,
            Poll::Ready(Err(error)) => {
                model.failures.push(format!("a drain fails: {error}"));
                return;
            }
        };
        model.require(drained == expected, || format!("guarantee 2: a drain is {drained:?}, expected {expected:?}"));
        model.require(answer.is_pending() || is_due, || "a drain that is ready was not woken".to_owned());
        if let Poll::Ready(Ok(report)) = &answer {
            let counts = (report.accepted, report.rejected, report.rejected_closed, report.ended);
            let expected = (model.accepted, model.rejected, model.rejected_closed, model.ended);
            model.require(counts == expected, || format!("a report: {counts:?}, expected {expected:?}"));
        }
        if answer.is_ready() {
            model.drain_is_gone();
            drop(model);
            self.drains.remove(index);
        }
    }

    async fn close(&mut self) {
        self.drop_holders();
        if self.drains.is_empty() {
            self.drains.push(HeldDrain::new(&self.handle, Duration::MAX));
        }
        self.poll_drains();
        let quiet_period = self.shared.lock().setup.quiet_period;
        tokio::time::advance(quiet_period).await;
        self.poll_drains();
    }

    fn drop_holders(&mut self) {
        while let Some(exchange) = self.exchanges.pop() {
            self.end_exchange(exchange);
        }
        let mut model = self.shared.lock();
        (model.guards, model.permits) = (0, 0);
        drop(model);
        self.guards.clear();
        self.permits.clear();
    }

    fn poll_drains(&mut self) {
        // Backwards, since those that are ready are removed.
        (0..self.drains.len()).rev().for_each(|index| self.poll_drain(index));
    }

    fn poll_wait(&mut self, index: usize) {
        let count = self.waits.len();
        if count == 0 {
            return;
        }
        let index = index % count;
        let wait = &mut self.waits[index];
        let (answer, is_due) = wait.poll();
        let mut model = self.shared.lock();
        let is_idle = model.pending() == 0;
        let as_expected = match &answer {
            Poll::Pending => !is_idle && !wait.is_late(),
            Poll::Ready(Ok(())) => is_idle,
            Poll::Ready(Err(WaitIdleError::TimedOut { .. })) => !is_idle && wait.is_late(),
            Poll::Ready(Err(_)) => false,
        };
        model.require(as_expected, || format!("a wait: {answer:?}, and that nothing is pending is {is_idle}"));
        model.require(answer.is_pending() || is_due, || "a wait that is ready was not woken".to_owned());
        drop(model);
        if answer.is_ready() {
            self.waits.remove(index);
        }
    }

    /// Compares the whole snapshot with the model.
    fn check(&self) {
        let now = self.handle.snapshot();
        let mut guard = self.shared.lock();
        let model = &mut *guard;
        model.equal("open requests", now.open_requests, model.open_requests);
        model.equal("open guards", now.open_guards, model.guards);
        model.equal("reserved", now.reserved, model.reserved());
        model.equal("pending", now.pending, model.pending());
        model.equal("accepted", now.accepted, model.accepted);
        model.equal("ended", now.ended, model.ended);
        model.equal("rejected", now.rejected, model.rejected);
        model.equal("rejected as closed", now.rejected_closed, model.rejected_closed);
        let deadlines: Option<Vec<_>> = self.drains.iter().filter_map(HeldDrain::deadline).collect();
        model.equal("the deadline", self.handle.drain_deadline(), deadlines.and_then(|all| all.into_iter().max()));
        model.equal("drained", self.handle.is_drained(), model.phase == Phase::Drained);
        model.require(now.accepted == now.ended.total() + now.pending, || format!("guarantee 1: {now:?}"));
        let capacity = model.setup.capacity as u64;
        model.require(now.pending + now.reserved <= capacity, || format!("guarantee 5: {now:?}"));
        let twice = model.events.iter().position(|event| event.starts > 1);
        model.require(twice.is_none(), || format!("guarantee 4: event {twice:?} was started twice"));
    }
}

impl Model {
    fn equal<T: PartialEq + fmt::Debug>(&mut self, what: &str, real: T, modelled: T) {
        self.require(real == modelled, || format!("{what}: {real:?}, and the model has {modelled:?}"));
    }
}

/// Runs `run` on another thread, which has another shard, and waits for it.
fn on_thread<T: Send>(runtime: &runtime::Handle, run: impl FnOnce() -> T + Send) -> T {
    let inside = || {
        let _entered = runtime.enter();
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
