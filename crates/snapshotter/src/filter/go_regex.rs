//! Translation of regular expressions from Go's syntax (RE2), which clients write, to that of the
//! crate `regex`. The differences: in Go `\d \w \s \b` are ASCII, `\Q…\E` quotes, a brace that does not
//! begin a repetition is literal, and classes have neither nesting nor set operations.
//!
//! Errors in Go's syntax stay errors or are passed on unchanged: `regex` decides.

/// Returns the expression in the syntax of `regex`, to be compiled with octal escapes enabled.
pub(super) fn translate(pattern: &str) -> String {
    let mut translation = Translation {
        rest: pattern,
        out: String::with_capacity(pattern.len() + 16),
    };
    while let Some(c) = translation.next() {
        match c {
            '\\' => translation.escape(),
            '[' => translation.class(),
            '{' if !begins_repetition(translation.rest) => translation.out.push_str("\\{"),
            c => translation.out.push(c),
        }
    }
    translation.out
}

struct Translation<'a> {
    rest: &'a str,
    out: String,
}

impl<'a> Translation<'a> {
    fn next(&mut self) -> Option<char> {
        let next = self.rest.chars().next()?;
        self.take(next.len_utf8());
        Some(next)
    }

    /// Takes the next bytes. The length must be at a character boundary.
    fn take(&mut self, length: usize) -> &'a str {
        let (taken, rest) = self
            .rest
            .split_at_checked(length)
            .unwrap_or((self.rest, ""));
        self.rest = rest;
        taken
    }

    /// Translates an escape outside of a class, after its backslash.
    fn escape(&mut self) {
        match self.next() {
            Some('Q') => {
                let length = self.rest.find("\\E").unwrap_or(self.rest.len());
                let quoted = self.take(length);
                self.out.push_str(&regex::escape(quoted));
                self.take("\\E".len());
            }
            Some('b') => self.out.push_str("(?-u:\\b)"),
            Some(c) => match ascii(c) {
                Some((negated, set)) => {
                    self.out.push_str(if negated { "[^" } else { "[" });
                    self.out.push_str(set);
                    self.out.push(']');
                }
                None => self.out.extend(['\\', c]),
            },
            // A trailing backslash is an error in both.
            None => self.out.push('\\'),
        }
    }

    /// Translates a class, from behind its opening bracket to the closing one.
    fn class(&mut self) {
        self.out.push('[');
        if self.rest.starts_with('^') {
            self.take(1);
            self.out.push('^');
        }
        // A closing bracket at the beginning is literal.
        let mut first = true;
        while !self.rest.is_empty() {
            if self.rest.starts_with(']') && !first {
                self.take(1);
                self.out.push(']');
                return;
            }
            first = false;
            self.item();
        }
    }

    /// Translates a character, a range, or a named set in a class.
    fn item(&mut self) {
        if self.rest.starts_with("[:")
            && let Some(length) = self.rest.find(":]")
        {
            let named = self.take(length + 2);
            self.out.push_str(named);
            return;
        }
        let mut chars = self.rest.chars();
        if let (Some('\\'), Some(c)) = (chars.next(), chars.next()) {
            if let Some((negated, set)) = ascii(c) {
                self.take(2);
                match negated {
                    true => self.out.extend(["[^", set, "]"]),
                    false => self.out.push_str(set),
                }
                return;
            }
            if matches!(c, 'p' | 'P') {
                let named = match self.rest.find('}') {
                    Some(end) if self.rest.get(2..3) == Some("{") => end + 1,
                    _ => 2 + chars.next().map_or(0, char::len_utf8),
                };
                let named = self.take(named);
                self.out.push_str(named);
                return;
            }
        }
        self.class_character();
        if self.rest.starts_with('-') && !self.rest.starts_with("-]") && self.rest.len() > 1 {
            self.take(1);
            self.out.push('-');
            self.class_character();
        }
    }

    /// Translates one character of a class, which can be escaped.
    fn class_character(&mut self) {
        match self.next() {
            Some('\\') => {
                let length = escape_length(self.rest);
                let escaped = self.take(length);
                self.out.push('\\');
                self.out.push_str(escaped);
            }
            Some(c) => {
                if matches!(c, '[' | ']' | '^' | '-' | '&' | '~') {
                    self.out.push('\\');
                }
                self.out.push(c);
            }
            None => {}
        }
    }
}

