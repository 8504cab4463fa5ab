//! [`Batch`]: the values of one delivery; and [`Undelivered`]: those that could not be delivered.

use std::{fmt, ops::Deref, ops::Range, sync::Arc};

/// Events that are delivered together, in the order in which they were sent; never empty.
///
/// It is a slice that is shared: a clone is cheap, and each attempt sees the same events.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_track_events::TrackEventsHandle;
///
/// let handle = TrackEventsHandle::new();
/// let numbers = handle.sink::<u32>("numbers").deliver(|batch| async move {
///     let sum: u32 = batch.iter().sum(); // a slice
///     if sum > 0 { Ok(()) } else { Err("nothing") }
/// })?;
/// # Ok(()) }
/// ```
pub struct Batch<E> {
    values: Arc<Vec<E>>,
    range: Range<usize>,
}

impl<E> Batch<E> {
    pub(super) fn new(values: Vec<E>) -> Self {
        let range = 0..values.len();
        Self { values: Arc::new(values), range }
    }

    /// A part of this batch. The values are shared with it.
    fn part(&self, range: Range<usize>) -> Self {
        let at = self.range.start;
        Self { values: Arc::clone(&self.values), range: at + range.start..at + range.end }
    }

    /// Two parts of the same length, or nearly.
    pub(super) fn halves(self) -> [Self; 2] {
        let (middle, end) = (self.len() / 2, self.len());
        [self.part(0..middle), self.part(middle..end)]
    }

    /// Separates the values with these indices, which are in order, from the others. Both are one batch if nobody else
    /// has a part of this one, and otherwise one for each run of values.
    pub(super) fn separate(self, indices: &[usize]) -> Separated<E> {
        let is_named = |index: &usize| indices.binary_search(index).is_ok();
        let Self { values, range } = self;
        if range == (0..values.len()) {
            match Arc::try_unwrap(values) {
                Ok(values) => {
                    let (named, others): (Vec<_>, Vec<_>) =
                        values.into_iter().enumerate().partition(|(index, _)| is_named(index));
                    let batch = |part: Vec<(usize, E)>| {
                        let (indices, values): (Vec<_>, Vec<_>) = part.into_iter().unzip();
                        (indices, Self::new(values))
                    };
                    let batches = |part: Vec<_>| if part.is_empty() { Vec::new() } else { vec![batch(part)] };
                    return Separated { named: batches(named), others: batches(others) };
                }
                Err(shared) => return Self { values: shared, range }.runs(is_named),
            }
        }
        Self { values, range }.runs(is_named)
    }

    fn runs(&self, is_named: impl Fn(&usize) -> bool) -> Separated<E> {
        let mut separated = Separated { named: Vec::new(), others: Vec::new() };
        let mut start = 0;
        while start < self.len() {
            let named = is_named(&start);
            let end = (start..self.len()).find(|index| is_named(index) != named).unwrap_or(self.len());
            let runs = if named { &mut separated.named } else { &mut separated.others };
            runs.push(((start..end).collect(), self.part(start..end)));
            start = end;
        }
        separated
    }
}

/// Batches with the indices that their values had before.
pub(super) struct Separated<E> {
    pub(super) named: Vec<(Vec<usize>, Batch<E>)>,
    pub(super) others: Vec<(Vec<usize>, Batch<E>)>,
}

impl<E> Clone for Batch<E> {
    fn clone(&self) -> Self {
        Self { values: Arc::clone(&self.values), range: self.range.clone() }
    }
}

impl<E> Deref for Batch<E> {
    type Target = [E];

    fn deref(&self) -> &[E] {
        &self.values[self.range.clone()]
    }
}

impl<E: fmt::Debug> fmt::Debug for Batch<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Events that could not be delivered, in the order in which they were sent; never empty.
///
/// [`SinkBuilder::on_undelivered`](crate::SinkBuilder::on_undelivered) says when. The store may have taken some of
/// them, if an attempt did not come to its end.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_track_events::TrackEventsHandle;
///
/// let handle = TrackEventsHandle::new();
/// let numbers = handle
///     .sink::<u32>("numbers")
///     .on_undelivered(|numbers| {
///         eprintln!("{}: {} left, because {:?}", numbers.name(), numbers.len(), numbers.last_error());
///         for number in numbers.iter() {
///             eprintln!("{number}");
///         }
///     })
///     .deliver(|_batch| async { Err::<(), _>("the store is gone") })?;
/// # Ok(()) }
/// ```
pub struct Undelivered<E> {
    name: &'static str,
    batches: Vec<Batch<E>>,
    last_error: Option<String>,
}

impl<E> Undelivered<E> {
    pub(super) fn new(name: &'static str, batches: Vec<Batch<E>>, last_error: Option<String>) -> Self {
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
    // It is never empty.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.batches.iter().map(|batch| batch.len()).sum()
    }

    /// The error of the last attempt to deliver, if there was one.
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

#[cfg(test)]
mod tests {
    use super::Batch;

    fn parts(batches: &[(Vec<usize>, Batch<u32>)]) -> Vec<(Vec<usize>, Vec<u32>)> {
        batches.iter().map(|(indices, batch)| (indices.clone(), batch.to_vec())).collect()
    }

    #[test]
    fn halves_share_the_values_and_lose_none() {
        let [left, right] = Batch::new(vec![1, 2, 3, 4, 5]).halves();
        assert_eq!((left.to_vec(), right.to_vec()), (vec![1, 2], vec![3, 4, 5]));
        let [left, right] = right.halves();
        assert_eq!((left.to_vec(), right.to_vec()), (vec![3], vec![4, 5]));
    }

    #[test]
    fn values_are_separated_into_two_batches_or_into_runs_if_they_are_shared() {
        let batch = Batch::new(vec![10, 11, 12, 13, 14]);
        let shared = batch.clone().separate(&[1, 4]);
        assert_eq!(parts(&shared.named), [(vec![1], vec![11]), (vec![4], vec![14])]);
        assert_eq!(parts(&shared.others), [(vec![0], vec![10]), (vec![2, 3], vec![12, 13])]);
        drop(shared);
        let alone = batch.separate(&[1, 4]);
        assert_eq!(parts(&alone.named), [(vec![1, 4], vec![11, 14])]);
        assert_eq!(parts(&alone.others), [(vec![0, 2, 3], vec![10, 12, 13])]);

        let [_, right] = Batch::new(vec![10, 11, 12, 13]).halves();
        let part = right.separate(&[0]);
        assert_eq!(parts(&part.named), [(vec![0], vec![12])]);
        assert_eq!(parts(&part.others), [(vec![1], vec![13])]);
        assert!(Batch::new(vec![1]).separate(&[0]).others.is_empty());
    }
}
