//! [`Shutdown`]: the sequence from the signal to the exit.

mod report;
mod signal;
mod step;
mod stop;

use std::{
    fmt,
    future::{Pending, Ready, pending, poll_fn, ready},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Instant;

use self::{
    report::Cause,
    signal::{OsSignals, Signals},
    step::Step,
    stop::Stopper,
};
pub use self::{
    report::{ShutdownReport, StepOutcome},
    stop::Stop,
};
use crate::{
    context::Shards,
    drain::{Drain, Draining},
    event::EventOutput,
    util::{deadline::Deadline, text::Seconds},
};

/// One second less than Docker and Cloud Run wait before they kill the process.
const DEFAULT_LIMIT: Duration = Duration::from_secs(9);

/// Runs servers, stops them at a signal, and drains the handle. From
/// [`TrackEventsHandle::shutdown`](crate::TrackEventsHandle::shutdown).
///
/// [`serve`](Self::serve) runs the servers until one of these: a signal of the operating system (SIGTERM or Ctrl-C; on
/// Windows Ctrl-C, Ctrl-Break, close, logoff or shutdown), a call of
/// [`begin_drain`](crate::TrackEventsHandle::begin_drain), or the end of the servers. Then:
///
/// 1. The drain signal is raised and the [limit](Self::limit) starts. [`on_signal`](Self::on_signal) runs, and the
///    [readiness delay](Self::readiness_delay) passes. Requests are served.
/// 2. [`Stop`] ends. The servers have their [share](Self::server_limit) of the limit to stop.
/// 3. The handle is [drained](crate::TrackEventsHandle::drain), in the time that is left. Servers that have not stopped
///    are still polled: their connections work until the drain has ended. Nothing waits for such a server, so a client
///    with half a request head costs no more than the servers' share.
/// 4. Servers that have not stopped are dropped, and [`flush`](Self::flush) runs.
///
/// A second signal ends the waits: each step that is left is polled once. A signal that follows the first one within
/// 500 ms does not count as a second one. When the sequence is over, one more signal ends the process. Its exit code is
/// 128 plus the number of the signal, and `STATUS_CONTROL_C_EXIT` on Windows.
///
/// The servers are polled in place and never spawned, so they need neither `Send` nor `'static`. Their panics, and
/// those of the other futures, are caught and reported.
///
/// # Cancel safety
///
/// The future of [`serve`](Self::serve) owns the servers: dropping it drops them. Events go on, but nothing waits for
/// them any more.
///
/// # Examples
///
/// ```no_run
/// use std::time::Duration;
///
/// use axum::Router;
/// use tokio::net::TcpListener;
/// use tower_track_events::TrackEventsLayer;
///
/// #[tokio::main]
/// async fn main() {
///     let (layer, handle) = TrackEventsLayer::pair();
///     let app = Router::new().layer(layer);
///     handle
///         .shutdown()
///         .limit(Duration::from_secs(25)) // Kubernetes waits for 30
///         .readiness_delay(Duration::from_secs(5))
///         .serve(|stop| async move {
///             let listener = TcpListener::bind("127.0.0.1:3000").await?;
///             axum::serve(listener, app).with_graceful_shutdown(stop).await
///         })
///         .await
///         .exit()
/// }
/// ```
#[must_use = "a shutdown does nothing until `serve`"]
pub struct Shutdown<S = Pending<()>, O = Ready<()>, F = Ready<()>> {
    shards: Arc<Shards>,
    limit: Duration,
    readiness_delay: Duration,
    server_limit: Option<Duration>,
    /// `None` if the user set a future instead.
    os: Option<Result<OsSignals, String>>,
    signal: S,
    on_signal: O,
    flush: F,
}

impl Shutdown {
    pub(crate) fn new(shards: Arc<Shards>) -> Self {
        Self {
            shards,
            limit: DEFAULT_LIMIT,
            readiness_delay: Duration::ZERO,
            server_limit: None,
            os: Some(OsSignals::register()),
            signal: pending(),
            on_signal: ready(()),
            flush: ready(()),
        }
    }
}

impl<S, O, F> Shutdown<S, O, F> {
    /// Sets how long everything may take, counted from the signal. Default: 9 seconds.
    ///
    /// It must be shorter than the time after which the platform kills the process: 10 seconds on Docker and Cloud Run,
    /// 30 on Kubernetes. After Ctrl-Close, logoff and shutdown on Windows, at most 4 seconds are used.
    /// [`Duration::ZERO`] polls each step once; [`Duration::MAX`] waits without a limit.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Sets how long after the signal the servers still accept connections. Default: zero.
    ///
    /// Load balancers need this time to see that the readiness probe fails, and to stop routing to this instance. The
    /// delay is a part of the [limit](Self::limit).
    pub fn readiness_delay(mut self, delay: Duration) -> Self {
        self.readiness_delay = delay;
        self
    }

    /// Sets how long after the readiness delay the servers may take to stop. Default: half of what is left of the
    /// limit.
    ///
    /// Open requests end in this time: for large downloads, raise this and the limit. The time ends at the latest when
    /// the drain must make the [last call](crate::TrackEventsHandleBuilder::last_call), when a quarter of the limit is
    /// left, at most 5 seconds.
    pub fn server_limit(mut self, limit: Duration) -> Self {
        self.server_limit = Some(limit);
        self
    }

    /// Sets a future that begins the shutdown, instead of the operating system's signals.
    ///
    /// There is no second signal then. tokio listens to SIGTERM and Ctrl-C from the call of `shutdown` on, so they do
    /// not end the process any more: if they should begin the shutdown, the future has to wait for them. The output of
    /// the future is ignored. A panic of it begins the shutdown.
    ///
    /// # Examples
    ///
    /// Two handles: the inner shutdown begins when the servers of the outer one should stop.
    ///
    /// ```no_run
    /// # async fn http(stop: tower_track_events::Stop) -> std::io::Result<()> { Ok(()) }
    /// # #[tokio::main] async fn main() {
    /// use std::time::Duration;
    /// use tower_track_events::TrackEventsHandle;
    ///
    /// let (orders, billing) = (TrackEventsHandle::new(), TrackEventsHandle::new());
    /// let both = orders.shutdown().serve(|stop| async move {
    ///     let inner = billing.shutdown().signal(stop).limit(Duration::from_secs(4));
    ///     let report = inner.serve(http).await;
    ///     if report.exit_code() == 0 { Ok(()) } else { Err(report.to_string()) }
    /// });
    /// both.await.exit()
    /// # }
    /// ```
    pub fn signal<T: Future>(self, signal: T) -> Shutdown<T, O, F> {
        let Self { shards, limit, readiness_delay, server_limit, os: _, signal: _, on_signal, flush } = self;
        Shutdown { shards, limit, readiness_delay, server_limit, os: None, signal, on_signal, flush }
    }

    /// Sets a future that runs from the signal on. Default: none.
    ///
    /// For example, it sets a health service to not serving, or removes this instance from a service registry. Nothing
    /// waits for it: it is polled until the drain has ended, and then dropped. If it has not ended by then, the report
    /// names it. If it needs time, set a [readiness delay](Self::readiness_delay) that is long enough.
    pub fn on_signal<T>(self, on_signal: T) -> Shutdown<S, T, F>
    where
        T: Future<Output: EventOutput>,
    {
        let Self { shards, limit, readiness_delay, server_limit, os, signal, on_signal: _, flush } = self;
        Shutdown { shards, limit, readiness_delay, server_limit, os, signal, on_signal, flush }
    }

    /// Sets a future that runs after the drain, in the time that is left of the limit. Default: none.
    ///
    /// It flushes broker clients and telemetry, for example. It is polled at least once, also if the limit has passed.
    /// A task that is spawned while the shutdown is built starts before the servers: write
    /// `async move { spawn_blocking(..).await }` and not `spawn_blocking(..)`.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # struct Guard;
    /// # fn non_blocking_writer() -> Guard { Guard }
    /// # async fn serve(stop: tower_track_events::Stop) -> std::io::Result<()> { Ok(()) }
    /// # #[tokio::main] async fn main() {
    /// # let handle = tower_track_events::TrackEventsHandle::new();
    /// let guard = non_blocking_writer(); // of tracing_appender: its drop writes the lines that are left
    /// handle.shutdown().flush(async move { drop(guard) }).serve(serve).await.exit()
    /// # }
    /// ```
    pub fn flush<T>(self, flush: T) -> Shutdown<S, O, T>
    where
        T: Future<Output: EventOutput>,
    {
        let Self { shards, limit, readiness_delay, server_limit, os, signal, on_signal, flush: _ } = self;
        Shutdown { shards, limit, readiness_delay, server_limit, os, signal, on_signal, flush }
    }
}

impl<S, O, F> Shutdown<S, O, F>
where
    S: Future,
    O: Future<Output: EventOutput>,
    F: Future<Output: EventOutput>,
{
    /// Runs the servers, stops them, drains the handle, and returns the report.
    ///
    /// `serve` is called once, with the [`Stop`] that ends when the servers should stop. The future that it returns is
    /// polled in place. It returns the same types as an [event](EventOutput). If the servers end by themselves, the
    /// shutdown begins as at a signal: if the port is taken, the report has the error at once. For several servers,
    /// clone `stop` and use `tokio::try_join!`.
    ///
    /// # Errors
    ///
    /// The report contains them: see [`ShutdownReport`]. If the process cannot listen to the signals, because there is
    /// no tokio runtime or it has no IO driver, `serve` is not called, and [`ShutdownReport::servers`] has that error.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the servers, and each [`Stop`] ends. Events go on, but nothing waits for them any
    /// more.
    pub async fn serve<Serve, Servers>(self, serve: Serve) -> ShutdownReport
    where
        Serve: FnOnce(Stop) -> Servers,
        Servers: IntoFuture<Output: EventOutput>,
    {
        let Self { shards, limit, readiness_delay, server_limit, os, signal, on_signal, flush } = self;
        let (stopper, stop) = Stopper::new();
        let serve = async move { serve(stop).await };
        let (os, servers) = match os.transpose() {
            Ok(os) => (os, Step::new(serve)),
            Err(error) => (None, Step::failed(error)),
        };
        let mut signals = Signals::new(os);
        let mut signal = pin!(Step::new(async move { drop(signal.await) }));
        let (mut servers, mut on_signal, mut flush) =
            (pin!(servers), pin!(Step::new(on_signal)), pin!(Step::new(flush)));

        let started = Instant::now();
        let mut draining = Draining::new(Arc::clone(shards.registry()));
        let (cause, longest_limit) = poll_fn(|cx| {
            let began = match signals.poll_first(cx) {
                Poll::Ready(signal) => (Cause::OsSignal(signal.name), signal.longest_limit),
                Poll::Pending if signal.as_mut().poll(cx) => (Cause::Signal, Duration::MAX),
                Poll::Pending if Pin::new(&mut draining).poll(cx).is_ready() => (Cause::BeginDrain, Duration::MAX),
                Poll::Pending if servers.as_mut().poll(cx) => (Cause::ServersEnded, Duration::MAX),
                Poll::Pending => return Poll::Pending,
            };
            Poll::Ready(began)
        })
        .await;

        shards.begin_drain();
        // If the drain began before this future was polled, the limit counts from the first poll.
        let began = shards.drain_began().at.max(started);
        let limit = limit.min(longest_limit);
        let last_call = shards.registry().context.settings.last_call_before_deadline(limit);
        let schedule = Schedule::new(limit, readiness_delay, server_limit, last_call);
        match limit {
            Duration::MAX => tracing::info!("shutting down without a limit after {cause}"),
            limit => tracing::info!("shutting down within {} after {cause}", Seconds(limit)),
        }
        let mut drain = Drain::since(Arc::clone(&shards), began, limit);
        // Events see the deadline from now on. If there is no timer, the poll of the drain returns the error.
        let _ = drain.begin();

        let mut poll_beside = |drain: &mut Drain, cx: &mut Context<'_>| {
            on_signal.as_mut().poll(cx);
            drain.poll_progress(cx);
            servers.as_mut().poll(cx)
        };
        wait(began, schedule.stop, &mut signals, |cx| poll_beside(&mut drain, cx)).await;
        stopper.stop(began.checked_add(schedule.drain).filter(|_| schedule.drain != Duration::MAX));
        wait(began, schedule.drain, &mut signals, |cx| poll_beside(&mut drain, cx)).await;
        if !stopper.was_polled() && !matches!(cause, Cause::ServersEnded) {
            tracing::warn!("nothing has polled `stop`: was it given to the servers?");
        }
        let drained = poll_fn(|cx| {
            poll_beside(&mut drain, cx);
            if signals.poll_second(cx) {
                drain.interrupt();
            }
            Pin::new(&mut drain).poll(cx)
        })
        .await;

        let (on_signal, _) = on_signal.finish(began);
        let (servers, servers_elapsed) = servers.finish(began);
        wait(began, limit, &mut signals, |cx| flush.as_mut().poll(cx)).await;
        let (flush, _) = flush.finish(began);
        signals.exit_at_next();
        ShutdownReport { servers, on_signal, drain: drained, flush, cause, servers_elapsed }
    }
}

