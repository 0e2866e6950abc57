//! Where the order of a start comes from: starts of this node, a profile that refers to the image at
//! its registry, prefetch artifacts that the image's index lists.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use soci_oci::Descriptor;
use soci_profile::{Blocks, MEDIA_TYPE, Merged, Profile, ProfiledLayer};
use soci_registry::{Client, RegistryError};
use soci_store::{LayerKey, ProfileFiles};
use soci_ztoc::prefetch::{Prefetch, PrefetchError};

use crate::Artifacts;
use crate::image_layer::ImageKey;
use crate::index_files::FoundIndex;
use crate::layer_loader::layer_key;
use crate::lease::LeaseMap;
use crate::open_layer::OpenLayer;
use crate::profile_config::ProfileConfig;

/// Largest prefetch artifact in bytes.
const MAX_ARTIFACT: u64 = 1 << 20;
/// Number of prefetch artifacts of an image that are read.
const MAX_ARTIFACTS: usize = 256;
/// Number of prefetch artifacts that are read at a time.
const AT_ONCE: usize = 8;
/// Number of spans of an order.
const MAX_SPANS: usize = 8192;

/// Where an order comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StartOrigin {
    /// Starts of the image on this node.
    Recorded,
    /// A profile at the registry that refers to the image.
    Referrer,
    /// Prefetch artifacts that the index of the image lists.
    Index,
}

impl StartOrigin {
    /// The word for it in logs and status. It never changes.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Recorded => "recorded",
            Self::Referrer => "referrer",
            Self::Index => "index",
        }
    }
}

/// What a start is expected to read.
#[derive(Debug, Default)]
pub(crate) struct StartOrder {
    /// Spans in the order of first use.
    pub(crate) spans: Vec<(LayerKey, u32)>,
    /// The blocks of 64 KiB of each layer's tar, where they are known.
    pub(crate) blocks: HashMap<LayerKey, Blocks>,
}

impl StartOrder {
    fn of_merged(merged: &Merged) -> Self {
        let key = |layer: &ProfiledLayer| LayerKey {
            layer: layer.layer,
            ztoc: layer.ztoc,
        };
        let mut order = Self::default();
        for span in merged.spans() {
            let layer = key(&span.layer);
            order.spans.push((layer, span.span));
            if let Some(blocks) = merged.blocks(&span.layer)
                && !order.blocks.contains_key(&layer)
            {
                order.blocks.insert(layer, blocks.clone());
            }
        }
        order
    }
}

/// Finds the order of starts.
pub(crate) struct StartOrders {
    pub(crate) files: Option<ProfileFiles>,
    pub(crate) client: Client,
    pub(crate) artifacts: Artifacts,
    pub(crate) config: ProfileConfig,
    /// The layers in use.
    pub(crate) layers: Arc<LeaseMap<OpenLayer>>,
    /// Time after which the registry is not waited for any longer.
    pub(crate) time_limit: Duration,
}

/// Why the registry has no usable profile.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Profile(#[from] soci_profile::ProfileError),
    #[error(transparent)]
    Prefetch(#[from] PrefetchError),
    #[error("it has {size} bytes, more than the limit of {MAX_ARTIFACT}")]
    TooLarge { size: u64 },
    #[error("no response within mount_timeout_sec")]
    Late,
}

impl StartOrders {
    /// Returns what is known of the starts of an image. What this node recorded comes before what
    /// others did; of these a profile that was published for the image comes first, which is looked
    /// for once, at the pull. An image that is stored has nothing to be fetched: the registry is not
    /// asked what to fetch first.
    pub(crate) async fn find(
        &self,
        image: &ImageKey,
        found: &FoundIndex,
        pulled: bool,
    ) -> Option<(StartOrigin, StartOrder)> {
        if let Some(order) = self.recorded(image).await {
            return Some((StartOrigin::Recorded, order));
        }
        if self.is_stored(found) {
            return None;
        }
        let referring = async {
            match pulled {
                true => self.referring(image).await,
                false => None,
            }
        };
        let (referring, listed) = tokio::join!(referring, self.listed(image, found));
        match (referring, listed) {
            (Some(mut order), listed) => {
                let rest = listed.unwrap_or_default().spans;
                order.spans.extend(rest);
                Some((StartOrigin::Referrer, order))
            }
            (None, Some(order)) => Some((StartOrigin::Index, order)),
            (None, None) => None,
        }
    }

