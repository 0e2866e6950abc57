//! Answers to FUSE requests, from a tree and the layer's data. There is no state: any process with
//! the same zTOC gives the same answers.

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use soci_fetch::LayerData;
use soci_fuse::{
    DirBuffer, Entry, Errno, FileSystem, Negotiated, Operation, Reply, Request, StatFs, open_flags,
};
use soci_telemetry::LogLimit;

use crate::counters::{Counters, count};
use crate::file_watch::FileWatch;
use crate::first_read::{self, FirstReadError, Part, Stored};
use crate::header_check::Header;
use crate::inode::{S_IFCHR, S_IFMT, S_IFREG};
use crate::nodes::{Content, Nodes};
use crate::operation_log::log_operation;
use crate::own_reads::OwnReads;
use crate::read_failures::ReadFailures;
use crate::timers::{Running, Timers};
use crate::tree_view::TreeView;

/// Largest answer to one READ, in bytes. The kernel requests no more than it negotiated.
const MAX_READ: u64 = 16 << 20;

/// How long the kernel may cache answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheTimes {
    /// Attributes.
    pub attr: Duration,
    /// Names that exist.
    pub entry: Duration,
    /// Names that do not exist.
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

/// An entry without attributes.
const BARE_ENTRY: Entry = Entry {
    attr: None,
    entry_ttl: Duration::ZERO,
    attr_ttl: Duration::ZERO,
};

/// The file system of one layer.
pub struct LayerFs {
    nodes: Nodes,
    data: Arc<dyn LayerData>,
    times: CacheTimes,
    /// A path on the file system that STATFS reports.
    backing: PathBuf,
    /// The kernel understands ENOSYS on OPEN and OPENDIR.
    no_open: bool,
    no_opendir: bool,
    /// Whether requests for one extended attribute are answered; otherwise they get ENOSYS.
    answer_xattrs: bool,
    counters: Arc<Counters>,
    timers: Timers,
    log_operations: bool,
    /// Whether the first read of a file compares its tar header with its entry.
    check_headers: bool,
    failures: Arc<ReadFailures>,
    watch: Arc<FileWatch>,
    own_reads: Option<OwnReads>,
}

impl std::fmt::Debug for LayerFs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LayerFs")
            .field("layer", &self.data.status().digest)
            .finish_non_exhaustive()
    }
}

