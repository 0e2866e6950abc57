//! A walk through a tree: each entry once, parents before what they hold.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, RawDir, SeekFrom, statat};
use rustix::io::Errno;

use crate::descent::Descent;

/// Size of the buffer for the kernel's list of entries, in bytes.
const BUFFER: usize = 32 << 10;
/// Memory for names that wait, in bytes. Above it names are read from the directory again.
const NAMES: usize = 1 << 20;
/// Memory that the names of one directory may always take.
const ONE_DIRECTORY: usize = 16 << 10;
/// Limit of the memory for names where a directory must be listed before it is changed.
const LISTED_NAMES: usize = 256 << 20;
/// Memory of an entry without its name, roughly.
const ENTRY: usize = 64;

/// What a walk has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// An entry of the current directory, by [`Walk::name`].
    Entry(FileType),
    /// The directory that was the last entry is now the current one.
    Entered,
    /// All entries of the current directory were visited. The next step leaves it; after the root's,
    /// the walk has ended.
    Leaving,
}

/// A walk through a tree.
pub struct Walk {
    descent: Descent,
    kind: Kind,
    levels: Vec<Level>,
    /// Entries that were read and not visited; those of the deepest level last.
    pending: Vec<Pending>,
    /// Memory of those.
    memory: usize,
    name: CString,
    next: Next,
}

/// How the tree may change during the walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Others change it.
    Live,
    /// Nothing changes it.
    Still,
    /// The caller changes it.
    Listed,
}

struct Level {
    /// Index of its first pending entry.
    first: usize,
    /// Where its directory is read on; `None`: it was read to its end.
    resume: Option<u64>,
    /// Device and inode of the directory.
    identity: (u64, u64),
}

struct Pending {
    name: CString,
    kind: FileType,
    /// The position after it in its directory.
    after: u64,
}

enum Next {
    Visit,
    Enter,
    Leave,
}

impl Walk {
    /// A walk through a tree that others change. What vanishes is passed over; of directories
    /// more than 32 levels deep that are moved during the walk, and of their neighbours, some are not
    /// visited. Memory is bounded but for some bytes per level.
    ///
    /// # Errors
    /// The root cannot be opened.
    pub fn live(root: &Path) -> io::Result<Self> {
        Self::new(root, Kind::Live)
    }

    /// A walk through a tree that does not change. Memory is bounded but for some bytes per level.
    ///
    /// # Errors
    /// The root cannot be opened.
    pub fn still(root: &Path) -> io::Result<Self> {
        Self::new(root, Kind::Still)
    }

    /// A walk through a tree that the caller changes: each directory is listed to its end before its
    /// first entry is visited. Names of more than 256 MiB in memory are refused.
    ///
    /// # Errors
    /// The root cannot be opened.
    pub fn listed(root: &Path) -> io::Result<Self> {
        Self::new(root, Kind::Listed)
    }

    fn new(root: &Path, kind: Kind) -> io::Result<Self> {
        let mut walk = Self {
            descent: Descent::open(root)?,
            kind,
            levels: Vec::new(),
            pending: Vec::new(),
            memory: 0,
            name: CString::default(),
            next: Next::Visit,
        };
        walk.push_level()?;
        Ok(walk)
    }

