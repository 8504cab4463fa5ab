//! Guarantees 1 to 5 after every step of any sequence of operations.

use proptest::{collection::vec, prelude::*, test_runner::TestRunner};

use crate::operations::{Operation, Setup, run};

/// The nightly run sets `PROPTEST_CASES=10000`.
const ORDINARY_CASES: u32 = 500;

fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").map_or(ORDINARY_CASES, |cases| cases.parse().expect("a number"));
    // A failure prints its steps, from which it can be repeated: no file is left beside the sources.
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

#[test]
fn the_guarantees_hold_after_every_step_of_any_sequence() {
    let setup = any::<[u8; 2]>().prop_map(Setup::decode);
    let operations = vec(any::<[u8; 2]>().prop_map(Operation::decode), 1..80);
    TestRunner::new(config())
        .run(&(setup, operations), |(setup, operations)| run(setup, &operations).map_err(TestCaseError::fail))
        .unwrap_or_else(|failure| panic!("{failure}"));
}
