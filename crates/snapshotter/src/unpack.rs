//! A layer that cannot be lazy, fetched and unpacked by the provider.

use std::sync::Arc;

use crate::disk_usage;
use crate::lowers::Lowers;
use crate::metadata::{Link, Usage};
use crate::outcome::log_not_unpacked;
use crate::prepare::{Answer, Layer};
use crate::snapshotter::Inner;
use soci_layer::{LayerRefusal, ParentLayer, UnpackRequest};

impl Inner {
    /// Has the layer unpacked into the directory of a snapshot that is being made, and measures it.
    /// If the client goes away, or the snapshotter is closed, it is given up. After a failure the
    /// directory holds anything, and nobody writes there any more.
    pub(crate) async fn unpack(
        self: &Arc<Self>,
        layer: &Layer,
        id: u64,
        parents: &[Link],
        answer: &mut Answer,
    ) -> Result<Usage, LayerRefusal> {
        let unpacked = self.try_unpack(layer, id, parents, answer).await;
        if let Err(failure) = &unpacked {
            log_not_unpacked(layer, failure);
        }
        unpacked
    }

    async fn try_unpack(
        self: &Arc<Self>,
        layer: &Layer,
        id: u64,
        parents: &[Link],
        answer: &mut Answer,
    ) -> Result<Usage, LayerRefusal> {
        // What the provider may have left of its attempt at mounting.
        self.clear_mountpoint(id, parents.to_vec())
            .await
            .map_err(LayerRefusal::unpack_failed)?;
        self.check_layers(&Lowers::Shared, parents)
            .await
            .map_err(LayerRefusal::unpack_failed)?;
        let request = UnpackRequest {
            layer: layer.request(self.directories.fs(id)),
            parents: parents
                .iter()
                .map(|parent| ParentLayer {
                    directory: self.directories.fs(parent.id),
                    lazy: parent.lazy.is_some(),
                })
                .collect(),
        };
        let cancel = self.closing.child_token();
        let (provider, token) = (Arc::clone(&self.provider), cancel.clone());
        // A task of its own, so that a panic is a refusal like others.
        let mut work = tokio::spawn(async move { provider.unpack(request, token).await });
        let done = tokio::select! {
            done = &mut work => done,
            () = answer.closed() => {
                cancel.cancel();
                // Until then it may write to the directory.
                work.await
            }
        };
        done.unwrap_or_else(|error| Err(LayerRefusal::unpack_failed(error)))?;
        self.blocking(move |inner| disk_usage::measure(&inner.directories.fs(id)))
            .await
            .map_err(LayerRefusal::unpack_failed)
    }
}
