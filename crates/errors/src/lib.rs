//! An error and its causes as one line of text, for logs and messages that cannot carry a source; text of
//! foreign origin in a form that a terminal shows and does not obey.

#![forbid(unsafe_code)]

mod printable;

pub use printable::{is_printable, printable};

use std::error::Error;
use std::io;

/// Formats an error followed by its causes, outermost first, separated by `": "`.
///
/// A cause whose text the line already contains is left out: many libraries repeat the text of
/// their source.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    for cause in causes(error) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// Returns the causes of an error, from its direct source to the root cause.
pub fn causes<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    fn next<'a>(cause: &&'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
        (**cause).source()
    }
    std::iter::successors(error.source(), next)
}

/// Returns the first error of this type among an error and its causes, those within I/O errors
/// included.
pub fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // The source of an I/O error is that of the error in it, not the error itself.
        let within = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        next = match within {
            Some(within) => Some(within),
            None => error.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use std::num::ParseIntError;

    use super::*;

    #[derive(Debug)]
    struct Outer(&'static str, io::Error);

    impl std::fmt::Display for Outer {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Outer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.1)
        }
    }

    #[test]
    fn a_chain_names_each_cause_once() {
        let refused = || io::Error::other("connection refused");
        assert_eq!(
            chain(&Outer("cannot connect", refused())),
            "cannot connect: connection refused"
        );
        assert_eq!(
            chain(&Outer("cannot connect: connection refused", refused())),
            "cannot connect: connection refused"
        );
        assert_eq!(causes(&refused()).count(), 0);
    }

    #[test]
    fn an_error_is_found_among_causes_and_within_io_errors() {
        let leaf = "x".parse::<u32>().unwrap_err();
        let within = io::Error::other(io::Error::other(leaf.clone()));
        let error = Outer("cannot read", within);
        assert_eq!(find::<ParseIntError>(&error), Some(&leaf));
        assert_eq!(find::<Outer>(&error).unwrap().0, "cannot read");
        assert!(find::<std::fmt::Error>(&error).is_none());
    }
}
