//! Restores the layers of an earlier process: live connections are served again, dead ones mounted
//! again.

use std::path::Path;
use std::sync::Arc;

use soci_layer::{LayerRefusal, LayerRequest, ProviderError, Purpose, Restoration, Restored};

use crate::LazyLayers;
use crate::inherited::InheritedConnection;
use crate::layer_loader::layer_key;
use crate::mount_table::ReadyLayer;

impl LazyLayers {
    /// Serves the connections that no snapshot has requested: mounts whose Prepare or Remove was
    /// cut short, which are unmounted, and unmounted ones that are still open. To be called once the
    /// snapshots of an earlier run have been restored.
    pub async fn serve_rest(&self) {
        for inherited in self.inherited.take_rest() {
            self.unmount_and_serve(inherited).await;
        }
    }

    /// Restores the layer of a snapshot.
    pub(crate) async fn restore_layer(
        &self,
        request: LayerRequest,
    ) -> Result<Restored, LayerRefusal> {
        let mountpoint = request.mountpoint.clone();
        let mounted = self.take_mounted(&mountpoint).await;
        if let Some(inherited) = mounted.map_err(LayerRefusal::failed)? {
            let spare = inherited.duplicate().map_err(LayerRefusal::failed)?;
            return match self.mount_layer(request, Some(inherited)).await {
                Ok(root) => Ok(Restored {
                    root,
                    how: Restoration::Adopted,
                }),
                Err(refusal) => {
                    // A later attempt, or another version, may succeed.
                    self.inherited.put_back(spare);
                    Err(refusal)
                }
            };
        }
        let path = mountpoint.clone();
        let was_mounted = soci_task::run(move || soci_fuse::is_mount_point(&path))
            .await
            .map_err(LayerRefusal::failed)?;
        soci_layer::LayerProvider::unmount(self, &mountpoint)
            .await
            .map_err(LayerRefusal::failed)?;
        Ok(Restored {
            root: self.mount_layer(request, None).await?,
            how: match was_mounted {
                true => Restoration::Severed,
                false => Restoration::Remounted,
            },
        })
    }

    /// Unmounts what an earlier process has mounted at `mountpoint`, if anything.
    pub(crate) async fn unmount_inherited(&self, mountpoint: &Path) -> Result<(), ProviderError> {
        let mounted = self.take_mounted(mountpoint).await;
        if let Some(inherited) = mounted.map_err(|e| ProviderError::new(mountpoint, e))? {
            self.unmount_and_serve(inherited).await;
        }
        let path = mountpoint.to_owned();
        let unmounted = soci_task::run(move || soci_fuse::unmount(&path)).await;
        unmounted
            .map_err(|e| ProviderError::new(mountpoint, e))?
            .map_err(|e| ProviderError::new(mountpoint, e))
    }

    /// Takes the connection that is mounted at `mountpoint`.
    async fn take_mounted(
        &self,
        mountpoint: &Path,
    ) -> Result<Option<InheritedConnection>, soci_task::Interrupted> {
        let (inherited, path) = (self.inherited.clone(), mountpoint.to_owned());
        soci_task::run(move || inherited.take_mounted(&path)).await
    }

    /// Unmounts what no snapshot needs, and serves it until the last open file on it is closed.
    async fn unmount_and_serve(&self, inherited: InheritedConnection) {
        let facts = inherited.note.facts.clone();
        let unmounting = facts.clone();
        let unmounted = soci_task::run(move || match soci_fuse::is_mounted(&unmounting) {
            true => soci_fuse::unmount(&unmounting.mountpoint),
            false => Ok(()),
        });
        if let Ok(Err(error)) = unmounted.await {
            tracing::warn!(error = %error, "cannot unmount a layer that no snapshot uses");
        }
        if let Err(refusal) = self.serve_until_ended(inherited).await {
            tracing::error!(
                mountpoint = %facts.mountpoint.display(),
                error = soci_errors::chain(&refusal),
                "cannot serve an unmounted layer that is still open: its readers get errors"
            );
            self.table.holder.release(&facts);
        }
    }

    async fn serve_until_ended(&self, inherited: InheritedConnection) -> Result<(), LayerRefusal> {
        let note = &inherited.note;
        let (index, ztoc, view) = (note.index, note.ztoc(), note.view());
        let image = note
            .image()
            .ok_or_else(|| LayerRefusal::failed("its image reference is invalid"))?;
        let open = self.opener.open("", &image, &ztoc, Purpose::Restore, None);
        let opener = &self.opener;
        let lease = opener.leaving_nothing_new(layer_key(&ztoc), open).await?;
        let indexes = &self.table.indexes;
        let ready = ReadyLayer {
            lease,
            index: indexes.uses.begin(&image.namespace, index).await,
            image,
            ztoc,
            view,
            // What the kernel has not cached of an unmounted layer is as in its tree.
            implied: None,
        };
        let mount = self.table.adopt(ready, inherited.connection).await?;
        self.table.forget_when_ended(Arc::new(mount));
        Ok(())
    }
}
