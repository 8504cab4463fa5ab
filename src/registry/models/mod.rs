//! Models of the registry, and helpers that the models of the sinks use as well. Loom runs each model in every order
//! that the memory model allows, or, if those are too many, in every order with a few preemptions.
//!
//! `scripts/loom` builds and runs the models. In such a build the locks and atomics of the registry and of the sinks
//! are loom's (`util::sync`). Otherwise the source is the released one. Reference counts are std's, and so are the
//! flags and counters in which models record their observations: they are exact at the instant of the observation.
//!
//! A waiter does not block in a model. It records whether it was woken. When all other threads have finished, it must
//! have ended or have been woken: otherwise it would sleep forever.
//!
//! # Seeded mistakes
//!
//! A model that cannot fail proves nothing. So the registry contains mistakes. The macro
//! [`seeded!`](crate::util::sync) names each one, and is `false` in every other build. [`finds!`] lists each mistake,
//! the model that must find it, and the message of the assertion that must fail.

mod aborts;
mod capacity;
mod closing;
mod drains;
mod exchange;
mod last_call;

use std::{
    borrow::Cow,
    cell::Cell,
    panic::Location,
    sync::{self, Arc},
    task::{Wake, Waker},
};

use loom::sync::atomic::{AtomicUsize, Ordering};
use tokio::time::Instant;

use crate::{
    error::TrackError,
    registry::{self, Ending, Look, MayClose, NewEvent, OpenRequest, Origin, Registry, Snapshot, Stage, epoch::Epoch},
    util::{reentrancy, sync::seeded},
};

type Shard<C = ()> = Arc<registry::Shard<C>>;
type Ticket<C = ()> = registry::Ticket<C>;
type Waiter<C = ()> = registry::Waiter<C>;

/// The ordering of the atomics in which models record their observations.
pub(crate) const OBSERVED: sync::atomic::Ordering = sync::atomic::Ordering::SeqCst;

std::thread_local! {
    /// Loom runs all threads of a model on one thread.
    static SEEDED: Cell<Option<&'static str>> = const { Cell::new(None) };
}

pub(crate) fn is_seeded(mistake: &str) -> bool {
    SEEDED.get() == Some(mistake)
}

/// The number of preemptions in one execution.
#[derive(Clone, Copy)]
pub(crate) enum Depth {
    Any,
    AtMost(usize),
}

pub(crate) struct Model {
    pub(crate) name: &'static str,
    pub(crate) depth: Depth,
    pub(crate) run: fn(),
}

impl Model {
    /// Runs all executions, and prints their number.
    pub(crate) fn holds(self) {
        SEEDED.set(None);
        self.explore();
    }

    /// Runs executions until one fails.
    pub(crate) fn with(self, mistake: &'static str) {
        SEEDED.set(Some(mistake));
        self.explore();
    }

    #[expect(
        clippy::disallowed_types,
        clippy::print_stdout,
        reason = "a model has no clock, and says how long it took"
    )]
    fn explore(self) {
        let Self { name, depth, run } = self;
        let mut builder = loom::model::Builder::new();
        builder.max_branches = 10_000;
        // Environment variables of loom could end the exploration early. The printed extent would be wrong then.
        (builder.max_duration, builder.max_permutations) = (None, None);
        builder.preemption_bound = match depth {
            Depth::Any => None,
            Depth::AtMost(bound) => Some(bound),
        };
        let executions = Arc::new(sync::atomic::AtomicUsize::new(0));
        let began = std::time::Instant::now();
        builder.check({
            let executions = Arc::clone(&executions);
            move || {
                executions.fetch_add(1, OBSERVED);
                run();
            }
        });
        let extent = match depth {
            Depth::Any => "all".to_owned(),
            Depth::AtMost(bound) => format!("at most {bound} preemptions"),
        };
        println!("{name}: {} executions ({extent}), {:.1?}", executions.load(OBSERVED), began.elapsed());
    }
}

