//! How the C library's allocator treats what is freed.
//!
//! A span is some megabytes, and many threads allocate and free such buffers. Left alone, glibc keeps freed
//! ones in the heap of each thread, which nearly doubled the daemon's peak memory. Larger blocks are
//! mapped individually instead, and unmapped when freed.
//!
//! Smaller ones stay: what a thousand file trees took remains with the process after their images are gone,
//! because a heap shrinks at its end only. [`return_freed`] returns the free pages between.
//!
//! Not jemalloc, which other daemons use for the same reason: these settings have the same effect here
//! without another C library to build and to keep up to date.

#![allow(unsafe_code)]

use std::time::Duration;

/// Time between two looks at what is free. While images are pulled the threads that build file trees free
/// some megabytes a second: with five seconds between looks 450 layers took 18 MB more until the next one.
const LOOK: Duration = Duration::from_secs(1);

/// Free bytes, beyond those that the last return left, that are worth another one.
const WORTH: usize = 2 << 20;

/// Change of the bytes in use from which on blocks were allocated in pages that had been returned, and
/// others freed: pages of free memory that the process has again although no more of it is free.
const MOVED: usize = 64 << 10;
/// Number of looks between two returns of such pages.
const LOOKS: u32 = 3;

/// Sets the size from which on blocks are mapped individually. Best effort: without it only memory is lost.
#[cfg(target_env = "gnu")]
pub(crate) fn map_large_blocks() {
    /// Size in bytes: above the largest buffer of a read (1 MiB), far below a span.
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

/// Returns free memory to the system from time to time, for as long as the future is polled.
///
/// A look takes each heap's lock while it counts the heap's free blocks, a return while the kernel takes
/// them; both are short, and are done on a thread for blocking work.
pub(crate) async fn return_freed() {
    let mut freed = Freed::default();
    loop {
        tokio::time::sleep(LOOK).await;
        let looked = soci_task::run(move || {
            if freed.is_worth_returning(in_heaps()) {
                trim();
                freed.returned(in_heaps());
            }
            freed
        });
        match looked.await {
            Ok(kept) => freed = kept,
            // The runtime ends.
            Err(_) => return,
        }
    }
}

/// Bytes in all heaps.
#[derive(Debug, Default, Clone, Copy)]
struct Heaps {
    free: usize,
    used: usize,
}

/// When free memory is returned.
#[derive(Debug, Default, Clone, Copy)]
struct Freed {
    /// Fewest free bytes since the last return. They count as free although their pages are
    /// returned, until they are used again.
    kept: usize,
    /// Bytes in use at the last return.
    used: usize,
    /// Number of looks since then.
    looks: u32,
}

impl Freed {
    fn is_worth_returning(&mut self, heaps: Heaps) -> bool {
        self.kept = self.kept.min(heaps.free);
        self.looks = self.looks.saturating_add(1);
        let moved = self.looks >= LOOKS && heaps.used.abs_diff(self.used) >= MOVED;
        moved || heaps.free - self.kept >= WORTH
    }

    const fn returned(&mut self, heaps: Heaps) {
        (self.kept, self.used, self.looks) = (heaps.free, heaps.used, 0);
    }
}

/// What all heaps hold.
#[cfg(target_env = "gnu")]
fn in_heaps() -> Heaps {
    // SAFETY: mallinfo2(3) reads counters under the locks of the heaps and returns them by value.
    let info = unsafe { libc::mallinfo2() };
    Heaps {
        free: info.fordblks,
        used: info.uordblks,
    }
}

/// Nothing: other C libraries have no such figures, and nothing is returned.
#[cfg(not(target_env = "gnu"))]
fn in_heaps() -> Heaps {
    Heaps::default()
}

/// Returns the whole free pages of all heaps to the system.
#[cfg(target_env = "gnu")]
fn trim() {
    // SAFETY: malloc_trim(3) works under the locks of the heaps, touches free pages only, takes an
    // integer by value and has no other precondition.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Does nothing.
#[cfg(not(target_env = "gnu"))]
fn trim() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_memory_is_returned_when_it_grew_and_not_again_before_it_was_used() {
        let heaps = |free| Heaps { free, used: 0 };
        let mut freed = Freed::default();
        assert!(!freed.is_worth_returning(heaps(WORTH - 1)));
        assert!(freed.is_worth_returning(heaps(20 * WORTH)));
        freed.returned(heaps(19 * WORTH));
        assert!(!freed.is_worth_returning(heaps(19 * WORTH)));
        // Layers are opened, which take free memory, and some of them are closed.
        assert!(!freed.is_worth_returning(heaps(5 * WORTH)));
        assert!(!freed.is_worth_returning(heaps(6 * WORTH - 1)));
        assert!(freed.is_worth_returning(heaps(6 * WORTH)));
    }

    #[test]
    fn pages_that_were_used_again_are_returned_after_a_while_although_no_more_is_free() {
        let heaps = |used| Heaps { free: WORTH, used };
        let mut freed = Freed::default();
        freed.returned(heaps(0));
        for _ in 1..LOOKS {
            assert!(!freed.is_worth_returning(heaps(MOVED)), "too soon");
        }
        assert!(freed.is_worth_returning(heaps(MOVED)));
        freed.returned(heaps(MOVED));
        for _ in 0..2 * LOOKS {
            assert!(!freed.is_worth_returning(heaps(MOVED)), "nothing was used");
        }
    }

    #[cfg(target_env = "gnu")]
    #[test]
    fn pages_that_are_freed_between_others_in_use_are_returned() {
        const BLOCK: usize = 128 << 10;
        map_large_blocks();
        let mut blocks: Vec<_> = (0..1024).map(|_| vec![1_u8; BLOCK]).collect();
        let full = resident();
        let mut number = 0;
        blocks.retain(|_| {
            number += 1;
            number % 16 == 0
        });
        assert!(in_heaps().free > 100 << 20);
        trim();
        let left = resident();
        assert!(full > left + (100 << 20), "{full} {left}");
        drop(blocks);
    }

    /// Bytes of this process that are in memory or swapped out.
    #[cfg(target_env = "gnu")]
    fn resident() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let bytes = |name| {
            let line = status.lines().find(|line| line.starts_with(name));
            let words: Vec<_> = line.unwrap().split_whitespace().collect();
            words[1].parse::<usize>().unwrap() * 1024
        };
        bytes("RssAnon:") + bytes("VmSwap:")
    }
}
