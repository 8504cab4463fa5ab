// The models, over the ledger that stands beside them: this file is also included beside each ledger with a bug.

use std::{
    panic::Location,
    sync::{self, Arc},
    task::{Poll, Wake, Waker},
};

use loom::{
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use super::{
    ledger::{
        Begun, Context, EventTicket, IdleWait, Ledger, Look, NewEvent, PermitTicket, Room, RoomWait, ShardRef, Starts,
        Waiter,
    },
    line::{Arrival, Line, Turn},
};
use crate::{
    Depth, Order,
    entry::{Nanos, Stage},
    explore,
    lane::{Gate, GivenUp, Lane, LaneBook, LockedLane},
    refused::Refused,
    snapshot::{Ending, Snapshot},
};

type Shard = Arc<ShardRef<()>>;
type Event = EventTicket<()>;

impl Context for () {
    type Starting = Starting;

    fn now(&self) -> Nanos {
        0
    }

    fn has_room_again(&self) {}
}

/// An event that has not been polled.
pub(crate) struct Starting(Event);

impl Starts for Starting {
    type Task = Self;

    fn at_home(self) -> Result<Self, Self> {
        Ok(self)
    }
}

fn ended(mut ticket: Event, ending: Ending) -> Event {
    ticket.end_as(ending);
    ticket
}

/// A ledger, and what has been seen of it. What is seen is outside of the model: it is true at the instant.
#[derive(Clone)]
struct World {
    ledger: Arc<Ledger<()>>,
    shards: [Shard; 2],
    /// Whether a drain has been `Ok`.
    drained: Arc<sync::atomic::AtomicBool>,
    accepted: Arc<sync::atomic::AtomicU64>,
    held: Arc<sync::atomic::AtomicU64>,
    /// Looked at when all threads have ended: a panic elsewhere would take the model down, and not only fail it.
    wrong: Arc<sync::Mutex<Vec<&'static str>>>,
}

const SEEN: sync::atomic::Ordering = sync::atomic::Ordering::SeqCst;

impl World {
    fn new(capacity: u32) -> Self {
        let ledger = Ledger::new(capacity, 2, ());
        let refs = ledger.shard_refs();
        Self {
            shards: [Arc::clone(&refs[0]), Arc::clone(&refs[1])],
            ledger,
            drained: Arc::default(),
            accepted: Arc::default(),
            held: Arc::default(),
            wrong: Arc::default(),
        }
    }

    fn expect(&self, is_right: bool, wrong: &'static str) {
        if !is_right {
            self.wrong.lock().unwrap().push(wrong);
        }
    }

    fn is_drained(&self) -> bool {
        self.drained.load(SEEN)
    }

    /// Accepts an event, if the house is not drained. `None` is a refusal because it is.
    fn accept(&self, shard: usize) -> Option<Event> {
        let was_drained = self.is_drained();
        match accept(&self.shards[shard]) {
            Ok(ticket) => {
                self.expect(!was_drained, "an event was accepted after the drain");
                self.accepted.fetch_add(1, SEEN);
                self.held.fetch_add(1, SEEN);
                self.expect(!self.is_drained(), "the drain was over while an event was pending");
                Some(ticket)
            }
            Err(refused) => {
                self.expect(refused == Refused::Drained, "there was room");
                None
            }
        }
    }

    /// Accepts one while something else is open.
    fn must_accept(&self, shard: usize) -> Option<Event> {
        let ticket = self.accept(shard);
        self.expect(ticket.is_some(), "an event was refused while another was pending");
        ticket
    }

    fn end(&self, ticket: Event) {
        self.expect(!self.is_drained(), "the drain was over while an event was pending");
        self.held.fetch_sub(1, SEEN);
        drop(ended(ticket, Ending::Completed));
    }

    fn look_at_the_counts(&self, capacity: u64) -> Snapshot {
        let now = self.ledger.snapshot();
        let ended = now.completed + now.failed + now.panicked + now.timed_out + now.aborted;
        self.expect(now.accepted == ended + now.pending, "an event is neither pending nor ended");
        self.expect(now.pending + now.reserved <= capacity, "there is more than the capacity allows");
        now
    }

    fn check(&self) {
        let wrong = self.wrong.lock().unwrap();
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    /// All have gone: nothing is left, and all room is back.
    fn check_empty(&self, capacity: u32) {
        self.check();
        let now = self.look_at_the_counts(u64::from(capacity));
        assert_eq!((now.pending, now.reserved, now.open_requests), (0, 0, 0), "something is left");
        let all: Vec<_> = (0..capacity).map_while(|_| accept(&self.shards[0]).ok()).collect();
        assert_eq!(all.len() as u32, capacity, "not all room can be had");
        assert!(accept(&self.shards[1]).is_err(), "room was given twice");
        drop(all);
        self.check();
    }

    /// All have gone, and the drain is over.
    fn check_drained(&self) {
        self.check();
        let now = self.ledger.snapshot();
        assert_eq!((now.pending, now.reserved, now.open_requests), (0, 0, 0), "something is left");
        assert_eq!(now.accepted, self.accepted.load(SEEN), "an event was not counted");
        assert_eq!(now.accepted, now.completed, "an event was ended in another way");
        for shard in &self.shards {
            assert!(accept(shard).is_err(), "an event was accepted after the drain");
        }
    }
}

fn accept(shard: &Shard) -> Result<EventTicket<()>, Refused> {
    Ok(shard.accept(&event())?.enter(event()))
}

fn event() -> NewEvent {
    NewEvent { name: "event", stage: Stage::Started, location: Location::caller(), since: None }
}

/// Somebody's waker. That it rings happens before that it is heard, as with any executor.
#[derive(Default)]
struct Bell(AtomicUsize);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

impl Bell {
    fn rings(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }
}

/// A task that is polled when it is woken.
#[derive(Default)]
struct Task {
    bell: Arc<Bell>,
    heard: Option<usize>,
}

impl Task {
    /// To be called before each poll.
    fn waker(&mut self) -> Waker {
        self.heard = Some(self.bell.rings());
        Waker::from(Arc::clone(&self.bell))
    }

    fn is_woken(&self) -> bool {
        self.heard.is_none_or(|heard| self.bell.rings() > heard)
    }
}

/// The poll of `src/drain.rs` from the registration of its waiter on, without its limit. Its settle time is over as soon
/// as it has begun, or lasts for ever.
struct Drain {
    world: World,
    task: Task,
    waiter: Waiter<()>,
    order: Order,
    settle: Settle,
    quiet: Option<u64>,
    is_over: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Settle {
    None,
    Short,
    Endless,
}

impl Drain {
    fn new(world: &World, settle: Settle) -> Self {
        Self {
            world: world.clone(),
            task: Task::default(),
            waiter: Waiter::new(&world.ledger),
            order: Order::RegistersThenLooks,
            settle,
            quiet: None,
            is_over: false,
        }
    }

    fn poll(&mut self) -> bool {
        let waker = self.task.waker();
        if self.order == Order::RegistersThenLooks {
            self.waiter.register(&waker);
        }
        let is_closed = self.look();
        if self.order == Order::LooksThenRegisters {
            self.waiter.register(&waker);
        }
        if is_closed {
            self.is_over = true;
            self.world.drained.store(true, SEEN);
        }
        is_closed
    }

    fn look(&mut self) -> bool {
        loop {
            let before = self.quiet;
            let settle = self.settle;
            let may_close = |arrivals| settle == Settle::None || (settle == Settle::Short && before == Some(arrivals));
            match self.world.ledger.look(may_close) {
                Look::Closed(_) => return true,
                Look::Busy => {
                    self.quiet = None;
                    return false;
                }
                Look::Idle { arrivals } if before == Some(arrivals) => return false,
                Look::Idle { arrivals } => self.quiet = Some(arrivals),
            }
        }
    }

    /// Polls now, and once more if it is woken by then.
    fn poll_twice(&mut self) {
        if !self.poll() && self.task.is_woken() {
            self.poll();
        }
    }

    /// All others have gone.
    fn finish(&mut self) {
        self.world.check();
        while !self.is_over {
            assert!(self.task.is_woken(), "nobody woke the drain");
            self.poll();
        }
    }
}

/// What was written by events happens before the drain's end.
#[derive(Clone, Default)]
struct Notes(Arc<[AtomicUsize; 3]>);

impl Notes {
    fn write(&self, index: usize) {
        self.0[index].store(1, Ordering::Relaxed);
    }

    /// As many as were accepted.
    fn check(&self, world: &World) {
        let written: usize = self.0.iter().map(|note| note.load(Ordering::Relaxed)).sum();
        world.expect(written as u64 == world.accepted.load(SEEN), "the drain was over before an event's write");
    }
}

/// A request that records an event, and an event that comes by itself, against a drain.
pub fn admission_against_drain() {
    explore("admission against drain", Depth::Preemptions(4), || {
        let world = World::new(4);
        let notes = Notes::default();
        let exchange = thread::spawn({
            let (world, notes) = (world.clone(), notes.clone());
            move || {
                let Ok(request) = world.shards[0].open_request(0) else { return };
                let ticket = world.must_accept(1);
                world.shards[0].close_request(&request);
                notes.write(0);
                ticket.into_iter().for_each(|ticket| world.end(ticket));
            }
        });
        let producer = thread::spawn({
            let (world, notes) = (world.clone(), notes.clone());
            move || {
                if let Some(ticket) = world.accept(1) {
                    notes.write(1);
                    world.end(ticket);
                }
            }
        });
        let mut drain = Drain::new(&world, Settle::None);
        drain.poll_twice();
        if drain.is_over {
            notes.check(&world);
        }
        exchange.join().unwrap();
        producer.join().unwrap();
        drain.finish();
        world.check_drained();
    });
}

/// The last entry leaves while a drain registers and looks.
pub fn last_leave_against_registration(order: Order) {
    explore("last leave against registration", Depth::All, move || {
        let world = World::new(4);
        let notes = Notes::default();
        let last = world.must_accept(1);
        let producer = thread::spawn({
            let (world, notes) = (world.clone(), notes.clone());
            move || {
                notes.write(0);
                last.into_iter().for_each(|ticket| world.end(ticket));
            }
        });
        let mut drain = Drain { order, ..Drain::new(&world, Settle::None) };
        drain.poll_twice();
        if drain.is_over {
            notes.check(&world);
        }
        producer.join().unwrap();
        drain.finish();
        world.check_drained();
    });
}

/// The last event records another as it ends, in the other shard.
pub fn revival_against_last_leave() {
    for (name, settle) in [("revival against last leave", Settle::None), ("revival, settling", Settle::Short)] {
        explore(name, Depth::All, move || {
            let world = World::new(4);
            let last = world.must_accept(1);
            let producer = thread::spawn({
                let world = world.clone();
                move || {
                    let next = world.must_accept(0);
                    last.into_iter().chain(next).for_each(|ticket| world.end(ticket));
                }
            });
            let mut drain = Drain::new(&world, settle);
            drain.poll_twice();
            producer.join().unwrap();
            drain.finish();
            world.check_drained();
        });
    }
}

/// Two drains agree, and both hear of the end.
pub fn two_drains() {
    for (name, settle) in [("two drains", Settle::None), ("two drains, one settling", Settle::Endless)] {
        explore(name, Depth::Preemptions(4), move || {
            let world = World::new(4);
            let last = world.must_accept(1);
            let producer = thread::spawn({
                let world = world.clone();
                move || last.into_iter().for_each(|ticket| world.end(ticket))
            });
            let mut second = Drain::new(&world, settle);
            let second = thread::spawn(move || {
                second.poll_twice();
                second
            });
            let mut first = Drain::new(&world, Settle::None);
            first.poll_twice();
            producer.join().unwrap();
            let mut second = second.join().unwrap();
            first.finish();
            second.finish();
            world.check_drained();
        });
    }
}

/// A drain that is given up leaves the other one's place alone.
pub fn drain_that_is_given_up() {
    explore("a drain that is given up", Depth::Preemptions(4), || {
        let world = World::new(4);
        let last = world.must_accept(1);
        let producer = thread::spawn({
            let world = world.clone();
            move || last.into_iter().for_each(|ticket| world.end(ticket))
        });
        let mut given_up = Drain::new(&world, Settle::Endless);
        let given_up = thread::spawn(move || {
            given_up.poll();
            Arc::clone(&given_up.task.bell)
        });
        let mut drain = Drain::new(&world, Settle::None);
        drain.poll();
        producer.join().unwrap();
        let bell = given_up.join().unwrap();
        assert_eq!(Arc::strong_count(&bell), 1, "a drain that was given up has left its waker");
        drain.finish();
        world.check_drained();
    });
}

/// Three producers in two shards.
pub fn three_producers() {
    explore("three producers against drain", Depth::Preemptions(3), || {
        let world = World::new(4);
        let notes = Notes::default();
        let producers = [0, 1, 0].iter().enumerate().map(|(index, &shard)| {
            let (world, notes) = (world.clone(), notes.clone());
            thread::spawn(move || {
                if let Some(ticket) = world.accept(shard) {
                    notes.write(index);
                    world.end(ticket);
                }
            })
        });
        let producers: Vec<_> = producers.collect();
        let mut drain = Drain::new(&world, Settle::None);
        drain.poll_twice();
        if drain.is_over {
            notes.check(&world);
        }
        producers.into_iter().for_each(|producer| producer.join().unwrap());
        drain.finish();
        world.check_drained();
    });
}

/// At each instant every accepted event is pending or has ended, also one that comes of a permit.
pub fn conservation() {
    explore("conservation", Depth::All, || {
        let world = World::new(2);
        let by_permit = thread::spawn({
            let world = world.clone();
            move || {
                let permit = world.shards[0].reserve(Location::caller(), 0);
                world.expect(permit.is_ok(), "there was room");
                // It becomes an event of another shard.
                let event = |permit: PermitTicket<()>| permit.accept(&world.shards[1], event());
                permit.into_iter().for_each(|permit| drop(ended(event(permit), Ending::Failed)));
            }
        });
        let dropped = thread::spawn({
            let world = world.clone();
            move || drop(world.must_accept(1))
        });
        world.look_at_the_counts(2);
        world.look_at_the_counts(2);
        by_permit.join().unwrap();
        dropped.join().unwrap();
        let now = world.ledger.snapshot();
        assert_eq!((now.accepted, now.failed, now.aborted), (2, 1, 1), "an event was not counted");
        world.check_empty(2);
    });
}

/// Two of four have room, whoever they are.
pub fn four_takers_who_keep() {
    explore("capacity 2, four takers who keep", Depth::Preemptions(3), || {
        let world = World::new(2);
        let takers = [0, 1, 0].map(|shard| {
            let world = world.clone();
            thread::spawn(move || accept(&world.shards[shard]).ok())
        });
        let mine = accept(&world.shards[1]).ok();
        let theirs = takers.map(|taker| taker.join().unwrap());
        let taken = theirs.iter().chain([&mine]).flatten().count();
        assert!(taken <= 2, "there is more than the capacity allows");
        assert!(taken >= 2, "full was said, and there was room");
        assert_eq!(world.ledger.snapshot().refused, 2, "a refusal was not counted");
        drop((mine, theirs));
        world.check_empty(2);
    });
}

/// Room comes back, and is never more than it was.
pub fn four_takers_who_give_back() {
    explore("capacity 2, four takers who give back", Depth::Preemptions(3), || {
        let world = World::new(2);
        let take = |world: World, shard: usize| {
            let Ok(ticket) = accept(&world.shards[shard]) else { return };
            world.expect(world.held.fetch_add(1, SEEN) < 2, "there is more than the capacity allows");
            world.held.fetch_sub(1, SEEN);
            drop(ended(ticket, Ending::Completed));
        };
        let takers = [0, 1, 0].map(|shard| {
            let world = world.clone();
            thread::spawn(move || take(world, shard))
        });
        take(world.clone(), 1);
        takers.into_iter().for_each(|taker| taker.join().unwrap());
        world.check_empty(2);
    });
}

/// The last room lies in a shard that has taken a block of it; two want it, and one of them is there.
pub fn room_in_another_shard() {
    explore("room in another shard", Depth::All, || {
        let world = World::new(16);
        let others: Vec<_> = (0..15).filter_map(|number| world.must_accept(usize::from(number > 0))).collect();
        let near = thread::spawn({
            let world = world.clone();
            move || accept(&world.shards[0]).ok()
        });
        let far = accept(&world.shards[1]).ok();
        let near = near.join().unwrap();
        assert!(near.is_none() || far.is_none(), "there is more than the capacity allows");
        assert!(near.is_some() || far.is_some(), "full was said, and there was room");
        drop((near, far, others));
        world.check_empty(16);
    });
}

/// An event as the task of `src/task.rs` polls it: it asks whether it is aborted, and is held when first pending.
fn poll_event(mut ticket: Event, task: &mut Task) -> Option<Event> {
    let waker = task.waker();
    if ticket.is_aborted() || !ticket.hold(&waker) {
        drop(ended(ticket, Ending::Aborted));
        return None;
    }
    Some(ticket)
}

/// An event that is aborted as it starts, or is first pending, knows it or is woken.
pub fn abort_against_hold() {
    explore("abort against hold", Depth::All, || {
        let world = World::new(2);
        let ticket = world.accept(1);
        let running = thread::spawn(move || {
            let mut task = Task::default();
            let ticket = ticket.and_then(|ticket| poll_event(ticket, &mut task));
            (ticket, task)
        });
        world.ledger.abort();
        let (ticket, mut task) = running.join().unwrap();
        if let Some(ticket) = ticket {
            assert!(task.is_woken(), "nobody woke an event that is to be aborted");
            assert!(poll_event(ticket, &mut task).is_none(), "an event that is to be aborted does not know it");
        }
        assert_eq!(world.ledger.snapshot().aborted, 1, "an event has not one ending");
        assert_eq!(Arc::strong_count(&task.bell), 1, "a holder is kept");
        world.check_empty(2);
    });
}

/// An event that is recorded while an abort comes ends, unless it was accepted after the abort; two aborts are as one.
pub fn abort_against_record() {
    explore("abort against record", Depth::All, || {
        let world = World::new(2);
        let Ok(request) = world.shards[1].open_request(0) else { panic!("the house is open") };
        let request = Arc::new(request);
        let recording = thread::spawn({
            let (world, request) = (world.clone(), Arc::clone(&request));
            move || {
                if let Some(ticket) = world.accept(1) {
                    let id = ticket.id();
                    world.shards[1].record(Some(&request), || false, id, Starting(ticket), &mut Begun::default());
                }
            }
        });
        let aborting = thread::spawn({
            let world = world.clone();
            move || world.ledger.abort()
        });
        world.ledger.abort();
        recording.join().unwrap();
        aborting.join().unwrap();
        // One that began at once is aborted when it is polled.
        let mut task = Task::default();
        let begun = world.shards[1].with_line(Line::next);
        assert!(
            begun.is_none_or(|Starting(ticket)| poll_event(ticket, &mut task).is_none()),
            "an event begins too early"
        );
        let now = world.ledger.snapshot();
        world.shards[1].start_recorded(&request, None, &mut Begun::default());
        let kept = world.shards[1].with_line(Line::next);
        let count = u64::from(kept.is_some());
        assert!(!kept.is_some_and(|Starting(ticket)| ticket.is_aborted()), "an abort has left an event");
        assert_eq!((now.pending, now.aborted), (count, 1 - count), "an event has not one ending");
        world.shards[1].close_request(&request);
        world.check_empty(2);
    });
}

/// Starts an event, and gives the number of tasks that are due.
fn start(world: &World) -> usize {
    let mut begun = Begun::default();
    match world.shards[0].accept(&event()) {
        Ok(acceptance) => acceptance.start(event(), Starting, &mut begun),
        Err(_) => world.expect(false, "there was room"),
    }
    begun.due
}

/// Two events begin. The task that was sent for one of them is dropped, that for the other is kept by the event that it
/// takes: no event is left without a task. So with tasks on several threads, and with tasks that one thread polls in turn.
pub fn starts_against_tasks(in_turn: bool) {
    let name = if in_turn { "starts against tasks, in turn" } else { "starts against tasks" };
    explore(name, Depth::All, move || {
        let world = World::new(4);
        world.shards[0].with_line(|line| line.poll_in_turn(in_turn));
        let comes = thread::spawn({
            let world = world.clone();
            move || {
                let due = start(&world);
                if in_turn { come_in_turn(&world, due) } else { come(&world, due) }
            }
        });
        for _ in 0..start(&world) {
            drop(world.shards[0].with_line(Line::give_up));
        }
        let kept = comes.join().unwrap();
        let now = world.ledger.snapshot();
        assert_eq!(now.pending, kept.len() as u64, "an event has no task");
        drop(kept);
        world.check_empty(4);
    });
}

/// So many tasks come, and those that they send for. Each is kept by the event that it takes.
fn come(world: &World, tasks: usize) -> Vec<Starting> {
    let mut kept = Vec::new();
    for _ in 0..tasks {
        let Arrival { event, due } = world.shards[0].with_line(Line::arrive);
        kept.extend(event);
        kept.extend(come(world, due));
    }
    kept
}

/// The same where one thread polls them.
fn come_in_turn(world: &World, tasks: usize) -> Vec<Starting> {
    let mut kept = Vec::new();
    for _ in 0..tasks {
        let turn = world.shards[0].with_line(|line| line.take_turn(true));
        kept.extend(keep_in_turn(world, turn));
    }
    kept
}

/// The event keeps the task, which sends another if it was to come back.
fn keep_in_turn(world: &World, turn: Turn<Starting>) -> Vec<Starting> {
    let mut kept: Vec<_> = turn.event.into_iter().collect();
    if turn.comes_back {
        let due = world.shards[0].with_line(Line::leave);
        kept.extend(come_in_turn(world, due));
    }
    kept
}

/// An event starts while a task ends another one and looks for the next, which it is kept by.
pub fn start_against_turns() {
    explore("start against turns", Depth::All, || {
        let world = World::new(4);
        world.shards[0].with_line(|line| line.poll_in_turn(true));
        let due: usize = (0..2).map(|_| start(&world)).sum();
        assert_eq!(due, 1, "a second event in turn needs no other task");
        let running = thread::spawn({
            let world = world.clone();
            move || {
                let Turn { event, comes_back } = world.shards[0].with_line(|line| line.take_turn(true));
                world.expect(comes_back, "the task comes back for the second one");
                let Some(Starting(mut ticket)) = event else { return Vec::new() };
                ticket.end_as(Ending::Completed);
                let turn = ticket.end_and_take(|line| line.take_turn(true));
                keep_in_turn(&world, turn)
            }
        });
        let due = start(&world);
        let mut kept = come_in_turn(&world, due);
        kept.extend(running.join().unwrap());
        let now = world.ledger.snapshot();
        assert_eq!((now.completed, now.pending), (1, 2), "an event has not one ending");
        assert_eq!(kept.len(), 2, "an event has no task");
        drop(kept);
        world.check_empty(4);
    });
}

/// The task of an event that has ended takes another, while the one that was sent for that is dropped.
pub fn next_against_drop() {
    explore("next against drop", Depth::All, || {
        let world = World::new(4);
        let due: usize = (0..3).map(|_| start(&world)).sum();
        assert_eq!(due, 2, "several events send for one task more than they need");
        let running = thread::spawn({
            let world = world.clone();
            move || {
                let Arrival { event, due } = world.shards[0].with_line(Line::arrive);
                let mut kept = come(&world, due);
                if let Some(Starting(mut ticket)) = event {
                    ticket.end_as(Ending::Completed);
                    kept.extend(ticket.end_and_take(Line::next));
                }
                kept
            }
        });
        let dropped = world.shards[0].with_line(Line::give_up);
        let has_dropped = dropped.len();
        drop(dropped);
        let kept = running.join().unwrap();
        let now = world.ledger.snapshot();
        assert_eq!((now.aborted, now.pending), (has_dropped as u64, kept.len() as u64), "an event has no task");
        assert_eq!(now.completed + now.aborted + now.pending, 3, "an event has not one ending");
        drop(kept);
        world.check_empty(4);
    });
}

/// An event ends, its task takes the next one, and a drain looks.
pub fn end_and_take_against_drain() {
    explore("end and take against drain", Depth::All, || {
        let world = World::new(4);
        let due: usize = (0..2).map(|_| start(&world)).sum();
        assert_eq!(due, 2, "a second event sends for another task");
        world.accepted.store(2, SEEN);
        let running = thread::spawn({
            let world = world.clone();
            move || {
                let mut taken = world.shards[0].with_line(Line::arrive).event;
                while let Some(Starting(mut ticket)) = taken {
                    world.expect(!world.is_drained(), "the drain was over while an event was pending");
                    ticket.end_as(Ending::Completed);
                    taken = ticket.end_and_take(Line::next);
                }
            }
        });
        let mut drain = Drain::new(&world, Settle::None);
        drain.poll_twice();
        running.join().unwrap();
        drain.finish();
        world.check_drained();
    });
}

/// An event ends once, however close an abort is, and its holder is let go.
pub fn abort_against_end() {
    explore("abort against end", Depth::All, || {
        let world = World::new(2);
        let bell = Arc::new(Bell::default());
        let mut ticket = world.accept(1);
        ticket.iter_mut().for_each(|ticket| assert!(ticket.hold(&Waker::from(Arc::clone(&bell)))));
        let ending = thread::spawn({
            let world = world.clone();
            move || ticket.into_iter().for_each(|ticket| world.end(ticket))
        });
        world.ledger.abort();
        ending.join().unwrap();
        let now = world.ledger.snapshot();
        assert_eq!((now.completed, now.aborted), (1, 0), "an event has not one ending");
        assert_eq!(Arc::strong_count(&bell), 1, "a holder is kept");
        world.check_empty(2);
    });
}

/// A wait for idleness that is polled when it is woken.
struct Wait {
    wait: IdleWait<()>,
    task: Task,
    is_over: bool,
}

impl Wait {
    fn begin(world: &World) -> Self {
        let mut wait = Self { wait: IdleWait::begin(&world.ledger), task: Task::default(), is_over: false };
        wait.poll();
        wait
    }

    fn poll(&mut self) {
        self.is_over = self.wait.poll(&self.task.waker()).is_ready();
    }

    /// What it waits for has ended.
    fn finish(&mut self, world: &World) {
        let pending = world.ledger.pending_of(&self.wait);
        assert!(pending.is_empty(), "a wait is for an event that came later");
        if !self.is_over {
            assert!(self.task.is_woken(), "nobody woke the wait for idleness");
            self.poll();
        }
        assert!(self.is_over, "a wait for idleness does not end");
    }
}

/// A wait for idleness begins while an event ends, and another comes and goes.
pub fn idle_wait_against_ends() {
    explore("wait for idleness against ends", Depth::All, || {
        let world = World::new(4);
        let earlier = world.must_accept(1);
        let ending = thread::spawn({
            let world = world.clone();
            move || earlier.into_iter().for_each(|ticket| world.end(ticket))
        });
        let passing = thread::spawn({
            let world = world.clone();
            move || world.must_accept(0).into_iter().for_each(|ticket| world.end(ticket))
        });
        let mut wait = Wait::begin(&world);
        if !wait.is_over && wait.task.is_woken() {
            wait.poll();
        }
        if wait.is_over {
            let pending = world.ledger.pending_of(&wait.wait);
            world.expect(pending.is_empty(), "a wait was over while an event was pending");
        }
        ending.join().unwrap();
        passing.join().unwrap();
        world.check();
        wait.finish(&world);
        world.check_empty(4);
    });
}

/// An event ends while a second wait begins, a third is given up, and a later event stays pending.
pub fn two_idle_waits() {
    explore("two waits for idleness", Depth::All, || {
        let world = World::new(4);
        let earlier = world.must_accept(1);
        let given_up = Wait::begin(&world);
        let mut first = Wait::begin(&world);
        let later = world.must_accept(0);
        let ending = thread::spawn({
            let world = world.clone();
            move || earlier.into_iter().for_each(|ticket| world.end(ticket))
        });
        let giving_up = thread::spawn(move || drop(given_up));
        let mut second = Wait::begin(&world);
        ending.join().unwrap();
        giving_up.join().unwrap();
        first.finish(&world);
        assert!(!second.is_over, "a wait was over while an event was pending");
        later.into_iter().for_each(|ticket| world.end(ticket));
        second.finish(&world);
        world.check_empty(4);
    });
}

/// A place in the queue for room that is polled when it is woken.
struct Place {
    wait: RoomWait<()>,
    task: Task,
    permit: Option<PermitTicket<()>>,
}

impl Place {
    /// Takes room, or a place in the queue.
    fn take(world: &World, shard: usize) -> Result<PermitTicket<()>, Self> {
        match world.shards[shard].reserve_or_queue(Location::caller(), 0).expect("the house is open") {
            Room::Granted(permit) => Ok(permit),
            Room::Queued(wait) => Err(Self { wait, task: Task::default(), permit: None }),
        }
    }

    /// Takes a place in the queue of a full house.
    fn queue(world: &World, shard: usize) -> Self {
        Self::take(world, shard).err().expect("the house is full")
    }

    fn poll(&mut self) -> bool {
        if self.permit.is_none() {
            if let Poll::Ready(permit) = self.wait.poll(&self.task.waker()) {
                self.permit = Some(permit);
            }
        }
        self.permit.is_some()
    }

    /// There has been room for it.
    fn finish(mut self) -> PermitTicket<()> {
        if self.permit.is_none() {
            assert!(self.task.is_woken(), "nobody woke who waits for room");
            self.poll();
        }
        self.permit.take().expect("who waits for room has it")
    }
}

/// Room comes back while somebody takes it or queues for it.
pub fn queue_against_end() {
    explore("queue for room against end", Depth::All, || {
        let world = World::new(1);
        let last = world.must_accept(1);
        let ending = thread::spawn({
            let world = world.clone();
            move || last.into_iter().for_each(|ticket| world.end(ticket))
        });
        let mut taken = Place::take(&world, 0);
        if let Err(place) = &mut taken {
            place.poll();
        }
        ending.join().unwrap();
        let permit = taken.unwrap_or_else(Place::finish);
        drop(permit);
        world.check_empty(1);
    });
}

/// Room is granted to somebody who leaves: the next one in the queue has it.
pub fn grant_against_leaving() {
    explore("grant against leaving", Depth::All, || {
        let world = World::new(1);
        let last = world.must_accept(1);
        let mut leaving = Place::queue(&world, 0);
        leaving.poll();
        let mut next = Place::queue(&world, 1);
        next.poll();
        let ending = thread::spawn({
            let world = world.clone();
            move || last.into_iter().for_each(|ticket| world.end(ticket))
        });
        let leaving = thread::spawn(move || drop(leaving));
        world.look_at_the_counts(1);
        ending.join().unwrap();
        leaving.join().unwrap();
        world.check();
        let permit = next.finish();
        assert_eq!(world.ledger.snapshot().reserved, 1, "room was given twice");
        drop(permit);
        world.check_empty(1);
    });
}

/// Room is granted while who waits for it polls again, with another waker.
pub fn grant_against_poll() {
    explore("grant against poll", Depth::All, || {
        let world = World::new(1);
        let last = world.must_accept(1);
        let mut place = Place::queue(&world, 0);
        place.poll();
        let ending = thread::spawn({
            let world = world.clone();
            move || last.into_iter().for_each(|ticket| world.end(ticket))
        });
        place.task = Task::default();
        place.poll();
        ending.join().unwrap();
        drop(place.finish());
        world.check_empty(1);
    });
}

/// What is tracked later does not take room that is owed.
pub fn owed_room() {
    explore("owed room", Depth::All, || {
        let world = World::new(1);
        let last = world.must_accept(1);
        let mut place = Place::queue(&world, 0);
        place.poll();
        let ending = thread::spawn({
            let world = world.clone();
            move || last.into_iter().for_each(|ticket| world.end(ticket))
        });
        let later = thread::spawn({
            let world = world.clone();
            move || accept(&world.shards[1]).is_ok()
        });
        place.poll();
        ending.join().unwrap();
        assert!(!later.join().unwrap(), "a later event has taken room that was owed");
        drop(place.finish());
        world.check_empty(1);
    });
}

/// Somebody queues as room comes back that another waits for: the first in the queue is the first to have it.
pub fn first_in_first_out() {
    explore("first in, first out", Depth::All, || {
        let world = World::new(2);
        let (one, other) = (world.must_accept(0), world.must_accept(1));
        let mut first = Place::queue(&world, 0);
        first.poll();
        let ending = thread::spawn(move || drop(one));
        let second = Place::take(&world, 1);
        assert!(second.is_err(), "the second in the queue had room first");
        ending.join().unwrap();
        let second = second.map_err(|mut second| (second.poll(), second)).err();
        let permit = first.finish();
        drop(other);
        if let Some((had_room, second)) = second {
            assert!(!had_room, "the second in the queue had room first");
            drop(second.finish());
        }
        drop(permit);
        world.check_empty(2);
    });
}

/// A drain is not over while somebody waits for room, and then hears of the end.
pub fn queue_against_drain() {
    explore("queue for room against drain", Depth::All, || {
        let world = World::new(1);
        let last = world.must_accept(1);
        let place = Place::queue(&world, 0);
        let ending = thread::spawn({
            let world = world.clone();
            move || last.into_iter().for_each(|ticket| world.end(ticket))
        });
        let waiting = thread::spawn({
            let world = world.clone();
            move || {
                let mut place = place;
                if place.poll() {
                    world.expect(!world.is_drained(), "the drain was over while somebody had room");
                    drop(place);
                    return None;
                }
                Some(place)
            }
        });
        let mut drain = Drain::new(&world, Settle::None);
        drain.poll();
        ending.join().unwrap();
        if let Some(place) = waiting.join().unwrap() {
            assert!(!drain.is_over, "the drain was over while somebody waited for room");
            drop(place.finish());
        }
        drain.finish();
        world.check_drained();
    });
}

/// A lane whose values are only counted. What it does under its lock is what `src/queue.rs` does.
struct Counted {
    ledger: Arc<Ledger<()>>,
    state: Mutex<(Gate, LaneBook)>,
}

impl Counted {
    fn new(world: &World) -> Arc<Self> {
        let state = Mutex::new((Gate::new(4), LaneBook::new("lane", Location::caller(), 4)));
        let lane = Arc::new(Self { ledger: Arc::clone(&world.ledger), state });
        world.ledger.add_lane(lane.clone());
        lane
    }

    /// Sends, if the house is not drained.
    fn send(&self, world: &World) -> bool {
        let was_drained = world.is_drained();
        let is_accepted = self.state.lock().unwrap().0.accept().is_ok();
        world.expect(!(is_accepted && was_drained), "an event was accepted after the drain");
        if is_accepted {
            world.accepted.fetch_add(1, SEEN);
            world.expect(!world.is_drained(), "the drain was over while an event was pending");
        }
        is_accepted
    }

    fn end(&self, world: &World) {
        world.expect(!world.is_drained(), "the drain was over while an event was pending");
        let mut state = self.state.lock().unwrap();
        let (gate, book) = &mut *state;
        let left = book.end(gate, 1, Ending::Completed);
        let reached = self.ledger.lane_reached(&left);
        drop(state);
        self.ledger.lane_left(reached, left.is_empty);
    }
}

impl Counted {
    /// Nobody delivers any more: the ledger takes over what was counted, and nothing keeps the lane.
    fn retire(self: Arc<Self>, world: &World) {
        let before = world.ledger.snapshot();
        self.state.lock().unwrap().1.is_dead = true;
        let lane: Arc<dyn Lane> = self;
        world.ledger.retire_lane(&lane);
        assert_eq!(world.ledger.snapshot(), before, "a count is lost with its lane");
        assert_eq!(Arc::strong_count(&lane), 1, "a lane is kept");
    }
}

impl Lane for Counted {
    fn lock(&self) -> Box<dyn LockedLane + '_> {
        Box::new(Locked(self.state.lock().unwrap()))
    }

    fn nudge(&self) {}

    fn has_taker(&self) -> bool {
        false
    }

    fn end_what_is_aside(self: Arc<Self>) {}

    fn give_up(self: Arc<Self>, _: Ending) -> Option<GivenUp> {
        None
    }
}

struct Locked<'a>(MutexGuard<'a, (Gate, LaneBook)>);

impl LockedLane for Locked<'_> {
    fn gate(&self) -> &Gate {
        &self.0.0
    }

    fn gate_mut(&mut self) -> &mut Gate {
        &mut self.0.0
    }

    fn book(&self) -> &LaneBook {
        &self.0.1
    }

    fn book_mut(&mut self) -> &mut LaneBook {
        &mut self.0.1
    }

    fn oldest(&self) -> Nanos {
        0
    }

    fn set_aside(&mut self, _: Ending) {}
}

