//! [`Step`]: a future of the user, as a step of a shutdown.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::Instant;

use crate::{
    event::{EventOutput, IntoResult},
    shutdown::report::StepOutcome,
    util::{
        panic::catch,
        text::{error_chain, one_line},
    },
};

pin_project! {
    /// A future whose panics are caught, with its outcome and the time of its end.
    pub(super) struct Step<F> {
        #[pin]
        future: Option<F>,
        outcome: StepOutcome,
        ended_at: Option<Instant>,
    }
}

impl<F> Step<F> {
    pub(super) fn new(future: F) -> Self {
        Self { future: Some(future), outcome: StepOutcome::Unfinished, ended_at: None }
    }

    pub(super) fn failed(error: String) -> Self {
        Self { future: None, outcome: StepOutcome::Failed(error), ended_at: Some(Instant::now()) }
    }

    /// Drops the future, if it has not ended. Returns its outcome, and the time from `began` to its end.
    pub(super) fn finish(mut self: Pin<&mut Self>, began: Instant) -> (StepOutcome, Duration) {
        self.as_mut().drop_future();
        let ended_at = self.ended_at.unwrap_or_else(Instant::now);
        (self.outcome.clone(), ended_at.saturating_duration_since(began))
    }

    fn drop_future(self: Pin<&mut Self>) {
        let mut this = self.project();
        if let Err(message) = catch(|| this.future.set(None)) {
            *this.outcome = StepOutcome::Panicked(one_line(&message));
        }
    }
}

impl<F: Future<Output: EventOutput>> Step<F> {
    /// Returns whether the future has ended. The step can be polled again after that.
    pub(super) fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> bool {
        let this = self.as_mut().project();
        let Some(future) = this.future.as_pin_mut() else { return true };
        *this.outcome = match catch(|| future.poll(cx).map(IntoResult::into_result)) {
            Ok(Poll::Pending) => return false,
            Ok(Poll::Ready(Ok(()))) => StepOutcome::Completed,
            Ok(Poll::Ready(Err(error))) => StepOutcome::Failed(error_chain(&*error)),
            Err(message) => StepOutcome::Panicked(one_line(&message)),
        };
        *this.ended_at = Some(Instant::now());
        self.drop_future();
        true
    }
}

#[cfg(all(test, not(track_events_loom)))]
mod tests {
    use std::{
        future::{pending, poll_fn, ready},
        io,
        pin::pin,
        task::{Context, Waker},
    };

    use tokio::time::Instant;

    use super::Step;
    use crate::{EventOutput, shutdown::report::StepOutcome};

    fn outcome<F: Future<Output: EventOutput>>(future: F) -> StepOutcome {
        let mut step = pin!(Step::new(future));
        let _ = step.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        step.finish(Instant::now()).0
    }

    #[test]
    fn a_step_ends_in_one_of_four_ways() {
        assert_eq!(outcome(ready(())), StepOutcome::Completed);
        assert_eq!(outcome(ready(Err::<(), _>(io::Error::other("in\nuse")))), StepOutcome::Failed("in\\nuse".into()));
        assert_eq!(outcome(poll_fn(|_| -> std::task::Poll<()> { panic!("oh") })), StepOutcome::Panicked("oh".into()));
        assert_eq!(outcome(pending::<()>()), StepOutcome::Unfinished);
    }

    #[test]
    fn a_panic_of_a_destructor_is_caught() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("dropped");
            }
        }
        let bomb = Bomb;
        let holds = async move {
            let _bomb = bomb;
            pending::<()>().await;
        };
        assert_eq!(outcome(holds), StepOutcome::Panicked("dropped".into()));
    }
}
