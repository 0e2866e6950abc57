//! The writer: a configuration as TOML text, in the layout that v0.15 prints, and as a flat list
//! of keys to compare two configurations.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::Config;
use crate::schema::{Section, Unit, Visitor};
use crate::values::{ByteSize, Choice, Pause};

enum TomlLine {
    Table(String),
    ArrayElement(String),
    /// The whole dotted key, its last part as printed, and the value in TOML.
    Key(String, String, String),
}

struct Writer {
    /// Dotted name of the table that is being written, and its depth.
    path: Vec<String>,
    lines: Vec<TomlLine>,
}

pub(crate) fn to_toml(config: &Config) -> String {
    let mut text = String::new();
    let mut depth = 0_usize;
    let mut after_header = true;
    for line in walk(config) {
        let (indent, body) = match line {
            TomlLine::Table(name) => {
                depth = levels(&name);
                (depth - 1, format!("[{name}]"))
            }
            TomlLine::ArrayElement(name) => {
                depth = levels(&name);
                (depth - 1, format!("[[{name}]]"))
            }
            TomlLine::Key(_, key, value) => {
                after_header = false;
                text.push_str(&format!("{}{key} = {value}\n", "  ".repeat(depth)));
                continue;
            }
        };
        if !after_header {
            text.push('\n');
        }
        after_header = true;
        text.push_str(&format!("{}{body}\n", "  ".repeat(indent)));
    }
    text
}

/// Dotted names of the keys that differ, in the order of the file; a key that only one of the two
/// has (in a named table) differs.
pub(crate) fn changed(config: &Config, from: &Config) -> Vec<String> {
    let flat = |c: &Config| -> Vec<(String, String)> {
        walk(c)
            .into_iter()
            .filter_map(|line| match line {
                TomlLine::Key(dotted, _, value) => Some((dotted, value)),
                TomlLine::Table(_) | TomlLine::ArrayElement(_) => None,
            })
            .collect()
    };
    let known: BTreeMap<_, _> = flat(from).into_iter().collect();
    flat(config)
        .into_iter()
        .filter(|(key, value)| known.get(key) != Some(value))
        .map(|(key, _)| key)
        .collect()
}

/// Dotted names of all keys outside of named tables.
pub(crate) fn known_keys() -> Vec<String> {
    walk(&Config::default())
        .into_iter()
        .filter_map(|line| match line {
            TomlLine::Key(dotted, _, _) => Some(dotted),
            TomlLine::Table(_) | TomlLine::ArrayElement(_) => None,
        })
        .collect()
}

fn walk(config: &Config) -> Vec<TomlLine> {
    let mut writer = Writer {
        path: Vec::new(),
        lines: Vec::new(),
    };
    config.clone().visit(&mut writer);
    writer.lines
}

/// The number of parts of a dotted name, whose quoted parts may hold dots.
fn levels(dotted: &str) -> usize {
    let mut quote = None;
    let mut dots = 0;
    for c in dotted.chars() {
        match (quote, c) {
            (None, '\'' | '"') => quote = Some(c),
            (Some(q), c) if c == q => quote = None,
            (None, '.') => dots += 1,
            _ => {}
        }
    }
    dots + 1
}

fn quoted(text: &str) -> String {
    if text.chars().any(|c| c == '\'' || c.is_control()) {
        // One line, whatever the text: JSON's escapes are TOML's.
        let mut out = String::from("\"");
        for c in text.chars() {
            match c {
                '"' | '\\' => out.extend(['\\', c]),
                c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
                c => out.push(c),
            }
        }
        out.push('"');
        out
    } else {
        format!("'{text}'")
    }
}

fn part(name: &str) -> String {
    let bare = !name.is_empty()
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    if bare { name.to_owned() } else { quoted(name) }
}

impl Writer {
    fn key(&mut self, key: &str, value: String) {
        let dotted = self.dotted(key);
        self.lines
            .push(TomlLine::Key(dotted, key.to_owned(), value));
    }

    fn dotted(&self, key: &str) -> String {
        let mut name = self.path.join(".");
        if !name.is_empty() {
            name.push('.');
        }
        name + key
    }

    fn below<S: Section>(&mut self, key: String, value: &mut S) {
        self.path.push(key);
        value.visit(self);
        self.path.pop();
    }
}

impl Visitor for Writer {
    fn flag(&mut self, key: &'static str, value: &mut bool) {
        self.key(key, value.to_string());
    }

    fn added_flag(&mut self, key: &'static str, value: &mut bool) {
        if *value {
            self.flag(key, value);
        }
    }

    fn text(&mut self, key: &'static str, value: &mut String) {
        self.key(key, quoted(value));
    }

    fn added_text(&mut self, key: &'static str, value: &mut String, default: &str) {
        if value != default {
            self.text(key, value);
        }
    }

    fn text_or_default(&mut self, key: &'static str, value: &mut String) {
        self.text(key, value);
    }

    fn texts(&mut self, key: &'static str, value: &mut Vec<String>) {
        let items: Vec<_> = value.iter().map(|text| quoted(text)).collect();
        self.key(key, format!("[{}]", items.join(", ")));
    }

    fn choice<T: Choice>(&mut self, key: &'static str, value: &mut T) {
        self.key(key, quoted(value.word()));
    }

    fn number(&mut self, key: &'static str, value: &mut u64, _: RangeInclusive<u64>) {
        self.key(key, value.to_string());
    }

    fn retries(&mut self, key: &'static str, value: &mut u64) {
        let shown = match *value {
            0 => "-1".to_owned(),
            retries => retries.to_string(),
        };
        self.key(key, shown);
    }

    fn limit(&mut self, key: &'static str, value: &mut Option<u64>) {
        self.key(
            key,
            value.map_or_else(|| "-1".to_owned(), |n| n.to_string()),
        );
    }

    fn duration(&mut self, key: &'static str, unit: Unit, value: &mut Duration) {
        let number = match unit {
            Unit::Seconds => u128::from(value.as_secs()),
            Unit::Milliseconds => value.as_millis(),
        };
        self.key(key, number.to_string());
    }

    fn pause_if_set(&mut self, key: &'static str, unit: Unit, value: &mut Pause) {
        self.duration(key, unit, &mut { value.or_default() });
    }

    fn size(&mut self, key: &'static str, value: &mut Option<ByteSize>) {
        self.key(key, quoted(value.as_ref().map_or("", ByteSize::as_str)));
    }

    fn table<S: Section>(&mut self, key: &'static str, value: &mut S) {
        let name = self.dotted(key);
        self.lines.push(TomlLine::Table(name));
        self.below(key.to_owned(), value);
    }

    fn named_tables<S: Section + Default>(
        &mut self,
        key: &'static str,
        value: &mut BTreeMap<String, S>,
    ) {
        for (name, section) in value {
            let below = format!("{key}.{}", part(name));
            let header = self.dotted(&below);
            self.lines.push(TomlLine::Table(header));
            self.below(below, section);
        }
    }

    fn tables<S: Section + Default>(&mut self, key: &'static str, value: &mut Vec<S>) {
        for section in value {
            let header = self.dotted(key);
            self.lines.push(TomlLine::ArrayElement(header));
            self.below(key.to_owned(), section);
        }
    }

    fn ignored(&mut self, _: &'static str) {}
}
