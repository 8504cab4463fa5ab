//! Tests of the public API: polled step by step, on a paused clock, or gated by signals; none sleeps to synchronise.

mod abort;
mod bounds;
mod capacity;
mod closing;
mod conformance;
mod drain;
mod event;
mod example;
mod extractor;
mod http2;
mod idle;
mod isolation;
mod layer;
mod observer;
mod observing;
mod operations;
mod outcome;
mod overflow;
mod report;
mod sink;
mod stateful;
mod stateful_sink;
mod stress;
mod support;
mod test_exchange;
mod together;
