//! A tar that arrives in pieces, passed on entry by entry to the unpacker of a layer. It is read by
//! the same rules as for a zTOC, so that a layer holds the same files whether it is lazy or not.

use crate::tar_scan::TarScanner;
use crate::{BuildError, FileMetadata};

/// What comes next in a tar.
#[derive(Debug)]
pub enum TarPart<'a> {
    /// An entry begins.
    Entry(Box<FileMetadata>),
    /// More of its content, of which there are
    /// [`content_len`](FileMetadata::content_len) bytes in all.
    Content(&'a [u8]),
}

/// A tar that is being read. Memory is bounded whatever the tar's size.
#[derive(Debug)]
pub struct TarStream(TarScanner);

impl Default for TarStream {
    fn default() -> Self {
        Self::new()
    }
}

impl TarStream {
    /// A stream that has seen nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self(TarScanner::new())
    }

    /// Takes in the next bytes and hands on what they are. What follows the tar's end is ignored.
    ///
    /// # Errors
    /// [`BuildError`] when the tar is damaged, has a sparse file or an entry of an unknown type; and
    /// what `sink` gives. The stream is of no use then.
    pub fn write<E: From<BuildError>>(
        &mut self,
        mut data: &[u8],
        mut sink: impl FnMut(TarPart<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        while !data.is_empty() {
            let (used, content) = self.0.take(data)?;
            if !content.is_empty() {
                sink(TarPart::Content(content))?;
            }
            if let Some(entry) = self.0.take_entry() {
                sink(TarPart::Entry(Box::new(entry)))?;
            }
            data = data.get(used..).unwrap_or_default();
        }
        Ok(())
    }

    /// Ends the tar.
    ///
    /// # Errors
    /// [`BuildError::TruncatedTar`] if it was not at an end.
    pub fn finish(self) -> Result<(), BuildError> {
        self.0.finish().map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_and_their_content_come_in_order_whatever_the_size_of_the_pieces() {
        let mut builder = tar::Builder::new(Vec::new());
        let content = b"0123456789".repeat(100);
        for (name, length) in [("a", 0), ("b", 1000), ("c", 512)] {
            let mut header = tar::Header::new_gnu();
            header.set_size(length);
            header.set_mode(0o644);
            let data = &content[..usize::try_from(length).unwrap()];
            builder.append_data(&mut header, name, data).unwrap();
        }
        let tar = builder.into_inner().unwrap();
        for size in [1, 100, 511, 513, 10_000] {
            let mut seen: Vec<(String, Vec<u8>)> = Vec::new();
            let mut stream = TarStream::new();
            for piece in tar.chunks(size) {
                stream
                    .write(piece, |part| {
                        match part {
                            TarPart::Entry(entry) => {
                                let name = String::from_utf8(entry.name.clone()).unwrap();
                                seen.push((name, Vec::new()));
                            }
                            TarPart::Content(bytes) => {
                                seen.last_mut().unwrap().1.extend_from_slice(bytes);
                            }
                        }
                        Ok::<_, BuildError>(())
                    })
                    .unwrap();
            }
            stream.finish().unwrap();
            let expected: Vec<_> = [("a", 0), ("b", 1000), ("c", 512)]
                .map(|(name, length)| (name.to_owned(), content[..length].to_vec()))
                .into();
            assert_eq!(seen, expected);
        }
    }

    #[test]
    fn a_tar_that_ends_within_a_file_is_refused() {
        let mut header = tar::Header::new_gnu();
        header.set_path("a").unwrap();
        header.set_size(10);
        header.set_cksum();
        let mut stream = TarStream::new();
        let nothing = |_: TarPart<'_>| Ok::<_, BuildError>(());
        stream.write(header.as_bytes(), nothing).unwrap();
        stream.write(b"12345", nothing).unwrap();
        assert!(stream.finish().is_err());
    }
}
