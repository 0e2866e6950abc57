//! The hidden file that shows how much of a layer has been fetched and its last error:
//! `.soci-snapshotter/<layer digest>.json` in the root, found by lookup but not listed.

use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::Serialize;
use soci_fetch::LayerStatus;
use soci_fuse::Attr;
use soci_oci::Digest;

use crate::inode::{S_IFDIR, S_IFREG};
use crate::tree::{BLOCK, DirEntry};

/// The hidden directory in the root of each layer.
pub const STATE_DIRECTORY: &[u8] = b".soci-snapshotter";

/// The hidden directory and its file.
#[derive(Debug)]
pub(crate) struct StateFile {
    name: String,
    /// Inode numbers follow those of the tree.
    pub(crate) directory: u64,
    pub(crate) file: u64,
    /// The content whose length the last GETATTR returned. The next read returns these bytes, so that
    /// length and content match.
    shown: Mutex<Option<Vec<u8>>>,
}

/// A container reads this: why a fetch failed is only classified, since the details name hosts and
/// repeat what they say. Those are in the log.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Content {
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'static str>,
    digest: String,
    size: u64,
    fetched_size: u64,
    fetched_percent: f64,
}

impl StateFile {
    pub(crate) fn new(layer: &Digest, last_inode: u64) -> Self {
        Self {
            name: format!("{layer}.json"),
            directory: last_inode + 1,
            file: last_inode + 2,
            shown: Mutex::new(None),
        }
    }

    pub(crate) const fn has(&self, ino: u64) -> bool {
        ino == self.directory || ino == self.file
    }

    /// The inode that a name in the state directory stands for.
    pub(crate) fn lookup(&self, name: &[u8]) -> Option<u64> {
        match name {
            b"." => Some(self.directory),
            b".." => Some(soci_fuse::ROOT_ID),
            _ => (name == self.name.as_bytes()).then_some(self.file),
        }
    }

    /// The entries of the state directory from position `offset` on.
    pub(crate) fn readdir(&self, offset: u64) -> impl Iterator<Item = DirEntry<'_>> {
        let entries = [
            (b".".as_slice(), self.directory),
            (b"..".as_slice(), soci_fuse::ROOT_ID),
            (self.name.as_bytes(), self.file),
        ];
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let numbered = entries.into_iter().enumerate().skip(from);
        numbered.map(|(position, (name, ino))| DirEntry {
            name,
            ino,
            next: position as u64 + 1,
        })
    }

    /// Type bits of the mode.
    pub(crate) const fn kind(&self, ino: u64) -> u32 {
        if ino == self.file { S_IFREG } else { S_IFDIR }
    }

    /// Attributes of the directory or the file. The modification time is the current time, which makes
    /// the kernel drop its cached content.
    pub(crate) fn attr(&self, ino: u64, status: impl FnOnce() -> LayerStatus) -> Attr {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let (size, mode, nlink) = if ino == self.file {
            let content = content(&status());
            let size = content.len() as u64;
            *self.shown.lock() = Some(content);
            (size, S_IFREG | 0o400, 1)
        } else {
            (BLOCK, S_IFDIR | 0o500, 2)
        };
        Attr {
            ino,
            size,
            blocks: size.div_ceil(BLOCK) * (BLOCK / 512),
            mtime: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
            mtime_nanos: now.subsec_nanos(),
            mode,
            nlink,
            blksize: 4096,
            ..Attr::default()
        }
    }

    /// Part of the file's content.
    pub(crate) fn read(
        &self,
        offset: u64,
        size: u32,
        status: impl FnOnce() -> LayerStatus,
    ) -> Vec<u8> {
        let mut shown = self.shown.lock();
        let content = shown.get_or_insert_with(|| content(&status()));
        let start = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(content.len());
        let length = usize::try_from(size).unwrap_or(usize::MAX);
        let end = start.saturating_add(length).min(content.len());
        content.get(start..end).unwrap_or_default().to_vec()
    }
}

fn content(status: &LayerStatus) -> Vec<u8> {
    let fetched_percent = if status.size == 0 {
        100.0
    } else {
        percent(status.fetched_size, status.size)
    };
    let content = Content {
        error: status.error.as_ref().map(|failure| failure.class.code()),
        digest: status.digest.to_string(),
        size: status.size,
        fetched_size: status.fetched_size,
        fetched_percent,
    };
    serde_json::to_vec(&content).unwrap_or_default()
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a percentage needs no 64 bits of precision"
)]
fn percent(part: u64, whole: u64) -> f64 {
    part as f64 * 100.0 / whole as f64
}
