//! Waits for the queue: acknowledgements, senders, the worker, flushes, a wait for idleness.

use std::{sync::Arc, time::Duration};

use loom::thread;

use crate::{
    drain::WaitIdle,
    registry::models::{Depth, finds, models},
    sink::{
        flush::Flush,
        models::{Queue, Sender, Wait, world},
    },
};

models! {
    /// An awaited value is delivered while an abort detaches it: its sender gets its ending.
    acknowledgement_against_abort: Depth::Any, {
        let world = world();
        let queue = Queue::new(&world);
        let mut acked = queue.send_reserved(&world, queue.reserve().unwrap());
        let delivering = thread::spawn({
            let queue = Arc::clone(&queue);
            move || queue.deliver()
        });
        world.registry.abort();
        delivering.join().unwrap();
        let now = queue.snapshot();
        assert_eq!((now.pending, now.ended.total()), (0, 1), "a value did not end once");
        let is_taken = acked.try_recv().expect("the value has ended").is_ok();
        assert_eq!(is_taken, now.ended.completed == 1, "an acknowledgement is wrong");
        world.check_empty();
    }

    /// A sender gets the acknowledgement of its value: then the value has ended.
    acknowledgement_against_delivery: Depth::Any, {
        let world = world();
        let queue = Queue::new(&world);
        let delivering = thread::spawn({
            let queue = Arc::clone(&queue);
            move || queue.deliver()
        });
        let mut acked = queue.send_reserved(&world, queue.reserve().unwrap());
        let is_taken = acked.try_recv().is_ok();
        let ended = queue.snapshot().ended.completed;
        assert!(!is_taken || ended == 1, "an acknowledgement came before the end");
        delivering.join().unwrap();
        queue.deliver();
        world.check_empty();
    }

    /// A value ends while a sender begins to wait for its slot.
    sender_that_waits_against_delivery: Depth::Any, {
        let world = world();
        let queue = Queue::with(&world, 1, Duration::ZERO);
        queue.send(&world).unwrap();
        let delivering = thread::spawn({
            let queue = Arc::clone(&queue);
            move || queue.deliver()
        });
        let mut sender = Sender::new(&queue);
        sender.poll_on();
        delivering.join().unwrap();
        sender.poll_on();
        assert!(sender.permit.is_some(), "a sender waits while a slot is free");
        drop(sender);
        world.check_empty();
    }

    /// A slot is granted to a sender that stops waiting at the same time: the next sender gets it.
    slot_that_is_not_taken: Depth::Any, {
        let world = world();
        let queue = Queue::with(&world, 1, Duration::ZERO);
        queue.send(&world).unwrap();
        let [mut first, mut second] = [(); 2].map(|()| Sender::new(&queue));
        first.poll();
        second.poll();
        let leaving = thread::spawn(move || drop(first));
        queue.deliver();
        leaving.join().unwrap();
        second.poll_on();
        assert!(second.permit.is_some(), "a sender waits while a slot is free");
        drop(second);
        world.check_empty();
    }

    /// A value is sent while the worker looks for the last time before it sleeps.
    send_against_worker_that_sleeps: Depth::Any, {
        let world = world();
        let queue = Queue::new(&world);
        // A notification is pending, because the phase was set.
        Wait::new(queue.0.changed()).poll_on();
        let sending = thread::spawn({
            let (world, queue) = (world.clone(), Arc::clone(&queue));
            move || queue.send(&world).unwrap()
        });
        queue.deliver();
        sending.join().unwrap();
        let mut notified = Wait::new(queue.0.changed());
        notified.poll_on();
        assert!(notified.is_over || queue.snapshot().pending == 0, "the worker sleeps while a value is due");
        queue.deliver();
        world.check_empty();
    }

    /// A flush registers while the value that it waits for is delivered.
    flush_against_delivery: Depth::Any, {
        let world = world();
        let queue = Queue::with(&world, 2, Duration::MAX);
        queue.send(&world).unwrap();
        let mut flush = Wait::new(Flush::new(Arc::clone(&queue.0), Duration::MAX));
        let delivering = thread::spawn({
            let queue = Arc::clone(&queue);
            move || queue.deliver()
        });
        flush.poll_on();
        delivering.join().unwrap();
        queue.deliver();
        flush.poll_on();
        assert!(flush.is_over, "nobody woke the flush");
        world.check_empty();
    }

    /// A value is sent to a sink while a wait for idleness looks: the wait flushes it, now or later.
    send_against_wait_for_idleness: Depth::AtMost(4), {
        let world = world();
        let queue = Queue::with(&world, 2, Duration::MAX);
        let event = world.must_track(1);
        let sending = thread::spawn({
            let (world, queue) = (world.clone(), Arc::clone(&queue));
            move || {
                queue.send(&world).unwrap();
                world.end(event);
            }
        });
        let mut idle = Wait::new(WaitIdle::new(world.registry.shards(), Duration::MAX));
        idle.poll_on();
        sending.join().unwrap();
        idle.poll_on();
        queue.deliver();
        idle.poll_on();
        assert!(idle.is_over, "a wait for idleness has not flushed a value");
        world.check_empty();
    }
}

finds! {
    slot_that_is_not_granted:
        "a free slot is granted to nobody", sender_that_waits_against_delivery, "a sender waits while a slot is free";
    lost_slot:
        "a slot that is not taken is lost", slot_that_is_not_taken, "a sender waits while a slot is free";
    worker_that_oversleeps:
        "the worker looks before it says when to notify it",
        send_against_worker_that_sleeps, "the worker sleeps while a value is due";
    flush_that_registers_late:
        "a flush registers after its look", flush_against_delivery, "nobody woke the flush";
    wait_that_flushes_first:
        "a wait for idleness flushes before it looks",
        send_against_wait_for_idleness, "a wait for idleness has not flushed a value";
}
