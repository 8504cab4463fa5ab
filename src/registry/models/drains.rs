//! Drains, and waits for idleness, while requests and events begin and end.

use std::{iter, sync::Arc};

use loom::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use crate::{
    registry::{
        Ending,
        models::{Depth, Drain, OBSERVED, Quiet, Task, Waiter, World, finds, models},
    },
    util::sync::seeded,
};

/// The writes of events, which must happen before the end of a drain.
#[derive(Clone, Default)]
struct Written(Arc<[AtomicUsize; 3]>);

impl Written {
    fn write(&self, index: usize) {
        self.0[index].store(1, Ordering::Relaxed);
    }

    /// Checks that the drain has ended, and that all events that were accepted before it have ended.
    fn check(&self, drain: &Drain) {
        if drain.is_over {
            let written: usize = self.0.iter().map(|written| written.load(Ordering::Relaxed)).sum();
            let accepted = drain.world.accepted.load(OBSERVED);
            drain.world.expect(written as u64 == accepted, "the drain was over before an event's write");
        }
    }
}

/// A wait for idleness (`drain::wait_idle`).
struct WaitIdle {
    world: World,
    task: Task,
    waiter: Waiter,
    is_over: bool,
}

impl WaitIdle {
    fn new(world: &World) -> Self {
        Self { world: world.clone(), task: Task::default(), waiter: Waiter::new(&world.registry), is_over: false }
    }

    fn poll(&mut self) {
        let waker = self.task.waker();
        let is_late = seeded!("a wait for idleness registers after its look");
        if !is_late {
            self.waiter.register(&waker);
        }
        self.is_over = self.world.registry.snapshot().pending == 0;
        if is_late {
            self.waiter.register(&waker);
        }
    }

    fn finish(&mut self) {
        while !self.is_over && self.task.is_woken() {
            self.poll();
        }
        assert!(self.is_over, "nobody woke the wait for idleness");
    }
}

