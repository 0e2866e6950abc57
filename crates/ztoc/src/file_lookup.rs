//! Lookup of a regular file in a table of contents by its path.

use crate::tar_path::clean;
use crate::{FileMetadata, FileType};

/// Hard links to hard links that are followed.
const MAX_HARD_LINKS: usize = 16;

/// Why a path names no regular file of a layer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FindError {
    /// No entry has the path, or that of a hard link on the way.
    #[error("not found in the layer")]
    NotFound,
    /// The entry is of another type.
    #[error("not a regular file, but of type {}", .0.as_str())]
    NotRegular(FileType),
    /// Hard links lead to hard links without end.
    #[error("hard links lead to hard links without end")]
    TooManyLinks,
}

/// Finds the entry of the regular file at `path`.
///
/// Paths are compared in their clean form ([`clean`]). Of several entries with one path the last
/// counts. Hard links are followed; symbolic links are not.
///
/// # Errors
/// No such file, or not a regular one.
pub fn find_file<'a>(toc: &'a [FileMetadata], path: &[u8]) -> Result<&'a FileMetadata, FindError> {
    let mut path = clean(path);
    for _ in 0..MAX_HARD_LINKS {
        let entry = toc
            .iter()
            .rfind(|entry| clean(&entry.name) == path)
            .ok_or(FindError::NotFound)?;
        match entry.file_type {
            FileType::Reg => return Ok(entry),
            FileType::Hardlink => path = clean(&entry.linkname),
            other => return Err(FindError::NotRegular(other)),
        }
    }
    Err(FindError::TooManyLinks)
}
