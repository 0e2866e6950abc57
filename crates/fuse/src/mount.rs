//! Mounting and unmounting, and beginning a session (INIT). Nothing here accesses anything below a mount,
//! because that could wait for this process itself.

use std::ffi::CString;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use soci_mountinfo::Table;
use zerocopy::IntoBytes;

use crate::abi::OutHeader;
use crate::connection::{Connection, ConnectionFacts, ContentIdentity};
use crate::error::FuseError;
use crate::init::{Negotiated, SessionLimits, negotiate};
use crate::journal::SLOT_SIZE;
use crate::request::{Operation, Request};

/// mount(2) queues INIT before it returns, so this is never reached on a working kernel.
const INIT_WAIT: Duration = Duration::from_secs(10);

/// The type of our mounts.
pub(crate) const KIND: &str = "fuse.rawBridge";

/// The source of our mounts.
pub(crate) const SOURCE: &str = "soci";

/// Options of a mount.
#[derive(Debug, Clone, Default)]
pub struct MountOptions {
    /// Limits to request of the kernel.
    pub limits: SessionLimits,
    /// Readahead of the mount in KiB; `None` leaves the kernel's 128.
    pub readahead_kib: Option<u32>,
    /// The content.
    pub content: ContentIdentity,
}

/// Mounts a FUSE file system, source `soci`, type `fuse.rawBridge`: read-only, for all users,
/// permissions checked by the kernel, setuid and devices honoured. Negotiates the session; nothing
/// is served until a [`crate::Pool`] has the connection.
///
/// # Errors
/// If /dev/fuse, mount(2) or the negotiation fails. Nothing stays mounted then.
pub fn mount(mountpoint: &Path, options: &MountOptions) -> Result<Connection, FuseError> {
    let mountpoint = &as_in_mountinfo(mountpoint);
    let device = rustix::fs::open(
        "/dev/fuse",
        OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(FuseError::Device)?;
    attach(&device, mountpoint)?;
    let negotiated = begin(&device, mountpoint, &options.limits).inspect_err(|_| {
        let _ = unmount(mountpoint);
    })?;
    let facts = ConnectionFacts {
        mountpoint: mountpoint.to_owned(),
        negotiated,
        content: options.content.clone(),
        device: device_at(mountpoint),
        key: random_key(),
    };
    if let Some(kib) = options.readahead_kib {
        set_readahead(&facts, kib);
    }
    Ok(Connection::from_parts(device, facts))
}

fn random_key() -> u64 {
    let mut bytes = [0; 8];
    // Cannot fail once the machine has booted, nor fall short of so few bytes.
    if rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) != Ok(8) {
        tracing::warn!("getrandom failed; using the time as the key of a FUSE connection");
        let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        bytes = now
            .as_nanos()
            .to_ne_bytes()
            .first_chunk()
            .copied()
            .unwrap_or(bytes);
    }
    u64::from_ne_bytes(bytes)
}

fn attach(device: &OwnedFd, mountpoint: &Path) -> Result<(), FuseError> {
    let failed = |source| FuseError::Mount {
        mountpoint: mountpoint.to_owned(),
        source,
    };
    let data = CString::new(format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions",
        device.as_raw_fd()
    ))
    .map_err(|_| failed(Errno::INVAL))?;
    rustix::mount::mount(
        SOURCE,
        mountpoint,
        KIND,
        MountFlags::RDONLY,
        data.as_c_str(),
    )
    .map_err(failed)
}

