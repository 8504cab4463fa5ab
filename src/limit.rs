//! A time limit that starts with the first poll.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    task,
    time::{self, Instant, Sleep},
};

use crate::contain::contain;

pub(crate) enum Limit {
    Never,
    After(Duration),
    Running { limit: Duration, sleep: Pin<Box<Sleep>> },
    Over,
}

/// There is no tokio runtime with a timer.
pub(crate) struct NoTimer;

impl Limit {
    /// Zero is over at once, the longest duration never.
    pub(crate) fn after(limit: Duration) -> Self {
        match limit {
            Duration::ZERO => Self::Over,
            Duration::MAX => Self::Never,
            limit => Self::After(limit),
        }
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Result<bool, NoTimer> {
        if let Self::After(limit) = *self {
            *self = Self::Running { limit, sleep: sleep(limit)? };
        }
        match self {
            Self::Running { sleep, .. } => poll_sleep(sleep, cx),
            Self::Over => Ok(true),
            Self::Never | Self::After(_) => Ok(false),
        }
    }

    /// The limit as it was set, if there is one.
    pub(crate) fn duration(&self) -> Option<Duration> {
        match self {
            Self::Never => None,
            Self::After(limit) | Self::Running { limit, .. } => Some(*limit),
            Self::Over => Some(Duration::ZERO),
        }
    }

    /// What is left of it.
    pub(crate) fn left(&self) -> Option<Duration> {
        match self {
            Self::Running { sleep, .. } => Some(sleep.deadline().saturating_duration_since(Instant::now())),
            other => other.duration(),
        }
    }
}

/// A timer, if there is one: tokio says that there is none only by a panic.
pub(crate) fn sleep(duration: Duration) -> Result<Pin<Box<Sleep>>, NoTimer> {
    contain(|| Box::pin(time::sleep(duration))).map_err(|_| NoTimer)
}

/// Whether the time is over. Not subject to the budget of the task, which would make a limit late that shares its task
/// with busy code; polled on a runtime that is gone, a timer panics.
pub(crate) fn poll_sleep(sleep: &mut Pin<Box<Sleep>>, cx: &mut Context<'_>) -> Result<bool, NoTimer> {
    contain(|| std::pin::pin!(task::unconstrained(sleep.as_mut())).poll(cx) == Poll::Ready(())).map_err(|_| NoTimer)
}
