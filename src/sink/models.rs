//! Models of a queue, with the registry of its handle: see [`registry::models`](crate::registry::models).

use std::{
    panic::Location,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use loom::thread;
use tokio::sync::oneshot;

use crate::{
    context,
    drain::WaitIdle,
    error::TrackError,
    registry::{
        SinkSnapshot,
        models::{Depth, OBSERVED, Quiet, Task, finds, models},
    },
    sink::{
        delivery::{FlightId, Work},
        flush::Flush,
        queue::{Batching, EventQueue},
    },
};

type World = crate::registry::models::World<context::Context>;
type Drain = crate::registry::models::Drain<context::Context>;

fn world() -> World {
    let settings = context::Settings {
        capacity: 2,
        quiet_period: Duration::ZERO,
        event_timeout: None,
        concurrency_limit: None,
        last_call: None,
        progress: Duration::ZERO,
        runtime: None,
    };
    World::with(2, context::Context::new(settings))
}

/// A queue, and the steps of a worker of which only the service is missing.
struct Queue(Arc<EventQueue<u8>>);

impl Queue {
    fn new(world: &World) -> Arc<Self> {
        Self::with(world, 2, Duration::ZERO)
    }

    fn with(world: &World, capacity: u64, max_delay: Duration) -> Arc<Self> {
        let batching = Batching { max_batch: 2, max_bytes: None, max_delay, capacity, max_in_flight: 1 };
        let (shard, location) = (Arc::clone(&world.shards[0]), Location::caller());
        Arc::new(Self(EventQueue::new(shard, "source", location, batching, Some(Box::new(|_| ())))))
    }

    fn send(&self, world: &World) -> Result<(), TrackError> {
        let was_drained = world.is_drained();
        let sent = self.0.try_send(0).map_err(|(_, error)| error);
        if sent.is_ok() {
            world.expect(!was_drained, "something was accepted after the drain");
            world.expect(!world.is_drained(), "the drain was over while something was open");
            world.accepted.fetch_add(1, OBSERVED);
        }
        sent
    }

    fn reserve(&self) -> Result<usize, TrackError> {
        self.0.try_reserve(Location::caller())
    }

    /// Sends a value in the slot of a permit. The receiver gets its ending.
    fn send_reserved(&self, world: &World, permit: usize) -> oneshot::Receiver<Result<(), Option<String>>> {
        let (ack, acked) = oneshot::channel();
        world.accepted.fetch_add(1, OBSERVED);
        self.0.send_reserved(permit, 0, None, Some(ack));
        world.expect(!world.is_drained(), "the drain was over while something was open");
        acked
    }

    /// Takes a batch for delivery.
    fn next(&self) -> Option<FlightId> {
        match self.0.work(0) {
            Work::Deliver(id) => Some(id),
            Work::Wait(_) | Work::End => None,
        }
    }

    /// A batch was delivered.
    fn answered(&self, id: FlightId) {
        self.0.answered(id, Ok(()), None);
        self.0.forget(id);
    }

    fn deliver(&self) {
        while let Some(id) = self.next() {
            self.answered(id);
        }
    }

    fn snapshot(&self) -> SinkSnapshot {
        self.0.snapshot()
    }
}

/// A sender that waits for capacity.
struct Sender {
    queue: Arc<Queue>,
    task: Task,
    waiter: Option<u64>,
    permit: Option<usize>,
}

impl Sender {
    fn new(queue: &Arc<Queue>) -> Self {
        Self { queue: Arc::clone(queue), task: Task::default(), waiter: None, permit: None }
    }

    fn poll(&mut self) {
        let waker = self.task.waker();
        if let Poll::Ready(permit) = self.queue.0.poll_reserve(&mut self.waiter, Location::caller(), &waker) {
            self.permit = Some(permit.expect("the queue is open"));
        }
    }

    /// Polls while it is woken.
    fn poll_on(&mut self) {
        while self.permit.is_none() && self.task.is_woken() {
            self.poll();
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        if let Some(waiter) = self.waiter {
            self.queue.0.stop_waiting(waiter);
        }
        if let Some(permit) = self.permit {
            self.queue.0.release(permit);
        }
    }
}

/// A future without a limit, that is polled while it is woken.
struct Wait<F> {
    task: Task,
    future: Pin<Box<F>>,
    is_over: bool,
}

impl<F: Future> Wait<F> {
    fn new(future: F) -> Self {
        Self { task: Task::default(), future: Box::pin(future), is_over: false }
    }

    fn poll_on(&mut self) {
        while !self.is_over && self.task.is_woken() {
            let waker = self.task.waker();
            self.is_over = self.future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        }
    }
}

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

    /// An abort takes a batch away while it is delivered: its values end once.
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

    /// An abort and a drain that has timed out take the same values away while they are delivered: they end once.
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

    /// A drain waits for values that were taken away and have not ended.
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
        world.expect(!drain.is_over || queue.snapshot().ended.total() == 1, "the drain was over while something was open");
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

    /// The last permit of a source becomes a value, which stays pending: the drain is woken, and accepts no more from
    /// outside.
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

    /// A late permit, taken inside an event: it is granted, and while it is held nobody is rejected.
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
        // It may look at any time.
        drain.poll();
        drain.poll();
        inside.join().unwrap();
        world.end(pending);
        drain.finish();
        world.check_drained();
    }

    /// An awaited value is delivered while an abort takes it away: its sender gets its ending.
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

    /// A slot is given to a sender that stops to wait at this time: the next one gets it.
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
        // The phase was set.
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
