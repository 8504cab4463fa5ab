//! Pages to read: when an exchange is over, and how to shut a server down.
//!
//! - [`outcomes`]: each way in which an exchange ends, when its events start, and what an
//!   [`Exchange`](crate::Exchange) says of it.
//! - [`shutdown`]: the steps between the signal and the exit, their budget, and the wiring for each server.

pub mod outcomes;
pub mod shutdown;