    /// The current directory.
    #[must_use]
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.descent.directory()
    }

    /// Number of levels between the root and the current directory.
    #[must_use]
    pub const fn depth(&self) -> usize {
        self.descent.depth()
    }

    /// The name of the last entry.
    #[must_use]
    pub fn name(&self) -> &CStr {
        &self.name
    }

    /// Passes over what the directory that is the last entry holds, for instance because the caller
    /// removed it.
    pub fn skip(&mut self) {
        if matches!(self.next, Next::Enter) {
            self.next = Next::Visit;
        }
    }

    /// Goes to the next entry, or into or out of a directory; `None` at the end.
    ///
    /// # Errors
    /// A directory cannot be opened or read.
    pub fn step(&mut self) -> io::Result<Option<Event>> {
        match std::mem::replace(&mut self.next, Next::Visit) {
            Next::Leave => self.leave()?,
            Next::Enter => match self.descent.enter(&*self.name) {
                Ok(()) => {
                    self.push_level()?;
                    return Ok(Some(Event::Entered));
                }
                Err(error) if self.kind == Kind::Live && has_changed(&error) => {}
                Err(error) => return Err(error),
            },
            Next::Visit => {}
        }
        loop {
            let Some(level) = self.levels.last_mut() else {
                return Ok(None);
            };
            if self.pending.len() > level.first
                && let Some(entry) = self.pending.pop()
            {
                self.memory = self.memory.saturating_sub(entry.memory());
                let is_directory = entry.kind == FileType::Directory;
                if is_directory {
                    self.next = Next::Enter;
                }
                if is_directory && self.kind != Kind::Listed && self.memory > NAMES {
                    level.resume = Some(entry.after);
                    let first = level.first;
                    self.drop_pending(first);
                }
                self.name = entry.name;
                return Ok(Some(Event::Entry(entry.kind)));
            }
            match level.resume {
                Some(position) => self.read(position)?,
                None => {
                    self.next = Next::Leave;
                    return Ok(Some(Event::Leaving));
                }
            }
        }
    }

    fn push_level(&mut self) -> io::Result<()> {
        let identity = self.identity()?;
        self.levels.push(Level {
            first: self.pending.len(),
            resume: Some(0),
            identity,
        });
        Ok(())
    }

    fn identity(&self) -> io::Result<(u64, u64)> {
        let stat = rustix::fs::fstat(self.directory())?;
        Ok((stat.st_dev, stat.st_ino))
    }

    fn leave(&mut self) -> io::Result<()> {
        self.levels.pop();
        let Some(parent) = self.levels.last() else {
            return Ok(());
        };
        let expected = parent.identity;
        match self.descent.leave() {
            Ok(()) if self.kind != Kind::Live || self.identity()? == expected => Ok(()),
            Err(error) if self.kind != Kind::Live || !has_changed(&error) => Err(error),
            // It was moved or removed: the rest of the levels without an open directory is lost.
            _ => {
                self.descent.return_to_kept();
                let depth = self.descent.depth();
                if let Some(lost) = self.levels.get(depth + 1) {
                    let first = lost.first;
                    self.drop_pending(first);
                }
                self.levels.truncate(depth + 1);
                Ok(())
            }
        }
    }

    fn drop_pending(&mut self, first: usize) {
        let dropped = self.pending.drain(first..);
        let memory: usize = dropped.map(|entry| entry.memory()).sum();
        self.memory = self.memory.saturating_sub(memory);
    }

    /// Reads entries of the current directory from a position, as many as memory allows.
    fn read(&mut self, position: u64) -> io::Result<()> {
        let directory = self.descent.directory();
        if position != 0 {
            rustix::fs::seek(directory, SeekFrom::Start(position))?;
        }
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut entries = RawDir::new(directory, &mut buffer);
        let first = self.pending.len();
        let before = self.memory;
        let mut resume = None;
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                // It was removed.
                Err(Errno::NOENT) if self.kind == Kind::Live => break,
                Err(error) => return Err(error.into()),
            };
            let (name, after) = (entry.file_name(), entry.next_entry_cookie());
            if name == c"." || name == c".." {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => match kind_of(directory, name) {
                    Err(Errno::NOENT) => continue,
                    kind => kind?,
                },
                kind => kind,
            };
            let name = name.to_owned();
            let entry = Pending { name, kind, after };
            self.memory = self.memory.saturating_add(entry.memory());
            self.pending.push(entry);
            if self.kind == Kind::Listed {
                if self.memory > LISTED_NAMES {
                    return Err(too_many_names());
                }
            } else if self.memory > NAMES && self.memory - before > ONE_DIRECTORY {
                resume = Some(after);
                break;
            }
        }
        // They are visited from the end.
        if let Some(read) = self.pending.get_mut(first..) {
            read.reverse();
        }
        if let Some(level) = self.levels.last_mut() {
            level.resume = resume;
        }
        Ok(())
    }
}

impl Pending {
    fn memory(&self) -> usize {
        self.name.as_bytes().len() + ENTRY
    }
}

fn kind_of(directory: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<FileType> {
    let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(stat.st_mode))
}

/// Whether an error says that a directory is not what it was when it was listed.
fn has_changed(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(
        errno,
        Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::STALE)
    )
}

fn too_many_names() -> io::Error {
    let message = format!("the names in its directories need more than {LISTED_NAMES} bytes");
    io::Error::new(io::ErrorKind::QuotaExceeded, message)
}
