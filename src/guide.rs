//! Pages to read: when an exchange is over, how to shut a server down, how to write into a store, what happens when there
//! is no room, how to test handlers, how to see what goes on, and how to come here from a `TaskTracker`.
//!
//! - [`outcomes`]: each way in which an exchange ends, when its events start, and what an
//!   [`Exchange`](crate::Exchange) says of it.
//! - [`client_left`]: which events run when the client leaves.
//! - [`shutdown`]: the steps between the signal and the exit, their budget, and the wiring for each server.
//! - [`sinks`]: typed events in batches, and what each way to store them survives.
//! - [`capacity`]: what happens when the house is full, and what to do about it.
//! - [`testing`]: handlers without a server, a clock that is paused, and what to assert.
//! - [`task_tracker`]: from `tokio_util`'s `TaskTracker` to this crate, call by call.
//! - [`observing`]: spans, log lines, counts and metrics.

pub mod capacity {
    #![doc = include_str!("../docs/guide/capacity.md")]
}
pub mod client_left {
    #![doc = include_str!("../docs/guide/client_left.md")]
}
pub mod observing {
    #![doc = include_str!("../docs/guide/observing.md")]
}
pub mod outcomes {
    #![doc = include_str!("../docs/guide/outcomes.md")]
}
pub mod shutdown {
    #![doc = include_str!("../docs/guide/shutdown.md")]
}
pub mod sinks {
    #![doc = include_str!("../docs/guide/sinks.md")]
}
pub mod task_tracker {
    #![doc = include_str!("../docs/guide/task_tracker.md")]
}
pub mod testing {
    #![doc = include_str!("../docs/guide/testing.md")]
}
