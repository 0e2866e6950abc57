//! Telling the kernel which pages need not stay in memory: the mount's own page cache holds what
//! readers use, a second copy would only take space from it.

use std::fs::File;
use std::num::NonZeroU64;
use std::ops::Range;

use rustix::fs::Advice;

const PAGE: u64 = 4096;

/// Drops the pages of `range`, but the one that its end lies in: a sequential reader's next
/// read starts there.
pub(crate) fn drop_range(file: &File, range: Range<u64>) {
    let (start, end) = (
        range.start - range.start % PAGE,
        range.end - range.end % PAGE,
    );
    if let Some(len) = end.checked_sub(start).and_then(NonZeroU64::new) {
        // Advice: nothing depends on it.
        let _ = rustix::fs::fadvise(file, start, Some(len), Advice::DontNeed);
    }
}

/// Drops all pages.
pub(crate) fn drop_all(file: &File) {
    let _ = rustix::fs::fadvise(file, 0, None, Advice::DontNeed);
}

/// Turns off the kernel's readahead: exactly the wanted pages are requested.
pub(crate) fn expect_random_reads(file: &File) {
    let _ = rustix::fs::fadvise(file, 0, None, Advice::Random);
}
