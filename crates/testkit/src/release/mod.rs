//! The releases of containerd that tests run under: the one of this machine, and later ones from
//! Debian's packages, unpacked into a folder and never installed.

mod packages;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result};

use crate::cli::output_of;
use crate::image::cached;
use packages::Wanted;

/// A release of containerd, with `ctr` and `runc` of the same distribution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Release {
    /// The one that is installed: 1.6 on Debian 12.
    #[default]
    Installed,
    /// 1.7.
    V1_7,
    /// 2.1, the first whose clients pull through the transfer service. The programs in the folder
    /// `SOCI_TEST_CONTAINERD_2`, if that is set: those of a later 2.x.
    V2_1,
}

static V1_7: OnceLock<Result<PathBuf, String>> = OnceLock::new();
static V2_1: OnceLock<Result<PathBuf, String>> = OnceLock::new();
static INSTALLED_MAJOR: OnceLock<Result<u32, String>> = OnceLock::new();

impl Release {
    /// All releases.
    pub const ALL: [Self; 3] = [Self::Installed, Self::V1_7, Self::V2_1];

    /// The folder of its programs, the first in the search path of its containerd; none for the
    /// installed one.
    ///
    /// # Errors
    /// When it is not cached and cannot be fetched; the message says what to do about it.
    pub fn programs(self) -> Result<Option<PathBuf>> {
        let (ready, wanted) = match self {
            Self::Installed => return Ok(None),
            Self::V1_7 => (
                &V1_7,
                Wanted {
                    version: "1.7.",
                    suites: &["trixie"],
                },
            ),
            Self::V2_1 if other_2().is_some() => return Ok(other_2()),
            Self::V2_1 => (
                &V2_1,
                Wanted {
                    version: "2.1.",
                    suites: &["forky", "sid"],
                },
            ),
        };
        ready
            .get_or_init(|| {
                cached(&wanted.recipe(), |folder| packages::unpack(&wanted, folder))
                    .map(|folder| folder.join("bin"))
                    .map_err(|error| format!("{error:#}"))
            })
            .clone()
            .map(Some)
            .map_err(anyhow::Error::msg)
    }

    /// One of its programs.
    ///
    /// # Errors
    /// As [`Release::programs`].
    pub fn program(self, name: &str) -> Result<PathBuf> {
        let folder = self.programs()?;
        Ok(folder.map_or_else(|| PathBuf::from(name), |folder| folder.join(name)))
    }

    /// The value of `PATH` for its containerd, which finds shim and runc there.
    pub(crate) fn search_path(self) -> Result<std::ffi::OsString> {
        let own = std::env::var_os("PATH").unwrap_or_default();
        let folders = self.programs()?.into_iter();
        std::env::join_paths(folders.chain(std::env::split_paths(&own)))
            .context("a search path with the programs of a release")
    }

    /// Whether containerd's configuration has version 3, and its clients pull through the transfer
    /// service.
    ///
    /// # Errors
    /// When the installed containerd does not report its version.
    pub fn is_2(self) -> Result<bool> {
        Ok(match self {
            Self::Installed => installed_major()? >= 2,
            Self::V1_7 => false,
            Self::V2_1 => true,
        })
    }
}

/// The folder with another 2.x that is to run in the place of 2.1.
fn other_2() -> Option<PathBuf> {
    std::env::var_os("SOCI_TEST_CONTAINERD_2").map(PathBuf::from)
}

fn installed_major() -> Result<u32> {
    let asked = INSTALLED_MAJOR.get_or_init(|| {
        let mut command = std::process::Command::new("containerd");
        command.arg("--version");
        let text = output_of(command).map_err(|error| format!("{error:#}"))?;
        major_of(&text).ok_or_else(|| format!("containerd reports no version: {text}"))
    });
    asked.clone().map_err(anyhow::Error::msg)
}

/// The major number in the output of `containerd --version`: `containerd PACKAGE VERSION REVISION`.
fn major_of(text: &str) -> Option<u32> {
    let version = text.split_whitespace().nth(2)?.trim_start_matches('v');
    version.split('.').next()?.parse().ok()
}

/// The folder `bin` below `folder`, which holds links to programs elsewhere below it.
fn bin(folder: &Path) -> PathBuf {
    folder.join("bin")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_as_debian_and_the_project_itself_print_it() {
        let debian = "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3";
        assert_eq!(major_of(debian), Some(1));
        let upstream = "containerd github.com/containerd/containerd/v2 v2.1.4 75cb2b7193e4";
        assert_eq!(major_of(upstream), Some(2));
        assert_eq!(major_of("containerd"), None);
    }
}
