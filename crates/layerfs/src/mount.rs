//! Mounts of layers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use soci_fetch::LayerData;
use soci_fuse::{
    Connection, ConnectionFacts, ContentIdentity, Pool, Served, SessionLimits, WeakServed,
};
use soci_oci::Digest;

use crate::counters::{CounterSnapshot, Counters};
use crate::file_watch::FileWatch;
use crate::layer_fs::{CacheTimes, LayerFs};
use crate::own_reads::OwnReads;
use crate::timers::Timers;
use crate::tree::{NUMBERING_VERSION, Tree};
use crate::tree_view::TreeView;

/// Why a layer cannot be mounted or unmounted.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct MountError(#[from] soci_fuse::FuseError);

/// Why a live connection cannot be adopted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdoptError {
    /// It shows other content: known inode numbers would mean other files.
    #[error(
        "the connection of {} shows {found:?}, and this server would show {expected:?}",
        mountpoint.display()
    )]
    OtherContent {
        /// Where it is mounted.
        mountpoint: PathBuf,
        /// What this server would show.
        expected: Box<ContentIdentity>,
        /// What the connection shows.
        found: Box<ContentIdentity>,
    },
    /// It cannot be watched.
    #[error(transparent)]
    Fuse(#[from] soci_fuse::FuseError),
}

/// Readahead of a mount in KiB, unless its options say otherwise.
pub const READAHEAD_KIB: u32 = 4096;

/// How a layer is mounted.
#[derive(Debug, Clone)]
pub struct LayerMountOptions {
    /// How long the kernel must at least be able to cache attributes. A layer never changes, so
    /// that longer ([`CacheTimes::FOREVER`]) is used; zero turns caching off.
    pub attr_timeout: Duration,
    /// The same for names that exist.
    pub entry_timeout: Duration,
    /// The same for names that do not exist.
    pub negative_timeout: Duration,
    /// Readahead of the mount in KiB.
    pub readahead_kib: u32,
    /// A path on the file system that STATFS reports; `None`: the parent of the mount point.
    pub backing: Option<PathBuf>,
    /// Limits asked of the kernel.
    pub limits: SessionLimits,
    /// The timers of reads and listings.
    pub timers: Timers,
    /// Answer requests for one extended attribute even if no file of the layer has any.
    /// Otherwise the first request gets ENOSYS: the kernel sends no more, and programs get
    /// EOPNOTSUPP. Lists of attributes are answered in any case.
    pub answer_xattrs: bool,
    /// Compare a file's tar header with its entry in the zTOC at the first read.
    pub check_headers: bool,
    /// Log every operation, level debug. Shows names of files.
    pub log_operations: bool,
    /// The watchers of the layer's files.
    pub watch: Arc<FileWatch>,
    /// The process of the daemon whose reads are not those of a container.
    pub own_reads: Option<OwnReads>,
}

impl Default for LayerMountOptions {
    fn default() -> Self {
        Self {
            attr_timeout: CacheTimes::FOREVER.attr,
            entry_timeout: CacheTimes::FOREVER.entry,
            negative_timeout: CacheTimes::FOREVER.negative,
            readahead_kib: READAHEAD_KIB,
            backing: None,
            limits: SessionLimits::default(),
            timers: Timers::default(),
            answer_xattrs: false,
            check_headers: true,
            log_operations: false,
            watch: Arc::default(),
            own_reads: None,
        }
    }
}

impl LayerMountOptions {
    fn cache_times(&self) -> CacheTimes {
        let at_least = |least: Duration, forever: Duration| match least {
            Duration::ZERO => Duration::ZERO,
            _ => least.max(forever),
        };
        CacheTimes {
            attr: at_least(self.attr_timeout, CacheTimes::FOREVER.attr),
            entry: at_least(self.entry_timeout, CacheTimes::FOREVER.entry),
            negative: at_least(self.negative_timeout, CacheTimes::FOREVER.negative),
        }
    }
}

/// A mounted layer. Dropping it does not unmount: the mount is served while its pool lives.
#[derive(Debug, Clone)]
pub struct MountedLayer {
    served: Served,
    counters: Arc<Counters>,
}

/// A mounted layer, of which this keeps nothing.
#[derive(Debug, Clone)]
pub struct WeakMountedLayer {
    served: WeakServed,
    counters: Arc<Counters>,
}

impl WeakMountedLayer {
    /// The layer, unless it is gone.
    #[must_use]
    pub fn upgrade(&self) -> Option<MountedLayer> {
        Some(MountedLayer {
            served: self.served.upgrade()?,
            counters: Arc::clone(&self.counters),
        })
    }
}