/// A value that is sent, and an event that sends one, against a drain.
pub fn sends_against_drain() {
    explore("sends against drain", Depth::Preemptions(3), || {
        let world = World::new(4);
        let lane = Counted::new(&world);
        let notes = Notes::default();
        let event = world.must_accept(1);
        let revival = thread::spawn({
            let (world, notes, lane) = (world.clone(), notes.clone(), Arc::clone(&lane));
            move || {
                notes.write(0);
                let is_sent = lane.send(&world);
                world.expect(is_sent, "an event was refused while another was pending");
                event.into_iter().for_each(|ticket| world.end(ticket));
                if is_sent {
                    notes.write(1);
                    lane.end(&world);
                }
            }
        });
        let sender = thread::spawn({
            let (world, notes, lane) = (world.clone(), notes.clone(), Arc::clone(&lane));
            move || {
                if lane.send(&world) {
                    notes.write(2);
                    lane.end(&world);
                }
            }
        });
        let mut drain = Drain::new(&world, Settle::None);
        drain.poll_twice();
        if drain.is_over {
            notes.check(&world);
        }
        revival.join().unwrap();
        sender.join().unwrap();
        drain.finish();
        world.check_drained();
        assert!(!lane.send(&world), "a lane is open after the drain");
        lane.retire(&world);
    });
}

