//! How the C library's allocator treats the buffers of spans.
//!
//! A span is some megabytes, and many threads allocate and free such buffers. Left alone, glibc keeps freed
//! ones in the heap of each thread, which nearly doubled the daemon's peak memory. Larger blocks are
//! mapped individually instead, and unmapped when freed.
//!
//! Not jemalloc, which other daemons use for the same reason: this one setting has the same effect here
//! without another C library to build and to keep up to date.

#![allow(unsafe_code)]

/// Sets the size from which on blocks are mapped individually. Best effort: without it only memory is lost.
#[cfg(target_env = "gnu")]
pub(crate) fn map_large_blocks() {
    /// In bytes: above the largest buffer of a read (1 MiB), far below a span.
    const MAP_FROM: libc::c_int = (1 << 20) + 4096;
    // SAFETY: mallopt(3) changes settings of the allocator under its own lock, takes two integers
    // by value and has no other precondition.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAP_FROM);
    }
}

/// Does nothing: other C libraries have no such setting.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn map_large_blocks() {}
