//! Sequences of operations on a sink whose store takes, fails in each way, panics, hangs, is not ready, and sends and
//! reserves itself, with a model beside it that knows for each value where it must be.

use std::{
    collections::{HashSet, VecDeque},
    mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, ready},
    time::Duration,
};

use proptest::prelude::*;
use tokio::{
    runtime,
    sync::Notify,
    time::{advance, pause},
};
use tokio_test::task::{self, Spawn};
use tower::{BoxError, Service, layer::layer_fn};
use tower_track_events::{
    AckError, Batch, Drain, DrainError, DrainGuard, EventSender, OpenItem, OpenKind, SendPermit, SinkError, Snapshot,
    TrackError, TrackEventsHandle, TrySendError, Undelivered, WaitIdleError,
};

use crate::support::{assert_conserved, run_tasks};

type Wait = Pin<Box<dyn Future<Output = Result<(), WaitIdleError>> + Send>>;
type Sending = Pin<Box<dyn Future<Output = Result<(), AckError<u32>>> + Send>>;

/// Values of senders that wait have larger numbers: it is not known in advance in which order they are accepted.
const FIRST_OF_WAITING: u32 = 1 << 16;

#[derive(Clone, Copy, Debug)]
enum Act {
    Take,
    Fail,
    Panic,
    Hang,
    /// Sends a value to its own sink, then takes the batch.
    Send,
    /// Reserves a permit, which stays when the batch has been taken.
    Reserve,
    Permanent,
    Split,
    /// With one index, which may be out of range.
    Reject(usize),
    RetryWithout(usize),
    RetryOnly(usize),
}

/// What `poll_ready` of the service does instead of being ready.
#[derive(Clone, Copy, Debug)]
enum Readiness {
    Wait,
    Fail,
}

#[derive(Clone, Copy, Debug)]
enum Operation {
    Send(u8),
    /// Waits for capacity, and for the delivery if it is true.
    SendAndWait(bool),
    DropSend,
    Reserve,
    UsePermit,
    DropPermit,
    TakeGuard,
    DropGuard,
    Script(Act),
    IsNotReady(Readiness),
    Release,
    RunTasks,
    Advance(u64),
    Flush,
    PollWaits,
    WaitIdle,
    Drain(u64),
    DropDrain,
    Abort,
}

#[derive(Clone, Copy, Debug)]
struct Setup {
    capacity: usize,
    max_batch: usize,
    max_delay: u64,
    has_on_undelivered: bool,
    max_attempts: Option<u32>,
    max_in_flight: usize,
}

/// Who is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    Closing,
    Drained,
}

/// What the sink has accepted, and what holds a permit: shared with the store, which sends as well.
struct Senders {
    handle: TrackEventsHandle,
    sender: Option<EventSender<u32>>,
    phase: Phase,
    capacity: usize,
    /// The number of the next value.
    accepted: u32,
    rejected: u64,
    rejected_closed: u64,
    permits: Vec<SendPermit<u32>>,
    /// How many senders wait, each of which may have been given a slot.
    waiting: usize,
    /// The service has failed twice in a row before it was called.
    is_dead: bool,
}

impl Senders {
    /// Asserts that a value or a permit is accepted, or rejected for the right reason.
    fn expect(&self, rejected: Option<TrackError>, before: &Snapshot, is_inside: bool) {
        let taken = (before.pending + before.reserved) as usize;
        match self.phase {
            Phase::Drained => assert_eq!(rejected, Some(TrackError::Closed)),
            _ if self.is_dead => assert_eq!(rejected, Some(TrackError::Closed)),
            Phase::Closing if !is_inside => assert_eq!(rejected, Some(TrackError::Closed)),
            _ if taken >= self.capacity => assert_eq!(rejected, Some(TrackError::Full)),
            _ if taken + self.waiting < self.capacity => assert_eq!(rejected, None),
            _ => assert!(matches!(rejected, None | Some(TrackError::Full)), "{rejected:?}"),
        }
    }

    fn send(&mut self, is_inside: bool) {
        let before = self.handle.snapshot();
        let Some(sender) = &self.sender else { return };
        let result = sender.try_send(self.accepted);
        self.expect(result.err().map(|error| error.reason), &before, is_inside);
        match result {
            Ok(()) => self.accepted += 1,
            Err(error) => {
                assert_eq!(error.event, self.accepted);
                self.rejects(error.reason);
            }
        }
    }

