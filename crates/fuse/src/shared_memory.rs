//! Memory that outlives its process: a memfd, mapped and held in RAM.
//!
//! The kernel copies requests straight into its first part. A process that is killed inside a read into a
//! page that is not resident makes the caller get EIO, so that those pages are touched and (where the limit
//! allows it) locked. The second part takes memory as far as it is used.
//!
//! This is sound because the memory is only accessed through [`WholeLayout`], which is all atomics:
//! while another thread, another process or the kernel writes, a load returns some value. That the values
//! are consistent follows from the protocol between processes: only the server writes, which has the lock
//! of the root folder (`daemon.lock`) and alone reads requests; a program that is about to take over reads
//! the version ([`crate::Journal::check`]) and nothing else; and a server that leaves stops writing
//! ([`crate::Pool::shutdown`]) before it releases the lock.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use rustix::io::Errno;

use crate::journal::layout::{Extension, JournalLayout, WholeLayout};

/// Mapped memory with the journal's layout.
#[derive(Debug)]
pub(crate) struct SharedMemory {
    start: NonNull<JournalLayout>,
    extent: Extent,
    origin: Origin,
}

/// How much of [`WholeLayout`] there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// The first part, as version 1 of the format has it.
    First,
    /// All of it.
    Whole,
}

impl Extent {
    const fn bytes(self) -> usize {
        match self {
            Self::First => size_of::<JournalLayout>(),
            Self::Whole => size_of::<WholeLayout>(),
        }
    }

    fn of(bytes: u64) -> Option<Self> {
        let extents = [Self::First, Self::Whole].into_iter();
        extents
            .into_iter()
            .find(|extent| extent.bytes() as u64 == bytes)
    }
}

/// The origin of the memory: a memfd, or the heap for Miri, which has neither memfds nor shared mappings.
#[cfg(not(miri))]
type Origin = OwnedFd;
#[cfg(miri)]
type Origin = std::sync::Arc<heap::Heap>;

// SAFETY: the memory stays mapped until this value is dropped, and is used through `&WholeLayout` or a
// part of it only, which is `Sync`; nothing about it belongs to a thread.
unsafe impl Send for SharedMemory {}
// SAFETY: as above.
unsafe impl Sync for SharedMemory {}

impl SharedMemory {
    /// How much there is.
    pub(crate) const fn extent(&self) -> Extent {
        self.extent
    }

    /// The second part, unless the memory is that of version 1.
    pub(crate) fn extension(&self) -> Option<&Extension> {
        if self.extent != Extent::Whole {
            return None;
        }
        // SAFETY: as in `layout`; the memory is as long as a `WholeLayout`, which begins where it does.
        Some(&unsafe { self.start.cast::<WholeLayout>().as_ref() }.extension)
    }

    /// The first part in its types.
    pub(crate) fn layout(&self) -> &JournalLayout {
        // SAFETY: `start` is page-aligned and valid for the size of a `JournalLayout` for as long as `self`
        // lives. The memfd is as long and cannot shrink: it is sealed, or from the version before, which
        // never shrank it. Any bytes are a valid layout (it is `FromBytes`), and all of it lies in atomics,
        // so that writes by others, also through other mappings, are allowed while the reference exists.
        unsafe { self.start.as_ref() }
    }
}

/// Reads a request from `device` into `target`; returns its length in bytes.
pub(crate) fn read_into(device: BorrowedFd<'_>, target: &[AtomicU64]) -> Result<usize, Errno> {
    let start = target.as_ptr().cast_mut().cast();
    // SAFETY: `target` is writable memory of this many bytes, and atomics may be written to through a shared
    // reference. The kernel's copy is not atomic: a concurrent load returns some value.
    let length = unsafe { libc::read(device.as_raw_fd(), start, size_of_val(target)) };
    usize::try_from(length).map_err(|_| {
        let error = io::Error::last_os_error();
        Errno::from_io_error(&error).unwrap_or(Errno::IO)
    })
}

