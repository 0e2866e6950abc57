//! The form of sizes and digests: with units and short for people, exact for programs.

use indicatif::BinaryBytes;

use crate::output;

/// Hexadecimal digits of a short digest.
const SHORT: usize = 12;

/// Whom a text is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// A person at a terminal.
    People,
    /// A program that reads a pipe or a file.
    Programs,
}

impl Style {
    /// Returns the style for what stdout is.
    pub(crate) fn of_stdout() -> Self {
        if output::stdout_is_terminal() {
            Self::People
        } else {
            Self::Programs
        }
    }

    /// Formats a number of bytes.
    pub(crate) fn size(self, bytes: u64) -> String {
        match self {
            Self::People => BinaryBytes(bytes).to_string(),
            Self::Programs => bytes.to_string(),
        }
    }

    /// Formats a number of bytes, with the unit in either case.
    pub(crate) fn size_with_unit(self, bytes: u64) -> String {
        match self {
            Self::People => self.size(bytes),
            Self::Programs => format!("{bytes} bytes"),
        }
    }

    /// Formats a digest; other text stays as it is.
    pub(crate) fn digest(self, digest: &str) -> String {
        match (self, digest.split_once(':')) {
            (Self::People, Some(("sha256", hex))) => {
                let hex: String = hex.chars().take(SHORT).collect();
                format!("sha256:{hex}")
            }
            _ => digest.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_read_units_and_short_digests_and_programs_exact_values() {
        let digest = soci_oci::Digest::of(b"x").to_string();
        let people = Style::People;
        assert_eq!(people.size(3 << 20), "3.00 MiB");
        assert_eq!(people.size_with_unit(900), "900 B");
        assert_eq!(people.digest(&digest), digest[..19]);
        assert_eq!(people.digest("k8s.io/1/extract"), "k8s.io/1/extract");
        let programs = Style::Programs;
        assert_eq!(programs.size(3 << 20), "3145728");
        assert_eq!(programs.size_with_unit(900), "900 bytes");
        assert_eq!(programs.digest(&digest), digest);
    }
}
