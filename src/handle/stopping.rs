//! The methods of a handle for shutdowns, drains, waits for idleness, the last call and aborts.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    drain::{self, Drain, Draining, WaitIdle},
    handle::TrackEventsHandle,
    shutdown::Shutdown,
};

impl TrackEventsHandle {
    /// Returns a [`Shutdown`], which runs servers until SIGTERM or Ctrl-C, stops them, and drains this handle.
    ///
    /// Call it early: with the feature `signal`, the process listens to the signals from this call on. Before it, a
    /// signal ends the process, or is ignored if the process is the first one of a container. Without the feature, pass
    /// a future to [`Shutdown::signal`].
    ///
    /// It does not panic outside of a tokio runtime. The report of [`serve`](Shutdown::serve) then has the error that
    /// the signals cannot be listened to.
    pub fn shutdown(&self) -> Shutdown {
        Shutdown::new(Arc::clone(&self.shards))
    }

    /// Raises the drain signal. Nothing is rejected yet.
    ///
    /// [`is_draining`](Self::is_draining) returns true, and streams that wait for [`draining`](Self::draining) end.
    /// Requests still arrive until load balancers stop routing to this instance, and their events are accepted. Calling
    /// this again does nothing. The first poll of a [`drain`](Self::drain) raises the signal as well. A
    /// [`shutdown`](Self::shutdown) that is serving starts its steps.
    pub fn begin_drain(&self) {
        self.shards.begin_drain();
    }

    /// Returns whether the drain signal has been raised.
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
    /// The future can be dropped and created again. The signal stays raised.
    ///
    /// # Examples
    ///
    /// An endless stream that ends at the signal, so that its connection can close:
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

    /// Returns the latest deadline of the drains and [shutdowns](Self::shutdown) that are running.
    ///
    /// Events use it to divide the time that is left. It is `None` when no drain is running, and when a deadline is not
    /// known, as that of [`drain_until`](Self::drain_until) or a drain without a limit.
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

    /// Makes the last call: starts the events that wait for the end of their exchange.
    ///
    /// They get [`Outcome::Unfinished`](crate::Outcome::Unfinished) and the facts so far. Observers are called in the
    /// same way. The requests are served as before, and stay open until they end. An event that is tracked on such a
    /// request from now on starts at once, with the facts of that time. The events of a request that is opened later
    /// start at the latest when the head of its response is ready. A request that waits for capacity goes on, and its
    /// events are [rejected](crate::Overflow::Wait).
    ///
    /// A [drain](Self::drain) makes the last call itself, [some time](crate::TrackEventsHandleBuilder::last_call)
    /// before its deadline. So a client that does not read its response cannot keep an event from running. Calling this
    /// again applies to the requests that have opened since.
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

    /// Returns whether a drain has closed the handle: nothing was open or pending, and everything is rejected from then
    /// on.
    ///
    /// The drain may not be `Ok` yet: it still waits until the sinks have been dropped.
    pub fn is_drained(&self) -> bool {
        self.shards.registry().is_closed()
    }