/// Answers INIT: the first request of a new connection.
fn begin(
    device: &OwnedFd,
    mountpoint: &Path,
    limits: &SessionLimits,
) -> Result<Negotiated, FuseError> {
    let failed = |source| FuseError::Session {
        mountpoint: mountpoint.to_owned(),
        source,
    };
    let no_init = || FuseError::NoInit {
        mountpoint: mountpoint.to_owned(),
        waited: INIT_WAIT,
    };
    let mut buffer = vec![0; SLOT_SIZE];
    let deadline = Instant::now() + INIT_WAIT;
    let length = loop {
        match rustix::io::read(device, buffer.as_mut_slice()) {
            Ok(length) => break length,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(no_init());
                }
                let left = Timespec::try_from(left).map_err(|_| no_init())?;
                let mut watched = [PollFd::new(device, PollFlags::IN)];
                match poll(&mut watched, Some(&left)) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(errno) => return Err(failed(errno)),
                }
            }
            Err(errno) => return Err(failed(errno)),
        }
    };
    let request = buffer
        .get(..length)
        .and_then(|bytes| Request::parse(bytes).ok());
    let Some(Request {
        unique,
        operation: Operation::Init(offer),
        ..
    }) = request
    else {
        return Err(no_init());
    };
    let (answer, negotiated) = negotiate(&offer, limits)?;
    let body = answer.as_bytes();
    let header = OutHeader {
        len: u32::try_from(size_of::<OutHeader>() + body.len()).unwrap_or(u32::MAX),
        error: 0,
        unique,
    };
    let message = [IoSlice::new(header.as_bytes()), IoSlice::new(body)];
    rustix::io::writev(device.as_fd(), &message).map_err(failed)?;
    Ok(negotiated)
}

/// Returns the path as the kernel shows it in mountinfo. Only the parent directory is accessed: a mount on
/// the mount point itself may have no server.
#[must_use]
pub fn as_in_mountinfo(mountpoint: &Path) -> PathBuf {
    let resolved = mountpoint
        .parent()
        .zip(mountpoint.file_name())
        .and_then(|(parent, name)| Some(parent.canonicalize().ok()?.join(name)));
    resolved.unwrap_or_else(|| mountpoint.to_owned())
}

/// Whether the connection's mount is (still) the topmost one on its mount point.
#[must_use]
pub fn is_mounted(facts: &ConnectionFacts) -> bool {
    let device = device_at(&facts.mountpoint);
    device.is_some() && device == facts.device
}

/// Whether anything is mounted on exactly this path. The mount itself is not accessed: it may be dead.
#[must_use]
pub fn is_mount_point(path: &Path) -> bool {
    device_at(&as_in_mountinfo(path)).is_some()
}

/// Returns the device (`major:minor`) of the topmost mount on exactly this path. Accessing the mount itself
/// could wait for this process.
fn device_at(mountpoint: &Path) -> Option<String> {
    let table = Table::read().ok()?;
    Some(table.at(mountpoint)?.device.to_string())
}

/// Sets the readahead of a mount, in KiB. A failure is only logged: the mount works, more slowly.
pub fn set_readahead(facts: &ConnectionFacts, kib: u32) {
    let outcome = match &facts.device {
        Some(device) => {
            let path = format!("/sys/class/bdi/{device}/read_ahead_kb");
            std::fs::write(&path, kib.to_string()).map_err(|error| format!("{path}: {error}"))
        }
        None => Err("the mount is not in /proc/self/mountinfo".to_owned()),
    };
    if let Err(reason) = outcome {
        tracing::warn!(
            mountpoint = %facts.mountpoint.display(),
            reason,
            "cannot set the readahead of the mount"
        );
    }
}

/// Unmounts a file system. A mount in use disappears from the tree and is served until its last user is
/// gone. A path that is not mounted is not an error.
///
/// # Errors
/// If umount2(2) fails otherwise.
pub fn unmount(mountpoint: &Path) -> Result<(), FuseError> {
    let result = match rustix::mount::unmount(mountpoint, UnmountFlags::NOFOLLOW) {
        Err(Errno::BUSY) => {
            rustix::mount::unmount(mountpoint, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)
        }
        other => other,
    };
    match result {
        // EINVAL: not a mount point.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(source) => Err(FuseError::Unmount {
            mountpoint: mountpoint.to_owned(),
            source,
        }),
    }
}
