//! A layer declared entry by entry, written as the tar that a builder would make of it.

use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, Result};
use tar::{EntryType, Header};

use super::content::Content;

/// 2024-01-01T00:00:00Z: the modification time of entries that name none.
const MTIME: u64 = 1_704_067_200;

#[derive(Debug, Clone)]
enum Kind {
    Directory,
    File(Content),
    Symlink(String),
    Hardlink(String),
    Fifo,
    Device {
        entry: EntryType,
        major: u32,
        minor: u32,
    },
    /// A ready-made tar stream's entries, without its end.
    Raw(Vec<u8>),
}

#[derive(Debug, Clone)]
struct Entry {
    path: String,
    kind: Kind,
    mode: u32,
    owner: (u64, u64),
    mtime: u64,
    records: Vec<(String, Vec<u8>)>,
}

/// A layer: its entries in the order of the tar.
///
/// [`Layer::mode`], [`Layer::owner`], [`Layer::mtime`], [`Layer::xattr`] and [`Layer::pax`] change
/// the entry that was added last.
#[derive(Debug, Clone, Default)]
pub struct Layer {
    entries: Vec<Entry>,
}

impl Layer {
    /// An empty layer.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn entry(mut self, path: &str, kind: Kind, mode: u32) -> Self {
        self.entries.push(Entry {
            path: path.to_owned(),
            kind,
            mode,
            owner: (0, 0),
            mtime: MTIME,
            records: Vec::new(),
        });
        self
    }

    /// A directory of mode 0755.
    #[must_use]
    pub fn dir(self, path: &str) -> Self {
        let path = if path.ends_with('/') {
            path.to_owned()
        } else {
            format!("{path}/")
        };
        self.entry(&path, Kind::Directory, 0o755)
    }

    /// A file of mode 0644.
    #[must_use]
    pub fn file(self, path: &str, content: Content) -> Self {
        self.entry(path, Kind::File(content), 0o644)
    }

    /// A file of mode 0644 with this text.
    #[must_use]
    pub fn text(self, path: &str, text: &str) -> Self {
        self.file(path, Content::Bytes(text.as_bytes().to_vec()))
    }

    /// A file of mode 0755 copied from this machine.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn program(self, path: &str, source: &Path) -> Result<Self> {
        let bytes = std::fs::read(source).with_context(|| format!("read {}", source.display()))?;
        Ok(self.file(path, Content::Bytes(bytes)).mode(0o755))
    }

    /// A symbolic link.
    #[must_use]
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(path, Kind::Symlink(target.to_owned()), 0o777)
    }

    /// A hard link to an earlier entry.
    #[must_use]
    pub fn hardlink(self, path: &str, target: &str) -> Self {
        self.entry(path, Kind::Hardlink(target.to_owned()), 0o644)
    }

    /// A named pipe of mode 0644.
    #[must_use]
    pub fn fifo(self, path: &str) -> Self {
        self.entry(path, Kind::Fifo, 0o644)
    }

    /// A character device of mode 0644.
    #[must_use]
    pub fn char_device(self, path: &str, major: u32, minor: u32) -> Self {
        self.entry(
            path,
            Kind::Device {
                entry: EntryType::Char,
                major,
                minor,
            },
            0o644,
        )
    }

    /// A block device of mode 0644.
    #[must_use]
    pub fn block_device(self, path: &str, major: u32, minor: u32) -> Self {
        self.entry(
            path,
            Kind::Device {
                entry: EntryType::Block,
                major,
                minor,
            },
            0o644,
        )
    }

    /// Deletes what lower layers have at this path (OCI image spec, whiteout files).
    #[must_use]
    pub fn whiteout(self, path: &str) -> Self {
        let (folder, name) = path
            .rsplit_once('/')
            .map_or((String::new(), path), |(folder, name)| {
                (format!("{folder}/"), name)
            });
        self.file(&format!("{folder}.wh.{name}"), Content::Bytes(Vec::new()))
    }

    /// Hides what lower layers have in this directory.
    #[must_use]
    pub fn opaque(self, directory: &str) -> Self {
        let path = format!("{}/.wh..wh..opq", directory.trim_end_matches('/'));
        self.file(&path, Content::Bytes(Vec::new()))
    }

    /// Whole tar entries, header and data in blocks of 512 bytes, as they are.
    #[must_use]
    pub fn raw(self, blocks: Vec<u8>) -> Self {
        self.entry("", Kind::Raw(blocks), 0)
    }

    /// Sets the mode, setuid, setgid and sticky bits included.
    #[must_use]
    pub fn mode(self, mode: u32) -> Self {
        self.last(|entry| entry.mode = mode)
    }

    /// Sets user and group.
    #[must_use]
    pub fn owner(self, user: u64, group: u64) -> Self {
        self.last(|entry| entry.owner = (user, group))
    }

    /// Sets the modification time in seconds since 1970.
    #[must_use]
    pub fn mtime(self, seconds: u64) -> Self {
        self.last(|entry| entry.mtime = seconds)
    }

    /// Adds an extended attribute.
    #[must_use]
    pub fn xattr(self, name: &str, value: &[u8]) -> Self {
        self.pax(&format!("SCHILY.xattr.{name}"), value)
    }

    /// Adds a PAX record.
    #[must_use]
    pub fn pax(self, key: &str, value: &[u8]) -> Self {
        self.last(|entry| entry.records.push((key.to_owned(), value.to_vec())))
    }

    fn last(mut self, change: impl FnOnce(&mut Entry)) -> Self {
        if let Some(entry) = self.entries.last_mut() {
            change(entry);
        }
        self
    }

    /// Writes the layer as a tar, its end included.
    ///
    /// # Errors
    /// When an entry does not fit into a tar, or `out` fails.
    pub fn write_tar(&self, out: &mut dyn Write) -> Result<()> {
        let mut builder = tar::Builder::new(out);
        for entry in &self.entries {
            if let Kind::Raw(blocks) = &entry.kind {
                builder.get_mut().write_all(blocks)?;
                continue;
            }
            entry
                .append(&mut builder)
                .with_context(|| format!("add {:?} to a layer", entry.path))?;
        }
        builder.finish()?;
        Ok(())
    }
}

