//! The mounts of this mount namespace, read from mountinfo (proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, unmount};

/// The mount points at and below `root`, in the order in which they were mounted.
///
/// # Errors
/// When mountinfo cannot be read.
pub fn mounts_below(root: &Path) -> io::Result<Vec<PathBuf>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    Ok(table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(unescape)
        .filter(|point| point.starts_with(root))
        .collect())
}

/// Unmounts everything at and below `root`, newest first, detaching what is busy.
///
/// # Errors
/// When mountinfo cannot be read, or mounts are still there after several attempts.
pub(crate) fn unmount_below(root: &Path) -> io::Result<()> {
    for _ in 0..5 {
        let points = mounts_below(root)?;
        if points.is_empty() {
            return Ok(());
        }
        for point in points.iter().rev() {
            // Already gone, or busy until what is mounted on it goes: the next round sees it.
            let _ = unmount(point.as_path(), UnmountFlags::DETACH);
        }
    }
    let left = mounts_below(root)?;
    if left.is_empty() {
        return Ok(());
    }
    Err(io::Error::other(format!("still mounted: {left:?}")))
}

/// Space, tab, newline and backslash stand as `\ooo`.
fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = (byte == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        if let Some(decoded) = octal {
            out.push(decoded);
            rest = tail.get(3..).unwrap_or_default();
        } else {
            out.push(byte);
            rest = tail;
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn escaped_mount_points_are_decoded() {
        assert_eq!(unescape(b"/a\\040b\\134c"), Path::new("/a b\\c"));
        assert_eq!(unescape(b"/plain\\9").as_os_str().as_bytes(), b"/plain\\9");
    }
}
