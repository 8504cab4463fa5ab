//! The capacity, and the queue of requests that wait for a slot.

use std::{mem, panic::Location, task::Poll};

use loom::thread;
use tokio::time::Instant;

use crate::{
    error::TrackError,
    registry::{
        QueuedSlot, Slot,
        models::{Depth, Drain, OBSERVED, Quiet, Task, Ticket, World, event, finds, models},
    },
};

/// A task that waits for a slot.
struct Queued {
    slot: QueuedSlot<()>,
    task: Task,
    permit: Option<Ticket>,
}

impl Queued {
    /// Takes a slot, or enters the queue.
    fn new(world: &World, shard: usize) -> Result<Ticket, Self> {
        match world.shards[shard].reserve_or_queue(Location::caller(), Instant::now()) {
            Ok(Slot::Granted(permit)) => Ok(permit),
            Ok(Slot::Queued(slot)) => Err(Self { slot, task: Task::default(), permit: None }),
            Err(error) => panic!("{error}"),
        }
    }

    /// Enters the queue, because no slot is free.
    fn full(world: &World, shard: usize) -> Self {
        Self::new(world, shard).err().expect("there is a slot too many")
    }

    fn poll(&mut self) {
        if let Poll::Ready(permit) = self.slot.poll(&self.task.waker()) {
            self.permit = permit;
        }
    }

    fn is_granted(&mut self) -> bool {
        self.poll();
        self.permit.is_some()
    }

    /// Checks that the waiter got the slot that the producer has released.
    fn finish(&mut self) {
        while self.permit.is_none() && self.task.is_woken() {
            self.poll();
        }
        assert!(self.permit.is_some(), "nobody woke the waiter");
    }
}

models! {
    /// Two of four producers get a slot and keep it.
    four_producers_who_keep: Depth::AtMost(3), {
        let world = World::new(2);
        let producers = [0, 1, 0].map(|shard| {
            let world = world.clone();
            thread::spawn(move || world.track(shard).ok())
        });
        let mine = world.track(1).ok();
        let theirs = producers.map(|producer| producer.join().unwrap());
        let taken: Vec<_> = theirs.into_iter().chain([mine]).flatten().collect();
        if taken.len() > 2 {
            // A release of too many slots would panic as well.
            mem::forget(taken);
            panic!("more was accepted than there is capacity");
        }
        assert_eq!(taken.len(), 2, "an event was rejected while a slot was free");
        assert_eq!(world.look().rejected, 2, "a rejection was not counted");
        drop(taken);
        world.check_empty();
    }

    /// Released slots are free again, and there are not more of them than before.
    three_producers_who_release: Depth::AtMost(4), {
        let world = World::new(2);
        let producers = [0, 1].map(|shard| {
            let world = world.clone();
            thread::spawn(move || world.end(world.track(shard)))
        });
        world.look();
        world.end(world.track(1));
        producers.into_iter().for_each(|producer| producer.join().unwrap());
        world.check_empty();
    }

    /// A producer that has seen under all locks that a slot is free gets it, if no other producer takes it.
    full_is_exact: Depth::Any, {
        let world = World::new(1);
        let last = world.must_track(0);
        let ending = thread::spawn({
            let world = world.clone();
            move || world.end(last)
        });
        let is_free = world.look().pending == 0;
        let tracked = world.track(1);
        assert!(tracked.is_ok() || !is_free, "an event was rejected while a slot was free");
        ending.join().unwrap();
        drop(tracked);
        world.check_empty();
    }

    /// A slot is released while a waiter enters the queue.
    queue_against_release: Depth::Any, {
        let world = World::new(1);
        let last = world.must_track(0);
        let ending = thread::spawn({
            let world = world.clone();
            move || world.end(last)
        });
        let granted = match Queued::new(&world, 1) {
            Ok(permit) => permit,
            Err(mut queued) => {
                queued.poll();
                ending.join().unwrap();
                queued.finish();
                let Queued { slot, task, permit } = queued;
                drop(slot);
                assert!(task.is_forgotten(), "the waker of a waiter is kept");
                drop(permit);
                return world.check_empty();
            }
        };
        ending.join().unwrap();
        drop(granted);
        world.check_empty();
    }

    /// A permit is granted while its waiter polls again.
    grant_against_poll: Depth::Any, {
        let world = World::new(1);
        let last = world.must_track(0);
        let mut queued = Queued::full(&world, 1);
        let ending = thread::spawn({
            let world = world.clone();
            move || world.end(last)
        });
        queued.poll();
        if queued.permit.is_none() {
            queued.poll();
        }
        ending.join().unwrap();
        queued.finish();
        drop(queued);
        world.check_empty();
    }

    /// A permit is granted while its waiter leaves: the next waiter gets it.
    grant_against_leaving: Depth::Any, {
        let world = World::new(1);
        let last = world.must_track(0);
        let leaving = Queued::full(&world, 1);
        let mut next = Queued::full(&world, 0);
        next.poll();
        let ending = thread::spawn({
            let world = world.clone();
            move || world.end(last)
        });
        drop(leaving);
        ending.join().unwrap();
        next.finish();
        drop(next);
        world.check_empty();
    }

    /// A permit is granted while the only waiter leaves: the slot is free.
    grant_against_leaving_alone: Depth::Any, {
        let world = World::new(1);
        let last = world.must_track(0);
        let leaving = Queued::full(&world, 1);
        let ending = thread::spawn({
            let world = world.clone();
            move || world.end(last)
        });
        drop(leaving);
        ending.join().unwrap();
        world.check_empty();
    }

    /// The first waiter in the queue gets the first slot.
    first_in_first_out: Depth::Any, {
        let world = World::new(1);
        let last = world.must_track(0);
        let mut first = Queued::full(&world, 0);
        let mut second = Queued::full(&world, 1);
        let ending = thread::spawn({
            let world = world.clone();
            move || world.end(last)
        });
        second.poll();
        first.poll();
        ending.join().unwrap();
        assert!(!second.is_granted(), "a later waiter was the first");
        first.finish();
        first.permit = None;
        second.finish();
        drop((first, second));
        world.check_empty();
    }

    /// While a waiter is in the queue, no producer gets a slot that is released.
    nobody_overtakes_the_queue: Depth::Any, {
        let world = World::new(1);
        let last = world.must_track(0);
        let mut queued = Queued::full(&world, 0);
        queued.poll();
        let taking = thread::spawn({
            let world = world.clone();
            move || {
                let tracked = world.track(1);
                world.expect(tracked.as_ref().err() == Some(&TrackError::Full), "an event overtook a waiter");
                world.look();
            }
        });
        world.end(last);
        taking.join().unwrap();
        queued.finish();
        drop(queued);
        world.check_empty();
    }

    /// One waiter leaves, another comes, and a slot is released.
    queue_that_is_empty_for_a_moment: Depth::Any, {
        let world = World::new(1);
        let last = world.must_track(0);
        let leaving = Queued::full(&world, 0);
        let waiting = thread::spawn({
            let world = world.clone();
            move || {
                let mut queued = Queued::new(&world, 1);
                if let Err(queued) = &mut queued {
                    queued.poll();
                }
                queued
            }
        });
        drop(leaving);
        let queued = waiting.join().unwrap();
        world.end(last);
        match queued {
            Ok(permit) => drop(permit),
            Err(mut queued) => queued.finish(),
        }
        world.check_empty();
    }

    /// The slot of the last event passes on to a waiter while a drain registers and looks.
    grant_against_drain: Depth::Any, {
        let world = World::new(1);
        let last = world.must_track(0);
        let mut queued = Queued::full(&world, 1);
        queued.poll();
        let ending = thread::spawn({
            let world = world.clone();
            move || {
                world.end(last);
                world.expect(!world.is_drained(), "the drain was over while something was open");
                queued.finish();
                queued.permit.into_iter().for_each(|permit| {
                    let ticket = world.fill(permit);
                    world.end([ticket]);
                });
            }
        });
        let mut drain = Drain::new(&world, Quiet::None);
        drain.poll_twice();
        ending.join().unwrap();
        drain.finish();
        world.check_drained();
    }

    /// `reserve_or_queue` is called while the last event ends and a drain closes.
    queue_against_drain: Depth::AtMost(3), {
        let world = World::new(1);
        let last = world.must_track(0);
        let ending = thread::spawn({
            let world = world.clone();
            move || world.end(last)
        });
        let waiting = thread::spawn({
            let world = world.clone();
            move || {
                let was_drained = world.is_drained();
                let slot = world.shards[1].reserve_or_queue(Location::caller(), Instant::now());
                if let Ok(Slot::Granted(permit)) = slot {
                    world.expect(!was_drained && !world.is_drained(), "something was accepted after the drain");
                    drop(permit);
                }
            }
        });
        let mut drain = Drain::new(&world, Quiet::Short);
        drain.poll_twice();
        ending.join().unwrap();
        waiting.join().unwrap();
        drain.finish();
        assert_eq!(world.accepted.load(OBSERVED), world.look().accepted);
        world.check_drained();
        assert!(world.shards[0].track(event()).is_err());
    }
}

