//! INIT: the negotiation of a session with the kernel. No I/O.

use serde::{Deserialize, Serialize};

use crate::abi::{self, InitOut, init_flags};
use crate::error::FuseError;
use crate::request::KernelOffer;

/// The flags that this crate accepts where the kernel offers them.
///
/// * `NO_OPEN_SUPPORT`, `NO_OPENDIR_SUPPORT`: OPEN answered ENOSYS means "no more OPENs".
/// * `DO_READDIRPLUS` without `FUSE_READDIRPLUS_AUTO`: a listing has every entry's attributes.
///   The automatic mode requests names only after the first answer of a large directory that is
///   read before anything in it is examined, which is how `find` and `ls -l` read it.
/// * `AUTO_INVAL_DATA`: a file whose modification time changed loses its cached data. That happens
///   to no file of a layer and needs no message while attributes are cached; it is for files whose
///   attributes are not, because without OPEN no other message keeps a file from being cached.
/// * `EXPORT_SUPPORT`: node numbers stay valid, LOOKUP takes `.` and `..`.
const WANTED: u64 = init_flags::ASYNC_READ
    | init_flags::EXPORT_SUPPORT
    | init_flags::AUTO_INVAL_DATA
    | init_flags::DO_READDIRPLUS
    | init_flags::NO_OPEN_SUPPORT
    | init_flags::PARALLEL_DIROPS
    | init_flags::MAX_PAGES
    | init_flags::CACHE_SYMLINKS
    | init_flags::NO_OPENDIR_SUPPORT
    | init_flags::INIT_EXT
    | init_flags::HAS_RESEND;

/// Nothing is ever written; the kernel insists on one page.
const MAX_WRITE: u32 = 4096;

/// Limits that a mount asks the kernel for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionLimits {
    /// Largest read in pages of 4 KiB. The kernel caps it (256 unless `fs.fuse.max_pages_limit`
    /// was raised).
    pub max_pages: u16,
    /// Number of readahead requests that may be in flight on one mount.
    pub max_background: u16,
    /// Number of such requests from which on the mount counts as congested.
    pub congestion_threshold: u16,
    /// Let the kernel send requests in flight again after a server died, where it can (Linux 6.9). Without
    /// it the journal is used.
    pub resend: bool,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self {
            max_pages: 256,
            max_background: 256,
            congestion_threshold: 192,
            resend: true,
        }
    }
}

/// The outcome of INIT. A server that resumes a live connection needs it, because INIT is not repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Negotiated {
    /// The protocol's minor version in force (the major is 7).
    pub minor: u32,
    /// The flags in force ([`crate::init_flags`]), both halves.
    pub flags: u64,
    /// Largest write in bytes.
    pub max_write: u32,
    /// Readahead in bytes as answered in INIT; `read_ahead_kb` of the mount may be larger since.
    pub max_readahead: u32,
    /// Largest read in pages.
    pub max_pages: u16,
}

impl Negotiated {
    /// Whether the kernel sends no further OPEN after ENOSYS.
    #[must_use]
    pub const fn no_open(&self) -> bool {
        self.flags & init_flags::NO_OPEN_SUPPORT != 0
    }

    /// Whether the kernel sends no further OPENDIR after ENOSYS.
    #[must_use]
    pub const fn no_opendir(&self) -> bool {
        self.flags & init_flags::NO_OPENDIR_SUPPORT != 0
    }

    /// Whether the kernel can send requests in flight again.
    #[must_use]
    pub const fn can_resend(&self) -> bool {
        self.flags & init_flags::HAS_RESEND != 0
    }
}

/// Returns the answer to INIT, and what was negotiated.
pub(crate) fn negotiate(
    offer: &KernelOffer,
    limits: &SessionLimits,
) -> Result<(InitOut, Negotiated), FuseError> {
    let KernelOffer {
        major,
        minor,
        max_readahead,
        flags,
    } = *offer;
    if major != abi::MAJOR || minor < abi::OLDEST_MINOR {
        return Err(FuseError::Version { major, minor });
    }
    let unwanted = if limits.resend {
        0
    } else {
        init_flags::HAS_RESEND
    };
    let flags = flags & WANTED & !unwanted;
    let minor = minor.min(abi::MINOR);
    // Without MAX_PAGES the kernel reads at most 32 pages.
    let max_pages = if flags & init_flags::MAX_PAGES != 0 {
        limits.max_pages.max(1)
    } else {
        32
    };
    let negotiated = Negotiated {
        minor,
        flags,
        max_write: MAX_WRITE,
        max_readahead,
        max_pages,
    };
    let answer = InitOut {
        major: abi::MAJOR,
        minor,
        max_readahead,
        flags: low_half(flags),
        max_background: limits.max_background,
        congestion_threshold: limits.congestion_threshold,
        max_write: MAX_WRITE,
        time_gran: 1,
        max_pages,
        map_alignment: 0,
        flags2: low_half(flags >> 32),
        max_stack_depth: 0,
        request_timeout: 0,
        unused: [0; 11],
    };
    Ok((answer, negotiated))
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the lower half is what is wanted"
)]
const fn low_half(flags: u64) -> u32 {
    flags as u32
}