/// Defines models, each with its name, its depth and its code.
macro_rules! models {
    ($($(#[$doc:meta])* $name:ident: $depth:expr, $run:block)*) => {
        $(
            $(#[$doc])*
            fn $name() -> crate::registry::models::Model {
                fn run() $run
                crate::registry::models::Model { name: stringify!($name), depth: $depth, run }
            }
        )*

        mod hold {
            $(#[test] fn $name() { super::$name().holds(); })*
        }
    };
}

/// Defines tests that models find mistakes: the mistake, the model, and the message of its assertion.
macro_rules! finds {
    ($($name:ident: $mistake:literal, $model:ident, $words:literal;)*) => {
        mod find {
            $(
                #[test]
                #[should_panic(expected = $words)]
                fn $name() {
                    super::$model().with($mistake);
                }
            )*
        }
    };
}

pub(crate) use {finds, models};

/// A registry with two shards, and the observations of a model.
pub(crate) struct World<C = ()> {
    pub(crate) registry: Arc<Registry<C>>,
    pub(crate) shards: [Shard<C>; 2],
    /// Whether a drain has ended.
    is_drained: Arc<sync::atomic::AtomicBool>,
    pub(crate) accepted: Arc<sync::atomic::AtomicU64>,
    /// Asserted when all threads have finished: a panic of another thread would be one of the model, and would not say
    /// what was wrong.
    wrong: Arc<sync::Mutex<Vec<&'static str>>>,
}

impl World {
    fn new(capacity: u32) -> Self {
        Self::with(capacity, ())
    }
}

impl<C> World<C> {
    pub(crate) fn with(capacity: u32, context: C) -> Self {
        let shards = Registry::build(capacity, 2, context);
        Self {
            registry: Arc::clone(shards.registry()),
            shards: [0, 1].map(|index| Arc::clone(shards.get(index))),
            is_drained: Arc::default(),
            accepted: Arc::default(),
            wrong: Arc::default(),
        }
    }

    pub(crate) fn expect(&self, is_right: bool, wrong: &'static str) {
        if !is_right {
            self.wrong.lock().unwrap().push(wrong);
        }
    }

    #[track_caller]
    pub(crate) fn check(&self) {
        let wrong = self.wrong.lock().unwrap();
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.is_drained.load(OBSERVED)
    }

    /// Calls `accept`, and checks that nothing is accepted after a drain.
    fn accept(&self, accept: impl FnOnce() -> Result<Ticket<C>, TrackError>) -> Result<Ticket<C>, TrackError> {
        let was_drained = self.is_drained();
        let accepted = accept();
        if accepted.is_ok() {
            self.expect(!was_drained, "something was accepted after the drain");
            self.expect(!self.is_drained(), "the drain was over while something was open");
        }
        accepted
    }

    /// Tracks an event from outside of all events and requests.
    pub(crate) fn track(&self, shard: usize) -> Result<Ticket<C>, TrackError> {
        let ticket = self.accept(|| self.shards[shard].track(event()))?;
        self.accepted.fetch_add(1, OBSERVED);
        Ok(ticket)
    }

    /// Tracks an event from outside while it must be accepted, or may be rejected because a drain is closing.
    pub(crate) fn must_track(&self, shard: usize) -> Option<Ticket<C>> {
        let tracked = self.track(shard);
        self.expect(tracked.is_ok(), "an event was rejected that had to be accepted");
        tracked.ok()
    }

    /// Tracks an event while the registry is neither closed nor full.
    pub(crate) fn must_track_inside(&self, shard: usize) -> Option<Ticket<C>> {
        self.inside(|| self.must_track(shard))
    }

    /// Runs code as a part of an event or a request.
    pub(crate) fn inside<T>(&self, run: impl FnOnce() -> T) -> T {
        reentrancy::enter(self.registry.id(), run)
    }

    /// Opens a request, unless the registry is closed.
    fn open_request(&self, shard: usize) -> Option<Ticket<C>> {
        self.open(shard, Arc::new(NothingKept))
    }

    fn open(&self, shard: usize, request: Arc<dyn OpenRequest>) -> Option<Ticket<C>> {
        let open = || self.shards[shard].open_request(Instant::now(), request).ok_or(TrackError::Closed);
        self.accept(open).ok()
    }

    fn guard(&self, shard: usize) -> Result<Ticket<C>, TrackError> {
        self.accept(|| self.shards[shard].guard(Location::caller(), Instant::now(), Origin::Anywhere))
    }

    fn reserve(&self, shard: usize) -> Result<Ticket<C>, TrackError> {
        self.accept(|| self.shards[shard].reserve(Location::caller(), Instant::now()))
    }

    fn fill(&self, permit: Ticket<C>) -> Ticket<C> {
        self.accepted.fetch_add(1, OBSERVED);
        let ticket = permit.into_event(event());
        self.expect(!self.is_drained(), "the drain was over while something was open");
        ticket
    }

    pub(crate) fn end(&self, ticket: impl IntoIterator<Item = Ticket<C>>) {
        for ticket in ticket {
            self.expect(!self.is_drained(), "the drain was over while something was open");
            ticket.end(Ending::Completed, None);
        }
    }

    /// Returns the counts at one instant, and checks them.
    pub(crate) fn look(&self) -> Snapshot {
        let now = self.registry.snapshot();
        self.expect(now.accepted == now.ended.total() + now.pending, "an event is neither pending nor ended");
        self.expect(now.pending + now.reserved <= self.registry.capacity(), "more was accepted than there is capacity");
        now
    }

    /// Checks that everything has ended, and that all capacity is free.
    pub(crate) fn check_empty(&self) {
        self.check();
        let now = self.look();
        assert_eq!((now.holders(), now.pending), (0, 0), "something is still open");
        let capacity = self.registry.capacity();
        let all: Vec<_> = (0..capacity).map_while(|_| self.track(0).ok()).collect();
        assert_eq!(all.len() as u64, capacity, "a slot was lost");
        assert_eq!(self.shards[1].track(event()).err(), Some(TrackError::Full), "there is a slot too many");
        drop(all);
        self.check();
    }

    /// Checks that everything has ended, and that a drain has ended.
    pub(crate) fn check_drained(&self) {
        self.check();
        let now = self.look();
        assert_eq!((now.holders(), now.pending), (0, 0), "something is still open");
        assert_eq!(now.accepted, self.accepted.load(OBSERVED), "an event was not counted");
        for shard in [0, 1] {
            assert_eq!(self.track(shard).err(), Some(TrackError::Closed), "something was accepted after the drain");
            assert!(self.open_request(shard).is_none(), "something was accepted after the drain");
        }
    }
}

impl<C> Clone for World<C> {
    fn clone(&self) -> Self {
        let Self { registry, shards, is_drained, accepted, wrong } = self;
        Self {
            registry: Arc::clone(registry),
            shards: shards.clone(),
            is_drained: Arc::clone(is_drained),
            accepted: Arc::clone(accepted),
            wrong: Arc::clone(wrong),
        }
    }
}

fn event() -> NewEvent {
    NewEvent { name: "event", stage: Stage::Running, location: Location::caller(), since: Instant::now() }
}

/// A request that keeps no events.
struct NothingKept;

impl OpenRequest for NothingKept {
    fn abort(&self, _: Epoch) {}

    fn last_call(&self) -> usize {
        0
    }

    fn label(&self) -> Option<Cow<'static, str>> {
        None
    }
}

/// The number of wakes of a task. A wake happens before the poll that reads the number, as with any executor.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

/// A task that is polled when it is woken.
#[derive(Default)]
pub(crate) struct Task {
    wakes: Arc<Wakes>,
    seen: Option<usize>,
}

impl Task {
    /// To be called before each poll.
    pub(crate) fn waker(&mut self) -> Waker {
        self.seen = Some(self.wakes.0.load(Ordering::Acquire));
        Waker::from(Arc::clone(&self.wakes))
    }

    pub(crate) fn is_woken(&self) -> bool {
        self.seen.is_none_or(|seen| self.wakes.0.load(Ordering::Acquire) > seen)
    }

    /// Returns whether all of its wakers have been dropped.
    fn is_forgotten(&self) -> bool {
        Arc::strong_count(&self.wakes) == 1
    }
}

/// The quiet period of a drain.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Quiet {
    /// There is none.
    None,
    /// It is over at once.
    Short,
    /// It is never over.
    Endless,
}

/// The poll of a drain (`drain`), without a limit and a timer.
pub(crate) struct Drain<C = ()> {
    world: World<C>,
    task: Task,
    waiter: Waiter<C>,
    quiet: Quiet,
    quiet_since: Option<u64>,
    pub(crate) is_closing: bool,
    pub(crate) is_over: bool,
}

impl<C> Drain<C> {
    pub(crate) fn new(world: &World<C>, quiet: Quiet) -> Self {
        Self {
            world: world.clone(),
            task: Task::default(),
            waiter: Waiter::for_drain(&world.registry, None),
            quiet,
            quiet_since: None,
            is_closing: false,
            is_over: false,
        }
    }

    pub(crate) fn poll(&mut self) {
        let waker = self.task.waker();
        let is_late = seeded!("a drain registers after its last look");
        if !is_late {
            self.waiter.register(&waker);
        }
        self.is_over = self.look();
        if is_late {
            self.waiter.register(&waker);
        }
        if self.is_over {
            self.world.is_drained.store(true, OBSERVED);
        }
    }

    fn look(&mut self) -> bool {
        loop {
            let Self { quiet, quiet_since, .. } = *self;
            let look = self.world.registry.try_close(|ever_opened| match quiet {
                Quiet::None => MayClose::Yes,
                Quiet::Short if quiet_since == Some(ever_opened) => MayClose::Yes,
                _ => MayClose::No,
            });
            self.is_closing = matches!(look, Look::Closing);
            match look {
                Look::Closed(account) => {
                    let is_empty = account.snapshot.holders() == 0 && account.snapshot.pending == 0;
                    self.world.expect(is_empty, "the drain was over while something was open");
                    return true;
                }
                Look::Closing => return false,
                Look::Open => {
                    self.quiet_since = None;
                    return false;
                }
                Look::Quiet { ever_opened } if quiet_since == Some(ever_opened) => return false,
                Look::Quiet { ever_opened } => self.quiet_since = Some(ever_opened),
            }
        }
    }

    /// Polls once, and again if it was woken meanwhile.
    pub(crate) fn poll_twice(&mut self) {
        self.poll();
        if !self.is_over && self.task.is_woken() {
            self.poll();
        }
    }

    /// Polls while it is woken.
    pub(crate) fn poll_on(&mut self) {
        while !self.is_over && self.task.is_woken() {
            self.poll();
        }
    }

    /// Checks that the drain has ended, after everything else has ended.
    pub(crate) fn finish(&mut self) {
        self.world.check();
        self.poll_on();
        assert!(self.is_over, "nobody woke the drain");
    }
}
