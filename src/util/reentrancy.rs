//! Marks a thread while it runs code that a drain waits for.
//!
//! A drain that is polled under the mark of its own registry would wait for itself. What is tracked under the mark is
//! accepted while the drain is closing.

use std::cell::{Cell, RefCell};

use crate::util::sync::thread_local;

/// No registry has this number.
const NONE: usize = 0;

thread_local! {
    /// The registry whose mark was set last. A cell of its own, because a second mark is rare.
    static INNERMOST: Cell<usize> = const { Cell::new(NONE) };
    /// The registry of the event that runs, if that has a concurrency limit.
    static EVENT: Cell<usize> = const { Cell::new(NONE) };
    /// The registries whose marks were set before it.
    static OUTER: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// Keeps the thread marked as one that runs an event of a registry, until it is dropped.
#[must_use = "the mark is gone when this is dropped"]
pub(crate) struct EventMark {
    before: usize,
}

impl EventMark {
    pub(crate) fn new(registry: usize) -> Self {
        Self { before: EVENT.with(|event| event.replace(registry)) }
    }
}

impl Drop for EventMark {
    fn drop(&mut self) {
        EVENT.with(|event| event.set(self.before));
    }
}

/// Whether this thread runs an event of `registry`, which has a concurrency limit.
pub(crate) fn is_inside_event(registry: usize) -> bool {
    EVENT.with(Cell::get) == registry
}

/// Keeps the thread under the mark of a registry until it is dropped.
#[must_use = "the mark is gone when this is dropped"]
pub(crate) struct Mark {
    before: usize,
    /// Whether the registry that was marked before is in `OUTER`.
    pushed: bool,
}

impl Mark {
    #[inline]
    pub(crate) fn new(registry: usize) -> Self {
        let before = INNERMOST.with(|innermost| innermost.replace(registry));
        let pushed = before != NONE && before != registry && push_outer(before);
        Self { before, pushed }
    }
}

impl Drop for Mark {
    #[inline]
    fn drop(&mut self) {
        INNERMOST.with(|innermost| innermost.set(self.before));
        if self.pushed {
            // An error means that the thread is ending and its marks are gone already.
            let _ = OUTER.try_with(|outer| outer.borrow_mut().pop());
        }
    }
}

#[cold]
fn push_outer(registry: usize) -> bool {
    OUTER.try_with(|outer| outer.borrow_mut().push(registry)).is_ok()
}

/// Runs `run` under the mark of `registry`.
#[inline(always)]
pub(crate) fn enter<T>(registry: usize, run: impl FnOnce() -> T) -> T {
    let _mark = Mark::new(registry);
    run()
}

/// Whether this thread is under the mark of `registry`.
pub(crate) fn is_inside(registry: usize) -> bool {
    INNERMOST.with(Cell::get) == registry || OUTER.try_with(|outer| outer.borrow().contains(&registry)).unwrap_or(false)
}

#[cfg(all(test, not(track_events_loom)))]
mod tests {
    use super::{Mark, enter, is_inside};

    #[test]
    fn marks_nest_and_end_in_the_reverse_order() {
        assert!(!is_inside(1));
        let outer = Mark::new(1);
        enter(2, || {
            assert!(is_inside(1) && is_inside(2));
            enter(1, || assert!(is_inside(1) && is_inside(2)));
            assert!(is_inside(1) && is_inside(2));
        });
        assert!(is_inside(1) && !is_inside(2));
        drop(outer);
        assert!(!is_inside(1));
    }

    #[test]
    fn a_panic_takes_the_mark_away() {
        let _ = crate::util::panic::catch(|| enter(1, || panic!("user code")));
        assert!(!is_inside(1));
    }
}
