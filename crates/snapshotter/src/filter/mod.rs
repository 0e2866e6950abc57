//! containerd's filter language for List: `name==x,labels."a.b"~=/c+/`. All selectors of a filter,
//! separated by commas, must match; of several filters, one must. containerd's quirks are kept:
//! clients were written against them.

mod go_regex;
mod parse;
mod quote;

use regex::Regex;

/// A filter that cannot be parsed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("filter {filter:?}, byte {position}: {reason}")]
pub struct FilterError {
    filter: String,
    position: usize,
    reason: String,
}

/// An object with named fields that a filter can test.
pub(crate) trait Fields {
    /// Returns the value at a field path such as `["labels", "a", "b"]`.
    fn field(&self, path: &[String]) -> Option<&str>;
}

/// The filters of one List call, one of which must match. An empty list accepts everything.
#[derive(Debug)]
pub(crate) struct Filters {
    any: Vec<Vec<Selector>>,
}

/// The test of one field.
#[derive(Debug)]
pub(crate) struct Selector {
    pub(crate) path: Vec<String>,
    pub(crate) test: Test,
}

/// The condition on a field. Values are bytes: a quoted one can hold any (`\xff`).
#[derive(Debug)]
pub(crate) enum Test {
    Present,
    Equal(Vec<u8>),
    NotEqual(Vec<u8>),
    /// `None` if the expression is malformed: containerd logs that and matches nothing.
    Matches(Option<Regex>),
}

impl Filters {
    /// Parses the filters of one List call.
    pub(crate) fn parse<S: AsRef<str>>(filters: &[S]) -> Result<Self, FilterError> {
        let any = filters
            .iter()
            .map(|filter| parse::selectors(filter.as_ref()))
            .collect::<Result<_, _>>()?;
        Ok(Self { any })
    }

    /// Whether every snapshot is accepted.
    pub(crate) fn accept_all(&self) -> bool {
        self.any.is_empty() || self.any.iter().any(Vec::is_empty)
    }

    /// Whether one of the filters accepts these fields.
    pub(crate) fn accepts(&self, fields: &impl Fields) -> bool {
        self.any.is_empty()
            || self
                .any
                .iter()
                .any(|all| all.iter().all(|selector| selector.accepts(fields)))
    }

    /// Returns for each filter the value that it requires of the field at `path` (`path==value`), or
    /// `None` if one of them requires none, so that every snapshot must be tested.
    pub(crate) fn demanded(&self, path: &[&str]) -> Option<Vec<&str>> {
        if self.any.is_empty() {
            return None;
        }
        self.any
            .iter()
            .map(|all| all.iter().find_map(|selector| selector.demands(path)))
            .collect()
    }
}

impl Selector {
    fn accepts(&self, fields: &impl Fields) -> bool {
        let value = fields.field(&self.path);
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(wanted) => value.is_some_and(|value| value.as_bytes() == wanted),
            // An absent field counts as empty.
            Test::NotEqual(unwanted) => value.unwrap_or_default().as_bytes() != unwanted,
            Test::Matches(Some(regex)) => regex.is_match(value.unwrap_or_default()),
            Test::Matches(None) => false,
        }
    }

    fn demands(&self, path: &[&str]) -> Option<&str> {
        match &self.test {
            Test::Equal(value) if self.path == path => std::str::from_utf8(value).ok(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
