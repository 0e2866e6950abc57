//! Whether a repository is still needed to read what is mounted.

use futures::future::join_all;
use soci_fetch::LayerData as _;
use soci_oci::Reference;

use crate::LazyLayers;

/// Whether the repository of `reference` may still be read from: `namespace` has an image of it, or a
/// mounted layer has bytes to fetch and no image of another repository has it. If the namespace's
/// images are not known, whether any mounted layer has bytes to fetch from it.
pub async fn needs_repository(lazy: &LazyLayers, namespace: &str, reference: &Reference) -> bool {
    // Boxed: calls of containerd are large futures.
    let stored = Box::pin(lazy.images.has_repository(namespace, reference)).await;
    if stored.as_ref().is_ok_and(|stored| *stored) {
        return true;
    }
    let (store_answers, name) = (stored.is_ok(), reference.name());
    let layers = lazy.table.open_layers().into_iter().filter(|layer| {
        let status = layer.data.status();
        status.fetched_size < status.size && layer.sources.has(&name)
    });
    // Collected: the compiler cannot follow borrowing futures across a spawn.
    let layers: Vec<_> = layers
        .map(|layer| {
            let name = name.clone();
            async move { !store_answers || !layer.sources.has_others(&name).await }
        })
        .collect();
    join_all(layers).await.into_iter().any(|needed| needed)
}
