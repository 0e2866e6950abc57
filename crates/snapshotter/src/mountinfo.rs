//! What is mounted below a directory, from `/proc/self/mountinfo` (proc_pid_mountinfo(5)): the
//! one way to learn it without touching the mounts, which may be dead or our own.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The mount points of this mount namespace.
pub(crate) struct Mounts {
    mounts: Vec<Mount>,
}

struct Mount {
    point: PathBuf,
    /// The file system type, as in `fuse.rawBridge`.
    kind: Vec<u8>,
}

impl Mounts {
    pub(crate) fn read() -> io::Result<Self> {
        Ok(Self {
            mounts: parse(&fs::read("/proc/self/mountinfo")?),
        })
    }

    /// Whether something is mounted on `path` or below it. The path must be free of symbolic
    /// links.
    pub(crate) fn under(&self, path: &Path) -> bool {
        self.mounts
            .iter()
            .any(|mount| mount.point.starts_with(path))
    }

    /// The mount points of this type on or below `path`, those that were mounted last first.
    pub(crate) fn of_type<'a>(&'a self, kind: &'a str, path: &'a Path) -> Vec<&'a Path> {
        let wanted = self
            .mounts
            .iter()
            .filter(|mount| mount.kind == kind.as_bytes() && mount.point.starts_with(path));
        wanted.rev().map(|mount| mount.point.as_path()).collect()
    }
}

/// The fifth field of each line, and the first one after the separator `-`.
fn parse(mountinfo: &[u8]) -> Vec<Mount> {
    mountinfo
        .split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let mut fields = line.split(|byte| *byte == b' ');
            let point = fields.nth(4)?;
            let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
            Some(Mount {
                point: PathBuf::from(OsString::from_vec(unescape(point))),
                kind: kind.to_vec(),
            })
        })
        .collect()
}

/// The kernel writes space, tab, newline and backslash as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) => {
                bytes.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

/// Whether the text of a mount option can hold this path: overlayfs splits at commas and
/// colons, and the API carries UTF-8.
pub(crate) fn usable_in_options(path: &Path) -> bool {
    path.to_str()
        .is_some_and(|path| !path.contains([',', ':', '\\']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_mount_points_are_found() {
        let text =
            b"22 1 0:5 / /a\\040b\\134c rw shared:1 - tmpfs x rw\n23 1 0:6 / /d rw - ext4 y rw\n";
        let mounts = Mounts {
            mounts: parse(text),
        };
        assert_eq!(mounts.of_type("ext4", Path::new("/")), [Path::new("/d")]);
        assert!(mounts.of_type("ext4", Path::new("/a b\\c")).is_empty());
        assert!(mounts.under(Path::new("/a b\\c")));
        assert!(mounts.under(Path::new("/")));
        assert!(!mounts.under(Path::new("/dd")));
    }
}
