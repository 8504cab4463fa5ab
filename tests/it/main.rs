//! Tests of the public face: polled by hand, on a paused clock, or gated by signals; none sleeps to synchronise.

mod abort;
mod bounds;
mod capacity;
mod conformance;
mod detached;
mod drain;
mod event;
mod example;
mod extractor;
mod house;
mod http2;
mod idle;
mod layer;
mod observer;
mod observing;
mod operations;
mod outcome;
mod overflow;
mod polite;
mod report;
mod sink;
mod stateful;
mod stateful_sink;
mod stress;
mod support;
mod together;
