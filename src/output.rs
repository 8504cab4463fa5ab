//! [`EventOutput`]: what an event may return.

use std::fmt;

/// What an event may return: `()`, `!`, or a `Result` of one of these with an error that can be displayed.
///
/// An `Err` at any depth counts the event as failed and is logged with the event's name. The trait is recursive
/// because `spawn_blocking(..).await` returns a `Result` within a `Result`: were any type allowed inside `Ok`, a
/// full disk would count as completed. An event that returns something else says so with `.map(|_| ())`.
///
/// The trait is sealed: it cannot be implemented outside of this crate.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use tower_track_events::TrackEventsHandle;
///
/// let handle = TrackEventsHandle::new();
/// handle.track("audit", async {}).unwrap();
/// handle.track("invoice", async { std::io::Result::Ok(()) }).unwrap();
/// handle.track("export", async {
///     tokio::task::spawn_blocking(|| std::io::Result::Ok(())).await
/// }).unwrap();
/// # handle.drain(std::time::Duration::MAX).await.unwrap();
/// # }
/// ```
///
/// ```compile_fail
/// # let handle = tower_track_events::TrackEventsHandle::new();
/// handle.track("answer", async { 42 }); // not an `EventOutput`: add `.map(|_| ())`
/// ```
#[diagnostic::on_unimplemented(
    message = "an event cannot return `{Self}`",
    label = "returns `{Self}`, which says neither that the event completed nor that it failed",
    note = "an event returns `()`, `!`, or a `Result` of these whose error implements `Display`",
    note = "if the value does not matter, drop it: add `.map(|_| ())` to the result, or end the block with `;`"
)]
pub trait EventOutput: sealed::Judge {}

impl EventOutput for () {}
impl EventOutput for Never {}
impl<T: EventOutput, E: fmt::Display> EventOutput for Result<T, E> {}

// What cannot be named cannot be implemented: that is the seal.
#[allow(unnameable_types)]
pub(crate) mod sealed {
    use std::fmt;

    /// How the ledger reads an output.
    pub trait Judge {
        /// Gives the message of the error, if the event failed.
        fn judge(self) -> Result<(), String>;
    }

    impl Judge for () {
        fn judge(self) -> Result<(), String> {
            Ok(())
        }
    }

    impl Judge for super::Never {
        fn judge(self) -> Result<(), String> {
            self
        }
    }

    impl<T: Judge, E: fmt::Display> Judge for Result<T, E> {
        fn judge(self) -> Result<(), String> {
            match self {
                Ok(inner) => inner.judge(),
                Err(error) => Err(error.to_string()),
            }
        }
    }

    pub trait Returns {
        type Output;
    }

    impl<T> Returns for fn() -> T {
        type Output = T;
    }
}

/// The type `!`, which has no stable name of its own.
type Never = <fn() -> ! as sealed::Returns>::Output;
