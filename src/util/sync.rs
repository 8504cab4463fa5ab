//! The locks and atomics of the registry and of the sinks: those of std, or of loom in the models.

#[cfg(not(all(test, track_events_loom)))]
pub(crate) use std::{
    sync::{Mutex, MutexGuard, atomic},
    thread_local,
};

#[cfg(all(test, track_events_loom))]
pub(crate) use loom::sync::{Mutex, MutexGuard, atomic};

/// Locks a mutex, and ignores poisoning: no user code runs under these locks, so no panic leaves a change half done.
#[inline]
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Returns whether to make this mistake. `false`, except in the model that has to find it: see `registry::models`.
#[cfg(not(all(test, track_events_loom)))]
macro_rules! seeded {
    ($mistake:literal) => {
        false
    };
}

#[cfg(all(test, track_events_loom))]
macro_rules! seeded {
    ($mistake:literal) => {
        crate::registry::models::is_seeded($mistake)
    };
}

/// Makes the mistake to release a lock and to take it again, if [`seeded`] returns true.
macro_rules! seeded_gap {
    ($mistake:literal, $guard:ident = $lock:expr) => {
        if $crate::util::sync::seeded!($mistake) {
            drop($guard);
            $guard = $lock;
        }
    };
}

/// The macro `loom::thread_local` does not support `const`, so this one removes it.
#[cfg(all(test, track_events_loom))]
macro_rules! loom_thread_local {
    ($($(#[$attribute:meta])* static $name:ident: $type:ty = const $value:block;)*) => {
        loom::thread_local! { $($(#[$attribute])* static $name: $type = $value;)* }
    };
}

#[cfg(all(test, track_events_loom))]
pub(crate) use loom_thread_local as thread_local;
pub(crate) use {seeded, seeded_gap};
