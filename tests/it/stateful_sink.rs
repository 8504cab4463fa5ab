//! Sequences of operations on a sink whose store takes, fails, panics and hangs as it likes, with a model beside it that
//! knows for each event where it must be.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use proptest::prelude::*;
use tokio::{
    runtime,
    sync::Notify,
    time::{advance, pause},
};
use tokio_test::task::{self, Spawn};
use tower_track_events::{
    Batch, Drain, DrainError, EventSender, EventSink, Refused, SendPermit, TrackEventsHandle, Undelivered, WaitIdle,
};

use crate::support::{assert_conserved, settle};

#[derive(Clone, Copy, Debug)]
enum Act {
    Take,
    Fail,
    Panic,
    Hang,
}

#[derive(Clone, Copy, Debug)]
enum Operation {
    Send(u8),
    Reserve,
    UsePermit,
    DropPermit,
    Script(Act),
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
    has_taker: bool,
    max_attempts: Option<u32>,
}

#[derive(Clone, Default)]
struct Store {
    script: Arc<Mutex<VecDeque<Act>>>,
    /// What was acknowledged.
    taken: Arc<Mutex<Vec<u32>>>,
    release: Arc<Notify>,
}

impl EventSink<u32> for Store {
    type Error = &'static str;

    async fn deliver(&mut self, batch: Batch<u32>) -> Result<(), &'static str> {
        let act = self.script.lock().unwrap().pop_front().unwrap_or(Act::Take);
        match act {
            Act::Take => {}
            Act::Fail => return Err("down"),
            Act::Panic => panic!("a sink that panics"),
            Act::Hang => self.release.notified().await,
        }
        // Nothing is awaited from here on, so what is noted is acknowledged.
        self.taken.lock().unwrap().extend(batch.iter());
        Ok(())
    }
}

struct Game {
    setup: Setup,
    handle: TrackEventsHandle,
    sender: EventSender<u32>,
    store: Store,
    undelivered: Arc<Mutex<Vec<u32>>>,
    accepted: u32,
    refused: u64,
    permits: Vec<SendPermit<u32>>,
    /// Each with the number of events before it.
    waits: Vec<(Spawn<WaitIdle>, usize)>,
    drains: Vec<Spawn<Drain>>,
    is_drained: bool,
}

impl Game {
    fn new(setup: Setup) -> Self {
        let handle = TrackEventsHandle::builder().settle(Duration::ZERO).build().unwrap();
        let (store, undelivered) = (Store::default(), Arc::new(Mutex::new(Vec::new())));
        let mut builder = handle
            .sink("row", store.clone())
            .capacity(setup.capacity)
            .max_batch(setup.max_batch)
            .max_delay(Duration::from_millis(setup.max_delay))
            .deliver_timeout(Duration::from_millis(50))
            .backoff(Duration::from_millis(5), Duration::from_millis(20));
        if let Some(attempts) = setup.max_attempts {
            builder = builder.max_attempts(attempts);
        }
        if setup.has_taker {
            let into = Arc::clone(&undelivered);
            builder =
                builder.on_undelivered(move |events: Undelivered<u32>| into.lock().unwrap().extend(events.iter()));
        }
        let sender = builder.build().unwrap();
        Self {
            setup,
            handle,
            sender,
            store,
            undelivered,
            accepted: 0,
            refused: 0,
            permits: Vec::new(),
            waits: Vec::new(),
            drains: Vec::new(),
            is_drained: false,
        }
    }

    async fn play(&mut self, operation: Operation) {
        match operation {
            Operation::Send(count) => (0..count).for_each(|_| self.send()),
            Operation::Reserve => match self.sender.reserve() {
                Ok(permit) => self.permits.push(permit),
                Err(refused) => self.is_refused(refused),
            },
            Operation::UsePermit => {
                if let Some(permit) = self.permits.pop() {
                    permit.send(self.accepted);
                    self.accepted += 1;
                }
            }
            Operation::DropPermit => drop(self.permits.pop()),
            Operation::Script(act) => self.store.script.lock().unwrap().push_back(act),
            Operation::Release => self.store.release.notify_one(),
            Operation::RunTasks => settle().await,
            Operation::Advance(by) => {
                advance(Duration::from_millis(by)).await;
                settle().await;
            }
            Operation::Flush => self.wait(self.sender.flush(Duration::MAX)),
            Operation::WaitIdle => self.wait(self.handle.wait_idle(Duration::MAX)),
            Operation::PollWaits => self.poll_waits(),
            Operation::Drain(limit) => {
                self.drains.push(task::spawn(self.handle.drain(Duration::from_millis(limit))));
                self.poll_drains();
            }
            Operation::DropDrain => drop(self.drains.pop()),
            Operation::Abort => {
                self.handle.abort();
                assert_eq!(self.handle.snapshot().pending, 0);
            }
        }
        self.poll_drains();
        self.check();
    }

    fn send(&mut self) {
        match self.sender.send(self.accepted) {
            Ok(()) => self.accepted += 1,
            Err(error) => {
                assert_eq!(error.event, self.accepted);
                self.is_refused(error.refused);
            }
        }
    }

    /// A refusal is true when it is said.
    fn is_refused(&mut self, refused: Refused) {
        self.refused += 1;
        match refused {
            Refused::Full => {
                let now = self.handle.snapshot();
                assert_eq!((now.pending + now.reserved) as usize, self.setup.capacity, "{now:?}");
            }
            other => assert!(other == Refused::Drained && self.is_drained, "{other}"),
        }
    }

