//! Lazy layers as the snapshotter's [`LayerProvider`]: the way from a request to a mount.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use soci_containerd::labels::{ChainPosition, INDEX_DIGEST, TARGET};
use soci_discovery::NoIndex;
use soci_fetch::Oversized;
use soci_layer::{
    ChainUse, LayerProvider, LayerRefusal, LayerRequest, LayerUses, MountedInfo, OverlayXattr,
    ProviderError, Purpose, Restored, UnpackOutcome, UnpackRequest, UnpackedSize, UseRefusal,
};
use soci_telemetry::metrics::{count, duration_ms};
use soci_ztoc::soci_index::ZtocDescriptor;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::LazyLayers;
use crate::admission;
use crate::container_start::ContainerStart;
use crate::image_layer::ImageLayer;
use crate::implied::ImpliedOf;
use crate::index_files::FoundIndex;
use crate::index_uses::IndexUse;
use crate::inherited::InheritedConnection;
use crate::label_check::check_labels;
use crate::layer_loader::layer_key;
use crate::local_unpack::LayersToUnpack;
use crate::mount_table::{Mount, ReadyLayer};
use crate::open_layer::OpenLayer;
use crate::view::ViewOptions;

#[async_trait]
impl LayerProvider for LazyLayers {
    async fn mount(&self, request: LayerRequest) -> Result<MountedInfo, LayerRefusal> {
        self.mount_layer(request, None).await
    }

    async fn restore(&self, request: LayerRequest) -> Result<Restored, LayerRefusal> {
        self.restore_layer(request).await
    }

    async fn unpack(
        &self,
        request: UnpackRequest,
        cancel: CancellationToken,
    ) -> Result<UnpackOutcome, LayerRefusal> {
        self.unpack.unpack(request.layer, &cancel).await?;
        Ok(UnpackOutcome::default())
    }

    async fn unmount(&self, mountpoint: &Path) -> Result<(), ProviderError> {
        if self.table.unmount(mountpoint).await? {
            return Ok(());
        }
        self.unmount_inherited(mountpoint).await
    }

    async fn vet_labels(
        &self,
        request: &LayerRequest,
    ) -> Result<BTreeMap<String, String>, LayerRefusal> {
        self.check_labels(request).await
    }

    fn uses(&self, uses: &LayerUses) {
        self.table.note_uses(uses);
    }

    fn disk_usage(&self, mountpoint: &Path) -> Option<UnpackedSize> {
        self.table.disk_usage(mountpoint)
    }

    async fn admit(&self, use_of: ChainUse) -> Result<(), UseRefusal> {
        let mountpoints = use_of.layers.iter();
        for mountpoint in mountpoints.filter_map(|layer| layer.mountpoint.as_ref()) {
            self.table.note_use(mountpoint);
        }
        let starting = ContainerStart::of(&self.table, &use_of);
        admission::admit_use(self, use_of).await?;
        if let Some(starting) = starting {
            tokio::spawn(starting.begin(self.start_ups.clone()));
        }
        Ok(())
    }

    async fn check(
        &self,
        mountpoint: &Path,
        _labels: &BTreeMap<String, String>,
    ) -> Result<(), ProviderError> {
        self.table.check(mountpoint)
    }
}

