//! Full verification of a layer: its uncompressed stream against the zTOC's table of contents, entry
//! by entry, and against the layer's diff ID.

use std::io::Read;

use soci_oci::Hasher;

use crate::entry::Entry;
use crate::tar_scan::TarScanner;
use crate::{BuildError, FileMetadata, LayerIndex};

/// Bytes of the stream that are read at a time.
const STEP: usize = 256 << 10;
/// Longest part of a name or value that an error shows, in bytes.
const SHOWN: usize = 200;

/// Why a layer is not what its zTOC and diff ID say.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The stream cannot be read. Says nothing about the layer.
    #[error("cannot read the layer's uncompressed stream: {0}")]
    Read(#[source] std::io::Error),
    /// The stream is not a tar that a zTOC can describe.
    #[error("the layer's stream is not the tar that its zTOC describes: {0}")]
    Tar(#[source] BuildError),
    /// An entry of the zTOC differs from the tar.
    #[error(
        "the zTOC is forged: the {field} of its entry {number}, {name:?}, is {claimed}, \
         and {actual} in the layer"
    )]
    Entry {
        /// Position of the entry in the tar, from 0.
        number: u64,
        /// Its name in the tar, lossily.
        name: String,
        /// The field that differs.
        field: &'static str,
        /// What the zTOC says.
        claimed: String,
        /// What the tar says.
        actual: String,
    },
    /// The zTOC lists more or fewer entries than the tar has.
    #[error("the zTOC is forged: it lists {claimed} entries, and the layer has {actual}")]
    Count {
        /// Entries of the zTOC.
        claimed: u64,
        /// Entries of the tar, as far as it was read.
        actual: u64,
    },
    /// The tar ends elsewhere.
    #[error("the zTOC is forged: it says that the tar has {claimed} bytes, and it has {actual}")]
    TarSize {
        /// What the zTOC says.
        claimed: u64,
        /// Where the tar ends.
        actual: u64,
    },
}

impl VerifyError {
    /// Whether the layer is known to differ, so that another attempt ends alike.
    #[must_use]
    pub const fn is_verdict(&self) -> bool {
        !matches!(self, Self::Read(_))
    }
}

/// Verifies that the tar in `stream` has exactly the zTOC's entries, in order, with all their fields,
/// and returns the hasher of the bytes that were read.
///
/// `stream` may end with the tar. The diff ID covers what follows the tar's end as well, which the
/// layer store does not keep: it is added to the hasher, see
/// [`SpanTable::behind_the_tar`](crate::SpanTable::behind_the_tar). Fields without any effect are not
/// compared: the size of an entry that is not a regular file, and how a time is written. Memory is
/// bounded; the work is one pass over the stream.
///
/// # Errors
/// The layer is another one, or the stream cannot be read.
pub fn verify_entries(mut stream: impl Read, index: &LayerIndex) -> Result<Hasher, VerifyError> {
    let mut comparison = Comparison {
        claimed: index.entries(),
        listed: index.len(),
        seen: 0,
    };
    let (mut scanner, mut hasher) = (TarScanner::new(), Hasher::new());
    let mut buffer = vec![0; STEP];
    loop {
        let read = match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(VerifyError::Read(error)),
        };
        let mut data = buffer.get(..read).unwrap_or_default();
        hasher.update(data);
        while !data.is_empty() {
            let (used, _) = scanner.take(data).map_err(VerifyError::Tar)?;
            if let Some(actual) = scanner.take_entry() {
                comparison.next(&actual.as_entry())?;
            }
            data = data.get(used..).unwrap_or_default();
        }
    }
    let (_, tar_size) = scanner.finish().map_err(VerifyError::Tar)?;
    comparison.finish()?;
    let claimed = index.spans.uncompressed_size();
    if claimed != tar_size {
        return Err(VerifyError::TarSize {
            claimed,
            actual: tar_size,
        });
    }
    Ok(hasher)
}

/// The entries of a zTOC beside those of a tar.
struct Comparison<C> {
    claimed: C,
    listed: u64,
    seen: u64,
}

impl<'a, C: Iterator<Item = Entry<'a>>> Comparison<C> {
    fn next(&mut self, actual: &Entry<'_>) -> Result<(), VerifyError> {
        let number = self.seen;
        self.seen += 1;
        let Some(claimed) = self.claimed.next() else {
            return Err(self.count());
        };
        match difference(&claimed, actual) {
            None => Ok(()),
            Some(Difference {
                field,
                claimed,
                actual: found,
            }) => Err(VerifyError::Entry {
                number,
                name: shown(actual.name),
                field,
                claimed,
                actual: found,
            }),
        }
    }

