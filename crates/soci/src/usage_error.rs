//! A wrong command line, in clap's words, with those that scripts for v0.15 look for in front.

use clap::error::{ContextKind, ContextValue, ErrorKind};
use soci_errors::printable;

/// Formats the error, which may have several lines.
pub(crate) fn text(mut error: clap::Error) -> String {
    escape(&mut error);
    let error = &error;
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text).trim_end();
    match expected(error) {
        Some(known) => format!("{known}: {text}"),
        None => text.to_owned(),
    }
}

/// Escapes the arguments that the error repeats: scripts pass what images are called, and a line end in one
/// would begin a line of its own.
fn escape(error: &mut clap::Error) {
    let escaped = |text: &String| printable(text).into_owned();
    let context = error.context().filter_map(|(kind, value)| match value {
        ContextValue::String(text) => Some((kind, ContextValue::String(escaped(text)))),
        ContextValue::Strings(all) => {
            let all = all.iter().map(escaped).collect();
            Some((kind, ContextValue::Strings(all)))
        }
        _ => None,
    });
    for (kind, value) in context.collect::<Vec<_>>() {
        error.insert(kind, value);
    }
}

/// What v0.15 says to the same mistake.
fn expected(error: &clap::Error) -> Option<String> {
    let about = error.get(ContextKind::InvalidArg)?;
    match (error.kind(), about) {
        (ErrorKind::InvalidValue, ContextValue::String(flag)) if flag.starts_with("--format") => {
            let ContextValue::String(value) = error.get(ContextKind::InvalidValue)? else {
                return None;
            };
            Some(format!("unsupported output format {value:?}"))
        }
        (ErrorKind::MissingRequiredArgument, ContextValue::Strings(missing)) => {
            let lacks = |name: &str| missing.iter().any(|argument| argument == name);
            if lacks("<SRC>") {
                Some("source image needs to be specified".to_owned())
            } else if lacks("<DST>") {
                Some("destination needs to be specified".to_owned())
            } else {
                None
            }
        }
        _ => None,
    }
}
