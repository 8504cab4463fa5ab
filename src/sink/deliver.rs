//! Services made of closures, and what these may return.

use std::{
    fmt,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll},
};

use tower_service::Service;

use crate::{event::BoxError, sink::Batch};

/// A service made of an asynchronous closure, see [`SinkBuilder::deliver`](crate::SinkBuilder::deliver).
pub struct Deliver<D, M> {
    deliver: D,
    output: PhantomData<fn() -> M>,
}

impl<D, M> Deliver<D, M> {
    pub(super) fn new(deliver: D) -> Self {
        Self { deliver, output: PhantomData }
    }
}

impl<E, D, F, M> Service<Batch<E>> for Deliver<D, M>
where
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
        let delivery = (self.deliver.clone())(batch);
        Box::pin(async { delivery.await.into_result() })
    }
}

impl<D: Clone, M> Clone for Deliver<D, M> {
    fn clone(&self) -> Self {
        Self::new(self.deliver.clone())
    }
}

impl<D, M> fmt::Debug for Deliver<D, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deliver").finish_non_exhaustive()
    }
}

/// What a delivery may return: `()`, or a `Result` whose error converts into a `Box<dyn Error + Send + Sync>`.
///
/// The value of an `Ok` is ignored: the number of rows, for example. But it cannot be a `Result` itself, because an
/// error in it would be ignored as well: add a `?`.
///
/// The trait is sealed. `M` is for the compiler, which finds it.
pub trait DeliveryOutput<M> {
    #[doc(hidden)]
    fn into_result(self) -> Result<(), BoxError>;
}

impl DeliveryOutput<marker::Nothing> for () {
    fn into_result(self) -> Result<(), BoxError> {
        Ok(())
    }
}

impl<T: Ignored<M>, E: Into<BoxError>, M> DeliveryOutput<marker::ResultOf<M>> for Result<T, E> {
    fn into_result(self) -> Result<(), BoxError> {
        self.map(drop).map_err(Into::into)
    }
}

/// A value that is ignored: any but a `Result`.
///
/// For a `Result` there are two ways to choose `M`, which the compiler refuses.
pub trait Ignored<M> {}

impl<T> Ignored<marker::Value> for T {}
impl<T, E> Ignored<marker::AddAQuestionMark> for Result<T, E> {}

/// For the compiler: what a delivery returns.
// Named in messages of the compiler, and nowhere else.
#[allow(unnameable_types, missing_debug_implementations)]
mod marker {
    pub struct Nothing;
    pub struct ResultOf<M>(M);
    pub struct Value;
    pub struct AddAQuestionMark;
}