/// Waits until `is_over` returns true, `limit` has passed since `began`, or there was a second signal. Calls `is_over`
/// at least once.
async fn wait(
    began: Instant,
    limit: Duration,
    signals: &mut Signals,
    mut is_over: impl FnMut(&mut Context<'_>) -> bool,
) {
    let mut deadline = Deadline::since(began, limit);
    poll_fn(|cx| {
        // Without a timer there is no wait.
        if is_over(cx) || signals.poll_second(cx) || deadline.poll(cx).unwrap_or(true) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
}

/// When the steps begin, counted from the signal.
#[derive(Debug, PartialEq, Eq)]
struct Schedule {
    /// When `Stop` ends.
    stop: Duration,
    /// When the drain begins, also if servers have not stopped.
    drain: Duration,
}

impl Schedule {
    fn new(limit: Duration, delay: Duration, server_limit: Option<Duration>, last_call: Duration) -> Self {
        let stop = delay.min(limit);
        if limit == Duration::MAX {
            return Self { stop, drain: server_limit.map_or(limit, |share| stop.saturating_add(share)) };
        }
        let share = server_limit.unwrap_or((limit - stop) / 2);
        // The drain must be polled in time to make the last call.
        let drain = stop.saturating_add(share).min(limit.saturating_sub(last_call)).max(stop);
        Self { stop, drain }
    }
}

impl<S, O, F> fmt::Debug for Shutdown<S, O, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shards: _, limit, readiness_delay, server_limit, os, signal: _, on_signal: _, flush: _ } = self;
        f.debug_struct("Shutdown")
            .field("limit", limit)
            .field("readiness_delay", readiness_delay)
            .field("server_limit", server_limit)
            .field("listens_to_the_operating_system", &os.as_ref().is_some_and(Result::is_ok))
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(track_events_loom)))]
mod tests {
    use std::{
        future::pending,
        pin::Pin,
        task::{Context, Poll, Waker},
        time::Duration,
    };

