//! What is installed: programs, units, configuration.

use std::path::Path;

use crate::account::ServiceAccount;
use crate::error::NodeError;
use crate::layout::{Layout, PROGRAMS, SERVICE, SOCKET};

/// The units of this version, as `make install` has them.
const UNITS: [(&str, &str); 2] = [
    (
        SERVICE,
        include_str!("../../../systemd/soci-snapshotter.service"),
    ),
    (
        SOCKET,
        include_str!("../../../systemd/soci-snapshotter.socket"),
    ),
];
/// Where the units expect the programs.
const UNITS_EXPECT: &str = "/usr/local/bin/";

/// What is installed, read into memory: the folder that it comes from may be another container's.
#[derive(Debug)]
pub struct Payload {
    /// Names and contents of the programs.
    programs: Vec<(&'static str, Vec<u8>)>,
    /// The daemon's configuration, if it is to be replaced.
    config: Option<Vec<u8>>,
    /// The account whose token the daemon is to use.
    account: Option<ServiceAccount>,
}

impl Payload {
    /// Reads the programs in a folder, and the daemon's configuration if it is given.
    ///
    /// # Errors
    /// One of them is missing or unreadable.
    pub fn read(programs: &Path, config: Option<&Path>) -> Result<Self, NodeError> {
        let read = |path: &Path| std::fs::read(path).map_err(NodeError::file("read", path));
        Ok(Self {
            programs: PROGRAMS
                .into_iter()
                .map(|name| Ok((name, read(&programs.join(name))?)))
                .collect::<Result<_, NodeError>>()?,
            config: config.map(read).transpose()?,
            account: None,
        })
    }

    /// Adds the account whose token the daemon is to use, in a `kubeconfig` beside its configuration.
    #[must_use]
    pub fn with_account(self, account: Option<ServiceAccount>) -> Self {
        Self { account, ..self }
    }

    /// Paths, contents and modes of the programs.
    pub(crate) fn programs(&self, layout: &Layout) -> impl Iterator<Item = File<'_>> {
        let folder = layout.programs.clone();
        self.programs.iter().map(move |(name, bytes)| File {
            path: folder.join(name),
            bytes: bytes.as_slice().into(),
            mode: 0o755,
        })
    }

    /// Paths, contents and modes of the units.
    pub(crate) fn units(&self, layout: &Layout) -> impl Iterator<Item = File<'static>> {
        let programs = format!("{}/", layout.programs.display());
        let folder = layout.units.clone();
        UNITS.into_iter().map(move |(name, text)| File {
            path: folder.join(name),
            bytes: text.replace(UNITS_EXPECT, &programs).into_bytes().into(),
            mode: 0o644,
        })
    }

    /// The files of the daemon's access to Kubernetes. A new token needs no new daemon.
    pub(crate) fn account(&self, layout: &Layout) -> Result<Vec<File<'static>>, NodeError> {
        let folder = layout.daemon_config.parent().unwrap_or(Path::new("/"));
        match &self.account {
            Some(account) => account.files(folder),
            None => Ok(Vec::new()),
        }
    }

    /// The daemon's configuration, if it is to be replaced.
    pub(crate) fn config(&self, layout: &Layout) -> Option<File<'_>> {
        self.config.as_ref().map(|bytes| File {
            path: layout.daemon_config.clone(),
            bytes: bytes.as_slice().into(),
            mode: 0o600,
        })
    }
}

/// A file to install.
#[derive(Debug)]
pub(crate) struct File<'a> {
    /// Path on the node.
    pub path: std::path::PathBuf,
    /// Content.
    pub bytes: std::borrow::Cow<'a, [u8]>,
    /// Permissions.
    pub mode: u32,
}
