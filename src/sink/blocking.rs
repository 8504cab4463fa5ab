//! [`DeliverBlocking`]: a service made of a blocking closure.

use std::{
    fmt,
    marker::PhantomData,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{runtime, sync::oneshot, task::JoinHandle};
use tower_service::Service;
use tracing::Span;

use crate::{
    event::BoxError,
    sink::{
        Batch,
        deliver::DeliveryOutput,
        delivery::{Owner, Running},
        queue::EventQueue,
        worker::panicked,
    },
    util::panic::catch,
};

const NO_RUNTIME: &str = "the runtime of the sink has shut down";

/// A Tower service made of a blocking closure, from
/// [`SinkBuilder::deliver_blocking`](crate::SinkBuilder::deliver_blocking).
///
/// The closure moves to a blocking thread for each batch, and back. So a sink occupies one thread at most, also after
/// an attempt was dropped. The closure is dropped on a blocking thread.
pub struct DeliverBlocking<E: Send + Sync + 'static, D: Send + 'static, M> {
    queue: Arc<EventQueue<E>>,
    runtime: runtime::Handle,
    place: Place<E, D>,
    output: PhantomData<fn() -> M>,
}

enum Place<E: Send + Sync + 'static, D> {
    Here(Held<E, D>),
    Away(JoinHandle<Held<E, D>>),
    /// The runtime has shut down, and has dropped the closure.
    Gone,
}

struct Held<E: Send + Sync + 'static, D> {
    deliver: D,
    /// Keeps a drain waiting until the closure has been dropped.
    _owner: Owner<E>,
}

impl<E: Send + Sync + 'static, D: Send + 'static, M> DeliverBlocking<E, D, M> {
    pub(super) fn new(queue: Arc<EventQueue<E>>, runtime: runtime::Handle, deliver: D) -> Self {
        let held = Held { deliver, _owner: Owner::new(Arc::clone(&queue)) };
        Self { queue, runtime, place: Place::Here(held), output: PhantomData }
    }
}

impl<E, D, T, M> Service<Batch<E>> for DeliverBlocking<E, D, M>
where
    E: Send + Sync + 'static,
    D: FnMut(&[E]) -> T + Send + 'static,
    T: DeliveryOutput<M>,
{
    type Response = ();
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        if let Place::Away(thread) = &mut self.place {
            self.place = ready!(Pin::new(thread).poll(cx)).map_or(Place::Gone, Place::Here);
        }
        Poll::Ready(match self.place {
            Place::Here(_) => Ok(()),
            Place::Away(_) | Place::Gone => Err(NO_RUNTIME.into()),
        })
    }

    fn call(&mut self, batch: Batch<E>) -> Self::Future {
        let (answer, answered) = oneshot::channel();
        if let Place::Here(mut held) = mem::replace(&mut self.place, Place::Gone) {
            let (queue, span) = (Arc::clone(&self.queue), Span::current());
            let running = Running::new(Arc::clone(&queue));
            self.place = Place::Away(self.runtime.spawn_blocking(move || {
                let delivered = queue.enter(|| span.in_scope(|| (held.deliver)(&batch).into_result()));
                // It may be the last clone of a batch that has ended. The destructors of its values are user code.
                let _ = catch(|| drop(batch));
                drop(running);
                let delivered = delivered.unwrap_or_else(|panic| Err(panicked(&panic).into()));
                // If the attempt was dropped, the error is dropped here.
                let _ = catch(|| drop(answer.send(delivered)));
                held
            }));
        }
        Box::pin(async { answered.await.unwrap_or_else(|_| Err(NO_RUNTIME.into())) })
    }
}

impl<E: Send + Sync + 'static, D: Send + 'static, M> Drop for DeliverBlocking<E, D, M> {
    fn drop(&mut self) {
        let place = mem::replace(&mut self.place, Place::Gone);
        // Also if the closure has moved: its thread may have returned it. A runtime that shuts down drops it here.
        let _ = catch(|| self.runtime.spawn_blocking(|| drop(place)));
    }
}

impl<E: Send + Sync + 'static, D: Send + 'static, M> fmt::Debug for DeliverBlocking<E, D, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeliverBlocking").field("sink", &self.queue.name).finish_non_exhaustive()
    }
}
