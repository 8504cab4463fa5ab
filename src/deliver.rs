//! The task that delivers what is sent to a sink.

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
    batch::EventSink,
    contain::contain,
    inside,
    limit::Limit,
    queue::{Answer, Due, EventQueue, Next},
};

/// How a batch is attempted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempts {
    pub(crate) timeout: Duration,
    pub(crate) first_wait: Duration,
    pub(crate) longest_wait: Duration,
    pub(crate) max: Option<u32>,
}

impl Attempts {
    fn waits(&self) -> impl Iterator<Item = Duration> + use<> {
        ExponentialBuilder::default()
            .with_min_delay(self.first_wait)
            .with_max_delay(self.longest_wait)
            .without_max_times()
            .with_jitter()
            .build()
    }
}

/// Has the sink, and ends the queue when it is dropped: also by a runtime that shuts down.
pub(crate) struct Delivery<E: Send + Sync + 'static, S> {
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
    /// Somebody waits for the events.
    Hurried,
    /// The events are not to be delivered any more.
    GivenUp,
}

impl<E, S> Delivery<E, S>
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
        let _ = contain(|| drop(sink));
        drop(ending);
    }

    /// Attempts to deliver until the batch is delivered, rejected, or somebody else's.
    async fn deliver(&mut self, queue: &EventQueue<E>, due: &Due<E>) -> Answer {
        let (sink, events) = (queue.name(), due.batch.len());
        let span =
            contain(|| tracing::info_span!(parent: None, "deliver", sink, events)).unwrap_or_else(|_| Span::none());
        let mut waits = self.attempts.waits();
        let mut hurries = queue.hurries();
        for attempt in 1.. {
            let Some(outcome) = self.attempt(queue, due, &span).await else { return Answer::NotAsked };
            let Err(error) = outcome else {
                if attempt > 1 {
                    let _ = contain(|| tracing::info!(parent: &span, sink, events, attempt, "batch delivered"));
                }
                return Answer::Delivered;
            };
            if self.attempts.max.is_some_and(|max| attempt >= max) {
                queue.attempt_failed(error);
                return Answer::Rejected;
            }
            let wait = waits.next().unwrap_or(self.attempts.longest_wait);
            let _ = contain(|| {
                let again_in = wait;
                tracing::warn!(
                    parent: &span, sink, events, attempt, error, ?again_in,
                    "batch not delivered, and will be tried again"
                );
            });
            queue.attempt_failed(error);
            match pause(queue, due, wait, &mut hurries).await {
                Pause::Over => {}
                Pause::Hurried => waits = self.attempts.waits(),
                Pause::GivenUp => break,
            }
        }
        Answer::NotAsked
    }

    /// Gives none if the batch has been taken away meanwhile.
    async fn attempt(&mut self, queue: &EventQueue<E>, due: &Due<E>, span: &Span) -> Option<Result<(), String>> {
        let ledger = queue.shard.ledger_id();
        let limit = self.attempts.timeout;
        let mut delivery = match enter(ledger, span, || Box::pin(self.sink.deliver(due.batch.clone()))) {
            Ok(delivery) => Some(delivery),
            Err(panic) => return Some(Err(panicked(&panic))),
        };
        let mut over = Limit::after(limit);
        let mut changed = pin!(queue.changed());
        let outcome = poll_fn(|cx| {
            // A notification comes when the batch is taken away; others are of no interest here.
            while changed.as_mut().poll(cx).is_ready() {
                changed.set(queue.changed());
            }
            if !queue.is_due(due.generation) {
                return Poll::Ready(None);
            }
            let polled = enter(ledger, span, || {
                let Some(delivery) = &mut delivery else { return Poll::Pending };
                Poll::Ready(ready!(delivery.as_mut().poll(cx)).map_err(|error| error.to_string()))
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
        let _ = enter(ledger, span, || delivery.take());
        outcome
    }
}

fn panicked(message: &str) -> String {
    format!("the sink panicked: {message}")
}

/// Runs code of the sink.
fn enter<T>(ledger: usize, span: &Span, run: impl FnOnce() -> T) -> Result<T, String> {
    inside::enter(ledger, || contain(|| span.in_scope(run)))
}

/// Waits before the next attempt.
async fn pause<E: Send + Sync + 'static>(
    queue: &EventQueue<E>,
    due: &Due<E>,
    wait: Duration,
    hurries: &mut u64,
) -> Pause {
    let deadline = Instant::now() + wait;
    // The time may be none at all.
    yield_now().await;
    loop {
        if !queue.is_due(due.generation) {
            return Pause::GivenUp;
        }
        let before = std::mem::replace(hurries, queue.hurries());
        if *hurries != before {
            return Pause::Hurried;
        }
        if timeout_at(deadline, queue.changed()).await.is_err() {
            return Pause::Over;
        }
    }
}
