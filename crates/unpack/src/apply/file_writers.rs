//! Threads that write small files, because making a file takes longer than reading it from the tar.
//!
//! They make names that nothing else makes: the applier waits for all of them before it touches a name
//! that it made before, and before it makes a hard link.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};
use rustix::fs::{Mode, OFlags, openat};
use soci_ztoc::FileMetadata;

use super::directory::Parent;
use super::metadata::{Creation, set_open};
use crate::ApplyError;
use crate::error::failed;

/// Largest file that is written by another thread, in bytes.
pub(super) const SMALL: u64 = 64 << 10;
/// Number of small files of a layer that its own thread writes before others are started.
const BEFORE: u32 = 128;
/// Files that wait for a thread, and bytes of them that wait for all threads together.
const QUEUE: usize = 32;
const QUEUED_BYTES: usize = 512 << 10;
/// Largest memory of a content that is kept for another.
const KEPT: usize = 8 << 10;
/// Most threads. The file system makes one name in a directory at a time.
const MOST: usize = 4;

/// A file that was not made yet, with its content.
pub(super) struct SmallFile {
    pub(super) parent: Parent,
    pub(super) base: Vec<u8>,
    pub(super) entry: FileMetadata,
    pub(super) content: Vec<u8>,
    pub(super) creation: Creation,
}

impl SmallFile {
    /// Makes and writes it.
    fn write(&self) -> Result<(), ApplyError> {
        let name = &self.entry.name;
        let mut file = make(&self.parent, &self.base, &self.entry, self.creation)?;
        file.write_all(&self.content)
            .map_err(failed(name, "write it"))?;
        set_open(&file, &self.entry, &self.parent, self.creation)
            .map_err(failed(name, "set its attributes"))
    }
}

/// Makes an empty file.
pub(super) fn make(
    parent: &Parent,
    base: &[u8],
    entry: &FileMetadata,
    creation: Creation,
) -> Result<File, ApplyError> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(creation.first_mode(entry));
    let file = openat(&parent.fd, base, flags, mode).map_err(failed(&entry.name, "create it"))?;
    Ok(File::from(file))
}

/// The threads, and how many files they have not written yet.
#[derive(Default)]
pub(super) struct FileWriters {
    /// Small files so far, until threads were started.
    seen: u32,
    threads: Vec<(SyncSender<SmallFile>, JoinHandle<()>)>,
    next: usize,
    work: Arc<Work>,
    /// Memory of contents, to be used again.
    free: Vec<Vec<u8>>,
}

#[derive(Default)]
struct Work {
    state: Mutex<State>,
    done: Condvar,
}

#[derive(Default)]
struct State {
    open: usize,
    /// Bytes of those files.
    bytes: usize,
    failure: Option<ApplyError>,
    free: Vec<Vec<u8>>,
}

impl Work {
    fn run(&self, files: &Receiver<SmallFile>) {
        while let Ok(file) = files.recv() {
            let failed = self.state.lock().failure.is_some();
            let written = if failed { Ok(()) } else { file.write() };
            let mut state = self.state.lock();
            if let Err(error) = written {
                state.failure.get_or_insert(error);
            }
            state.open -= 1;
            state.bytes -= file.content.len();
            if state.open == 0 {
                self.done.notify_all();
            }
            keep(file.content, &mut state.free);
        }
    }
}

/// Keeps the memory of a content for another, unless there is enough.
fn keep(mut content: Vec<u8>, free: &mut Vec<Vec<u8>>) {
    if content.capacity() <= KEPT && free.len() < QUEUE {
        content.clear();
        free.push(content);
    }
}

impl FileWriters {
    /// Memory for the content of a file of so many bytes.
    pub(super) fn content(&mut self, length: u64) -> Vec<u8> {
        if self.free.is_empty() && !self.threads.is_empty() {
            std::mem::swap(&mut self.free, &mut self.work.state.lock().free);
        }
        let mut content = self.free.pop().unwrap_or_default();
        content.reserve(usize::try_from(length).unwrap_or(0));
        content
    }

    /// Writes a file whose name is new: now, or soon.
    pub(super) fn write(&mut self, mut file: SmallFile) -> Result<(), ApplyError> {
        self.seen = self.seen.saturating_add(1);
        if self.seen == BEFORE {
            self.start();
        }
        let count = self.threads.len();
        let length = file.content.len();
        let has_room = {
            let mut state = self.work.state.lock();
            if let Some(failure) = state.failure.take() {
                return Err(failure);
            }
            let has_room = count > 0 && state.bytes + length <= QUEUED_BYTES;
            if has_room {
                state.open += 1;
                state.bytes += length;
            }
            has_room
        };
        if !has_room {
            return self.write_on_this_thread(file);
        }
        // To the first that has room, in turn; if none has, this thread writes it itself.
        for _ in 0..count {
            self.next = (self.next + 1) % count;
            let Some((sender, _)) = self.threads.get(self.next) else {
                break;
            };
            match sender.try_send(file) {
                Ok(()) => return Ok(()),
                Err(back) => {
                    file = match back {
                        std::sync::mpsc::TrySendError::Full(file)
                        | std::sync::mpsc::TrySendError::Disconnected(file) => file,
                    }
                }
            }
        }
        {
            let mut state = self.work.state.lock();
            state.open -= 1;
            state.bytes -= length;
        }
        self.write_on_this_thread(file)
    }

    fn write_on_this_thread(&mut self, file: SmallFile) -> Result<(), ApplyError> {
        file.write()?;
        keep(file.content, &mut self.free);
        Ok(())
    }

    /// Waits until all files are written.
    pub(super) fn wait(&self) -> Result<(), ApplyError> {
        if self.threads.is_empty() {
            return Ok(());
        }
        let mut state = self.work.state.lock();
        while state.open > 0 {
            self.work.done.wait(&mut state);
        }
        state.failure.take().map_or(Ok(()), Err)
    }

    fn start(&mut self) {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        // This thread writes, too.
        for _ in 1..cores.min(MOST) {
            let (sender, files) = sync_channel(QUEUE);
            let work = Arc::clone(&self.work);
            let thread = std::thread::Builder::new().name("unpack-files".to_owned());
            // With fewer of them it takes longer.
            if let Ok(thread) = thread.spawn(move || work.run(&files)) {
                self.threads.push((sender, thread));
            }
        }
    }
}

impl Drop for FileWriters {
    /// Nothing is written any more after this.
    fn drop(&mut self) {
        for (sender, thread) in std::mem::take(&mut self.threads) {
            drop(sender);
            let _ = thread.join();
        }
    }
}
