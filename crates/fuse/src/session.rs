//! The connections that a pool serves, and what its workers share.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use crate::connection::{Channel, Connection, ConnectionFacts};
use crate::error::FuseError;
use crate::file_system::FileSystem;
use crate::interrupts::Interrupts;
use crate::journal::Journal;

/// The epoll key of the descriptor that ends the workers.
pub(crate) const STOP: u64 = 0;

/// A connection with the file system that answers its requests, until it ends.
pub(crate) struct Session {
    /// Its epoll key.
    pub(crate) id: u64,
    pub(crate) channel: Arc<Channel>,
    pub(crate) file_system: Arc<dyn FileSystem>,
    ended: Mutex<bool>,
    end: Condvar,
}

impl Session {
    pub(crate) fn has_ended(&self) -> bool {
        *self.ended.lock()
    }

    /// Waits until it has ended; false if it has not within `limit`.
    pub(crate) fn wait_ended(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut ended = self.ended.lock();
        while !*ended {
            if self.end.wait_until(&mut ended, deadline).timed_out() {
                return *ended;
            }
        }
        true
    }
}

/// What the workers and the handles of a pool share.
pub(crate) struct PoolShared {
    pub(crate) epoll: OwnedFd,
    stop: OwnedFd,
    /// The workers take no further request.
    stopping: AtomicBool,
    next_id: AtomicU64,
    sessions: RwLock<HashMap<u64, Arc<Session>>>,
    pub(crate) interrupts: Arc<Interrupts>,
    pub(crate) journal: Arc<Journal>,
    on_end: OnceLock<Box<EndCallback>>,
}

pub(crate) type EndCallback = dyn Fn(&ConnectionFacts) + Send + Sync;

/// Edge-triggered: each new request wakes one worker, which reads until there is none.
pub(crate) fn watch_flags() -> EventFlags {
    EventFlags::IN | EventFlags::ET
}

impl PoolShared {
    pub(crate) fn new(journal: Arc<Journal>) -> Result<Self, Errno> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        // Level-triggered and never read: every worker sees it.
        epoll::add(&epoll, &stop, EventData::new_u64(STOP), EventFlags::IN)?;
        Ok(Self {
            epoll,
            stop,
            stopping: AtomicBool::new(false),
            next_id: AtomicU64::new(STOP + 1),
            sessions: RwLock::default(),
            interrupts: Arc::default(),
            journal,
            on_end: OnceLock::new(),
        })
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Ends the threads after the request that they are handling.
    pub(crate) fn stop_threads(&self) {
        self.interrupts.stop();
        self.stopping.store(true, Ordering::Release);
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
    }

    /// Closes all connections. Neither they nor the journal are used by this process afterwards.
    pub(crate) fn close(&self) {
        for session in self.all() {
            self.forget(&session);
        }
        self.journal.retire();
    }

    /// Sets the callback of [`PoolShared::end`], unless there is one.
    pub(crate) fn set_end_callback(&self, callback: Box<EndCallback>) {
        let _ = self.on_end.set(callback);
    }

    pub(crate) fn connections(&self) -> usize {
        self.sessions.read().len()
    }

    pub(crate) fn session(&self, id: u64) -> Option<Arc<Session>> {
        self.sessions.read().get(&id).cloned()
    }

    fn all(&self) -> Vec<Arc<Session>> {
        self.sessions.read().values().cloned().collect()
    }

    /// A session that is not served yet; `adopted` from another server, or new.
    pub(crate) fn new_session(
        &self,
        connection: Connection,
        file_system: Arc<dyn FileSystem>,
        adopted: bool,
    ) -> Arc<Session> {
        let journal = self.journal.clone();
        Arc::new(Session {
            id: self.next_id.fetch_add(1, Ordering::Relaxed),
            channel: Arc::new(Channel::new(connection, journal, adopted)),
            file_system,
            ended: Mutex::new(false),
            end: Condvar::new(),
        })
    }

    /// Starts to serve a session with the workers.
    pub(crate) fn watch(&self, session: &Arc<Session>) -> Result<(), FuseError> {
        let id = session.id;
        self.sessions.write().insert(id, session.clone());
        let watched = session.channel.with_device(|device| {
            epoll::add(&self.epoll, device, EventData::new_u64(id), watch_flags())
        });
        if let Some(Err(source)) = watched {
            self.forget(session);
            return Err(FuseError::Serve {
                mountpoint: session.channel.facts.mountpoint.clone(),
                source,
            });
        }
        Ok(())
    }

    /// Stops serving a connection that no server can serve any longer.
    pub(crate) fn end(&self, session: &Session) {
        let facts = &session.channel.facts;
        self.journal.forget_connection(facts.key);
        self.forget(session);
        if let Some(callback) = self.on_end.get() {
            callback(facts);
        }
    }

    /// Stops serving a connection and closes its descriptor.
    pub(crate) fn forget(&self, session: &Session) {
        self.sessions.write().remove(&session.id);
        if let Some(device) = session.channel.close() {
            // A duplicate elsewhere would keep the epoll entry alive.
            let _ = epoll::delete(&self.epoll, &device);
        }
        *session.ended.lock() = true;
        session.end.notify_all();
    }
}
