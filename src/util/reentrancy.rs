//! [`Mark`]: marks a thread while it runs code for which a drain waits.
//!
//! A drain that is polled under the mark of its own registry would wait for itself, so it returns an error. Events that
//! are tracked under the mark are accepted while the drain is closing.

use std::cell::{Cell, RefCell};

use crate::util::sync::thread_local;

/// The number that no registry has.
const NONE: usize = 0;

/// The bit of a mark that is set while an event runs. The numbers of registries are addresses, and even.
const EVENT: usize = 1;

thread_local! {
    /// The mark that was set last. It has a cell of its own, because a second mark is rare.
    static INNERMOST: Cell<usize> = const { Cell::new(NONE) };
    /// The marks that were set before it.
    static OUTER: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// Keeps the thread under the mark of a registry until it is dropped.
#[must_use = "the mark is removed when this is dropped"]
pub(crate) struct Mark {
    before: usize,
    /// Whether `before` was pushed to `OUTER`.
    pushed: bool,
}

impl Mark {
    #[inline]
    pub(crate) fn new(registry: usize) -> Self {
        Self::set(registry)
    }

    #[inline]
    fn set(mark: usize) -> Self {
        let before = INNERMOST.with(|innermost| innermost.replace(mark));
        let pushed = before != NONE && before | EVENT != mark | EVENT && push_outer(before | EVENT);
        Self { before, pushed }
    }
}

impl Drop for Mark {
    #[inline]
    fn drop(&mut self) {
        INNERMOST.with(|innermost| innermost.set(self.before));
        if self.pushed {
            // An error means that the thread is ending and its marks have been dropped.
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

/// Runs `run` under the mark of `registry`, as a part of an event.
#[inline(always)]
pub(crate) fn enter_event<T>(registry: usize, run: impl FnOnce() -> T) -> T {
    let _mark = Mark::set(registry | EVENT);
    run()
}

/// Returns whether this thread is under the mark of `registry`.
pub(crate) fn is_inside(registry: usize) -> bool {
    let mark = registry | EVENT;
    INNERMOST.with(Cell::get) | EVENT == mark || OUTER.try_with(|outer| outer.borrow().contains(&mark)).unwrap_or(false)
}

/// Returns whether the innermost mark of this thread is that of an event of `registry`.
pub(crate) fn is_inside_event(registry: usize) -> bool {
    INNERMOST.with(Cell::get) == registry | EVENT
}

#[cfg(all(test, not(track_events_loom)))]
mod tests {
    use super::{Mark, enter, enter_event, is_inside, is_inside_event};

    #[test]
    fn marks_nest_and_end_in_the_reverse_order() {
        assert!(!is_inside(2));
        let outer = Mark::new(2);
        enter(4, || {
            assert!(is_inside(2) && is_inside(4));
            enter(2, || assert!(is_inside(2) && is_inside(4)));
            assert!(is_inside(2) && is_inside(4));
        });
        assert!(is_inside(2) && !is_inside(4));
        drop(outer);
        assert!(!is_inside(2));
    }

    #[test]
    fn an_event_is_told_from_other_code_of_its_registry() {
        enter(2, || {
            assert!(is_inside(2) && !is_inside_event(2));
            enter_event(2, || {
                assert!(is_inside(2) && is_inside_event(2));
                enter(4, || assert!(is_inside(2) && is_inside(4) && !is_inside_event(4)));
                enter_event(4, || assert!(is_inside(2) && is_inside_event(4) && !is_inside_event(2)));
                assert!(is_inside_event(2) && !is_inside(4));
            });
            assert!(is_inside(2) && !is_inside_event(2));
        });
    }

    #[test]
    fn a_panic_takes_the_mark_away() {
        let _ = crate::util::panic::catch(|| enter(2, || panic!("user code")));
        assert!(!is_inside(2));
    }
}
