//! The task that delivers batches to the service of a sink.

use std::{
    future::poll_fn,
    mem,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::{
    sync::Mutex,
    task::yield_now,
    time::{Sleep, sleep},
};
use tower_service::Service;
use tracing::Span;

use crate::{
    event::BoxError,
    sink::{
        batch::Batch,
        delivery::{Failure, FlightId, Next, Owner, Running, Work},
        error::{Meaning, meaning},
        flight::Wait,
        queue::EventQueue,
    },
    util::{
        deadline::Deadline,
        text::{OneLine, error_chain},
    },
};

/// After this number of errors of `poll_ready` in a row, the service is given up.
const MOST_FAILURES_BEFORE_A_CALL: u32 = 2;

/// The settings of attempts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempts {
    pub(super) timeout: Duration,
    pub(super) first_backoff: Duration,
    pub(super) longest_backoff: Duration,
    pub(super) max: Option<u32>,
}

impl Attempts {
    fn backoffs(&self) -> impl Iterator<Item = Duration> + Send + use<> {
        ExponentialBuilder::default()
            .with_min_delay(self.first_backoff)
            .with_max_delay(self.longest_backoff)
            .without_max_times()
            .with_jitter()
            .build()
    }
}

/// The task that delivers. It owns the service. When it is dropped, also by a runtime that shuts down, it ends the
/// queue.
pub(super) struct Worker<E: Send + Sync + 'static, S> {
    deliveries: Vec<Delivery>,
    /// Dropped after the deliveries, which share it.
    service: Arc<Mutex<Place<S>>>,
    ending: EndQueue<E>,
    attempts: Attempts,
}

/// The service. A delivery locks it until it has called the service.
struct Place<S> {
    service: S,
    /// The number of errors of `poll_ready` in a row.
    failures: u32,
}

/// The delivery of one batch, with all of its attempts.
struct Delivery {
    id: FlightId,
    run: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl<E: Send + Sync + 'static, S> Drop for Worker<E, S> {
    fn drop(&mut self) {
        // Each may own a response future of the user. A second panic while unwinding would abort the process.
        for Delivery { run, .. } in self.deliveries.drain(..) {
            let _ = self.ending.0.0.enter(|| drop(run));
        }
    }
}

/// Ends the values of the queue when it is dropped. The worker drops it after the service.
struct EndQueue<E: Send + Sync + 'static>(Owner<E>);

impl<E: Send + Sync + 'static> Drop for EndQueue<E> {
    fn drop(&mut self) {
        self.0.0.die();
    }
}