impl Entry {
    fn append<W: Write>(&self, builder: &mut tar::Builder<W>) -> Result<()> {
        if !self.records.is_empty() {
            let records = self
                .records
                .iter()
                .map(|(key, value)| (key.as_str(), value.as_slice()));
            builder.append_pax_extensions(records)?;
        }
        let mut header = Header::new_gnu();
        header.set_mode(self.mode);
        header.set_uid(self.owner.0);
        header.set_gid(self.owner.1);
        header.set_mtime(self.mtime);
        header.set_size(0);
        let nothing: Box<dyn Read> = Box::new(std::io::empty());
        let (kind, data) = match &self.kind {
            Kind::Directory => (EntryType::Directory, nothing),
            Kind::File(content) => {
                header.set_size(content.len());
                (
                    EntryType::Regular,
                    Box::new(content.reader()) as Box<dyn Read>,
                )
            }
            Kind::Symlink(target) | Kind::Hardlink(target) => {
                let kind = match self.kind {
                    Kind::Symlink(_) => EntryType::Symlink,
                    _ => EntryType::Link,
                };
                header.set_entry_type(kind);
                builder.append_link(&mut header, &self.path, target)?;
                return Ok(());
            }
            Kind::Fifo => (EntryType::Fifo, nothing),
            Kind::Device {
                entry,
                major,
                minor,
            } => {
                header.set_device_major(*major)?;
                header.set_device_minor(*minor)?;
                (*entry, nothing)
            }
            Kind::Raw(_) => return Ok(()),
        };
        header.set_entry_type(kind);
        builder.append_data(&mut header, &self.path, data)?;
        Ok(())
    }
}