finds! {
    take_in_two_steps:
        "a slot is taken in two steps", four_producers_who_keep, "more was accepted than there is capacity";
    release_in_two_steps:
        "a slot is released in two steps", three_producers_who_release, "a slot was lost";
    slot_is_taken_before_its_entry:
        "a slot is released under a later lock than its entry",
        full_is_exact, "an event was rejected while a slot was free";
    waiter_looks_too_early:
        "a waiter looks for a slot before it locks the queue", queue_against_release, "nobody woke the waiter";
    release_looks_too_early:
        "waiters are looked for before a slot is released", queue_against_release, "nobody woke the waiter";
    mark_is_cleared_late:
        "the mark of the waiters is cleared without the lock of the queue",
        queue_that_is_empty_for_a_moment, "nobody woke the waiter";
    slot_is_free_for_a_moment:
        "a slot is free before it is passed on", nobody_overtakes_the_queue, "an event overtook a waiter";
    last_is_first:
        "the last in the queue is the first", first_in_first_out, "a later waiter was the first";
    grant_under_a_later_lock:
        "a permit is granted under a later lock", grant_against_poll, "nobody woke the waiter";
    waiter_registers_late:
        "a waiter registers under a later lock", grant_against_poll, "nobody woke the waiter";
    permit_is_forgotten:
        "a permit that was not taken is forgotten", grant_against_leaving, "nobody woke the waiter";
    grant_is_forgotten:
        "a grant to a waiter that has left is forgotten", grant_against_leaving, "nobody woke the waiter";
    slot_is_passed_on_late:
        "a slot is passed on under a later lock than it is released",
        grant_against_drain, "the drain was over while something was open";
    queue_without_the_shard:
        "a slot is waited for without the lock of the shard",
        queue_against_drain, "something was accepted after the drain";
}
