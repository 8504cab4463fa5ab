//! Pages to read: when an exchange is over, how to shut a server down, how to write into a store, and how to see what
//! goes on.
//!
//! - [`outcomes`]: each way in which an exchange ends, when its events start, and what an
//!   [`Exchange`](crate::Exchange) says of it.
//! - [`shutdown`]: the steps between the signal and the exit, their budget, and the wiring for each server.
//! - [`sinks`]: typed events in batches, and what each way to store them survives.
//! - [`observing`]: spans, log lines, counts and metrics.

pub mod observing;
pub mod outcomes;
pub mod shutdown;
pub mod sinks;
