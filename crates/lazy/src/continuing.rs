//! Going on where an earlier process ended: its connections are served on, and ours are left with the
//! holder for the next one.

use std::sync::Arc;

use soci_fetch::LayerData;
use soci_fuse::{Attr, ConnectionFacts};
use soci_layer::{LayerRefusal, LayerRequest, Restoration, Restored};
use soci_layerfs::{CounterSnapshot, MountedLayer};
use soci_oci::Digest;
use soci_ztoc::soci_index::ZtocDescriptor;
use tokio::task::spawn_blocking;

use crate::LazyLayers;
use crate::held::{ConnectionNote, HeldConnection, holder_key};
use crate::labels::ImageKey;
use crate::layers::Lease;
use crate::look::Look;
use crate::opening::OpenLayer;
use crate::provider::{Mount, Shared};

impl LazyLayers {
    /// Serves on what no snapshot asked for: mounts whose Prepare or Remove was cut short, which are
    /// unmounted, and those that are unmounted and still open somewhere. Called once the snapshots of an
    /// earlier run have been restored.
    pub async fn continue_rest(&self) {
        for held in self.shared.held.take_rest() {
            self.shared.see_off(held).await;
        }
    }
}

impl Shared {
    /// Brings a layer of an earlier process back.
    pub(crate) async fn restore(
        self: &Arc<Self>,
        request: LayerRequest,
    ) -> Result<Restored, LayerRefusal> {
        let mountpoint = request.mountpoint.clone();
        let looking = (self.clone(), mountpoint.clone());
        let held = spawn_blocking(move || looking.0.held.take_mounted(&looking.1))
            .await
            .map_err(LayerRefusal::failed)?;
        if let Some(held) = held {
            let spare = held.duplicate().map_err(LayerRefusal::failed)?;
            // What fails now may succeed later, or under another version.
            return match self.mount(request, Some(Box::new(held))).await {
                Ok(root) => Ok(Restored {
                    root,
                    how: Restoration::Adopted,
                }),
                Err(refusal) => {
                    self.held.put_back(spare);
                    Err(refusal)
                }
            };
        }
        let was_mounted = spawn_blocking(move || soci_fuse::is_mount_point(&mountpoint))
            .await
            .map_err(LayerRefusal::failed)?;
        self.unmount(&request.mountpoint)
            .await
            .map_err(LayerRefusal::failed)?;
        Ok(Restored {
            root: self.mount(request, None).await?,
            how: match was_mounted {
                true => Restoration::Severed,
                false => Restoration::Remounted,
            },
        })
    }

    /// Serves a live connection on.
    pub(crate) async fn take_up(
        &self,
        held: HeldConnection,
        lease: Lease<OpenLayer>,
    ) -> Result<(MountedLayer, Lease<OpenLayer>, Attr), LayerRefusal> {
        let look = held.note.look();
        let (pool, options) = (self.pool.clone(), self.mount_options(&lease, &look));
        spawn_blocking(move || {
            let layer = lease.layer();
            let data: Arc<dyn LayerData> = layer.data.clone();
            // As it was shown so far, whatever the configuration says now.
            let tree = look.at(&layer.tree);
            let root = tree.root_attr();
            soci_layerfs::take_up_layer(&pool, tree, data, held.connection, options)
                .map(|mounted| (mounted, lease, root))
        })
        .await
        .map_err(LayerRefusal::failed)?
        .map_err(LayerRefusal::failed)
    }

    /// Stores a connection that was just made with the holder.
    pub(crate) async fn hold(
        &self,
        mounted: &MountedLayer,
        image: &ImageKey,
        index: Digest,
        ztoc: &ZtocDescriptor,
        look: &Look,
    ) {
        let Some(keeper) = &self.keeper else { return };
        let note = ConnectionNote::new(mounted.facts().clone(), image, index, ztoc, look);
        match mounted.connection().duplicate() {
            Ok(Some(device)) => keeper.put(&holder_key(&note.facts), &note.to_json(), device),
            // It has ended already.
            Ok(None) => {}
            Err(error) => tracing::error!(
                mountpoint = %mounted.mountpoint().display(),
                error = %error,
                "a mount does not survive the daemon: its descriptor cannot be duplicated"
            ),
        }
        // When it ended the holder may not have had it yet.
        if !mounted.is_served() {
            self.let_go(mounted.facts());
        }
        keeper.confirm().await;
    }

    /// Nobody will serve a connection any more.
    pub(crate) fn let_go(&self, facts: &ConnectionFacts) {
        if let Some(keeper) = &self.keeper {
            keeper.remove(&holder_key(facts));
        }
    }

    /// Unmounts what no snapshot needs, and serves it as long as somebody has it open.
    pub(crate) async fn see_off(self: &Arc<Self>, held: HeldConnection) {
        let facts = held.note.facts.clone();
        let mountpoint = facts.mountpoint.clone();
        let unmounting = facts.clone();
        let unmounted = spawn_blocking(move || match soci_fuse::is_mounted(&unmounting) {
            true => soci_fuse::unmount(&unmounting.mountpoint),
            false => Ok(()),
        });
        if let Ok(Err(error)) = unmounted.await {
            tracing::warn!(error = %error, "a mount of no snapshot cannot be taken down");
        }
        if let Err(error) = self.serve_to_the_end(held).await {
            tracing::error!(
                mountpoint = %mountpoint.display(),
                error = %error,
                "a layer that is still open somewhere cannot be served on: its readers get errors"
            );
            self.let_go(&facts);
        }
    }

    async fn serve_to_the_end(self: &Arc<Self>, held: HeldConnection) -> Result<(), LayerRefusal> {
        let (index, ztoc) = (held.note.index, held.note.ztoc());
        let image = held
            .note
            .image()
            .ok_or_else(|| LayerRefusal::failed("its image's name is not understood"))?;
        let lease = self.acquire(&image, &ztoc).await?;
        let (mounted, lease, _) = self.take_up(held, lease).await?;
        self.forget_when_ended(Mount {
            mounted,
            lease,
            image,
            index,
            counted: CounterSnapshot::default(),
        });
        Ok(())
    }
}
