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
        self.put(field, soci_errors::chain(value));
    }
}
