//! Steps at which a test can have the disk refuse.

use std::io;

/// Fails as a disk does if a test selected this step.
pub(crate) fn fault(step: &str) -> io::Result<()> {
    match soci_faults::fails(step) {
        true => Err(rustix::io::Errno::IO.into()),
        false => Ok(()),
    }
}
