//! The two streams: results on stdout, one line of error on stderr.
//!
//! Names, link targets, media types and references come from images and registries. Everything that is printed
//! passes through here and is made printable ([`soci_errors::printable`]), to a terminal and to a pipe alike, as
//! `tar -t` and `git ls-files` do: a pipe often ends on a terminal, and a name with a newline would be two names.
//! Scripts that need exact names take `--json`. The only exception is [`contents`], for the bytes of a file.

#![expect(
    clippy::disallowed_methods,
    reason = "the only place that uses the two streams"
)]

use std::fmt;
use std::io::{self, IsTerminal as _, Write};

use soci_errors::{is_printable, printable};

/// Lines of text for stdout.
#[derive(Debug, Default)]
pub(crate) struct Page(String);

impl Page {
    /// Appends one line, whatever the text holds.
    pub(crate) fn line(&mut self, text: impl AsRef<str>) {
        self.0.push_str(&printable(text.as_ref()));
        self.0.push('\n');
    }

    /// Appends the lines of another page.
    pub(crate) fn append(&mut self, other: &Self) {
        self.0.push_str(&other.0);
    }

    /// Returns the lines as text.
    #[cfg(test)]
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Prints a line on stdout. A reader that has gone away is not an error.
pub(crate) fn line(text: impl AsRef<str>) {
    let mut page = Page::default();
    page.line(text);
    self::page(&page);
}

/// Prints a page on stdout.
pub(crate) fn page(page: &Page) {
    let _ = write!(io::stdout().lock(), "{}", page.0);
}

/// Prints the program's own text on stdout: help, completion scripts.
pub(crate) fn own_text(text: impl AsRef<str>) {
    let mut page = Page::default();
    text.as_ref().lines().for_each(|text| page.line(text));
    self::page(&page);
}

/// Prints a value as indented JSON on stdout.
pub(crate) fn json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    document(&serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Prints a JSON document on stdout. What a terminal would obey is written as an escape of JSON, which stands for
/// the same character.
pub(crate) fn document(json: &str) {
    let mut text = String::with_capacity(json.len());
    for character in json.chars() {
        // Newlines of the form; those in strings are escaped already.
        if character == '\n' || is_printable(character) {
            text.push(character);
        } else {
            text.push_str(&format!("\\u{:04x}", u32::from(character)));
        }
    }
    let _ = writeln!(io::stdout().lock(), "{text}");
}

/// Returns stdout for the content of a file, which is written as it is.
pub(crate) fn contents() -> impl Write {
    io::stdout().lock()
}

/// Whether stdout is a terminal.
pub(crate) fn stdout_is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Whether stderr is a terminal.
pub(crate) fn stderr_is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// An error of several lines: the usage that the parser of the command line shows, for example.
#[derive(Debug)]
pub(crate) struct Lines(Vec<String>);

impl Lines {
    /// An error that is printed as the lines of `text`.
    pub(crate) fn of(text: &str) -> Self {
        Self(text.lines().map(str::to_owned).collect())
    }
}

impl fmt::Display for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Lines {}

/// Prints `soci: <reason>` on stderr, the form that other programs know.
pub(crate) fn error(error: &anyhow::Error) {
    let text = match error.downcast_ref::<Lines>() {
        Some(Lines(lines)) => {
            let lines: Vec<_> = lines.iter().map(|line| printable(line)).collect();
            lines.join("\n")
        }
        None => printable(&reason(error)).into_owned(),
    };
    let _ = writeln!(io::stderr().lock(), "soci: {text}");
}

/// The error and its causes, each said once: some errors say their cause themselves.
pub(crate) fn reason(error: &anyhow::Error) -> String {
    soci_errors::chain(error.as_ref())
}

/// Prints a warning on stderr.
pub(crate) fn warning(text: &str) {
    let _ = writeln!(io::stderr().lock(), "soci: warning: {}", printable(text));
}

/// Prints a remark about the work on stderr.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "soci: {}", printable(text));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_a_line_for_each_line_given() {
        let mut page = Page::default();
        page.line("one\ntwo\u{1b}[0m");
        page.line("three");
        assert_eq!(page.as_str(), "one\\ntwo\\u{1b}[0m\nthree\n");
    }
}