models! {
    /// A request that tracks an event, and an event from outside, against a drain.
    admission_against_drain: Depth::AtMost(3), {
        let world = World::new(4);
        let written = Written::default();
        let request = thread::spawn({
            let (world, written) = (world.clone(), written.clone());
            move || {
                let Some(request) = world.open_request(0) else { return };
                let ticket = world.must_track_inside(1);
                drop(request);
                written.write(0);
                world.end(ticket);
            }
        });
        let producer = thread::spawn({
            let (world, written) = (world.clone(), written.clone());
            move || {
                if let Ok(ticket) = world.track(1) {
                    written.write(1);
                    world.end([ticket]);
                }
            }
        });
        let mut drain = Drain::new(&world, Quiet::None);
        drain.poll_twice();
        written.check(&drain);
        request.join().unwrap();
        producer.join().unwrap();
        drain.finish();
        world.check_drained();
    }

    /// Three producers in two shards against a drain.
    three_producers_against_drain: Depth::AtMost(2), {
        let world = World::new(4);
        let written = Written::default();
        let producers = [0, 1, 0].into_iter().enumerate().map(|(index, shard)| {
            let (world, written) = (world.clone(), written.clone());
            thread::spawn(move || {
                if let Ok(ticket) = world.track(shard) {
                    written.write(index);
                    world.end([ticket]);
                }
            })
        });
        let producers: Vec<_> = producers.collect();
        let mut drain = Drain::new(&world, Quiet::None);
        drain.poll_twice();
        written.check(&drain);
        producers.into_iter().for_each(|producer| producer.join().unwrap());
        drain.finish();
        world.check_drained();
    }

    /// The last event ends while a drain registers and looks.
    last_end_against_drain: Depth::Any, {
        let world = World::new(4);
        let written = Written::default();
        let last = world.must_track(1);
        let ending = thread::spawn({
            let (world, written) = (world.clone(), written.clone());
            move || {
                written.write(0);
                world.end(last);
            }
        });
        let mut drain = Drain::new(&world, Quiet::None);
        drain.poll_twice();
        written.check(&drain);
        ending.join().unwrap();
        drain.finish();
        world.check_drained();
    }

    /// The last events of two shards end, one after the other, while a drain registers and looks. The first end
    /// wakes the waiters of that time.
    two_ends_against_drain: Depth::Any, {
        let world = World::new(4);
        let last = [0, 1].map(|shard| world.must_track(shard));
        let ending = thread::spawn({
            let world = world.clone();
            move || last.into_iter().for_each(|ticket| world.end(ticket))
        });
        let mut drain = Drain::new(&world, Quiet::None);
        drain.poll_twice();
        ending.join().unwrap();
        drain.finish();
        world.check_drained();
    }

    /// The last events of two shards end while a drain registers that waits beside another one.
    two_ends_against_two_drains: Depth::Any, {
        let world = World::new(4);
        let last = [0, 1].map(|shard| world.must_track(shard));
        let mut first = Drain::new(&world, Quiet::None);
        first.poll();
        let ending = thread::spawn({
            let world = world.clone();
            move || last.into_iter().for_each(|ticket| world.end(ticket))
        });
        let mut second = Drain::new(&world, Quiet::None);
        second.poll_twice();
        ending.join().unwrap();
        // Not the first drain, which would wake the second.
        second.finish();
        first.finish();
        world.check_drained();
    }

    /// The last event tracks another one, in the other shard, before it ends.
    revival_against_drain: Depth::Any, {
        let world = World::new(4);
        let last = world.must_track(1);
        let ending = thread::spawn({
            let world = world.clone();
            move || {
                let next = world.must_track_inside(0);
                world.end(last.into_iter().chain(next));
            }
        });
        let mut drain = Drain::new(&world, Quiet::None);
        drain.poll_twice();
        ending.join().unwrap();
        drain.finish();
        world.check_drained();
    }

    /// A request is opened in the quiet period of a drain, tracks an event, and is closed.
    request_against_quiet_period: Depth::Any, {
        let world = World::new(4);
        let request = thread::spawn({
            let world = world.clone();
            move || {
                let Some(request) = world.open_request(1) else { return };
                let ticket = world.must_track(0);
                drop(request);
                world.end(ticket);
            }
        });
        let mut drain = Drain::new(&world, Quiet::Short);
        drain.poll_twice();
        request.join().unwrap();
        drain.finish();
        world.check_drained();
    }

    /// Two drains are polled, and both end.
    two_drains: Depth::AtMost(3), {
        two_drains_with(Quiet::None);
    }

    /// Two drains, of which one would wait forever without the other.
    two_drains_one_of_which_is_quiet: Depth::AtMost(3), {
        two_drains_with(Quiet::Endless);
    }

    /// A drain that is dropped removes its registration, and not that of another drain.
    dropped_drain_against_drain: Depth::AtMost(3), {
        let world = World::new(4);
        let last = world.must_track(1);
        let ending = thread::spawn({
            let world = world.clone();
            move || world.end(last)
        });
        let mut dropped = Drain::new(&world, Quiet::Endless);
        let dropping = thread::spawn(move || {
            dropped.poll();
            dropped.task
        });
        let mut drain = Drain::new(&world, Quiet::None);
        drain.poll();
        ending.join().unwrap();
        let task = dropping.join().unwrap();
        assert!(task.is_forgotten(), "the waker of a dropped drain is kept");
        drain.finish();
        world.check_drained();
    }

    /// At each instant every accepted event is pending or has ended, also one that was a permit.
    conservation: Depth::Any, {
        let world = World::new(2);
        let by_permit = thread::spawn({
            let world = world.clone();
            move || {
                let permit = world.reserve(0);
                world.expect(permit.is_ok(), "an event was rejected that had to be accepted");
                permit.into_iter().for_each(|permit| world.fill(permit).end(Ending::Failed, None));
            }
        });
        let dropped = thread::spawn({
            let world = world.clone();
            move || drop(world.must_track(1))
        });
        let earlier = world.look();
        let later = world.look();
        world.expect(earlier.accepted <= later.accepted, "an event was not counted");
        by_permit.join().unwrap();
        dropped.join().unwrap();
        let now = world.look();
        assert_eq!((now.accepted, now.ended.failed, now.ended.aborted), (2, 1, 1), "an event was not counted");
        world.check_empty();
    }

    /// The last permit becomes an event, which ends, while a drain registers and looks.
    permit_against_drain: Depth::Any, {
        let world = World::new(4);
        let permit = world.reserve(1).unwrap();
        let filling = thread::spawn({
            let world = world.clone();
            move || {
                let ticket = world.fill(permit);
                world.end([ticket]);
            }
        });
        let mut drain = Drain::new(&world, Quiet::None);
        drain.poll_twice();
        filling.join().unwrap();
        drain.finish();
        world.check_drained();
    }

    /// The last permit becomes an event, which stays pending: the drain is woken, and sets the phase to `Closing`.
    permit_against_closing: Depth::Any, {
        let world = World::new(4);
        let permit = world.reserve(1).unwrap();
        let filling = thread::spawn({
            let world = world.clone();
            move || world.fill(permit)
        });
        let mut drain = Drain::new(&world, Quiet::None);
        drain.poll_twice();
        let ticket = filling.join().unwrap();
        drain.poll_on();
        assert!(drain.is_closing, "nobody woke the drain");
        world.end([ticket]);
        drain.finish();
        world.check_drained();
    }

    /// The last request is closed while its event stays pending: the drain is woken, and sets the phase to `Closing`.
    last_request_against_closing: Depth::Any, {
        let world = World::new(4);
        let request = world.open_request(1);
        let ticket = world.must_track(0);
        let closing = thread::spawn(move || drop(request));
        let mut drain = Drain::new(&world, Quiet::None);
        drain.poll_twice();
        closing.join().unwrap();
        drain.poll_on();
        assert!(drain.is_closing, "nobody woke the drain");
        world.end(ticket);
        drain.finish();
        world.check_drained();
    }

    /// The last event ends while a wait for idleness registers and looks.
    last_end_against_wait_idle: Depth::Any, {
        let world = World::new(4);
        let last = world.must_track(1);
        let ending = thread::spawn({
            let world = world.clone();
            move || world.end(last)
        });
        let mut wait = WaitIdle::new(&world);
        wait.poll();
        ending.join().unwrap();
        wait.finish();
        world.check_empty();
    }

    /// The last event tracks another one, which stays pending, before it ends: at each instant an event is pending.
    revival_against_wait_idle: Depth::Any, {
        let world = World::new(4);
        let last = world.must_track(1);
        let ending = thread::spawn({
            let world = world.clone();
            move || {
                let next = world.must_track_inside(0);
                world.end(last);
                next
            }
        });
        let mut wait = WaitIdle::new(&world);
        wait.poll();
        assert!(!wait.is_over, "a wait for idleness was over while an event was pending");
        let next = ending.join().unwrap();
        world.end(next);
        wait.finish();
        world.check_empty();
    }

    /// A wait for idleness beside a drain: the end of the last event wakes both.
    wait_idle_beside_drain: Depth::AtMost(3), {
        let world = World::new(4);
        let last = world.must_track(1);
        let ending = thread::spawn({
            let world = world.clone();
            move || world.end(last)
        });
        let mut wait = WaitIdle::new(&world);
        let waiting = thread::spawn(move || {
            wait.poll();
            wait
        });
        let mut drain = Drain::new(&world, Quiet::None);
        drain.poll();
        ending.join().unwrap();
        let mut wait = waiting.join().unwrap();
        wait.finish();
        drain.finish();
        world.check_drained();
    }
}

