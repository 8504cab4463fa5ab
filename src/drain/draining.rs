//! [`Draining`]: the future that ends when the drain signal is raised.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use crate::{context, registry::Registry};

/// The future of [`TrackEventsHandle::draining`](crate::TrackEventsHandle::draining).
///
/// It is `Unpin` and `'static`: it can be stored in a struct, used in `select!`, or passed to `StreamExt::take_until`.
///
/// # Panics
///
/// When polled again after it has ended.
///
/// # Cancel safety
///
/// It can be dropped and created again. The signal stays raised.
///
/// # Examples
///
/// ```
/// use tower_track_events::{Draining, TrackEventsHandle};
///
/// struct Subscription {
///     ends: Draining,
/// }
///
/// let subscription = Subscription { ends: TrackEventsHandle::new().draining() };
/// ```
#[must_use = "futures do nothing unless they are polled"]
pub struct Draining(Pin<Box<dyn Future<Output = ()> + Send + Sync>>);

impl Draining {
    pub(crate) fn new(registry: Arc<Registry<context::Context>>) -> Self {
        let mut signal = registry.context.subscribe();
        Self(Box::pin(async move {
            // An error would mean that the sender was dropped. It lives in the registry, which this future owns.
            let _ = signal.wait_for(|raised| *raised).await;
            drop(registry);
        }))
    }
}

impl Future for Draining {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for Draining {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Draining").finish_non_exhaustive()
    }
}
