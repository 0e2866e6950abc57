//! The way of a layer's compressed bytes into containerd's content store, while it is unpacked.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use soci_containerd::{BlobWriter, ContainerdError, Content};
use soci_oci::{Descriptor, Digest};
use soci_unpack::CompressedSink;
use tokio::runtime::Handle;

/// Bytes that are collected for one message.
const MESSAGE: usize = 1 << 20;

/// Writes a layer to containerd's content store. It is committed when its digests have been checked,
/// and given up when this is dropped before. Blocks; not to be used on a thread of the runtime.
pub(crate) struct ContentSink {
    runtime: Handle,
    content: Content,
    blob: Descriptor,
    labels: HashMap<String, String>,
    state: State,
    pending: BytesMut,
}

enum State {
    New,
    Writing(Box<BlobWriter>),
    /// containerd has it in another namespace, and needs no bytes.
    Shared(Box<BlobWriter>),
    /// Another pull has stored it, or this one.
    Stored,
}

impl ContentSink {
    /// Makes the way for one layer. Its labels are set when it is committed.
    pub(crate) fn new(
        runtime: Handle,
        content: Content,
        blob: &Descriptor,
        labels: HashMap<String, String>,
    ) -> Self {
        Self {
            runtime,
            content,
            blob: blob.clone(),
            labels,
            state: State::New,
            pending: BytesMut::new(),
        }
    }

    fn begin(&mut self) -> Result<(), ContainerdError> {
        while matches!(self.state, State::New) {
            let name = write_name(&self.blob);
            let begun = self.content.begin_write(&name, &self.blob);
            let begun = self.runtime.block_on(begun)?;
            self.state = match begun {
                Some(writer) if writer.offset() == 0 => State::Writing(Box::new(writer)),
                Some(writer) if writer.offset() == self.blob.size => {
                    State::Shared(Box::new(writer))
                }
                // Left by an earlier process with our number.
                Some(writer) => {
                    self.runtime.block_on(writer.abort())?;
                    State::New
                }
                None => State::Stored,
            };
            soci_faults::point("eager-keep-begun");
        }
        Ok(())
    }

    fn send(&mut self, bytes: Bytes) -> Result<(), ContainerdError> {
        self.begin()?;
        match &mut self.state {
            State::Writing(writer) => {
                self.runtime.block_on(writer.append(bytes))?;
                soci_faults::point("eager-keep-written");
                Ok(())
            }
            State::New | State::Shared(_) | State::Stored => Ok(()),
        }
    }

    fn commit(&mut self) -> Result<(), ContainerdError> {
        let rest = self.pending.split().freeze();
        self.send(rest)?;
        let labels = std::mem::take(&mut self.labels);
        match std::mem::replace(&mut self.state, State::Stored) {
            State::Writing(mut writer) | State::Shared(mut writer) => {
                self.runtime.block_on(writer.commit(labels))?;
                soci_faults::point("eager-keep-committed");
                Ok(())
            }
            State::New | State::Stored => {
                let labelled = self.content.add_labels(&self.blob.digest, labels);
                self.runtime.block_on(labelled)
            }
        }
    }

    fn give_up(&mut self) -> Option<Box<BlobWriter>> {
        self.pending.clear();
        match std::mem::replace(&mut self.state, State::New) {
            State::Writing(writer) | State::Shared(writer) => Some(writer),
            State::New | State::Stored => None,
        }
    }
}

/// A name of its own for a write: nothing that was left under it must be continued, and nothing waits
/// for another client that pulls the layer at the same time.
fn write_name(blob: &Descriptor) -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    format!(
        "soci-eager-{}-{}-{}",
        blob.digest,
        std::process::id(),
        NUMBER.fetch_add(1, Ordering::Relaxed)
    )
}

/// Stores a blob that containerd keeps for another namespace in this one as well, as containerd's
/// own pull does. `false` if it keeps none, or shares nothing (`content_sharing_policy = "isolated"`).
pub(crate) async fn share(
    content: &Content,
    blob: &Descriptor,
    labels: HashMap<String, String>,
) -> Result<bool, ContainerdError> {
    let begun = content.begin_write(&write_name(blob), blob).await?;
    let Some(mut writer) = begun else {
        return Ok(true);
    };
    if blob.size > 0 && writer.offset() == blob.size {
        writer.commit(labels).await?;
        return Ok(true);
    }
    writer.abort().await?;
    Ok(false)
}

impl CompressedSink for ContentSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if matches!(self.state, State::Stored | State::Shared(_)) {
            return Ok(());
        }
        self.pending.extend_from_slice(bytes);
        if self.pending.len() < MESSAGE {
            return Ok(());
        }
        let bytes = self.pending.split().freeze();
        self.send(bytes).map_err(io::Error::other)
    }

    fn restart(&mut self) -> io::Result<()> {
        match self.give_up() {
            Some(writer) => self
                .runtime
                .block_on(writer.abort())
                .map_err(io::Error::other),
            None => Ok(()),
        }
    }

    fn finish(&mut self, _diff_id: &Digest) -> io::Result<()> {
        self.commit().map_err(io::Error::other)
    }
}

impl Drop for ContentSink {
    fn drop(&mut self) {
        if let Some(writer) = self.give_up() {
            let aborted = async move {
                // Otherwise containerd removes it when its lease has expired.
                let _ = writer.abort().await;
            };
            drop(self.runtime.spawn(aborted));
        }
    }
}
