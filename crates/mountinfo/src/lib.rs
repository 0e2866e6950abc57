//! Reader of the mounts of this mount namespace, from `/proc/self/mountinfo` (proc_pid_mountinfo(5)). No
//! mount is accessed: it may be dead, or served by this process.

#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::ops::Bound;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

/// The path of the table.
pub const PATH: &str = "/proc/self/mountinfo";

/// The table at one moment. Lines are parsed on demand.
#[derive(Debug, Clone)]
pub struct Table(Vec<u8>);

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount<'a> {
    /// The device of its file system.
    pub device: Device,
    /// Its mount point.
    pub point: Cow<'a, Path>,
    /// The type of its file system, as in `fuse.rawBridge`.
    pub kind: Cow<'a, OsStr>,
    /// The source: a device, or the name that was given.
    pub source: Cow<'a, OsStr>,
}

/// A device number, displayed as `major:minor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// The major number; 0 for file systems without a device.
    pub major: u32,
    /// The minor number.
    pub minor: u32,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl Table {
    /// Reads the table of this process.
    ///
    /// # Errors
    /// If [`PATH`] cannot be read.
    pub fn read() -> io::Result<Self> {
        std::fs::read(PATH).map(Self)
    }

    /// The mounts in the order of the table: a mount on another mount comes after it. Malformed lines are
    /// skipped.
    pub fn mounts(&self) -> impl DoubleEndedIterator<Item = Mount<'_>> {
        let lines = self.0.split(|&byte| byte == b'\n');
        lines.filter_map(Mount::parse)
    }

    /// Returns the topmost mount on exactly this path.
    #[must_use]
    pub fn at(&self, path: &Path) -> Option<Mount<'_>> {
        self.mounts().rfind(|mount| mount.point == path)
    }

    /// Returns the mounts on this path, which must not contain symbolic links, and below it.
    pub fn under<'a>(&'a self, path: &'a Path) -> impl DoubleEndedIterator<Item = Mount<'a>> {
        let under = move |mount: &Mount<'_>| mount.point.starts_with(path);
        self.mounts().filter(under)
    }

    /// Returns the mount points, sorted for lookups of many paths.
    #[must_use]
    pub fn points(&self) -> Points<'_> {
        Points(self.mounts().map(|mount| mount.point).collect())
    }
}

/// The mount points of a [`Table`].
#[derive(Debug, Clone)]
pub struct Points<'a>(BTreeSet<Cow<'a, Path>>);

impl Points<'_> {
    /// Whether something is mounted on `path`, which must not contain symbolic links, or below it.
    #[must_use]
    pub fn any_under(&self, path: &Path) -> bool {
        // Paths are ordered by their components: those below a folder follow it.
        let range = (Bound::Included(path), Bound::Unbounded);
        let next = self.0.range::<Path, _>(range).next();
        next.is_some_and(|point| point.starts_with(path))
    }
}

impl From<Vec<u8>> for Table {
    /// Wraps the bytes of a `mountinfo` file.
    fn from(text: Vec<u8>) -> Self {
        Self(text)
    }
}

impl<'a> Mount<'a> {
    /// Whether the mount has this type and source.
    #[must_use]
    pub fn is(&self, kind: &str, source: &str) -> bool {
        self.kind == OsStr::new(kind) && self.source == OsStr::new(source)
    }

    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.split(|&byte| byte == b' ');
        let device = std::str::from_utf8(fields.nth(2)?).ok()?;
        let (major, minor) = device.split_once(':')?;
        let point = fields.nth(1)?;
        // The options of the mount; optional fields, which end with a dash.
        let mut fields = fields.skip(1).skip_while(|field| *field != b"-").skip(1);
        Some(Self {
            device: Device {
                major: major.parse().ok()?,
                minor: minor.parse().ok()?,
            },
            point: match unescape(point) {
                Cow::Borrowed(point) => Cow::Borrowed(Path::new(point)),
                Cow::Owned(point) => Cow::Owned(PathBuf::from(point)),
            },
            kind: unescape(fields.next()?),
            source: unescape(fields.next()?),
        })
    }
}

/// The kernel writes space, tab, newline, backslash and `#` as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Cow<'_, OsStr> {
    if !field.contains(&b'\\') {
        return Cow::Borrowed(OsStr::from_bytes(field));
    }
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let (byte, tail) = escaped(rest).unwrap_or((first, tail));
        plain.push(byte);
        rest = tail;
    }
    Cow::Owned(OsString::from_vec(plain))
}

