//! Compiles each mistake and compares the message.

#[test]
fn the_messages_say_what_to_do() {
    trybuild::TestCases::new().compile_fail("mistakes/*.rs");
}
