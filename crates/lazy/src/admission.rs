//! Decides whether a client may use a chain of layers: every lazy layer is verified, or the image
//! that the client has names it itself.
//!
//! containerd shares a snapshot between all images with its chain ID and does not ask when a second
//! image has it, so that the use is where this can be decided. See decision 0020.

use std::path::Path;
use std::sync::Arc;

use futures::future::try_join_all;
use soci_containerd::labels::{ChainPosition, chain_id};
use soci_layer::{Cause, ChainUse, UseRefusal};
use soci_registry::BlobSource as _;
use soci_store::LayerKey;

use crate::LazyLayers;
use crate::image_layer::ImageKey;
use crate::image_store::NamedImage;
use crate::mount_table::Mount;
use crate::open_layer::OpenLayer;
use crate::verdict::Verdict;
use crate::verifier::Reason;

/// A lazy layer that a client is about to use.
struct LayerInUse {
    open: Arc<OpenLayer>,
    key: LayerKey,
    /// The image that the layer was mounted for.
    image: ImageKey,
    position: Option<ChainPosition>,
    /// Height in the image, from 0.
    height: usize,
}

/// Admits the use of layers that are verified, or vouched for by every image that consists of them.
/// Verifies the others first.
pub(crate) async fn admit_use(lazy: &LazyLayers, use_of: ChainUse) -> Result<(), UseRefusal> {
    let use_of = &use_of;
    Admission { lazy, use_of }.decide().await
}

/// The use of a chain of layers that is being decided.
struct Admission<'a> {
    lazy: &'a LazyLayers,
    use_of: &'a ChainUse,
}

