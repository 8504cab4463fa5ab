//! [`DrainGuard`]: keeps a drain waiting.

use std::{
    fmt,
    panic::Location,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tokio::time::Instant;

use crate::{
    context::{Shard, Ticket},
    error::TrackError,
    registry::Origin,
    util::reentrancy::Mark,
};

/// Keeps a drain waiting for as long as it lives, from [`TrackEventsHandle::guard`](crate::TrackEventsHandle::guard).
///
/// While a guard is held, no event is rejected as [`Closed`](crate::TrackError::Closed). So hold one in a task that
/// tracks events later.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use std::time::Duration;
/// use tower_track_events::TrackEventsHandle;
///
/// let handle = TrackEventsHandle::new();
/// let guard = handle.guard().unwrap();
/// assert!(handle.drain(Duration::ZERO).await.is_err());
/// drop(guard);
/// assert!(handle.drain(Duration::ZERO).await.is_ok());
/// # }
/// ```
#[must_use = "a drain does not wait for a guard that is dropped"]
pub struct DrainGuard {
    ticket: Ticket,
}

impl DrainGuard {
    /// Takes a guard. The caller counts a rejection, if it loses anything.
    pub(crate) fn take(
        shard: &Arc<Shard>,
        location: &'static Location<'static>,
        origin: Origin,
    ) -> Result<Self, TrackError> {
        Ok(Self { ticket: shard.guard(location, Instant::now(), origin)? })
    }

    /// Marks this thread as inside the scope of the guard.
    pub(crate) fn enter(&self) -> Mark {
        Mark::new(self.ticket.shard().registry.id())
    }

    /// Returns a future that runs `future` under this guard, and drops the guard after it.
    ///
    /// Events that `future` tracks are accepted while a drain is closing. A
    /// [drain](crate::TrackEventsHandle::drain) or [`wait_idle`](crate::TrackEventsHandle::wait_idle) of the same
    /// handle that is polled inside `future` returns `InsideItself`, because it would wait for this guard.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops `future` and then the guard.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let handle = tower_track_events::TrackEventsHandle::new();
    /// let socket = handle.guard()?.scope({
    ///     let handle = handle.clone();
    ///     async move {
    ///         // serve the socket ..
    ///         handle.track("socket.closed", async {})
    ///     }
    /// });
    /// tokio::spawn(socket).await??;
    /// # Ok(()) }
    /// ```
    pub fn scope<F: Future>(self, future: F) -> Scope<F> {
        Scope { future: Some(future), guard: self }
    }
}

impl fmt::Debug for DrainGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ticket: _ } = self;
        f.debug_struct("DrainGuard").finish_non_exhaustive()
    }
}

pin_project! {
    /// A future that runs under a guard, from [`DrainGuard::scope`].
    ///
    /// # Panics
    ///
    /// When polled again after it was ready.
    ///
    /// # Cancel safety
    ///
    /// Dropping it drops the inner future and then the guard.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::future::Ready;
    ///
    /// use tower_track_events::{Scope, TrackEventsHandle};
    ///
    /// struct Connection {
    ///     task: Scope<Ready<()>>,
    /// }
    ///
    /// # fn main() -> Result<(), tower_track_events::TrackError> {
    /// let handle = TrackEventsHandle::new();
    /// let connection = Connection { task: handle.guard()?.scope(std::future::ready(())) };
    /// # Ok(()) }
    /// ```
    #[must_use = "futures do nothing unless they are polled"]
    pub struct Scope<F> {
        // Dropped as soon as it is ready.
        #[pin]
        future: Option<F>,
        // After the future, so that it is dropped after it.
        guard: DrainGuard,
    }
}

impl<F: Future> Future for Scope<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let mut this = self.project();
        let _mark = this.guard.enter();
        let future = this.future.as_mut().as_pin_mut().expect("a scope was polled after it had been ready");
        let polled = future.poll(cx);
        if polled.is_ready() {
            this.future.set(None);
        }
        polled
    }
}

impl<F> fmt::Debug for Scope<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { future, guard: _ } = self;
        f.debug_struct("Scope").field("ready", &future.is_none()).finish_non_exhaustive()
    }
}
