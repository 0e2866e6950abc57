//! Turns a folder, or the upper directory of an overlay mount, into a layer.

use std::collections::BTreeMap;
use std::ffi::{CString, OsString};
use std::fs::{File, Metadata};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::io::Errno;
use tar::{EntryType, Header};

/// Larger extended attributes do not occur in what we pack.
const MAX_XATTR: usize = 64 * 1024;

/// Writes everything below `root` as a layer's tar, sorted by name, without the paths that
/// `excluded` names (relative; with everything below them).
///
/// Character devices 0/0 become whiteout files and opaque directories get their marker
/// (kernel: `Documentation/filesystems/overlayfs.rst`; OCI image spec, `layer.md`).
///
/// # Errors
/// When something cannot be read, or `out` fails.
pub fn write_tar(root: &Path, excluded: &[&str], out: &mut dyn Write) -> Result<()> {
    let mut walk = Walk {
        root,
        excluded,
        builder: tar::Builder::new(out),
        links: BTreeMap::new(),
    };
    walk.folder(Path::new(""))?;
    walk.builder.finish()?;
    Ok(())
}

struct Walk<'a> {
    root: &'a Path,
    excluded: &'a [&'a str],
    builder: tar::Builder<&'a mut dyn Write>,
    /// Where a file with several links came first: device and inode to path.
    links: BTreeMap<(u64, u64), PathBuf>,
}

impl Walk<'_> {
    fn folder(&mut self, folder: &Path) -> Result<()> {
        let full = self.root.join(folder);
        let mut names: Vec<OsString> = std::fs::read_dir(&full)
            .with_context(|| format!("list {}", full.display()))?
            .map(|entry| Ok(entry?.file_name()))
            .collect::<Result<_>>()?;
        names.sort();
        for name in names {
            let path = folder.join(name);
            if self
                .excluded
                .iter()
                .any(|excluded| path == Path::new(excluded))
            {
                continue;
            }
            self.entry(&path)
                .with_context(|| format!("pack {}", path.display()))?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path) -> Result<()> {
        let full = self.root.join(path);
        let meta = full.symlink_metadata()?;
        let kind = meta.file_type();
        if kind.is_char_device() && meta.rdev() == 0 {
            let mut name = OsString::from(".wh.");
            name.push(path.file_name().unwrap_or_default());
            return self.marker(&path.with_file_name(name));
        }
        if kind.is_socket() {
            return Ok(());
        }
        let attributes = attributes(&full, kind.is_symlink())?;
        let opaque = attributes
            .iter()
            .any(|(name, value)| name == "trusted.overlay.opaque" && value == b"y");
        let kept = attributes
            .iter()
            .filter(|(name, _)| !name.starts_with("trusted."));
        let records: Vec<_> = kept
            .map(|(name, value)| (format!("SCHILY.xattr.{name}"), value.as_slice()))
            .collect();
        if !records.is_empty() {
            self.builder.append_pax_extensions(
                records.iter().map(|(name, value)| (name.as_str(), *value)),
            )?;
        }
        let mut header = header_of(&meta);
        if meta.nlink() > 1 && !kind.is_dir() {
            if let Some(first) = self.links.get(&(meta.dev(), meta.ino())) {
                header.set_entry_type(EntryType::Link);
                self.builder.append_link(&mut header, path, first)?;
                return Ok(());
            }
            self.links.insert((meta.dev(), meta.ino()), path.to_owned());
        }
        if kind.is_dir() {
            header.set_entry_type(EntryType::Directory);
            self.builder
                .append_data(&mut header, path, std::io::empty())?;
            if opaque {
                self.marker(&path.join(".wh..wh..opq"))?;
            }
            return self.folder(path);
        }
        if kind.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            self.builder
                .append_link(&mut header, path, std::fs::read_link(&full)?)?;
        } else if kind.is_file() {
            header.set_entry_type(EntryType::Regular);
            header.set_size(meta.len());
            self.builder
                .append_data(&mut header, path, File::open(&full)?)?;
        } else {
            header.set_entry_type(match () {
                () if kind.is_fifo() => EntryType::Fifo,
                () if kind.is_block_device() => EntryType::Block,
                () => EntryType::Char,
            });
            header.set_device_major(rustix::fs::major(meta.rdev()))?;
            header.set_device_minor(rustix::fs::minor(meta.rdev()))?;
            self.builder
                .append_data(&mut header, path, std::io::empty())?;
        }
        Ok(())
    }

    fn marker(&mut self, path: &Path) -> Result<()> {
        let mut header = Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(0);
        header.set_entry_type(EntryType::Regular);
        self.builder
            .append_data(&mut header, path, std::io::empty())?;
        Ok(())
    }
}

fn header_of(meta: &Metadata) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(meta.mode() & 0o7777);
    header.set_uid(u64::from(meta.uid()));
    header.set_gid(u64::from(meta.gid()));
    header.set_mtime(u64::try_from(meta.mtime()).unwrap_or(0));
    header.set_size(0);
    header
}

/// The extended attributes of a file, sorted by name. Symbolic links have none that unpacking keeps.
fn attributes(path: &Path, symlink: bool) -> Result<Vec<(String, Vec<u8>)>> {
    if symlink {
        return Ok(Vec::new());
    }
    let mut names = vec![0_u8; MAX_XATTR];
    let length = match rustix::fs::llistxattr(path, names.as_mut_slice()) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => return Ok(Vec::new()),
        Err(error) => return Err(error).context("list extended attributes"),
    };
    let mut found = Vec::new();
    for name in names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        let mut value = vec![0_u8; MAX_XATTR];
        let c_name = CString::new(name)?;
        let length = rustix::fs::lgetxattr(path, c_name.as_c_str(), value.as_mut_slice())
            .with_context(|| format!("read {}", std::ffi::OsStr::from_bytes(name).display()))?;
        value.truncate(length);
        found.push((String::from_utf8_lossy(name).into_owned(), value));
    }
    found.sort();
    Ok(found)
}
