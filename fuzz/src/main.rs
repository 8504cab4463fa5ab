//! Plays what the fuzzer comes up with: two bytes of settings, then two bytes for each step.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/it/operations.rs"]
mod operations;

use operations::{Operation, Setup, play};

fuzz_target!(|bytes: &[u8]| {
    let mut pairs = bytes.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
    let Some(setup) = pairs.next().map(Setup::decode) else { return };
    let operations: Vec<_> = pairs.map(Operation::decode).collect();
    if let Err(broken) = play(setup, &operations) {
        panic!("{broken}\n{setup:?}\n{operations:#?}");
    }
});
