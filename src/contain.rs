//! [`contain`]: a panic of user code goes no further. [`wake`]: nor does one of a waker.

use std::{
    any::Any,
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    task::Waker,
};

/// Runs user code and gives the message of its panic as an error.
///
/// What the closure has changed may be half done after a panic: that is for the caller to know.
pub(crate) fn contain<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(message)
}

fn message(payload: Box<dyn Any + Send>) -> String {
    let message = match payload.downcast_ref::<&'static str>() {
        Some(text) => (*text).to_owned(),
        None => payload.downcast_ref::<String>().cloned().unwrap_or_else(|| "a payload that is not text".to_owned()),
    };
    // The destructor of a payload may panic as well. What it panics with is leaked: there is no end to this otherwise.
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        mem::forget(second);
    }
    message
}

/// Wakes each of them. Wakers are user code, and this may run in a destructor: one that panics does not keep the next from it.
#[inline]
pub(crate) fn wake(wakers: impl IntoIterator<Item = Waker>) {
    for waker in wakers {
        let _ = contain(|| waker.wake());
    }
}
