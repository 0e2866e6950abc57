//! What can be wrong with a configuration file, said so that the operator can go and fix it.

use std::fmt;
use std::path::PathBuf;

/// Why a configuration file was not accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file is missing or cannot be read as UTF-8 text.
    #[error("failed to open config file {}: {source}", path.display())]
    Read {
        /// The file, as it was given.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{}:{line}: not valid TOML: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line of the error, from 1.
        line: usize,
        /// The parser's words.
        message: String,
    },
    /// One or more values are not allowed.
    #[error("{}", join(path, problems))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// All that is wrong, in the order of the lines; never empty.
        problems: Vec<Problem>,
    },
}

/// One bad value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Line in the file, from 1.
    pub line: usize,
    /// The full dotted key, such as `background_fetch.drop_policy`.
    pub key: String,
    /// The value as written.
    pub value: String,
    /// What would be accepted.
    pub allowed: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} = {} is not allowed: expected {}",
            self.key, self.value, self.allowed
        )
    }
}

fn join(path: &std::path::Path, problems: &[Problem]) -> String {
    problems
        .iter()
        .map(|p| format!("{}:{}: {p}", path.display(), p.line))
        .collect::<Vec<_>>()
        .join("; ")
}
