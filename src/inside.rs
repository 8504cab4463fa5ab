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

/// Puts back what was there before.
struct Unmark(usize);

impl Drop for Unmark {
    fn drop(&mut self) {
        INNERMOST.set(self.0);
    }
}

struct ForgetOuter;

impl Drop for ForgetOuter {
    fn drop(&mut self) {
        // An error means that the thread is ending and its marks are gone already.
        let _ = OUTER.try_with(|outer| outer.borrow_mut().pop());
    }
}

/// Runs `run` under the mark of `ledger`.
pub(crate) fn enter<T>(ledger: usize, run: impl FnOnce() -> T) -> T {
    let before = INNERMOST.replace(ledger);
    let _unmark = Unmark(before);
    let is_new = before != NONE && before != ledger;
    let _forget = is_new.then(|| OUTER.try_with(|outer| outer.borrow_mut().push(before)).map(|()| ForgetOuter));
    run()
}

/// Whether this thread is under the mark of `ledger`.
pub(crate) fn is_inside(ledger: usize) -> bool {
    INNERMOST.get() == ledger || OUTER.try_with(|outer| outer.borrow().contains(&ledger)).unwrap_or(false)
}
