//! Downloading layer blobs into containerd, several at a time, each at most once.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use anyhow::anyhow;
use futures::future::{BoxFuture, FutureExt as _, Shared};
use futures::{StreamExt as _, TryStreamExt as _};
use soci_containerd::{Content, labels};
use soci_oci::{Descriptor, Digest, Reference};
use soci_registry::{BlobSource as _, Client, Deadline, ErrorKind, RegistryError};
use tokio::sync::{Mutex, Semaphore};

use crate::output;
use crate::progress::Bars;

/// A download that several may wait for; the error is its text.
type Download = Shared<BoxFuture<'static, Result<(), Arc<anyhow::Error>>>>;

/// Downloads layer blobs. Dropping it stops them.
pub(crate) struct Downloads {
    content: Content,
    client: Client,
    reference: Reference,
    bars: Arc<Bars>,
    slots: Arc<Semaphore>,
    started: Mutex<HashMap<Digest, Download>>,
    tasks: Mutex<tokio::task::JoinSet<()>>,
}

impl Downloads {
    /// Nothing is downloaded yet; at most `parallel` blobs are at a time.
    pub(crate) fn new(
        content: Content,
        client: Client,
        reference: Reference,
        bars: Arc<Bars>,
        parallel: usize,
    ) -> Self {
        Self {
            content,
            client,
            reference,
            bars,
            slots: Arc::new(Semaphore::new(parallel)),
            started: Mutex::default(),
            tasks: Mutex::default(),
        }
    }

    /// Starts downloading a layer unless that was done before.
    pub(crate) async fn start(&self, layer: &Descriptor) {
        let download = self.download(layer).await;
        self.tasks.lock().await.spawn(async move {
            // The consumer of the layer gets the error.
            let _ = download.await;
        });
    }

    /// Returns when the layer is in containerd's content store.
    pub(crate) async fn wait(&self, layer: &Descriptor) -> anyhow::Result<()> {
        let download = self.download(layer).await;
        download
            .await
            .map_err(|error| anyhow!(output::reason(&error)))
    }

    async fn download(&self, layer: &Descriptor) -> Download {
        let mut started = self.started.lock().await;
        started
            .entry(layer.digest)
            .or_insert_with(|| {
                let layer = layer.clone();
                let (content, client) = (self.content.clone(), self.client.clone());
                let (reference, bars) = (self.reference.clone(), Arc::clone(&self.bars));
                let slots = Arc::clone(&self.slots);
                async move {
                    let _slot = slots.acquire().await;
                    download(&content, &client, &reference, &layer, &bars)
                        .await
                        .map_err(Arc::new)
                }
                .boxed()
                .shared()
            })
            .clone()
    }
}

async fn download(
    content: &Content,
    client: &Client,
    reference: &Reference,
    layer: &Descriptor,
    bars: &Bars,
) -> anyhow::Result<()> {
    bars.begin(layer, "download");
    let size = layer.size;
    let open = |offset: u64| async move {
        let stream = if offset == 0 {
            client.blob_stream(reference, layer).await
        } else {
            let blob = client.blob(reference, layer);
            blob.stream_range(offset..size, Deadline::far()).await
        };
        Ok(stream.map_err(supply)?.map_err(supply).boxed())
    };
    let labels = HashMap::from([labels::source(reference)]);
    let advance = |bytes| bars.advance(layer.digest, bytes);
    let result = content.write("layer", layer, labels, open, &advance).await;
    bars.end(layer.digest);
    Ok(result?)
}

/// Converts an error of the registry for the writer, which reads a blob again from its start if
/// its bytes were wrong.
fn supply(error: RegistryError) -> io::Error {
    let kind = match error.kind() {
        ErrorKind::DigestMismatch => io::ErrorKind::InvalidData,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}
