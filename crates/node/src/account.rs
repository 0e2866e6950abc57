//! The daemon's access to the Kubernetes API, with the token of the installer's service account.
//!
//! The kubelet renews the token in the installer's pod; each run of the installer copies it to the node, from
//! where the daemon reads it again.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::error::NodeError;
use crate::payload;

/// Longest token or certificate that is read, in bytes.
const LONGEST: u64 = 1 << 20;

/// A service account as a pod has it: a folder with `token` and `ca.crt`, which stays open, because it belongs
/// to the pod's mount namespace.
#[derive(Debug)]
pub struct ServiceAccount {
    folder: File,
    path: PathBuf,
    server: String,
}

impl ServiceAccount {
    /// Opens the folder of a service account; `server` is the URL of the Kubernetes API.
    ///
    /// # Errors
    /// The folder cannot be opened.
    pub fn open(path: &Path, server: impl Into<String>) -> Result<Self, NodeError> {
        Ok(Self {
            folder: File::open(path).map_err(NodeError::file("open", path))?,
            path: path.to_owned(),
            server: server.into(),
        })
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, NodeError> {
        let failed = |error| NodeError::file("read", self.path.join(name))(error);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(self.folder.as_fd(), name, flags, Mode::empty());
        let file = File::from(file.map_err(|error| failed(error.into()))?);
        let mut bytes = Vec::new();
        file.take(LONGEST).read_to_end(&mut bytes).map_err(failed)?;
        Ok(bytes)
    }

    /// The files for a folder of the node: the kubeconfig, and the token and certificate that it names.
    pub(crate) fn files(&self, folder: &Path) -> Result<Vec<payload::File<'static>>, NodeError> {
        let (token, authority) = (folder.join("token"), folder.join("ca.crt"));
        let kubeconfig = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: node\n\
             clusters:\n- name: node\n  cluster:\n    server: {:?}\n    certificate-authority: {:?}\n\
             users:\n- name: node\n  user:\n    tokenFile: {:?}\n\
             contexts:\n- name: node\n  context:\n    cluster: node\n    user: node\n",
            self.server,
            authority.display().to_string(),
            token.display().to_string(),
        );
        let file = |path: PathBuf, bytes: Vec<u8>| payload::File {
            path,
            bytes: bytes.into(),
            mode: 0o600,
        };
        Ok(vec![
            file(token, self.read("token")?),
            file(authority, self.read("ca.crt")?),
            file(folder.join("kubeconfig"), kubeconfig.into_bytes()),
        ])
    }
}
