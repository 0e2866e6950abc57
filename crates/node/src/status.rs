//! Whether a node uses the snapshotter.

use crate::error::NodeError;
use crate::host::Host;
use crate::journal::Journal;
use crate::layout::{Layout, SERVICE};
use crate::service::Services;

/// What is installed on a node, and whether it works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Whether this program installed something.
    pub installed: bool,
    /// Whether CRI was handed back, while containers still use the snapshotter.
    pub handed_back: bool,
    /// Whether the daemon's unit is active.
    pub daemon: bool,
    /// Whether containerd's unit is active.
    pub containerd: bool,
    /// The snapshotter of CRI in containerd's configuration.
    pub snapshotter: Option<String>,
    /// Whether the running containerd knows the snapshotter.
    pub loaded: bool,
}

impl Status {
    /// Whether pods that start now use the snapshotter.
    #[must_use]
    pub fn works(&self) -> bool {
        self.daemon && self.loaded && self.snapshotter.as_deref() == Some("soci")
    }
}

/// Looks at a node, and changes nothing.
///
/// # Errors
/// The state of the installation or containerd's configuration cannot be read.
pub fn status(host: &dyn Host, layout: &Layout) -> Result<Status, NodeError> {
    let services = Services::new(host, layout);
    let journal = Journal::open(&layout.root)?;
    let release = services.release()?;
    let containerd = services.is_active(&layout.containerd_unit);
    Ok(Status {
        installed: journal.is_installed(),
        handed_back: journal.state.handed_back,
        daemon: services.is_active(SERVICE),
        containerd,
        snapshotter: services.selected(release)?,
        loaded: containerd && services.has_snapshotter(),
    })
}
