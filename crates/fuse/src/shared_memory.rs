//! Memory that outlives its process: a memfd, mapped and held in RAM.
//!
//! The kernel copies requests straight into it. A process that is killed inside a read into a page
//! that is not resident makes the caller get EIO, so all pages are touched and (where the limit
//! allows it) locked.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, fstat, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mlock, mmap, munmap};

/// How the memory is divided: numbers and small copies in front, then windows of equal size.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Division {
    /// Bytes in front of the windows.
    pub(crate) front: usize,
    /// How many windows there are.
    pub(crate) windows: usize,
    /// Bytes of a window.
    pub(crate) window: usize,
}

impl Division {
    const fn length(self) -> usize {
        self.front + self.windows * self.window
    }
}

/// A mapped memfd.
#[derive(Debug)]
pub(crate) struct SharedMemory {
    start: NonNull<u8>,
    division: Division,
    file: OwnedFd,
    /// Which windows are in somebody's hands.
    taken: Vec<AtomicBool>,
}

/// A part of the memory that nobody else in this process uses meanwhile.
#[derive(Debug)]
pub(crate) struct Window {
    memory: Arc<SharedMemory>,
    number: usize,
}

// SAFETY: the mapping belongs to this value alone and stays until it is dropped. It is reached through
// atomics and through copies of ranges that the callers keep apart (see the methods).
unsafe impl Send for SharedMemory {}
// SAFETY: as above.
unsafe impl Sync for SharedMemory {}

impl SharedMemory {
    /// New memory of zero bytes.
    pub(crate) fn create(name: &str, division: Division) -> io::Result<Arc<Self>> {
        let file = memfd_create(name, MemfdFlags::CLOEXEC)?;
        ftruncate(&file, division.length() as u64)?;
        Self::map(file, division)
    }

    /// The memory of an earlier process, which must have divided it alike.
    pub(crate) fn open(file: OwnedFd, division: Division) -> io::Result<Arc<Self>> {
        let (size, length) = (fstat(&file)?.st_size, division.length());
        if u64::try_from(size) != Ok(length as u64) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("it has {size} bytes, not {length}"),
            ));
        }
        Self::map(file, division)
    }

    fn map(file: OwnedFd, division: Division) -> io::Result<Arc<Self>> {
        let length = division.length();
        // SAFETY: a new mapping at an address of the kernel's choice, of a file that is as long.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::POPULATE,
                &file,
                0,
            )
        }?;
        // SAFETY: the range is the mapping just made. Without the right to lock it, it is resident
        // until memory is short.
        let locked = unsafe { mlock(start, length) };
        if let Err(error) = locked {
            tracing::debug!(error = %error, "the memory for FUSE requests is not locked");
        }
        let start = NonNull::new(start.cast::<u8>())
            .ok_or_else(|| io::Error::other("the kernel mapped memory at address 0"))?;
        Ok(Arc::new(Self {
            start,
            division,
            file,
            taken: (0..division.windows)
                .map(|_| AtomicBool::default())
                .collect(),
        }))
    }

    /// The memfd, to be kept by another process.
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The address of `length` bytes at `offset`, aligned to `align`. `None` outside of the front.
    fn place(&self, offset: usize, length: usize, align: usize) -> Option<NonNull<u8>> {
        let inside = offset.checked_add(length)? <= self.division.front;
        // SAFETY: `offset` lies inside the mapping.
        (inside && offset.is_multiple_of(align)).then(|| unsafe { self.start.add(offset) })
    }

    /// A number in the front that several threads may use at once; `None` outside of it.
    pub(crate) fn u32_at(&self, offset: usize) -> Option<&AtomicU32> {
        let place = self.place(offset, 4, 4)?;
        // SAFETY: inside the mapping, aligned (the mapping begins at a page), initialised, and
        // alive as long as `self`. Whoever else has the memory mapped uses atomics too, or is dead.
        Some(unsafe { AtomicU32::from_ptr(place.as_ptr().cast()) })
    }

    /// The same for 64 bits.
    pub(crate) fn u64_at(&self, offset: usize) -> Option<&AtomicU64> {
        let place = self.place(offset, 8, 8)?;
        // SAFETY: as in `u32_at`.
        Some(unsafe { AtomicU64::from_ptr(place.as_ptr().cast()) })
    }

    /// Copies bytes in. The caller keeps ranges that are written from being used by others.
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) {
        if let Some(place) = self.place(offset, bytes.len(), 1) {
            // SAFETY: the target lies in the front, to whose bytes no Rust reference ever exists but
            // those to atomics, which the caller keeps apart.
            unsafe {
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), place.as_ptr(), bytes.len());
            }
        }
    }

    /// Copies bytes out; empty if the range is not inside.
    pub(crate) fn read(&self, offset: usize, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length);
        if let Some(place) = self.place(offset, length, 1) {
            // SAFETY: the source lies in the front, the target has room for `length` bytes and is
            // initialised up to there by the copy.
            unsafe {
                std::ptr::copy_nonoverlapping(place.as_ptr(), bytes.as_mut_ptr(), length);
                bytes.set_len(length);
            }
        }
        bytes
    }

    /// Takes a window; `None` if there is no such window or somebody has it.
    pub(crate) fn window(self: &Arc<Self>, number: usize) -> Option<Window> {
        let taken = self.taken.get(number)?;
        let free = !taken.swap(true, Ordering::Acquire);
        free.then(|| Window {
            memory: self.clone(),
            number,
        })
    }
}