#[cfg(not(miri))]
mod memfd {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fstat, ftruncate, memfd_create};
    use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap, munmap};

    use super::*;

    impl SharedMemory {
        /// New memory of zero bytes, in a memfd whose length cannot change.
        pub(crate) fn create(extent: Extent) -> io::Result<Self> {
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let file = memfd_create("soci-requests", flags)?;
            ftruncate(&file, extent.bytes() as u64)?;
            let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
            fcntl_add_seals(&file, seals)?;
            Self::map(file, extent)
        }

        /// The memory of an earlier process.
        pub(crate) fn open(file: OwnedFd) -> io::Result<Self> {
            let size = fstat(&file)?.st_size;
            let extent = u64::try_from(size).ok().and_then(Extent::of);
            let extent = extent.ok_or_else(|| {
                let [first, whole] = [Extent::First, Extent::Whole].map(Extent::bytes);
                let reason = format!("it has {size} bytes, not {first} or {whole}");
                io::Error::new(io::ErrorKind::InvalidData, reason)
            })?;
            Self::map(file, extent)
        }

        fn map(file: OwnedFd, extent: Extent) -> io::Result<Self> {
            // SAFETY: a new mapping at an address of the kernel's choice, of a file that is as long.
            let start = unsafe {
                mmap(
                    std::ptr::null_mut(),
                    extent.bytes(),
                    ProtFlags::READ | ProtFlags::WRITE,
                    MapFlags::SHARED,
                    &file,
                    0,
                )
            }?;
            let resident = Extent::First.bytes();
            // SAFETY: the range is part of the mapping just made. Before Linux 5.14 it fails, and mlock does
            // the same.
            let _ = unsafe { madvise(start, resident, Advice::LinuxPopulateWrite) };
            // SAFETY: as above.
            if let Err(error) = unsafe { mlock(start, resident) } {
                tracing::warn!(
                    error = %error,
                    "cannot lock the memory for FUSE requests: a server killed while memory is short may \
                     fail a read"
                );
            }
            let start = NonNull::new(start.cast())
                .ok_or_else(|| io::Error::other("the kernel mapped memory at address 0"))?;
            Ok(Self {
                start,
                extent,
                origin: file,
            })
        }

        /// Another descriptor of the memory, for another process.
        pub(crate) fn descriptor(&self) -> io::Result<OwnedFd> {
            self.origin.try_clone()
        }
    }

    impl Drop for SharedMemory {
        fn drop(&mut self) {
            // SAFETY: the mapping was made by `map` with this length, and nothing refers to it any more:
            // what `layout` and `extension` return borrows `self`.
            let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.extent.bytes()) };
            if let Err(error) = unmapped {
                tracing::debug!(error = %error, "munmap of the memory for FUSE requests failed");
            }
        }
    }
}

#[cfg(miri)]
mod heap {
    use std::alloc::{Layout, alloc_zeroed, dealloc};
    use std::sync::Arc;

    use super::*;

    /// Zeroed memory, freed with its last user.
    #[derive(Debug)]
    pub(super) struct Heap(NonNull<JournalLayout>, Layout);

    impl SharedMemory {
        pub(crate) fn create(extent: Extent) -> io::Result<Self> {
            let layout = match extent {
                Extent::First => Layout::new::<JournalLayout>(),
                Extent::Whole => Layout::new::<WholeLayout>(),
            };
            // SAFETY: the layout is not empty.
            let start = unsafe { alloc_zeroed(layout) };
            let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
            Ok(Self {
                start,
                extent,
                origin: Arc::new(Heap(start, layout)),
            })
        }

        pub(crate) fn open(_: OwnedFd) -> io::Result<Self> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(crate) fn descriptor(&self) -> io::Result<OwnedFd> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    impl Drop for Heap {
        fn drop(&mut self) {
            // SAFETY: allocated by `create` with this layout; no `SharedMemory` refers to it any more.
            unsafe { dealloc(self.0.as_ptr().cast(), self.1) }
        }
    }
}

#[cfg(test)]
impl SharedMemory {
    /// The same memory as another process would map it.
    pub(crate) fn second_mapping(&self) -> Self {
        #[cfg(not(miri))]
        return Self::open(self.descriptor().unwrap()).unwrap();
        #[cfg(miri)]
        return Self {
            start: self.start,
            extent: self.extent,
            origin: self.origin.clone(),
        };
    }

