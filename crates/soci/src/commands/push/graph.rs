//! Uploading an index: first all that it lists, in parallel, then itself, so that it is never
//! visible before it is complete.

use std::collections::{BTreeSet, HashMap};

use anyhow::Context as _;
use futures::{StreamExt as _, TryStreamExt as _};
use soci_containerd::{Content, labels};
use soci_oci::{Descriptor, Digest, Reference};
use soci_registry::{BlobBody, Client, PushOutcome};
use soci_ztoc::soci_index::SociIndex;

use crate::artifact_store::ArtifactStore;
use crate::interrupt::committing;
use crate::output;
use crate::progress::Bars;

/// What is needed to upload an index.
pub(super) struct Graph<'a> {
    pub(super) store: &'a ArtifactStore,
    /// Where it is noted which repositories have the blobs, if there is such a place.
    pub(super) labels: Option<&'a Content>,
    pub(super) client: &'a Client,
    pub(super) reference: &'a Reference,
    pub(super) parallel: usize,
    pub(super) quiet: bool,
    pub(super) bars: &'a Bars,
}

impl Graph<'_> {
    pub(super) async fn push(&self, digest: Digest) -> anyhow::Result<()> {
        let bytes = self.store.bytes(&digest).await?;
        let index = SociIndex::parse(&bytes).with_context(|| format!("SOCI index {digest}"))?;
        let mut seen = BTreeSet::new();
        let blobs = std::iter::once(&index.manifest.config)
            .chain(&index.manifest.layers)
            .filter(|blob| seen.insert(blob.digest));
        futures::stream::iter(blobs.map(|blob| self.blob(blob)))
            .buffer_unordered(self.parallel)
            .try_collect::<()>()
            .await?;
        let at = self.reference.at(digest);
        let exists = self.client.manifest_exists(&at).await?;
        committing();
        if exists {
            // Pushed again all the same: it may have been left out of the referrers.
            self.client
                .push_manifest(&at, &index.manifest.media_type, bytes)
                .await?;
            self.say("skipped artifact with digest", digest);
            return Ok(());
        }
        self.say("pushing artifact with digest", digest);
        self.client
            .push_manifest(&at, &index.manifest.media_type, bytes)
            .await?;
        self.say("successfully pushed artifact with digest", digest);
        Ok(())
    }

    async fn blob(&self, blob: &Descriptor) -> anyhow::Result<()> {
        let digest = blob.digest;
        if self.client.blob_exists(self.reference, blob).await? {
            self.say("skipped artifact with digest", digest);
            return Ok(());
        }
        self.say("pushing artifact with digest", digest);
        self.bars.begin(blob, "upload");
        let sent = std::sync::atomic::AtomicU64::new(0);
        let progress = |all: u64| {
            let before = sent.swap(all, std::sync::atomic::Ordering::Relaxed);
            self.bars.advance(digest, all.saturating_sub(before));
        };
        let body = self.body(blob).await?;
        let from = self.other_repository(&digest).await?;
        let pushed = self
            .client
            .push_blob(self.reference, blob, body, from.as_deref(), Some(&progress))
            .await;
        self.bars.end(digest);
        let outcome = pushed.with_context(|| format!("cannot push {digest}"))?;
        if outcome == PushOutcome::Mounted {
            tracing::debug!(%digest, "the registry took it from another repository");
        }
        self.note(&digest).await?;
        self.say("successfully pushed artifact with digest", digest);
        Ok(())
    }

    /// The artifact's bytes, readable again when an upload has to start over. zTOCs are small enough
    /// to be held, one per upload at a time.
    async fn body(&self, blob: &Descriptor) -> anyhow::Result<BlobBody> {
        use futures::TryStreamExt as _;
        let mut stream = self.store.stream(&blob.digest).await?;
        let mut bytes = bytes::BytesMut::new();
        while let Some(part) = stream.try_next().await? {
            bytes.extend_from_slice(&part);
        }
        let bytes = soci_index::verify(bytes.freeze(), blob, &self.store.to_string())?;
        Ok(BlobBody::from(bytes))
    }

    /// Another repository of the same registry that has the blob.
    async fn other_repository(&self, digest: &Digest) -> anyhow::Result<Option<String>> {
        let Some(content) = self.labels else {
            return Ok(None);
        };
        let (key, _) = labels::source(self.reference);
        let Some(info) = content.info(digest).await? else {
            return Ok(None);
        };
        let known = info
            .labels
            .get(&key)
            .map(String::as_str)
            .unwrap_or_default();
        Ok(known
            .split(',')
            .find(|name| !name.is_empty() && *name != self.reference.repository())
            .map(ToOwned::to_owned))
    }

    /// Notes that this repository has the blob now.
    async fn note(&self, digest: &Digest) -> anyhow::Result<()> {
        let Some(content) = self.labels else {
            return Ok(());
        };
        let source = labels::source(self.reference);
        Ok(content.add_labels(digest, HashMap::from([source])).await?)
    }

    fn say(&self, what: &str, digest: Digest) {
        if !self.quiet {
            self.bars
                .suspend(|| output::line(format!("{what}: {digest}")));
        }
    }
}
