//! The release of containerd.

use super::ConfigError;

/// The release of containerd that a node runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ContainerdRelease {
    /// First number of its version.
    pub major: u32,
    /// Second number of its version.
    pub minor: u32,
}

impl ContainerdRelease {
    /// Reads the output of `containerd --version`: `containerd PACKAGE VERSION REVISION`.
    ///
    /// # Errors
    /// The output has no version in the third place.
    pub fn parse(output: &str) -> Result<Self, ConfigError> {
        let unreadable = || ConfigError::Release(output.trim().chars().take(200).collect());
        let version = output.split_whitespace().nth(2).ok_or_else(unreadable)?;
        let mut numbers = version
            .trim_start_matches('v')
            .split(['.', '-', '~', '+'])
            .map(str::parse);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(major)), Some(Ok(minor))) => Ok(Self { major, minor }),
            _ => Err(unreadable()),
        }
    }

    /// Whether imported files are merged key by key, and the transfer service can unpack (2.0).
    #[must_use]
    pub fn merges_plugins(self) -> bool {
        self.major >= 2
    }

    /// Version of the format that a new file is written in.
    pub(crate) fn format(self) -> i64 {
        if self.merges_plugins() { 3 } else { 2 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_as_projects_and_distributions_print_it() {
        for (output, expected) in [
            (
                "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3",
                (1, 6),
            ),
            (
                "containerd github.com/containerd/containerd/v2 v2.2.0 4ac6c20c7bbf",
                (2, 2),
            ),
            (
                "containerd github.com/containerd/containerd/v2 2.1.9+unknown ",
                (2, 1),
            ),
            ("containerd containerd.io 1.7.27 05044ec0a9a7\n", (1, 7)),
        ] {
            let release = ContainerdRelease::parse(output).unwrap();
            assert_eq!((release.major, release.minor), expected, "{output}");
        }
        for output in ["", "containerd", "containerd x unknown y", "a b 2 c"] {
            assert!(ContainerdRelease::parse(output).is_err(), "{output}");
        }
    }
}
