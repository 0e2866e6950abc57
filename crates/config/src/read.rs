//! The reader: from TOML text with positions to a [`Config`], collecting every bad value and every
//! unknown key on the way instead of stopping at the first.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::{Range, RangeInclusive};
use std::path::Path;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::{ConfigError, Problem};
use crate::schema::{Section, Unit, Visitor};
use crate::values::{ByteSize, Choice, Pause};
use crate::{Config, Loaded};

/// Longer times are cut to this; a century is "for ever", and adding it to a clock cannot overflow.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);

pub(crate) fn parse(text: &str, path: &Path) -> Result<Loaded, ConfigError> {
    let root = DeTable::parse(text).map_err(|e| ConfigError::Syntax {
        path: path.to_owned(),
        line: e.span().map_or(1, |span| line_of(text, span.start)),
        message: e.message().to_owned(),
    })?;
    let mut findings = Findings {
        text,
        ..Findings::default()
    };
    let mut config = Config::default();
    read_table(&mut config, root.get_ref(), 0, String::new(), &mut findings);

    findings.problems.sort_by_key(|p| p.line);
    if !findings.problems.is_empty() {
        return Err(ConfigError::Invalid {
            path: path.to_owned(),
            problems: findings.problems,
        });
    }
    findings.warnings.sort_by_key(|(line, _)| *line);
    let warnings = findings
        .warnings
        .into_iter()
        .map(|(line, text)| format!("{}:{line}: {text}", path.display()));
    Ok(Loaded {
        config,
        warnings: warnings.collect(),
    })
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|b| *b == b'\n').count() + 1
}

#[derive(Default)]
struct Findings<'a> {
    text: &'a str,
    problems: Vec<Problem>,
    warnings: Vec<(usize, String)>,
}

struct Entry<'a> {
    /// As the operator spelled it.
    key: &'a str,
    start: usize,
    value: &'a Spanned<DeValue<'a>>,
}

struct Reader<'f, 'a> {
    /// Keys that have not been read yet, in lower case.
    entries: BTreeMap<String, Entry<'a>>,
    /// Where each key that was given stands, for the rules that are checked afterwards.
    starts: BTreeMap<String, usize>,
    asked: Vec<&'static str>,
    prefix: String,
    findings: &'f mut Findings<'a>,
}

fn read_table<'a, S: Section>(
    section: &mut S,
    table: &'a DeTable<'a>,
    start: usize,
    prefix: String,
    findings: &mut Findings<'a>,
) {
    let mut reader = Reader {
        entries: BTreeMap::new(),
        starts: BTreeMap::new(),
        asked: Vec::new(),
        prefix,
        findings,
    };
    reader.index(table);
    section.visit(&mut reader);
    reader.report_unknown();
    let fine_so_far = reader.findings.problems.is_empty();
    for broken in section.check() {
        // A rule between keys says nothing more when one of its keys could not be read.
        if fine_so_far {
            let start = reader.start_of(&broken.key).unwrap_or(start);
            if broken.stops {
                reader.problem(&broken.key, start, broken.value, broken.allowed);
            } else {
                let key = reader.dotted(&broken.key);
                let text = format!(
                    "{key} = {} is ignored: expected {}",
                    broken.value, broken.allowed
                );
                reader.warn(start, text);
            }
        }
    }
}

