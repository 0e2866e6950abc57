//! Answers FUSE requests from a tree and the layer's data. Keeps no state of its own: any process
//! with the same zTOC gives the same answers.

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use soci_fetch::{LayerData, ReadError};
use soci_fuse::{
    Attr, DirBuffer, Entry, Errno, FileSystem, Negotiated, Operation, Reply, Request, StatFs,
    open_flags,
};
use soci_telemetry::LogLimit;

use crate::counters::{Counters, count};
use crate::state_file::{STATE_DIRECTORY, StateFile};
use crate::timers::{Running, Timers};
use crate::tree::{S_IFCHR, S_IFDIR, S_IFREG, Tree};

/// Largest answer to one READ in bytes. The kernel asks for no more than it negotiated.
const MAX_READ: u64 = 16 << 20;

/// How long the kernel may remember what it was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheTimes {
    /// Attributes.
    pub attr: Duration,
    /// Names that exist.
    pub entry: Duration,
    /// Names that do not.
    pub negative: Duration,
}

impl CacheTimes {
    /// A layer never changes.
    pub const FOREVER: Self = Self {
        attr: Duration::from_secs(365 * 24 * 3600),
        entry: Duration::from_secs(365 * 24 * 3600),
        negative: Duration::from_secs(365 * 24 * 3600),
    };
}

/// The file system of one layer.
pub struct LayerFs {
    tree: Arc<Tree>,
    data: Arc<dyn LayerData>,
    state: StateFile,
    times: CacheTimes,
    /// What STATFS reports on.
    backing: PathBuf,
    /// ENOSYS on OPEN and OPENDIR is understood.
    no_open: bool,
    no_opendir: bool,
    /// Otherwise requests for extended attributes get ENOSYS.
    answer_xattrs: bool,
    counters: Arc<Counters>,
    timers: Timers,
    log_operations: bool,
    log_limit: Arc<LogLimit>,
}

impl std::fmt::Debug for LayerFs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LayerFs")
            .field("layer", &self.data.status().digest)
            .finish_non_exhaustive()
    }
}

