//! Aborts, while events are admitted, kept, started and ended.

use std::sync::Arc;

use loom::thread;

use crate::registry::{
    Ending, OpenRequest,
    models::{
        Depth, Drain, Quiet, World,
        exchange::{Exchange, Running},
        finds, models,
    },
};

models! {
    /// An event is aborted while its task registers: the task sees the new epoch, or is woken.
    abort_against_registration: Depth::Any, {
        let world = World::new(2);
        let ticket = world.must_track(1);
        let polling = thread::spawn(move || {
            let mut running = Running::new(ticket);
            running.poll();
            running
        });
        world.registry.abort();
        let running = polling.join().unwrap();
        assert!(running.finish().is_none(), "an abort did not reach an event");
        assert_eq!(world.look().ended.aborted, 1, "an event has ended twice");
        world.check_empty();
    }

    /// The task registers with another waker while an abort wakes it.
    abort_against_the_second_registration: Depth::Any, {
        let world = World::new(2);
        let mut running = Running::new(world.must_track(1));
        running.poll();
        running.is_registered = false;
        let polling = thread::spawn(move || {
            running.poll();
            running
        });
        world.registry.abort();
        assert!(polling.join().unwrap().finish().is_none(), "an abort did not reach an event");
        world.check_empty();
    }

    /// An abort reaches an event that a snapshot includes, also while `track` has not returned yet.
    abort_against_admission: Depth::Any, {
        let world = World::new(2);
        let tracking = thread::spawn({
            let world = world.clone();
            move || Running::new(world.must_track(1))
        });
        let is_pending = world.look().pending == 1;
        world.registry.abort();
        let ticket = tracking.join().unwrap().finish();
        assert!(ticket.is_none() || !is_pending, "an abort did not reach an event");
        drop(ticket);
        world.check_empty();
    }

    /// A permit becomes an event during an abort. The abort reaches an event that a snapshot includes.
    abort_against_permit: Depth::Any, {
        let world = World::new(2);
        let permit = world.reserve(1).unwrap();
        let filling = thread::spawn({
            let world = world.clone();
            move || Running::new(Some(world.fill(permit)))
        });
        let is_pending = world.look().pending == 1;
        world.registry.abort();
        let ticket = filling.join().unwrap().finish();
        assert!(ticket.is_none() || !is_pending, "an abort did not reach an event");
        drop(ticket);
        world.check_empty();
    }

    /// An event was accepted and is not kept by its exchange yet, during an abort.
    abort_against_keep: Depth::Any, {
        let world = World::new(2);
        let exchange = Arc::new(Exchange::default());
        let request = world.open(1, Arc::clone(&exchange) as Arc<dyn OpenRequest>);
        let ticket = world.must_track_inside(0);
        let keeping = thread::spawn({
            let exchange = Arc::clone(&exchange);
            move || ticket.and_then(|ticket| exchange.keep(ticket))
        });
        world.registry.abort();
        let running = keeping.join().unwrap();
        assert!(running.and_then(Running::finish).is_none(), "an abort did not reach an event");
        let now = world.look();
        assert_eq!((now.pending, now.ended.aborted), (0, 1), "an abort did not reach an event");
        assert!(exchange.end().is_empty(), "an event has ended twice");
        drop(request);
        world.check_empty();
    }

    /// An event is tracked in an exchange during an abort. If it was accepted after the abort, it is kept and runs.
    abort_against_track_and_keep: Depth::Any, {
        let world = World::new(2);
        let exchange = Arc::new(Exchange::default());
        let request = world.open(1, Arc::clone(&exchange) as Arc<dyn OpenRequest>);
        let keeping = thread::spawn({
            let (world, exchange) = (world.clone(), Arc::clone(&exchange));
            move || world.must_track_inside(1).and_then(|ticket| exchange.keep(ticket))
        });
        let is_pending = world.look().pending == 1;
        world.registry.abort();
        let running = keeping.join().unwrap();
        let mut survivors: Vec<_> = running.into_iter().chain(exchange.end()).filter_map(Running::finish).collect();
        let now = world.look();
        assert_eq!(now.pending, survivors.len() as u64, "an event is pending and nobody has it");
        assert!(!is_pending || survivors.is_empty(), "an abort did not reach an event");
        assert_eq!(now.ended.aborted + now.pending, 1, "an event has ended twice");
        survivors.clear();
        drop(request);
        world.check_empty();
    }

    /// An exchange ends, and its event is started, during an abort.
    abort_against_the_end_of_an_exchange: Depth::Any, {
        let world = World::new(2);
        let exchange = Arc::new(Exchange::default());
        let request = world.open(1, Arc::clone(&exchange) as Arc<dyn OpenRequest>);
        let kept = world.must_track_inside(0).and_then(|ticket| exchange.keep(ticket));
        assert!(kept.is_none());
        let ending = thread::spawn(move || {
            let mut running = exchange.end();
            drop(request);
            running.iter_mut().for_each(Running::poll);
            running
        });
        world.registry.abort();
        let survivors: Vec<_> = ending.join().unwrap().into_iter().filter_map(Running::finish).collect();
        assert!(survivors.is_empty(), "an abort did not reach an event");
        assert_eq!(world.look().ended.aborted, 1, "an event has ended twice");
        world.check_empty();
    }

    /// An event ends once, also during an abort, and its waker is dropped.
    abort_against_end: Depth::Any, {
        let world = World::new(2);
        let mut running = Running::new(world.must_track(1));
        running.poll();
        let Running { task, ticket, .. } = running;
        let ending = thread::spawn({
            let world = world.clone();
            move || world.end(ticket)
        });
        world.registry.abort();
        ending.join().unwrap();
        let now = world.look();
        assert_eq!((now.ended.completed, now.ended.aborted), (1, 0), "an event has ended twice");
        assert!(task.is_forgotten(), "the waker of an event is kept");
        world.check_empty();
    }

    /// Two aborts end an event once.
    two_aborts: Depth::AtMost(5), {
        let world = World::new(2);
        let ticket = world.must_track(1);
        let aborting = thread::spawn({
            let world = world.clone();
            move || world.registry.abort()
        });
        let polling = thread::spawn(move || {
            let mut running = Running::new(ticket);
            running.poll();
            running
        });
        world.registry.abort();
        aborting.join().unwrap();
        assert!(polling.join().unwrap().finish().is_none(), "an abort did not reach an event");
        assert_eq!(world.look().ended.aborted, 1, "an event has ended twice");
        world.check_empty();
    }

    /// An abort wakes a drain, which ends.
    abort_against_drain: Depth::AtMost(4), {
        let world = World::new(2);
        let ticket = world.must_track(1);
        let polling = thread::spawn({
            let world = world.clone();
            move || {
                let mut running = Running::new(ticket);
                running.poll();
                let is_open = running.ticket.is_some();
                world.expect(!is_open || !world.is_drained(), "the drain was over while something was open");
                running
            }
        });
        let aborting = thread::spawn({
            let world = world.clone();
            move || world.registry.abort()
        });
        let mut drain = Drain::new(&world, Quiet::None);
        drain.poll();
        aborting.join().unwrap();
        assert!(polling.join().unwrap().finish().is_none(), "an abort did not reach an event");
        drain.finish();
        assert_eq!(world.look().ended.aborted, 1, "an event has ended twice");
        world.check_drained();
    }

    /// An event that ends by itself and one that is dropped are counted once, at every instant.
    ends_against_abort: Depth::AtMost(4), {
        let world = World::new(2);
        let tickets = [0, 1].map(|shard| world.must_track(shard));
        let [failing, dropped] = tickets;
        let ending = thread::spawn(move || failing.into_iter().for_each(|ticket| ticket.end(Ending::Failed, None)));
        let dropping = thread::spawn(move || drop(dropped));
        world.registry.abort();
        world.look();
        ending.join().unwrap();
        dropping.join().unwrap();
        let now = world.look();
        assert_eq!((now.ended.failed, now.ended.aborted), (1, 1), "an event was not counted");
        world.check_empty();
    }
}

finds! {
    task_does_not_look:
        "a task does not look at the epoch after it has registered",
        abort_against_registration, "an abort did not reach an event";
    epoch_before_the_registration:
        "the epoch is read before a task registers", abort_against_registration, "an abort did not reach an event";
    epoch_after_the_admission:
        "the epoch of an event is read without the lock of its entry",
        abort_against_admission, "an abort did not reach an event";
    epoch_after_the_permit:
        "a permit that becomes an event reads the epoch under a later lock",
        abort_against_permit, "an abort did not reach an event";
    epoch_after_the_locks:
        "an abort advances the epoch without locks", abort_against_registration, "an abort did not reach an event";
    exchange_does_not_look:
        "an exchange does not look at the epoch", abort_against_keep, "an abort did not reach an event";
    exchange_looks_too_early:
        "an exchange looks at the epoch before it is locked", abort_against_keep, "an abort did not reach an event";
}
