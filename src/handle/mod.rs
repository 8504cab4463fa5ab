//! [`TrackEventsHandle`]: tracks events and drains them. The application keeps it.

mod builder;
mod guard;
mod permit;
mod stopping;

use std::{fmt, panic::Location, sync::Arc};

use tokio::time::Instant;

pub use self::{
    builder::TrackEventsHandleBuilder,
    guard::{DrainGuard, Scope},
    permit::Permit,
};
#[cfg(feature = "sink")]
use crate::sink::SinkBuilder;
use crate::{
    context::{GUARD, Shard, Shards},
    error::TrackError,
    event::{self, EventOutput, blocking, event_span},
    layer::TrackEventsLayer,
    registry::{Origin, SinkSnapshot, Snapshot, Stage},
};

/// Tracks events, drains them, and counts them.
///
/// A clone is cheap and refers to the same events. A drain does not wait for clones of the handle, the layer or the
/// service to be dropped.
///
/// There is no `Default`: a second handle that is made by accident could be drained instead of the first.
///
/// # When not to use it
///
/// Events are kept in this process and run at most once: `SIGKILL`, `process::exit`, a power failure and
/// `panic = "abort"` lose pending events. Work that must survive these belongs in an outbox or a broker. Write to it
/// inside the event, or inside the handler if the work must not be lost at all.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use tower_track_events::TrackEventsHandle;
///
/// let handle = TrackEventsHandle::new();
/// handle.track("cache.warm", async { /* .. */ })?;
///
/// let report = handle.drain(Duration::from_secs(5)).await?;
/// assert_eq!(report.ended.completed, 1);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct TrackEventsHandle {
    shards: Arc<Shards>,
}

