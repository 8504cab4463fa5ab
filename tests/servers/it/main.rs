//! Tests over real servers and sockets, and tests of the examples as processes.

mod bounds;
mod conformance;
mod example;
mod http2;
mod shutdown_cases;
#[expect(dead_code, reason = "the tests of the crate use the rest")]
#[path = "../../it/support.rs"]
mod support;
