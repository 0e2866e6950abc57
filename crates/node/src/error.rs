//! What can go wrong on a node.

use std::io;
use std::path::PathBuf;

use soci_containerd::ContainerdError;
use thiserror::Error;

use crate::config::ConfigError;

/// A step that failed on a node.
#[derive(Debug, Error)]
pub enum NodeError {
    /// A file or folder of the node.
    #[error("cannot {action} {path}")]
    File {
        /// An infinitive.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A program of the node that cannot be run.
    #[error("cannot run {command}")]
    Run {
        /// The program with its arguments.
        command: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A program of the node that failed.
    #[error("cannot run {command}: {outcome}: {output}")]
    Failed {
        /// The program with its arguments.
        command: String,
        /// How it ended.
        outcome: String,
        /// The end of what it printed.
        output: String,
    },
    /// containerd's configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// containerd's API.
    #[error(transparent)]
    Containerd(#[from] ContainerdError),
    /// The state of the node does not allow the step.
    #[error("{0}")]
    Refused(String),
    /// The step failed, and what it had changed was restored.
    #[error("{restored}")]
    RolledBack {
        /// What was restored, or what of it could not be.
        restored: String,
        /// The failure.
        #[source]
        source: Box<NodeError>,
    },
}

impl NodeError {
    /// Returns a conversion of an I/O error of a file.
    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File {
            action,
            path,
            source,
        }
    }
}