    /// Returns a copy of the current content. No other thread may write concurrently.
    pub(crate) fn copy(&self) -> Self {
        let copy = Self::create(self.extent).unwrap();
        let bytes = self.extent.bytes();
        let (from, to) = (self.start.as_ptr(), copy.start.as_ptr());
        // SAFETY: both are valid for this many bytes, and do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(from.cast::<u8>(), to.cast(), bytes) };
        copy
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::AsFd as _;

    use super::*;
    use crate::journal::layout::MORE_ENTRIES;

    #[test]
    fn a_second_mapping_sees_what_the_first_wrote() {
        let first = SharedMemory::create(Extent::Whole).unwrap();
        first.layout().version.set(7);
        first.layout().entries[1023].bytes.write(b"hello");
        first.layout().slots[15].write(&[9; 16]);
        let entries = &first.extension().unwrap().entries;
        entries[MORE_ENTRIES - 1].length.set(3);
        let second = first.second_mapping();
        drop(first);
        let entries = &second.extension().unwrap().entries;
        assert_eq!(entries[MORE_ENTRIES - 1].length.get(), 3);
        let layout = second.layout();
        assert_eq!((layout.magic.get(), layout.version.get()), (0, 7));
        let mut bytes = [0; 6];
        layout.entries[1023].bytes.read(&mut bytes);
        assert_eq!(&bytes, b"hello\0");
        layout.slots[15].read(&mut bytes);
        assert_eq!(bytes, [9; 6]);
        layout.slots[14].read(&mut bytes);
        assert_eq!(bytes, [0; 6]);
    }

    #[test]
    fn the_kernel_writes_a_request_into_a_slot_and_nothing_beside_it() {
        let memory = SharedMemory::create(Extent::Whole).unwrap();
        let slots = &memory.layout().slots;
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(&[7; 20]).unwrap();
        assert_eq!(read_into(reader.as_fd(), slots[3].words()), Ok(20));
        let mut bytes = [1; 24];
        slots[3].read(&mut bytes);
        assert_eq!((&bytes[..20], &bytes[20..]), (&[7; 20][..], &[0; 4][..]));
        for neighbour in [2, 4] {
            slots[neighbour].read(&mut bytes);
            assert_eq!(bytes, [0; 24]);
        }
        #[cfg(not(miri))]
        assert_eq!(
            read_into(writer.as_fd(), slots[3].words()),
            Err(Errno::BADF)
        );
    }

    #[test]
    fn threads_share_it() {
        let memory = SharedMemory::create(Extent::Whole).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let layout = memory.layout();
                scope.spawn(move || {
                    let entry = &layout.entries[thread];
                    entry.bytes.write(&[7; 100]);
                    entry.length.set(100);
                    entry.state.set(1);
                });
            }
            for thread in 0..4 {
                let entry = &memory.layout().entries[thread];
                while entry.state.get() == 0 {
                    std::thread::yield_now();
                }
                let mut bytes = [0; 100];
                entry.bytes.read(&mut bytes);
                assert_eq!((entry.length.get(), bytes), (100, [7; 100]));
            }
        });
    }

    #[cfg(not(miri))]
    mod memfds {
        use rustix::fs::{MemfdFlags, SealFlags, fcntl_get_seals, ftruncate, memfd_create};

        use super::*;

        #[test]
        fn its_length_cannot_change() {
            let memory = SharedMemory::create(Extent::Whole).unwrap();
            let file = memory.descriptor().unwrap();
            assert_eq!(ftruncate(&file, 0), Err(Errno::PERM));
            assert_eq!(ftruncate(&file, 1 << 30), Err(Errno::PERM));
            let seals = fcntl_get_seals(&file).unwrap();
            assert!(seals.contains(SealFlags::SEAL), "{seals:?}");
        }

        #[test]
        fn memory_of_the_version_before_which_is_not_sealed_is_adopted() {
            let file = memfd_create("soci-requests", MemfdFlags::CLOEXEC).unwrap();
            ftruncate(&file, size_of::<JournalLayout>() as u64).unwrap();
            let memory = SharedMemory::open(file).unwrap();
            memory.layout().version.set(1);
            assert!(memory.extension().is_none());
        }

        #[test]
        fn memory_of_another_length_is_refused() {
            let whole = size_of::<WholeLayout>() as u64;
            for length in [0, 4096, size_of::<JournalLayout>() as u64 + 1, whole - 1] {
                let file = memfd_create("other", MemfdFlags::CLOEXEC).unwrap();
                ftruncate(&file, length).unwrap();
                let refused = SharedMemory::open(file).unwrap_err().to_string();
                assert!(refused.contains(&length.to_string()), "{refused}");
            }
        }
    }
}
