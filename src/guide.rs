//! Pages to read: how a response ends, how to shut a server down, and what to do at capacity.
//!
//! - [`outcomes`]: each way in which an exchange ends, when its events start, and what its
//!   [`Exchange`](crate::Exchange) contains.
//! - [`client_left`]: which events run when the client leaves.
//! - [`shutdown`]: one call from the signal to the exit, the limits of platforms, and what each server does.
//! - [`sinks`]: typed events in batches, and what each way to store them survives.
//! - [`capacity`]: what happens at capacity, and what to do about it.
//! - [`testing`]: tests of handlers without a server, a paused clock, and what to assert.
//! - [`task_tracker`]: migrating from `tokio_util`'s `TaskTracker` to this crate, call by call.
//! - [`context`]: what an event knows of its request: values, task-locals, spans.
//! - [`observing`]: counts, log lines, spans and metrics.

pub mod capacity {
    #![doc = include_str!("../docs/guide/capacity.md")]
}
pub mod client_left {
    #![doc = include_str!("../docs/guide/client_left.md")]
}
pub mod context {
    #![doc = include_str!("../docs/guide/context.md")]
}
pub mod observing {
    #![doc = include_str!("../docs/guide/observing.md")]
}
pub mod outcomes {
    #![doc = include_str!("../docs/guide/outcomes.md")]
}
pub mod shutdown {
    // Its code needs the crates of servers: `tests/servers` compiles it, and that of the README.
    #![cfg_attr(not(doctest), doc = include_str!("../docs/guide/shutdown.md"))]
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