    fn reserve(&mut self, is_inside: bool) {
        let before = self.handle.snapshot();
        let Some(sender) = &self.sender else { return };
        let result = sender.try_reserve();
        self.expect(result.as_ref().err().copied(), &before, is_inside);
        match result {
            Ok(permit) => {
                self.permits.push(permit);
                self.phase = Phase::Open;
            }
            Err(error) => self.rejects(error),
        }
    }

    fn rejects(&mut self, error: TrackError) {
        self.rejected += 1;
        self.rejected_closed += u64::from(error == TrackError::Closed && self.phase != Phase::Open);
    }
}

#[derive(Clone)]
struct Store {
    script: Arc<Mutex<VecDeque<Act>>>,
    readiness: Arc<Mutex<VecDeque<Readiness>>>,
    /// What was acknowledged.
    taken: Arc<Mutex<Vec<u32>>>,
    release: Arc<Notify>,
    senders: Arc<Mutex<Senders>>,
}

impl Store {
    async fn deliver(self, batch: Batch<u32>) -> Result<(), SinkError> {
        let act = self.script.lock().unwrap().pop_front().unwrap_or(Act::Take);
        let takes_all_but = |index: usize| {
            if index < batch.len() {
                let others = batch.iter().enumerate().filter(|(other, _)| *other != index);
                self.taken.lock().unwrap().extend(others.map(|(_, value)| value));
            }
        };
        match act {
            Act::Take => {}
            Act::Fail => return Err(SinkError::retry("down")),
            Act::Panic => panic!("a sink that panics"),
            Act::Hang => self.release.notified().await,
            Act::Send => self.senders.lock().unwrap().send(true),
            Act::Reserve => self.senders.lock().unwrap().reserve(true),
            Act::Permanent => return Err(SinkError::permanent("401")),
            Act::Split => return Err(SinkError::split("413")),
            Act::RetryWithout(index) => return Err(SinkError::retry_without([index], "a bad row")),
            Act::Reject(index) => {
                takes_all_but(index);
                return Err(SinkError::rejected([index], "a bad row"));
            }
            Act::RetryOnly(index) => {
                takes_all_but(index);
                return Err(SinkError::retry_only([index], "a locked row"));
            }
        }
        // Nothing is awaited from here on, so what is noted is acknowledged.
        self.taken.lock().unwrap().extend(batch.iter());
        Ok(())
    }
}

/// Around the store: it may be not ready.
struct Gate<S> {
    service: S,
    store: Store,
    waits: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    failures: u32,
}

impl<S: Service<Batch<u32>, Error = BoxError>> Service<Batch<u32>> for Gate<S> {
    type Response = S::Response;
    type Error = BoxError;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        if self.waits.is_none() {
            match self.store.readiness.lock().unwrap().pop_front() {
                None => {}
                Some(Readiness::Wait) => {
                    let release = Arc::clone(&self.store.release);
                    self.waits = Some(Box::pin(async move { release.notified().await }));
                }
                Some(Readiness::Fail) => {
                    self.failures += 1;
                    if self.failures == 2 {
                        self.store.senders.lock().unwrap().is_dead = true;
                    }
                    return Poll::Ready(Err("not ready".into()));
                }
            }
        }
        if let Some(waits) = &mut self.waits {
            ready!(waits.as_mut().poll(cx));
            self.waits = None;
        }
        self.failures = 0;
        self.service.poll_ready(cx)
    }

    fn call(&mut self, batch: Batch<u32>) -> S::Future {
        self.service.call(batch)
    }
}

/// What a wait waits for.
#[derive(Clone, Copy, Debug)]
enum Until {
    /// So many values have ended.
    Ended(usize),
    /// None is pending.
    Idle,
}

/// A sender that waits: for capacity, or for the delivery.
struct WaitingSend {
    send: Spawn<Sending>,
    value: u32,
    is_acked: bool,
    is_new: bool,
    /// Its value was not accepted.
    has_no_slot: bool,
}

