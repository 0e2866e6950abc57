//! The kernel's caches, which belong to all tests at the same time.

use parking_lot::{RwLock, RwLockReadGuard};

static CACHES: RwLock<()> = RwLock::new(());

/// Keeps other tests from dropping the caches while a test looks at what is in them.
pub(crate) fn keep() -> RwLockReadGuard<'static, ()> {
    CACHES.read()
}

/// Drops names and attributes, and content that no process has open, so that the kernel requests
/// them again.
pub(crate) fn forget_unused() {
    drop_caches("2");
}

/// Drops all content, too.
pub(crate) fn forget() {
    drop_caches("3");
}

fn drop_caches(what: &str) {
    let _alone = CACHES.write();
    std::fs::write("/proc/sys/vm/drop_caches", what).unwrap();
}
