//! [`Deadline`]: a time limit that starts with its first poll.

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

/// The error if there is no tokio runtime with a timer.
pub(crate) struct NoTimer;

impl Deadline {
    /// Makes a limit that counts from its first poll. Zero has passed at once, and `Duration::MAX` never passes.
    pub(crate) fn after(limit: Duration) -> Self {
        Self::new(limit, None)
    }

    /// Makes a limit that counts from `since`.
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

    /// Returns the limit as it was set. `None` if there is none.
    pub(crate) fn limit(&self) -> Option<Duration> {
        match self {
            Self::Never => None,
            Self::NotStarted { limit, .. } | Self::Running { limit, .. } => Some(*limit),
            Self::Passed => Some(Duration::ZERO),
        }
    }

    /// Returns the time at which it passes. `None` before it is started, and if there is no limit.
    pub(crate) fn at(&self) -> Option<Instant> {
        match self {
            Self::Running { sleep, .. } => Some(sleep.deadline()),
            Self::Passed => Some(Instant::now()),
            Self::Never | Self::NotStarted { .. } => None,
        }
    }

    /// Returns the time that is left. `None` if there is no limit.
    pub(crate) fn left(&self) -> Option<Duration> {
        match self {
            Self::Running { sleep, .. } => Some(sleep.deadline().saturating_duration_since(Instant::now())),
            other => other.limit(),
        }
    }
}

/// Makes a timer. Without a runtime it returns an error, without a panic. Tokio has no method that tells whether a
/// runtime has a timer: it panics if there is none, and the panic is caught here.
pub(crate) fn sleep(duration: Duration) -> Result<Pin<Box<Sleep>>, NoTimer> {
    runtime::Handle::try_current().map_err(|_| NoTimer)?;
    catch(|| Box::pin(time::sleep(duration))).map_err(|_| NoTimer)
}

/// Returns whether the time has passed. A timer whose runtime has been dropped panics when it is polled; the panic is
/// caught.
pub(crate) fn poll_sleep(sleep: &mut Pin<Box<Sleep>>, cx: &mut Context<'_>) -> Result<bool, NoTimer> {
    // Without the budget of the task: otherwise a limit would be late if other code in the task uses up the budget.
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

    /// A panic hook may end the process, so a missing runtime is detected without a panic.
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
