//! Writing blobs, resumed where an earlier attempt stopped.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use containerd_client::services::v1::{
    AbortRequest, WriteAction, WriteContentRequest, WriteContentResponse,
};
use containerd_client::tonic::{Code, Status, Streaming};
use futures::StreamExt as _;
use soci_oci::Descriptor;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{BlobStream, Content};
use crate::client::signed;
use crate::error::ContainerdError;

/// Bytes in one message; containerd accepts up to 16 MiB.
const CHUNK: usize = 1 << 20;
/// Time between two attempts to write a blob that another client is writing.
const LOCKED_WAIT: Duration = Duration::from_millis(250);
/// Lifetime of the lease of [`Content::put`] if this process dies.
const PUT_LEASE: Duration = Duration::from_secs(3600);

/// A blob that is being written.
pub struct BlobWriter {
    content: Content,
    blob: Descriptor,
    /// Name of the write, which an interrupted one keeps.
    name: String,
    requests: mpsc::Sender<WriteContentRequest>,
    responses: Streaming<WriteContentResponse>,
    /// Bytes that have been written, also by an earlier, interrupted attempt.
    offset: u64,
}

impl std::fmt::Debug for BlobWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut f = f.debug_struct("BlobWriter");
        f.field("name", &self.name).field("offset", &self.offset);
        f.finish_non_exhaustive()
    }
}

impl Content {
    /// Writes a blob with labels unless it is stored; then the labels are added.
    ///
    /// `open` returns the bytes from an offset on; containerd checks them against the digest. `kind`
    /// (`layer`, `manifest`, …) is part of the name under which containerd's own pull writes the
    /// blob, so that two pulls do not write it twice. Bytes that do not have the digest are not
    /// kept; if an earlier attempt left wrong bytes, the blob is read again from its start.
    ///
    /// # Errors
    /// The bytes cannot be read or do not have the digest, or containerd refuses.
    pub async fn write<Open, Opening>(
        &self,
        kind: &str,
        blob: &Descriptor,
        labels: HashMap<String, String>,
        open: Open,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), ContainerdError>
    where
        Open: Fn(u64) -> Opening,
        Opening: Future<Output = io::Result<BlobStream>>,
    {
        let name = format!("{kind}-{}", blob.digest);
        loop {
            let Some(mut ingest) = self.begin_write(&name, blob).await? else {
                return self.add_labels(&blob.digest, labels).await;
            };
            let resumed = ingest.offset > 0;
            progress(ingest.offset);
            let result = ingest.fill(labels.clone(), &open, progress).await;
            drop(ingest);
            let Err(error) = result else { return Ok(()) };
            if is_damage(&error) && self.abort(&name).await.is_ok() && resumed {
                continue;
            }
            return Err(error);
        }
    }

    /// Writes a small blob with labels unless it is stored; then the labels are added.
    ///
    /// # Errors
    /// The bytes do not have the digest, or containerd refuses.
    pub async fn write_bytes(
        &self,
        kind: &str,
        blob: &Descriptor,
        labels: HashMap<String, String>,
        bytes: Bytes,
    ) -> Result<(), ContainerdError> {
        let open = |offset: u64| {
            let offset = usize::try_from(offset).unwrap_or(usize::MAX);
            let rest = bytes.slice(offset.min(bytes.len())..);
            async { Ok(futures::stream::once(async { Ok(rest) }).boxed()) }
        };
        self.write(kind, blob, labels, open, &|_| {}).await
    }

    /// Writes a small blob as [`Content::write_bytes`] does, under a lease of its own: otherwise the
    /// garbage collector could remove it before the labels are set.
    ///
    /// # Errors
    /// The bytes do not have the digest, or containerd refuses.
    pub async fn put(
        &self,
        kind: &str,
        blob: &Descriptor,
        labels: HashMap<String, String>,
        bytes: Bytes,
    ) -> Result<(), ContainerdError> {
        let leased = Self {
            namespace: self.namespace.leased(PUT_LEASE).await?,
            ..self.clone()
        };
        let written = leased.write_bytes(kind, blob, labels, bytes).await;
        let released = leased.namespace.release_lease().await;
        written.and(released)
    }

