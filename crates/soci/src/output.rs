//! The two streams: results on stdout, one line of error on stderr.

use std::io::{self, Write as _};

/// Prints a line on stdout. A reader that has gone away is no error.
pub(crate) fn line(text: impl AsRef<str>) {
    let _ = writeln!(io::stdout().lock(), "{}", text.as_ref());
}

/// Prints a text as it is on stdout.
pub(crate) fn text(text: impl AsRef<str>) {
    let _ = write!(io::stdout().lock(), "{}", text.as_ref());
}

/// Prints a value as indented JSON on stdout.
pub(crate) fn json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    line(serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Prints `soci: <reason>` on stderr, the form that other programs know.
pub(crate) fn error(error: &anyhow::Error) {
    let _ = writeln!(io::stderr().lock(), "soci: {}", reason(error));
}

/// The error and its causes, each said once: some errors say their cause themselves.
pub(crate) fn reason(error: &anyhow::Error) -> String {
    soci_errors::chain(error.as_ref())
}

/// Prints a warning on stderr.
pub(crate) fn warning(text: &str) {
    let _ = writeln!(io::stderr().lock(), "soci: warning: {text}");
}
