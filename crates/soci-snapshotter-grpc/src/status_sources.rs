//! The sources of the answer of `soci status`: each fills in a part of it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use soci_eager::{EagerLayers, ImageProgress, WorkProgress};
use soci_holder::Keeper;
use soci_lazy::LazyLayers;
use soci_snapshotter::Snapshotter;
use soci_status::api::{
    Counts, Daemon, GetResponse, Health, Holder, Image, LayerState, LayerStore, PlayingProfile,
    Profiles, Pull, PulledLayer, Registry, RegistryHost,
};
use soci_status::{Filler, SourceError, StatusSource};
use soci_store::Owner;

use crate::args::{REVISION, VERSION};
use crate::images::{image_of_chain, images};

/// This process.
pub(crate) struct DaemonSource {
    pub(crate) root: PathBuf,
    pub(crate) started: Instant,
    pub(crate) owner: Owner,
}

#[async_trait]
impl StatusSource for DaemonSource {
    async fn fill(&self, status: &mut GetResponse) -> Result<(), SourceError> {
        status.daemon = Some(Daemon {
            version: VERSION.to_owned(),
            revision: REVISION.to_owned(),
            pid: self.owner.supervisor.unwrap_or(0),
            uptime_seconds: self.started.elapsed().as_secs(),
            root: self.root.display().to_string(),
            server_pid: self.owner.server,
        });
        Ok(())
    }
}

/// The layer data on disk.
pub(crate) struct StoreSource {
    pub(crate) store: soci_store::LayerStore,
}

#[async_trait]
impl StatusSource for StoreSource {
    async fn fill(&self, status: &mut GetResponse) -> Result<(), SourceError> {
        let usage = self.store.usage();
        status.store = Some(LayerStore {
            size_bytes: usage.stored_bytes,
            limit_bytes: usage.budget_bytes,
            unpacked_bytes: usage.elsewhere_bytes,
            evicted_bytes: usage.evicted_bytes,
            spans: self.store.stored_spans(),
            layers: usage.open_layers as u64,
        });
        Ok(())
    }
}

/// The holder of the mounts, and the containers that have lost theirs.
pub(crate) struct HolderSource {
    pub(crate) keeper: Option<Arc<Keeper>>,
    pub(crate) pool: soci_fuse::Pool,
    pub(crate) snapshotter: Arc<Snapshotter>,
}

#[async_trait]
impl StatusSource for HolderSource {
    async fn fill(&self, status: &mut GetResponse) -> Result<(), SourceError> {
        let holder = self.keeper.as_ref().and_then(|keeper| keeper.holder());
        status.holder = holder.map(|holder| Holder {
            pid: holder.pid,
            connections: u32::try_from(self.pool.connections()).unwrap_or(u32::MAX),
            abandon_after_seconds: holder.abandon_after.as_secs(),
        });
        let severed = self.snapshotter.severed().await;
        let severed = severed.map_err(SourceError::new)?.into_iter();
        status.severed = severed
            .map(|(snapshot_id, severed)| soci_status::api::Severed {
                snapshot: severed.name,
                snapshot_id,
                reason: "the holder and the daemon ended together".to_owned(),
                since: i64::try_from(severed.since).unwrap_or(i64::MAX),
            })
            .collect();
        Ok(())
    }
}

/// The start-up profiles.
pub(crate) struct ProfilesSource {
    pub(crate) lazy: Arc<LazyLayers>,
}

#[async_trait]
impl StatusSource for ProfilesSource {
    async fn fill(&self, status: &mut GetResponse) -> Result<(), SourceError> {
        let report = self.lazy.profiles().await;
        let playing = report.playing.into_iter();
        status.profiles = Some(Profiles {
            enabled: report.enabled,
            stored: report.stored,
            stored_bytes: report.stored_bytes,
            recorded: report.counts.recorded,
            played: report.counts.played,
            stopped: report.counts.stopped,
            fetched_bytes: report.counts.bytes,
            used_bytes: report.counts.used_bytes,
            playing: playing
                .map(|playing| PlayingProfile {
                    reference: playing.reference,
                    manifest_digest: playing.manifest.to_string(),
                    origin: playing.origin.word().to_owned(),
                    spans: playing.spans,
                    fetched_bytes: playing.bytes,
                    used_bytes: playing.used_bytes,
                    held: playing.held,
                    ended: playing.ended,
                })
                .collect(),
        });
        Ok(())
    }
}

/// Snapshots and mounts: images, layers, counts.
pub(crate) struct LayersSource {
    pub(crate) snapshotter: Arc<Snapshotter>,
    pub(crate) lazy: Arc<LazyLayers>,
}

#[async_trait]
impl StatusSource for LayersSource {
    async fn fill(&self, status: &mut GetResponse) -> Result<(), SourceError> {
        // A layer on record that is mounted neither before nor after is broken, and not just coming
        // or going.
        let mut mounts = self.lazy.mounts();
        let layers = self.snapshotter.layers().await.map_err(SourceError::new)?;
        mounts.extend(self.lazy.mounts());
        status.images = images(&layers, &mounts);
        let mut counts = Counts::default();
        let mut counted = std::collections::HashSet::new();
        for layer in status.images.iter().flat_map(|image| &image.layers) {
            if !counted.insert(layer.snapshot_id) {
                continue;
            }
            match layer.state() {
                LayerState::Lazy => counts.lazy += 1,
                LayerState::Local => counts.local += 1,
                LayerState::Deferred | LayerState::Unspecified => counts.deferred += 1,
            }
            counts.broken += u64::from(layer.health() == Health::Broken);
        }
        status.counts = Some(counts);
        Ok(())
    }
}

