//! The drains that have been polled and have not ended, with their deadlines.

use tokio::time::Instant;

use crate::util::sync::{Mutex, lock, seeded_gap};

pub(super) struct Drains(Mutex<Vec<LiveDrain>>);

struct LiveDrain {
    id: u64,
    /// `None` if the drain has no deadline, or if it is not known. It counts as later than all others.
    deadline: Option<Instant>,
}

/// The result of [`Drains::leave`]: how the drain that left compares to the others.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// No other drain is left.
    Last,
    /// Its deadline was later than that of another drain, which may be the latest now.
    Later,
    /// No other drain has an earlier deadline.
    Earlier,
}

impl LiveDrain {
    fn ends_after(&self, other: &Self) -> bool {
        match (self.deadline, other.deadline) {
            (Some(this), Some(other)) => this > other,
            (this, other) => this.is_none() && other.is_some(),
        }
    }
}

impl Drains {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    pub(super) fn enter(&self, id: u64, deadline: Option<Instant>) {
        lock(&self.0).push(LiveDrain { id, deadline });
    }

    pub(super) fn leave(&self, id: u64) -> Left {
        let mut drains = lock(&self.0);
        let was_last = drains.iter().all(|drain| drain.id == id);
        seeded_gap!("a drain leaves in two steps", drains = lock(&self.0));
        let left = drains.iter().position(|drain| drain.id == id).map(|index| drains.swap_remove(index));
        if was_last {
            Left::Last
        } else if left.is_some_and(|left| drains.iter().any(|other| left.ends_after(other))) {
            Left::Later
        } else {
            Left::Earlier
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        lock(&self.0).is_empty()
    }

    /// Returns whether no other drain has a later deadline.
    pub(super) fn is_latest(&self, id: u64) -> bool {
        let drains = lock(&self.0);
        let this = drains.iter().find(|drain| drain.id == id);
        this.is_some_and(|this| !drains.iter().any(|other| other.ends_after(this)))
    }

    /// Returns the latest deadline. `None` if there is no drain, or if the deadline of one is not known.
    pub(super) fn latest_deadline(&self) -> Option<Instant> {
        let drains = lock(&self.0);
        let deadlines: Option<Vec<_>> = drains.iter().map(|drain| drain.deadline).collect();
        deadlines?.into_iter().max()
    }
}

#[cfg(all(test, not(track_events_loom)))]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::{Drains, Left};

    #[test]
    fn the_latest_deadline_is_that_of_the_live_drains() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let drains = Drains::new();
        assert_eq!((drains.latest_deadline(), drains.is_empty()), (None, true));
        drains.enter(1, Some(now));
        drains.enter(2, Some(later));
        assert_eq!((drains.latest_deadline(), drains.is_empty()), (Some(later), false));
        assert!(drains.is_latest(2) && !drains.is_latest(1));
        assert_eq!(drains.leave(2), Left::Later);
        assert_eq!(drains.latest_deadline(), Some(now));
        assert!(drains.is_latest(1) && !drains.is_latest(2));
        assert_eq!((drains.leave(1), drains.is_empty()), (Left::Last, true));
    }

    #[test]
    fn a_drain_without_a_known_deadline_is_the_latest() {
        let now = Instant::now();
        let drains = Drains::new();
        drains.enter(1, None);
        drains.enter(2, Some(now));
        assert_eq!(drains.latest_deadline(), None);
        assert!(drains.is_latest(1) && !drains.is_latest(2));
        drains.enter(3, None);
        assert!(drains.is_latest(1) && drains.is_latest(3), "neither is later than the other");
        assert_eq!([2, 1, 3].map(|id| drains.leave(id)), [Left::Earlier, Left::Earlier, Left::Last]);
    }
}
