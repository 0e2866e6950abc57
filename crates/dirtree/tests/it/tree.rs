//! Trees that tests make.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW);

/// Depth of folders that no recursion survives, and no path reaches.
pub(crate) const DEEP: usize = 100_000;

/// A folder in memory: making and removing as many folders on a disk takes minutes.
pub(crate) fn in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

/// Makes `levels` folders, each in the one before and each with a file, and returns the deepest.
pub(crate) fn nest(top: &Path, levels: usize) -> OwnedFd {
    let mut at = openat(CWD, top, DIRECTORY, Mode::empty()).unwrap();
    for level in 0..levels {
        mkdirat(&at, "d", Mode::RWXU).unwrap();
        if level % 1000 == 0 {
            file(at.as_fd(), "f", 0);
        }
        at = openat(&at, "d", DIRECTORY, Mode::empty()).unwrap();
    }
    at
}

/// Makes a file of so many bytes.
pub(crate) fn file(at: impl AsFd, name: &str, length: usize) {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    let file = openat(at, name, flags, Mode::RUSR | Mode::WUSR).unwrap();
    std::io::Write::write_all(&mut File::from(file), &vec![7; length]).unwrap();
}

/// Runs `work` on a thread with a small stack.
pub(crate) fn confined<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::Builder::new().stack_size(256 << 10);
    thread.spawn(work).unwrap().join().unwrap()
}
