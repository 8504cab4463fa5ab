//! Helpers that do not depend on the registry.

pub(crate) mod deadline;
pub(crate) mod panic;
pub(crate) mod reentrancy;
pub(crate) mod sync;
pub(crate) mod text;
