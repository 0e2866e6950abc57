//! A wrong command line, in clap's words, with those that scripts for v0.15 look for in front.

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Formats the error, which may have several lines.
pub(crate) fn text(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text).trim_end();
    match expected(error) {
        Some(known) => format!("{known}: {text}"),
        None => text.to_owned(),
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