    /// Whether all layers that an index lists are in use and stored as a whole.
    fn is_stored(&self, found: &FoundIndex) -> bool {
        let index = &found.index;
        // Of several zTOCs of a layer the first is used.
        let mut used = index
            .ztocs
            .iter()
            .filter_map(|ztoc| index.ztoc_for(&ztoc.layer_digest));
        used.all(|ztoc| {
            let layer = self.layers.open(&layer_key(ztoc));
            layer.is_some_and(|layer| layer.data.stored().is_complete())
        })
    }

    /// Returns what starts of an image on this node have read.
    pub(crate) async fn recorded(&self, image: &ImageKey) -> Option<StartOrder> {
        let (files, manifest) = (self.files.clone()?, image.manifest);
        let loaded = soci_task::run(move || files.load(&manifest)).await.ok()?;
        let profile = loaded.unwrap_or_else(|error| {
            tracing::info!(%manifest, error = %error, "ignoring start-up profile");
            None
        });
        let order = StartOrder::of_merged(&profile?.merged());
        (!order.spans.is_empty()).then_some(order)
    }

    /// Asks the registry for a profile that refers to the image.
    async fn referring(&self, image: &ImageKey) -> Option<StartOrder> {
        if !self.config.enable || !self.config.referrers {
            return None;
        }
        // Boxed: a request to a registry is a large future.
        let work = Box::pin(self.fetch_referring(image));
        let fetched = tokio::time::timeout(self.time_limit, work).await;
        let image = &image.reference;
        match fetched.unwrap_or(Err(FetchError::Late)) {
            Ok(profile) => {
                let profile = profile?;
                let order = StartOrder::of_merged(&profile.merged());
                self.keep(profile).await;
                (!order.spans.is_empty()).then_some(order)
            }
            // Most registries have none, and some do not answer such questions.
            Err(error @ FetchError::Registry(_)) => {
                tracing::debug!(%image, error = soci_errors::chain(&error), "no start-up profile at the registry");
                None
            }
            Err(error) => {
                tracing::info!(%image, error = soci_errors::chain(&error), "ignoring start-up profile");
                None
            }
        }
    }

    async fn fetch_referring(&self, image: &ImageKey) -> Result<Option<Profile>, FetchError> {
        let (client, reference) = (&self.client, &image.reference);
        let kind = Some(MEDIA_TYPE);
        let referrers = client.referrers(reference, image.manifest, kind).await?;
        let Some(newest) = soci_profile::newest(&referrers) else {
            return Ok(None);
        };
        let (_, manifest) = client.manifest(reference, newest.digest).await?;
        let blob = soci_profile::profile_of(&manifest)?;
        let mut profile = Profile::parse(&client.blob_bytes(reference, &blob).await?)?;
        profile.manifest = image.manifest;
        tracing::info!(image = %reference, digest = %newest.digest, "found start-up profile at the registry");
        Ok(Some(profile))
    }

    /// Stores a profile from the registry: starts on this node add to it.
    async fn keep(&self, profile: Profile) {
        let Some(files) = self.files.clone() else {
            return;
        };
        if let Err(error) = soci_task::blocking(move || files.replace(&profile)).await {
            tracing::warn!(
                error = soci_errors::chain(&error),
                "cannot store start-up profile"
            );
        }
    }

    /// Reads the prefetch artifacts that an index lists.
    async fn listed(&self, image: &ImageKey, found: &FoundIndex) -> Option<StartOrder> {
        let index = &found.index;
        if !self.config.prefetch || index.prefetch.is_empty() {
            return None;
        }
        let mut seen = HashSet::new();
        let artifacts = index.prefetch.iter();
        // Those of layers that can be lazy; of several for one layer the first.
        let artifacts: Vec<_> = artifacts
            .filter(|artifact| seen.insert(artifact.layer_digest))
            .filter_map(|artifact| {
                let ztoc = index.ztoc_for(&artifact.layer_digest)?;
                let key = layer_key(ztoc);
                Some((key, artifact.descriptor.clone()))
            })
            .take(MAX_ARTIFACTS)
            .collect();
        let ignored = index.prefetch.len() - artifacts.len();
        if ignored > 0 {
            tracing::warn!(index = %found.digest, ignored, "ignoring prefetch artifacts of an index");
        }
        let at_once = self.config.layers_at_once.unwrap_or(AT_ONCE).min(AT_ONCE);
        let read = artifacts
            .into_iter()
            .map(|(key, artifact)| self.read_listed(image, key, artifact));
        let mut runs: Vec<_> = stream::iter(read)
            .buffered(at_once.max(1))
            .enumerate()
            .filter_map(async |(place, read)| Some((place, read?)))
            .collect::<Vec<_>>()
            .await
            .into_iter()
            .flat_map(|(place, (key, artifact))| {
                let runs = artifact.by_priority().into_iter();
                runs.map(move |run| (run.priority, place, run.start_span, run.range(), key))
            })
            .collect();
        runs.sort_by_key(|(priority, place, start, ..)| (*priority, *place, *start));
        let spans = runs
            .into_iter()
            .flat_map(|(.., range, key)| range.map(move |span| (key, span)))
            .take(MAX_SPANS)
            .collect();
        Some(StartOrder {
            spans,
            blocks: HashMap::new(),
        })
    }

