//! Fault points: named places between two steps at which a test can end the process as a crash would,
//! or make a step fail. Release builds do not contain them.
//!
//! A test starts the program with `SOCI_FAULT_POINT=NAME`, or with `NAME:N` for the `N`th time that
//! the point is reached. A call of [`point`] with a new name adds a point; the end-to-end tests find
//! it in the sources. [`numbered_point`] is one point per number, and [`fails`] makes a step fail
//! instead. Each process that inherits the environment counts for itself.

#![forbid(unsafe_code)]

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Environment variable that selects the point.
pub const VARIABLE: &str = "SOCI_FAULT_POINT";

/// Aborts the process if this point is selected: no destructor runs, no buffer is flushed.
#[inline]
pub fn point(name: &str) {
    if cfg!(debug_assertions)
        && let Some(selected) = selected()
        && selected.is_reached(name)
    {
        std::process::abort();
    }
}

/// Aborts the process if the point `NAME#NUMBER` is selected.
#[inline]
pub fn numbered_point(name: &str, number: u64) {
    if cfg!(debug_assertions)
        && let Some(selected) = selected()
        && selected.has_number(name, number)
        && selected.is_reached(&selected.name)
    {
        std::process::abort();
    }
}

/// Returns whether the step of this name has to fail now, as if the system had refused it. This
/// happens once per process.
#[inline]
#[must_use]
pub fn fails(name: &str) -> bool {
    cfg!(debug_assertions) && selected().is_some_and(|selected| selected.is_reached(name))
}

/// Takes memory until the process is killed, if this name is selected.
#[inline]
pub fn hoards(name: &str) {
    if fails(name) {
        let mut hoard = Vec::new();
        loop {
            hoard.push(vec![1_u8; 16 << 20]);
            std::hint::black_box(&hoard);
        }
    }
}

/// The selected point.
#[derive(Debug)]
struct Selected {
    name: String,
    /// Number of times it has to be reached until it triggers.
    left: AtomicU32,
}

fn selected() -> Option<&'static Selected> {
    static SELECTED: OnceLock<Option<Selected>> = OnceLock::new();
    SELECTED
        .get_or_init(|| {
            std::env::var(VARIABLE)
                .ok()
                .map(|text| Selected::parse(&text))
        })
        .as_ref()
}

impl Selected {
    fn parse(text: &str) -> Self {
        let counted = text
            .rsplit_once(':')
            .and_then(|(name, count)| Some((name, count.parse::<u32>().ok()?)));
        let (name, left) = counted.unwrap_or((text, 1));
        Self {
            name: name.to_owned(),
            left: AtomicU32::new(left),
        }
    }

    fn has_number(&self, name: &str, number: u64) -> bool {
        self.name
            .strip_prefix(name)
            .and_then(|rest| rest.strip_prefix('#'))
            .is_some_and(|text| text.parse() == Ok(number))
    }

    /// Counts one pass; `true` exactly once.
    fn is_reached(&self, name: &str) -> bool {
        name == self.name
            && self
                .left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                    left.checked_sub(1)
                })
                == Ok(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_reached_once_at_its_count_and_by_no_other_name() {
        let third = Selected::parse("a:b:3");
        let reached: Vec<bool> = ["a:b", "a", "a:b", "a:b", "a:b"]
            .map(|name| third.is_reached(name))
            .to_vec();
        assert_eq!(reached, [false, false, false, true, false]);
        assert!(Selected::parse("a-b").is_reached("a-b"));
    }

    #[test]
    fn a_numbered_point_is_reached_by_its_number_only() {
        let read = Selected::parse("read#12");
        assert!(read.has_number("read", 12));
        assert!(!read.has_number("read", 1) && !read.has_number("rea", 12));
        assert!(!Selected::parse("read").has_number("read", 0));
    }
}
