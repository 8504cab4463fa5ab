//! [`EventOutput`]: the types that an event may return.

use std::error::Error;

/// The type to which errors of events are converted, so that their causes can be logged.
pub(crate) type BoxError = Box<dyn Error + Send + Sync>;

/// The types that an event may return: `()`, `!`, or a `Result` of one of these.
///
/// The error of a `Result` is of any type that converts into a `Box<dyn Error + Send + Sync>`: an error type, a string,
/// `anyhow::Error`. For a type that only implements `Display`, add `.map_err(|error| error.to_string())`.
///
/// An event that returns an `Err` at any depth counts as failed, and the error is logged with the event's name. Results
/// may be nested, because `spawn_blocking(..).await` returns a `Result` within a `Result`. Other values inside `Ok` are
/// not allowed: otherwise an inner `Err`, such as a full disk, would count as completed. For them, add `.map(|_| ())`.
///
/// The futures of a [`Shutdown`](crate::Shutdown) return the same types. The trait is sealed: it cannot be implemented
/// outside of this crate.
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
    message = "an event or a server cannot return `{Self}`",
    label = "returns `{Self}`, from which it is unknown whether the event completed or failed",
    note = "it returns `()`, `!`, or a `Result` of these whose error converts into `Box<dyn Error + Send + Sync>`",
    note = "if the value does not matter, drop it: add `.map(|_| ())` to the result, or end the block with `;`",
    note = "to run a future, use `track`: a closure of `track_blocking` blocks its thread and returns no future",
    note = "if the error type only implements `Display`, add `.map_err(|error| error.to_string())`"
)]
pub trait EventOutput: sealed::IntoResult {}

impl EventOutput for () {}
impl EventOutput for Never {}

// Without this attribute rustc reports the missing conversion of the error instead of the message above.
#[diagnostic::do_not_recommend]
impl<T: EventOutput, E: Into<BoxError>> EventOutput for Result<T, E> {}

// The traits are public in a private module, so that other crates cannot implement `EventOutput`.
#[allow(unnameable_types)]
pub(crate) mod sealed {
    use super::BoxError;

    pub trait IntoResult {
        /// Returns the error, if the event failed.
        fn into_result(self) -> Result<(), BoxError>;
    }

    impl IntoResult for () {
        fn into_result(self) -> Result<(), BoxError> {
            Ok(())
        }
    }

    impl IntoResult for super::Never {
        fn into_result(self) -> Result<(), BoxError> {
            self
        }
    }

    impl<T: IntoResult, E: Into<BoxError>> IntoResult for Result<T, E> {
        fn into_result(self) -> Result<(), BoxError> {
            match self {
                Ok(inner) => inner.into_result(),
                Err(error) => Err(error.into()),
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
