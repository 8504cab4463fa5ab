//! [`TrackEventsHandle`]: the side that the application keeps.

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
/// A clone is cheap and refers to the same events. Clones of the handle, the layer and the service keep nothing open:
/// a drain ends while they live.
///
/// There is no `Default`, because a second handle that is made by accident would be drained instead of the first.
///
/// # When not to use it
///
/// Events are kept in this process and run at most once: `SIGKILL`, `process::exit`, a power failure and
/// `panic = "abort"` lose what is pending. Work that must survive these belongs in an outbox or a broker; write to
/// it inside the event, or inside the handler if it must not be lost at all.
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
    /// It can be made outside of a runtime; events can be tracked once there is one.
    // A `Default` would make a second registry by accident, whose drain waits for nothing.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        TrackEventsHandleBuilder::build_default()
    }

    /// Makes a builder: capacity 65,536, quiet period 100 ms, a line about the progress of a drain each second, no
    /// event timeout, events run on the runtime in which they are tracked.
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
    /// and logged; so is an `Err` that it returns.
    ///
    /// Inside a handler, [`Events::track`](crate::Events::track) starts the event when the response is over.
    ///
    /// # Errors
    ///
    /// [`TrackError::Closed`] while a drain is closing, unless called inside an event, a request or a
    /// [guard's scope](DrainGuard::scope), and after a drain was `Ok`; [`TrackError::Full`] at capacity;
    /// [`TrackError::NoRuntime`] outside of a tokio runtime, if the handle knows of none.
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
    /// For work that blocks: SQLite, files, compression. Work that is running cannot be stopped, neither by a timeout
    /// nor by a runtime that shuts down: [`event_timeout`](TrackEventsHandleBuilder::event_timeout) does not apply, and
    /// a runtime that is dropped waits for it.
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

    /// Takes a guard: a drain waits while it lives.
    ///
    /// For what outlives its exchange or never had one: a WebSocket, an upgraded connection, a task of your own.
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
    #[must_use = "bind it, as in `let guard = handle.guard()?`: with `let _ =` it is dropped at once, and no drain waits"]
    #[track_caller]
    pub fn guard(&self) -> Result<DrainGuard, TrackError> {
        let guard = DrainGuard::take(self.shard(), Location::caller(), Origin::Anywhere);
        guard.inspect_err(|error| {
            self.shard().count_rejected(*error);
            self.shard().report_rejected(*error, GUARD);
        })
    }

    /// Reserves capacity for one event, which starts at once when it is tracked.
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

    /// Makes a builder for a sink of typed events: a Tower service or a closure that is given them in batches, one
    /// statement for many of them.
    ///
    /// They are events called `name` like all others: pending until the sink has taken them, counted, and waited for by
    /// a drain.
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
    /// handle.drain(Duration::from_secs(8)).await?; // it is in the table
    /// # Ok(()) }
    /// ```
    #[cfg(feature = "sink")]
    #[track_caller]
    pub fn sink<E: Send + Sync + 'static>(&self, name: &'static str) -> SinkBuilder<E> {
        SinkBuilder::new(Arc::clone(self.shard()), name, Location::caller())
    }

    /// Returns the counts of each sink, by name.
    ///
    /// These counts are a part of the [`snapshot`](Self::snapshot), which costs as much.
    pub fn sinks(&self) -> Vec<SinkSnapshot> {
        self.shards.registry().sinks()
    }

    /// Returns the counts of what is open and of what has ended, at one instant.
    ///
    /// It takes all locks of the registry for the time of a few additions: fit for a metrics endpoint, not for each
    /// request.
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
