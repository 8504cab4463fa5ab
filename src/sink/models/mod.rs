//! Models of a queue, with the registry of its handle: see [`registry::models`](crate::registry::models).

mod source;
mod waiting;

use std::{
    panic::Location,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::sync::oneshot;

use crate::{
    context,
    error::TrackError,
    registry::{
        SinkSnapshot,
        models::{OBSERVED, Task},
    },
    sink::{
        delivery::{FlightId, Work},
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

/// A queue, and the steps of a worker without a service.
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

    /// Ends a batch as delivered.
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

/// A future without a limit, which is polled while it is woken.
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