/// The sink under test and what is held of it, with the model.
struct System {
    setup: Setup,
    handle: TrackEventsHandle,
    store: Store,
    undelivered: Arc<Mutex<Vec<u32>>>,
    guards: Vec<DrainGuard>,
    waits: Vec<(Spawn<Wait>, Until)>,
    sends: Vec<WaitingSend>,
    next_waiting: u32,
    drains: Vec<Spawn<Drain>>,
    /// Values end in the order in which they were accepted.
    keeps_order: bool,
    /// The sink may not have dropped a batch that was taken away from it.
    is_detached: bool,
}

impl System {
    fn new(setup: Setup) -> Self {
        let handle = TrackEventsHandle::builder().quiet_period(Duration::ZERO).build().unwrap();
        let senders = Senders {
            handle: handle.clone(),
            sender: None,
            phase: Phase::Open,
            capacity: setup.capacity,
            accepted: 0,
            rejected: 0,
            rejected_closed: 0,
            permits: Vec::new(),
            waiting: 0,
            is_dead: false,
        };
        let store = Store {
            script: Arc::default(),
            readiness: Arc::default(),
            taken: Arc::default(),
            release: Arc::default(),
            senders: Arc::new(Mutex::new(senders)),
        };
        let undelivered = Arc::new(Mutex::new(Vec::new()));
        let mut builder = handle
            .sink("row")
            .capacity(setup.capacity)
            .max_batch(setup.max_batch)
            .max_in_flight(setup.max_in_flight)
            .max_delay(Duration::from_millis(setup.max_delay))
            .deliver_timeout(Duration::from_millis(50))
            .backoff(Duration::from_millis(5), Duration::from_millis(20));
        if let Some(attempts) = setup.max_attempts {
            builder = builder.max_attempts(attempts);
        }
        if setup.has_on_undelivered {
            let into = Arc::clone(&undelivered);
            builder =
                builder.on_undelivered(move |values: Undelivered<u32>| into.lock().unwrap().extend(values.iter()));
        }
        let (delivering, gate) = (store.clone(), store.clone());
        let deliver = move |batch| delivering.deliver(batch);
        let builder =
            builder.layer(layer_fn(|service| Gate { service, store: gate.clone(), waits: None, failures: 0 }));
        let sender = builder.deliver(deliver).unwrap();
        store.senders.lock().unwrap().sender = Some(sender);
        drop(gate);
        Self {
            setup,
            handle,
            store,
            undelivered,
            guards: Vec::new(),
            waits: Vec::new(),
            sends: Vec::new(),
            next_waiting: FIRST_OF_WAITING,
            drains: Vec::new(),
            keeps_order: setup.max_in_flight == 1,
            is_detached: false,
        }
    }

