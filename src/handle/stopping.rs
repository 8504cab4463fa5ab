//! The methods of a handle that stop: drains, waits for idleness, the last call, abort.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    drain::{self, Drain, Draining, WaitIdle},
    handle::TrackEventsHandle,
    shutdown::Shutdown,
};

impl TrackEventsHandle {
    /// Returns the whole sequence from the signal to the exit: it runs servers until SIGTERM or Ctrl-C, stops them, and
    /// drains this handle. See [`Shutdown`] for the steps.
    ///
    /// Call it early: from now on the process listens to the signals, if the feature `signal` is on. Before that, they
    /// kill it, or are ignored if it is the first one of a container. Without the feature, pass a future to
    /// [`Shutdown::signal`].
    pub fn shutdown(&self) -> Shutdown {
        Shutdown::new(Arc::clone(&self.shards))
    }

    /// Raises the drain signal: [`is_draining`](Self::is_draining) returns true, and streams that wait for
    /// [`draining`](Self::draining) end. Nothing is rejected yet.
    ///
    /// Requests still arrive until load balancers stop routing to this instance, and their events are accepted. Calling
    /// it again does nothing. The first poll of a [`drain`](Self::drain) raises the signal as well.
    pub fn begin_drain(&self) {
        self.shards.begin_drain();
    }

    /// Whether the drain signal has been raised.
    ///
    /// # Examples
    ///
    /// ```
    /// use http::StatusCode;
    /// use tower_track_events::TrackEventsHandle;
    ///
    /// fn readiness(handle: &TrackEventsHandle) -> StatusCode {
    ///     if handle.is_draining() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }
    /// }
    ///
    /// let handle = TrackEventsHandle::new();
    /// assert_eq!(readiness(&handle), 200);
    /// handle.begin_drain();
    /// assert_eq!(readiness(&handle), 503);
    /// ```
    pub fn is_draining(&self) -> bool {
        self.shards.registry().context.is_draining()
    }

    /// Waits until the drain signal is raised.
    ///
    /// # Cancel safety
    ///
    /// It can be dropped and called again; the signal stays raised.
    ///
    /// # Examples
    ///
    /// An endless stream that ends itself, so that its connection can close:
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// # let handle = tower_track_events::TrackEventsHandle::new();
    /// use futures_util::{StreamExt, stream};
    ///
    /// let ticks = stream::repeat("tick").take_until(Box::pin(handle.draining()));
    /// handle.begin_drain();
    /// assert_eq!(ticks.count().await, 0);
    /// # }
    /// ```
    pub fn draining(&self) -> Draining {
        Draining::new(Arc::clone(self.shards.registry()))
    }

    /// Returns the deadline of the drain, for events that divide their time: the latest one of the drains
    /// and [shutdowns](Self::shutdown) that are running. `None` when there is none, or when it is not known, as that of
    /// [`drain_until`](Self::drain_until).
    ///
    /// # Examples
    ///
    /// ```
    /// # async fn call_partner(limit: std::time::Duration) {}
    /// use std::time::Duration;
    /// use tokio::time::Instant;
    /// use tower_track_events::TrackEventsHandle;
    ///
    /// async fn webhook(handle: TrackEventsHandle) {
    ///     let left = handle.drain_deadline().map(|deadline| deadline.saturating_duration_since(Instant::now()));
    ///     call_partner(left.unwrap_or(Duration::from_secs(30))).await;
    /// }
    /// ```
    pub fn drain_deadline(&self) -> Option<Instant> {
        self.shards.registry().drain_deadline()
    }

