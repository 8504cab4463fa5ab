//! Catches panics of user code: events, hooks, observers, sinks, and the destructors of their values.

use std::{
    any::Any,
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
};

/// Runs user code and returns the message of its panic as an error.
///
/// After a panic, values that the closure was changing may be inconsistent. The caller must not use them.
pub(crate) fn catch<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(message)
}

fn message(payload: Box<dyn Any + Send>) -> String {
    let message = match payload.downcast_ref::<&'static str>() {
        Some(text) => (*text).to_owned(),
        None => payload.downcast_ref::<String>().cloned().unwrap_or_else(|| "a payload that is not text".to_owned()),
    };
    // The destructor of a payload may panic as well. The second payload is leaked, because its destructor may panic
    // too.
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        mem::forget(second);
    }
    message
}

#[cfg(test)]
mod tests {
    use std::panic::panic_any;

    use super::catch;

    #[test]
    fn the_message_of_a_panic_is_its_text_or_says_that_there_is_none() {
        assert_eq!(catch(|| 1), Ok(1));
        assert_eq!(catch(|| panic!("literal")), Err::<(), _>("literal".to_owned()));
        assert_eq!(catch(|| panic!("number {}", 7)), Err::<(), _>("number 7".to_owned()));
        assert_eq!(catch(|| panic_any(7)), Err::<(), _>("a payload that is not text".to_owned()));
    }

    #[test]
    fn a_payload_whose_destructor_panics_goes_no_further() {
        struct Payload;
        impl Drop for Payload {
            fn drop(&mut self) {
                panic!("again");
            }
        }
        assert!(catch(|| panic_any(Payload)).is_err());
    }
}
