//! A mark on this thread while something that a drain waits for is being polled.
//!
//! A drain that is polled under the mark of its own ledger would wait for itself.

use std::cell::RefCell;

thread_local! {
    /// The ledgers under whose mark this thread is, innermost last.
    static MARKS: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

struct Unmark;

impl Drop for Unmark {
    fn drop(&mut self) {
        // An error means that the thread is ending and its marks are gone already.
        let _ = MARKS.try_with(|marks| marks.borrow_mut().pop());
    }
}

/// Runs `run` under the mark of `ledger`.
pub(crate) fn enter<T>(ledger: usize, run: impl FnOnce() -> T) -> T {
    let _unmark = MARKS.try_with(|marks| marks.borrow_mut().push(ledger)).map(|()| Unmark);
    run()
}

/// Whether this thread is under the mark of `ledger`.
pub(crate) fn is_inside(ledger: usize) -> bool {
    MARKS.try_with(|marks| marks.borrow().contains(&ledger)).unwrap_or(false)
}
