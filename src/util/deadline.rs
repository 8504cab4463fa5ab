//! A time limit that starts with its first poll.

use std::{
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    runtime, task,
    time::{self, Instant, Sleep},
};

use crate::util::panic::catch;

pub(crate) enum Deadline {
    Never,
    NotStarted { limit: Duration, since: Option<Instant> },
    Running { limit: Duration, sleep: Pin<Box<Sleep>> },
    Passed,
}

/// There is no tokio runtime with a timer.
pub(crate) struct NoTimer;

impl Deadline {
    /// Zero has passed at once; the longest duration never does.
    pub(crate) fn after(limit: Duration) -> Self {
        Self::new(limit, None)
    }

    /// Counts from `since`, instead of from its start.
    pub(crate) fn since(since: Instant, limit: Duration) -> Self {
        Self::new(limit, Some(since))
    }

    fn new(limit: Duration, since: Option<Instant>) -> Self {
        match limit {
            Duration::ZERO => Self::Passed,
            Duration::MAX => Self::Never,
            limit => Self::NotStarted { limit, since },
        }
    }

    /// Starts the time limit, if that has not been done.
    pub(crate) fn start(&mut self) -> Result<(), NoTimer> {
        if let Self::NotStarted { limit, since } = *self {
            let elapsed = since.map_or(Duration::ZERO, |since| since.elapsed());
            *self = Self::Running { limit, sleep: sleep(limit.saturating_sub(elapsed))? };
        }
        Ok(())
    }

    /// Starts the time limit if that has not been done, and returns whether it has passed.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Result<bool, NoTimer> {
        self.start()?;
        match self {
            Self::Running { sleep, .. } => poll_sleep(sleep, cx),
            Self::Passed => Ok(true),
            Self::Never | Self::NotStarted { .. } => Ok(false),
        }
    }

    /// The limit as it was set, if there is one.
    pub(crate) fn limit(&self) -> Option<Duration> {
        match self {
            Self::Never => None,
            Self::NotStarted { limit, .. } | Self::Running { limit, .. } => Some(*limit),
            Self::Passed => Some(Duration::ZERO),
        }
    }

    /// When it will have passed, once it was started; never, if there is none.
    pub(crate) fn at(&self) -> Option<Instant> {
        match self {
            Self::Running { sleep, .. } => Some(sleep.deadline()),
            Self::Passed => Some(Instant::now()),
            Self::Never | Self::NotStarted { .. } => None,
        }
    }

    /// What is left of it.
    pub(crate) fn left(&self) -> Option<Duration> {
        match self {
            Self::Running { sleep, .. } => Some(sleep.deadline().saturating_duration_since(Instant::now())),
            other => other.limit(),
        }
    }
}

/// Makes a timer. Without a runtime this is an error that needs no panic. Whether a runtime has a timer cannot be
/// asked: tokio says so by a panic, which is caught here.
pub(crate) fn sleep(duration: Duration) -> Result<Pin<Box<Sleep>>, NoTimer> {
    runtime::Handle::try_current().map_err(|_| NoTimer)?;
    catch(|| Box::pin(time::sleep(duration))).map_err(|_| NoTimer)
}

/// Whether the time is over. A timer that is polled on a runtime that is gone panics, which is caught.
pub(crate) fn poll_sleep(sleep: &mut Pin<Box<Sleep>>, cx: &mut Context<'_>) -> Result<bool, NoTimer> {
    // Not subject to the task's budget, or a limit that shares its task with busy code would be late.
    catch(|| pin!(task::unconstrained(sleep.as_mut())).poll(cx) == Poll::Ready(())).map_err(|_| NoTimer)
}

#[cfg(all(test, not(track_events_loom)))]
mod tests {
    use std::{
        panic,
        sync::atomic::{AtomicBool, Ordering},
        thread,
        time::Duration,
    };

    use super::sleep;

    /// A hook may end the process, so a missing runtime is found without a panic.
    #[test]
    fn without_a_runtime_there_is_no_timer_and_no_panic() {
        static PANICKED: AtomicBool = AtomicBool::new(false);
        let (this, before) = (thread::current().id(), panic::take_hook());
        panic::set_hook(Box::new(move |info| {
            PANICKED.fetch_or(thread::current().id() == this, Ordering::Relaxed);
            before(info);
        }));
        assert!(sleep(Duration::from_secs(1)).is_err());
        assert!(!PANICKED.load(Ordering::Relaxed));
    }
}
