//! The device number of a mount, from /proc/self/mountinfo: asking the mount itself could wait for
//! ourselves.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The device (`major:minor`) of the topmost mount on exactly this path.
pub(crate) fn device_of(mountinfo: &[u8], mountpoint: &Path) -> Option<String> {
    let wanted = mountpoint.as_os_str().as_bytes();
    let line = mountinfo
        .rsplit(|&byte| byte == b'\n')
        .find(|line| field(line, 4).is_some_and(|path| unescape(path) == wanted))?;
    let device = std::str::from_utf8(field(line, 2)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    major.parse::<u32>().ok()?;
    minor.parse::<u32>().ok()?;
    Some(device.to_owned())
}

/// Where the mount of a line is.
pub(crate) fn mountpoint_of(line: &[u8]) -> Option<Vec<u8>> {
    field(line, 4).map(unescape)
}

/// The number of the FUSE connection behind a line; `None` if it is not a mount of ours.
pub(crate) fn connection_of(line: &[u8]) -> Option<u32> {
    let fields: Vec<_> = line.split(|&byte| byte == b' ').collect();
    // Optional fields end with a dash; type and source follow.
    let dash = fields.iter().skip(6).position(|field| *field == b"-")? + 6;
    let ours = fields.get(dash + 1..dash + 3)? == [&b"fuse.rawBridge"[..], b"soci"];
    let device = std::str::from_utf8(fields.get(2)?).ok()?;
    let (_, minor) = device.split_once(':')?;
    minor.parse().ok().filter(|_| ours)
}

fn field(line: &[u8], number: usize) -> Option<&[u8]> {
    line.split(|&byte| byte == b' ').nth(number)
}

/// Space, tab, newline and backslash stand there as a backslash and three octal digits.
fn unescape(path: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|_| byte == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(decoded) => {
                plain.push(decoded);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                plain.push(byte);
                rest = tail;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_mount_on_a_path_is_found() {
        let table = b"27 1 254:0 / / rw - ext4 /dev/vda rw\n\
            40 27 0:40 / /a\\040b ro - fuse.rawBridge soci ro\n\
            41 40 0:41 / /a\\040b ro - fuse.rawBridge soci ro\n";
        assert_eq!(device_of(table, Path::new("/a b")).as_deref(), Some("0:41"));
        assert_eq!(device_of(table, Path::new("/a")), None);
    }

    #[test]
    fn malformed_lines_are_passed_over() {
        assert_eq!(device_of(b"x\n\n1 2 oops / /a", Path::new("/a")), None);
        assert_eq!(unescape(b"\\04"), b"\\04");
        assert_eq!(unescape(b"\\134x"), b"\\x");
    }
}