impl LazyLayers {
    /// Mounts a layer, or serves it on the connection of an earlier process. A failure leaves
    /// nothing stored that was not stored before.
    pub(crate) async fn mount_layer(
        &self,
        request: LayerRequest,
        adopted: Option<InheritedConnection>,
    ) -> Result<MountedInfo, LayerRefusal> {
        let start = Instant::now();
        let mut layer = ImageLayer::from_labels(&request.labels)?;
        if self.indexes.artifacts.by_namespace() {
            layer.image.namespace.clone_from(&request.namespace);
        }
        let (image, digest) = (&layer.image.reference, layer.layer);
        // At the level of errors: no log level removes the fields from warnings.
        let span = tracing::error_span!("mount", image = %image, layer = %digest);
        self.sweeper.spare(&layer);
        let mountpoint = request.mountpoint.clone();
        // Boxed: a request to a registry is a large future.
        let mount = Box::pin(self.make_mount(request, &layer, adopted));
        let mount = match mount.instrument(span).await {
            Ok(mount) => mount,
            Err(refusal) => {
                use LayerRefusal::{Failed, IndexUnavailable, RegistryUnavailable};
                if matches!(
                    refusal,
                    Failed { .. } | IndexUnavailable { .. } | RegistryUnavailable { .. }
                ) {
                    let meters = &self.indexes.meters;
                    meters.count(count::FUSE_MOUNT_FAILURE, "", 1);
                    self.table.metering.refused(&digest, &refusal);
                }
                self.indexes.release_abandoned().await;
                return Err(refusal);
            }
        };
        soci_faults::point("lazy-layer-mounted");
        if !self.config.disable_background {
            let data = &mount.layer.lease.layer().data;
            data.start_background(mount.layer.image.manifest);
        }
        self.opener.ahead.claim(&mount.key());
        let root = mount.root;
        self.table.insert(mountpoint, mount);
        let label = digest.to_string();
        self.indexes
            .meters
            .took(duration_ms::MOUNT, &label, start.elapsed());
        Ok(root)
    }

    async fn make_mount(
        &self,
        request: LayerRequest,
        layer: &ImageLayer,
        adopted: Option<InheritedConnection>,
    ) -> Result<Mount, LayerRefusal> {
        let deadline = Instant::now() + self.config.mount_timeout;
        let prepare = request.purpose == Purpose::ImageLayer;
        // A layer that was mounted before stays lazy, whatever the configuration is now.
        if prepare {
            self.check_allowed(&request.namespace, layer)?;
        }
        let namespace = &request.namespace;
        let (found, index, ztoc) = self.ztoc_of(namespace, layer, prepare).await?;
        if prepare {
            self.start_ups.begin(&layer.image, &found);
            self.opener.open_above(namespace, layer, &found);
            let unlisted = LayersToUnpack::SmallOrNotIn(&found);
            self.unpack.fetch_above(namespace, layer, unlisted);
        } else if request.purpose == Purpose::Restore {
            self.start_ups.resume(&layer.image, &found).await;
        }
        let key = layer_key(&ztoc);
        let mount = async {
            let ready = self.ready_layer(&request, layer, index, ztoc, deadline);
            let mut ready = ready.await?;
            match adopted {
                Some(inherited) => {
                    // As it was shown so far, whatever the configuration is now.
                    ready.view = inherited.note.view();
                    self.table.adopt(ready, inherited.connection).await
                }
                None => self.table.mount(ready, request.mountpoint).await,
            }
        };
        self.opener.leaving_nothing_new(key, mount).await
    }

    /// Opens a layer, refuses what must not be mounted, and finds out how the rest is shown.
    async fn ready_layer(
        &self,
        request: &LayerRequest,
        layer: &ImageLayer,
        index: IndexUse,
        ztoc: ZtocDescriptor,
        deadline: Instant,
    ) -> Result<ReadyLayer, LayerRefusal> {
        let (namespace, image, purpose) = (&request.namespace, &layer.image, request.purpose);
        let prepare = purpose == Purpose::ImageLayer;
        // There is none for what was mounted before: it comes from disk.
        let limit = (purpose != Purpose::Restore).then_some(deadline);
        let open = self.opener.open(namespace, image, &ztoc, purpose, limit);
        let lease = open.await?;
        let oversized = lease.layer().data.oversized().filter(|_| prepare);
        if let Some(Oversized { span, bytes, limit }) = oversized {
            return Err(LayerRefusal::SpanTooLarge { span, bytes, limit });
        }
        let position = claim(request, lease.layer());
        if prepare {
            refuse_forged(lease.layer(), position)?;
        }
        let below = self.table.lower_layers(&request.parents);
        let implied = ImpliedOf {
            request,
            image: image.manifest,
            tree: &lease.layer().tree,
            trees: &self.opener.loader.trees,
            overlay_xattr: self.opener.loader.overlay_xattr,
        };
        let below = below.map_err(LayerRefusal::failed)?;
        let implied = self.implied.find(implied, below).await?;
        Ok(ReadyLayer {
            implied,
            lease,
            image: image.clone(),
            index,
            view: ViewOptions {
                disable_xattrs: ztoc.disable_xattrs,
                mark: OverlayXattr::for_mount(self.config.userxattr),
                id_maps: request.view.id_maps.clone(),
                answer_xattrs: request.view.answer_xattrs,
            },
            ztoc,
        })
    }