    /// Waits, at most for `limit`, until no request, guard or permit is open and no event is pending. Then it closes
    /// the handle.
    ///
    /// Poll it when the server has stopped accepting. After it was `Ok`, everything is rejected. `Ok` means that
    /// nothing is open or pending, not that every event has completed: ask
    /// [`DrainReport::all_completed`](crate::DrainReport::all_completed).
    ///
    /// While a request, a guard or a permit is open, everything is accepted. When none has been open for the
    /// [quiet period](crate::TrackEventsHandleBuilder::quiet_period), the drain is *closing*: only code inside an
    /// event, a delivery of a sink, a later request or a [guard's scope](crate::DrainGuard::scope) may still track. So
    /// a background task that tracks an event now and then does not keep the drain from ending. If the drain times out
    /// or is dropped, everything is accepted again.
    ///
    /// The limit counts from the first poll. [`Duration::ZERO`] looks once; [`Duration::MAX`] waits without a limit.
    /// When the limit passes, the drain looks a last time. Neither of these looks needs a quiet period.
    ///
    /// When a quarter of the limit is left, at most 5 seconds, the drain makes the
    /// [last call](Self::make_last_call). If several drains are polled, the one with the latest deadline makes it.
    /// [`Duration::ZERO`] and [`Duration::MAX`] make none.
    ///
    /// From the first poll of a drain on, [sinks](Self::sink) deliver their events at once, without waiting for a full
    /// batch, and retry until the limit. Events that are undelivered then are passed to
    /// [`on_undelivered`](crate::SinkBuilder::on_undelivered). `Ok` also means that each sink has been dropped, with
    /// everything it owns.
    ///
    /// [`shutdown`](Self::shutdown) does the steps around the drain. [A page of the guide](crate::guide::shutdown) has
    /// the details.
    ///
    /// # Errors
    ///
    /// - [`TimedOut`](crate::DrainError::TimedOut) when the limit passed first. Nothing is cancelled and nothing is
    ///   closed, but undelivered events have been passed to `on_undelivered`.
    /// - [`InsideItself`](crate::DrainError::InsideItself) when polled inside an event, a handler or a body of this
    ///   handle. This is not detected in a task that such code spawns and awaits, nor when the caller holds a guard or
    ///   a permit.
    /// - [`NoTimer`](crate::DrainError::NoTimer) outside of a tokio runtime with timers. (With `panic = "abort"`, a
    ///   runtime without timers ends the process, because tokio panics.)
    ///
    /// # Cancel safety
    ///
    /// Dropping it loses no event. The drain signal stays raised.
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

    /// Waits like [`drain`](Self::drain), but until `stop` is ready instead of a limit: a deadline, a second Ctrl-C, a
    /// cancellation token.
    ///
    /// `stop` is polled when the drain is polled, and is dropped with it. Such a drain makes no
    /// [last call](Self::make_last_call), and its deadline is not known to [`drain_deadline`](Self::drain_deadline).
    ///
    /// # Errors
    ///
    /// As for [`drain`](Self::drain), with [`Interrupted`](crate::DrainError::Interrupted) instead of `TimedOut`, when
    /// `stop` was ready first.
    ///
    /// # Cancel safety
    ///
    /// Dropping it loses no event. The drain signal stays raised.
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
    /// // .. stop the server, then drain in the time that is left:
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
    /// It closes nothing, and does not wait for requests, guards and permits. An event of an exchange starts only after
    /// that exchange: drop the response first. Events that were sent to a sink are delivered without waiting for a full
    /// batch. If other tasks track events all the time, there may be no such instant before the limit passes.
    ///
    /// The limit counts from the first poll. [`Duration::ZERO`] looks once; [`Duration::MAX`] waits without a limit.
    ///
    /// # Errors
    ///
    /// - [`TimedOut`](crate::WaitIdleError::TimedOut) when the limit passed first, with the pending events.
    /// - [`InsideItself`](crate::WaitIdleError::InsideItself) when polled inside an event, a handler or a body of this
    ///   handle.
    /// - [`NoTimer`](crate::WaitIdleError::NoTimer) when there is no tokio timer for the limit.
    ///
    /// # Cancel safety
    ///
    /// Dropping it loses nothing.
    pub fn wait_idle(&self, limit: Duration) -> WaitIdle {
        WaitIdle::new(Arc::clone(&self.shards), limit)
    }

    /// Aborts the events that are pending now, whether they have started or not.
    ///
    /// An event that waits for the end of its exchange ends in this call. An event that runs is woken, and ends when
    /// its runtime polls it. Each is dropped with its destructors, counted as aborted, and logged. Events that were
    /// sent to a [sink](Self::sink) are passed to [`on_undelivered`](crate::SinkBuilder::on_undelivered), if the sink
    /// has it, and count as aborted too. Exchanges, guards and permits stay open, and nothing is closed. Events that
    /// are tracked from now on are accepted as before, so a later drain may still time out.
    ///
    /// A [blocking](Self::track_blocking) event that has a thread cannot be aborted: it goes on. One that still waits
    /// for a thread is aborted.
    ///
    /// # Which ending wins
    ///
    /// When an event is polled, the first of these that applies: it was aborted; it returns or panics; its time limit
    /// has passed. So an event that returns in the poll during which it was aborted has completed, and an event that is
    /// both aborted and out of time counts as aborted. If a destructor of the event panics, the event has panicked,
    /// whatever else applies.
    ///
    /// # Examples
    ///
    /// Abort the events for which a drain could not wait, so that their destructors run:
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