fn two_drains_with(quiet: Quiet) {
    let world = World::new(4);
    let last = world.must_track(1);
    let ending = thread::spawn({
        let world = world.clone();
        move || world.end(last)
    });
    let mut second = Drain::new(&world, quiet);
    let second = thread::spawn(move || {
        second.poll_twice();
        second
    });
    let mut first = Drain::new(&world, Quiet::None);
    first.poll_twice();
    ending.join().unwrap();
    let mut second = second.join().unwrap();
    for drain in iter::once(&mut first).chain([&mut second]) {
        drain.finish();
    }
    world.check_drained();
}

finds! {
    registration_after_the_last_look:
        "a drain registers after its last look", last_end_against_drain, "nobody woke the drain";
    wait_idle_that_registers_after_its_look:
        "a wait for idleness registers after its look", last_end_against_wait_idle, "nobody woke the wait for idleness";
    last_one_wakes_nobody:
        "the last one wakes nobody", last_end_against_drain, "nobody woke the drain";
    last_request_wakes_nobody:
        "the last one wakes nobody", last_request_against_closing, "nobody woke the drain";
    last_one_looks_for_waiters_too_early:
        "waiters are looked for before an entry is removed", last_end_against_drain, "nobody woke the drain";
    flag_is_set_too_early:
        "the flag of the waiters is set before the list is locked",
        two_ends_against_two_drains, "nobody woke the drain";
    flag_is_cleared_too_late:
        "the flag of the waiters is cleared after the list is unlocked",
        two_ends_against_two_drains, "nobody woke the drain";
    leaving_clears_the_flag:
        "a waiter that leaves clears the flag of the others", dropped_drain_against_drain, "nobody woke the drain";
    look_is_earlier_than_its_close:
        "a look counts under earlier locks", admission_against_drain, "the drain was over while something was open";
    shard_stays_open:
        "a change of the phase leaves a shard out", admission_against_drain, "something was accepted after the drain";
    close_wakes_nobody:
        "a drain that closes wakes nobody", two_drains_one_of_which_is_quiet, "nobody woke the drain";
    admission_under_two_locks:
        "the phase is looked at under an earlier lock",
        three_producers_against_drain, "the drain was over while something was open";
    slot_before_the_entry:
        "a slot is taken under an earlier lock than its entry",
        three_producers_against_drain, "the drain was over while something was open";
    ending_is_counted_late:
        "an ending is counted under a later lock", conservation, "an event is neither pending nor ended";
    permit_is_neither:
        "a permit becomes an event under two locks",
        permit_against_drain, "the drain was over while something was open";
    filled_permit_wakes_nobody:
        "the last permit that becomes an event wakes nobody", permit_against_closing, "nobody woke the drain";
    shards_one_after_the_other:
        "shards are counted one after the other",
        revival_against_wait_idle, "a wait for idleness was over while an event was pending";
}