/// Decodes an escape at the start; returns its byte and the rest.
fn escaped(field: &[u8]) -> Option<(u8, &[u8])> {
    let (digits, tail) = field.strip_prefix(b"\\")?.split_first_chunk::<3>()?;
    let value = digits.iter().try_fold(0_u32, |value, digit| {
        Some(value * 8 + char::from(*digit).to_digit(8)?)
    })?;
    Some((u8::try_from(value).ok()?, tail))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TABLE: &str = "27 1 254:0 / / rw - ext4 /dev/vda rw\n\
        40 27 0:40 / /r/a\\040b ro shared:3 master:1 - fuse.rawBridge soci ro\n\
        41 40 0:41 / /r/a\\040b ro - fuse.rawBridge soci\\134x ro\n\
        42 27 0:42 / /rest rw - tmpfs - rw\n";

    fn table(text: &str) -> Table {
        Table::from(text.as_bytes().to_vec())
    }

    #[test]
    fn every_field_is_found_whatever_optional_ones_there_are() {
        let table = table(TABLE);
        let mounts: Vec<_> = table
            .mounts()
            .map(|mount| {
                let kind = mount.kind.to_str().unwrap().to_owned();
                let source = mount.source.to_str().unwrap().to_owned();
                (mount.device.to_string(), mount.point, kind, source)
            })
            .collect();
        let expected = [
            ("254:0", "/", "ext4", "/dev/vda"),
            ("0:40", "/r/a b", "fuse.rawBridge", "soci"),
            ("0:41", "/r/a b", "fuse.rawBridge", "soci\\x"),
            ("0:42", "/rest", "tmpfs", "-"),
        ];
        let expected = expected.map(|(device, point, kind, source)| {
            let point = Cow::Borrowed(Path::new(point));
            (device.to_owned(), point, kind.to_owned(), source.to_owned())
        });
        assert_eq!(mounts, expected);
    }

    #[test]
    fn the_topmost_mount_on_a_path_is_found_and_all_below_a_folder() {
        let table = table(TABLE);
        let at = |path| table.at(Path::new(path)).map(|mount| mount.device.minor);
        assert_eq!((at("/r/a b"), at("/r"), at("/r/a")), (Some(41), None, None));
        let under = |path| table.under(Path::new(path)).count();
        assert_eq!((under("/r"), under("/r/a b"), under("/")), (2, 2, 4));
        assert!(table.at(Path::new("/rest")).unwrap().is("tmpfs", "-"));
        let points = table.points();
        let any = ["/", "/r", "/r/a b", "/rest"].map(|path| points.any_under(Path::new(path)));
        assert_eq!(any, [true; 4]);
        let none = ["/r/a", "/re", "/r/a b/c", "/z"].map(|path| points.any_under(Path::new(path)));
        assert_eq!(none, [false; 4]);
    }

    #[test]
    fn lines_that_are_not_understood_are_passed_over() {
        let table = table("x\n\n1 2 0:y / /a rw - t s rw\n1 2 0:3 / /a rw\n1 2 0:3 / /a rw - t\n");
        assert_eq!(table.mounts().count(), 0);
        for plain in ["\\04", "\\089", "\\777", "a\\"] {
            assert_eq!(unescape(plain.as_bytes()), OsStr::new(plain));
        }
    }

    #[test]
    fn the_root_of_this_process_is_there() {
        assert!(Table::read().unwrap().at(Path::new("/")).is_some());
    }

    proptest! {
        /// As the kernel's mangle() does it.
        #[test]
        fn any_path_is_read_as_it_is(name in "[^\0]{0,20}", raw in proptest::collection::vec(1_u8.., 0..20)) {
            for bytes in [name.as_bytes(), &raw] {
                let mut line = b"1 2 0:3 / ".to_vec();
                for &byte in bytes {
                    match byte {
                        b' ' | b'\t' | b'\n' | b'\\' | b'#' => {
                            line.extend(format!("\\{byte:03o}").into_bytes());
                        }
                        _ => line.push(byte),
                    }
                }
                line.extend(b" rw - t s rw");
                let table = Table::from(line);
                let points: Vec<_> = table.mounts().map(|mount| mount.point).collect();
                prop_assert_eq!(points, [Path::new(OsStr::from_bytes(bytes))]);
            }
        }

        #[test]
        fn no_bytes_make_it_panic(text: Vec<u8>, bytes in "[0-9:/ \\\\a\n-]{0,200}") {
            let count = Table::from(text).mounts().count() + table(&bytes).mounts().count();
            prop_assert!(count <= 200);
        }
    }
}
