//! Allocation of large buffers.

/// Initial capacity of a large buffer that grows, in bytes of address space.
///
/// It is more than what glibc's allocator keeps when the buffer is freed or grows (its
/// `DEFAULT_MMAP_THRESHOLD_MAX`, 32 MiB). Pages that are never written take no memory.
pub(crate) const LARGE_CAPACITY: usize = 33 << 20;
