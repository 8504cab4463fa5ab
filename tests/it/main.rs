//! Tests of the public face: polled by hand, on a paused clock, or gated by signals; none sleeps to synchronise.

mod bounds;
mod capacity;
mod conformance;
mod drain;
mod event;
mod example;
mod extractor;
mod http2;
mod layer;
mod operations;
mod outcome;
mod polite;
mod report;
mod stateful;
mod stress;
mod support;
