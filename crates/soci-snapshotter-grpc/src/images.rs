//! Images and their layers for `soci status`, joined from snapshots and mounts.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;

use soci_lazy::{FillState, MountReport};
use soci_snapshotter::{LayerMode, LayerState, RefusalReason};
use soci_status::api::{self, Health, Image, Layer};

/// Layers by their height in the image, then by the id of their snapshot.
type ByHeight<'a> = BTreeMap<(usize, u64), &'a LayerState>;

/// Lists the images by reference, then manifest. A snapshot records only the image that it was made for; a
/// layer that later images share is found among the parents of their layers.
pub(crate) fn images(layers: &[LayerState], mounts: &[MountReport]) -> Vec<Image> {
    let (by_name, mounts) = (by_name(layers), by_mountpoint(mounts));
    let mut found: BTreeMap<(&str, &str), ByHeight<'_>> = BTreeMap::new();
    let mut listed = HashSet::new();
    for layer in layers.iter().filter(|layer| layer.image.is_some()) {
        let chain = chain(layer, &by_name);
        let image = found.entry(image_of(layer)).or_default();
        for (height, layer) in chain.iter().rev().enumerate() {
            listed.insert(layer.id);
            image.insert((height, layer.id), layer);
        }
    }
    for layer in layers.iter().filter(|layer| !listed.contains(&layer.id)) {
        let height = chain(layer, &by_name).len();
        let image = found.entry(image_of(layer)).or_default();
        image.insert((height, layer.id), layer);
    }
    found
        .into_iter()
        .map(|(name, layers)| image(name, &layers, &mounts))
        .collect()
}

/// An image that consists of a snapshot and those below it, which were made for other images.
/// `top`: chain ID of the uppermost.
pub(crate) fn image_of_chain(
    name: (&str, &str),
    top: &str,
    layers: &[LayerState],
    mounts: &[MountReport],
) -> Option<Image> {
    let (by_name, mounts) = (by_name(layers), by_mountpoint(mounts));
    // Names are NAMESPACE/NUMBER/CHAIN-ID.
    let is_top = |layer: &&LayerState| layer.name.rsplit('/').next() == Some(top);
    let chain = chain(layers.iter().find(is_top)?, &by_name);
    let by_height = chain.iter().rev().enumerate();
    let by_height = by_height.map(|(height, layer)| ((height, layer.id), *layer));
    Some(image(name, &by_height.collect(), &mounts))
}

fn by_name(layers: &[LayerState]) -> HashMap<&str, &LayerState> {
    let layers = layers.iter();
    layers.map(|layer| (layer.name.as_str(), layer)).collect()
}

fn by_mountpoint(mounts: &[MountReport]) -> HashMap<&PathBuf, &MountReport> {
    let mounts = mounts.iter();
    mounts.map(|mount| (&mount.mountpoint, mount)).collect()
}