    /// Removes what was written under a name and not committed; nothing is not an error.
    async fn abort(&self, name: &str) -> Result<(), ContainerdError> {
        let request = self.namespace.request(AbortRequest {
            r#ref: name.to_owned(),
        });
        match self.client().abort(request).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(self.namespace.failed(format!("abort write {name}"))(status)),
        }
    }

    /// Opens a blob for writing under a name; `None` if it is stored already (the lease keeps it then).
    /// Waits while another client writes under the same name.
    ///
    /// # Errors
    /// containerd refuses.
    pub async fn begin_write(
        &self,
        name: &str,
        blob: &Descriptor,
    ) -> Result<Option<BlobWriter>, ContainerdError> {
        let action = || format!("write blob {}", blob.digest);
        loop {
            let (requests, stream) = mpsc::channel(1);
            let stat = WriteContentRequest {
                action: WriteAction::Stat.into(),
                r#ref: name.to_owned(),
                total: signed(blob.size),
                expected: blob.digest.to_string(),
                ..WriteContentRequest::default()
            };
            // The receiver is alive: it is the stream of the request below.
            let _ = requests.send(stat).await;
            let request = self.namespace.request(ReceiverStream::new(stream));
            let answer = match self.client().write(request).await {
                Ok(responses) => {
                    let mut responses = responses.into_inner();
                    let state = responses.message().await;
                    state.map(|state| (state, responses))
                }
                Err(status) => Err(status),
            };
            match answer {
                Ok((Some(state), responses)) => {
                    return Ok(Some(BlobWriter {
                        content: self.clone(),
                        blob: blob.clone(),
                        name: name.to_owned(),
                        requests,
                        responses,
                        offset: u64::try_from(state.offset).unwrap_or_default(),
                    }));
                }
                Ok((None, _)) => {
                    return Err(ContainerdError::Incomplete {
                        action: action(),
                        missing: "state of the write",
                    });
                }
                Err(status) if status.code() == Code::AlreadyExists => return Ok(None),
                Err(status) if is_locked(&status) => tokio::time::sleep(LOCKED_WAIT).await,
                Err(status) => return Err(self.namespace.failed(action())(status)),
            }
        }
    }
}

/// Returns whether another client writes the blob.
fn is_locked(status: &Status) -> bool {
    status.code() == Code::Unavailable && status.message().contains("locked")
}

/// Returns whether containerd or the source found the bytes to be wrong.
fn is_damage(error: &ContainerdError) -> bool {
    match error {
        ContainerdError::Damaged { .. } => true,
        ContainerdError::Supply { source, .. } => source.kind() == io::ErrorKind::InvalidData,
        _ => false,
    }
}

impl BlobWriter {
    /// Number of bytes that have been written; the next ones follow them.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// Appends bytes, in messages that containerd accepts.
    ///
    /// # Errors
    /// containerd refuses.
    pub async fn append(&mut self, mut bytes: Bytes) -> Result<(), ContainerdError> {
        while !bytes.is_empty() {
            let data = bytes.split_to(bytes.len().min(CHUNK));
            let length = data.len() as u64;
            self.send(WriteAction::Write, self.offset, data, HashMap::new())
                .await?;
            self.offset = self.offset.saturating_add(length);
        }
        Ok(())
    }

    /// Stores the blob with labels. containerd compares the bytes with the digest.
    ///
    /// # Errors
    /// The bytes are not the blob's, or containerd refuses.
    pub async fn commit(&mut self, labels: HashMap<String, String>) -> Result<(), ContainerdError> {
        let (offset, size) = (self.offset, self.blob.size);
        if offset != size {
            return Err(self.damaged(format!("it has {offset} bytes where {size} were announced")));
        }
        self.send(WriteAction::Commit, offset, Bytes::new(), labels)
            .await
    }

    /// Aborts the write: nothing of it is kept.
    ///
    /// # Errors
    /// containerd refuses.
    pub async fn abort(self) -> Result<(), ContainerdError> {
        let Self { content, name, .. } = self;
        content.abort(&name).await
    }

    async fn fill<Open, Opening>(
        &mut self,
        labels: HashMap<String, String>,
        open: &Open,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), ContainerdError>
    where
        Open: Fn(u64) -> Opening,
        Opening: Future<Output = io::Result<BlobStream>>,
    {
        let (digest, size) = (self.blob.digest, self.blob.size);
        let supply = |source| ContainerdError::Supply { digest, source };
        if self.offset < size {
            let mut stream = open(self.offset).await.map_err(supply)?;
            while let Some(mut bytes) = stream.next().await.transpose().map_err(supply)? {
                while !bytes.is_empty() {
                    let data = bytes.split_to(bytes.len().min(CHUNK));
                    let length = data.len() as u64;
                    self.append(data).await?;
                    progress(length);
                }
            }
        }
        self.commit(labels).await
    }

    async fn send(
        &mut self,
        action: WriteAction,
        offset: u64,
        data: Bytes,
        labels: HashMap<String, String>,
    ) -> Result<(), ContainerdError> {
        let commit = action == WriteAction::Commit;
        let request = WriteContentRequest {
            action: action.into(),
            total: signed(self.blob.size),
            expected: self.blob.digest.to_string(),
            offset: signed(offset),
            data: data.into(),
            labels,
            ..WriteContentRequest::default()
        };
        // If the channel is closed, a response with the reason is waiting.
        let _ = self.requests.send(request).await;
        let action = || format!("write blob {}", self.blob.digest);
        match self.responses.message().await {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(ContainerdError::Incomplete {
                action: action(),
                missing: "confirmation",
            }),
            Err(status) if commit && status.code() == Code::AlreadyExists => Ok(()),
            Err(status) if commit && status.code() == Code::FailedPrecondition => {
                Err(self.damaged(format!("containerd refused it: {}", status.message())))
            }
            Err(status) => Err(self.content.namespace.failed(action())(status)),
        }
    }

    fn damaged(&self, reason: String) -> ContainerdError {
        ContainerdError::Damaged {
            digest: self.blob.digest,
            reason,
        }
    }
}
