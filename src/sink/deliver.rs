//! [`Deliver`]: a service made of a closure. [`DeliveryOutput`]: the types that a delivery may return.

use std::{
    fmt,
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tower_service::Service;

use self::sealed::IntoResult as _;
use crate::{
    event::BoxError,
    sink::{
        Batch,
        delivery::{Owner, Running},
        queue::EventQueue,
    },
};

/// A Tower service made of an asynchronous closure, from [`SinkBuilder::deliver`](crate::SinkBuilder::deliver).
///
/// A drain waits until the closure and its futures have been dropped, also if a layer has moved them to another task.
///
/// # Examples
///
/// A [layer](crate::SinkBuilder::layer) gets it as the inner service:
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_track_events::BuildError> {
/// use std::time::Duration;
///
/// use tower::{layer::layer_fn, timeout::Timeout};
/// use tower_track_events::{TrackEventsHandle, sink::Deliver};
///
/// let limited = layer_fn(|inner: Deliver<u32, _, _>| Timeout::new(inner, Duration::from_secs(1)));
/// let rows = TrackEventsHandle::new().sink::<u32>("row").layer(limited).deliver(|_rows| async { /* store them */ })?;
/// # Ok(()) }
/// ```
pub struct Deliver<E: Send + Sync + 'static, D, M> {
    deliver: D,
    owner: Owner<E>,
    output: PhantomData<fn() -> M>,
}

impl<E: Send + Sync + 'static, D, M> Deliver<E, D, M> {
    pub(super) fn new(queue: Arc<EventQueue<E>>, deliver: D) -> Self {
        Self { deliver, owner: Owner::new(queue), output: PhantomData }
    }
}

pin_project! {
    /// A response future. `running` is dropped last, so that a drain waits for the future.
    struct Delivery<E, F>
    where
        E: Send,
        E: Sync,
        E: 'static,
    {
        #[pin]
        future: F,
        running: Running<E>,
    }
}

impl<E: Send + Sync + 'static, F: Future> Future for Delivery<E, F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.project().future.poll(cx)
    }
}

impl<E, D, F, M> Service<Batch<E>> for Deliver<E, D, M>
where
    E: Send + Sync + 'static,
    D: FnOnce(Batch<E>) -> F + Clone,
    F: Future<Output: DeliveryOutput<M>> + Send + 'static,
{
    type Response = ();
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, batch: Batch<E>) -> Self::Future {
        // Before the closure runs, so that a drain waits for it.
        let running = Running::new(Arc::clone(&self.owner.0));
        let output = (self.deliver.clone())(batch);
        Box::pin(Delivery { future: async { output.await.into_result() }, running })
    }
}

impl<E: Send + Sync + 'static, D: Clone, M> Clone for Deliver<E, D, M> {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.owner.0), self.deliver.clone())
    }
}

impl<E: Send + Sync + 'static, D, M> fmt::Debug for Deliver<E, D, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deliver").field("sink", &self.owner.0.name).finish_non_exhaustive()
    }
}

/// The types that a delivery may return: `()`, or a `Result` whose error converts into a
/// `Box<dyn Error + Send + Sync>`.
///
/// The value of an `Ok` is ignored, for example the number of rows. It cannot be a `Result` itself, because its error
/// would be ignored as well: add a `?`.
///
/// The trait is sealed: it cannot be implemented outside of this crate. The compiler infers `M`.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_track_events::BuildError> {
/// use tower_track_events::TrackEventsHandle;
///
/// let handle = TrackEventsHandle::new();
/// handle.sink::<u32>("printed").deliver(|rows| async move { println!("{rows:?}") })?;
/// handle.sink::<u32>("stored").deliver(|rows| async move { std::io::Result::Ok(rows.len()) })?; // ignores the number
/// # Ok(()) }
/// ```
///
/// ```compile_fail
/// # let handle = tower_track_events::TrackEventsHandle::new();
/// handle.sink::<u32>("nested").deliver(|_rows| async {
///     tokio::task::spawn_blocking(|| std::io::Result::Ok(())).await // add a `?`
/// });
/// ```
#[diagnostic::on_unimplemented(
    message = "a delivery cannot return `{Self}`",
    label = "returns a `{Self}`",
    note = "a delivery returns `()`, or a `Result` whose error converts into a `Box<dyn Error + Send + Sync>`"
)]
pub trait DeliveryOutput<M>: sealed::IntoResult<M> {}

impl DeliveryOutput<marker::Nothing> for () {}
impl<T: Ignored<M>, E: Into<BoxError>, M> DeliveryOutput<marker::ResultOf<M>> for Result<T, E> {}

// The trait is public in a private module, so that other crates cannot implement `DeliveryOutput`.
#[allow(unnameable_types)]
mod sealed {
    use super::{BoxError, Ignored, marker};

    pub trait IntoResult<M> {
        fn into_result(self) -> Result<(), BoxError>;
    }

    impl IntoResult<marker::Nothing> for () {
        fn into_result(self) -> Result<(), BoxError> {
            Ok(())
        }
    }

    impl<T: Ignored<M>, E: Into<BoxError>, M> IntoResult<marker::ResultOf<M>> for Result<T, E> {
        fn into_result(self) -> Result<(), BoxError> {
            self.map(drop).map_err(Into::into)
        }
    }
}

/// The types that are ignored inside the `Ok` of a delivery, or as the response of a service: all but `Result`.
///
/// For a `Result` the compiler cannot infer `M`, because two implementations match, and reports an error.
///
/// # Examples
///
/// ```
/// use tower_track_events::sink::Ignored;
///
/// fn drop_it<M>(response: impl Ignored<M>) {}
///
/// drop_it(7); // with a `Result` this does not compile
/// ```
pub trait Ignored<M> {}

impl<T> Ignored<marker::Value> for T {}
impl<T, E> Ignored<marker::AddAQuestionMark> for Result<T, E> {}

/// The types of `M`, which tell implementations apart.
// They appear in messages of the compiler only.
#[allow(unnameable_types, missing_debug_implementations)]
mod marker {
    pub struct Nothing;
    pub struct ResultOf<M>(M);
    pub struct Value;
    pub struct AddAQuestionMark;
}
