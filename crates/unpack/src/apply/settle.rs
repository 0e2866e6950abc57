//! Directories that have no entry of their own in a layer. They look as in the layers below, which may
//! be complete only after this one.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::Path;

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

    /// Gives them the attributes that they have in the layers below, nearest first, in the unpacked
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
        for (inode, path) in &self.0 {
            let below = attributes_below(lower, path).map_err(failed(path, "look below it"))?;
            let (Some(below), Some(found)) = (below, walker.find(path, path)?) else {
                continue;
            };
            if found.inode == *inode {
                copy_attributes(found.fd.as_fd(), &below)
                    .map_err(failed(path, "set its attributes"))?;
            }
        }
        Ok(())
    }
}
