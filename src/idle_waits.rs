//! The waits until what was accepted before an era has ended.

use std::{
    mem,
    task::{Poll, Waker},
};

use crate::entry::Era;

/// Those that have begun, each under a number, which lanes are told as well.
#[derive(Default)]
pub(crate) struct IdleWaits {
    next_id: u64,
    waits: Vec<IdleEntry>,
}

struct IdleEntry {
    id: u64,
    before: Era,
    /// Events of shards, and lanes.
    remaining: u64,
    waker: Option<Waker>,
}

impl IdleEntry {
    /// Counts one thing less to wait for, and gives whom to wake if it was the last.
    fn reach(&mut self) -> Option<Waker> {
        self.remaining -= 1;
        if self.remaining == 0 { self.waker.take() } else { None }
    }
}

impl IdleWaits {
    /// A number for one more.
    pub(crate) fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// So many events of shards, accepted before this era, and lanes are waited for.
    pub(crate) fn begin(&mut self, id: u64, before: Era, remaining: u64) {
        self.waits.push(IdleEntry { id, before, remaining, waker: None });
    }

    /// Under the lock of the event's shard, so that no wait for events of shards begins meanwhile. Gives whom to wake.
    pub(crate) fn event_ended(&mut self, era: Era) -> Vec<Waker> {
        let mut idle = Vec::new();
        for wait in self.waits.iter_mut().filter(|wait| wait.before > era) {
            idle.extend(wait.reach());
        }
        idle
    }

    /// A lane has come to where this wait is for. Gives whom to wake.
    pub(crate) fn lane_reached(&mut self, id: u64) -> Option<Waker> {
        self.get_mut(id)?.reach()
    }

    /// Whether all that is waited for has ended. If not, the waker is kept, and the one from before given in its place.
    pub(crate) fn poll(&mut self, id: u64, waker: &mut Option<Waker>) -> Poll<()> {
        match self.get_mut(id) {
            Some(wait) if wait.remaining > 0 => {
                mem::swap(&mut wait.waker, waker);
                Poll::Pending
            }
            _ => Poll::Ready(()),
        }
    }

    /// Nobody waits any more. Gives the waker.
    pub(crate) fn end(&mut self, id: u64) -> Option<Waker> {
        let place = self.waits.iter().position(|wait| wait.id == id)?;
        self.waits.swap_remove(place).waker
    }

    fn get_mut(&mut self, id: u64) -> Option<&mut IdleEntry> {
        self.waits.iter_mut().find(|wait| wait.id == id)
    }
}
