//! How the C library's allocator treats the buffers of spans.
//!
//! A span is some megabytes, and many threads take and return such buffers. Left alone, glibc keeps
//! returned ones in the heap of each thread and takes them from there the next time, which nearly doubled
//! the daemon's peak memory. Blocks from this size on are mapped alone and given back at once.

#![allow(unsafe_code)]

/// From this size on, in bytes, a block is mapped alone: above what one read of the kernel takes (1 MiB).
const MAP_FROM: libc::c_int = (1 << 20) + 4096;

/// Tells the allocator. Best effort: where it does not listen, only memory is lost.
pub(crate) fn return_large_blocks_at_once() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) changes settings of the allocator under its own lock, takes two integers
    // by value and has no other precondition.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAP_FROM);
    }
}
