//! Creation of active snapshots and views that are not image layers.

use std::sync::Arc;

use crate::api::types::Mount;
use crate::api::v1::Kind;
use crate::call_gate::Call;
use crate::comparisons::Comparisons;
use crate::error::SnapshotterError;
use crate::layer_mounts::LayerMounts;
use crate::lowerdirs::LowerDirs;
use crate::store::Creation;

use crate::{client_copy, compare, idmap, labels, snapshot_name};

/// Creates a snapshot and returns its mounts.
pub(crate) async fn create(
    mounts: &Arc<LayerMounts>,
    call: Call,
    namespace: Option<String>,
    mut new: Creation,
) -> Result<Vec<Mount>, SnapshotterError> {
    snapshot_name::check(&new.key)?;
    new.labels = labels::check(new.labels)?;
    let maps = match new.kind {
        Kind::Active => labels::id_maps(&new.labels)?,
        _ => None,
    };
    let (new, parents, of_parent) = mounts
        .store
        .blocking(move |store| {
            let parents = store.metadata.before_insert(&new.key, &new.parent)?;
            let of_parent = match new.parent.as_str() {
                "" => labels::Labels::default(),
                parent => store
                    .metadata
                    .get(parent)?
                    .info
                    .labels
                    .into_iter()
                    .collect(),
            };
            Ok((new, parents, of_parent))
        })
        .await?;
    client_copy::refuse(&new.key, maps.as_ref(), &parents, &of_parent)?;
    // Before anything is made: a container must not be left on a layer that is not there.
    mounts.check(&LowerDirs::Shared, &parents).await?;
    mounts.admit(namespace, &parents, false).await?;
    // The longer ones are tasks of their own, which end consistently even if the client cancels.
    if let Some(maps) = maps {
        let mounts = Arc::clone(mounts);
        let work = async move {
            let _call = call;
            idmap::create(&mounts, new, maps, &parents).await
        };
        return tokio::spawn(work).await?;
    }
    if new.kind == Kind::View && Comparisons::is_comparison(&new.key) {
        let mounts = Arc::clone(mounts);
        let work = async move {
            let _call = call;
            compare::create_view(&mounts, new, &parents).await
        };
        return tokio::spawn(work).await?;
    }
    mounts
        .store
        .blocking(move |store| {
            let _call = call;
            store.create(new, &store.ids.reserve(), &LowerDirs::Shared)
        })
        .await
}
