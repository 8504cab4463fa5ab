//! Texts in reports and log lines. Each is one line, also if it quotes a foreign text.

use std::{
    error::Error,
    fmt::{self, Write},
    time::Duration,
};

/// The number of characters that are quoted of a foreign text.
const MAX_QUOTED: usize = 300;

/// Writes a foreign text, such as an error of the user, in one line. Control characters, line separators and characters
/// that change the direction of text are escaped. The text is cut after 300 characters.
pub(crate) struct OneLine<'a>(pub(crate) &'a str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, character) in self.0.chars().enumerate() {
            if index == MAX_QUOTED {
                return f.write_str("..");
            }
            if breaks_a_line(character) { write!(f, "{}", character.escape_debug())? } else { f.write_char(character)? }
        }
        Ok(())
    }
}

fn breaks_a_line(character: char) -> bool {
    // Line and paragraph separators; then the marks, embeddings, overrides and isolates of bidirectional text.
    character.is_control()
        || matches!(character, '\u{2028}' | '\u{2029}')
        || matches!(character, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Returns a foreign text in one line, see [`OneLine`].
pub(crate) fn one_line(text: &str) -> String {
    OneLine(text).to_string()
}

/// Returns an error and its sources in one line. A source is left out if the text before it contains its text.
pub(crate) fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = error.source();
    }
    one_line(&text)
}

/// Writes a duration: `0.3 ms`, `41 ms`, `3.2 s`.
pub(crate) struct Seconds(pub(crate) Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs_f64();
        if seconds >= 1.0 {
            write!(f, "{seconds:.1} s")
        } else if seconds >= 0.01 {
            write!(f, "{:.0} ms", seconds * 1e3)
        } else {
            write!(f, "{:.1} ms", seconds * 1e3)
        }
    }
}

/// Writes a number of things: `1 event`, `2 events`.
pub(crate) struct Plural(pub(crate) u64, pub(crate) &'static str);

impl fmt::Display for Plural {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(count, word) = self;
        write!(f, "{count} {word}{}", if *count == 1 { "" } else { "s" })
    }
}

/// Writes items with `", "` between them.
pub(crate) struct Joined<I>(pub(crate) I);

impl<I> fmt::Display for Joined<I>
where
    I: Iterator<Item: fmt::Display> + Clone,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, item) in self.0.clone().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{item}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{error::Error, fmt, time::Duration};

    use super::{Plural, Seconds, error_chain, one_line};

    #[test]
    fn a_foreign_text_stays_in_one_line() {
        assert_eq!(one_line("a\r\nb\tc\u{2028}d\u{202e}e\u{1b}[2J"), "a\\r\\nb\\tc\\u{2028}d\\u{202e}e\\u{1b}[2J");
        assert_eq!(one_line("naïve \"quoted\" 日本"), "naïve \"quoted\" 日本");
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let cut = one_line(&"é".repeat(1_000_000));
        assert_eq!(cut, "é".repeat(300) + "..");
        assert_eq!(one_line(&"é".repeat(300)), "é".repeat(300));
    }

    #[derive(Debug)]
    struct Chained(&'static str, Option<Box<Chained>>);

    impl fmt::Display for Chained {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Chained {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|error| error as _)
        }
    }

    #[test]
    fn a_chain_names_each_cause_once() {
        let root = |text| Some(Box::new(Chained(text, None)));
        assert_eq!(error_chain(&Chained("insert", root("disk full"))), "insert: disk full");
        assert_eq!(error_chain(&Chained("insert: disk full", root("disk full"))), "insert: disk full");
        let middle = Some(Box::new(Chained("b", root("c"))));
        assert_eq!(error_chain(&Chained("a", middle)), "a: b: c");
    }

    #[test]
    fn durations_and_counts_read_well() {
        let read = |duration| Seconds(duration).to_string();
        assert_eq!(read(Duration::from_micros(300)), "0.3 ms");
        assert_eq!(read(Duration::from_millis(41)), "41 ms");
        assert_eq!(read(Duration::from_millis(3_249)), "3.2 s");
        assert_eq!(
            (Plural(1, "event").to_string(), Plural(0, "event").to_string()),
            ("1 event".into(), "0 events".into())
        );
    }
}
