//! Every interleaving of the ledger of `tower-track-events`, by loom.
//!
//! The ledger is the one that is released, but for the module of its locks and atomics, which are loom's here. Beside it
//! stand copies with one bug each. A model that cannot fail proves nothing, so each bug has a test that
//! must panic, with the words of the assertion that is meant.
//!
//! Who waits does not block in a model. It keeps what it was told (woken or not), and when everybody else has gone it
//! must have come to its end or have been woken: otherwise it would sleep for ever.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

#[path = "../../src/contain.rs"]
mod contain;
#[allow(dead_code, reason = "the ledger needs a part of it")]
#[path = "../../src/entry.rs"]
mod entry;
#[allow(dead_code, reason = "the ledger needs a part of it")]
#[path = "../../src/lane.rs"]
mod lane;
#[allow(dead_code, reason = "the ledger needs a part of it")]
#[path = "../../src/refused.rs"]
mod refused;
#[allow(dead_code, reason = "the ledger needs a part of it")]
#[path = "../../src/snapshot.rs"]
mod snapshot;

/// In the place of that of the crate, whose locks and atomics are std's. The reference counts are std's here as well, because
/// a method cannot be called on another `Arc`.
mod sync {
    use std::sync::PoisonError;

    pub(crate) use loom::sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering},
    };

    pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The rooms of one ledger.
macro_rules! rooms {
    ($ledger:expr) => {
        rooms!($ledger; idle_waits ledger line room_queue waiters);
    };
    ($ledger:expr; $($room:ident)*) => {$(
        #[allow(dead_code, unused, reason = "the models need a part of it, and a bug may leave a part unused")]
        mod $room {
            include!(concat!(env!("OUT_DIR"), "/", $ledger, "/", stringify!($room), ".rs"));
        }
    )*};
}

rooms!("released");

pub mod models;

/// The models once more for each ledger with a bug.
pub mod seeded {
    macro_rules! seeds {
        ($($name:ident)*) => {$(
            pub mod $name {
                #[allow(unused_imports, reason = "the ledger needs a part of them")]
                use crate::{contain, entry, lane, refused, snapshot, sync};
                rooms!(stringify!($name));
                pub mod models {
                    include!("models.rs");
                }
            }
        )*};
    }

    seeds! {
        leave_wakes_nobody
        leave_asks_for_waiters_before_it_locks
        close_does_not_look_for_entries
        close_does_not_look_at_lanes
        close_leaves_a_lane_open
        empty_lane_wakes_nobody
        lanes_are_counted_before_the_shards
        lane_reaches_no_wait
        close_looks_at_one_shard_after_the_other
        close_leaves_a_shard_open
        close_wakes_nobody
        ending_is_counted_after_the_lock
        room_is_given_twice
        verdict_is_full_under_one_lock
        abort_is_said_after_its_locks
        hold_asks_before_it_locks
        wait_begins_after_its_locks
        wait_is_for_later_events_too
        queue_is_entered_without_locks
        queue_is_served_after_the_lock
        last_in_the_queue_is_first
        grant_to_one_who_left_is_forgotten
        grant_that_was_not_taken_is_forgotten
        poll_forgets_who_polls_again
        abort_forgets_what_is_recorded
        recorded_after_an_abort_is_kept
        given_up_drain_leaves_its_waker
        given_up_drain_says_that_nobody_waits
        arrival_sends_nobody
        leave_sends_nobody
        last_drop_leaves_the_line
        end_and_take_wakes_nobody
    }
}

/// The order of the two steps of a drain's poll. The second is a bug.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Order {
    RegistersThenLooks,
    LooksThenRegisters,
}

/// How many times a thread may be interrupted in one execution, where not all executions can be seen.
#[derive(Clone, Copy)]
pub enum Depth {
    All,
    Preemptions(usize),
}

/// Runs a model in all its executions, and prints how many these were.
pub fn explore(name: &'static str, depth: Depth, model: impl Fn() + Send + Sync + 'static) {
    let executions = Executions::of(name, depth);
    let count = Arc::clone(&executions.count);
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 10_000;
    // What is printed is true whatever the environment says.
    (builder.max_duration, builder.max_permutations) = (None, None);
    builder.preemption_bound = match depth {
        Depth::All => None,
        Depth::Preemptions(bound) => Some(bound),
    };
    builder.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        model();
    });
}

#[expect(clippy::disallowed_types, reason = "a model has no clock but the real one")]
struct Executions {
    name: &'static str,
    depth: Depth,
    count: Arc<AtomicUsize>,
    began: std::time::Instant,
}

impl Executions {
    #[expect(clippy::disallowed_types, reason = "a model has no clock but the real one")]
    fn of(name: &'static str, depth: Depth) -> Self {
        Self { name, depth, count: Arc::default(), began: std::time::Instant::now() }
    }
}

/// Printed here, because a seeded model ends by a panic.
impl Drop for Executions {
    fn drop(&mut self) {
        let Self { name, depth, count, began } = self;
        let (count, time) = (count.load(Ordering::Relaxed), began.elapsed());
        let extent = match depth {
            Depth::All => "all interleavings".to_owned(),
            Depth::Preemptions(bound) => format!("up to {bound} preemptions"),
        };
        let end = if std::thread::panicking() { "fails in the last" } else { "holds in each" };
        println!("{name}: {count} executions, {extent}, {end}, {time:.1?}");
    }
}
