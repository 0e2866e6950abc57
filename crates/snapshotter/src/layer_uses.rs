//! Notifies the provider which lazy layers are in use, and what the other layers take.

use std::sync::Arc;
use std::time::Duration;

use soci_layer::LayerUses;

use crate::error::SnapshotterError;
use crate::layer_mounts::LayerMounts;

/// Time after a change in which further changes are waited for.
const DELAY: Duration = Duration::from_millis(300);

/// Notifies the provider after each change. Does not return.
pub(crate) async fn run(mounts: Arc<LayerMounts>) {
    loop {
        if let Err(error) = notify(&mounts).await {
            let error = soci_errors::chain(&error);
            tracing::warn!(error, "cannot list the layers in use");
        }
        mounts.store.metadata.changed.notified().await;
        tokio::time::sleep(DELAY).await;
    }
}

async fn notify(mounts: &LayerMounts) -> Result<(), SnapshotterError> {
    let uses = mounts.store.blocking(|store| {
        let uses = store.metadata.uses()?;
        let mountpoints = uses.lazy.iter().map(|id| store.directories.fs(*id));
        Ok(LayerUses {
            in_use: mountpoints.collect(),
            unpacked_bytes: uses.unpacked,
        })
    });
    mounts.uses(&uses.await?);
    Ok(())
}
