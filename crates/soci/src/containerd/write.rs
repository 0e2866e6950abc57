//! Writing into containerd's content store.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::{
    AbortRequest, Info, InfoRequest, UpdateRequest, WriteAction, WriteContentRequest,
    WriteContentResponse,
};
use containerd_client::tonic::transport::Channel;
use containerd_client::tonic::{Code, Status, Streaming};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use prost_types::FieldMask;
use soci_containerd::labels::SOURCE_PREFIX;
use soci_oci::Descriptor;
use soci_registry::{ErrorKind, RegistryError};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{Containerd, failed};

/// Bytes in one message; containerd takes up to 16 MiB.
const CHUNK: usize = 1 << 20;
/// How long to wait before asking again for a blob that somebody else is writing.
const LOCKED_WAIT: Duration = Duration::from_millis(250);

/// The bytes of a blob, from some offset on.
pub(crate) type BlobStream = BoxStream<'static, anyhow::Result<Bytes>>;

/// A blob that is being written.
struct Ingest {
    requests: mpsc::Sender<WriteContentRequest>,
    responses: Streaming<WriteContentResponse>,
    /// Bytes that are there from an earlier, interrupted try.
    offset: u64,
}

/// Writes a blob with these labels unless it is there; then the labels are added. `open` gives
/// the bytes from an offset on; containerd checks them against the digest. `kind` (`layer`,
/// `manifest`, …) is part of the name under which containerd's own pull writes the blob, so that
/// two pulls do not write it twice. Nothing of a blob that is not what its digest says stays; what an
/// earlier try left is fetched anew if it turns out to be what is wrong.
pub(crate) async fn write<Open, Opening>(
    containerd: &Containerd,
    kind: &str,
    descriptor: &Descriptor,
    labels: HashMap<String, String>,
    open: Open,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> anyhow::Result<()>
where
    Open: Fn(u64) -> Opening,
    Opening: Future<Output = anyhow::Result<BlobStream>>,
{
    let name = format!("{kind}-{}", descriptor.digest);
    let mut content = containerd.services().content();
    loop {
        let Some(mut ingest) = begin(containerd, &mut content, &name, descriptor).await? else {
            return update_labels(containerd, descriptor, labels).await;
        };
        let resumed = ingest.offset > 0;
        progress(ingest.offset);
        let result = fill(&mut ingest, descriptor, labels.clone(), &open, progress).await;
        drop(ingest);
        let Err(error) = result else { return Ok(()) };
        if is_damage(&error) {
            let request = containerd.request(AbortRequest {
                r#ref: name.clone(),
            });
            let aborted = content.abort(request).await;
            if resumed && aborted.is_ok() {
                continue;
            }
        }
        return Err(error.context(format!("blob {}", descriptor.digest)));
    }
}

/// Whether the bytes were wrong, as containerd or the registry's client found.
fn is_damage(error: &anyhow::Error) -> bool {
    let found = error.downcast_ref::<RegistryError>();
    error.is::<Damaged>() || found.is_some_and(|error| error.kind() == ErrorKind::DigestMismatch)
}

/// Writes a small blob.
pub(crate) async fn write_bytes(
    containerd: &Containerd,
    kind: &str,
    descriptor: &Descriptor,
    labels: HashMap<String, String>,
    bytes: Bytes,
) -> anyhow::Result<()> {
    let open = |offset: u64| {
        let bytes = bytes.clone();
        async move {
            let rest = bytes.slice(usize::try_from(offset)?.min(bytes.len())..);
            Ok(futures::stream::once(async { Ok(rest) }).boxed())
        }
    };
    write(containerd, kind, descriptor, labels, open, &|_| {}).await
}

/// Opens the blob for writing; `None` if it is there already (the lease holds it then).
async fn begin(
    containerd: &Containerd,
    content: &mut ContentClient<Channel>,
    name: &str,
    descriptor: &Descriptor,
) -> anyhow::Result<Option<Ingest>> {
    loop {
        let (requests, stream) = mpsc::channel(1);
        let stat = WriteContentRequest {
            action: WriteAction::Stat.into(),
            r#ref: name.to_owned(),
            total: i64::try_from(descriptor.size)?,
            expected: descriptor.digest.to_string(),
            ..WriteContentRequest::default()
        };
        requests.send(stat).await?;
        let request = containerd.request(ReceiverStream::new(stream));
        let answer = match content.write(request).await {
            Ok(responses) => {
                let mut responses = responses.into_inner();
                responses
                    .message()
                    .await
                    .map(|message| (message, responses))
            }
            Err(status) => Err(status),
        };
        match answer {
            Ok((Some(state), responses)) => {
                return Ok(Some(Ingest {
                    requests,
                    responses,
                    offset: u64::try_from(state.offset)?,
                }));
            }
            Ok((None, _)) => bail!("containerd ended the write of {}", descriptor.digest),
            Err(status) if status.code() == Code::AlreadyExists => return Ok(None),
            // Somebody else writes this blob just now.
            Err(status) if is_locked(&status) => tokio::time::sleep(LOCKED_WAIT).await,
            Err(status) => {
                return Err(failed(
                    &format!("write blob {}", descriptor.digest),
                    &status,
                ));
            }
        }
    }
}

fn is_locked(status: &Status) -> bool {
    status.code() == Code::Unavailable && status.message().contains("locked")
}

/// The content is not what its digest says.
#[derive(Debug)]
struct Damaged(String);

impl std::fmt::Display for Damaged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Damaged {}

async fn fill<Open, Opening>(
    ingest: &mut Ingest,
    descriptor: &Descriptor,
    labels: HashMap<String, String>,
    open: &Open,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> anyhow::Result<()>
where
    Open: Fn(u64) -> Opening,
    Opening: Future<Output = anyhow::Result<BlobStream>>,
{
    let mut offset = ingest.offset;
    if offset < descriptor.size {
        let mut stream = open(offset).await?;
        while let Some(mut bytes) = stream.next().await.transpose()? {
            while !bytes.is_empty() {
                let data = bytes.split_to(bytes.len().min(CHUNK));
                let length = data.len() as u64;
                ingest
                    .send(WriteAction::Write, offset, data, descriptor, HashMap::new())
                    .await?;
                offset = offset.saturating_add(length);
                progress(length);
            }
        }
    }
    if offset != descriptor.size {
        let size = descriptor.size;
        return Err(Damaged(format!("{offset} bytes came where {size} were announced")).into());
    }
    ingest
        .send(
            WriteAction::Commit,
            offset,
            Bytes::new(),
            descriptor,
            labels,
        )
        .await
}

impl Ingest {
    async fn send(
        &mut self,
        action: WriteAction,
        offset: u64,
        data: Bytes,
        descriptor: &Descriptor,
        labels: HashMap<String, String>,
    ) -> anyhow::Result<()> {
        let commit = action == WriteAction::Commit;
        let request = WriteContentRequest {
            action: action.into(),
            total: i64::try_from(descriptor.size)?,
            expected: descriptor.digest.to_string(),
            offset: i64::try_from(offset)?,
            data: data.into(),
            labels,
            ..WriteContentRequest::default()
        };
        // A closed channel means that an answer with the reason is waiting.
        let _ = self.requests.send(request).await;
        match self.responses.message().await {
            Ok(Some(_)) => Ok(()),
            Ok(None) => bail!("containerd ended the write early"),
            Err(status) if commit && status.code() == Code::AlreadyExists => Ok(()),
            Err(status) if commit && status.code() == Code::FailedPrecondition => {
                Err(Damaged(format!("containerd refused it: {}", status.message())).into())
            }
            Err(status) => Err(failed("write it", &status)),
        }
    }
}

/// Adds labels to a blob that is there. A source repository is added to those known.
pub(crate) async fn update_labels(
    containerd: &Containerd,
    descriptor: &Descriptor,
    mut labels: HashMap<String, String>,
) -> anyhow::Result<()> {
    let mut content = containerd.services().content();
    let digest = descriptor.digest.to_string();
    let request = containerd.request(InfoRequest {
        digest: digest.clone(),
    });
    let info = content
        .info(request)
        .await
        .map_err(|status| failed(&format!("read the labels of {digest}"), &status))?
        .into_inner()
        .info
        .context("containerd answered without the content's labels")?;
    for (key, value) in &mut labels {
        if let Some(known) = info.labels.get(key)
            && key.starts_with(SOURCE_PREFIX)
        {
            let mut all: Vec<&str> = known.split(',').collect();
            if !all.contains(&value.as_str()) {
                all.push(value);
            }
            *value = all.join(",");
        }
    }
    labels.retain(|key, value| info.labels.get(key) != Some(value));
    if labels.is_empty() {
        return Ok(());
    }
    let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
    let request = containerd.request(UpdateRequest {
        info: Some(Info {
            digest: digest.clone(),
            labels,
            ..Info::default()
        }),
        update_mask: Some(FieldMask { paths }),
    });
    content
        .update(request)
        .await
        .map_err(|status| failed(&format!("label {digest}"), &status))?;
    Ok(())
}
