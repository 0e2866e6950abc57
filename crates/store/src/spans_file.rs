//! The file `spans` of a stored layer: which spans are durable, and their checksums.
//!
//! Version 1, all numbers little endian: a header of 512 bytes, a bitmap of one bit per span (bit
//! `i % 8` of byte `i / 8`) padded with zeros to a multiple of 4 bytes, then one crc32c (u32) per span, of its
//! uncompressed bytes. The header: magic `SOCISPAN`, version u32, span count u32, uncompressed size
//! u64, layer digest, zTOC digest (32 bytes each), crc32c u32 of all bytes before; zeros follow.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use crate::atomic_file::write_file;
use crate::disk_fault::fault;
use crate::{LayerKey, StoreError};

const MAGIC: &[u8; 8] = b"SOCISPAN";
const VERSION: u32 = 1;
const HEADER_LEN: usize = 512;
const SUM_AT: usize = 88;

/// What the file must be about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct About {
    pub(crate) key: LayerKey,
    pub(crate) span_count: u32,
    pub(crate) uncompressed_size: u64,
}

impl About {
    fn header(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_LEN);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&self.span_count.to_le_bytes());
        out.extend_from_slice(&self.uncompressed_size.to_le_bytes());
        out.extend_from_slice(self.key.layer.as_bytes());
        out.extend_from_slice(self.key.ztoc.as_bytes());
        debug_assert_eq!(out.len(), SUM_AT);
        out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
        out.resize(HEADER_LEN, 0);
        out
    }

    const fn bitmap_len(&self) -> usize {
        (self.span_count as usize).div_ceil(32) * 4
    }

    const fn file_len(&self) -> usize {
        HEADER_LEN + self.bitmap_len() + self.span_count as usize * 4
    }
}

/// The open file, with the bitmap as it is on disk.
#[derive(Debug)]
pub(crate) struct SpansFile {
    file: File,
    path: PathBuf,
    bitmap: Vec<u8>,
    about: About,
}

/// A span that is on record, and its checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) span: u32,
    pub(crate) sum: u32,
}

impl SpansFile {
    /// Opens the file. `None`: there is none, or it is damaged, or it is about something else.
    pub(crate) fn open(path: &Path, about: About) -> Result<Option<(Self, Vec<Kept>)>, StoreError> {
        let content = match std::fs::read(path) {
            Ok(content) => content,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io("read", path, error)),
        };
        if content.len() != about.file_len() || content.get(..HEADER_LEN) != Some(&about.header()) {
            tracing::warn!(
                path = %path.display(),
                "the record of stored spans is damaged or about another zTOC; the layer is fetched again"
            );
            return Ok(None);
        }
        let (bitmap, sums) = content
            .get(HEADER_LEN..)
            .unwrap_or_default()
            .split_at(about.bitmap_len());
        let kept = sums
            .chunks_exact(4)
            .zip(0..)
            .filter(|(_, span)| is_set(bitmap, *span))
            .map(|(sum, span)| Kept {
                span,
                sum: u32::from_le_bytes(sum.try_into().unwrap_or_default()),
            })
            .collect();
        let file = Self {
            file: open_file(path)?,
            path: path.to_path_buf(),
            bitmap: bitmap.to_vec(),
            about,
        };
        Ok(Some((file, kept)))
    }

    /// Creates a file without stored spans, replacing an existing one.
    pub(crate) fn create(path: &Path, about: About) -> Result<Self, StoreError> {
        let mut content = about.header();
        // Written out, so that a full disk shows now and not when a bit is set.
        content.resize(about.file_len(), 0);
        write_file(path, &content)?;
        Ok(Self {
            file: open_file(path)?,
            path: path.to_path_buf(),
            bitmap: vec![0; about.bitmap_len()],
            about,
        })
    }

    /// Makes it durable that these spans, whose data must be durable already, are stored.
    pub(crate) fn set(&mut self, spans: &[Kept]) -> Result<(), StoreError> {
        let sums_at = (HEADER_LEN + self.about.bitmap_len()) as u64;
        for kept in spans {
            self.write(&kept.sum.to_le_bytes(), sums_at + u64::from(kept.span) * 4)?;
        }
        self.update(spans.iter().map(|kept| kept.span), |byte, bit| byte | bit)
    }

    /// Makes it durable that these spans are missing.
    pub(crate) fn clear(&mut self, spans: &[u32]) -> Result<(), StoreError> {
        self.update(spans.iter().copied(), |byte, bit| byte & !bit)
    }

    fn update(
        &mut self,
        spans: impl Iterator<Item = u32>,
        change: impl Fn(u8, u8) -> u8,
    ) -> Result<(), StoreError> {
        let mut bitmap = self.bitmap.clone();
        for span in spans {
            if let Some(byte) = bitmap.get_mut(span as usize / 8) {
                *byte = change(*byte, 1 << (span % 8));
            }
        }
        self.write(&bitmap, HEADER_LEN as u64)?;
        fault("store-sync-record")
            .and_then(|()| self.file.sync_data())
            .map_err(|e| StoreError::io("sync", &self.path, e))?;
        self.bitmap = bitmap;
        Ok(())
    }

    fn write(&self, data: &[u8], at: u64) -> Result<(), StoreError> {
        fault("store-write-record")
            .and_then(|()| self.file.write_all_at(data, at))
            .map_err(|e| StoreError::io("write", &self.path, e))
    }
}