thread_local! {
    /// Content on its way to the kernel; each worker reuses its own.
    static CONTENT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl LayerFs {
    /// A file system. `backing` is a path on the file system that STATFS reports, not below any
    /// mount of ours; `negotiated` is the outcome of INIT.
    #[must_use]
    pub fn new(
        tree: Arc<Tree>,
        data: Arc<dyn LayerData>,
        times: CacheTimes,
        backing: PathBuf,
        negotiated: &Negotiated,
    ) -> Self {
        let state = StateFile::new(&data.status().digest, tree.len());
        Self {
            answer_xattrs: tree.has_xattrs(),
            tree,
            data,
            state,
            times,
            backing,
            no_open: negotiated.no_open(),
            no_opendir: negotiated.no_opendir(),
            counters: Arc::default(),
            timers: Timers::default(),
            log_operations: false,
            log_limit: Arc::default(),
        }
    }

    /// The same, measured.
    #[must_use]
    pub fn with_timers(mut self, timers: Timers) -> Self {
        self.timers = timers;
        self
    }

    /// The same with a line in the log, level debug, for each operation: it shows names of files.
    #[must_use]
    pub const fn with_operation_log(mut self, log: bool) -> Self {
        self.log_operations = log;
        self
    }

    /// The same, answering requests for extended attributes also if no file has any.
    #[must_use]
    pub const fn with_answered_xattrs(mut self, answer: bool) -> Self {
        self.answer_xattrs |= answer;
        self
    }

    /// The counts of operations.
    #[must_use]
    pub const fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    fn attr(&self, ino: u64) -> Option<Attr> {
        if self.state.has(ino) {
            Some(self.state.attr(ino, || self.data.status()))
        } else {
            self.tree.attr(ino)
        }
    }

    fn is_directory(&self, ino: u64) -> bool {
        ino == self.state.directory || self.tree.is_directory(ino)
    }

    fn entry(&self, ino: Option<u64>) -> Entry {
        let hidden = ino.is_some_and(|ino| self.state.has(ino));
        let attr = ino.and_then(|ino| self.attr(ino));
        let (entry_ttl, attr_ttl) = match attr {
            _ if hidden => (Duration::ZERO, Duration::ZERO),
            Some(_) => (self.times.entry, self.times.attr),
            None => (self.times.negative, Duration::ZERO),
        };
        Entry {
            attr,
            entry_ttl,
            attr_ttl,
        }
    }

    fn lookup(&self, parent: u64, name: &[u8], reply: Reply) {
        count(&self.counters.lookup);
        // A file handle is resolved: any node, also a file, is asked for itself.
        if name == b"." && self.attr(parent).is_some() {
            return reply.entry(&self.entry(Some(parent)));
        }
        if parent == self.state.directory {
            return match self.state.lookup(name) {
                Some(ino) => reply.entry(&self.entry(Some(ino))),
                None => reply.error(Errno::NOENT),
            };
        }
        if !self.tree.is_directory(parent) {
            count(&self.counters.lookup_failures);
            return reply.error(self.no_directory(parent));
        }
        let found = self.tree.lookup(parent, name);
        // A layer that has this name itself shows its own.
        let hidden = parent == soci_fuse::ROOT_ID && name == STATE_DIRECTORY;
        let found = found.or_else(|| hidden.then_some(self.state.directory));
        if found.is_none() && self.times.negative.is_zero() {
            return reply.error(Errno::NOENT);
        }
        reply.entry(&self.entry(found));
    }

    fn no_directory(&self, ino: u64) -> Errno {
        match self.attr(ino) {
            Some(_) => Errno::NOTDIR,
            None => Errno::STALE,
        }
    }

    fn getattr(&self, ino: u64, reply: Reply) {
        let Some(attr) = self.attr(ino) else {
            count(&self.counters.getattr_failures);
            return reply.error(Errno::STALE);
        };
        let kind = attr.mode & crate::tree::S_IFMT;
        count(match kind {
            S_IFREG => &self.counters.file_getattr,
            S_IFCHR if attr.rdev == 0 => &self.counters.whiteout_getattr,
            _ => &self.counters.node_getattr,
        });
        let ttl = if self.state.has(ino) {
            Duration::ZERO
        } else {
            self.times.attr
        };
        reply.attr(&attr, ttl);
    }

    fn readdir(&self, ino: u64, offset: u64, mut buffer: DirBuffer, reply: Reply) {
        count(&self.counters.readdir);
        let running = Running::start(self.timers.readdir.as_ref());
        if ino == self.state.directory {
            let entries = self.state.entries();
            let from = usize::try_from(offset).unwrap_or(usize::MAX);
            for (position, (name, ino)) in entries.into_iter().enumerate().skip(from) {
                let mode = if ino == self.state.file {
                    S_IFREG
                } else {
                    S_IFDIR
                };
                // No attributes: the kernel looks it up itself, and forgets it at once.
                let unknown = || self.unknown();
                if !buffer.push(name, ino, mode, position as u64 + 1, unknown) {
                    break;
                }
            }
            return reply.directory(&buffer);
        }
        let Some(entries) = self.tree.readdir(ino, offset) else {
            count(&self.counters.readdir_failures);
            return reply.error(self.no_directory(ino));
        };
        for entry in entries {
            let mode = self.tree.inode(entry.ino).map_or(0, |inode| inode.mode);
            // The kernel takes attributes of all entries but these two.
            let dots = matches!(entry.name, b"." | b"..");
            let full = || match dots {
                true => self.unknown(),
                false => self.entry(Some(entry.ino)),
            };
            if !buffer.push(entry.name, entry.ino, mode, entry.next, full) {
                break;
            }
        }
        reply.directory(&buffer);
        running.stop();
    }

    const fn unknown(&self) -> Entry {
        Entry {
            attr: None,
            entry_ttl: Duration::ZERO,
            attr_ttl: Duration::ZERO,
        }
    }

    fn read(&self, request: &Request<'_>, offset: u64, size: u32, reply: Reply) {
        let ino = request.node;
        count(&self.counters.read);
        let running = Running::start(self.timers.read.as_ref());
        if ino == self.state.file {
            let content = self.state.read(offset, size, || self.data.status());
            return reply.data(&content);
        }
        soci_faults::numbered_point("layer-read", ino);
        let Some((start, length)) = self.tree.extent(ino) else {
            count(&self.counters.read_failures);
            return reply.error(match self.attr(ino) {
                Some(_) if self.is_directory(ino) => Errno::ISDIR,
                Some(_) => Errno::INVAL,
                None => Errno::STALE,
            });
        };
        let wanted = length
            .saturating_sub(offset)
            .min(u64::from(size))
            .min(MAX_READ);
        let Ok(wanted) = usize::try_from(wanted) else {
            return reply.error(Errno::INVAL);
        };
        if wanted == 0 {
            return reply.data(&[]);
        }
        // Cannot overflow: the extent lies in the tar, and `offset` in the extent.
        let at = start.saturating_add(offset);
        CONTENT.with_borrow_mut(|buffer| {
            if buffer.len() < wanted {
                buffer.resize(wanted, 0);
            }
            let buffer = buffer.get_mut(..wanted).unwrap_or_default();
            match self.data.try_read(at, buffer) {
                Ok(true) => {
                    self.served(wanted);
                    reply.data(buffer);
                    running.stop();
                }
                Ok(false) => self.read_later(request, at, wanted, reply, running),
                Err(error) => {
                    Failure::new(self, ino).report(&error);
                    reply.error(Errno::IO);
                }
            }
        });
    }

    fn read_later(
        &self,
        request: &Request<'_>,
        at: u64,
        wanted: usize,
        reply: Reply,
        running: Running,
    ) {
        count(&self.counters.read_waited);
        let failure = Failure::new(self, request.node);
        let reply = reply.defer(request);
        let done = move |result: Result<bytes::Bytes, ReadError>| match result {
            Ok(bytes) if bytes.len() == wanted => {
                let served = &failure.counters.bytes_served;
                served.fetch_add(wanted as u64, Ordering::Relaxed);
                reply.data(&bytes);
                running.stop();
            }
            Ok(bytes) => {
                failure.report(&format_args!(
                    "{} bytes arrived instead of {wanted}",
                    bytes.len()
                ));
                reply.error(Errno::IO);
            }
            Err(error) => {
                if reply.reaches() {
                    failure.report(&error);
                }
                reply.error(Errno::IO);
            }
        };
        self.data.read(at, wanted, Box::new(done));
    }

    fn served(&self, bytes: usize) {
        let served = &self.counters.bytes_served;
        served.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn getxattr(&self, ino: u64, name: &[u8], room: u32, reply: Reply) {
        count(&self.counters.getxattr);
        if !self.answer_xattrs {
            return reply.error(Errno::NOSYS);
        }
        match self.tree.xattr(ino, name) {
            Some(value) => reply.xattr(value, room),
            None => reply.error(Errno::NODATA),
        }
    }

    fn listxattr(&self, ino: u64, room: u32, reply: Reply) {
        count(&self.counters.listxattr);
        if !self.answer_xattrs {
            return reply.error(Errno::NOSYS);
        }
        let mut names = Vec::new();
        for (name, _) in self.tree.xattrs(ino) {
            names.extend_from_slice(name);
            names.push(0);
        }
        reply.xattr(&names, room);
    }

    fn open(&self, ino: u64, not_needed: bool, flags: u32, reply: Reply) {
        count(&self.counters.open);
        if not_needed {
            // From now on the kernel opens without asking, as if with the flags below.
            return reply.error(Errno::NOSYS);
        }
        let flags = if self.state.has(ino) { 0 } else { flags };
        reply.opened(ino, flags);
    }

    fn statfs(&self, reply: Reply) {
        match rustix::fs::statfs(&self.backing) {
            Ok(found) => reply.statfs(&StatFs {
                blocks: found.f_blocks,
                bfree: found.f_bfree,
                bavail: found.f_bavail,
                files: found.f_files,
                ffree: found.f_ffree,
                bsize: u32::try_from(found.f_bsize).unwrap_or(4096),
                namelen: u32::try_from(found.f_namelen).unwrap_or(255),
                frsize: u32::try_from(found.f_frsize).unwrap_or(4096),
            }),
            Err(errno) => {
                count(&self.counters.other_failures);
                reply.error(errno);
            }
        }
    }

    #[cold]
    fn log_operation(&self, request: &Request<'_>) {
        if !tracing::enabled!(tracing::Level::DEBUG) {
            return;
        }
        let (operation, name) = match request.operation {
            Operation::Lookup { name } => ("node.Lookup", name),
            Operation::GetXattr { name, .. } => ("node.Getxattr", name),
            Operation::ListXattr { .. } => ("node.Listxattr", &[][..]),
            Operation::GetAttr => ("node.Getattr", &[][..]),
            Operation::ReadLink => ("node.Readlink", &[][..]),
            Operation::Open | Operation::OpenDir => ("node.Open", &[][..]),
            Operation::ReadDir { .. } => ("node.Readdir", &[][..]),
            Operation::Read { .. } => ("file.Read", &[][..]),
            Operation::StatFs => ("node.Statfs", &[][..]),
            _ => ("other", &[][..]),
        };
        let path = if self.state.has(request.node) {
            STATE_DIRECTORY.to_vec()
        } else {
            self.tree.path(request.node)
        };
        tracing::debug!(
            layer = %self.data.status().digest,
            operation,
            path = %String::from_utf8_lossy(&path),
            name = %String::from_utf8_lossy(name),
            "FUSE operation"
        );
    }
}

impl FileSystem for LayerFs {
    fn handle(&self, request: &Request<'_>, reply: Reply) {
        let node = request.node;
        if self.log_operations {
            self.log_operation(request);
        }
        match request.operation {
            Operation::Lookup { name } => self.lookup(node, name, reply),
            Operation::GetAttr => self.getattr(node, reply),
            Operation::ReadLink => {
                count(&self.counters.readlink);
                match self.tree.readlink(node) {
                    Some(target) => reply.data(target),
                    None => {
                        count(&self.counters.other_failures);
                        reply.error(Errno::INVAL);
                    }
                }
            }
            Operation::Open => self.open(node, self.no_open, open_flags::KEEP_CACHE, reply),
            Operation::OpenDir => {
                let flags = open_flags::KEEP_CACHE | open_flags::CACHE_DIR;
                self.open(node, self.no_opendir, flags, reply);
            }
            Operation::Read { offset, size } => self.read(request, offset, size, reply),
            Operation::ReadDir { offset, size, plus } => {
                self.readdir(node, offset, DirBuffer::new(size, plus), reply);
            }
            Operation::Release => reply.ok(),
            Operation::StatFs => self.statfs(reply),
            Operation::GetXattr { name, size } => self.getxattr(node, name, size, reply),
            Operation::ListXattr { size } => self.listxattr(node, size, reply),
            Operation::Change(_) => reply.error(Errno::ROFS),
            // ENOSYS makes the kernel do them itself: permissions, holes (there are none).
            Operation::Access | Operation::Lseek => reply.error(Errno::NOSYS),
            Operation::Unknown(_)
            | Operation::Init(_)
            | Operation::Forget
            | Operation::Interrupt { .. }
            | Operation::Destroy => {
                count(&self.counters.unknown_operations);
                reply.error(Errno::NOSYS);
            }
        }
    }
}

/// What the log says when a read fails.
struct Failure {
    tree: Arc<Tree>,
    data: Arc<dyn LayerData>,
    counters: Arc<Counters>,
    log_limit: Arc<LogLimit>,
    ino: u64,
}

impl Failure {
    fn new(fs: &LayerFs, ino: u64) -> Self {
        Self {
            tree: fs.tree.clone(),
            data: fs.data.clone(),
            counters: fs.counters.clone(),
            log_limit: fs.log_limit.clone(),
            ino,
        }
    }

    fn report(&self, error: &dyn std::fmt::Display) {
        count(&self.counters.read_failures);
        let Some(held_back) = self.log_limit.pass() else {
            return;
        };
        tracing::error!(
            layer = %self.data.status().digest,
            path = %String::from_utf8_lossy(&self.tree.path(self.ino)),
            error = %error,
            held_back,
            "reading a file failed; the reader gets EIO"
        );
    }
}
