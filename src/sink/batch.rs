//! [`EventSink`], and what it is given: [`Batch`].

use std::{fmt, ops::Deref, sync::Arc};

/// Where typed events go, in batches: a table, a stream, a file.
///
/// [`TrackEventsHandle::sink`](crate::TrackEventsHandle::sink) makes a queue in front of it. The sink is given one
/// batch at a time, in the order in which the events were sent. It is implemented for closures as well.
///
/// # How often a batch is delivered
///
/// At least once. An `Err`, a panic, and an attempt that takes too long make the batch be retried, as a whole.
/// None of them says whether the store has taken it, or a part of it: give each event an identity, and let the
/// store ignore duplicates. When [`deliver`](Self::deliver) is `Ok` the events of the batch have completed, so
/// it must not return before the store has acknowledged them.
///
/// # Examples
///
/// A transaction for each batch:
///
/// ```
/// use tower_track_events::{Batch, EventSink};
///
/// # struct Transaction;
/// # impl Transaction {
/// #     async fn insert(&mut self, _: &Visit) -> std::io::Result<()> { Ok(()) }
/// #     async fn commit(self) -> std::io::Result<()> { Ok(()) }
/// # }
/// # struct Connection;
/// # impl Connection { async fn begin(&mut self) -> std::io::Result<Transaction> { Ok(Transaction) } }
/// struct Visit {
///     path: String,
/// }
///
/// struct VisitTable {
///     db: Connection,
/// }
///
/// impl EventSink<Visit> for VisitTable {
///     type Error = std::io::Error;
///
///     async fn deliver(&mut self, batch: Batch<Visit>) -> Result<(), Self::Error> {
///         let mut transaction = self.db.begin().await?;
///         for visit in batch.iter() {
///             transaction.insert(visit).await?;
///         }
///         transaction.commit().await
///     }
/// }
/// ```
pub trait EventSink<E>: Send + 'static {
    /// Why a batch was not delivered: logged, and part of the report.
    type Error: fmt::Display;

    /// Delivers a batch; `Ok` when the store has acknowledged all of it.
    ///
    /// # Errors
    ///
    /// Any: the batch is retried, after a [back-off](crate::SinkBuilder::backoff), for as many
    /// [attempts](crate::SinkBuilder::max_attempts) as the sink has.
    ///
    /// # Panics
    ///
    /// A panic is caught, and counts as an attempt that failed.
    ///
    /// # Cancel safety
    ///
    /// The future is dropped when it takes longer than its
    /// [time limit](crate::SinkBuilder::deliver_timeout), when a drain that times out or an abort takes the
    /// events away, and when its runtime shuts down. After the first of these, and after a panic, the sink is used
    /// again: it must replace whatever may be half done, such as a connection in the middle of a protocol.
    fn deliver(&mut self, batch: Batch<E>) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

impl<E, F, O, R> EventSink<E> for F
where
    F: FnMut(Batch<E>) -> O + Send + 'static,
    O: Future<Output = Result<(), R>> + Send,
    R: fmt::Display,
{
    type Error = R;

    fn deliver(&mut self, batch: Batch<E>) -> impl Future<Output = Result<(), R>> + Send {
        self(batch)
    }
}

/// Events that are delivered together, in the order in which they were sent; never empty.
///
/// It is a slice that is shared: a clone is cheap, and each attempt sees the same events.
///
/// # Examples
///
/// ```
/// use tower_track_events::{Batch, TrackEventsHandle};
///
/// let handle = TrackEventsHandle::new();
/// let numbers = handle.sink("numbers", |batch: Batch<u32>| async move {
///     let sum: u32 = batch.iter().sum(); // a slice
///     if sum > 0 { Ok(()) } else { Err("nothing") }
/// });
/// ```
pub struct Batch<E> {
    events: Arc<Vec<E>>,
}

impl<E> Batch<E> {
    pub(crate) fn new(events: Vec<E>) -> Self {
        Self { events: Arc::new(events) }
    }
}

impl<E> Clone for Batch<E> {
    fn clone(&self) -> Self {
        Self { events: Arc::clone(&self.events) }
    }
}

impl<E> Deref for Batch<E> {
    type Target = [E];

    fn deref(&self) -> &[E] {
        &self.events
    }
}

impl<E: fmt::Debug> fmt::Debug for Batch<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Events that could not be delivered, all that there are and in the order in which they were sent; never empty.
///
/// [`SinkBuilder::on_undelivered`](crate::SinkBuilder::on_undelivered) says when. The store may have taken some of
/// them, if an attempt did not come to its end.
///
/// # Examples
///
/// ```
/// use tower_track_events::{Batch, TrackEventsHandle, Undelivered};
///
/// let handle = TrackEventsHandle::new();
/// let numbers = handle
///     .sink("numbers", |_batch: Batch<u32>| async { Err("the store is gone") })
///     .on_undelivered(|numbers: Undelivered<u32>| {
///         eprintln!("{}: {} left, because {:?}", numbers.name(), numbers.len(), numbers.last_error());
///         for number in numbers.iter() {
///             eprintln!("{number}");
///         }
///     });
/// ```
pub struct Undelivered<E> {
    name: &'static str,
    batches: Vec<Batch<E>>,
    last_error: Option<String>,
}

impl<E> Undelivered<E> {
    pub(crate) fn new(name: &'static str, batches: Vec<Batch<E>>, last_error: Option<String>) -> Self {
        Self { name, batches, last_error }
    }

    /// The name of the sink.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The events, in order.
    pub fn iter(&self) -> impl Iterator<Item = &E> {
        self.batches.iter().flat_map(|batch| batch.iter())
    }

    /// How many events there are: at least one.
    // Never empty, so there is nothing to ask.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.batches.iter().map(|batch| batch.len()).sum()
    }

    /// Why the last attempt to deliver did not succeed, if there was one.
    pub fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }
}

impl<E: fmt::Debug> fmt::Debug for Undelivered<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, batches, last_error } = self;
        f.debug_struct("Undelivered")
            .field("name", name)
            .field("batches", batches)
            .field("last_error", last_error)
            .finish()
    }
}
