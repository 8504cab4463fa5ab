//! What the compiler says about common mistakes: the programs in `mistakes`, each with its message.
//!
//! The messages are those of Rust 1.95, since each compiler has its own. After a change, or to use another compiler, read
//! the new messages, and record them with `TRYBUILD=overwrite cargo test --package messages`. The job `messages` of
//! `.github/workflows/ci.yml` names the same version.
