//! The last call, while events are tracked and aborted, requests open and end, and requests wait for a slot.

use std::{panic::Location, sync::Arc, task::Poll, time::Duration};

use loom::thread;
use tokio::time::Instant;

use crate::registry::{
    OpenRequest, Slot, Waiter,
    models::{
        Depth, Drain, Quiet, Task, Ticket, World,
        exchange::{Exchange, Running},
        finds, models,
    },
};
use crate::util::sync::seeded;

const WAITS: &str = "an event waits for its exchange after the last call";

impl World {
    fn open_exchange(&self, shard: usize) -> (Arc<Exchange>, Option<Ticket>) {
        let exchange = Arc::new(Exchange::default());
        let request = self.open(shard, Arc::clone(&exchange) as Arc<dyn OpenRequest>);
        (exchange, request)
    }
}

/// Ends the events that were started, and checks that each is counted once.
fn end_all(world: &World, started: impl IntoIterator<Item = Running>) {
    world.end(started.into_iter().filter_map(Running::finish));
}

models! {
    /// An event that is tracked during a last call starts: in the call, or at once.
    last_call_against_track: Depth::Any, {
        let world = World::new(2);
        let (exchange, request) = world.open_exchange(1);
        let tracking = thread::spawn({
            let (world, exchange) = (world.clone(), Arc::clone(&exchange));
            move || world.must_track_inside(0).and_then(|ticket| exchange.keep(ticket))
        });
        world.registry.last_call();
        let at_once = tracking.join().unwrap();
        let started: Vec<_> = exchange.started().into_iter().chain(at_once).collect();
        assert_eq!(started.len(), 1, "{WAITS}");
        assert!(exchange.end().is_empty(), "{WAITS}");
        end_all(&world, started);
        drop(request);
        world.check_empty();
    }

    /// A last call reaches a request that opens meanwhile, or the request sees the call when its head is ready.
    last_call_against_a_new_request: Depth::Any, {
        let world = World::new(2);
        let opening = thread::spawn({
            let world = world.clone();
            move || {
                let (exchange, request) = world.open_exchange(1);
                let at_once = world.must_track_inside(1).and_then(|ticket| exchange.keep(ticket));
                if world.registry.is_last_call() {
                    exchange.last_call();
                }
                (exchange, request, at_once)
            }
        });
        world.registry.last_call();
        let (exchange, request, at_once) = opening.join().unwrap();
        let started: Vec<_> = exchange.started().into_iter().chain(at_once).collect();
        assert_eq!(started.len(), 1, "{WAITS}");
        end_all(&world, started);
        drop(request);
        world.check_empty();
    }

    /// An exchange ends during a last call: one of the two starts its event.
    last_call_against_the_end_of_an_exchange: Depth::Any, {
        let world = World::new(2);
        let (exchange, request) = world.open_exchange(1);
        assert!(world.must_track_inside(0).and_then(|ticket| exchange.keep(ticket)).is_none());
        let ending = thread::spawn({
            let exchange = Arc::clone(&exchange);
            move || {
                let started = exchange.end();
                drop(request);
                started
            }
        });
        world.registry.last_call();
        let started: Vec<_> = ending.join().unwrap().into_iter().chain(exchange.started()).collect();
        assert_eq!(started.len(), 1, "an event was not started once");
        end_all(&world, started);
        world.check_empty();
    }

    /// An abort reaches the event that a last call starts.
    last_call_against_abort: Depth::Any, {
        let world = World::new(2);
        let (exchange, request) = world.open_exchange(1);
        assert!(world.must_track_inside(0).and_then(|ticket| exchange.keep(ticket)).is_none());
        let calling = thread::spawn({
            let (world, exchange) = (world.clone(), Arc::clone(&exchange));
            move || {
                world.registry.last_call();
                let mut started = exchange.started();
                started.iter_mut().for_each(Running::poll);
                started
            }
        });
        world.registry.abort();
        let survivors = calling.join().unwrap().into_iter().filter_map(Running::finish).count();
        assert_eq!(survivors, 0, "an abort did not reach an event");
        assert_eq!(world.look().ended.aborted, 1, "an event has ended twice");
        drop(request);
        world.check_empty();
    }

    /// A request that waits for a slot goes on, whether it enters the queue before the last call or after it.
    last_call_against_the_queue: Depth::Any, {
        let world = World::new(1);
        let pending = world.must_track(0);
        let waiting = thread::spawn({
            let world = world.clone();
            move || {
                let mut task = Task::default();
                let slot = world.shards[1].reserve_or_queue(Location::caller(), Instant::now()).ok()?;
                let Slot::Queued(mut slot) = slot else { panic!("there is a slot too many") };
                let polled = slot.poll(&task.waker());
                Some((task, slot, polled))
            }
        });
        world.registry.last_call();
        if let Some((mut task, mut slot, mut polled)) = waiting.join().unwrap() {
            if polled.is_pending() && task.is_woken() {
                polled = slot.poll(&task.waker());
            }
            assert!(matches!(polled, Poll::Ready(None)), "a request waits for a slot after the last call");
        }
        world.end(pending);
        world.check_empty();
    }

    /// A slot is released while the last call dismisses the request that waits for it.
    last_call_against_a_released_slot: Depth::Any, {
        let world = World::new(1);
        let pending = world.must_track(0);
        let Ok(Slot::Queued(mut slot)) = world.shards[1].reserve_or_queue(Location::caller(), Instant::now()) else {
            panic!("there is a slot too many");
        };
        let ending = thread::spawn({
            let world = world.clone();
            move || world.end(pending)
        });
        world.registry.last_call();
        ending.join().unwrap();
        let polled = slot.poll(&Task::default().waker());
        assert!(polled.is_ready(), "a request waits for a slot after the last call");
        drop((polled, slot));
        world.check_empty();
    }

    /// A drain whose last call is due waits beside a later drain. When the later one is dropped, it makes the call.
    last_call_passes_to_another_drain: Depth::Any, {
        let world = World::new(1);
        let now = Instant::now();
        let deadline = |seconds| Some(now + Duration::from_secs(seconds));
        let later = Waiter::for_drain(&world.registry, deadline(2));
        let dropping = thread::spawn(move || drop(later));
        let mut drain = Drain::new(&world, Quiet::Endless);
        drain.waiter = Waiter::for_drain(&world.registry, deadline(1));
        let mut is_latest = false;
        let mut polls = |drain: &mut Drain| {
            let waker = drain.task.waker();
            let is_late = seeded!("a drain registers after it has looked for a later one");
            if !is_late {
                drain.waiter.register(&waker);
            }
            is_latest = drain.waiter.is_latest_drain();
            if is_late {
                drain.waiter.register(&waker);
            }
            is_latest
        };
        let mut is_called = polls(&mut drain);
        dropping.join().unwrap();
        while !is_called && drain.task.is_woken() {
            is_called = polls(&mut drain);
        }
        assert!(is_called, "nobody made the last call");
        drop(drain);
        world.check_empty();
    }
}

finds! {
    exchange_forgets_the_last_call:
        "an exchange does not remember the last call", last_call_against_track, "waits for its exchange";
    exchange_is_marked_too_late:
        "the last call marks an exchange under a later lock", last_call_against_track, "waits for its exchange";
    last_call_without_locks:
        "the last call is marked without locks", last_call_against_a_new_request, "waits for its exchange";
    queue_after_the_last_call:
        "a request waits for a slot after the last call",
        last_call_against_the_queue, "a request waits for a slot after the last call";
    queue_looks_too_early:
        "a request looks for the last call before the shard is locked",
        last_call_against_the_queue, "a request waits for a slot after the last call";
    later_drain_wakes_nobody:
        "a drain that was the latest wakes no other", last_call_passes_to_another_drain, "nobody made the last call";
    drain_registers_too_late:
        "a drain registers after it has looked for a later one",
        last_call_passes_to_another_drain, "nobody made the last call";
    abort_of_what_the_last_call_starts:
        "a task does not look at the epoch after it has registered",
        last_call_against_abort, "an abort did not reach an event";
}
