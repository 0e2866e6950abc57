//! The kernel's caches, which belong to all tests of a machine at the same time.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use rustix::fs::FlockOperation;

/// Drops the caches when it is written to (proc(5)); locked while a test does, or must not.
const DROP_CACHES: &str = "/proc/sys/vm/drop_caches";

/// Keeps tests from dropping the caches, those of other programs too, until it is dropped.
#[derive(Debug)]
pub struct CacheLock(File);

impl CacheLock {
    fn acquire(operation: FlockOperation) -> Result<Self> {
        let file = File::options().write(true).open(Path::new(DROP_CACHES));
        let file = file.context("open drop_caches")?;
        rustix::fs::flock(&file, operation).context("lock drop_caches")?;
        Ok(Self(file))
    }
}

impl Drop for CacheLock {
    fn drop(&mut self) {
        // A child that is being started has the file open, too.
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

/// Keeps tests from dropping the caches while a test looks at what is in them.
///
/// # Errors
/// Without root.
pub fn keep() -> Result<CacheLock> {
    CacheLock::acquire(FlockOperation::LockShared)
}

/// Drops names and attributes, and content that no process has open, so that the kernel requests
/// them again.
///
/// # Errors
/// Without root.
pub fn forget_unused() -> Result<()> {
    drop_caches(b"2")
}

/// Drops content alone. Clean pages only; nothing is lost.
///
/// # Errors
/// Without root.
pub fn forget_content() -> Result<()> {
    drop_caches(b"1")
}

/// Drops all content, too.
///
/// # Errors
/// Without root.
pub fn forget() -> Result<()> {
    drop_caches(b"3")
}

fn drop_caches(what: &[u8]) -> Result<()> {
    let alone = CacheLock::acquire(FlockOperation::LockExclusive)?;
    (&alone.0).write_all(what).context("drop caches")
}
