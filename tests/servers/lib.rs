//! Compiles the code of pages that show servers, with their crates.
#![cfg(doctest)]

#[doc = include_str!("../../README.md")]
struct Readme;

#[doc = include_str!("../../docs/guide/shutdown.md")]
struct Shutdown;
