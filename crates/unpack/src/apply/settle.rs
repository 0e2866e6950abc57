//! Directories that have no entry of their own in a layer. They look as in the layers below, which may
//! be complete only after this one.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{Gid, Mode, fchown};
use soci_meter::{Limits, Meter};

use super::metadata::copy_attributes;
use super::walk::Walker;
use crate::ApplyError;
use crate::error::failed;
use soci_layer::{LowerLayer, attributes_below};

/// Directories of an unpacked layer that have no entry of their own, and look as if there were no layer
/// below.
#[derive(Debug, Default)]
pub struct ImpliedDirectories(pub(super) BTreeMap<u64, Vec<u8>>);

impl ImpliedDirectories {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sets the attributes of implied directories to those of the layers below, nearest first, in the unpacked
    /// layer `directory`.
    ///
    /// # Errors
    /// A layer cannot be read, or the attributes cannot be set.
    pub fn settle(
        &self,
        directory: &Path,
        lower: &[Box<dyn LowerLayer>],
    ) -> Result<(), ApplyError> {
        if self.is_empty() || lower.is_empty() {
            return Ok(());
        }
        let meter = Meter::new("settling implied directories", Limits::NONE);
        let mut walker = Walker::open(directory, &[], meter)?;
        // Parents first: they decide about the group of what they contain.
        let mut paths: Vec<(&Vec<u8>, u64)> =
            self.0.iter().map(|(inode, path)| (path, *inode)).collect();
        paths.sort_unstable();
        for (path, inode) in paths {
            let below = attributes_below(lower, path).map_err(failed(path, "look below it"))?;
            let Some(found) = walker
                .find(path, path)?
                .filter(|found| found.inode == inode)
            else {
                continue;
            };
            match below {
                Some(below) => copy_attributes(found.fd.as_fd(), &below)
                    .map_err(failed(path, "set its attributes"))?,
                None => {
                    let slash = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                    let above = path.get(..slash).unwrap_or_default();
                    if let Some(above) = walker.find(above, path)? {
                        inherit_group(above.fd.as_fd(), found.fd.as_fd())
                            .map_err(failed(path, "set its group"))?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Sets the group of a directory to the one that it would have, had it been made after its parent got its
/// attributes: that of a parent with the setgid bit.
fn inherit_group(above: BorrowedFd<'_>, directory: BorrowedFd<'_>) -> io::Result<()> {
    let above = rustix::fs::fstat(above)?;
    if !Mode::from_raw_mode(above.st_mode).contains(Mode::SGID) {
        return Ok(());
    }
    Ok(fchown(directory, None, Some(Gid::from_raw(above.st_gid)))?)
}
