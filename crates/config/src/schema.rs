//! The walk over the keys. A [`Section`] names its keys to a [`Visitor`]; the reader fills them,
//! the writer prints them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::values::{ByteSize, Choice, Pause};

/// The unit in which a duration is written in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Seconds,
    Milliseconds,
}

impl Unit {
    /// So many of it.
    pub(crate) fn times(self, count: u64) -> Duration {
        match self {
            Self::Seconds => Duration::from_secs(count),
            Self::Milliseconds => Duration::from_millis(count),
        }
    }
}

/// A rule between keys, or about one key's text, that is broken.
#[derive(Debug)]
pub(crate) struct Broken {
    /// The key below the section.
    pub(crate) key: Cow<'static, str>,
    pub(crate) value: String,
    pub(crate) allowed: String,
    /// Whether this stops the start, or is only worth a warning.
    pub(crate) stops: bool,
}

impl Broken {
    pub(crate) fn new(
        key: impl Into<Cow<'static, str>>,
        value: impl Into<String>,
        allowed: impl Into<String>,
    ) -> Self {
        Self {
            key: key.into(),
            value: value.into(),
            allowed: allowed.into(),
            stops: true,
        }
    }
}

/// One table of the file.
pub(crate) trait Section {
    /// Names every key once, in the order in which they are printed.
    fn visit(&mut self, v: &mut impl Visitor);

    /// Rules that a single value's type cannot say. Called after the section was read.
    fn check(&self) -> Vec<Broken> {
        Vec::new()
    }
}

/// What is done with each key.
pub(crate) trait Visitor {
    fn flag(&mut self, key: &'static str, value: &mut bool);
    /// A flag that a table of v0.15 did not have: printed only where it is set.
    fn added_flag(&mut self, key: &'static str, value: &mut bool);
    fn text(&mut self, key: &'static str, value: &mut String);
    /// A text that a table of v0.15 did not have: printed only where it is not the default.
    fn added_text(&mut self, key: &'static str, value: &mut String, default: &str);
    /// A text, where an empty one in the file means the default.
    fn text_or_default(&mut self, key: &'static str, value: &mut String);
    fn texts(&mut self, key: &'static str, value: &mut Vec<String>);
    fn choice<T: Choice>(&mut self, key: &'static str, value: &mut T);
    /// A whole number; 0 is an ordinary value.
    fn number(&mut self, key: &'static str, value: &mut u64, allowed: RangeInclusive<u64>);
    /// Attempts after the first: negative in the file means none, 0 the default.
    fn retries(&mut self, key: &'static str, value: &mut u64);
    /// A limit: negative in the file means none, 0 means the default.
    fn limit(&mut self, key: &'static str, value: &mut Option<u64>);
    /// A length of time, where 0 in the file means the default.
    fn duration(&mut self, key: &'static str, unit: Unit, value: &mut Duration);
    /// A whole number of v0.15: negative in the file means 0.
    fn count(&mut self, key: &'static str, value: &mut u64) {
        self.number(key, value, 0..=i64::MAX.unsigned_abs());
    }
    /// A time-out of v0.15: negative in the file means none, 0 the default.
    fn timeout(&mut self, key: &'static str, unit: Unit, value: &mut Duration) {
        self.duration(key, unit, value);
    }
    /// A pause of v0.15: negative in the file means the shortest, 0 the default.
    fn pause(&mut self, key: &'static str, unit: Unit, value: &mut Duration) {
        self.duration(key, unit, value);
    }
    /// A pause that v0.15 sets by default and this daemon does not.
    fn pause_if_set(&mut self, key: &'static str, unit: Unit, value: &mut Pause);
    fn size(&mut self, key: &'static str, value: &mut Option<ByteSize>);
    fn table<S: Section>(&mut self, key: &'static str, value: &mut S);
    /// Tables whose names the operator chooses. Not printed when there are none.
    fn named_tables<S: Section + Default>(
        &mut self,
        key: &'static str,
        value: &mut BTreeMap<String, S>,
    );
    /// An array of tables. Not printed when it is empty.
    fn tables<S: Section + Default>(&mut self, key: &'static str, value: &mut Vec<S>);
    /// A key that is known, but neither kept nor printed.
    fn ignored(&mut self, key: &'static str);
}