fn image(
    (reference, manifest): (&str, &str),
    layers: &ByHeight<'_>,
    mounts: &HashMap<&PathBuf, &MountReport>,
) -> Image {
    let mount_of = |layer: &LayerState| mounts.get(layer.mountpoint.as_ref()?).copied();
    let lazy = layers
        .values()
        .filter(|layer| layer.mode == LayerMode::Lazy);
    let mut fills: Vec<FillState> = Vec::new();
    let (mut lazy_bytes, mut stored_bytes, mut rate) = (0_u64, 0_u64, 0_u64);
    for layer in lazy {
        let mount = mount_of(layer);
        let size = mount.map(|mount| mount.size).or(layer.size);
        lazy_bytes = lazy_bytes.saturating_add(size.unwrap_or_default());
        if let Some(mount) = mount {
            stored_bytes = stored_bytes.saturating_add(mount.fetched);
            rate = rate.saturating_add(mount.fill.bytes_per_second);
        }
        // One that is not mounted is not filled.
        fills.push(mount.map_or(FillState::Failing, |mount| mount.fill.state));
    }
    let of_index = |mount: &MountReport| {
        let error = mount.index_error.as_ref()?;
        Some(format!("cannot store its SOCI index: {error}"))
    };
    let mounted = layers.values().filter_map(|layer| mount_of(layer));
    let error = mounted.filter_map(of_index).next();
    if error.is_some() {
        fills.push(FillState::NoRoom);
    }
    let complete = fills.iter().all(|fill| *fill == FillState::Complete);
    // What is done for any of its layers is done for the image.
    let order = [
        FillState::Filling,
        FillState::NoRoom,
        FillState::Throttled,
        FillState::Failing,
        FillState::Waiting,
        FillState::Queued,
        FillState::Off,
    ];
    let fill = order.into_iter().find(|state| fills.contains(state));
    Image {
        reference: reference.to_owned(),
        manifest_digest: manifest.to_owned(),
        index_digest: layers
            .values()
            .find_map(|layer| mount_of(layer))
            .map(|mount| mount.index.to_string()),
        layers: layers
            .values()
            .map(|layer| layer_of(layer, mount_of(layer)))
            .collect(),
        complete,
        lazy_bytes,
        stored_bytes,
        bytes_per_second: rate,
        fill: fill.unwrap_or(FillState::Complete).word().to_owned(),
        error,
    }
}

fn image_of(layer: &LayerState) -> (&str, &str) {
    (
        layer.image.as_deref().unwrap_or_default(),
        layer.manifest.as_deref().unwrap_or_default(),
    )
}

/// The layer and those below it, from top to bottom.
fn chain<'a>(
    layer: &'a LayerState,
    by_name: &HashMap<&str, &'a LayerState>,
) -> Vec<&'a LayerState> {
    let mut chain = vec![layer];
    let mut at = layer;
    while let Some(parent) = by_name.get(at.parent.as_str()) {
        // Damaged metadata must not make this endless.
        if chain.len() > by_name.len() {
            break;
        }
        chain.push(parent);
        at = parent;
    }
    chain
}

fn layer_of(layer: &LayerState, mount: Option<&MountReport>) -> Layer {
    let broken = broken(layer, mount);
    let forged = mount.and_then(|mount| mount.forged.clone());
    let forged = forged.map(|text| RefusalReason {
        code: "forged".to_owned(),
        text,
    });
    let health = match (&broken, &forged) {
        (_, Some(_)) => Health::Forged,
        (Some(_), None) => Health::Broken,
        (None, None) => Health::Healthy,
    };
    let (reason_code, reason) = forged
        .or(broken)
        .or_else(|| layer.reason.clone())
        .map_or((None, None), |reason| {
            (Some(reason.code), Some(reason.text))
        });
    let state = match layer.mode {
        LayerMode::Lazy => api::LayerState::Lazy,
        LayerMode::Local => api::LayerState::Local,
        LayerMode::Deferred => api::LayerState::Deferred,
    };
    Layer {
        digest: layer.layer.clone().unwrap_or_default(),
        state: state.into(),
        health: health.into(),
        size_bytes: mount.map(|mount| mount.size).or(layer.size),
        fetched_bytes: mount.map(|mount| mount.fetched),
        reason_code,
        reason,
        error: mount.and_then(|mount| mount.error.clone()),
        snapshot: layer.name.clone(),
        snapshot_id: layer.id,
        mountpoint: layer
            .mountpoint
            .as_ref()
            .map(|path| path.display().to_string()),
        namespace: layer.namespace.clone(),
    }
}

