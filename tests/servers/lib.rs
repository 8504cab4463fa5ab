//! Compiles the code of the page that shows servers, with their crates.
#![cfg(doctest)]

#[doc = include_str!("../../docs/guide/shutdown.md")]
struct Shutdown;