impl Window {
    /// Its bytes.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        let Division { front, window, .. } = self.memory.division;
        // SAFETY: `number` is that of a window, so the range lies inside the mapping, which is
        // initialised and lives as long as `memory`. No other window overlaps it, no second `Window`
        // of this number exists, and the other methods keep to the front.
        unsafe {
            let start = self.memory.start.add(front + self.number * window);
            std::slice::from_raw_parts_mut(start.as_ptr(), window)
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        if let Some(taken) = self.memory.taken.get(self.number) {
            taken.store(false, Ordering::Release);
        }
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this length, and nothing refers to it any more:
        // what the methods return borrows `self`.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.division.length()) };
        if let Err(error) = unmapped {
            tracing::debug!(error = %error, "munmap of the memory for FUSE requests failed");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    const DIVISION: Division = Division {
        front: 4096,
        windows: 2,
        window: 4096,
    };

    #[test]
    fn a_second_mapping_sees_what_the_first_wrote_and_nothing_outside_is_touched() {
        let first = SharedMemory::create("test", DIVISION).unwrap();
        first.write(100, b"hello");
        first.write(4094, b"too long");
        first.u64_at(64).unwrap().store(7, Ordering::Relaxed);
        first.window(1).unwrap().as_mut_slice().fill(9);
        let file = first.file().try_clone_to_owned().unwrap();
        drop(first);
        let second = SharedMemory::open(file, DIVISION).unwrap();
        assert_eq!(second.read(100, 5), b"hello");
        assert_eq!(second.u64_at(64).unwrap().load(Ordering::Relaxed), 7);
        assert!(second.read(4094, 3).is_empty());
        assert!(second.u32_at(4096).is_none() && second.u64_at(4).is_none());
        assert_eq!(second.window(1).unwrap().as_mut_slice(), [9; 4096]);
        assert_eq!(second.window(0).unwrap().as_mut_slice(), [0; 4096]);
        let file = second.file().try_clone_to_owned().unwrap();
        let other = Division {
            windows: 1,
            ..DIVISION
        };
        assert!(SharedMemory::open(file, other).is_err());
    }

    #[test]
    fn a_window_is_in_one_hand_at_a_time() {
        let memory = SharedMemory::create("test", DIVISION).unwrap();
        let window = memory.window(0);
        assert!(window.is_some() && memory.window(0).is_none() && memory.window(2).is_none());
        drop(window);
        assert!(memory.window(0).is_some());
    }
}
