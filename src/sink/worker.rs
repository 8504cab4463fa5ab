//! The task that delivers batches to a sink.

use std::{
    future::poll_fn,
    pin::pin,
    sync::Arc,
    task::{Poll, ready},
    time::Duration,
};

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::{
    task::yield_now,
    time::{Instant, timeout, timeout_at},
};
use tracing::Span;

use crate::{
    sink::{
        batch::EventSink,
        queue::{Answer, Due, EventQueue, Next},
    },
    util::{
        deadline::Deadline,
        panic::catch,
        reentrancy,
        text::{OneLine, one_line},
    },
};

/// How a batch is attempted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempts {
    pub(crate) timeout: Duration,
    pub(crate) first_backoff: Duration,
    pub(crate) longest_backoff: Duration,
    pub(crate) max: Option<u32>,
}

impl Attempts {
    fn backoffs(&self) -> impl Iterator<Item = Duration> + use<> {
        ExponentialBuilder::default()
            .with_min_delay(self.first_backoff)
            .with_max_delay(self.longest_backoff)
            .without_max_times()
            .with_jitter()
            .build()
    }
}

/// Owns the sink, and ends the queue when it is dropped, also by a runtime that shuts down.
pub(crate) struct Worker<E: Send + Sync + 'static, S> {
    sink: S,
    attempts: Attempts,
    ending: EndQueue<E>,
}

/// Dropped after the sink, and after the attempt that borrows it.
struct EndQueue<E: Send + Sync + 'static>(Arc<EventQueue<E>>);

impl<E: Send + Sync + 'static> Drop for EndQueue<E> {
    fn drop(&mut self) {
        self.0.die();
    }
}

/// How a pause between two attempts has ended.
enum Pause {
    Over,
    /// A drain or a flush waits for the events.
    Flushed,
    /// The batch was detached.
    Detached,
}

impl<E, S> Worker<E, S>
where
    E: Send + Sync + 'static,
    S: EventSink<E>,
{
    pub(crate) fn new(queue: Arc<EventQueue<E>>, sink: S, attempts: Attempts) -> Self {
        Self { sink, attempts, ending: EndQueue(queue) }
    }

    pub(crate) async fn run(mut self) {
        let queue = Arc::clone(&self.ending.0);
        loop {
            match queue.next() {
                Next::Deliver(due) => {
                    let answer = self.deliver(&queue, &due).await;
                    queue.answered(due, answer);
                    // A sink that never waits and senders that never stop would keep a thread to themselves.
                    yield_now().await;
                }
                Next::Wait(None) => queue.changed().await,
                // The time that is over is seen by the next look.
                Next::Wait(Some(delay)) => drop(timeout(delay, queue.changed()).await),
                Next::End => break,
            }
        }
        let Self { sink, attempts: _, ending } = self;
        let _ = catch(|| drop(sink));
        drop(ending);
    }

    /// Attempts to deliver until the batch is delivered, has had its last attempt, or is detached.
    async fn deliver(&mut self, queue: &EventQueue<E>, due: &Due<E>) -> Answer {
        let (sink, events) = (queue.name, due.batch.len());
        let span = tracing::info_span!(parent: None, "deliver", sink, events);
        let mut backoffs = self.attempts.backoffs();
        let mut flushes = queue.flushes();
        for attempt in 1.. {
            let Some(outcome) = self.attempt(queue, due, &span).await else { return Answer::Detached };
            let Err(error) = outcome else {
                if attempt > 1 {
                    tracing::info!(parent: &span, sink, events, attempt, "batch delivered");
                }
                return Answer::Delivered;
            };
            if self.attempts.max.is_some_and(|max| attempt >= max) {
                queue.attempt_failed(error);
                return Answer::NotDelivered;
            }
            let wait = backoffs.next().unwrap_or(self.attempts.longest_backoff);
            tracing::warn!(
                parent: &span, sink, events, attempt, error, retry_in = ?wait,
                "batch not delivered, and will be retried"
            );
            queue.attempt_failed(error);
            match pause(queue, due, wait, &mut flushes).await {
                Pause::Over => {}
                Pause::Flushed => backoffs = self.attempts.backoffs(),
                Pause::Detached => break,
            }
        }
        Answer::Detached
    }

    /// Returns `None` if the batch was detached meanwhile.
    async fn attempt(&mut self, queue: &EventQueue<E>, due: &Due<E>, span: &Span) -> Option<Result<(), String>> {
        let registry = queue.shard.registry.id();
        let limit = self.attempts.timeout;
        let mut delivery = match enter(registry, span, || Box::pin(self.sink.deliver(due.batch.clone()))) {
            Ok(delivery) => Some(delivery),
            Err(panic) => return Some(Err(panicked(&panic))),
        };
        let mut over = Deadline::after(limit);
        let mut changed = pin!(queue.changed());
        let outcome = poll_fn(|cx| {
            // A notification comes when the batch is detached; others do not matter here.
            while changed.as_mut().poll(cx).is_ready() {
                changed.set(queue.changed());
            }
            if !queue.is_due(due) {
                return Poll::Ready(None);
            }
            let polled = enter(registry, span, || {
                let Some(delivery) = &mut delivery else { return Poll::Pending };
                Poll::Ready(ready!(delivery.as_mut().poll(cx)).map_err(|error| one_line(&error.to_string())))
            });
            match polled {
                Ok(Poll::Ready(result)) => Poll::Ready(Some(result)),
                Err(panic) => Poll::Ready(Some(Err(panicked(&panic)))),
                // The runtime had a timer when the sink was built.
                Ok(Poll::Pending) if over.poll(cx).unwrap_or(false) => {
                    Poll::Ready(Some(Err(format!("the sink has not answered within {limit:?}"))))
                }
                Ok(Poll::Pending) => Poll::Pending,
            }
        })
        .await;
        // What it owns, a clone of the batch too, is gone before the batch ends.
        let _ = enter(registry, span, || delivery.take());
        outcome
    }
}

fn panicked(message: &str) -> String {
    format!("the sink panicked: {}", OneLine(message))
}

/// Runs code of the sink.
fn enter<T>(registry: usize, span: &Span, run: impl FnOnce() -> T) -> Result<T, String> {
    reentrancy::enter(registry, || span.in_scope(|| catch(run)))
}

/// Waits before the next attempt.
async fn pause<E: Send + Sync + 'static>(
    queue: &EventQueue<E>,
    due: &Due<E>,
    wait: Duration,
    flushes: &mut u64,
) -> Pause {
    let deadline = Instant::now() + wait;
    // The time may be none at all.
    yield_now().await;
    loop {
        if !queue.is_due(due) {
            return Pause::Detached;
        }
        let before = std::mem::replace(flushes, queue.flushes());
        if *flushes != before {
            return Pause::Flushed;
        }
        if timeout_at(deadline, queue.changed()).await.is_err() {
            return Pause::Over;
        }
    }
}
