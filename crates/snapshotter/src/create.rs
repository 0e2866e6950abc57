//! Creation of active snapshots and views that are not image layers.

use std::sync::Arc;

use crate::api::types::Mount;
use crate::api::v1::Kind;
use crate::call_gate::Call;
use crate::comparisons::Comparisons;
use crate::error::SnapshotterError;
use crate::layer_mounts::LayerMounts;
use crate::lowerdirs::LowerDirs;
use crate::metadata::Link;
use crate::store::Creation;
use soci_layer::IdMaps;

use crate::{compare, idmap, labels, snapshot_name};

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
    let (new, parents) = mounts
        .store
        .blocking(move |store| {
            let parents = store.metadata.before_insert(&new.key, &new.parent)?;
            Ok((new, parents))
        })
        .await?;
    if let Some(maps) = &maps
        && is_remapped(&parents, maps)
    {
        let parent = parents.first().map(|parent| parent.name.clone());
        return Err(SnapshotterError::RemappedTwice {
            parent: parent.unwrap_or_default(),
        });
    }
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

/// Whether the client has translated the owners of the nearest parent itself: containerd 2 does so for
/// a snapshotter without the capability, in a copy that is named `<parent>-<uid>-<gid>`, the ids of
/// root.
fn is_remapped(parents: &[Link], maps: &IdMaps) -> bool {
    let [copy, original, ..] = parents else {
        return false;
    };
    let last = |name: &str| name.rsplit('/').next().unwrap_or_default().to_owned();
    let (uid, gid) = maps.map(0, 0);
    last(&copy.name) == format!("{}-{uid}-{gid}", last(&original.name))
}
