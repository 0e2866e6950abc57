//! containerd's filter language, which List takes: `name==x,labels."a.b"~=/c+/`. Selectors joined
//! by a comma must all match; of several filters one must. The quirks are containerd's on purpose:
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

/// Something with named fields that a filter is matched against.
pub(crate) trait Fields {
    /// The value at a field path (`["labels", "a", "b"]`), if there is one.
    fn field(&self, path: &[String]) -> Option<&str>;
}

/// Any of several filters; none at all accepts everything.
#[derive(Debug)]
pub(crate) struct Filters {
    any: Vec<Vec<Selector>>,
}

/// One comparison.
#[derive(Debug)]
pub(crate) struct Selector {
    pub(crate) path: Vec<String>,
    pub(crate) test: Test,
}

/// What is asked of the field. Values are bytes: a quoted one may hold any (`\xff`).
#[derive(Debug)]
pub(crate) enum Test {
    Present,
    Equal(Vec<u8>),
    NotEqual(Vec<u8>),
    /// `None`: not a regular expression. containerd logs that and matches nothing.
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

    /// Whether everything is accepted, without a look at it.
    pub(crate) fn accept_all(&self) -> bool {
        self.any.is_empty() || self.any.iter().any(Vec::is_empty)
    }

    /// Whether one of the filters accepts it.
    pub(crate) fn accepts(&self, fields: &impl Fields) -> bool {
        self.any.is_empty()
            || self
                .any
                .iter()
                .any(|all| all.iter().all(|selector| selector.accepts(fields)))
    }

    /// For each filter, the value that it demands of the field at `path` (`path==value`). `None`
    /// if any of them demands none: then every snapshot has to be looked at.
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
            // An absent field counts as empty here, not as absent.
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
