//! A fixed number of threads that serve all connections.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::abi::UNIQUE_RESEND;
use crate::connection::{Connection, ConnectionFacts};
use crate::error::FuseError;
use crate::file_system::FileSystem;
use crate::journal::{Interrupted, Journal, SLOTS};
use crate::reply::ReplySink as _;
use crate::request::Request;
use crate::session::{PoolShared, Session};
use crate::worker;

/// How long the requests that are being handled may take when the pool ends.
const LAST_REQUESTS: Duration = Duration::from_secs(1);

/// The worker threads. Clones are the same pool; it ends with [`Pool::shutdown`] or its last clone.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Threads>,
}

struct Threads {
    shared: Arc<PoolShared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}

impl Pool {
    /// Starts `threads` threads (at least one, at most 16), which record what is in flight in
    /// `journal`.
    ///
    /// # Errors
    /// If the system has no more threads or descriptors.
    pub fn new(threads: usize, journal: Arc<Journal>) -> Result<Self, FuseError> {
        let slots = (0..threads.clamp(1, SLOTS)).filter_map(|number| journal.slot(number));
        let slots: Vec<_> = slots.collect();
        let shared = PoolShared::new(journal).map_err(|errno| FuseError::Pool(errno.into()))?;
        let pool = Self {
            inner: Arc::new(Threads {
                shared: Arc::new(shared),
                threads: Mutex::default(),
            }),
        };
        let interrupts = pool.inner.shared.interrupts.clone();
        pool.spawn("fuse-interrupts", move || interrupts.run())?;
        for (number, mut slot) in slots.into_iter().enumerate() {
            let shared = pool.inner.shared.clone();
            let run = move || worker::run(&shared, &mut slot);
            pool.spawn(&format!("fuse-{number}"), run)?;
        }
        Ok(pool)
    }

    fn spawn(&self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), FuseError> {
        let thread = std::thread::Builder::new().name(name.to_owned());
        let handle = thread.spawn(run).map_err(FuseError::Pool)?;
        self.inner.threads.lock().push(handle);
        Ok(())
    }

    /// Serves a new connection until it is unmounted or [`Served::release`]d.
    ///
    /// # Errors
    /// If the descriptor cannot be watched. It is closed then, which ends the connection unless
    /// another process holds it.
    pub fn serve(
        &self,
        connection: Connection,
        file_system: Arc<dyn FileSystem>,
    ) -> Result<Served, FuseError> {
        let session = self
            .inner
            .shared
            .new_session(connection, file_system, false);
        self.watch(session)
    }

    /// Resumes a connection that another server left, beginning with the requests that it left unanswered.
    /// Requests during which servers died repeatedly are answered EIO, and so are those of which only the id
    /// was recorded, unless the kernel sends them again.
    ///
    /// # Errors
    /// As [`Pool::serve`].
    pub fn adopt(
        &self,
        connection: Connection,
        file_system: Arc<dyn FileSystem>,
    ) -> Result<Served, FuseError> {
        let shared = &self.inner.shared;
        let session = shared.new_session(connection, file_system, true);
        let channel = &session.channel;
        let interrupted = shared.journal.interrupted(channel.facts.key);
        let (fatal, unanswered): (Vec<_>, Vec<_>) = interrupted
            .into_iter()
            .partition(|request| request.strikes.are_too_many());
        for request in &fatal {
            refuse(&session, request);
        }
        let resent = channel.facts.negotiated.can_resend() && channel.resend();
        if resent {
            shared.journal.asked_again(channel.facts.key);
        }
        let unrecorded = shared.journal.left_unrecorded(channel.facts.key);
        let served = self.watch(session.clone())?;
        if !resent {
            answer_unrecorded(&session, &unrecorded);
            for request in unanswered {
                worker::serve_again(&session, &request.bytes);
            }
        }
        Ok(served)
    }

    fn watch(&self, session: Arc<Session>) -> Result<Served, FuseError> {
        self.inner.shared.watch(&session)?;
        Ok(Served {
            shared: self.inner.shared.clone(),
            session,
        })
    }

    /// Registers a callback that runs when a connection ends: unmounted everywhere, aborted, or given up
    /// because its requests cannot be read. In the last case readers wait until every other descriptor of
    /// it is closed, too.
    ///
    /// A worker runs it, perhaps more than once for a connection, and serves no request until it returns.
    /// Only the first callback counts.
    pub fn on_end(&self, callback: impl Fn(&ConnectionFacts) + Send + Sync + 'static) {
        self.inner.shared.set_end_callback(Box::new(callback));
    }