    /// Returns the labels of a Prepare, without an index that the image's annotations set.
    async fn check_labels(
        &self,
        request: &LayerRequest,
    ) -> Result<BTreeMap<String, String>, LayerRefusal> {
        let mut labels = request.labels.clone();
        let mut layer = ImageLayer::from_labels(&labels)?;
        let explicit = layer.image.explicit_index.is_some();
        if self.config.policy.allows_look_up(explicit) {
            check_labels(&self.images, request, &mut layer).await?;
        }
        if explicit && layer.image.explicit_index.is_none() {
            labels.remove(INDEX_DIGEST);
        }
        Ok(labels)
    }

    /// Refuses a layer that the configuration does not allow to be lazy, and begins to fetch those
    /// above it that will be unpacked as well.
    fn check_allowed(&self, namespace: &str, layer: &ImageLayer) -> Result<(), LayerRefusal> {
        // First: if nothing may be lazy, no label causes a request.
        if !self
            .config
            .policy
            .allows_look_up(layer.image.explicit_index.is_some())
        {
            return Err(NoIndex::Disabled.into());
        }
        let trusted = self.config.lazy_registries.check(&layer.image.reference);
        trusted.inspect_err(|_| {
            self.unpack
                .fetch_above(namespace, layer, LayersToUnpack::All);
        })?;
        let minimum = self.config.min_layer_size;
        match layer.size {
            Some(size) if size < minimum => {
                self.unpack
                    .fetch_above(namespace, layer, LayersToUnpack::Small);
                Err(LayerRefusal::BelowMinSize { size, minimum })
            }
            _ => Ok(()),
        }
    }

    /// Finds the index of an image and the zTOC of one of its layers.
    async fn ztoc_of(
        &self,
        namespace: &str,
        layer: &ImageLayer,
        prepare: bool,
    ) -> Result<(Arc<FoundIndex>, IndexUse, ZtocDescriptor), LayerRefusal> {
        let (found, index) = match prepare {
            true => self.indexes.find(namespace, &layer.image).await?,
            false => self.indexes.find_again(namespace, &layer.image).await?,
        };
        match found.index.ztoc_for(&layer.layer) {
            Some(ztoc) => Ok((found.clone(), index, ztoc.clone())),
            None => Err(LayerRefusal::no_ztoc(format!(
                "index {} does not list layer {}",
                found.digest, layer.layer
            ))),
        }
    }
}

/// Records with a layer the position in an image for which it is mounted.
fn claim(request: &LayerRequest, layer: &OpenLayer) -> Option<ChainPosition> {
    let position = ChainPosition::of(request.labels.get(TARGET)?, request.parent.as_deref()?)?;
    layer.verification.claim(position);
    Some(position)
}

/// Refuses a layer that was verified before, and is forged or belongs to another chain of layers.
fn refuse_forged(layer: &OpenLayer, position: Option<ChainPosition>) -> Result<(), LayerRefusal> {
    let verdict = layer.verification.verdict();
    let objection = verdict.and_then(|verdict| verdict.objection(position.as_ref()));
    objection.map_or(Ok(()), |reason| Err(LayerRefusal::Forged { reason }))
}