/// Time for which a request to fill an image counts: clients repeat it every second or so.
const REQUESTED_FOR: Duration = Duration::from_secs(10);

/// Fills images that clients wait for.
pub(crate) struct ImageFiller {
    pub(crate) snapshotter: Arc<Snapshotter>,
    pub(crate) lazy: Arc<LazyLayers>,
}

#[async_trait]
impl Filler for ImageFiller {
    async fn fill(&self, image: &str, namespace: &str) -> Result<Vec<Image>, SourceError> {
        let mut mounts = self.lazy.mounts();
        let layers = self.snapshotter.layers().await.map_err(SourceError::new)?;
        mounts.extend(self.lazy.mounts());
        let mut found = images(&layers, &mounts);
        found.retain(|other| is_meant(other, image));
        if found.is_empty() {
            // All its layers may have come with another image.
            let named = self.lazy.image_in_containerd(namespace, image).await;
            let shared = named.and_then(|(manifest, top)| {
                let name = (image, manifest.to_string());
                image_of_chain((name.0, &name.1), &top.to_string(), &layers, &mounts)
            });
            found.extend(shared);
        }
        let wanted = found.iter().flat_map(|image| &image.layers);
        let wanted = wanted.filter_map(|layer| layer.mountpoint.as_deref());
        self.lazy
            .request_fill(&wanted.map(PathBuf::from).collect(), REQUESTED_FOR);
        for image in &mut found {
            let Ok(manifest) = image.manifest_digest.parse() else {
                continue;
            };
            let of_layer = image
                .layers
                .iter()
                .find_map(|layer| layer.namespace.clone());
            let namespace = of_layer.unwrap_or_else(|| namespace.to_owned());
            // Its pull may be under way.
            let number = self.lazy.number_of_layers(&namespace, manifest).await;
            if number.is_some_and(|number| image.layers.len() < number) {
                image.complete = false;
            }
        }
        Ok(found)
    }
}

/// Whether an image has this name, or its manifest this digest.
fn is_meant(image: &Image, name: &str) -> bool {
    if image.reference.is_empty() {
        return false;
    }
    let of = |name: &str| name.parse::<soci_oci::Reference>().ok();
    image.manifest_digest == name
        || image.reference == name
        || of(name).is_some_and(|name| of(&image.reference) == Some(name))
}

/// The images that are being pulled eagerly.
pub(crate) struct PullsSource {
    pub(crate) eager: Arc<EagerLayers>,
}

#[async_trait]
impl StatusSource for PullsSource {
    async fn fill(&self, status: &mut GetResponse) -> Result<(), SourceError> {
        status.pulls = self.eager.progress().into_iter().map(pull).collect();
        Ok(())
    }
}

fn pull(image: ImageProgress) -> Pull {
    let milliseconds = u64::try_from(image.elapsed.as_millis()).unwrap_or(u64::MAX);
    let arrived = image.downloaded.saturating_mul(1000);
    Pull {
        reference: image.reference,
        manifest_digest: image.manifest.to_string(),
        namespace: image.namespace,
        elapsed_milliseconds: milliseconds,
        bytes_per_second: arrived / milliseconds.max(1),
        layers: image.layers.into_iter().map(pulled_layer).collect(),
    }
}

fn pulled_layer(layer: WorkProgress) -> PulledLayer {
    let state = match layer.state {
        soci_eager::PullState::Queued => "queued",
        soci_eager::PullState::Downloading => "downloading",
        soci_eager::PullState::Unpacking => "unpacking",
        soci_eager::PullState::Ready => "ready",
        soci_eager::PullState::Committed => "committed",
    };
    PulledLayer {
        digest: layer.digest.to_string(),
        size_bytes: layer.size,
        downloaded_bytes: layer.downloaded,
        unpacked_bytes: layer.unpacked,
        state: state.to_owned(),
    }
}

/// The hosts of registries.
pub(crate) struct RegistriesSource {
    pub(crate) client: soci_registry::Client,
}

#[async_trait]
impl StatusSource for RegistriesSource {
    async fn fill(&self, status: &mut GetResponse) -> Result<(), SourceError> {
        let folders = self.client.hosts_folders().iter();
        status.hosts_folders = folders.map(|folder| folder.display().to_string()).collect();
        let host = |host: soci_registry::HostReport| RegistryHost {
            url: host.url,
            capabilities: host.capabilities.into_iter().map(str::to_owned).collect(),
            failures: host.failures,
            asked_last_for_ms: host
                .asked_last_for
                .map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
        };
        let registries = self.client.registries().into_iter();
        status.registries = registries
            .map(|registry| Registry {
                name: registry.registry,
                hosts: registry.hosts.into_iter().map(host).collect(),
                error: registry.error,
            })
            .collect();
        Ok(())
    }
}