    /// Makes the last call: starts the events that wait for the end of their exchange, with
    /// [`Outcome::Unfinished`](crate::Outcome::Unfinished) and the facts so far.
    ///
    /// The requests go on untouched, and stay open until they end. What is tracked on them from now on starts at once,
    /// with the facts of that moment. The events of a request that is opened later start at the latest when the head of
    /// its response is there. A request that waits for capacity goes on, and its events are
    /// [rejected](crate::Overflow::Wait). Observers are called like the events.
    ///
    /// A [drain](Self::drain) makes the last call itself, [a while](crate::TrackEventsHandleBuilder::last_call) before
    /// its deadline, so that a client that does not read its response cannot keep an event from running. Calling it
    /// again reaches the requests that have opened since.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    /// use tower_track_events::{Outcome, TrackEventsHandle, test::TestExchange};
    ///
    /// let handle = TrackEventsHandle::new();
    /// let exchange = TestExchange::new(&handle);
    /// exchange.events().track_with("audit", |exchange| async move {
    ///     assert_eq!(exchange.outcome, Outcome::Unfinished);
    /// })?;
    /// handle.make_last_call();
    /// handle.wait_idle(Duration::from_secs(1)).await?;
    /// assert_eq!(handle.snapshot().ended.completed, 1);
    /// # Ok(()) }
    /// ```
    pub fn make_last_call(&self) {
        drain::make_last_call(&self.shards);
    }

    /// Whether a drain has closed the handle: nothing was open or pending then, and everything is rejected for good.
    ///
    /// The drain may not be `Ok` yet: it waits until the sinks have been dropped.
    pub fn is_drained(&self) -> bool {
        self.shards.registry().is_closed()
    }

    /// Waits, at most for `limit`, until no request, guard or permit is open and no event is pending; then closes.
    ///
    /// Poll it when the server has stopped accepting: once it is `Ok`, everything is rejected for good. `Ok` means that
    /// nothing is left, not that all went well: that is
    /// [`DrainReport::all_completed`](crate::DrainReport::all_completed).
    ///
    /// While a request, a guard or a permit is open, everything is accepted. Once none has been open for the
    /// [quiet period](crate::TrackEventsHandleBuilder::quiet_period), the drain is *closing*: only what runs inside an
    /// event, a delivery of a sink, a later request or a [guard's scope](crate::DrainGuard::scope) may still track. So
    /// a background task that tracks an event now and then does not keep the drain from ending. If the drain times out
    /// or is dropped, everything is accepted again.
    ///
    /// The limit counts from the first poll. [`Duration::ZERO`] looks once, without a quiet period; [`Duration::MAX`]
    /// waits for as long as it takes. When the limit passes, it looks a last time, without a quiet period.
    ///
    /// When a quarter of the limit is left, at most 5 seconds, it makes the [last call](Self::make_last_call). If
    /// several drains are polled, the one with the latest deadline does. [`Duration::ZERO`] and [`Duration::MAX`] make
    /// none.
    ///
    /// From the first poll of a drain on, what is sent to [sinks](Self::sink) is delivered at once, without waiting for
    /// more, and retried until the limit. What they have not taken by then is passed to
    /// [`on_undelivered`](crate::SinkBuilder::on_undelivered).
    ///
    /// `Ok` also means that each sink has been dropped, with what it owns.
    ///
    /// [`shutdown`](Self::shutdown) does the steps around it; [a page of the guide](crate::guide::shutdown) has the
    /// details.
    ///
    /// # Errors
    ///
    /// [`TimedOut`](crate::DrainError::TimedOut) when the limit passed first: nothing is cancelled and nothing closed,
    /// but undelivered values have been handed over. [`InsideItself`](crate::DrainError::InsideItself) when polled
    /// inside an event, a handler or a body of this handle. This is not seen through a task that such code spawns and
    /// awaits, nor when the caller holds a guard or a permit of its own. [`NoTimer`](crate::DrainError::NoTimer)
    /// outside of a tokio runtime with timers. (With `panic = "abort"`, a runtime without timers ends the process:
    /// tokio says so by a panic.)
    ///
    /// # Cancel safety
    ///
    /// Dropping it loses no event; see [`Drain`].
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// # let handle = tower_track_events::TrackEventsHandle::new();
    /// use std::time::Duration;
    ///
    /// // When the server has stopped accepting:
    /// match handle.drain(Duration::from_secs(8)).await {
    ///     Ok(report) => println!("{report}"),
    ///     Err(error) => eprintln!("{error}"),
    /// }
    /// # }
    /// ```
    pub fn drain(&self, limit: Duration) -> Drain {
        Drain::within(Arc::clone(&self.shards), limit)
    }