/// Why a lazy layer is not served, if so.
fn broken(layer: &LayerState, mount: Option<&MountReport>) -> Option<RefusalReason> {
    if layer.mode != LayerMode::Lazy {
        return None;
    }
    if let Some(broken) = &layer.broken {
        return Some(broken.clone());
    }
    let text = match mount {
        Some(mount) if mount.is_served => return None,
        Some(_) => "its FUSE connection has ended; restart the daemon to mount it again",
        None => "it is not mounted; the log of the last start says why",
    };
    Some(RefusalReason {
        code: "failed".to_owned(),
        text: text.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(id: u64, parent: u64, image: Option<&str>) -> LayerState {
        let name = |id: u64| match id {
            0 => String::new(),
            id => format!("layer {id}"),
        };
        LayerState {
            id,
            name: name(id),
            parent: name(parent),
            image: image.map(str::to_owned),
            manifest: image.map(|image| format!("manifest of {image}")),
            layer: Some(format!("digest {id}")),
            size: Some(10),
            namespace: None,
            mode: LayerMode::Deferred,
            reason: Some(RefusalReason {
                code: "no-index".to_owned(),
                text: "there is none".to_owned(),
            }),
            mountpoint: None,
            broken: None,
        }
    }

    fn ids(image: &Image) -> Vec<u64> {
        image.layers.iter().map(|layer| layer.snapshot_id).collect()
    }

    #[test]
    fn a_layer_that_two_images_share_is_listed_with_both() {
        let layers = [
            layer(3, 1, Some("b")),
            layer(1, 0, Some("a")),
            layer(2, 1, Some("a")),
            layer(9, 0, None),
        ];
        let images = images(&layers, &[]);
        let seen: Vec<_> = images
            .iter()
            .map(|image| (image.reference.as_str(), ids(image)))
            .collect();
        assert_eq!(seen, [("", vec![9]), ("a", vec![1, 2]), ("b", vec![1, 3])]);
        assert_eq!(images[1].manifest_digest, "manifest of a");
    }

    #[test]
    fn parents_that_go_round_do_not() {
        let layers = [layer(1, 2, Some("a")), layer(2, 1, Some("a"))];
        assert!(!images(&layers, &[]).is_empty());
    }

    #[test]
    fn a_lazy_layer_that_is_not_mounted_is_broken() {
        let lazy = LayerState {
            mode: LayerMode::Lazy,
            reason: None,
            mountpoint: Some("/nowhere".into()),
            ..layer(1, 0, Some("a"))
        };
        let broken = LayerState {
            broken: Some(RefusalReason {
                code: "no-index".to_owned(),
                text: "gone".to_owned(),
            }),
            ..lazy.clone()
        };
        for (state, code) in [(lazy, "failed"), (broken, "no-index")] {
            let images = images(&[state], &[]);
            let layer = &images[0].layers[0];
            assert_eq!(layer.health(), Health::Broken);
            assert_eq!(layer.reason_code.as_deref(), Some(code));
        }
        let images = images(&[layer(1, 0, Some("a"))], &[]);
        assert_eq!(images[0].layers[0].health(), Health::Healthy);
    }

    #[test]
    fn an_image_whose_index_is_not_stored_is_not_complete_and_says_why() {
        let lazy = LayerState {
            mode: LayerMode::Lazy,
            reason: None,
            mountpoint: Some("/a".into()),
            ..layer(1, 0, Some("a"))
        };
        let digest = soci_oci::Digest::of(b"");
        let mut mount = MountReport {
            mountpoint: "/a".into(),
            image: "r/a:1".parse().unwrap(),
            manifest: digest,
            index: digest,
            index_error: None,
            layer: digest,
            ztoc: digest,
            size: 10,
            fetched: 10,
            fill: soci_lazy::Fill {
                state: FillState::Complete,
                bytes_per_second: 0,
            },
            error: None,
            forged: None,
            verified: true,
            is_served: true,
        };
        let image = |mount: &MountReport| {
            let (layers, mounts) = (std::slice::from_ref(&lazy), std::slice::from_ref(mount));
            images(layers, mounts).remove(0)
        };
        let complete = image(&mount);
        assert_eq!((complete.complete, complete.error), (true, None));
        mount.index_error = Some("no space to write /c".to_owned());
        let refused = image(&mount);
        assert!(!refused.complete);
        assert_eq!(refused.fill, "no-room");
        let error = refused.error.unwrap();
        assert_eq!(error, "cannot store its SOCI index: no space to write /c");
    }
}