    fn senders(&self) -> MutexGuard<'_, Senders> {
        self.store.senders.lock().unwrap()
    }

    fn sender(&self) -> EventSender<u32> {
        self.senders().sender.clone().unwrap()
    }

    async fn run(&mut self, operation: Operation) {
        match operation {
            Operation::Send(count) => (0..count).for_each(|_| self.senders().send(false)),
            Operation::SendAndWait(is_acked) => self.send_and_wait(is_acked),
            Operation::DropSend => {
                // The first may have been given a slot, and has not taken it.
                self.run_tasks().await;
                drop((!self.sends.is_empty()).then(|| self.sends.remove(0)));
                self.senders().waiting = self.sends.len();
            }
            Operation::Reserve => self.senders().reserve(false),
            Operation::UsePermit => {
                let mut senders = self.senders();
                if let Some(permit) = senders.permits.pop() {
                    permit.send(senders.accepted);
                    senders.accepted += 1;
                }
            }
            Operation::DropPermit => {
                let permit = self.senders().permits.pop();
                drop(permit);
            }
            Operation::TakeGuard => self.take_guard(),
            Operation::DropGuard => drop(self.guards.pop()),
            Operation::Script(act) => {
                self.keeps_order &= !matches!(act, Act::RetryWithout(_) | Act::RetryOnly(_));
                self.store.script.lock().unwrap().push_back(act);
            }
            Operation::IsNotReady(readiness) => self.store.readiness.lock().unwrap().push_back(readiness),
            Operation::Release => self.store.release.notify_one(),
            Operation::RunTasks => {
                self.run_tasks().await;
                self.poll_sends();
                let senders = self.senders();
                let is_closed = senders.phase != Phase::Open || senders.is_dead;
                assert!(!is_closed || self.sends.iter().all(|send| !send.has_no_slot), "a sender waits for nothing");
            }
            Operation::Advance(by) => {
                advance(Duration::from_millis(by)).await;
                self.run_tasks().await;
            }
            Operation::Flush => {
                let before = self.senders().accepted as usize;
                self.wait(self.sender().flush(Duration::MAX), Until::Ended(before));
            }
            Operation::WaitIdle => self.wait(self.handle.wait_idle(Duration::MAX), Until::Idle),
            Operation::PollWaits => self.poll_waits(),
            Operation::Drain(limit) => {
                self.drains.push(task::spawn(self.handle.drain(Duration::from_millis(limit))));
            }
            Operation::DropDrain => {
                drop(self.drains.pop());
                let mut senders = self.senders();
                if self.drains.is_empty() && senders.phase == Phase::Closing {
                    senders.phase = Phase::Open;
                }
            }
            Operation::Abort => {
                self.is_detached |= self.handle.snapshot().pending > 0;
                self.handle.abort();
                assert_eq!(self.handle.snapshot().pending, 0);
            }
        }
        self.poll_drains();
        self.poll_sends();
        self.check();
    }

    fn send_and_wait(&mut self, is_acked: bool) {
        let (sender, value) = (self.sender(), self.next_waiting);
        self.next_waiting += 1;
        let send = async move {
            if is_acked { sender.send_acked(value).await } else { sender.send(value).await.map_err(AckError::NotSent) }
        };
        let send = task::spawn(Box::pin(send) as Sending);
        self.sends.push(WaitingSend { send, value, is_acked, is_new: true, has_no_slot: true });
        self.senders().waiting = self.sends.len();
    }

    fn poll_sends(&mut self) {
        for mut waiting in mem::take(&mut self.sends) {
            let before = self.handle.snapshot().accepted;
            // Nothing has changed for one that was not woken.
            let must_poll = mem::take(&mut waiting.is_new) || waiting.send.is_woken();
            let polled = if must_poll { waiting.send.poll() } else { Poll::Pending };
            let accepted = (self.handle.snapshot().accepted - before) as u32;
            let mut senders = self.senders();
            senders.accepted += accepted;
            let is_closed = senders.phase != Phase::Open || senders.is_dead;
            let is_taken = self.store.taken.lock().unwrap().contains(&waiting.value);
            match polled {
                Poll::Pending => {
                    drop(senders);
                    waiting.has_no_slot &= accepted == 0;
                    self.sends.push(waiting);
                }
                Poll::Ready(Ok(())) => assert!(is_taken || !waiting.is_acked, "acknowledged, and not taken"),
                Poll::Ready(Err(AckError::NotSent(TrySendError { event, reason }))) => {
                    assert_eq!((event, reason, is_closed), (waiting.value, TrackError::Closed, true));
                    senders.rejects(reason);
                }
                Poll::Ready(Err(AckError::Undelivered { .. })) => assert!(!is_taken, "taken, and not acknowledged"),
                Poll::Ready(Err(other)) => panic!("{other}"),
            }
        }
        self.senders().waiting = self.sends.len();
    }

    async fn run_tasks(&mut self) {
        run_tasks().await;
        self.is_detached = false;
    }

    /// From outside.
    fn take_guard(&mut self) {
        let result = self.handle.guard();
        let mut senders = self.senders();
        let expected = (senders.phase != Phase::Open).then_some(TrackError::Closed);
        assert_eq!(result.as_ref().err().copied(), expected);
        if let Some(error) = expected {
            senders.rejects(error);
        }
        drop(senders);
        self.guards.extend(result);
    }

    fn wait(&mut self, wait: impl Future<Output = Result<(), WaitIdleError>> + Send + 'static, until: Until) {
        let mut wait = task::spawn(Box::pin(wait) as Wait);
        let is_over = wait.poll().is_ready();
        self.expect_over(is_over, until);
        if !is_over {
            self.waits.push((wait, until));
        }
    }

    fn expect_over(&self, is_over: bool, until: Until) {
        let now = self.handle.snapshot();
        match until {
            Until::Ended(count) => {
                // Values may end in another order than that in which they were accepted.
                assert!(!is_over || now.ended.total() as usize >= count, "{until:?}: {now:?}");
                assert!(is_over || now.pending > 0, "{until:?}: {now:?}");
            }
            Until::Idle => assert_eq!(is_over, now.pending == 0, "{until:?}: {now:?}"),
        }
    }

    fn poll_waits(&mut self) {
        for (mut wait, until) in mem::take(&mut self.waits) {
            let is_woken = wait.is_woken();
            let is_over = wait.poll().is_ready();
            self.expect_over(is_over, until);
            assert!(is_woken || !is_over, "nothing woke a wait");
            if !is_over {
                self.waits.push((wait, until));
            }
        }
    }

    fn poll_drains(&mut self) {
        for mut drain in mem::take(&mut self.drains) {
            match drain.poll() {
                // It waits until the sink has been dropped.
                Poll::Pending if self.has_closed() => self.drains.push(drain),
                Poll::Pending => {
                    self.is_polled();
                    self.drains.push(drain);
                }
                Poll::Ready(Ok(report)) => {
                    let senders = self.senders();
                    assert_eq!(report.ended.total(), report.accepted, "{report}");
                    assert_eq!((report.rejected, report.rejected_closed), (senders.rejected, senders.rejected_closed));
                    drop(senders);
                    assert!(self.has_closed(), "drained, and not closed");
                }
                Poll::Ready(Err(DrainError::TimedOut(report))) => {
                    let is_sink = |item: &OpenItem| item.kind == OpenKind::Sink;
                    assert!(!report.open.is_empty());
                    self.is_detached |= report.open.iter().any(|item| item.kind == OpenKind::UndeliveredEvent);
                    // The limit may pass between the closing and the drop of the sink.
                    assert!(!self.has_closed() || report.open.iter().all(is_sink), "{report}");
                }
                Poll::Ready(Err(other)) => panic!("{other}"),
            }
        }
        let mut senders = self.senders();
        if self.drains.is_empty() && senders.phase == Phase::Closing {
            senders.phase = Phase::Open;
        }
    }

    /// Whether a drain has closed the handle: nothing may be pending or open then.
    fn has_closed(&self) -> bool {
        let has_closed = self.handle.is_drained();
        if has_closed {
            let mut senders = self.senders();
            assert_eq!(self.handle.snapshot().pending, 0, "closed while a value was pending");
            assert!(senders.permits.is_empty() && self.guards.is_empty(), "closed with a permit open");
            senders.phase = Phase::Drained;
        }
        has_closed
    }

    /// There is no quiet period, so a drain that is pending is closing, unless a permit or a guard is open.
    fn is_polled(&self) {
        let mut senders = self.senders();
        if senders.permits.is_empty() && self.guards.is_empty() {
            assert!(self.handle.snapshot().pending > 0 || self.is_detached, "a drain waits for nothing");
            senders.phase = Phase::Closing;
        } else {
            assert_eq!(senders.phase, Phase::Open);
        }
    }

    fn check(&self) {
        let now = self.handle.snapshot();
        let senders = self.senders();
        assert_conserved(&now);
        assert_eq!(now.accepted, u64::from(senders.accepted));
        assert_eq!((now.rejected, now.rejected_closed), (senders.rejected, senders.rejected_closed));
        assert_eq!(now.reserved as usize, senders.permits.len());
        assert_eq!(now.open_guards as usize, self.guards.len());
        assert!((now.pending + now.reserved) as usize <= self.setup.capacity, "{now:?}");
        assert!(senders.phase != Phase::Drained || now.pending == 0, "pending after a drain");
        // Each value is acknowledged, passed to `on_undelivered`, dropped or pending; in order, and once.
        let taken = self.store.taken.lock().unwrap().clone();
        let undelivered = self.undelivered.lock().unwrap().clone();
        let once: HashSet<_> = taken.iter().chain(&undelivered).collect();
        assert_eq!(once.len(), taken.len() + undelivered.len(), "not once: {taken:?} {undelivered:?}");
        if self.keeps_order {
            for values in [&taken, &undelivered] {
                let values = values.iter().filter(|value| **value < FIRST_OF_WAITING);
                assert!(values.is_sorted(), "not in order: {taken:?} {undelivered:?}");
            }
        }
        // A slot that is free was given to a sender, which was polled.
        let is_open = senders.phase == Phase::Open && !senders.is_dead;
        let is_full = (now.pending + now.reserved) as usize == self.setup.capacity;
        let waits = self.sends.iter().any(|send| send.has_no_slot);
        assert!(!is_open || !waits || is_full, "a sender waits while a slot is free");
        assert_eq!(now.ended.completed as usize, taken.len(), "{now:?}");
        let not_taken = (now.ended.failed + now.ended.aborted) as usize;
        let passed_on = if self.setup.has_on_undelivered { undelivered.len() } else { not_taken };
        assert_eq!(passed_on, not_taken, "{now:?}");
    }

    /// The store takes everything from now on: no wait and no drain hangs.
    async fn end(&mut self) {
        self.store.script.lock().unwrap().clear();
        self.store.readiness.lock().unwrap().clear();
        drop(mem::take(&mut self.senders().permits));
        self.guards.clear();
        // An attempt that hangs reaches its time limit, and the next is made after a pause.
        for _ in 0..60 {
            self.store.release.notify_waiters();
            advance(Duration::from_millis(60)).await;
            run_tasks().await;
            // A wait for idleness flushes what was sent since its last poll.
            self.poll_waits();
            self.poll_sends();
        }
        assert!(self.waits.is_empty(), "a wait hangs");
        assert!(self.sends.iter().all(|send| !send.is_acked && send.has_no_slot), "a sender hangs");
        let report = self.handle.drain(Duration::from_secs(1)).await.expect("nothing is left");
        assert_eq!(report.accepted, u64::from(self.senders().accepted));
        self.senders().phase = Phase::Drained;
        self.poll_sends();
        assert!(self.sends.is_empty(), "a sender hangs");
        self.senders().send(false);
        self.check();
        // The store holds a sender of its own sink.
        self.senders().sender = None;
    }
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let act = prop_oneof![
        Just(Act::Take),
        Just(Act::Fail),
        Just(Act::Panic),
        Just(Act::Hang),
        Just(Act::Send),
        Just(Act::Reserve),
        Just(Act::Permanent),
        Just(Act::Split),
        (0..5_usize).prop_map(Act::Reject),
        (0..5_usize).prop_map(Act::RetryWithout),
        (0..5_usize).prop_map(Act::RetryOnly),
    ];
    let readiness = prop_oneof![3 => Just(Readiness::Wait), 1 => Just(Readiness::Fail)];
    let limit = prop_oneof![Just(0), Just(30), Just(100)];
    let operation = prop_oneof![
        6 => (1..4_u8).prop_map(Operation::Send),
        3 => any::<bool>().prop_map(Operation::SendAndWait),
        1 => Just(Operation::DropSend),
        2 => Just(Operation::Reserve),
        2 => Just(Operation::UsePermit),
        1 => Just(Operation::DropPermit),
        1 => Just(Operation::TakeGuard),
        2 => Just(Operation::DropGuard),
        4 => act.prop_map(Operation::Script),
        1 => readiness.prop_map(Operation::IsNotReady),
        2 => Just(Operation::Release),
        6 => Just(Operation::RunTasks),
        4 => (1..30_u64).prop_map(Operation::Advance),
        1 => Just(Operation::Flush),
        1 => Just(Operation::WaitIdle),
        2 => Just(Operation::PollWaits),
        2 => limit.prop_map(Operation::Drain),
        1 => Just(Operation::DropDrain),
        1 => Just(Operation::Abort),
    ];
    prop::collection::vec(operation, 1..60)
}

fn setup() -> impl Strategy<Value = Setup> {
    let max_delay = prop_oneof![Just(0), Just(10), Just(100_000)];
    (1..12_usize, 1..5_usize, max_delay, any::<bool>(), prop::option::of(1..4_u32), 1..4_usize).prop_map(
        |(capacity, max_batch, max_delay, has_on_undelivered, max_attempts, max_in_flight)| Setup {
            capacity,
            max_batch,
            max_delay,
            has_on_undelivered,
            max_attempts,
            max_in_flight,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_value_of_a_sink_is_where_it_must_be(setup in setup(), operations in operations()) {
        let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            pause();
            let mut system = System::new(setup);
            for operation in operations {
                system.run(operation).await;
            }
            system.end().await;
        });
    }
}
