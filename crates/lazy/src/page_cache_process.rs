//! The process that reads files of lazy layers into the page cache ahead of containers.
//!
//! It is a reader like any other: it opens files through the mounts, and holds no descriptor of a
//! connection. The daemon cannot do this itself. A thread that waits for a page of its own mount
//! cannot be killed, so that a daemon killed at that moment would never end, and no other would
//! answer the request that it waits for. FUSE_NOTIFY_STORE has the same edge: it waits, unkillably,
//! for pages that a request in flight has locked, and keeps the connection open while it does.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read};
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::{Advice, OFlags, fadvise};
use serde::{Deserialize, Serialize};

/// Bytes that are requested at a time: no more than the kernel's readahead of a mount, because the
/// kernel ignores the rest.
const PIECE: u64 = 512 << 10;
/// Largest length of one order in bytes.
const MOST: u64 = 1 << 20;

/// An order: ranges of one file.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReadOrder {
    /// The path of the mount.
    pub(crate) mount: Vec<u8>,
    /// The path of the file below it.
    pub(crate) path: Vec<u8>,
    /// Ranges of the file, in bytes.
    pub(crate) ranges: Vec<Range<u64>>,
}

/// Carries out the orders of `input`, one a line, until it ends.
///
/// # Errors
/// `input` cannot be read, or is not what the daemon writes.
pub fn read_into_page_cache(input: impl Read) -> io::Result<()> {
    let mut input = BufReader::new(input);
    let mut line = Vec::new();
    loop {
        line.clear();
        let length = input.by_ref().take(MOST).read_until(b'\n', &mut line)?;
        if length == 0 {
            return Ok(());
        }
        let order: ReadOrder = serde_json::from_slice(&line)?;
        // A file that cannot be read is the container's to complain about.
        let _ = carry_out(&order);
    }
}

fn carry_out(order: &ReadOrder) -> io::Result<()> {
    let mount = Path::new(std::ffi::OsStr::from_bytes(&order.mount));
    let path = order.path.strip_prefix(b"/").unwrap_or(&order.path);
    // Not through symbolic links, which lead anywhere.
    let beneath = rustix::fs::ResolveFlags::BENEATH | rustix::fs::ResolveFlags::NO_SYMLINKS;
    let folder = File::options()
        .read(true)
        .custom_flags(i32::try_from(OFlags::DIRECTORY.bits()).unwrap_or_default())
        .open(mount)?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat2(&folder, path, flags, rustix::fs::Mode::empty(), beneath)?;
    drop(folder);
    let file = File::from(file);
    let kind = file.metadata()?.file_type();
    if !kind.is_file() || kind.is_fifo() {
        return Ok(());
    }
    let mut asked = None;
    for range in &order.ranges {
        let mut start = range.start;
        while start < range.end {
            let end = range.end.min(start.saturating_add(PIECE));
            fadvise(&file, start, NonZeroU64::new(end - start), Advice::WillNeed)?;
            // The next piece is on its way while this one is waited for: containers' requests do
            // not queue behind more than two.
            if let Some(before) = asked.replace(end - 1) {
                file.read_at(&mut [0], before)?;
            }
            start = end;
        }
    }
    if let Some(last) = asked {
        file.read_at(&mut [0], last)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_that_lead_elsewhere_are_not_carried_out() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("mount");
        std::fs::create_dir_all(folder.join("sub")).unwrap();
        let content = vec![1; 3 << 20];
        std::fs::write(folder.join("file"), &content).unwrap();
        std::fs::write(root.path().join("outside"), content).unwrap();
        for (target, link) in [("/etc", "link"), ("file", "inner")] {
            std::os::unix::fs::symlink(target, folder.join(link)).unwrap();
        }
        let order = |path: &str| ReadOrder {
            mount: folder.as_os_str().as_bytes().to_vec(),
            path: path.as_bytes().to_vec(),
            ranges: vec![0..1 << 20, 2 << 20..4 << 20],
        };
        for path in ["/file", "sub/../file"] {
            carry_out(&order(path)).unwrap();
        }
        let outside = root.path().join("outside").display().to_string();
        let absolute = format!("/{outside}");
        for path in [
            "link/passwd",
            "../outside",
            "sub/../../outside",
            &absolute,
            "/link",
            "/inner",
            "none",
        ] {
            assert!(carry_out(&order(path)).is_err(), "{path}");
        }
        let line = serde_json::to_string(&order("/file")).unwrap();
        read_into_page_cache(format!("{line}\n{line}\n").as_bytes()).unwrap();
        read_into_page_cache(&b"{}\n"[..]).unwrap_err();
    }

    /// Reading any of these fails.
    #[test]
    fn only_regular_files_are_read() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("sub")).unwrap();
        let pipe = (rustix::fs::FileType::Fifo, folder.path().join("pipe"));
        rustix::fs::mknodat(rustix::fs::CWD, pipe.1, pipe.0, 0o600.into(), 0).unwrap();
        let of = |mount: &Path, path: &str| ReadOrder {
            mount: mount.as_os_str().as_bytes().to_vec(),
            path: path.as_bytes().to_vec(),
            ranges: vec![0..1, 1..2],
        };
        for path in ["sub", "pipe"] {
            carry_out(&of(folder.path(), path)).unwrap();
        }
        // A device that each user may open.
        let device = Path::new("/dev/ptmx").canonicalize().unwrap();
        let name = device.file_name().and_then(|name| name.to_str()).unwrap();
        carry_out(&of(device.parent().unwrap(), name)).unwrap();
    }
}
