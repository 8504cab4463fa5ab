//! What the compiler says about common mistakes: the programs in `mistakes`, each with its message.
//!
//! The messages are those of one compiler. After a change, or with another compiler, read them, and record them with
//! `TRYBUILD=overwrite cargo test --package messages`.
