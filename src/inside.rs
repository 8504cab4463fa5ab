//! A mark on this thread while something that a drain waits for is being polled.
//!
//! A drain that is polled under the mark of its own ledger would wait for itself.

use std::cell::{Cell, RefCell};

/// No ledger has this number.
const NONE: usize = 0;

thread_local! {
    /// The ledger under whose mark this thread is. On its own, because more than one is rare.
    static INNERMOST: Cell<usize> = const { Cell::new(NONE) };
    /// The other ledgers under whose marks it is.
    static OUTER: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// This thread is under the mark of a ledger until this is dropped.
#[must_use = "the mark is gone when this is dropped"]
pub(crate) struct Mark {
    before: usize,
    /// Whether the ledger that was marked before is among the outer ones.
    is_outer: bool,
}

impl Mark {
    #[inline]
    pub(crate) fn of(ledger: usize) -> Self {
        let before = INNERMOST.replace(ledger);
        let is_outer = before != NONE && before != ledger && push_outer(before);
        Self { before, is_outer }
    }
}

impl Drop for Mark {
    #[inline]
    fn drop(&mut self) {
        INNERMOST.set(self.before);
        if self.is_outer {
            // An error means that the thread is ending and its marks are gone already.
            let _ = OUTER.try_with(|outer| outer.borrow_mut().pop());
        }
    }
}

#[cold]
fn push_outer(ledger: usize) -> bool {
    OUTER.try_with(|outer| outer.borrow_mut().push(ledger)).is_ok()
}

/// Runs `run` under the mark of `ledger`.
#[inline(always)]
pub(crate) fn enter<T>(ledger: usize, run: impl FnOnce() -> T) -> T {
    let _mark = Mark::of(ledger);
    run()
}

/// Whether this thread is under the mark of `ledger`.
pub(crate) fn is_inside(ledger: usize) -> bool {
    INNERMOST.get() == ledger || OUTER.try_with(|outer| outer.borrow().contains(&ledger)).unwrap_or(false)
}
