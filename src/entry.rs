//! What the ledger keeps of each thing that a drain waits for.

use std::{panic::Location, time::Duration};

/// Nanoseconds on the clock that the ledger is given.
pub(crate) type Nanos = u64;

#[inline]
pub(crate) fn nanos(duration: Duration) -> Nanos {
    Nanos::try_from(duration.as_nanos()).unwrap_or(Nanos::MAX)
}

/// Numbers the times between two aborts or waits for idleness.
pub(crate) type Era = u64;

#[derive(Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    /// Set when it enters.
    pub(crate) era: Era,
    pub(crate) location: &'static Location<'static>,
    pub(crate) since: Nanos,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    Request,
    Guard,
    Permit,
    Event { name: &'static str, stage: Stage },
}

/// How far an event is. As wide as what it is beside: parts of a word are slow to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(usize)]
pub(crate) enum Stage {
    /// Its exchange is open.
    Recorded,
    Started,
    /// It occupies a blocking thread, and cannot be aborted.
    Blocking,
    /// It waits for its sink to take it.
    Queued,
}

impl Entry {
    /// Of an event.
    #[inline]
    pub(crate) fn advance(&mut self, to: Stage) {
        if let Kind::Event { stage, .. } = &mut self.kind {
            *stage = to;
        }
    }

    pub(crate) fn is_event_before(&self, era: Era) -> bool {
        matches!(self.kind, Kind::Event { .. }) && self.era < era
    }
}

impl Kind {
    #[inline]
    pub(crate) fn needs_room(self) -> bool {
        matches!(self, Self::Permit | Self::Event { .. })
    }
}

/// Entries at stable keys, each with `H` beside it, and a list of free places threaded through them.
///
/// They are in chunks, so that many can be pending without a long pause in which all are moved, nor room for twice as many.
pub(crate) struct Slots<H> {
    chunks: Vec<Box<[Slot<H>]>>,
    /// The first free place, if it is not beyond the end.
    free: u32,
    len: u32,
}

/// Places in a chunk.
const CHUNK: u32 = 64;

enum Slot<H> {
    Vacant { next: u32 },
    Taken(Entry, H),
}

impl<H> Default for Slots<H> {
    fn default() -> Self {
        Self { chunks: Vec::new(), free: 0, len: 0 }
    }
}

impl<H> Slots<H> {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn len(&self) -> u64 {
        self.len.into()
    }

    #[inline(always)]
    pub(crate) fn insert(&mut self, entry: Entry, beside: H) -> u32 {
        let key = self.free;
        if key as usize == self.chunks.len() * CHUNK as usize {
            self.grow();
        }
        if let Some(slot) = self.slot(key) {
            if let Slot::Vacant { next } = *slot {
                *slot = Slot::Taken(entry, beside);
                self.free = next;
                self.len += 1;
            }
        }
        key
    }

    #[cold]
    fn grow(&mut self) {
        let first = self.free;
        self.chunks.push((1..=CHUNK).map(|place| Slot::Vacant { next: first + place }).collect());
    }

    #[inline]
    fn slot(&mut self, key: u32) -> Option<&mut Slot<H>> {
        self.chunks.get_mut((key / CHUNK) as usize)?.get_mut((key % CHUNK) as usize)
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, key: u32) -> Option<(&mut Entry, &mut H)> {
        match self.slot(key) {
            Some(Slot::Taken(entry, beside)) => Some((entry, beside)),
            _ => None,
        }
    }

    /// Removes what is at this key, if anything is.
    #[inline(always)]
    pub(crate) fn remove(&mut self, key: u32) {
        let next = self.free;
        if let Some(slot @ Slot::Taken(..)) = self.slot(key) {
            *slot = Slot::Vacant { next };
            self.free = key;
            self.len -= 1;
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.chunks.iter().flatten().filter_map(|slot| match slot {
            Slot::Taken(entry, _) => Some(entry),
            Slot::Vacant { .. } => None,
        })
    }

    /// What is beside each entry.
    pub(crate) fn beside_mut(&mut self) -> impl Iterator<Item = &mut H> {
        self.chunks.iter_mut().flatten().filter_map(|slot| match slot {
            Slot::Taken(_, beside) => Some(beside),
            Slot::Vacant { .. } => None,
        })
    }
}