    const fn count(&self) -> VerifyError {
        VerifyError::Count {
            claimed: self.listed,
            actual: self.seen,
        }
    }

    fn finish(mut self) -> Result<(), VerifyError> {
        match self.claimed.next() {
            None => Ok(()),
            Some(_) => Err(self.count()),
        }
    }
}

/// A field in which an entry of a zTOC differs from the tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) field: &'static str,
    pub(crate) claimed: String,
    pub(crate) actual: String,
}

/// The first field in which two entries differ.
pub(crate) fn difference(claimed: &Entry<'_>, actual: &Entry<'_>) -> Option<Difference> {
    let bytes = |field, claimed: &[u8], actual: &[u8]| {
        (claimed != actual).then(|| Difference {
            field,
            claimed: format!("{:?}", shown(claimed)),
            actual: format!("{:?}", shown(actual)),
        })
    };
    let number = |field, claimed: i128, actual: i128| {
        (claimed != actual).then(|| Difference {
            field,
            claimed: claimed.to_string(),
            actual: actual.to_string(),
        })
    };
    let mode = || {
        (claimed.mode != actual.mode).then(|| Difference {
            field: "mode",
            claimed: format!("{:#o}", claimed.mode),
            actual: format!("{:#o}", actual.mode),
        })
    };
    let kind = (claimed.file_type.as_str(), actual.file_type.as_str());
    bytes("name", claimed.name, actual.name)
        .or_else(|| bytes("type", kind.0.as_bytes(), kind.1.as_bytes()))
        .or_else(|| {
            let places = (claimed.uncompressed_offset, actual.uncompressed_offset);
            number("offset", places.0.into(), places.1.into())
        })
        .or_else(|| {
            let (claimed, actual) = (claimed.content_len(), actual.content_len());
            number("size", claimed.into(), actual.into())
        })
        .or_else(|| bytes("link name", claimed.linkname, actual.linkname))
        .or_else(mode)
        .or_else(|| number("uid", claimed.uid.into(), actual.uid.into()))
        .or_else(|| number("gid", claimed.gid.into(), actual.gid.into()))
        .or_else(|| bytes("user name", claimed.uname, actual.uname))
        .or_else(|| bytes("group name", claimed.gname, actual.gname))
        .or_else(|| {
            let same = match (claimed.mtime(), actual.mtime()) {
                // Go writes the time zone of the machine that built the zTOC.
                (Some(claimed), Some(actual)) => claimed == actual,
                (None, None) => true,
                _ => false,
            };
            let (claimed, actual) = (claimed.mod_time.as_bytes(), actual.mod_time.as_bytes());
            (!same).then(|| bytes("time", claimed, actual)).flatten()
        })
        .or_else(|| {
            number(
                "device major",
                claimed.devmajor.into(),
                actual.devmajor.into(),
            )
        })
        .or_else(|| {
            number(
                "device minor",
                claimed.devminor.into(),
                actual.devminor.into(),
            )
        })
        .or_else(|| records(claimed, actual))
}

/// Compares the PAX records, which both sides have sorted by key.
fn records(claimed: &Entry<'_>, actual: &Entry<'_>) -> Option<Difference> {
    let (claimed, actual) = (claimed.sorted_records(), actual.sorted_records());
    if claimed == actual {
        return None;
    }
    let one = claimed.iter().zip(&actual).find(|(a, b)| a != b);
    let text = |record: Option<&(&[u8], &[u8])>| {
        record.map_or_else(
            || "no more record".to_owned(),
            |(key, value)| format!("{:?}", shown(&[key, &b"="[..], value].concat())),
        )
    };
    let common = claimed.len().min(actual.len());
    let (claimed, actual) = match one {
        Some((claimed, actual)) => (Some(claimed), Some(actual)),
        None => (claimed.get(common), actual.get(common)),
    };
    Some(Difference {
        field: "PAX records",
        claimed: text(claimed),
        actual: text(actual),
    })
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.get(..SHOWN).unwrap_or(bytes)).into_owned()
}

/// The entry that a tar header describes. `bytes` are the header block and what belongs to it before
/// it: PAX records and long names, without what they leave open; they end where the content starts.
///
/// # Errors
/// They are not exactly one entry's header.
pub fn entry_of_header(bytes: &[u8]) -> Result<FileMetadata, BuildError> {
    let not_one = BuildError::Tar {
        reason: "there is not exactly one entry",
        at: 0,
    };
    let mut scanner = TarScanner::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (used, _) = scanner.take(rest)?;
        rest = rest.get(used..).unwrap_or_default();
        if let Some(entry) = scanner.take_entry() {
            return match rest.is_empty() {
                true => Ok(entry),
                false => Err(not_one),
            };
        }
    }
    Err(not_one)
}
