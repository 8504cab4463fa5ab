//! Helpers of several tests: a scripted body, a list of the exchanges that were seen, counters.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tower_track_events::{DrainReport, Exchange, OpenItem, OpenKind, Snapshot, TrackEventsHandle, TrackEventsLayer};

/// Guarantee 1, at every snapshot.
#[track_caller]
pub(crate) fn assert_conserved(now: &Snapshot) {
    let ended = now.ended.completed + now.ended.failed + now.ended.panicked + now.ended.timed_out + now.ended.aborted;
    assert_eq!(now.accepted, ended + now.pending, "conservation: {now:?}");
}

/// A handle whose drain closes as soon as the handle is idle.
pub(crate) fn without_quiet_period() -> TrackEventsHandle {
    TrackEventsHandle::builder().quiet_period(Duration::ZERO).build().expect("a quiet period of zero is valid")
}

/// Drains a handle that is expected to become idle.
pub(crate) async fn drain(handle: &TrackEventsHandle) -> DrainReport {
    let report = handle.drain(Duration::from_secs(60)).await.expect("the handle becomes idle");
    assert_conserved(&handle.snapshot());
    report
}

/// Polls once, with a waker that does nothing.
pub(crate) fn poll_once<F: Future>(future: F) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(std::task::Waker::noop()))
}

/// Lets every task of a current-thread runtime run until none is ready.
pub(crate) async fn run_tasks() {
    for _ in 0..32 {
        tokio::task::yield_now().await;
    }
}

/// One poll of a scripted body.
pub(crate) enum Step {
    Data(&'static [u8]),
    Trailers(&'static [(&'static str, &'static str)]),
    Error,
    Panic,
    End,
}

/// A body that follows its script, with a size hint and an end of stream of the test's choice.
pub(crate) struct Script {
    pub(crate) steps: VecDeque<Step>,
    pub(crate) exact_size: Option<u64>,
    /// `is_end_stream` is true once at most this many steps are left.
    pub(crate) ends_at: Option<usize>,
    /// Runs when the body is dropped.
    pub(crate) on_drop: Option<Box<dyn FnOnce() + Send>>,
}

impl Script {
    pub(crate) fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        Self { steps: steps.into_iter().collect(), exact_size: None, ends_at: None, on_drop: None }
    }

    pub(crate) fn empty() -> Self {
        Self::new([]).claims_end_at(0)
    }

    pub(crate) fn exact(mut self, size: u64) -> Self {
        self.exact_size = Some(size);
        self
    }

    pub(crate) fn claims_end_at(mut self, steps_left: usize) -> Self {
        self.ends_at = Some(steps_left);
        self
    }

    pub(crate) fn on_drop(mut self, run: impl FnOnce() + Send + 'static) -> Self {
        self.on_drop = Some(Box::new(run));
        self
    }
}

impl Body for Script {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        match self.steps.pop_front() {
            None => Poll::Pending,
            Some(Step::Data(data)) => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(data))))),
            Some(Step::Trailers(pairs)) => {
                let mut trailers = HeaderMap::new();
                for (name, value) in pairs {
                    trailers.insert(*name, value.parse().unwrap());
                }
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
            Some(Step::Error) => Poll::Ready(Some(Err("the disk is gone"))),
            Some(Step::Panic) => panic!("a body that panics"),
            Some(Step::End) => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ends_at.is_some_and(|left| self.steps.len() <= left)
    }

    fn size_hint(&self) -> SizeHint {
        self.exact_size.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        if let Some(run) = self.on_drop.take() {
            run();
        }
    }
}

/// Polls the next frame; `None` while the body is pending.
pub(crate) async fn next_frame<B>(body: Pin<&mut B>) -> Option<Option<Result<Frame<B::Data>, B::Error>>>
where
    B: Body,
{
    let mut body = body;
    poll_fn(|cx| {
        Poll::Ready(match body.as_mut().poll_frame(cx) {
            Poll::Ready(frame) => Some(frame),
            Poll::Pending => None,
        })
    })
    .await
}

/// Keeps the exchanges that were passed to a layer's event.
#[derive(Clone, Default)]
pub(crate) struct Seen(Arc<Mutex<Vec<Exchange>>>);

impl Seen {
    /// A layer with one event, which adds its exchange here.
    pub(crate) fn layer(&self, handle: &TrackEventsHandle) -> TrackEventsLayer {
        let seen = self.clone();
        TrackEventsLayer::new(handle.clone()).track_from_request("seen", move |_request| {
            let seen = seen.clone();
            move |exchange: Exchange| async move { seen.push(exchange) }
        })
    }

    pub(crate) fn push(&self, exchange: Exchange) {
        self.0.lock().unwrap().push(exchange);
    }

    pub(crate) fn all(&self) -> Vec<Exchange> {
        self.0.lock().unwrap().clone()
    }

    /// The one exchange that was seen.
    #[track_caller]
    pub(crate) fn only(&self) -> Exchange {
        let all = self.all();
        assert_eq!(all.len(), 1, "exactly one event runs: {all:?}");
        all[0].clone()
    }
}

/// A shared counter.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counter(Arc<AtomicUsize>);

impl Counter {
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// A handler's response with a scripted body.
pub(crate) type Answer = Result<http::Response<Script>, Infallible>;

/// Calls its closure in its destructor.
pub(crate) struct OnDrop<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> OnDrop<F> {
    pub(crate) fn new(run: F) -> Self {
        Self(Some(run))
    }
}

impl OnDrop<Box<dyn FnOnce() + Send>> {
    pub(crate) fn counting(counter: &Counter) -> Self {
        let counter = counter.clone();
        Self::new(Box::new(move || counter.add()))
    }
}

impl<F: FnOnce()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        if let Some(run) = self.0.take() {
            run();
        }
    }
}

/// The groups of one kind among what is open.
pub(crate) fn open(report: &DrainReport, kind: OpenKind) -> Vec<&OpenItem> {
    report.open.iter().filter(|item| item.kind == kind).collect()
}

/// The names and numbers of the events among what is open.
pub(crate) fn open_events(report: &DrainReport) -> Vec<(&str, u64)> {
    report.open.iter().filter_map(|item| Some((item.name.as_deref()?, item.count))).collect()
}