impl TrackEventsHandle {
    /// Makes a handle with the defaults of its [builder](Self::builder).
    ///
    /// The handle can be made outside of a tokio runtime. Events are tracked inside one.
    // A `Default` would make a second registry by accident, whose drain waits for nothing.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        TrackEventsHandleBuilder::build_default()
    }

    /// Makes a builder with the defaults.
    ///
    /// They are: capacity 65,536; quiet period 100 ms; last call when a quarter of the limit is left, at most 5
    /// seconds; a progress line each second; no event timeout and no concurrency limit; each event runs on the runtime
    /// in which it is tracked.
    pub fn builder() -> TrackEventsHandleBuilder {
        TrackEventsHandleBuilder::new()
    }

    /// Makes a layer without hooks for this handle, as [`TrackEventsLayer::new`](crate::TrackEventsLayer::new) does.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn app() -> axum::Router {
    /// let handle = tower_track_events::TrackEventsHandle::new();
    /// axum::Router::new().layer(handle.layer())
    /// # }
    /// ```
    pub fn layer(&self) -> TrackEventsLayer {
        TrackEventsLayer::new(self.clone())
    }

    /// Starts `future` now, as an event called `name`.
    ///
    /// The event runs in a task of its own on the current runtime, and a drain waits for it. A panic is caught, counted
    /// and logged. An `Err` that the event returns is counted and logged as well.
    ///
    /// Inside a handler, [`Events::track`](crate::Events::track) starts the event when the response is over.
    ///
    /// # Errors
    ///
    /// - [`TrackError::Closed`] while a drain is closing, unless called inside an event, a request or a
    ///   [guard's scope](DrainGuard::scope), and after a drain was `Ok`.
    /// - [`TrackError::Full`] at capacity.
    /// - [`TrackError::NoRuntime`] outside of a tokio runtime, if the handle has neither been
    ///   [given one](TrackEventsHandleBuilder::runtime) nor been used inside one before.
    #[track_caller]
    pub fn track<F>(&self, name: &'static str, future: F) -> Result<(), TrackError>
    where
        F: Future + Send + 'static,
        F::Output: EventOutput,
    {
        event::track(self.shard(), name, Location::caller(), future)
    }

    /// Starts `work` now on a blocking thread of the runtime, as an event called `name`.
    ///
    /// Use it for work that blocks: SQLite, files, compression. Work that runs cannot be stopped:
    /// [`event_timeout`](TrackEventsHandleBuilder::event_timeout) and [`abort`](Self::abort) do not apply to it, and a
    /// runtime that is dropped waits for it.
    ///
    /// # Errors
    ///
    /// As for [`track`](Self::track).
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_track_events::TrackError> {
    /// # let handle = tower_track_events::TrackEventsHandle::new();
    /// let path = std::env::temp_dir().join("audit.log");
    /// handle.track_blocking("audit", move || std::fs::write(path, "logged in"))?;
    /// # handle.drain(std::time::Duration::MAX).await.unwrap();
    /// # Ok(()) }
    /// ```
    #[track_caller]
    pub fn track_blocking<F, T>(&self, name: &'static str, work: F) -> Result<(), TrackError>
    where
        F: FnOnce() -> T + Send + 'static,
        T: EventOutput,
    {
        let (shard, location) = (self.shard(), Location::caller());
        let runtime = shard.runtime(name)?;
        let span = event_span(name);
        let ticket = shard.track_event(name, Stage::Running, location, Instant::now())?;
        blocking::run(&runtime, ticket, span, work);
        Ok(())
    }

    /// Takes a guard, which keeps a drain waiting for as long as it lives.
    ///
    /// Use it for work that outlives its exchange or has none: a WebSocket, an upgraded connection, a task of your own.
    /// Guards do not count against the capacity.
    ///
    /// # Errors
    ///
    /// [`TrackError::Closed`] while a drain is closing, unless called inside an event, a request or a
    /// [guard's scope](DrainGuard::scope), and after a drain was `Ok`.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_track_events::TrackError> {
    /// # let handle = tower_track_events::TrackEventsHandle::new();
    /// let guard = handle.guard()?;
    /// tokio::spawn(async move {
    ///     // serve the socket ..
    ///     drop(guard);
    /// });
    /// # Ok(()) }
    /// ```
    #[must_use = "bind it, as in `let guard = handle.guard()?`: `let _ =` drops it at once, and no drain waits"]
    #[track_caller]
    pub fn guard(&self) -> Result<DrainGuard, TrackError> {
        let guard = DrainGuard::take(self.shard(), Location::caller(), Origin::Anywhere);
        guard.inspect_err(|error| {
            self.shard().count_rejected(*error);
            self.shard().report_rejected(*error, GUARD);
        })
    }

    /// Reserves capacity for one event, so that it cannot be rejected when it is tracked.
    ///
    /// The event starts at once when it is tracked. A drain waits for a permit that is held.
    ///
    /// # Errors
    ///
    /// As for [`track`](Self::track).
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_track_events::{TrackError, TrackEventsHandle};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let handle = TrackEventsHandle::builder().capacity(1).build()?;
    /// let permit = handle.reserve()?;
    /// assert_eq!(handle.track("other", async {}), Err(TrackError::Full));
    /// permit.track("audit", async {});
    /// # Ok(()) }
    /// ```
    #[track_caller]
    pub fn reserve(&self) -> Result<Permit, TrackError> {
        Permit::reserve(self.shard(), None, Location::caller())
    }

    /// Makes a builder for a sink, which delivers typed events in batches through a Tower service or a closure.
    ///
    /// The events are called `name`. Like all others they are counted, and a drain waits for them. They are pending
    /// until they have been delivered. Each is sent through an [`EventSender`](crate::EventSender).
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use std::time::Duration;
    /// use tower_track_events::TrackEventsHandle;
    ///
    /// # async fn insert(rows: &[Audit]) -> std::io::Result<()> { Ok(()) }
    /// struct Audit {
    ///     user: u64,
    ///     action: &'static str,
    /// }
    ///
    /// let handle = TrackEventsHandle::new();
    /// let audit = handle.sink::<Audit>("audit").deliver(|rows| async move { insert(&rows).await })?;
    /// audit.try_send(Audit { user: 7, action: "login" })?;
    ///
    /// handle.drain(Duration::from_secs(8)).await?; // the row is in the table
    /// # Ok(()) }
    /// ```
    #[cfg(feature = "sink")]
    #[track_caller]
    pub fn sink<E: Send + Sync + 'static>(&self, name: &'static str) -> SinkBuilder<E> {
        SinkBuilder::new(Arc::clone(self.shard()), name, Location::caller())
    }

    /// Returns the counts of each sink, in alphabetical order.
    ///
    /// These counts are a part of those of [`snapshot`](Self::snapshot). It takes the same locks.
    pub fn sinks(&self) -> Vec<SinkSnapshot> {
        self.shards.registry().sinks()
    }

    /// Returns the counts of open requests, guards and permits, and of events, at one instant.
    ///
    /// It takes all locks of the registry for a few additions. Call it from a metrics endpoint, not for each request.
    pub fn snapshot(&self) -> Snapshot {
        self.shards.registry().snapshot()
    }

    pub(crate) fn of(shard: &Shard) -> Self {
        Self { shards: shard.shards() }
    }

    pub(crate) fn shard(&self) -> &Arc<Shard> {
        self.shards.mine()
    }
}

impl fmt::Debug for TrackEventsHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shards: _ } = self;
        f.debug_struct("TrackEventsHandle")
            .field("draining", &self.is_draining())
            .field("snapshot", &self.snapshot())
            .finish_non_exhaustive()
    }
}