    use tokio::time::Instant;

    use super::{Drain, Schedule};
    use crate::{DrainError, TrackEventsHandle};

    #[tokio::test(start_paused = true)]
    async fn an_interrupted_drain_ends_at_once() {
        let handle = TrackEventsHandle::new();
        handle.track("stuck", pending::<()>()).unwrap();
        let mut drain = Drain::since(handle.shutdown().shards, Instant::now(), Duration::MAX);
        let poll = |drain: &mut Drain| Pin::new(drain).poll(&mut Context::from_waker(Waker::noop()));
        assert!(poll(&mut drain).is_pending());
        drain.interrupt();
        assert!(matches!(poll(&mut drain), Poll::Ready(Err(DrainError::Interrupted(_)))));
    }

    const MAX: Duration = Duration::MAX;

    fn schedule(limit: Duration, delay: u64, share: Option<u64>, last_call: u64) -> (Duration, Duration) {
        let share = share.map(Duration::from_secs);
        let Schedule { stop, drain } =
            Schedule::new(limit, Duration::from_secs(delay), share, Duration::from_secs(last_call));
        (stop, drain)
    }

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn the_servers_have_half_of_what_the_delay_leaves() {
        assert_eq!(schedule(seconds(9.0), 0, None, 2), (seconds(0.0), seconds(4.5)));
        assert_eq!(schedule(seconds(25.0), 5, None, 5), (seconds(5.0), seconds(15.0)));
    }

    #[test]
    fn the_share_of_the_servers_leaves_the_time_of_the_last_call() {
        assert_eq!(schedule(seconds(60.0), 0, Some(90), 5), (seconds(0.0), seconds(55.0)));
        assert_eq!(schedule(seconds(60.0), 0, Some(30), 5), (seconds(0.0), seconds(30.0)));
        // `stop` resolves after the delay at the earliest, whatever is left.
        assert_eq!(schedule(seconds(10.0), 9, None, 5), (seconds(9.0), seconds(9.0)));
    }

    #[test]
    fn a_delay_beyond_the_limit_ends_with_it() {
        assert_eq!(schedule(seconds(5.0), 30, None, 1), (seconds(5.0), seconds(5.0)));
        assert_eq!(schedule(Duration::ZERO, 30, None, 0), (Duration::ZERO, Duration::ZERO));
    }

    #[test]
    fn without_a_limit_the_servers_have_none_unless_they_were_given_one() {
        assert_eq!(schedule(MAX, 5, None, 5), (seconds(5.0), MAX));
        assert_eq!(schedule(MAX, 5, Some(10), 5), (seconds(5.0), seconds(15.0)));
    }
}
