//! Stands in for the counts of the feature `metrics`, and does nothing.

use std::time::Duration;

use crate::{refused::Refused, snapshot::Ending};

pub(crate) struct Began;

impl Began {
    pub(crate) fn now() -> Self {
        Self
    }
}

pub(crate) fn accepted(_event: &'static str) {}

pub(crate) fn queued(_event: &'static str, _count: u64) {}

pub(crate) fn ended_many(_event: &'static str, _ending: Ending, _count: u64) {}

pub(crate) fn panicked_in_place(_event: &'static str) {}

pub(crate) fn ended(_event: impl FnOnce() -> &'static str, _ending: Ending, _began: Option<Began>) {}

pub(crate) fn refused(_event: &'static str, _refused: Refused) {}

pub(crate) fn request_opened() {}

pub(crate) fn request_closed() {}

pub(crate) fn drained(_elapsed: Duration, _outcome: &'static str) {}
