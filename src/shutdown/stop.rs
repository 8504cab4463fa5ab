//! [`Stop`]: the future that ends when the servers should stop.

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use tokio::{sync::watch, time::Instant};

/// The future that ends when a server should stop, passed to the closure of
/// [`Shutdown::serve`](crate::Shutdown::serve).
///
/// It ends at the signal, or after the [readiness delay](crate::Shutdown::readiness_delay), and when the future of
/// `serve` is dropped. Pass it to `with_graceful_shutdown` of axum or `serve_with_incoming_shutdown` of tonic, or use
/// it in `select!`: it is `Unpin`. For several servers, clone it: all clones end at the same time.
///
/// # Panics
///
/// When polled again after it has ended. A clone can be polled.
///
/// # Cancel safety
///
/// It can be dropped and cloned again. After it has ended, each clone ends at once.
///
/// # Examples
///
/// ```no_run
/// # #[tokio::main] async fn main() {
/// use axum::Router;
/// use tokio::net::TcpListener;
/// use tower_track_events::{Stop, TrackEventsLayer};
///
/// async fn serve(app: Router, stop: Stop) -> std::io::Result<()> {
///     let listener = TcpListener::bind("127.0.0.1:3000").await?;
///     axum::serve(listener, app).with_graceful_shutdown(stop).await
/// }
///
/// let (layer, handle) = TrackEventsLayer::pair();
/// let app = Router::new().layer(layer);
/// handle.shutdown().serve(|stop| serve(app, stop)).await.exit()
/// # }
/// ```
#[must_use = "a server that does not get it does not stop"]
pub struct Stop {
    /// `None` until the servers should stop. Then the deadline of their share, if there is a limit.
    state: watch::Receiver<Option<Option<Instant>>>,
    was_polled: Arc<AtomicBool>,
    stopped: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
}

impl Stop {
    /// Returns when the servers' share of the limit ends. `None` before the servers should stop, and without a limit.
    ///
    /// Use it for servers with a time limit of their own, such as axum-server's `graceful_shutdown`.
    pub fn deadline(&self) -> Option<Instant> {
        self.state.borrow().flatten()
    }
}

impl Future for Stop {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { state, was_polled, stopped } = &mut *self;
        was_polled.store(true, Ordering::Relaxed);
        let stopped = stopped.get_or_insert_with(|| {
            let mut state = state.clone();
            // An error means that the shutdown was dropped. The server stops then, because nothing would stop it later.
            Box::pin(async move { drop(state.wait_for(Option::is_some).await) })
        });
        stopped.as_mut().poll(cx)
    }
}

impl Clone for Stop {
    fn clone(&self) -> Self {
        Self { state: self.state.clone(), was_polled: Arc::clone(&self.was_polled), stopped: None }
    }
}

impl fmt::Debug for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { state, was_polled: _, stopped: _ } = self;
        f.debug_struct("Stop")
            .field("has_ended", &state.borrow().is_some())
            .field("deadline", &self.deadline())
            .finish_non_exhaustive()
    }
}

/// The side that ends each [`Stop`].
pub(super) struct Stopper {
    state: watch::Sender<Option<Option<Instant>>>,
    was_polled: Arc<AtomicBool>,
}

impl Stopper {
    pub(super) fn new() -> (Self, Stop) {
        let (sender, state) = watch::channel(None);
        let was_polled = Arc::new(AtomicBool::new(false));
        let stop = Stop { state, was_polled: Arc::clone(&was_polled), stopped: None };
        (Self { state: sender, was_polled }, stop)
    }

    pub(super) fn stop(&self, deadline: Option<Instant>) {
        self.state.send_replace(Some(deadline));
    }

    pub(super) fn was_polled(&self) -> bool {
        self.was_polled.load(Ordering::Relaxed)
    }
}