    /// Like [`drain`](Self::drain), but interrupted by any future: a deadline, a second Ctrl-C, a cancellation token.
    ///
    /// `stop` is polled when the drain is, and is dropped with it.
    ///
    /// # Errors
    ///
    /// As for [`drain`](Self::drain); [`Interrupted`](crate::DrainError::Interrupted) when `stop` was ready first.
    ///
    /// # Cancel safety
    ///
    /// Dropping it loses no event; see [`Drain`].
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// # let handle = tower_track_events::TrackEventsHandle::new();
    /// use std::time::Duration;
    /// use tokio::time::{Instant, sleep_until};
    ///
    /// let deadline = Instant::now() + Duration::from_secs(30); // counted from the signal
    /// // .. stop the server, then give the events what is left:
    /// let drained = handle.drain_until(sleep_until(deadline)).await;
    /// assert!(drained.is_ok());
    /// # }
    /// ```
    pub fn drain_until<S>(&self, stop: S) -> Drain
    where
        S: Future + Send + 'static,
    {
        Drain::until(Arc::clone(&self.shards), stop)
    }

    /// Waits, at most for `limit`, for an instant at which no event is pending.
    ///
    /// It closes nothing, and does not wait for requests, guards and permits. An event of an exchange ends only after
    /// that exchange: drop the response first. What was sent to a sink is delivered without waiting for more. If other
    /// tasks track events all the time, there may be no such instant before the limit passes.
    ///
    /// The limit counts from the first poll. [`Duration::ZERO`] looks once; [`Duration::MAX`] waits for as long as it
    /// takes.
    ///
    /// # Errors
    ///
    /// [`TimedOut`](crate::WaitIdleError::TimedOut) when the limit passed first, with what is pending;
    /// [`InsideItself`](crate::WaitIdleError::InsideItself) when polled inside an event, a handler or a body of this
    /// handle; [`NoTimer`](crate::WaitIdleError::NoTimer) when there is no tokio timer to measure the limit with.
    ///
    /// # Cancel safety
    ///
    /// Dropping it loses nothing.
    pub fn wait_idle(&self, limit: Duration) -> WaitIdle {
        WaitIdle::new(Arc::clone(&self.shards), limit)
    }

    /// Ends the events that are pending now, whether they have started or not.
    ///
    /// An event that waits for the end of its exchange ends in this call. One that runs is woken, and ends when its
    /// runtime polls it. Each is dropped with its destructors, counted as aborted, and logged; what was sent to a
    /// [sink](Self::sink) is passed to [`on_undelivered`](crate::SinkBuilder::on_undelivered) instead. Exchanges,
    /// guards and permits stay, nothing is closed, and events that are tracked from now on are accepted as before: a
    /// later drain may still wait for all of these, and time out.
    ///
    /// A [blocking](Self::track_blocking) event that has a thread cannot be aborted: it goes on, and ends as it ends.
    /// One that still waits for a thread is aborted.
    ///
    /// # Which ending wins
    ///
    /// The first of these that is found when an event is polled: it is to be aborted; it returns or panics; its time
    /// limit has passed. So an event that returned in the poll during which it was aborted has completed, and one that
    /// is aborted and out of time is aborted. A panic of its destructors is counted before all of them.
    ///
    /// # Examples
    ///
    /// Give up on what a drain could not wait for, and let it run its destructors:
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use std::time::Duration;
    /// # let handle = tower_track_events::TrackEventsHandle::new();
    /// handle.track("webhook.retry", std::future::pending::<()>())?;
    ///
    /// let report = match handle.drain(Duration::from_millis(20)).await {
    ///     Err(timed_out) => {
    ///         eprintln!("{timed_out}");
    ///         handle.abort();
    ///         handle.drain(Duration::from_secs(1)).await?
    ///     }
    ///     Ok(report) => report,
    /// };
    /// assert_eq!(report.ended.aborted, 1);
    /// # Ok(()) }
    /// ```
    pub fn abort(&self) {
        self.shards.registry().abort();
    }
}
