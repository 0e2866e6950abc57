//! The fields of an event or span as strings: tools that watch the log compare them as such.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;

use tracing::field::{Field, Visit};

/// Names and values, and the message if there is one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fields {
    pub(crate) message: String,
    pub(crate) values: BTreeMap<&'static str, String>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: String) {
        match field.name() {
            "message" => self.message = value,
            // What the `log` crate's bridge adds about the place in the source.
            name if name.starts_with("log.") => {}
            name => {
                self.values
                    .insert(name.strip_prefix("r#").unwrap_or(name), value);
            }
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.to_owned());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.put(field, chain(value));
    }
}

/// An error and its causes in one line, each said once.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}