/// Mounts a layer and begins to serve it.
///
/// # Errors
/// If it cannot be mounted. Nothing stays mounted then.
pub fn mount_layer(
    pool: &Pool,
    view: impl Into<TreeView>,
    data: Arc<dyn LayerData>,
    mountpoint: &Path,
    options: LayerMountOptions,
) -> Result<MountedLayer, MountError> {
    let view = view.into();
    let connection = soci_fuse::mount(
        mountpoint,
        &soci_fuse::MountOptions {
            limits: options.limits,
            readahead_kib: Some(options.readahead_kib),
            content: identity(&view, data.as_ref()),
        },
    )?;
    let (file_system, counters) = file_system(view, data, connection.facts(), options);
    let served = pool.serve(connection, file_system).inspect_err(|_| {
        let _ = soci_fuse::unmount(mountpoint);
    })?;
    Ok(MountedLayer { served, counters })
}

/// Adopts a layer's connection that another process opened, and serves it.
///
/// # Errors
/// The connection shows other content than this layer with these inode numbers (its descriptor is
/// closed then, and the connection lives where else it is held), or cannot be watched.
pub fn adopt_layer(
    pool: &Pool,
    view: impl Into<TreeView>,
    data: Arc<dyn LayerData>,
    connection: Connection,
    options: LayerMountOptions,
) -> Result<MountedLayer, AdoptError> {
    let view = view.into();
    let expected = identity(&view, data.as_ref());
    let facts = connection.facts();
    if facts.content != expected {
        return Err(AdoptError::OtherContent {
            mountpoint: facts.mountpoint.clone(),
            expected: Box::new(expected),
            found: Box::new(facts.content.clone()),
        });
    }
    let readahead_kib = options.readahead_kib;
    let (file_system, counters) = file_system(view, data, facts, options);
    let served = pool.adopt(connection, file_system)?;
    // The process before this one may have lowered it for a start. No reader waits for this.
    soci_fuse::set_readahead(served.facts(), readahead_kib);
    Ok(MountedLayer { served, counters })
}

fn identity(view: &TreeView, data: &dyn LayerData) -> ContentIdentity {
    content_identity(view.tree(), &data.status().digest)
}

/// Identity of the content that a mount of the layer shows.
#[must_use]
pub fn content_identity(tree: &Tree, layer: &Digest) -> ContentIdentity {
    ContentIdentity {
        name: layer.to_string(),
        numbering_version: NUMBERING_VERSION,
        numbering_checksum: tree.numbering_checksum().to_string(),
    }
}

fn file_system(
    view: TreeView,
    data: Arc<dyn LayerData>,
    facts: &ConnectionFacts,
    options: LayerMountOptions,
) -> (Arc<LayerFs>, Arc<Counters>) {
    let times = options.cache_times();
    let mountpoint = &facts.mountpoint;
    let backing = options.backing.unwrap_or_else(|| {
        let parent = mountpoint.parent().unwrap_or(mountpoint);
        parent.to_owned()
    });
    let file_system = LayerFs::new(view, data, times, backing, &facts.negotiated)
        .with_timers(options.timers)
        .with_answered_xattrs(options.answer_xattrs)
        .with_header_checks(options.check_headers)
        .with_operation_log(options.log_operations)
        .with_watch(options.watch)
        .with_own_reads(options.own_reads);
    let counters = file_system.counters().clone();
    (Arc::new(file_system), counters)
}

impl MountedLayer {
    /// The mount point.
    #[must_use]
    pub fn mountpoint(&self) -> &Path {
        &self.facts().mountpoint
    }

    /// What the next server of this connection must know.
    #[must_use]
    pub fn facts(&self) -> &ConnectionFacts {
        self.served.facts()
    }

    /// The connection, for a holder and for tests.
    #[must_use]
    pub const fn connection(&self) -> &Served {
        &self.served
    }

    /// Whether the mount is served: false once it is unmounted everywhere or its connection was aborted.
    #[must_use]
    pub fn is_served(&self) -> bool {
        !self.served.has_ended()
    }

    /// The same layer, without a part in keeping it.
    #[must_use]
    pub fn downgrade(&self) -> WeakMountedLayer {
        WeakMountedLayer {
            served: self.served.downgrade(),
            counters: Arc::clone(&self.counters),
        }
    }

    /// Counts of operations since it was mounted.
    #[must_use]
    pub fn counters(&self) -> CounterSnapshot {
        self.counters.snapshot()
    }

    /// Sets the kernel's readahead for files that are opened from now on, in KiB.
    pub fn set_readahead(&self, kib: u32) {
        if self.is_served() {
            soci_fuse::set_readahead(self.facts(), kib);
        }
    }

    /// Unmounts the layer. A mount in use is detached, and served until its last user is gone. Another
    /// call does nothing.
    ///
    /// # Errors
    /// If umount2(2) fails.
    pub fn unmount(&self) -> Result<(), MountError> {
        // Another mount may have taken the path since this one was unmounted.
        if !soci_fuse::is_mounted(self.facts()) {
            return Ok(());
        }
        Ok(soci_fuse::unmount(self.mountpoint())?)
    }

    /// Aborts the connection: pending and later requests get an error. The mount stays until
    /// [`MountedLayer::unmount`].
    pub fn abort(&self) {
        self.served.release();
    }
}
