//! Pages about one topic each, in the order in which to read them.
//!
//! - [`client_left`]: which events run when the client leaves.
//! - [`outcomes`]: when an exchange is over, and which of nine outcomes its events get.
//! - [`context`]: what an event knows of its request: values, task-locals, spans.
//! - [`shutdown`]: one call from the signal to the exit, on each platform and each server.
//! - [`capacity`]: what happens at capacity, and how to choose it.
//! - [`sinks`]: typed events in batches, and which failures each way to store them survives.
//! - [`observing`]: counts, log lines, spans and metrics.
//! - [`testing`]: how to test handlers and hooks without a server.
//! - [`troubleshooting`]: what an error or a log line means, and how to fix it.
//! - [`migrating`]: what replaces a `TaskTracker` and a `CancellationToken`, call by call.

pub mod capacity {
    #![doc = include_str!("../docs/guide/capacity.md")]
}
pub mod client_left {
    #![doc = include_str!("../docs/guide/client_left.md")]
}
pub mod context {
    #![doc = include_str!("../docs/guide/context.md")]
}
pub mod migrating {
    #![doc = include_str!("../docs/guide/migrating.md")]
}
pub mod observing {
    #![doc = include_str!("../docs/guide/observing.md")]
}
pub mod outcomes {
    #![doc = include_str!("../docs/guide/outcomes.md")]
}
pub mod shutdown {
    // The code of this page needs the crates of servers, so `tests/servers` compiles it.
    #![cfg_attr(not(doctest), doc = include_str!("../docs/guide/shutdown.md"))]
}
pub mod sinks {
    #![doc = include_str!("../docs/guide/sinks.md")]
}
pub mod testing {
    #![doc = include_str!("../docs/guide/testing.md")]
}
pub mod troubleshooting {
    #![doc = include_str!("../docs/guide/troubleshooting.md")]
}