/// The counts of one instant, while values and events come and go.
pub fn counts_of_a_lane() {
    explore("counts of a lane", Depth::Preemptions(3), || {
        let world = World::new(4);
        let lane = Counted::new(&world);
        let sender = thread::spawn({
            let (world, lane) = (world.clone(), Arc::clone(&lane));
            move || {
                assert!(lane.send(&world));
                lane.end(&world);
            }
        });
        let other = thread::spawn({
            let world = world.clone();
            move || world.accept(1).into_iter().for_each(|ticket| world.end(ticket))
        });
        world.look_at_the_counts(4);
        sender.join().unwrap();
        other.join().unwrap();
        let now = world.look_at_the_counts(4);
        assert_eq!((now.accepted, now.completed, now.pending), (2, 2, 0), "an event was not counted");
        lane.retire(&world);
        world.check();
    });
}

/// A wait for what is in a lane, and in the house, against the ends of it.
pub fn wait_against_lane() {
    explore("wait against lane", Depth::Preemptions(3), || {
        let world = World::new(4);
        let lane = Counted::new(&world);
        assert!(lane.send(&world));
        let sender = thread::spawn({
            let (world, lane) = (world.clone(), Arc::clone(&lane));
            move || {
                lane.end(&world);
                assert!(lane.send(&world));
            }
        });
        let mut task = Task::default();
        let all = IdleWait::begin(&world.ledger);
        let pending = world.ledger.pending_of(&all).values().map(|group| group.count).sum::<u64>();
        let is_over = all.poll(&task.waker()).is_ready();
        world.expect(!is_over || world.ledger.pending_of(&all).is_empty(), "a wait was over before its events");
        world.expect(pending <= 1, "a wait is for more than was there");
        sender.join().unwrap();
        world.check();
        // The later one may have been there when the wait began.
        if !is_over && world.ledger.pending_of(&all).is_empty() {
            assert!(task.is_woken(), "nobody woke the wait");
            assert!(all.poll(&task.waker()).is_ready(), "a wait is not over after its events");
        }
        lane.end(&world);
        assert!(all.poll(&task.waker()).is_ready(), "a wait is not over after its events");
        drop(all);
        lane.retire(&world);
        world.check();
    });
}