impl Admission<'_> {
    async fn decide(&self) -> Result<(), UseRefusal> {
        let use_of = self.use_of;
        let mut unverified = Vec::new();
        for layer in self.layers_in_use() {
            match layer.open.verification.verdict() {
                None => unverified.push(layer),
                Some(verdict) if verdict.objection(layer.position.as_ref()).is_some() => {
                    let images = self.images().await.unwrap_or_default();
                    return layer.judged(&verdict, &images.iter().collect::<Vec<_>>());
                }
                Some(_) => {}
            }
        }
        if unverified.is_empty() {
            return Ok(());
        }
        let images = match self.images().await {
            Ok(images) if images.is_empty() && use_of.admitted_before => return Ok(()),
            Ok(images) => images,
            Err(_) if use_of.admitted_before => return Ok(()),
            Err(error) if self.lazy.config.allow_without_image_store => {
                tracing::warn!(
                    error,
                    "layers are used unverified: containerd's image store does not answer"
                );
                return Ok(());
            }
            Err(error) => {
                tracing::warn!(
                    error,
                    "layers are verified before they are used: containerd's image store does not answer"
                );
                Vec::new()
            }
        };
        let checked = unverified.iter().map(|layer| {
            let images = &images;
            async move {
                let others = self.not_vouching(layer, images).await;
                match images.is_empty() || !others.is_empty() {
                    true => self.verify_for(layer, &others).await,
                    false => Ok(()),
                }
            }
        });
        // Collected: the compiler cannot follow borrowing futures across a spawn.
        try_join_all(checked.collect::<Vec<_>>()).await?;
        Ok(())
    }

    /// Returns the lazy ones among the layers. One that is not mounted is left to
    /// [`check`](soci_layer::LayerProvider::check).
    fn layers_in_use(&self) -> Vec<LayerInUse> {
        let use_of = self.use_of;
        let mut found = Vec::new();
        for (at, layer) in use_of.layers.iter().enumerate() {
            let mount = layer.mountpoint.as_deref().and_then(|at| self.mount_at(at));
            let Some(mount) = mount else { continue };
            let below = use_of.layers.get(at + 1);
            let below = below.map_or("", |below| below.name.as_str());
            let position = ChainPosition::of(&layer.name, below);
            let open = mount.layer.lease.layer().clone();
            if let Some(position) = position {
                open.verification.claim(position);
            }
            found.push(LayerInUse {
                open,
                key: mount.key(),
                image: mount.layer.image.clone(),
                position,
                height: use_of.layers.len() - 1 - at,
            });
        }
        found
    }

    fn mount_at(&self, mountpoint: &Path) -> Option<Arc<Mount>> {
        self.lazy.table.mounts.lock().get(mountpoint).cloned()
    }

    /// Asks containerd which images of the client's namespace consist of these layers.
    async fn images(&self) -> Result<Vec<NamedImage>, String> {
        let use_of = self.use_of;
        let namespace = use_of.namespace.as_deref();
        let namespace = namespace.ok_or("the client sends no namespace")?;
        let top = use_of.layers.first().and_then(|top| chain_id(&top.name));
        // Not made by containerd's unpacker: no image has it.
        let Some(top) = top else {
            return Ok(Vec::new());
        };
        let images = self.lazy.images.with_chain(namespace, top).await;
        images.map_err(|error| soci_errors::chain(&error))
    }

    /// Returns those of the images whose own index does not name the layer's zTOC.
    async fn not_vouching<'a>(
        &self,
        layer: &LayerInUse,
        images: &'a [NamedImage],
    ) -> Vec<&'a NamedImage> {
        let mut others = Vec::new();
        for named in images {
            if named.image.digest != layer.image.manifest && !self.vouches(layer, named).await {
                others.push(named);
            }
        }
        others
    }

    async fn vouches(&self, layer: &LayerInUse, named: &NamedImage) -> bool {
        let namespace = self.use_of.namespace.as_deref().unwrap_or_default();
        let listed = named.image.manifest.layers.get(layer.height);
        if listed.is_none_or(|listed| listed.digest != layer.key.layer) {
            return false;
        }
        let Ok(reference) = named.name.parse() else {
            return false;
        };
        if self.lazy.config.lazy_registries.check(&reference).is_err() {
            return false;
        }
        let mut image = ImageKey {
            reference,
            manifest: named.image.digest,
            explicit_index: None,
            namespace: String::new(),
        };
        if self.lazy.indexes.artifacts.by_namespace() {
            namespace.clone_into(&mut image.namespace);
        }
        match self.lazy.indexes.find(namespace, &image).await {
            Ok((found, _in_use)) => {
                let ztoc = found.index.ztoc_for(&layer.key.layer);
                ztoc.is_some_and(|ztoc| ztoc.descriptor.digest == layer.key.ztoc)
            }
            Err(_) => false,
        }
    }

    /// Verifies a layer for images that do not vouch for it.
    async fn verify_for(
        &self,
        layer: &LayerInUse,
        images: &[&NamedImage],
    ) -> Result<(), UseRefusal> {
        tracing::info!(
            layer = %layer.key.layer,
            mountedFor = %layer.image.reference,
            usedBy = names(images),
            "verifying a layer before it is used for an image whose own index does not name it"
        );
        // An image that was pulled whole, such as the one that was converted, is read from there.
        let namespace = self.use_of.namespace.as_deref().unwrap_or_default();
        let (digest, sources) = (layer.key.layer, &layer.open.sources);
        let stored = self
            .lazy
            .images
            .layer_file(namespace, digest, sources.size());
        let _local = stored.await.map(|file| sources.read_locally(file));
        match self.lazy.verifier.verify(&layer.open, Reason::Use).await {
            Ok(verdict) => layer.judged(&verdict, images),
            Err(error) => Err(UseRefusal::Unverified {
                reason: format!(
                    "cannot verify layer {}, which was mounted for {}, before it is used for {}; try \
                     again, or pull the image with another snapshotter",
                    layer.key.layer,
                    layer.image.reference,
                    names(images)
                ),
                source: Cause::from(Box::<dyn std::error::Error + Send + Sync>::from(error)),
            }),
        }
    }
}

impl LayerInUse {
    /// Refuses the use of a layer with this verdict, if need be.
    fn judged(&self, verdict: &Verdict, images: &[&NamedImage]) -> Result<(), UseRefusal> {
        let Some(objection) = verdict.objection(self.position.as_ref()) else {
            return Ok(());
        };
        let (layer, from) = (self.key.layer, &self.image.reference);
        let reason = format!(
            "the lazy layer {layer} is forged and must not be used for {}: it was mounted for {from} \
             (manifest {}), and {objection}; remove the image {from} and what runs on it, then pull \
             again",
            names(images),
            self.image.manifest
        );
        tracing::error!(
            layer = %layer,
            ztoc = %self.key.ztoc,
            mountedFor = %from,
            usedBy = names(images),
            objection,
            "refusing to use a forged layer"
        );
        Err(UseRefusal::Forged { reason })
    }
}

fn names(images: &[&NamedImage]) -> String {
    if images.is_empty() {
        return "an image that containerd does not name".to_owned();
    }
    let names: Vec<&str> = images.iter().map(|image| image.name.as_str()).collect();
    names.join(", ")
}
