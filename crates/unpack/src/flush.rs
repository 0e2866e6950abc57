//! Writing back what was unpacked while more comes, so that little is left to wait for at the end.

use std::fs::File;
use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};

/// Bytes between two flushes.
const INTERVAL: u64 = 256 << 20;

/// Writes the file system of a layer back from time to time.
pub(crate) struct Flusher {
    bytes: u64,
    thread: Option<(SyncSender<()>, JoinHandle<io::Result<()>>)>,
}

impl Flusher {
    pub(crate) const fn new() -> Self {
        Self {
            bytes: 0,
            thread: None,
        }
    }

    /// Records that bytes were written to the file system of `root`.
    pub(crate) fn wrote(&mut self, bytes: u64, root: &File) {
        self.bytes += bytes;
        if self.bytes < INTERVAL {
            return;
        }
        self.bytes = 0;
        if self.thread.is_none()
            && let Ok(root) = root.try_clone()
        {
            let (sender, wanted) = sync_channel(1);
            let flush = move || {
                while wanted.recv().is_ok() {
                    rustix::fs::syncfs(&root)?;
                }
                Ok(())
            };
            // Without it, everything is left to the end.
            let thread = Builder::new().name("unpack-flush".to_owned()).spawn(flush);
            self.thread = thread.ok().map(|thread| (sender, thread));
        }
        if let Some((sender, _)) = &self.thread {
            // If one waits already, it will write this, too.
            let _ = sender.try_send(());
        }
    }

    /// Ends it. The kernel reports a failure only once for a descriptor.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        let Some((sender, thread)) = self.thread.take() else {
            return Ok(());
        };
        drop(sender);
        let ended = thread.join();
        ended.unwrap_or_else(|_| Err(io::Error::other("the flushing thread panicked")))
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        let _ = self.finish();
    }
}
