//! [`DrainExecutor`]: a drain waits for the tasks that hyper spawns.

use std::{
    fmt,
    panic::Location,
    pin::Pin,
    task::{Context, Poll},
};

use hyper::rt::Executor;
use pin_project_lite::pin_project;

use crate::{
    handle::{DrainGuard, TrackEventsHandle},
    registry::Origin,
};

/// An executor for hyper whose tasks keep a drain waiting, from [`TrackEventsHandle::executor`].
///
/// It takes a [guard](DrainGuard) when hyper spawns a task, and drops it after the task. Code in the task counts as
/// inside a request: while a drain is closing it may still track.
///
/// # Examples
///
/// ```
/// use hyper_util::{rt::TokioExecutor, server::conn::auto};
/// use tower_track_events::{DrainExecutor, TrackEventsHandle};
///
/// struct Server {
///     http: auto::Builder<DrainExecutor<TokioExecutor>>,
/// }
///
/// let handle = TrackEventsHandle::new();
/// let server = Server { http: auto::Builder::new(handle.executor(TokioExecutor::new())) };
/// ```
#[derive(Clone)]
pub struct DrainExecutor<E> {
    inner: E,
    handle: TrackEventsHandle,
    /// Where the executor was made. The location of the spawn would be inside of hyper.
    location: &'static Location<'static>,
}

impl TrackEventsHandle {
    /// Wraps an executor of hyper, so that a drain waits for each task that hyper spawns on it.
    ///
    /// hyper runs each HTTP/2 stream as a task of its own. Between the spawn of that task and its first poll, the
    /// request has not reached any service, and its server may have returned. With this executor a drain waits for that
    /// task. If the server also waits for its connections when it stops, the
    /// [quiet period](crate::TrackEventsHandleBuilder::quiet_period) can be zero.
    ///
    /// If nothing else waits for the connections, spawn them on this executor as well. A drain then also waits for a
    /// connection that never ends: set [time limits](crate::guide::shutdown#hyper-util) for connections.
    ///
    /// The report of a drain that times out names the location where the executor was made. After a drain was `Ok`,
    /// tasks are spawned without a guard.
    ///
    /// # Examples
    ///
    /// ```
    /// use hyper_util::{rt::TokioExecutor, server::conn::auto};
    /// use tower_track_events::TrackEventsHandle;
    ///
    /// let handle = TrackEventsHandle::new();
    /// let server = auto::Builder::new(handle.executor(TokioExecutor::new()));
    /// ```
    #[track_caller]
    pub fn executor<E>(&self, inner: E) -> DrainExecutor<E> {
        DrainExecutor { inner, handle: self.clone(), location: Location::caller() }
    }
}

impl<E, F> Executor<F> for DrainExecutor<E>
where
    E: Executor<Guarded<F>>,
{
    fn execute(&self, future: F) {
        let guard = DrainGuard::take(self.handle.shard(), self.location, Origin::Server).ok();
        self.inner.execute(Guarded { future, guard });
    }
}

impl<E: fmt::Debug> fmt::Debug for DrainExecutor<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { inner, handle, location } = self;
        f.debug_struct("DrainExecutor")
            .field("inner", inner)
            .field("handle", handle)
            .field("location", location)
            .finish()
    }
}

pin_project! {
    /// A future that holds a guard until it is dropped. [`DrainExecutor`] spawns it.
    ///
    /// # Cancel safety
    ///
    /// Dropping it drops the future, and then the guard.
    ///
    /// # Examples
    ///
    /// A custom executor has to accept it:
    ///
    /// ```
    /// use hyper::rt::Executor;
    /// use tower_track_events::Guarded;
    ///
    /// #[derive(Clone)]
    /// struct Local;
    ///
    /// impl<F: Future + 'static> Executor<Guarded<F>> for Local {
    ///     fn execute(&self, task: Guarded<F>) {
    ///         tokio::task::spawn_local(task);
    ///     }
    /// }
    /// ```
    pub struct Guarded<F> {
        #[pin]
        future: F,
        // After the future, so that it is dropped after it.
        guard: Option<DrainGuard>,
    }
}

impl<F: Future> Future for Guarded<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        // The task counts as inside a request: its events are accepted while a drain is closing.
        let _mark = this.guard.as_ref().map(DrainGuard::enter);
        this.future.poll(cx)
    }
}

impl<F> fmt::Debug for Guarded<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { future: _, guard } = self;
        f.debug_struct("Guarded").field("guarded", &guard.is_some()).finish_non_exhaustive()
    }
}
