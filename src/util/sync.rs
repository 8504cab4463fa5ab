//! The locks and atomics of the registry and of the sinks: std's, or loom's where their models run.

#[cfg(not(all(test, track_events_loom)))]
pub(crate) use std::{
    sync::{Mutex, MutexGuard, atomic},
    thread_local,
};

#[cfg(all(test, track_events_loom))]
pub(crate) use loom::sync::{Mutex, MutexGuard, atomic};

/// Locks without regard to poisoning: no user code runs under these locks, so no change is left half done.
#[inline]
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Whether to make this mistake. False, except in the model that has to find it: see `registry::models`.
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

/// Makes the mistake of releasing a lock and taking it again, where [`seeded`] says so.
macro_rules! seeded_gap {
    ($mistake:literal, $guard:ident = $lock:expr) => {
        if $crate::util::sync::seeded!($mistake) {
            drop($guard);
            $guard = $lock;
        }
    };
}

/// Loom's macro, which does not know `const`.
#[cfg(all(test, track_events_loom))]
macro_rules! loom_thread_local {
    ($($(#[$attribute:meta])* static $name:ident: $type:ty = const $value:block;)*) => {
        loom::thread_local! { $($(#[$attribute])* static $name: $type = $value;)* }
    };
}

#[cfg(all(test, track_events_loom))]
pub(crate) use loom_thread_local as thread_local;
pub(crate) use {seeded, seeded_gap};
