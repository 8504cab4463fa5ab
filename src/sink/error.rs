//! [`SinkError`]: the error of a delivery, which says what happens to the batch.

use std::{error::Error, fmt, time::Duration};

use crate::event::BoxError;

/// The error of a delivery, which says what happens to the batch.
///
/// The error of a sink's service or closure may be of any type that converts into a `Box<dyn Error + Send + Sync>`. If
/// neither the error nor one of its [sources](Error::source) is a `SinkError`, it means [`retry`](Self::retry). So a
/// `SinkError` keeps its meaning inside of other errors: `anyhow::Error`, `Arc`, `io::Error::other`, the errors of
/// Tower's `Timeout` and `Buffer`, and your own errors whose `source` leads to it.
///
/// Indices are positions in the batch that was attempted, from 0. If one is out of range, the whole batch is retried.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// use tower_track_events::sink::SinkError;
///
/// struct Response {
///     status: u16,
///     retry_after: Option<Duration>,
///     refused_rows: Vec<usize>,
/// }
///
/// fn check(response: Response) -> Result<(), SinkError> {
///     match (response.status, response.retry_after) {
///         (200, _) if response.refused_rows.is_empty() => Ok(()),
///         (200, _) => Err(SinkError::rejected(response.refused_rows, "not valid")),
///         (413, _) => Err(SinkError::split("too large")),
///         (429, Some(after)) => Err(SinkError::retry_after(after, "too many requests")),
///         (401 | 403, _) => Err(SinkError::permanent("the key is not valid")),
///         (status, _) => Err(SinkError::retry(format!("status {status}"))),
///     }
/// }
/// ```
pub struct SinkError {
    decision: Decision,
}

/// What happens to the batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    Retry,
    RetryAfter(Duration),
    Permanent,
    Split,
    /// The values with these indices cannot be delivered. The others were delivered.
    Rejected(Vec<usize>),
    /// The values with these indices cannot be delivered. The others are retried.
    RetryWithout(Vec<usize>),
    /// The values with these indices are retried. The others were delivered.
    RetryOnly(Vec<usize>),
}

/// The source of a [`SinkError`]. An error like `io::Error::other` hides the error that it wraps, and has the source of
/// that error as its own. So the meaning is found in the source.
struct Decision {
    meaning: Meaning,
    error: BoxError,
}

impl SinkError {
    /// Makes an error after which the batch is retried after the [back-off](crate::SinkBuilder::backoff).
    pub fn retry(error: impl Into<BoxError>) -> Self {
        Self::new(Meaning::Retry, error)
    }

    /// Makes an error after which the batch is retried after this time, instead of the back-off.
    ///
    /// Use it for example for the header `Retry-After` (RFC 9110, 10.2.3). A drain ends this wait once, as it does with
    /// a back-off.
    pub fn retry_after(after: Duration, error: impl Into<BoxError>) -> Self {
        Self::new(Meaning::RetryAfter(after), error)
    }

    /// Makes an error for a batch that cannot be delivered. All of its events are passed to
    /// [`on_undelivered`](crate::SinkBuilder::on_undelivered), and count as failed.
    pub fn permanent(error: impl Into<BoxError>) -> Self {
        Self::new(Meaning::Permanent, error)
    }

    /// Makes an error for a batch that is too large. It is delivered in two halves. A single event that is too large
    /// cannot be delivered.
    pub fn split(error: impl Into<BoxError>) -> Self {
        Self::new(Meaning::Split, error)
    }

    /// Makes an error for events that cannot be delivered. *The store has the others*: they have completed.
    pub fn rejected(events: impl IntoIterator<Item = usize>, error: impl Into<BoxError>) -> Self {
        Self::new(Meaning::Rejected(sorted(events)), error)
    }

    /// Makes an error for events that cannot be delivered. *The store has none of the batch*: the others are retried at
    /// once.
    pub fn retry_without(events: impl IntoIterator<Item = usize>, error: impl Into<BoxError>) -> Self {
        Self::new(Meaning::RetryWithout(sorted(events)), error)
    }

    /// Makes an error for events that are retried after the back-off. *The store has the others*: they have completed.
    pub fn retry_only(events: impl IntoIterator<Item = usize>, error: impl Into<BoxError>) -> Self {
        Self::new(Meaning::RetryOnly(sorted(events)), error)
    }

    fn new(meaning: Meaning, error: impl Into<BoxError>) -> Self {
        Self { decision: Decision { meaning, error: error.into() } }
    }
}

/// Returns the indices in order and without duplicates.
fn sorted(indices: impl IntoIterator<Item = usize>) -> Vec<usize> {
    let mut indices: Vec<_> = indices.into_iter().collect();
    indices.sort_unstable();
    indices.dedup();
    indices
}

/// Returns the meaning of the first [`SinkError`] among an error and its sources. Without one it is `Retry`.
pub(super) fn meaning(error: &(dyn Error + 'static)) -> Meaning {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(decision) = error.downcast_ref::<Decision>() {
            return decision.meaning.clone();
        }
        next = error.source();
    }
    Meaning::Retry
}

/// Writes the error that it was made with.
impl fmt::Display for SinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.decision.fmt(f)
    }
}

impl fmt::Debug for SinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Decision { meaning, error } = &self.decision;
        f.debug_struct("SinkError").field("meaning", meaning).field("error", error).finish()
    }
}

impl Error for SinkError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.decision)
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl fmt::Debug for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.error, f)
    }
}

impl Error for Decision {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.error)
    }
}

#[cfg(test)]
mod tests {
    use std::{error::Error, fmt, io, sync::Arc};

    use super::{Meaning, SinkError, meaning};

    /// Has the text and the source of the error that it contains.
    #[derive(Debug)]
    struct Transparent(SinkError);

    impl fmt::Display for Transparent {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.fmt(f)
        }
    }

    impl Error for Transparent {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.0.source()
        }
    }

    #[test]
    fn the_meaning_is_found_inside_of_other_errors() {
        let split = || SinkError::split("too large");
        let errors: [Box<dyn Error + Send + Sync>; 6] = [
            split().into(),
            Box::new(Arc::new(split())),
            Box::new(io::Error::other(split())),
            Box::new(Transparent(split())),
            Box::new(io::Error::other(Transparent(split()))),
            split().to_string().into(),
        ];
        let meanings: Vec<_> = errors.iter().map(|error| meaning(&**error)).collect();
        assert_eq!(meanings[..5], [Meaning::Split, Meaning::Split, Meaning::Split, Meaning::Split, Meaning::Split]);
        // A text has no meaning.
        assert_eq!(meanings[5], Meaning::Retry);
        assert_eq!(errors[2].to_string(), "too large");
    }

    #[test]
    fn the_outermost_meaning_counts_and_indices_are_sorted() {
        let inner = SinkError::permanent("key");
        assert_eq!(meaning(&SinkError::retry_only([3, 1, 3], inner)), Meaning::RetryOnly(vec![1, 3]));
    }
}
