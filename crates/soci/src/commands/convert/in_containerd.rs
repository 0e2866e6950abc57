//! Converting an image of containerd into another image of containerd.

use std::sync::Arc;

use anyhow::bail;
use soci_index::{ConvertOptions, SharedSource};
use soci_oci::Reference;

use crate::artifact_records::{add_index, known_ztocs};
use crate::containerd::{self, ContainerdSink, ContainerdSource};
use crate::global::Global;
use crate::output;
use crate::progress::{ClearAtEnd, ConvertProgress};

pub(super) async fn run(
    source: &str,
    destination: &str,
    options: &ConvertOptions,
    quiet: bool,
    global: &Global,
) -> anyhow::Result<()> {
    check_tagged(destination)?;
    let db = global.artifacts();
    let layout = global.layout()?;
    let known = known_ztocs(&db).await?;
    let converted = global
        .leased(async |containerd| {
            let image = containerd::image(&containerd, source).await?;
            let source: SharedSource = Arc::new(ContainerdSource::new(
                &containerd,
                image,
                known,
                layout.clone(),
            ));
            let sink = ContainerdSink::image(&containerd, destination, layout);
            let progress = Arc::new(ConvertProgress::new(quiet));
            let _clear = ClearAtEnd(Arc::clone(&progress));
            let converted = soci_index::convert(
                &source,
                Box::new(sink),
                options,
                Arc::clone(&progress) as Arc<_>,
            )
            .await?;
            for image in &converted.images {
                add_index(
                    &db,
                    &image.written,
                    image.manifest,
                    converted.index.digest,
                    &image.platform,
                )
                .await?;
            }
            Ok(converted)
        })
        .await?;
    if !quiet {
        output::line(format!("{destination} {}", converted.index.digest));
    }
    Ok(())
}

/// The new image is a name of its own: a digest cannot be chosen.
fn check_tagged(destination: &str) -> anyhow::Result<()> {
    let bad = |reason: String| {
        anyhow::anyhow!(
            "the destination image must be a tagged ref of the form \"registry/repository:tag\": {reason}"
        )
    };
    if destination.is_empty() {
        bail!("destination needs to be specified");
    }
    let parsed: Reference = destination.parse().map_err(|e| bad(format!("{e}")))?;
    if parsed.digest().is_some() {
        return Err(bad("reference must not contain a digest".to_owned()));
    }
    let last = destination.rsplit('/').next().unwrap_or_default();
    if !destination.contains('/') || !last.contains(':') {
        return Err(bad("reference must be tagged, with its registry".to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check_tagged;

    #[test]
    fn the_new_image_has_a_name_with_a_tag() {
        assert!(check_tagged("localhost:5000/a/b:c").is_ok());
        let digest = soci_oci::Digest::of(b"x");
        for bad in [
            "".to_owned(),
            "alpine:3".to_owned(),
            "localhost:5000/a".to_owned(),
            format!("localhost/a@{digest}"),
            format!("localhost/a:b@{digest}"),
            "localhost/UPPER:1".to_owned(),
        ] {
            assert!(check_tagged(&bad).is_err(), "{bad}");
        }
    }
}