    fn wait(&mut self, wait: WaitIdle) {
        let mut wait = task::spawn(wait);
        if wait.poll().is_pending() {
            self.waits.push((wait, self.accepted as usize));
        } else {
            assert_eq!(self.handle.snapshot().pending, 0);
        }
    }

    /// A wait is over when as many events have ended as came before it, and is woken then.
    fn poll_waits(&mut self) {
        let now = self.handle.snapshot();
        let ended = (now.accepted - now.pending) as usize;
        self.waits.retain_mut(|(wait, before)| {
            let is_woken = wait.is_woken();
            let is_over = wait.poll().is_ready();
            assert_eq!(is_over, ended >= *before, "{ended} have ended, and it waits for {before}");
            assert!(is_woken || !is_over, "nobody woke a wait");
            !is_over
        });
    }

    fn poll_drains(&mut self) {
        let mut drained = false;
        self.drains.retain_mut(|drain| match drain.poll() {
            std::task::Poll::Pending => true,
            std::task::Poll::Ready(Ok(report)) => {
                assert_eq!(report.endings.total(), report.accepted, "{report}");
                drained = true;
                false
            }
            std::task::Poll::Ready(Err(DrainError::CutShort(unfinished))) => {
                assert!(
                    !unfinished.undelivered.is_empty()
                        || !unfinished.events.is_empty()
                        || !unfinished.permits.is_empty()
                );
                false
            }
            std::task::Poll::Ready(Err(other)) => panic!("{other}"),
        });
        if drained {
            assert!(self.permits.is_empty(), "drained with a permit open");
            self.is_drained = true;
        }
    }

    fn check(&self) {
        let now = self.handle.snapshot();
        assert_conserved(&now);
        assert_eq!((now.accepted, now.refused), (u64::from(self.accepted), self.refused));
        assert_eq!(now.reserved as usize, self.permits.len());
        assert!((now.pending + now.reserved) as usize <= self.setup.capacity, "{now:?}");
        assert!(!self.is_drained || now.pending == 0, "pending after a drain");
        // Each event is acknowledged, handed over, dropped or pending; in order, and once.
        let taken = self.store.taken.lock().unwrap().clone();
        let undelivered = self.undelivered.lock().unwrap().clone();
        assert!(taken.is_sorted_by(|one, next| one < next), "not in order: {taken:?}");
        assert!(undelivered.is_sorted_by(|one, next| one < next), "not in order: {undelivered:?}");
        assert!(taken.iter().all(|event| !undelivered.contains(event)), "acknowledged and handed over");
        assert_eq!(now.completed as usize, taken.len(), "{now:?}");
        let given_up = (now.failed + now.aborted) as usize;
        assert_eq!(if self.setup.has_taker { undelivered.len() } else { given_up }, given_up, "{now:?}");
    }

    /// The store takes everything from now on: nothing hangs, and the house can be drained.
    async fn end(&mut self) {
        self.store.script.lock().unwrap().clear();
        self.permits.clear();
        // An attempt that hangs runs into its time limit, and the next is made after a while.
        for _ in 0..20 {
            advance(Duration::from_millis(60)).await;
            settle().await;
        }
        self.poll_waits();
        assert!(self.waits.is_empty(), "a wait hangs");
        let report = self.handle.drain(Duration::from_secs(1)).await.expect("nothing is left");
        assert_eq!(report.accepted, u64::from(self.accepted));
        self.is_drained = true;
        self.check();
        assert_eq!(self.sender.send(self.accepted).unwrap_err().refused, Refused::Drained);
    }
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let act = prop_oneof![Just(Act::Take), Just(Act::Fail), Just(Act::Panic), Just(Act::Hang)];
    let limit = prop_oneof![Just(0), Just(30), Just(100)];
    let operation = prop_oneof![
        6 => (1..4_u8).prop_map(Operation::Send),
        2 => Just(Operation::Reserve),
        2 => Just(Operation::UsePermit),
        1 => Just(Operation::DropPermit),
        4 => act.prop_map(Operation::Script),
        2 => Just(Operation::Release),
        6 => Just(Operation::RunTasks),
        4 => (1..30_u64).prop_map(Operation::Advance),
        1 => Just(Operation::Flush),
        1 => Just(Operation::WaitIdle),
        2 => Just(Operation::PollWaits),
        1 => limit.prop_map(Operation::Drain),
        1 => Just(Operation::DropDrain),
        1 => Just(Operation::Abort),
    ];
    prop::collection::vec(operation, 1..60)
}

fn setup() -> impl Strategy<Value = Setup> {
    let max_delay = prop_oneof![Just(0), Just(10), Just(100_000)];
    (1..12_usize, 1..5_usize, max_delay, any::<bool>(), prop::option::of(1..4_u32)).prop_map(
        |(capacity, max_batch, max_delay, has_taker, max_attempts)| Setup {
            capacity,
            max_batch,
            max_delay,
            has_taker,
            max_attempts,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_event_of_a_sink_is_where_it_must_be(setup in setup(), operations in operations()) {
        let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            pause();
            let mut game = Game::new(setup);
            for operation in operations {
                game.play(operation).await;
            }
            game.end().await;
        });
    }
}
