//! The queue as a source of the registry: drains, aborts, permits, retirement.

use std::sync::Arc;

use loom::thread;

use crate::{
    registry::models::{Depth, Quiet, finds, models},
    sink::models::{Drain, Queue, world},
};

models! {
    /// A value is sent from outside and delivered, against a drain.
    send_against_drain: Depth::Any, {
        let world = world();
        let queue = Queue::new(&world);
        let sending = thread::spawn({
            let (world, queue) = (world.clone(), Arc::clone(&queue));
            move || {
                let sent = queue.send(&world);
                world.expect(sent.is_ok() || queue.next().is_none(), "a value was rejected and kept");
                queue.deliver();
            }
        });
        let mut drain = Drain::new(&world, Quiet::None);
        drain.poll_twice();
        sending.join().unwrap();
        drain.finish();
        world.check_drained();
        assert!(queue.send(&world).is_err(), "something was accepted after the drain");
    }

    /// A sender and a worker on threads of their own, against a drain.
    send_and_delivery_against_drain: Depth::AtMost(3), {
        let world = world();
        let queue = Queue::new(&world);
        queue.send(&world).unwrap();
        let sending = thread::spawn({
            let (world, queue) = (world.clone(), Arc::clone(&queue));
            move || {
                // It may be rejected.
                let _ = queue.send(&world);
            }
        });
        let delivering = thread::spawn({
            let queue = Arc::clone(&queue);
            move || queue.deliver()
        });
        let mut drain = Drain::new(&world, Quiet::None);
        drain.poll_twice();
        sending.join().unwrap();
        delivering.join().unwrap();
        queue.deliver();
        drain.finish();
        world.check_drained();
    }

    /// The last event sends a value before it ends, while a drain registers and looks.
    event_that_sends_against_drain: Depth::Any, {
        let world = world();
        let queue = Queue::new(&world);
        let last = world.must_track(1);
        let ending = thread::spawn({
            let (world, queue) = (world.clone(), Arc::clone(&queue));
            move || {
                let sent = world.inside(|| queue.send(&world));
                world.expect(sent.is_ok(), "an event was rejected that had to be accepted");
                world.end(last);
            }
        });
        let mut drain = Drain::new(&world, Quiet::None);
        drain.poll_twice();
        assert!(!drain.is_over, "the drain was over while something was open");
        ending.join().unwrap();
        queue.deliver();
        drain.finish();
        world.check_drained();
    }

    /// A delivery tracks an event before the last value ends, while a drain registers and looks.
    delivery_that_tracks_against_drain: Depth::Any, {
        let world = world();
        let queue = Queue::new(&world);
        queue.send(&world).unwrap();
        let delivering = thread::spawn({
            let (world, queue) = (world.clone(), Arc::clone(&queue));
            move || {
                let delivery = queue.next();
                let tracked = world.must_track_inside(1);
                delivery.into_iter().for_each(|delivery| queue.answered(delivery));
                world.end(tracked);
            }
        });
        let mut drain = Drain::new(&world, Quiet::None);
        drain.poll_twice();
        delivering.join().unwrap();
        drain.finish();
        world.check_drained();
    }

    /// At each instant every value is pending or has ended.
    conservation_in_a_source: Depth::AtMost(4), {
        let world = world();
        let queue = Queue::new(&world);
        let delivering = thread::spawn({
            let (world, queue) = (world.clone(), Arc::clone(&queue));
            move || {
                // It may be rejected.
                let _ = queue.send(&world);
                queue.deliver();
            }
        });
        let tracking = thread::spawn({
            let world = world.clone();
            move || world.end(world.track(1))
        });
        world.look();
        world.look();
        delivering.join().unwrap();
        tracking.join().unwrap();
        assert_eq!(world.look().ended.completed, 2, "an event was not counted");
        world.check_empty();
    }

    /// An abort detaches a batch while it is delivered: its values end once.
    abort_against_delivery: Depth::Any, {
        let world = world();
        let queue = Queue::new(&world);
        queue.send(&world).unwrap();
        let delivering = thread::spawn({
            let queue = Arc::clone(&queue);
            move || queue.deliver()
        });
        world.registry.abort();
        delivering.join().unwrap();
        let now = world.look();
        assert_eq!((now.pending, now.ended.total()), (0, 1), "a value did not end once");
        world.check_empty();
    }

    /// An abort and a drain that has timed out detach the same values while they are delivered: they end once.
    two_detaches_against_delivery: Depth::AtMost(4), {
        let world = world();
        let queue = Queue::new(&world);
        queue.send(&world).unwrap();
        let delivering = thread::spawn({
            let queue = Arc::clone(&queue);
            move || queue.deliver()
        });
        let aborting = thread::spawn({
            let world = world.clone();
            move || world.registry.abort()
        });
        world.registry.detach_undelivered().into_iter().for_each(|detached| (detached.end)());
        delivering.join().unwrap();
        aborting.join().unwrap();
        let now = world.look();
        assert_eq!((now.pending, now.ended.total()), (0, 1), "a value did not end once");
        world.check_empty();
    }

    /// A drain waits for values that were detached and have not ended.
    detach_against_drain: Depth::Any, {
        let world = world();
        let queue = Queue::new(&world);
        queue.send(&world).unwrap();
        let aborting = thread::spawn({
            let world = world.clone();
            move || world.registry.abort()
        });
        let mut drain = Drain::new(&world, Quiet::None);
        drain.poll_twice();
        let has_ended = || queue.snapshot().ended.total() == 1;
        world.expect(!drain.is_over || has_ended(), "the drain was over while something was open");
        aborting.join().unwrap();
        drain.finish();
        world.check_drained();
    }

    /// A source is added while a drain closes: it is closed as well.
    add_against_drain: Depth::Any, {
        let world = world();
        let adding = thread::spawn({
            let world = world.clone();
            move || {
                let queue = Queue::new(&world);
                // It may be rejected.
                let _ = queue.send(&world);
                queue.deliver();
            }
        });
        let mut drain = Drain::new(&world, Quiet::None);
        drain.poll_twice();
        adding.join().unwrap();
        drain.finish();
        world.check_drained();
    }

    /// A source retires: at every instant its counts are there once.
    retire_against_look: Depth::Any, {
        let world = world();
        let queue = Queue::new(&world);
        queue.send(&world).unwrap();
        queue.deliver();
        let retiring = thread::spawn({
            let world = world.clone();
            move || world.registry.retire_source(&queue.0.as_source())
        });
        assert_eq!(world.look().accepted, 1, "the counts of a source were not there once");
        assert_eq!(world.registry.sinks().len(), 1, "the counts of a source were not there once");
        retiring.join().unwrap();
        assert_eq!(world.look().accepted, 1, "the counts of a source were not there once");
        world.check_empty();
    }

    /// A source retires after its last value has ended, while a drain registers and looks.
    retire_against_drain: Depth::Any, {
        let world = world();
        let queue = Queue::new(&world);
        queue.send(&world).unwrap();
        let retiring = thread::spawn({
            let world = world.clone();
            move || {
                queue.deliver();
                world.registry.retire_source(&queue.0.as_source());
            }
        });
        let mut drain = Drain::new(&world, Quiet::None);
        drain.poll_twice();
        retiring.join().unwrap();
        drain.finish();
        world.check_drained();
    }

    /// The last permit of a source becomes a value, which stays pending: the drain is woken, and sets the phase to
    /// `Closing`.
    permit_against_closing: Depth::Any, {
        let world = world();
        let queue = Queue::new(&world);
        let permit = queue.reserve().unwrap();
        let sending = thread::spawn({
            let (world, queue) = (world.clone(), Arc::clone(&queue));
            move || drop(queue.send_reserved(&world, permit))
        });
        let mut drain = Drain::new(&world, Quiet::None);
        drain.poll_twice();
        sending.join().unwrap();
        drain.poll_on();
        assert!(drain.is_closing, "nobody woke the drain");
        queue.deliver();
        drain.finish();
        world.check_drained();
    }

    /// A late permit, taken inside an event: it is granted, and while it is held nothing is rejected.
    late_permit_against_closing: Depth::AtMost(4), {
        let world = world();
        let queue = Queue::new(&world);
        let pending = world.must_track(1);
        let inside = thread::spawn({
            let (world, queue) = (world.clone(), Arc::clone(&queue));
            move || {
                let permit = world.inside(|| queue.reserve()).expect("there is capacity");
                let from_outside = world.must_track(0);
                world.end(from_outside);
                drop(queue.send_reserved(&world, permit));
                queue.deliver();
            }
        });
        let mut drain = Drain::new(&world, Quiet::None);
        // The drain may look at any time.
        drain.poll();
        drain.poll();
        inside.join().unwrap();
        world.end(pending);
        drain.finish();
        world.check_drained();
    }
}

finds! {
    source_stays_open:
        "a source is added without the lock of a shard", add_against_drain, "something was accepted after the drain";
    source_is_closed_late:
        "sources change their phase under later locks",
        send_against_drain, "the drain was over while something was open";
    value_is_counted_late:
        "a value is counted under a later lock than the phase is looked at",
        send_against_drain, "the drain was over while something was open";
    value_ends_under_two_locks:
        "the end of a value is counted under a later lock",
        conservation_in_a_source, "an event is neither pending nor ended";
    last_value_wakes_nobody:
        "the last value of a source wakes nobody", send_and_delivery_against_drain, "nobody woke the drain";
    last_permit_wakes_nobody:
        "the last permit of a source wakes nobody", permit_against_closing, "nobody woke the drain";
    counts_are_gone_for_a_moment:
        "the counts of a source are taken over under a later lock",
        retire_against_look, "the counts of a source were not there once";
    permit_after_the_reopening:
        "a permit of a source is taken after the registry was opened again",
        late_permit_against_closing, "an event was rejected that had to be accepted";
}
