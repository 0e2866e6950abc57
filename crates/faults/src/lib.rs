//! Fault points: named places between two steps, at which a test can make the process die as a crash
//! would, or a step fail. Release builds have none of it.
//!
//! A test starts the program with `SOCI_FAULT_POINT=NAME`, or `NAME:N` to let the point pass until it
//! is reached for the `N`th time. To add one, write [`point`] with a new name between the two steps;
//! the end-to-end tests find it in the sources. [`numbered_point`] is one for each of many things.
//! Every process that inherits the environment dies there, each counting for itself. At [`fails`] a step
//! fails instead.

#![forbid(unsafe_code)]

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// The environment variable that names the point.
pub const VARIABLE: &str = "SOCI_FAULT_POINT";

/// Aborts the process here if the environment asks for it: no destructor runs, no buffer is flushed.
#[inline]
pub fn point(name: &str) {
    if cfg!(debug_assertions)
        && let Some(chosen) = chosen()
        && chosen.is_reached(name)
    {
        std::process::abort();
    }
}

/// The same for the thing with this number: its name is `NAME#NUMBER`.
#[inline]
pub fn numbered_point(name: &str, number: u64) {
    if cfg!(debug_assertions)
        && let Some(chosen) = chosen()
        && chosen.has_number(name, number)
        && chosen.is_reached(&chosen.name)
    {
        std::process::abort();
    }
}

/// Whether the step of this name is to fail now, as if the system had refused it: once, by the same
/// variable.
#[inline]
#[must_use]
pub fn fails(name: &str) -> bool {
    cfg!(debug_assertions) && chosen().is_some_and(|chosen| chosen.is_reached(name))
}

/// The point at which this process is to die.
#[derive(Debug)]
struct Chosen {
    name: String,
    /// How often it is still to be reached.
    left: AtomicU32,
}

fn chosen() -> Option<&'static Chosen> {
    static CHOSEN: OnceLock<Option<Chosen>> = OnceLock::new();
    CHOSEN
        .get_or_init(|| {
            std::env::var(VARIABLE)
                .ok()
                .map(|text| Chosen::parse(&text))
        })
        .as_ref()
}

impl Chosen {
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

    /// Counts; true exactly once.
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
        let third = Chosen::parse("a:b:3");
        let reached: Vec<bool> = ["a:b", "a", "a:b", "a:b", "a:b"]
            .map(|name| third.is_reached(name))
            .to_vec();
        assert_eq!(reached, [false, false, false, true, false]);
        assert!(Chosen::parse("a-b").is_reached("a-b"));
    }

    #[test]
    fn a_numbered_point_is_reached_by_its_number_only() {
        let read = Chosen::parse("read#12");
        assert!(read.has_number("read", 12));
        assert!(!read.has_number("read", 1) && !read.has_number("rea", 12));
        assert!(!Chosen::parse("read").has_number("read", 0));
    }
}
