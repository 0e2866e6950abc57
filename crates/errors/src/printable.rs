//! Text of foreign origin in a form that a terminal shows and does not obey.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Whether a character neither controls a terminal nor changes how the text around it is shown.
///
/// Control characters (C0, DEL, C1) move the cursor, end lines and start escape sequences. The bidirectional
/// formatting characters (Unicode TR 36, "Bidirectional Text Spoofing") and the separators of lines and
/// paragraphs show text in another order, or on another line, than it is.
#[must_use]
pub fn is_printable(character: char) -> bool {
    !(character.is_control()
        || matches!(
            character,
            '\u{61c}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}'
                | '\u{feff}'
        ))
}

/// Returns the text as one line that a terminal can show: each character that is not printable
/// ([`is_printable`]) becomes its escape, as Rust writes it (`\n`, `\u{1b}`). A backslash stays as it is, so that
/// ordinary names with one do not change.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_printable) {
        return Cow::Borrowed(text);
    }
    let mut line = String::with_capacity(text.len().saturating_add(16));
    for character in text.chars() {
        if is_printable(character) {
            line.push(character);
        } else {
            // Writing to a string cannot fail.
            let _ = write!(line, "{}", character.escape_default());
        }
    }
    Cow::Owned(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_obeys_no_character_of_a_printable_line() {
        for (text, line) in [
            ("\u{1b}[2Jgone", "\\u{1b}[2Jgone"),
            ("a\r\nsoci: all is well\t", "a\\r\\nsoci: all is well\\t"),
            ("\u{9b}31m\u{7f}\0", "\\u{9b}31m\\u{7f}\\u{0}"),
            ("exe\u{202e}gpj", "exe\\u{202e}gpj"),
            ("\u{2066}a\u{2069}\u{2028}", "\\u{2066}a\\u{2069}\\u{2028}"),
        ] {
            assert_eq!(printable(text), line);
            assert!(matches!(printable(line), Cow::Borrowed(_)), "{line}");
        }
    }

    #[test]
    fn ordinary_text_is_not_changed() {
        for text in ["", "etc/motd", r"dev-disk\x2dby", "naïve 文字 😀\u{200d}x"] {
            assert!(matches!(printable(text), Cow::Borrowed(same) if same == text));
        }
    }
}