    /// Number of connections that are served now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.inner.shared.connections()
    }

    /// Ends the threads, each after the request that it is handling, and closes the descriptors. Requests
    /// that are not answered by then stay in the journal, which this process does not use any longer.
    /// Connections that no other process holds end: their mounts answer "transport endpoint is not
    /// connected" until unmounted.
    pub fn shutdown(&self) {
        self.inner.shutdown();
    }
}

impl Threads {
    fn shutdown(&self) {
        self.shared.stop_threads();
        let deadline = Instant::now() + LAST_REQUESTS;
        for thread in self.threads.lock().drain(..) {
            // The last clone may be dropped by a worker, through a file system that it served.
            if thread.thread().id() == std::thread::current().id() {
                continue;
            }
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_micros(200));
            }
            if thread.is_finished() {
                let _ = thread.join();
            } else {
                let limit = LAST_REQUESTS.as_secs();
                tracing::warn!("FUSE thread did not stop within {limit} s; detaching it");
            }
        }
        self.shared.close();
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// Answers a request that no server survives.
fn refuse(session: &Session, request: &Interrupted) {
    let channel = &session.channel;
    let Ok(parsed) = Request::parse(&request.bytes) else {
        return;
    };
    tracing::error!(
        mountpoint = %channel.facts.mountpoint.display(),
        content = %channel.facts.content.name,
        operation = ?parsed.operation,
        node = parsed.node,
        crashes = request.strikes.crashes,
        kills = request.strikes.kills,
        "a FUSE request was in flight whenever a server died; answering EIO"
    );
    worker::answer_error(channel, parsed.unique, rustix::io::Errno::IO);
    // The kernel may have marked it since as one that was sent again.
    worker::answer_error(
        channel,
        parsed.unique | UNIQUE_RESEND,
        rustix::io::Errno::IO,
    );
    channel.settle(parsed.unique);
}

/// Answers requests of which nothing is known but their ids.
fn answer_unrecorded(session: &Session, ids: &[u64]) {
    if ids.is_empty() {
        return;
    }
    let channel = &session.channel;
    tracing::error!(
        mountpoint = %channel.facts.mountpoint.display(),
        requests = ids.len(),
        "a server died while more requests waited than the journal has room for; answering EIO"
    );
    for &unique in ids {
        worker::answer_error(channel, unique, rustix::io::Errno::IO);
        channel.settle(unique);
    }
}

/// A connection that is being served. Dropping it changes nothing: the mount stays served.
#[derive(Clone)]
pub struct Served {
    shared: Arc<PoolShared>,
    session: Arc<Session>,
}

/// A connection that may be served, which this keeps neither alive nor in memory.
#[derive(Clone)]
pub struct WeakServed {
    shared: Weak<PoolShared>,
    session: Weak<Session>,
}

impl fmt::Debug for WeakServed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.upgrade().fmt(f)
    }
}

impl WeakServed {
    /// The connection, unless it is gone.
    #[must_use]
    pub fn upgrade(&self) -> Option<Served> {
        Some(Served {
            shared: self.shared.upgrade()?,
            session: self.session.upgrade()?,
        })
    }
}

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Served")
            .field("facts", self.facts())
            .field("ended", &self.has_ended())
            .finish()
    }
}

impl Served {
    /// The same connection, without a part in keeping it.
    #[must_use]
    pub fn downgrade(&self) -> WeakServed {
        WeakServed {
            shared: Arc::downgrade(&self.shared),
            session: Arc::downgrade(&self.session),
        }
    }

    /// The connection's facts.
    #[must_use]
    pub fn facts(&self) -> &ConnectionFacts {
        &self.session.channel.facts
    }

    /// Another descriptor of the connection, for a holder; `None` once it has ended.
    ///
    /// # Errors
    /// If this process has too many open files.
    pub fn duplicate(&self) -> std::io::Result<Option<OwnedFd>> {
        let duplicate = self.session.channel.with_device(OwnedFd::try_clone);
        duplicate.transpose()
    }

    /// Whether the file system was unmounted everywhere, or released.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.session.has_ended()
    }

    /// Waits until it has ended; false if it has not within `limit`.
    #[must_use]
    pub fn wait_ended(&self, limit: Duration) -> bool {
        self.session.wait_ended(limit)
    }

    /// Stops serving and closes the descriptor. If no other process holds it the connection is aborted:
    /// requests that wait fail immediately, and so does every later use of the mount.
    pub fn release(&self) {
        self.shared.forget(&self.session);
    }
}
