//! A fixed number of threads that serve all connections.

use std::collections::HashMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use crate::abi::UNIQUE_RESEND;
use crate::connection::{Channel, Connection, ConnectionFacts};
use crate::error::FuseError;
use crate::file_system::FileSystem;
use crate::journal::{Interrupted, Journal, SLOTS};
use crate::reply::ReplySink as _;
use crate::request::Request;
use crate::worker;

/// How long the requests that are being handled may take when the pool ends.
const LAST_REQUESTS: Duration = Duration::from_secs(1);

/// The key of the descriptor that ends the workers.
pub(crate) const STOP: u64 = 0;

/// A connection, who answers for it, and whether it has ended.
pub(crate) struct Station {
    pub(crate) id: u64,
    pub(crate) channel: Arc<Channel>,
    pub(crate) file_system: Arc<dyn FileSystem>,
    ended: Mutex<bool>,
    end: Condvar,
}

/// What the workers share.
pub(crate) struct Hub {
    pub(crate) epoll: OwnedFd,
    stop: OwnedFd,
    /// The workers take no further request.
    stopping: AtomicBool,
    next_id: AtomicU64,
    stations: RwLock<HashMap<u64, Arc<Station>>>,
    journal: Arc<Journal>,
    on_end: OnceLock<Box<TellEnd>>,
}

type TellEnd = dyn Fn(&ConnectionFacts) + Send + Sync;

/// The threads. Clones are the same pool; it ends with [`Pool::shutdown`] or its last clone.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Threads>,
}

struct Threads {
    hub: Arc<Hub>,
    workers: Mutex<Vec<JoinHandle<()>>>,
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
        let system = |errno: Errno| FuseError::Pool(errno.into());
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(system)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(system)?;
        // Level-triggered and never read: every worker sees it.
        epoll::add(&epoll, &stop, EventData::new_u64(STOP), EventFlags::IN).map_err(system)?;
        let slots = (0..threads.clamp(1, SLOTS)).filter_map(|number| journal.slot(number));
        let slots: Vec<_> = slots.collect();
        let hub = Arc::new(Hub {
            epoll,
            stop,
            stopping: AtomicBool::new(false),
            next_id: AtomicU64::new(STOP + 1),
            stations: RwLock::default(),
            journal,
            on_end: OnceLock::new(),
        });
        let pool = Self {
            inner: Arc::new(Threads {
                hub: hub.clone(),
                workers: Mutex::default(),
            }),
        };
        for (number, mut slot) in slots.into_iter().enumerate() {
            let hub = hub.clone();
            let handle = std::thread::Builder::new()
                .name(format!("fuse-{number}"))
                .spawn(move || worker::run(&hub, &mut slot))
                .map_err(FuseError::Pool)?;
            pool.inner.workers.lock().push(handle);
        }
        Ok(pool)
    }

    /// Serves a new connection until it is unmounted or [`Served::release`]d.
    ///
    /// # Errors
    /// If the descriptor cannot be watched. It is closed then, which ends the connection unless
    /// somebody else holds it.
    pub fn serve(
        &self,
        connection: Connection,
        file_system: Arc<dyn FileSystem>,
    ) -> Result<Served, FuseError> {
        let station = self.station(connection, file_system);
        self.watch(station)
    }

    /// Goes on serving a connection that another server left, beginning with what it left unanswered.
    /// Requests during which servers died again and again are answered EIO.
    ///
    /// # Errors
    /// As [`Pool::serve`].
    pub fn take_up(
        &self,
        connection: Connection,
        file_system: Arc<dyn FileSystem>,
    ) -> Result<Served, FuseError> {
        let station = self.station(connection, file_system);
        let channel = &station.channel;
        let interrupted = self.inner.hub.journal.interrupted(channel.facts.key);
        let (fatal, unanswered): (Vec<_>, Vec<_>) = interrupted
            .into_iter()
            .partition(|request| request.deaths.too_many());
        for request in &fatal {
            refuse(&station, request);
        }
        let resent = channel.facts.negotiated.can_resend() && channel.resend();
        if resent {
            self.inner.hub.journal.asked_again(channel.facts.key);
        }
        let served = self.watch(station.clone())?;
        if !resent {
            for request in unanswered {
                worker::serve_again(&station, &request.bytes);
            }
        }
        Ok(served)
    }

    fn station(&self, connection: Connection, file_system: Arc<dyn FileSystem>) -> Arc<Station> {
        let hub = &self.inner.hub;
        let id = hub.next_id.fetch_add(1, Ordering::Relaxed);
        Arc::new(Station {
            id,
            channel: Arc::new(Channel::new(connection, hub.journal.clone())),
            file_system,
            ended: Mutex::new(false),
            end: Condvar::new(),
        })
    }

    fn watch(&self, station: Arc<Station>) -> Result<Served, FuseError> {
        let hub = &self.inner.hub;
        let id = station.id;
        hub.stations.write().insert(id, station.clone());
        let watched = station.channel.with_device(|device| {
            epoll::add(&hub.epoll, device, EventData::new_u64(id), watch_flags())
        });
        if let Some(Err(source)) = watched {
            hub.forget(&station);
            return Err(FuseError::Serve {
                mountpoint: station.channel.facts.mountpoint.clone(),
                source,
            });
        }
        Ok(Served {
            hub: hub.clone(),
            station,
        })
    }

    /// Has `tell` called when a connection has ended: unmounted everywhere, aborted, or given up because its
    /// requests cannot be read. In the last case readers wait until whoever has another descriptor of it
    /// closes that. A worker calls, which serves nobody meanwhile; perhaps more than once for a connection.
    /// Only the first `tell` counts.
    pub fn on_end(&self, tell: impl Fn(&ConnectionFacts) + Send + Sync + 'static) {
        let _ = self.inner.hub.on_end.set(Box::new(tell));
    }

    /// How many connections are served now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.inner.hub.stations.read().len()
    }

    /// Ends the threads, each after the request that it is handling, and closes the descriptors. What is
    /// not answered by then stays in the journal. Connections that nobody else holds end: their mounts
    /// answer "transport endpoint is not connected" until unmounted.
    pub fn shutdown(&self) {
        self.inner.shutdown();
    }
}

