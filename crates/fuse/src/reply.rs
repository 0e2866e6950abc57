//! The reply to a request, sent immediately or later from any thread.

use std::fmt;
use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use zerocopy::IntoBytes;

use crate::abi::{OpenOut, OutHeader, XattrSize};
use crate::answer::{Attr, DirBuffer, Entry, StatFs, attr_out};
use crate::request::Request;

/// The destination of replies: a connection, or a test double.
pub trait ReplySink: Send + Sync {
    /// Sends one whole message, header first, in pieces. `unique` is the request that it answers.
    fn send(&self, unique: u64, message: &[IoSlice<'_>]);

    /// Records that the request is answered later. Until then the sink may answer it itself, see
    /// [`ReplySink::claim`].
    fn defer(&self, request: &Request<'_>) {
        let _ = request;
    }

    /// Claims a deferred request, which is about to be answered. False: the sink has answered it, the reply
    /// is to be dropped.
    fn claim(&self, unique: u64) -> bool {
        let _ = unique;
        true
    }

    /// Whether replies still reach the kernel. False: another server will send them.
    fn reaches(&self) -> bool {
        true
    }

    /// Whether a deferred request still waits: not answered, nor given up.
    fn waits(&self, unique: u64) -> bool {
        let _ = unique;
        true
    }

    /// Records that the deferred request was answered.
    fn settle(&self, unique: u64) {
        let _ = unique;
    }
}

/// The reply to one request, sent exactly once. Dropped unsent, it answers EIO.
pub struct Reply {
    unique: u64,
    deferred: bool,
    /// `None` once answered.
    sink: Option<Arc<dyn ReplySink>>,
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply")
            .field("unique", &self.unique)
            .finish_non_exhaustive()
    }
}

impl Reply {
    /// Creates the reply to request `unique`, which goes to `sink`.
    #[must_use]
    pub fn new(unique: u64, sink: Arc<dyn ReplySink>) -> Self {
        Self {
            unique,
            deferred: false,
            sink: Some(sink),
        }
    }

    /// Marks the reply as sent later, from another thread. Until then the request can be given up if its
    /// caller is killed; the reply is then dropped. `request` is the request that this answers: it is
    /// recorded for the next server, in case this one dies.
    #[must_use]
    pub fn defer(mut self, request: &Request<'_>) -> Self {
        if let Some(sink) = self.sink.as_ref().filter(|_| !self.deferred) {
            sink.defer(request);
            self.deferred = true;
        }
        self
    }

    /// Whether the reply still reaches the kernel. False: the connection was left to another server, which
    /// answers instead.
    #[must_use]
    pub fn reaches(&self) -> bool {
        self.sink.as_ref().is_some_and(|sink| sink.reaches())
    }

    /// Whether the caller still waits for the reply. False: it was killed.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.sink
            .as_ref()
            .is_some_and(|sink| sink.waits(self.unique))
    }

    /// Returns a check of [`Reply::is_wanted`] that may outlive the reply.
    pub fn watch(&self) -> impl Fn() -> bool + Send + Sync + 'static {
        let (sink, unique) = (self.sink.as_ref().map(Arc::downgrade), self.unique);
        move || {
            let sink = sink.as_ref().and_then(std::sync::Weak::upgrade);
            sink.is_some_and(|sink| sink.waits(unique))
        }
    }

    /// Answers with an error.
    pub fn error(mut self, errno: Errno) {
        self.send(errno.raw_os_error(), &[]);
    }

    /// Answers with success and no content.
    pub fn ok(mut self) {
        self.send(0, &[]);
    }

    /// Answers with bytes: content, a link's target, an attribute's value.
    pub fn data(mut self, bytes: &[u8]) {
        self.send(0, bytes);
    }

    /// Answers LOOKUP.
    pub fn entry(mut self, entry: &Entry) {
        self.send(0, entry.wire().as_bytes());
    }

    /// Answers GETATTR.
    pub fn attr(mut self, attr: &Attr, ttl: Duration) {
        self.send(0, attr_out(attr, ttl).as_bytes());
    }

    /// Answers OPEN and OPENDIR with a handle and [`crate::open_flags`].
    pub fn opened(mut self, fh: u64, open_flags: u32) {
        let answer = OpenOut {
            fh,
            open_flags,
            backing_id: 0,
        };
        self.send(0, answer.as_bytes());
    }

    /// Answers READDIR and READDIRPLUS.
    pub fn directory(mut self, entries: &DirBuffer) {
        self.send(0, entries.as_bytes());
    }

    /// Answers STATFS.
    pub fn statfs(mut self, statfs: &StatFs) {
        self.send(0, statfs.wire().as_bytes());
    }

    /// Answers GETXATTR and LISTXATTR: the length if `room` is 0, ERANGE if `value` does not fit
    /// in it, else the value.
    pub fn xattr(mut self, value: &[u8], room: u32) {
        match u32::try_from(value.len()) {
            Ok(size) if room == 0 => self.send(0, XattrSize { size, padding: 0 }.as_bytes()),
            Ok(size) if size <= room => self.send(0, value),
            _ => self.send(Errno::RANGE.raw_os_error(), &[]),
        }
    }

    fn send(&mut self, errno: i32, body: &[u8]) {
        let Some(sink) = self.sink.take() else {
            return;
        };
        if self.deferred && !sink.claim(self.unique) {
            return;
        }
        let header = OutHeader {
            len: u32::try_from(size_of::<OutHeader>() + body.len()).unwrap_or(u32::MAX),
            error: -errno,
            unique: self.unique,
        };
        let header = IoSlice::new(header.as_bytes());
        if body.is_empty() {
            sink.send(self.unique, &[header]);
        } else {
            sink.send(self.unique, &[header, IoSlice::new(body)]);
        }
        if self.deferred {
            sink.settle(self.unique);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if self.sink.is_some() {
            self.send(Errno::IO.raw_os_error(), &[]);
        }
    }
}