impl<E, S> Worker<E, S>
where
    E: Send + Sync + 'static,
    S: Service<Batch<E>, Error: Into<BoxError>, Future: Send> + Send + 'static,
{
    pub(super) fn new(queue: Arc<EventQueue<E>>, service: S, attempts: Attempts) -> Self {
        let service = Arc::new(Mutex::new(Place { service, failures: 0 }));
        Self { deliveries: Vec::new(), service, ending: EndQueue(Owner::new(queue)), attempts }
    }

    pub(super) async fn run(mut self) {
        let queue = Arc::clone(&self.ending.0.0);
        let mut changed = pin!(queue.changed());
        let mut delay = None;
        poll_fn(|cx| {
            while changed.as_mut().poll(cx).is_ready() {
                changed.set(queue.changed());
            }
            self.poll(&queue, &mut delay, cx)
        })
        .await;
    }

    /// Returns `Ready` when nothing is left to deliver.
    fn poll(
        &mut self,
        queue: &Arc<EventQueue<E>>,
        delay: &mut Option<Pin<Box<Sleep>>>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        queue.wake_senders_while_closing();
        self.end_deliveries(queue, |delivery| queue.is_detached(delivery.id));
        loop {
            match queue.work(self.deliveries.len()) {
                Work::Deliver(id) => self.deliveries.push(self.delivery(queue, id)),
                Work::End => return Poll::Ready(()),
                Work::Wait(None) => {
                    *delay = None;
                    break;
                }
                Work::Wait(Some(left)) => {
                    let sleep = delay.insert(Box::pin(sleep(left)));
                    if sleep.as_mut().poll(cx).is_pending() {
                        break;
                    }
                }
            }
        }
        let before = self.deliveries.len();
        self.end_deliveries(queue, |delivery| delivery.run.as_mut().poll(cx).is_ready());
        if self.deliveries.len() < before {
            // There may be another batch. It is taken in the next poll: a service that is always ready would otherwise
            // occupy the thread.
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Drops the deliveries for which `is_over` returns true.
    fn end_deliveries(&mut self, queue: &Arc<EventQueue<E>>, mut is_over: impl FnMut(&mut Delivery) -> bool) {
        let mut index = 0;
        while index < self.deliveries.len() {
            if !is_over(&mut self.deliveries[index]) {
                index += 1;
                continue;
            }
            let Delivery { id, run } = self.deliveries.remove(index);
            // It may own a response future of the user.
            let _ = queue.enter(|| drop(run));
            queue.forget(id);
        }
    }

    fn delivery(&self, queue: &Arc<EventQueue<E>>, id: FlightId) -> Delivery {
        let run = deliver(Arc::clone(&self.service), Arc::clone(queue), id, self.attempts);
        Delivery { id, run: Box::pin(run) }
    }
}

/// Delivers a batch: attempts its pieces until all of them have ended.
async fn deliver<E, S>(service: Arc<Mutex<Place<S>>>, queue: Arc<EventQueue<E>>, id: FlightId, attempts: Attempts)
where
    E: Send + Sync + 'static,
    S: Service<Batch<E>, Error: Into<BoxError>, Future: Send> + Send + 'static,
{
    let sink = queue.name;
    let (mut backoffs, mut drains, mut attempt) = (attempts.backoffs(), queue.drains(), 1);
    while let Some(batch) = queue.next_piece(id) {
        let events = batch.len();
        let span = tracing::info_span!(parent: None, "deliver", sink, events);
        let answer = attempt_once(&service, &queue, batch, attempts.timeout, &span).await;
        let error = answer.as_ref().err().map(|failure| failure.text.clone());
        if error.is_none() && attempt > 1 {
            tracing::info!(parent: &span, sink, events, attempt, "batch delivered");
        }
        let Next::Again { is_retried, wait, attempts: before } = queue.answered(id, answer, attempts.max) else {
            return;
        };
        let wait = match wait {
            Wait::No => None,
            Wait::Backoff => Some(backoffs.next().unwrap_or(attempts.longest_backoff)),
            Wait::For(time) => Some(time),
        };
        // Values that are not retried were logged as undelivered.
        if let Some(error) = error.filter(|_| is_retried) {
            tracing::warn!(
                parent: &span, sink, events, attempt, error, retry_in = ?wait.unwrap_or_default(),
                "batch not delivered, and will be retried"
            );
        }
        attempt = before + 1;
        let is_cut = match wait {
            Some(wait) => pause(&queue, wait, &mut drains).await,
            None => true,
        };
        if is_cut {
            backoffs = attempts.backoffs();
        }
    }
}

async fn attempt_once<E, S>(
    service: &Arc<Mutex<Place<S>>>,
    queue: &Arc<EventQueue<E>>,
    batch: Batch<E>,
    limit: Duration,
    span: &Span,
) -> Result<(), Failure>
where
    E: Send + Sync + 'static,
    S: Service<Batch<E>, Error: Into<BoxError>, Future: Send> + Send + 'static,
{
    // The wait for another delivery does not count against the limit of this one.
    let mut place = Arc::clone(service).lock_owned().await;
    // Dropped after the response future of the user.
    let _running = Running::new(Arc::clone(queue));
    let call = async move {
        if let Err(error) = poll_fn(|cx| place.service.poll_ready(cx)).await {
            place.failures += 1;
            let mut failure = failure(error);
            if place.failures >= MOST_FAILURES_BEFORE_A_CALL {
                failure.meaning = None;
            }
            return Err(failure);
        }
        place.failures = 0;
        let response = place.service.call(batch);
        drop(place);
        response.await.map(drop).map_err(failure)
    };
    let mut call = Some(Box::pin(call));
    let mut over = Deadline::after(limit);
    let answer = poll_fn(|cx| {
        let polled = queue.enter(|| {
            span.in_scope(|| match &mut call {
                Some(call) => call.as_mut().poll(cx),
                None => Poll::Pending,
            })
        });
        match polled {
            Ok(Poll::Ready(answer)) => Poll::Ready(answer),
            Err(panic) => Poll::Ready(Err(retry(panicked(&panic)))),
            // The runtime had a timer when the sink was built.
            Ok(Poll::Pending) if over.poll(cx).unwrap_or(false) => {
                Poll::Ready(Err(retry(format!("the delivery took longer than {limit:?}"))))
            }
            Ok(Poll::Pending) => Poll::Pending,
        }
    })
    .await;
    // The call and its clone of the batch are dropped before the batch ends.
    let _ = queue.enter(|| span.in_scope(|| drop(call.take())));
    answer
}

fn failure(error: impl Into<BoxError>) -> Failure {
    let error = error.into();
    Failure { text: error_chain(&*error), meaning: Some(meaning(&*error)) }
}

fn retry(text: String) -> Failure {
    Failure { text, meaning: Some(Meaning::Retry) }
}

pub(super) fn panicked(message: &str) -> String {
    format!("the sink panicked: {}", OneLine(message))
}

/// Waits before the next attempt. Returns whether a drain has ended the wait.
async fn pause<E: Send + Sync + 'static>(queue: &EventQueue<E>, time: Duration, drains: &mut u64) -> bool {
    // The time may be zero.
    yield_now().await;
    let mut sleep = pin!(sleep(time));
    poll_fn(|cx| {
        let before = mem::replace(drains, queue.drains());
        if *drains != before { Poll::Ready(true) } else { sleep.as_mut().poll(cx).map(|()| false) }
    })
    .await
}
