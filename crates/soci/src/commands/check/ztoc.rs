//! Whether the daemon would mount a layer with its zTOC: the same parts read it by the same limits.

use bytes::Bytes;
use soci_config::Config;
use soci_discovery::refusal_without_ztoc;
use soci_fetch::Oversized;
use soci_layer::LayerRefusal;
use soci_layerfs::{Tree, TreeOptions};
use soci_oci::{Descriptor, Digest};
use soci_ztoc::Ztoc;

use crate::remote::RemoteImage;

/// Fails as the daemon refuses a layer because of its zTOC.
pub(super) async fn mountable(
    image: &RemoteImage,
    layer: Digest,
    ztoc: &Descriptor,
    config: &Config,
) -> Result<(), LayerRefusal> {
    let largest = config.limits.ztoc_bytes;
    if ztoc.size > largest {
        return Err(LayerRefusal::ztoc_too_large(ztoc.size, largest));
    }
    let blob = image.client.blob_bytes(&image.reference, ztoc).await;
    let blob = blob.map_err(|error| refusal_without_ztoc(ztoc.digest, error))?;
    let (tree, spans) = (config.limits.tree_bytes, config.fetch.memory_budget_bytes);
    let examined = soci_task::run(move || examine(blob, layer, tree, spans)).await;
    examined.map_err(LayerRefusal::failed)?
}

/// Reads a zTOC as the daemon does when it mounts the layer, with so many bytes for its tree and for
/// spans.
fn examine(blob: Bytes, layer: Digest, tree: u64, spans: u64) -> Result<(), LayerRefusal> {
    let index = Ztoc::parse_index(blob).map_err(LayerRefusal::failed)?;
    soci_store::check_span_lengths(layer, &index.spans).map_err(LayerRefusal::failed)?;
    let options = TreeOptions {
        memory: tree,
        memory_key: Some("limits.tree_bytes"),
        ..TreeOptions::default()
    };
    Tree::of_index(&index, options).map_err(LayerRefusal::failed)?;
    match Oversized::find(&index.spans, spans) {
        Some(Oversized { span, bytes, limit }) => {
            Err(LayerRefusal::SpanTooLarge { span, bytes, limit })
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use soci_ztoc::{BuildOptions, Compression, build};

    use super::*;

    const MEMORY: u64 = 1 << 20;

    #[test]
    fn a_ztoc_that_a_mount_refuses_is_refused() {
        let mut ztoc = build(
            &[0; 1024][..],
            Compression::Uncompressed,
            BuildOptions::default(),
        )
        .unwrap()
        .ztoc;
        let layer = Digest::of(b"layer");
        examine(ztoc.encode().into(), layer, MEMORY, MEMORY).unwrap();
        let refused = examine(ztoc.encode().into(), layer, MEMORY, 4096).unwrap_err();
        assert_eq!(refused.code(), "span-too-large");
        let mut header = tar::Header::new_gnu();
        header.set_path("file").unwrap();
        header.set_size(0);
        header.set_cksum();
        let entry = soci_ztoc::entry_of_header(header.as_bytes()).unwrap();
        let mut below = entry.clone();
        below.name = b"file/below".to_vec();
        below.uncompressed_offset = 1024;
        ztoc.toc = vec![entry, below];
        let refused = |ztoc: &Ztoc, tree| {
            let refusal = examine(ztoc.encode().into(), layer, tree, MEMORY).unwrap_err();
            assert_eq!(refusal.code(), "failed");
            soci_errors::chain(&refusal)
        };
        let reason = refused(&ztoc, MEMORY);
        assert!(reason.contains("not a directory"), "{reason}");
        ztoc.toc.pop();
        let reason = refused(&ztoc, 100);
        assert!(reason.contains("limits.tree_bytes"), "{reason}");
    }
}
