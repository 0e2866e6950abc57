//! Reading a tar that arrives in pieces into a table of contents.

use crate::BuildError;
use crate::pax::{self, Records};
use crate::tar_header::{BLOCK, Header, text};
use crate::toc::{FileMetadata, FileType, low_half};

/// How long a GNU long name or a PAX header may be, as in Go: they are held in memory.
const MAX_METADATA: u64 = 1 << 20;

/// A tar that is being read.
#[derive(Debug)]
pub(crate) struct TarScanner {
    /// How many bytes were taken in, up to the tar's end.
    position: u64,
    state: State,
    block: [u8; BLOCK],
    /// How many bytes of `block` are filled.
    filled: usize,
    /// Where the header that is being worked on starts.
    header_at: u64,
    /// What the next entry's fields are overruled with.
    pending: Pending,
    entries: Vec<FileMetadata>,
    /// How many bytes of names and PAX records the entries have.
    text_len: u64,
}

#[derive(Debug, Default)]
struct Pending {
    records: Option<Records>,
    long_name: Vec<u8>,
    long_link: Vec<u8>,
}

#[derive(Debug)]
enum State {
    /// Collecting a header block.
    Header,
    /// One block of zeros was there; another ends the tar.
    ZeroBlock,
    /// Skipping an entry's content, then what fills up its last block.
    Content { left: u64, padding: u64 },
    /// Collecting the data of a header that describes the next entry.
    Metadata {
        kind: u8,
        data: Vec<u8>,
        left: u64,
        padding: u64,
    },
    /// Both blocks of zeros were there; whatever follows does not belong to the tar.
    Ended,
}

/// The bytes that fill up the last block of `size` bytes.
const fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

impl TarScanner {
    pub(crate) const fn new() -> Self {
        Self {
            position: 0,
            state: State::Header,
            block: [0; BLOCK],
            filled: 0,
            header_at: 0,
            pending: Pending {
                records: None,
                long_name: Vec::new(),
                long_link: Vec::new(),
            },
            entries: Vec::new(),
            text_len: 0,
        }
    }

    /// How many entries were found so far.
    pub(crate) const fn entries(&self) -> usize {
        self.entries.len()
    }

    /// How many bytes of names and PAX records they have.
    pub(crate) const fn text_len(&self) -> u64 {
        self.text_len
    }

    const fn broken(&self, reason: &'static str) -> BuildError {
        BuildError::Tar {
            reason,
            at: self.header_at,
        }
    }

    /// Takes in the next bytes.
    pub(crate) fn write(&mut self, mut data: &[u8]) -> Result<(), BuildError> {
        while !data.is_empty() {
            let (used, _) = self.take(data)?;
            data = data.get(used..).unwrap_or_default();
        }
        Ok(())
    }