    async fn read_listed(
        &self,
        image: &ImageKey,
        layer: LayerKey,
        artifact: Descriptor,
    ) -> Option<(LayerKey, Prefetch)> {
        // Boxed: a request to a registry is a large future.
        let work = Box::pin(self.fetch_listed(image, &artifact));
        let read = tokio::time::timeout(self.time_limit, work).await;
        let digest = artifact.digest;
        match read.unwrap_or(Err(FetchError::Late)) {
            Ok(read) => {
                // As v0.15 says it.
                tracing::info!(%digest, layer = %layer.layer, runs = read.prefetch_spans.len(), "Successfully loaded prefetch artifact");
                Some((layer, read))
            }
            Err(error) => {
                tracing::warn!(%digest, layer = %layer.layer, error = soci_errors::chain(&error), "cannot load prefetch artifact");
                None
            }
        }
    }

    async fn fetch_listed(
        &self,
        image: &ImageKey,
        artifact: &Descriptor,
    ) -> Result<Prefetch, FetchError> {
        let size = artifact.size;
        if size > MAX_ARTIFACT {
            return Err(FetchError::TooLarge { size });
        }
        let namespace = &image.namespace;
        let stored = self
            .artifacts
            .get(namespace, &artifact.digest, MAX_ARTIFACT);
        let bytes: Bytes = match stored.await {
            Some(bytes) => bytes,
            None => {
                let (client, reference) = (&self.client, &image.reference);
                client.blob_bytes(reference, artifact).await?
            }
        };
        Ok(Prefetch::parse(&bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use soci_oci::{Digest, media_types};
    use soci_registry::{ChainedCredentials, ClientConfig};
    use soci_store::content::OciLayout;
    use soci_ztoc::soci_index::{IndexVersion, PrefetchDescriptor, SociIndex, ZtocDescriptor};

    use super::*;

    fn ztoc(layer: &str) -> ZtocDescriptor {
        let blob = format!("ztoc of {layer}");
        let layer = Digest::of(layer.as_bytes());
        ZtocDescriptor::new(
            blob.as_bytes(),
            layer,
            media_types::OCI_LAYER_GZIP,
            1,
            false,
        )
    }

    /// Finds orders with the artifacts of this store, and at no registry.
    fn orders(layout: OciLayout, config: ProfileConfig) -> StartOrders {
        let credentials = Arc::new(ChainedCredentials::new(Vec::new()));
        StartOrders {
            files: None,
            client: Client::new(ClientConfig::default(), credentials).unwrap(),
            artifacts: Artifacts::Layout(layout),
            config,
            layers: Arc::default(),
            // Only ends a test that hangs.
            time_limit: Duration::from_secs(600),
        }
    }

    fn image() -> ImageKey {
        ImageKey {
            // Nothing listens there.
            reference: "127.0.0.1:1/app:1".parse().unwrap(),
            manifest: Digest::of(b"m"),
            explicit_index: None,
            namespace: String::new(),
        }
    }

    /// Finds the order of an image whose index lists these artifacts, which are stored.
    async fn order<T: AsRef<str>>(
        artifacts: &[(T, T)],
        config: ProfileConfig,
    ) -> Vec<(LayerKey, u32)> {
        let dir = tempfile::tempdir().unwrap();
        let layout = OciLayout::open(dir.path()).unwrap();
        let artifacts: Vec<(&str, &str)> = artifacts
            .iter()
            .map(|(layer, artifact)| (layer.as_ref(), artifact.as_ref()))
            .collect();
        let mut layers: Vec<&str> = ["a", "b"].into();
        layers.extend(artifacts.iter().map(|(layer, _)| *layer));
        // No zTOC of that layer is listed.
        layers.retain(|layer| *layer != "c");
        let listed = artifacts.iter().map(|(layer, artifact)| {
            let listed = PrefetchDescriptor::new(artifact.as_bytes(), Digest::of(layer.as_bytes()));
            layout.put(&listed.descriptor, artifact.as_bytes()).unwrap();
            listed
        });
        let ztocs = layers.into_iter().map(ztoc).collect();
        let (version, listed) = (IndexVersion::V2, listed.collect());
        let index = SociIndex::new(version, ztocs, listed, None, BTreeMap::new());
        let orders = orders(layout, config);
        let digest = Digest::of(b"index");
        let found = orders
            .find(&image(), &FoundIndex { digest, index }, false)
            .await;
        found.map_or_else(Vec::new, |(origin, order)| {
            assert_eq!(origin, StartOrigin::Index);
            order.spans
        })
    }

    fn key(layer: &str) -> LayerKey {
        layer_key(&ztoc(layer))
    }

    #[tokio::test]
    async fn artifacts_of_an_index_are_played_in_one_order_over_all_layers() {
        let a = r#"{"version":"1.0","prefetch_spans":[{"start_span":4,"end_span":5,"priority":2},{"start_span":9,"end_span":9}]}"#;
        let b = r#"{"version":"1.0","prefetch_spans":[{"start_span":7,"end_span":7,"priority":1},{"start_span":1,"end_span":1}]}"#;
        let artifacts = [("a", a), ("b", b)];
        let played = order(&artifacts, ProfileConfig::default()).await;
        let (a, b) = (key("a"), key("b"));
        assert_eq!(played, [(a, 9), (b, 1), (b, 7), (a, 4), (a, 5)]);
        let off = ProfileConfig {
            prefetch: false,
            ..ProfileConfig::default()
        };
        assert!(order(&artifacts, off).await.is_empty());
    }

    #[tokio::test]
    async fn hostile_artifacts_are_ignored_or_cut_off() {
        let span = |span: u64| format!(r#"{{"start_span":{span},"end_span":{span}}}"#);
        let artifact = |spans: &str| format!(r#"{{"version":"1.0","prefetch_spans":[{spans}]}}"#);
        let good = artifact(&span(3));
        let whole = artifact(r#"{"start_span":0,"end_span":4294967295}"#);
        let million = artifact(&vec![span(1); 100_000].join(","));
        let newer = good.replace("1.0", "2.0");
        let config = ProfileConfig::default;
        for bad in [&million, &newer, &"{".to_owned(), &artifact("")] {
            let played = order(&[("b", bad), ("a", &good)], config()).await;
            assert_eq!(
                played,
                [(key("a"), 3)],
                "{}",
                bad.get(..40.min(bad.len())).unwrap()
            );
        }
        // Everything there is: as much as a start may have.
        let played = order(&[("a", &whole), ("b", &whole)], config()).await;
        assert_eq!(played.len(), MAX_SPANS);
        // Of two for one layer the first; of a layer that the index does not know none.
        let other = artifact(&span(8));
        let artifacts: [(&str, &str); 3] = [("a", &good), ("a", &other), ("c", &other)];
        assert_eq!(order(&artifacts, config()).await, [(key("a"), 3)]);
        let many: Vec<(&str, &str)> = vec![("a", &good); 5000];
        assert_eq!(order(&many, config()).await, [(key("a"), 3)]);
    }

    #[tokio::test]
    async fn artifacts_over_the_limits_of_size_and_number_are_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let layout = OciLayout::open(dir.path()).unwrap();
        let orders = orders(layout.clone(), ProfileConfig::default());
        let valid = |length: usize| {
            let start = r#"{"version":"1.0","prefetch_spans":[{"start_span":1,"end_span":1}]"#;
            format!("{start}{}}}", " ".repeat(length - start.len() - 1))
        };
        let limit = usize::try_from(MAX_ARTIFACT).unwrap();
        for (length, stored) in [(limit, true), (limit + 1, true), (limit + 1, false)] {
            let bytes = valid(length);
            let artifact = PrefetchDescriptor::new(bytes.as_bytes(), Digest::of(b"a")).descriptor;
            match stored {
                true => drop(layout.put(&artifact, bytes.as_bytes()).unwrap()),
                false => assert!(layout.delete(&artifact.digest).unwrap()),
            }
            // Without the limit, it would be requested of a registry that is not there.
            match orders.fetch_listed(&image(), &artifact).await {
                Ok(_) => assert_eq!(length, limit),
                Err(FetchError::TooLarge { size }) => assert_eq!(size, MAX_ARTIFACT + 1),
                Err(error) => panic!("{error}"),
            }
        }

        let artifact = r#"{"version":"1.0","prefetch_spans":[{"start_span":1,"end_span":1}]}"#;
        let layers = (0..MAX_ARTIFACTS + 50).map(|layer| format!("layer {layer}"));
        let artifacts: Vec<(String, String)> =
            layers.map(|layer| (layer, artifact.to_owned())).collect();
        let played = order(&artifacts, ProfileConfig::default()).await;
        assert_eq!(played.len(), MAX_ARTIFACTS);
    }
}