thread_local! {
    /// The buffer for content that goes to the kernel; each worker reuses its own.
    static CONTENT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl LayerFs {
    /// The file system of a layer. `backing` is a path on the file system that STATFS reports, not below any
    /// mount of ours; `negotiated` is the outcome of INIT.
    #[must_use]
    pub fn new(
        view: impl Into<TreeView>,
        data: Arc<dyn LayerData>,
        times: CacheTimes,
        backing: PathBuf,
        negotiated: &Negotiated,
    ) -> Self {
        let (view, counters): (TreeView, Arc<Counters>) = (view.into(), Arc::default());
        Self {
            answer_xattrs: view.has_xattrs(),
            failures: Arc::new(ReadFailures {
                tree: Arc::clone(view.tree()),
                data: Arc::clone(&data),
                counters: Arc::clone(&counters),
                log_limit: LogLimit::default(),
            }),
            nodes: Nodes::new(view, Arc::clone(&data)),
            data,
            times,
            backing,
            no_open: negotiated.no_open(),
            no_opendir: negotiated.no_opendir(),
            counters,
            timers: Timers::default(),
            log_operations: false,
            check_headers: true,
            watch: Arc::default(),
            own_reads: None,
        }
    }

    /// The same with timers for reads and listings.
    #[must_use]
    pub fn with_timers(mut self, timers: Timers) -> Self {
        self.timers = timers;
        self
    }

    /// The same with a debug log message for each operation, which shows names of files.
    #[must_use]
    pub const fn with_operation_log(mut self, log: bool) -> Self {
        self.log_operations = log;
        self
    }

    /// The same, answering requests for one extended attribute even if no file has any.
    #[must_use]
    pub const fn with_answered_xattrs(mut self, answer: bool) -> Self {
        self.answer_xattrs |= answer;
        self
    }

    /// The same, trusting the zTOC about names, modes and owners of files if `check` is false.
    #[must_use]
    pub const fn with_header_checks(mut self, check: bool) -> Self {
        self.check_headers = check;
        self
    }

    /// The same, reporting first reads of files to the watchers of `watch`.
    #[must_use]
    pub fn with_watch(mut self, watch: Arc<FileWatch>) -> Self {
        self.watch = watch;
        self
    }

    /// The same, telling reads of the daemon's own process from those of containers.
    #[must_use]
    pub fn with_own_reads(mut self, own_reads: Option<OwnReads>) -> Self {
        self.own_reads = own_reads;
        self
    }

    /// The counts of operations.
    #[must_use]
    pub const fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// The entry of a node, or of a name that does not exist.
    fn entry(&self, ino: Option<u64>) -> Entry {
        let attr = ino.and_then(|ino| self.nodes.attr(ino));
        let (entry_ttl, attr_ttl) = match attr {
            Some(attr) if self.nodes.is_volatile(attr.ino) => (Duration::ZERO, Duration::ZERO),
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
        match self.nodes.lookup(parent, name) {
            Ok(None) if self.times.negative.is_zero() => reply.error(Errno::NOENT),
            Ok(found) => reply.entry(&self.entry(found)),
            Err(errno) => {
                if errno != Errno::NOENT {
                    count(&self.counters.lookup_failures);
                }
                reply.error(errno);
            }
        }
    }

    fn getattr(&self, ino: u64, reply: Reply) {
        let Some(attr) = self.nodes.attr(ino) else {
            count(&self.counters.getattr_failures);
            return reply.error(Errno::STALE);
        };
        let kind = attr.mode & S_IFMT;
        count(match kind {
            S_IFREG => &self.counters.file_getattr,
            S_IFCHR if attr.rdev == 0 => &self.counters.whiteout_getattr,
            _ => &self.counters.node_getattr,
        });
        let ttl = match self.nodes.is_volatile(ino) {
            true => Duration::ZERO,
            false => self.times.attr,
        };
        reply.attr(&attr, ttl);
    }

    fn readdir(&self, ino: u64, offset: u64, mut buffer: DirBuffer, reply: Reply) {
        count(&self.counters.readdir);
        let running = Running::start(self.timers.readdir.as_ref());
        let entries = match self.nodes.readdir(ino, offset) {
            Ok(entries) => entries,
            Err(errno) => {
                count(&self.counters.readdir_failures);
                return reply.error(errno);
            }
        };
        for entry in entries {
            // The kernel ignores attributes of the first two entries, and must look up what it must
            // not cache.
            let is_bare = matches!(entry.name, b"." | b"..") || self.nodes.is_volatile(entry.ino);
            let full = || match is_bare {
                true => BARE_ENTRY,
                false => self.entry(Some(entry.ino)),
            };
            let mode = self.nodes.mode(entry.ino);
            if !buffer.push(entry.name, entry.ino, mode, entry.next, full) {
                break;
            }
        }
        reply.directory(&buffer);
        running.stop();
    }

    fn read(&self, request: &Request<'_>, offset: u64, size: u32, reply: Reply) {
        let ino = request.node;
        count(&self.counters.read);
        let running = Running::start(self.timers.read.as_ref());
        let (start, length) = match self.nodes.content(ino) {
            Ok(Content::Tar { start, length }) => (start, length),
            Ok(Content::State) => return reply.data(&self.nodes.read_state(offset, size)),
            Err(errno) => {
                count(&self.counters.read_failures);
                return reply.error(errno);
            }
        };
        soci_faults::numbered_point("layer-read", ino);
        let own = self.own_reads.as_ref();
        let own = own.filter(|own| own.reader.sent(request.pid));
        let data = own.map_or(&self.data, |own| &own.data).as_ref();
        if own.is_none() {
            self.watch.note(ino);
        }
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
        let part = Part { at, len: wanted };
        let tree = self.nodes.view().tree();
        CONTENT.with_borrow_mut(|buffer| {
            let stored = match self.check_headers && !tree.headers.is_checked(ino) {
                true => first_read::read_stored(tree, data, ino, part, buffer),
                false => {
                    let buffer = first_read::room(buffer, wanted);
                    let filled = data.try_read(at, buffer);
                    filled
                        .map_err(FirstReadError::from)
                        .map(|filled| match filled {
                            true => Stored::All(buffer),
                            false => Stored::Missing(Vec::new()),
                        })
                }
            };
            match stored {
                Ok(Stored::All(content)) => {
                    self.served(wanted);
                    reply.data(content);
                    running.stop();
                }
                Ok(Stored::Missing(headers)) => {
                    self.read_later(request, data, headers, part, reply, running);
                }
                Err(error) => {
                    self.failures.report(ino, &error);
                    reply.error(Errno::IO);
                }
            }
        });
    }

    fn read_later(
        &self,
        request: &Request<'_>,
        data: &dyn LayerData,
        missing: Vec<Header>,
        part: Part,
        reply: Reply,
        running: Running,
    ) {
        count(&self.counters.read_waited);
        let (ino, failures) = (request.node, Arc::clone(&self.failures));
        let reply = reply.defer(request);
        let waits = reply.watch();
        let done = move |result: Result<bytes::Bytes, FirstReadError>| match result {
            Ok(bytes) => {
                let served = &failures.counters.bytes_served;
                served.fetch_add(part.len as u64, Ordering::Relaxed);
                reply.data(&bytes);
                running.stop();
            }
            Err(error) => {
                if reply.reaches() && reply.is_wanted() {
                    failures.report(ino, &error);
                }
                reply.error(Errno::IO);
            }
        };
        let tree = self.nodes.view().tree().clone();
        first_read::read(tree, data, ino, missing, part, Arc::new(waits), done);
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
        match self.nodes.view().xattr(ino, name) {
            Some(value) => reply.xattr(value, room),
            None => reply.error(Errno::NODATA),
        }
    }

    fn listxattr(&self, ino: u64, room: u32, reply: Reply) {
        count(&self.counters.listxattr);
        let mut names = Vec::new();
        for (name, _) in self.nodes.view().xattrs(ino) {
            names.extend_from_slice(name);
            names.push(0);
        }
        reply.xattr(&names, room);
    }

    fn open(&self, ino: u64, not_needed: bool, flags: u32, reply: Reply) {
        count(&self.counters.open);
        if not_needed {
            // From now on the kernel opens without a request, as if with the flags below.
            return reply.error(Errno::NOSYS);
        }
        let flags = if self.nodes.is_volatile(ino) {
            0
        } else {
            flags
        };
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
}

impl FileSystem for LayerFs {
    fn handle(&self, request: &Request<'_>, reply: Reply) {
        let node = request.node;
        if self.log_operations && tracing::enabled!(tracing::Level::DEBUG) {
            log_operation(&self.data.status().digest, &self.nodes, request);
        }
        match request.operation {
            Operation::Lookup { name } => self.lookup(node, name, reply),
            Operation::GetAttr => self.getattr(node, reply),
            Operation::ReadLink => {
                count(&self.counters.readlink);
                match self.nodes.view().tree().readlink(node) {
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