/// Returns the length of an escape behind its backslash: `n`, `x41`, `x{1f600}`, `101`.
fn escape_length(text: &str) -> usize {
    let digits = |radix, most| {
        let digits = text.chars().skip_while(|c| *c == 'x').take(most);
        digits.take_while(|c| c.is_digit(radix)).count()
    };
    match text.chars().next() {
        Some('x') if text.starts_with("x{") => text.find('}').map_or(text.len(), |end| end + 1),
        Some('x') => 1 + digits(16, 2),
        Some('0'..='7') => digits(8, 3),
        Some(c) => c.len_utf8(),
        None => 0,
    }
}

/// Returns the set of a class escape in Go, and whether the escape negates it.
fn ascii(escape: char) -> Option<(bool, &'static str)> {
    let set = match escape.to_ascii_lowercase() {
        'd' => "0-9",
        'w' => "0-9A-Za-z_",
        's' => "\\t\\n\\f\\r ",
        _ => return None,
    };
    Some((escape.is_ascii_uppercase(), set))
}

/// Whether the text behind a `{` makes it a repetition: `{2}`, `{2,}` or `{2,3}`.
fn begins_repetition(rest: &str) -> bool {
    let Some((inner, _)) = rest.split_once('}') else {
        return false;
    };
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match inner.split_once(',') {
        Some((least, most)) => number(least) && (most.is_empty() || number(most)),
        None => number(inner),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use regex::RegexBuilder;

    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        let translated = translate(pattern);
        let built = RegexBuilder::new(&translated).octal(true).build();
        built.unwrap_or_else(|e| panic!("{e}")).is_match(text)
    }

    #[test]
    fn what_go_understands_differently_means_what_it_means_in_go() {
        for (pattern, text, expected) in [
            (r"^\d+$", "42", true),
            (r"^\d+$", "٤٢", false),
            (r"^\D$", "٤", true),
            (r"^\w$", "é", false),
            (r"^[\W]$", "é", true),
            (r"^[\d_a-c]+$", "1_b", true),
            (r"\bfoo\b", "éfooé", true),
            (r"^\s$", "\u{b}", false),
            (r"^\Qa.b*\E+$", "a.b**", true),
            (r"\Q[", "[", true),
            (r"^a{,2}$", "a{,2}", true),
            (r"^a{2}$", "aa", true),
            (r"^{$", "{", true),
            (r"^[[]$", "[", true),
            (r"^[[:digit:]x]$", "7", true),
            (r"^[a&&b]+$", "a&b", true),
            (r"^[]a]+$", "]a", true),
            (r"^[^]]$", "]", false),
            (r"^[+--]$", ",", true),
            (r"^[--a]$", "A", true),
            (r"^[a-]+$", "-a", true),
            (r"^[\x41-\x{43}\101\]\-]+$", "ABC]-", true),
            (r"^\101\x42$", "AB", true),
            (r"^[\p{Greek}\pN]+$", "λ٤", true),
            (r"^sha256:[0-9a-f]{4,}$", "sha256:beef", true),
            (r"(?i)^ABC$", "abc", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} on {text}");
        }
    }

    proptest! {
        #[test]
        fn any_pattern_is_translated_without_panic(pattern in r"[\[\]\\{}a-z0-9&^,:QEpx-]{0,20}|.{0,20}") {
            let _ = translate(&pattern);
        }

        #[test]
        fn quoted_text_matches_itself(text in "[ -~é]{1,20}") {
            prop_assume!(!text.contains("\\E"));
            let pattern = format!(r"^\Q{text}\E$");
            prop_assert!(matches(&pattern, &text));
        }
    }
}
