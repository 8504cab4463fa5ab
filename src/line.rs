//! The events of one shard that wait for their first poll, and the tasks that are on their way to them.

use std::collections::VecDeque;

/// Room that is not given back.
const MUCH: usize = 1024;

pub(crate) struct Line<S> {
    events: VecDeque<S>,
    /// Tasks that will take an event: they are spawned and have not taken one yet, or come back for another.
    coming: usize,
    /// Whether one thread polls all of them. Then there is no use for a second task before the first one waits.
    in_turn: bool,
}

/// What a task that has come is told, where several threads poll.
pub(crate) struct Arrival<S> {
    pub(crate) event: Option<S>,
    /// How many tasks it has to spawn for those that are left.
    pub(crate) due: usize,
}

/// What a task that asks for an event is told, where one thread polls all of them.
pub(crate) struct Turn<S> {
    pub(crate) event: Option<S>,
    /// Whether it is one of those that are coming, and has to [say so](Line::leave) if it will not ask again.
    pub(crate) comes_back: bool,
}

impl<S> Default for Line<S> {
    fn default() -> Self {
        Self { events: VecDeque::new(), coming: 0, in_turn: false }
    }
}

impl<S> Line<S> {
    pub(crate) fn poll_in_turn(&mut self, in_turn: bool) {
        self.in_turn = in_turn;
    }

    #[inline]
    pub(crate) fn push(&mut self, event: S) {
        self.events.push_back(event);
    }

    /// How many tasks are to be spawned, which counts them.
    #[inline]
    pub(crate) fn due(&mut self) -> usize {
        let due = self.wanted().saturating_sub(self.coming);
        self.coming += due;
        due
    }

    /// How many tasks are to be on their way. Where there are several threads these are two for several events: the one
    /// that a thread has spawned last no other thread takes from it.
    #[inline]
    fn wanted(&self) -> usize {
        self.events.len().min(if self.in_turn { 1 } else { 2 })
    }

    /// The next event. Whoever takes it was not on its way to it, and others are for those that are left.
    #[inline(always)]
    pub(crate) fn next(&mut self) -> Option<S> {
        let event = self.events.pop_front();
        if self.events.is_empty() {
            // Begins at the front again: else it would go round through memory that many have waited in once.
            self.events.clear();
            self.events.shrink_to(MUCH);
        }
        event
    }

    /// One of the tasks that are coming is here, and asks for an event. On a runtime of several threads.
    #[inline]
    pub(crate) fn arrive(&mut self) -> Arrival<S> {
        let event = self.next();
        self.coming -= 1;
        Arrival { event, due: self.due() }
    }

    /// A task, which is one of those that are coming or is not, asks for an event. On a runtime of one thread: no task is due
    /// while it comes back itself.
    #[inline(always)]
    pub(crate) fn take_turn(&mut self, is_coming: bool) -> Turn<S> {
        debug_assert!(self.in_turn, "on several threads a task does not come back");
        let event = self.next();
        let comes_back = !self.events.is_empty();
        self.coming = self.coming + usize::from(comes_back) - usize::from(is_coming);
        Turn { event, comes_back }
    }

    /// One of the tasks that are coming has found an event that keeps it. How many are due in its place.
    pub(crate) fn leave(&mut self) -> usize {
        self.coming -= 1;
        self.due()
    }

    /// One of the tasks that are coming will not. What it leaves if no other does.
    pub(crate) fn give_up(&mut self) -> VecDeque<S> {
        self.coming -= 1;
        if self.coming == 0 { std::mem::take(&mut self.events) } else { VecDeque::new() }
    }
}
