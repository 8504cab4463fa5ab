//! Runs the sequences of operations that the fuzzer makes: two bytes of settings, then two bytes for each step.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/it/operations.rs"]
mod operations;

use operations::{Operation, Setup, run};

fuzz_target!(|bytes: &[u8]| {
    let mut pairs = bytes.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
    let Some(setup) = pairs.next().map(Setup::decode) else { return };
    let operations: Vec<_> = pairs.map(Operation::decode).collect();
    if let Err(failure) = run(setup, &operations) {
        panic!("{failure}\n{setup:?}\n{operations:#?}");
    }
});
