//! Steps at which a test can have the disk refuse.

use std::io;

/// Fails as a disk does if a test selected this step, or as a full one if it selected `STEP-full`.
pub(crate) fn fault(step: &str) -> io::Result<()> {
    if soci_faults::fails(step) {
        return Err(rustix::io::Errno::IO.into());
    }
    if cfg!(debug_assertions) && soci_faults::fails(&format!("{step}-full")) {
        return Err(rustix::io::Errno::NOSPC.into());
    }
    Ok(())
}
