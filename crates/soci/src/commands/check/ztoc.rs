//! Whether the daemon would mount a layer with its zTOC: the same parts read it by the same limits.

use bytes::Bytes;
use soci_config::Limits;
use soci_layerfs::{Tree, TreeOptions};
use soci_oci::{Descriptor, Digest};
use soci_ztoc::Ztoc;

use crate::remote::RemoteImage;

/// Returns why the daemon would refuse a layer because of its zTOC.
pub(super) async fn refusal(
    image: &RemoteImage,
    layer: Digest,
    ztoc: &Descriptor,
    limits: &Limits,
) -> anyhow::Result<Option<String>> {
    let (size, most) = (ztoc.size, limits.ztoc_bytes);
    if size > most {
        let reason = format!("its zTOC has {size} bytes, more than limits.ztoc_bytes = {most}");
        return Ok(Some(reason));
    }
    if !image.client.blob_exists(&image.reference, ztoc).await? {
        return Ok(Some(format!("the registry lacks its zTOC {}", ztoc.digest)));
    }
    let blob = match image.client.blob_bytes(&image.reference, ztoc).await {
        Ok(blob) => blob,
        Err(error) => return Ok(Some(soci_errors::chain(&error))),
    };
    let memory = limits.tree_bytes;
    let examined = soci_task::run(move || examine(blob, layer, memory).err()).await?;
    Ok(examined.map(|error| format!("{error:#}")))
}

/// Reads a zTOC as the daemon does when it mounts the layer.
fn examine(blob: Bytes, layer: Digest, memory: u64) -> anyhow::Result<()> {
    let index = Ztoc::parse_index(blob)?;
    soci_store::check_span_lengths(layer, &index.spans)?;
    let options = TreeOptions {
        memory,
        memory_key: Some("limits.tree_bytes"),
        ..TreeOptions::default()
    };
    Tree::of_index(&index, options)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use soci_ztoc::{BuildOptions, Compression, build};

    use super::*;

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
        examine(ztoc.encode().into(), layer, 1 << 20).unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_path("file").unwrap();
        header.set_size(0);
        header.set_cksum();
        let entry = soci_ztoc::entry_of_header(header.as_bytes()).unwrap();
        let mut below = entry.clone();
        below.name = b"file/below".to_vec();
        below.uncompressed_offset = 1024;
        ztoc.toc = vec![entry, below];
        let refused = examine(ztoc.encode().into(), layer, 1 << 20).unwrap_err();
        assert!(refused.to_string().contains("not a directory"), "{refused}");
        ztoc.toc.pop();
        let refused = examine(ztoc.encode().into(), layer, 100).unwrap_err();
        assert!(
            format!("{refused:#}").contains("limits.tree_bytes"),
            "{refused:#}"
        );
    }
}
