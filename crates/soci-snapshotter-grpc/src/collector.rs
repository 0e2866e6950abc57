//! What `soci gc` finds and frees while the daemon serves.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use soci_lazy::LazyLayers;
use soci_snapshotter::Snapshotter;
use soci_status::api::{CollectResponse, Leftover};
use soci_status::{Collector, SourceError};
use soci_store::{LayerKey, LeftoverKind};

/// The parts of the daemon that know what is in use.
pub(crate) struct DaemonCollector {
    pub(crate) root: PathBuf,
    pub(crate) snapshotter: Arc<Snapshotter>,
    pub(crate) lazy: Arc<LazyLayers>,
}

/// Something that nothing uses.
struct Found {
    leftover: Leftover,
    layer: Option<LayerKey>,
    snapshot: bool,
}

#[async_trait]
impl Collector for DaemonCollector {
    async fn collect(&self, dry_run: bool) -> Result<CollectResponse, SourceError> {
        let mut found = self.find().await?;
        if !dry_run {
            self.remove(&mut found).await?;
        }
        Ok(CollectResponse {
            leftovers: found.into_iter().map(|found| found.leftover).collect(),
        })
    }
}

impl DaemonCollector {
    async fn find(&self) -> Result<Vec<Found>, SourceError> {
        let root = self.root.clone();
        // Listed before it is asked what is in use: what is made in between is not in the list.
        let listed = soci_task::blocking(move || soci_store::find_leftovers(&root, true)).await;
        let listed = listed.map_err(|error| {
            let (root, error) = (self.root.display(), soci_errors::chain(&error));
            SourceError::new(format!("cannot list {root}: {error}"))
        })?;
        let snapshots = self.snapshotter.leftovers().await;
        let snapshots = snapshots.map_err(|error| SourceError::new(soci_errors::chain(&error)))?;
        let mut found = Vec::new();
        for left in listed {
            let layer = match left.kind {
                LeftoverKind::Layer(key) if self.lazy.needs(key) => continue,
                LeftoverKind::Layer(key) => Some(key),
                _ => None,
            };
            found.push((left.path, left.kind.word(), layer, false));
        }
        let snapshots = snapshots.into_iter();
        found.extend(snapshots.map(|path| (path, "snapshot", None, true)));
        let measured = soci_task::run(move || {
            let found = found.into_iter();
            found
                .map(|(path, kind, layer, snapshot)| Found {
                    leftover: Leftover {
                        bytes: size(&path),
                        path: path.display().to_string(),
                        kind: kind.to_owned(),
                        removed: false,
                    },
                    layer,
                    snapshot,
                })
                .collect()
        });
        measured.await.map_err(SourceError::new)
    }

    async fn remove(&self, found: &mut [Found]) -> Result<(), SourceError> {
        if found.iter().any(|found| found.snapshot) {
            let removed = self.snapshotter.remove_leftovers().await;
            removed.map_err(|error| SourceError::new(soci_errors::chain(&error)))?;
        }
        for found in found {
            let path = PathBuf::from(&found.leftover.path);
            match found.layer {
                Some(key) => self.lazy.remove_unneeded(key).await,
                None if !found.snapshot => {
                    let path = path.clone();
                    // What is still there afterwards was not removed; the next call says so again.
                    let _ = soci_task::blocking(move || soci_dirtree::remove_path(&path)).await;
                }
                None => {}
            }
            found.leftover.removed = !tokio::fs::try_exists(&path).await.unwrap_or(false);
            tracing::info!(
                path = %found.leftover.path,
                kind = found.leftover.kind,
                bytes = found.leftover.bytes,
                removed = found.leftover.removed,
                "collected what an interrupted past left"
            );
        }
        Ok(())
    }
}

/// Allocated bytes of a tree; 0 if it is being deleted.
fn size(path: &Path) -> u64 {
    soci_dirtree::measure(path).map_or(0, |usage| usage.bytes)
}