fn open_file(path: &Path) -> Result<File, StoreError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|e| StoreError::io("open", path, e))
}

fn is_set(bitmap: &[u8], span: u32) -> bool {
    bitmap
        .get(span as usize / 8)
        .is_some_and(|byte| byte & (1 << (span % 8)) != 0)
}

#[cfg(test)]
mod tests {
    use soci_oci::Digest;

    use super::*;

    fn about() -> About {
        About {
            key: LayerKey {
                layer: Digest::from_bytes([0x11; 32]),
                ztoc: Digest::from_bytes([0x22; 32]),
            },
            span_count: 33,
            uncompressed_size: 0x0102_0304_0506,
        }
    }

    const KEPT: [Kept; 2] = [
        Kept {
            span: 1,
            sum: 0xaabb_ccdd,
        },
        Kept {
            span: 32,
            sum: 0x0102_0304,
        },
    ];

    /// crc32c of the 88 bytes before, computed by another program.
    const HEADER_SUM: [u8; 4] = [83, 105, 228, 134];

    #[test]
    fn the_bytes_of_version_1_do_not_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spans");
        let mut file = SpansFile::create(&path, about()).unwrap();
        file.set(&KEPT).unwrap();
        let mut expected = b"SOCISPAN\x01\0\0\0\x21\0\0\0\x06\x05\x04\x03\x02\x01\0\0".to_vec();
        expected.extend_from_slice(&[0x11; 32]);
        expected.extend_from_slice(&[0x22; 32]);
        expected.extend_from_slice(&HEADER_SUM);
        expected.resize(512, 0);
        expected.extend_from_slice(&[2, 0, 0, 0, 1, 0, 0, 0]);
        expected.extend_from_slice(&[0; 4]);
        expected.extend_from_slice(&[0xdd, 0xcc, 0xbb, 0xaa]);
        expected.resize(512 + 8 + 32 * 4, 0);
        expected.extend_from_slice(&[4, 3, 2, 1]);
        assert_eq!(std::fs::read(&path).unwrap(), expected);

        let (mut file, kept) = SpansFile::open(&path, about()).unwrap().unwrap();
        assert_eq!(kept, KEPT);
        file.clear(&[1]).unwrap();
        let (_, kept) = SpansFile::open(&path, about()).unwrap().unwrap();
        assert_eq!(kept, KEPT[1..]);
    }

    #[test]
    fn any_damaged_header_and_any_other_length_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spans");
        drop(SpansFile::create(&path, about()).unwrap());
        let good = std::fs::read(&path).unwrap();
        for at in 0..HEADER_LEN {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, bad).unwrap();
            assert!(
                SpansFile::open(&path, about()).unwrap().is_none(),
                "byte {at}"
            );
        }
        for len in [0, 1, HEADER_LEN, good.len() - 1] {
            std::fs::write(&path, &good[..len]).unwrap();
            assert!(
                SpansFile::open(&path, about()).unwrap().is_none(),
                "length {len}"
            );
        }
        let key = LayerKey {
            ztoc: Digest::from_bytes([0x23; 32]),
            ..about().key
        };
        std::fs::write(&path, &good).unwrap();
        assert!(
            SpansFile::open(&path, About { key, ..about() })
                .unwrap()
                .is_none()
        );
    }
}