impl<'a> Reader<'_, 'a> {
    fn index(&mut self, table: &'a DeTable<'a>) {
        let mut all: Vec<Entry<'a>> = table
            .iter()
            .map(|(key, value)| Entry {
                key: key.get_ref(),
                start: key.span().start,
                value,
            })
            .collect();
        all.sort_by_key(|entry| entry.start);
        for entry in all {
            let lower = entry.key.to_lowercase();
            if let Some(earlier) = self.entries.get(&lower) {
                let text = format!(
                    "{} and {} are the same key: the later one counts",
                    self.dotted(earlier.key),
                    self.dotted(entry.key)
                );
                self.warn(entry.start, text);
            }
            self.starts.insert(lower.clone(), entry.start);
            self.entries.insert(lower, entry);
        }
    }

    fn dotted(&self, key: &str) -> String {
        if self.prefix.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.prefix)
        }
    }

    fn warn(&mut self, start: usize, text: String) {
        let line = line_of(self.findings.text, start);
        self.findings.warnings.push((line, text));
    }

    /// Position of a key given here, or of the first part of a dotted one.
    fn start_of(&self, key: &str) -> Option<usize> {
        let lower = key.to_lowercase();
        let first = lower.split('.').next().unwrap_or(&lower);
        self.starts.get(first).copied()
    }

    fn problem(&mut self, key: &str, start: usize, value: String, allowed: impl Into<String>) {
        let problem = Problem {
            line: line_of(self.findings.text, start),
            key: self.dotted(key),
            value,
            allowed: allowed.into(),
        };
        self.findings.problems.push(problem);
    }

    fn take(&mut self, key: &'static str) -> Option<Entry<'a>> {
        self.asked.push(key);
        self.entries.remove(&key.to_lowercase())
    }

    /// Takes a key and converts it; what does not convert is a problem.
    fn get<T>(
        &mut self,
        key: &'static str,
        allowed: &str,
        convert: impl FnOnce(&DeValue<'a>) -> Option<T>,
    ) -> Option<T> {
        let entry = self.take(key)?;
        let converted = convert(entry.value.get_ref());
        if converted.is_none() {
            let value = self.written(entry.value.span());
            self.problem(key, entry.start, value, allowed);
        }
        converted
    }

    fn integer(
        &mut self,
        key: &'static str,
        allowed: &str,
        accept: impl FnOnce(i64) -> bool,
    ) -> Option<i64> {
        self.get(key, allowed, |value| {
            let integer = value.as_integer()?;
            i64::from_str_radix(integer.as_str(), integer.radix())
                .ok()
                .filter(|n| accept(*n))
        })
    }

    /// The value as it stands in the file, shortened.
    fn written(&self, span: Range<usize>) -> String {
        let text = self.findings.text.get(span).unwrap_or_default();
        let mut short: String = text
            .chars()
            .take(80)
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        if short.len() < text.len() {
            short.push('…');
        }
        short
    }

    fn report_unknown(&mut self) {
        for (lower, entry) in std::mem::take(&mut self.entries) {
            let mut text = format!("unknown key {} is ignored", self.dotted(entry.key));
            let near = self
                .asked
                .iter()
                .map(|known| (distance(&lower, &known.to_lowercase()), *known))
                .min()
                .filter(|(far, known)| *far <= 2.max(known.len() / 4) && *far < known.len());
            if let Some((_, known)) = near {
                let _ = write!(text, "; did you mean {}?", self.dotted(known));
            } else if let Some(home) = elsewhere(&lower) {
                let _ = write!(text, "; did you mean {home}?");
            }
            self.warn(entry.start, text);
        }
    }

    fn sub_table<S: Section>(
        &mut self,
        key: &str,
        start: usize,
        value: &'a Spanned<DeValue<'a>>,
        section: &mut S,
    ) {
        match value.get_ref() {
            DeValue::Table(table) => {
                let prefix = self.dotted(key);
                read_table(section, table, start, prefix, self.findings);
            }
            _ => {
                let written = self.written(value.span());
                self.problem(key, start, written, "a table");
            }
        }
    }

    /// Reads a length of time; one below 0 means `negative`, if that means anything.
    fn time(
        &mut self,
        key: &'static str,
        unit: Unit,
        value: &mut Duration,
        negative: Option<Duration>,
    ) {
        let says = match unit {
            Unit::Seconds => "a whole number of seconds (0 for the default)",
            Unit::Milliseconds => "a whole number of milliseconds (0 for the default)",
        };
        match self.integer(key, says, |n| n >= 0 || negative.is_some()) {
            Some(n @ 1..) => *value = unit.times(n.unsigned_abs()).min(LONGEST),
            Some(..0) => *value = negative.unwrap_or(*value),
            Some(0) | None => {}
        }
    }
}

impl Visitor for Reader<'_, '_> {
    fn flag(&mut self, key: &'static str, value: &mut bool) {
        if let Some(v) = self.get(key, "true or false", DeValue::as_bool) {
            *value = v;
        }
    }

    fn added_flag(&mut self, key: &'static str, value: &mut bool) {
        self.flag(key, value);
    }

    fn text(&mut self, key: &'static str, value: &mut String) {
        if let Some(v) = self.get(key, "a string", |v| v.as_str().map(str::to_owned)) {
            *value = v;
        }
    }

    fn added_text(&mut self, key: &'static str, value: &mut String, _: &str) {
        self.text(key, value);
    }

    fn text_or_default(&mut self, key: &'static str, value: &mut String) {
        let mut given = String::new();
        self.text(key, &mut given);
        if !given.is_empty() {
            *value = given;
        }
    }

    fn texts(&mut self, key: &'static str, value: &mut Vec<String>) {
        let strings = self.get(key, "an array of strings", |v| {
            v.as_array()?
                .iter()
                .map(|item| item.get_ref().as_str().map(str::to_owned))
                .collect()
        });
        if let Some(v) = strings {
            *value = v;
        }
    }

    fn choice<T: Choice>(&mut self, key: &'static str, value: &mut T) {
        let words: Vec<_> = T::WORDS
            .iter()
            .filter(|(w, _)| !w.is_empty())
            .map(|(w, _)| format!("{w:?}"))
            .collect();
        let chosen = self.get(key, &words.join(" or "), |v| {
            let word = v.as_str()?;
            T::WORDS
                .iter()
                .find(|(w, _)| *w == word)
                .map(|(_, value)| *value)
        });
        if let Some(v) = chosen {
            *value = v;
        }
    }

    fn number(&mut self, key: &'static str, value: &mut u64, allowed: RangeInclusive<u64>) {
        let says = format!("a whole number from {} up", allowed.start());
        let fits = |n: i64| u64::try_from(n).is_ok_and(|n| allowed.contains(&n));
        if let Some(n) = self.integer(key, &says, fits) {
            *value = n.unsigned_abs();
        }
    }

    fn retries(&mut self, key: &'static str, value: &mut u64) {
        let says = "a whole number (-1 for none, 0 for the default)";
        match self.integer(key, says, |_| true) {
            Some(n @ 1..) => *value = n.unsigned_abs(),
            Some(..0) => *value = 0,
            Some(0) | None => {}
        }
    }

    fn limit(&mut self, key: &'static str, value: &mut Option<u64>) {
        match self.integer(
            key,
            "a whole number (-1 for no limit, 0 for the default)",
            |_| true,
        ) {
            Some(n @ 1..) => *value = Some(n.unsigned_abs()),
            Some(..0) => *value = None,
            Some(0) | None => {}
        }
    }

    fn count(&mut self, key: &'static str, value: &mut u64) {
        if let Some(n) = self.integer(key, "a whole number", |_| true) {
            *value = u64::try_from(n).unwrap_or(0);
        }
    }

    fn duration(&mut self, key: &'static str, unit: Unit, value: &mut Duration) {
        self.time(key, unit, value, None);
    }

    fn timeout(&mut self, key: &'static str, unit: Unit, value: &mut Duration) {
        self.time(key, unit, value, Some(LONGEST));
    }

    fn pause(&mut self, key: &'static str, unit: Unit, value: &mut Duration) {
        self.time(key, unit, value, Some(unit.times(1)));
    }

    fn pause_if_set(&mut self, key: &'static str, unit: Unit, value: &mut Pause) {
        // No pause that can be written in the file.
        let (mut set, none) = (Duration::ZERO, Duration::ZERO);
        self.time(key, unit, &mut set, Some(unit.times(1)));
        if set > none {
            *value = Pause::set(set);
        }
    }

    fn size(&mut self, key: &'static str, value: &mut Option<ByteSize>) {
        let size = self.get(key, ByteSize::ALLOWED, |v| match v.as_str()? {
            "" => Some(None),
            text => ByteSize::parse(text).map(|size| (size.bytes() > 0).then_some(size)),
        });
        if let Some(v) = size {
            *value = v;
        }
    }

    fn table<S: Section>(&mut self, key: &'static str, value: &mut S) {
        if let Some(entry) = self.take(key) {
            self.sub_table(key, entry.start, entry.value, value);
        }
    }

    fn named_tables<S: Section + Default>(
        &mut self,
        key: &'static str,
        value: &mut BTreeMap<String, S>,
    ) {
        let Some(entry) = self.take(key) else { return };
        let DeValue::Table(table) = entry.value.get_ref() else {
            let written = self.written(entry.value.span());
            return self.problem(key, entry.start, written, "a table of tables");
        };
        for (name, inner) in table.iter() {
            let mut section = S::default();
            let below = format!("{key}.{:?}", name.get_ref());
            self.sub_table(&below, name.span().start, inner, &mut section);
            value.insert(name.get_ref().to_string(), section);
        }
    }

    fn tables<S: Section + Default>(&mut self, key: &'static str, value: &mut Vec<S>) {
        let Some(entry) = self.take(key) else { return };
        let DeValue::Array(array) = entry.value.get_ref() else {
            let written = self.written(entry.value.span());
            return self.problem(key, entry.start, written, "an array of tables");
        };
        for (n, inner) in array.iter().enumerate() {
            let mut section = S::default();
            self.sub_table(
                &format!("{key}[{n}]"),
                inner.span().start,
                inner,
                &mut section,
            );
            value.push(section);
        }
    }

    fn ignored(&mut self, key: &'static str) {
        let _ = self.take(key);
    }
}

/// The full name of the one known key that ends like this, if it is in another table.
fn elsewhere(lower: &str) -> Option<String> {
    let known = crate::dump::known_keys();
    let mut homes = known.into_iter().filter(|key| {
        key.rsplit('.')
            .next()
            .is_some_and(|k| k.to_lowercase() == lower)
    });
    match (homes.next(), homes.next()) {
        (Some(home), None) => Some(home),
        _ => None,
    }
}

/// Levenshtein distance in characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, cb) in row.iter_mut().skip(1).zip(&b) {
            let above = *cell;
            left = (above + 1)
                .min(left + 1)
                .min(diagonal + usize::from(ca != *cb));
            diagonal = above;
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}