impl Threads {
    fn shutdown(&self) {
        self.hub.stopping.store(true, Ordering::Release);
        let _ = rustix::io::write(&self.hub.stop, &1_u64.to_ne_bytes());
        let deadline = Instant::now() + LAST_REQUESTS;
        for worker in self.workers.lock().drain(..) {
            // The last clone may be dropped by a worker, through a file system that it served.
            if worker.thread().id() == std::thread::current().id() {
                continue;
            }
            while !worker.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_micros(200));
            }
            if worker.is_finished() {
                let _ = worker.join();
            } else {
                tracing::warn!("a thread that serves file systems does not end: it is left behind");
            }
        }
        let stations: Vec<_> = self.hub.stations.read().values().cloned().collect();
        for station in stations {
            self.hub.forget(&station);
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// Answers a request that no server survives.
fn refuse(station: &Station, request: &Interrupted) {
    let channel = &station.channel;
    let Ok(parsed) = Request::parse(&request.bytes) else {
        return;
    };
    tracing::error!(
        mountpoint = %channel.facts.mountpoint.display(),
        content = %channel.facts.content.name,
        operation = ?parsed.operation,
        node = parsed.node,
        crashes = request.deaths.crashes,
        kills = request.deaths.kills,
        "a FUSE request was in flight whenever a server died; it is answered EIO"
    );
    worker::answer_error(channel, parsed.unique, Errno::IO);
    // The kernel may have marked it since as one that was sent again.
    worker::answer_error(channel, parsed.unique | UNIQUE_RESEND, Errno::IO);
    channel.settle(parsed.unique);
}

/// Edge-triggered: each new request wakes one worker, which reads until there is none.
pub(crate) fn watch_flags() -> EventFlags {
    EventFlags::IN | EventFlags::ET
}

impl Hub {
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub(crate) fn station(&self, id: u64) -> Option<Arc<Station>> {
        self.stations.read().get(&id).cloned()
    }

    /// Answers EINTR to requests whose callers were killed; whether more of them may come.
    pub(crate) fn give_up_abandoned(&self) {
        for station in self.interrupted() {
            for unique in station.channel.waiting().abandoned() {
                worker::give_up(&station.channel, unique);
            }
        }
    }

    /// The connections with interrupted requests.
    pub(crate) fn interrupted(&self) -> Vec<Arc<Station>> {
        let stations = self.stations.read();
        let waiting = |station: &&Arc<Station>| station.channel.waiting().has_interrupted();
        stations.values().filter(waiting).cloned().collect()
    }

    /// Stops serving a connection that nobody can serve any more.
    pub(crate) fn end(&self, station: &Station) {
        let facts = &station.channel.facts;
        self.journal.forget_connection(facts.key);
        self.forget(station);
        if let Some(tell) = self.on_end.get() {
            tell(facts);
        }
    }

    /// Stops serving a connection and closes its descriptor.
    pub(crate) fn forget(&self, station: &Station) {
        self.stations.write().remove(&station.id);
        if let Some(device) = station.channel.close() {
            // A duplicate elsewhere would keep the epoll entry alive.
            let _ = epoll::delete(&self.epoll, &device);
        }
        *station.ended.lock() = true;
        station.end.notify_all();
    }
}

/// A connection that is being served. Dropping it changes nothing: the mount goes on.
#[derive(Clone)]
pub struct Served {
    hub: Arc<Hub>,
    station: Arc<Station>,
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
    /// The connection's facts.
    #[must_use]
    pub fn facts(&self) -> &ConnectionFacts {
        &self.station.channel.facts
    }

    /// Another descriptor of the connection, for a holder; `None` once it has ended.
    ///
    /// # Errors
    /// If this process has too many open files.
    pub fn duplicate(&self) -> std::io::Result<Option<OwnedFd>> {
        let duplicate = self.station.channel.with_device(OwnedFd::try_clone);
        duplicate.transpose()
    }

    /// Whether the file system was unmounted everywhere, or released.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        *self.station.ended.lock()
    }

    /// Waits until it has ended; false if it has not within `limit`.
    #[must_use]
    pub fn wait_ended(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut ended = self.station.ended.lock();
        while !*ended {
            if self
                .station
                .end
                .wait_until(&mut ended, deadline)
                .timed_out()
            {
                return *ended;
            }
        }
        true
    }

    /// Stops serving and closes the descriptor. If nobody else holds it the connection is aborted:
    /// everybody who waits gets an error at once, and so does every later use of the mount.
    pub fn release(&self) {
        self.hub.forget(&self.station);
    }
}