    /// Takes in some of the next bytes, those of one header or of one entry's content. Returns
    /// how many, and which of them are content.
    pub(crate) fn take<'d>(&mut self, data: &'d [u8]) -> Result<(usize, &'d [u8]), BuildError> {
        let mut content = 0;
        let (used, complete) = match &mut self.state {
            State::Ended => return Ok((data.len(), &[])),
            State::Content { left, padding } => {
                content = skip(left, data.len());
                let used = content + skip(padding, data.len() - content);
                (used, *left == 0 && *padding == 0)
            }
            State::Metadata {
                data: collected,
                left,
                padding,
                ..
            } => {
                let used = skip(left, data.len());
                collected.extend_from_slice(data.get(..used).unwrap_or_default());
                let used = used + skip(padding, data.len() - used);
                (used, *left == 0 && *padding == 0)
            }
            State::Header | State::ZeroBlock => {
                if self.filled == 0 {
                    self.header_at = self.position;
                }
                let used = data.len().min(BLOCK - self.filled);
                let room = self.block.iter_mut().skip(self.filled);
                room.zip(data).for_each(|(to, from)| *to = *from);
                self.filled += used;
                (used, self.filled == BLOCK)
            }
        };
        self.position += used as u64;
        if complete {
            self.step()?;
        }
        Ok((used, data.get(..content).unwrap_or_default()))
    }

    /// The entry whose header was completed by the last bytes, if there is one. It is not listed
    /// in the end then.
    pub(crate) fn take_entry(&mut self) -> Option<FileMetadata> {
        self.entries.pop()
    }

    /// Leaves a state that has all its bytes.
    fn step(&mut self) -> Result<(), BuildError> {
        match std::mem::replace(&mut self.state, State::Header) {
            State::Metadata { kind, data, .. } => self.metadata(kind, &data),
            State::Content { .. } => Ok(()),
            State::Ended => {
                self.state = State::Ended;
                Ok(())
            }
            before @ (State::Header | State::ZeroBlock) => {
                self.filled = 0;
                let is_zero = self.block.iter().all(|byte| *byte == 0);
                match (before, is_zero) {
                    (State::ZeroBlock, true) => self.state = State::Ended,
                    (State::ZeroBlock, false) => {
                        return Err(self.broken("a single block of zeros precedes it"));
                    }
                    (_, true) => self.state = State::ZeroBlock,
                    (_, false) => {
                        let header = Header::parse(&self.block);
                        self.header(header.map_err(|reason| self.broken(reason))?)?;
                    }
                }
                Ok(())
            }
        }
    }

    fn header(&mut self, mut header: Header) -> Result<(), BuildError> {
        let negative = "its size is negative";
        if matches!(header.kind, b'x' | b'g' | b'L' | b'K') {
            let left = u64::try_from(header.size).map_err(|_| self.broken(negative))?;
            if left > MAX_METADATA {
                return Err(self.broken("its PAX records or long name take more than 1 MiB"));
            }
            if left == 0 {
                return self.metadata(header.kind, &[]);
            }
            let (kind, padding) = (header.kind, padding(left));
            self.state = State::Metadata {
                kind,
                data: Vec::new(),
                left,
                padding,
            };
            return Ok(());
        }
        let Pending {
            records,
            long_name,
            long_link,
        } = std::mem::take(&mut self.pending);
        let records = records.unwrap_or_default();
        let mtime = pax::apply(&records, &mut header).map_err(|reason| self.broken(reason))?;
        if !long_name.is_empty() {
            header.name = long_name;
        }
        if !long_link.is_empty() {
            header.linkname = long_link;
        }
        let size = u64::try_from(header.size).map_err(|_| self.broken(negative))?;
        let file_type = self.file_type(&header, &records)?;
        let entry = FileMetadata {
            name: header.name,
            file_type,
            uncompressed_offset: self.position,
            // Other entries have no content whatever their header says, and a size that reached
            // into the next header would make the zTOC invalid.
            uncompressed_size: if file_type == FileType::Reg { size } else { 0 },
            linkname: header.linkname,
            mode: low_half(header.mode),
            uid: low_half(header.uid),
            gid: low_half(header.gid),
            uname: header.uname,
            gname: header.gname,
            mod_time: pax::rfc3339(mtime.unwrap_or((header.mtime, 0))),
            devmajor: header.devmajor,
            devminor: header.devminor,
            xattrs: records.into_iter().collect(),
        };
        let left = entry.content_len();
        let records = entry
            .xattrs
            .iter()
            .map(|(key, value)| key.len() + value.len() + 32);
        let text_len = entry.name.len() + entry.linkname.len() + records.sum::<usize>();
        self.text_len = self.text_len.saturating_add(text_len as u64);
        self.entries.push(entry);
        if left > 0 {
            self.state = State::Content {
                left,
                padding: padding(left),
            };
        }
        Ok(())
    }

    fn file_type(&self, header: &Header, records: &Records) -> Result<FileType, BuildError> {
        let unsupported = |what: String| BuildError::UnsupportedEntry {
            what,
            name: String::from_utf8_lossy(pax::sparse_name(records).unwrap_or(&header.name))
                .into_owned(),
            at: self.header_at,
        };
        if header.kind == b'S' || pax::is_sparse(records) {
            return Err(unsupported("the sparse file".to_owned()));
        }
        Ok(match header.kind {
            b'0' => FileType::Reg,
            // Tars older than POSIX mark a directory with a slash.
            0 if header.name.ends_with(b"/") => FileType::Dir,
            0 => FileType::Reg,
            b'1' => FileType::Hardlink,
            b'2' => FileType::Symlink,
            b'3' => FileType::Char,
            b'4' => FileType::Block,
            b'5' => FileType::Dir,
            b'6' => FileType::Fifo,
            other => {
                let kind = std::ascii::escape_default(other);
                return Err(unsupported(format!("the entry of type '{kind}'")));
            }
        })
    }

    /// Keeps what a metadata header said for the next entry.
    fn metadata(&mut self, kind: u8, data: &[u8]) -> Result<(), BuildError> {
        match kind {
            b'x' => {
                let records = pax::parse(data).map_err(|reason| self.broken(reason))?;
                self.pending.records = Some(records);
            }
            b'L' => self.pending.long_name = text(data).to_vec(),
            b'K' => self.pending.long_link = text(data).to_vec(),
            // A global header: containerd skips it, and Go's reader forgets what came before it.
            _ => self.pending = Pending::default(),
        }
        Ok(())
    }

    /// Ends the tar and returns the entries and where it ends. Like Go's reader, it does not insist
    /// on the zeros at the end.
    pub(crate) fn finish(self) -> Result<(Vec<FileMetadata>, u64), BuildError> {
        let cut = |reason| {
            Err(BuildError::TruncatedTar {
                reason,
                at: self.header_at,
            })
        };
        match self.state {
            State::Header | State::ZeroBlock if self.filled > 0 => cut("in the middle of a header"),
            State::Content { left: 1.., .. } => cut("in the middle of a file"),
            State::Metadata { left: 1.., .. } => cut("in the middle of a long name or PAX records"),
            _ => Ok((self.entries, self.position)),
        }
    }
}

/// Takes as much off `left` as there is and returns how much.
fn skip(left: &mut u64, available: usize) -> usize {
    let used = usize::try_from(*left).map_or(available, |left| left.min(available));
    *left -= used as u64;
    used
}
