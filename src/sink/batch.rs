//! [`Batch`]: the values of one delivery. [`Undelivered`]: values that could not be delivered.

use std::{fmt, ops::Deref, ops::Range, sync::Arc};

/// Events that are delivered together, in the order in which they were sent. Never empty.
///
/// It dereferences to a slice. Clones share the events, so a clone is cheap.
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

    /// Returns a part of this batch, which shares the values.
    fn part(&self, range: Range<usize>) -> Self {
        let at = self.range.start;
        Self { values: Arc::clone(&self.values), range: at + range.start..at + range.end }
    }

    /// Returns two parts whose lengths differ by one at most.
    pub(super) fn halves(self) -> [Self; 2] {
        let (middle, end) = (self.len() / 2, self.len());
        [self.part(0..middle), self.part(middle..end)]
    }

    /// Separates the values with these indices, which must be in order, from the others. If the values are not shared,
    /// both results are one batch each. Otherwise they are one batch for each run of values.
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

/// The result of [`Batch::separate`]: batches with the indices of their values in the original batch.
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

/// Events that could not be delivered, in the order in which they were sent. Never empty.
///
/// [`SinkBuilder::on_undelivered`](crate::SinkBuilder::on_undelivered) lists the reasons. The store may contain some of
/// the events, if an attempt was dropped before its end.
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

    /// Returns the name of the sink.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Returns the events, in the order in which they were sent.
    pub fn iter(&self) -> impl Iterator<Item = &E> {
        self.batches.iter().flat_map(|batch| batch.iter())
    }

    /// Returns the number of events, which is at least one.
    // It is never empty.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.batches.iter().map(|batch| batch.len()).sum()
    }

    /// Returns the error of the last attempt to deliver, with its causes, in one line. `None` if there was no attempt.
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
