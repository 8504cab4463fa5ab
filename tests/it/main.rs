//! Tests of the public face: polled by hand, on a paused clock, or gated by signals; none sleeps to synchronise.

mod example;
mod http2;
mod support;
