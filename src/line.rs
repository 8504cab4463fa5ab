//! The events of one shard that wait for their first poll, and the tasks that are on their way to them.

use std::collections::VecDeque;

/// How many events a task takes before it leaves the thread to others; and, because of this, how many wait for each
/// task that is on its way.
pub(crate) const EVENTS_PER_TASK: usize = 16;

/// Room that is not given back.
const MUCH: usize = 1024;

pub(crate) struct Line<S> {
    events: VecDeque<S>,
    /// Tasks that are spawned and have not taken an event yet.
    coming: usize,
}

/// What a task that takes an event is told.
pub(crate) struct Taken<S> {
    pub(crate) event: Option<S>,
    /// How many tasks it has to spawn for those that are left.
    pub(crate) due: usize,
    /// Whether, with these, one task alone is on its way.
    pub(crate) is_last_coming: bool,
}

impl<S> Default for Line<S> {
    fn default() -> Self {
        Self { events: VecDeque::new(), coming: 0 }
    }
}

impl<S> Line<S> {
    #[inline]
    pub(crate) fn push(&mut self, event: S) {
        self.events.push_back(event);
    }

    /// How many tasks are to be spawned, which counts them. For several events there is one more than they need: the one
    /// that a thread has spawned last no other thread takes from it.
    #[inline]
    pub(crate) fn due(&mut self) -> usize {
        let events = self.events.len();
        let due = (events.div_ceil(EVENTS_PER_TASK) + usize::from(events > 1)).saturating_sub(self.coming);
        self.coming += due;
        due
    }

    /// The next event, for a task that has come before or comes now.
    #[inline]
    pub(crate) fn take(&mut self, comes_now: bool) -> Taken<S> {
        self.coming -= usize::from(comes_now);
        let event = self.events.pop_front();
        if self.events.is_empty() {
            // Begins at the front again: else it would go round through memory that many have waited in once.
            self.events.clear();
            self.events.shrink_to(MUCH);
        }
        let due = self.due();
        Taken { event, due, is_last_coming: self.coming == 1 }
    }

    /// One of the tasks will not come. What it leaves if no other does.
    pub(crate) fn give_up(&mut self) -> VecDeque<S> {
        self.coming -= 1;
        if self.coming == 0 { std::mem::take(&mut self.events) } else { VecDeque::new() }
    }
}
