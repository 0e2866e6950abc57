//! One layer: its zTOC is reused or built while its bytes go to the destination, or it is skipped
//! with a reason.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::sync::Arc;

use bytes::Bytes;
use soci_oci::media_types::{LayerCompression, layer_compression};
use soci_oci::{Descriptor, Digest, media_types};
use soci_profile::Merged;
use soci_ztoc::prefetch::PrefetchSpan;
use soci_ztoc::{Compression, Ztoc};

use crate::options::ConvertOptions;
use crate::progress::{LayerOutcome, Step};
use crate::sink::{BlobWriter, ImageSink};
use crate::source::SharedSource;
use crate::transfer::{Tee, TransferMeter};
use crate::{IndexError, Progress};

/// The file that makes a directory opaque (OCI image spec, `layer.md`, whiteouts).
const OPAQUE: &[u8] = b".wh..wh..opq";
/// PAX records with this prefix are extended attributes.
const XATTR: &[u8] = b"SCHILY.xattr.";

/// A layer to be brought over, and the zTOC that the source has of it.
#[derive(Debug, Clone)]
pub(crate) struct LayerWork {
    pub(crate) layer: Descriptor,
    /// It belongs to an image that gets an index.
    pub(crate) selected: bool,
    pub(crate) existing: Option<Descriptor>,
}

/// A layer that was brought over.
#[derive(Debug)]
pub(crate) struct LayerResult {
    pub(crate) layer: Descriptor,
    /// The outcome to report; `None` for a layer of an image that gets no index.
    pub(crate) outcome: Option<LayerOutcome>,
    pub(crate) ztoc: Option<LayerZtoc>,
}

/// A zTOC, to be written and listed.
#[derive(Debug)]
pub(crate) struct LayerZtoc {
    pub(crate) blob: Bytes,
    pub(crate) digest: Digest,
    /// Neither extended attributes nor opaque directories are in the layer.
    pub(crate) plain: bool,
    pub(crate) prefetch: LayerPrefetch,
}

/// What of a layer shall be prefetched.
#[derive(Debug, Default)]
pub(crate) struct LayerPrefetch {
    /// For each path to prefetch: its spans, if the layer has it.
    pub(crate) files: Vec<Option<PrefetchSpan>>,
    /// The spans that the recorded start read, and their places in its order.
    pub(crate) recorded: BTreeMap<u32, u64>,
}

/// What to prefetch.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// Clean paths.
    pub(crate) files: Arc<[Vec<u8>]>,
    pub(crate) profile: Option<Arc<Merged>>,
}

impl Wanted {
    /// Finds it in a layer. Unless something is wanted, the zTOC is not looked at.
    fn within(&self, layer: &Digest, ztoc: &Ztoc, digest: &Digest) -> LayerPrefetch {
        if self.files.is_empty() && self.profile.is_none() {
            return LayerPrefetch::default();
        }
        let spans = ztoc.span_table();
        let profile = self.profile.as_ref();
        LayerPrefetch {
            files: crate::prefetch::locate(&ztoc.toc, &spans, &self.files),
            recorded: profile
                .map(|profile| profile.in_table(layer, digest, &spans))
                .unwrap_or_default(),
        }
    }
}

/// Why there shall be no zTOC; `Err` holds the outcome.
fn compression(work: &LayerWork, options: &ConvertOptions) -> Result<Compression, LayerOutcome> {
    let packed = |how: &str| {
        Err(LayerOutcome::Unsupported {
            reason: format!(
                "is compressed in an unsupported format. expect: [tar, gzip] but got {how:?}"
            ),
        })
    };
    if work.layer.size < options.min_layer_size {
        return Err(LayerOutcome::TooSmall {
            min_layer_size: options.min_layer_size,
        });
    }
    match layer_compression(&work.layer.media_type) {
        LayerCompression::Gzip => Ok(Compression::Gzip),
        LayerCompression::None => Ok(Compression::Uncompressed),
        LayerCompression::Zstd => packed("zstd"),
        LayerCompression::Unknown => packed("unknown"),
    }
}

/// Everything that is done to one layer.
pub(crate) async fn process(
    work: LayerWork,
    source: &SharedSource,
    sink: &dyn ImageSink,
    options: &ConvertOptions,
    prefetch: &Wanted,
    progress: &dyn Progress,
    meter: &TransferMeter,
) -> Result<LayerResult, IndexError> {
    let layer = work.layer.clone();
    let done = |outcome, ztoc| {
        Ok(LayerResult {
            layer: layer.clone(),
            outcome,
            ztoc,
        })
    };
    if is_foreign(&layer) && !source.contains(&layer).await? {
        // Such layers stay at their URLs.
        let outcome = LayerOutcome::Unsupported {
            reason: "is not distributed with the image".to_owned(),
        };
        return done(work.selected.then_some(outcome), None);
    }
    let copy = || async {
        progress.begin(&layer, Step::Copy);
        sink.copy(&layer, source, meter).await
    };
    if !work.selected {
        copy().await?;
        return done(None, None);
    }
    let compression = match compression(&work, options) {
        Ok(compression) => compression,
        Err(outcome) => {
            copy().await?;
            return done(Some(outcome), None);
        }
    };
    if let Some(existing) = &work.existing
        && let Some(ztoc) = reuse(existing, &layer, compression, source, prefetch).await
    {
        copy().await?;
        let outcome = LayerOutcome::Indexed {
            ztoc: ztoc.digest,
            reused: true,
        };
        return done(Some(outcome), Some(ztoc));
    }
    progress.begin(&layer, Step::Index);
    match build(&layer, compression, source, sink, options, prefetch, meter).await? {
        Ok((ztoc, copied)) => {
            if !copied {
                copy().await?;
            }
            let outcome = LayerOutcome::Indexed {
                ztoc: ztoc.digest,
                reused: false,
            };
            done(Some(outcome), Some(ztoc))
        }
        Err(reason) => {
            copy().await?;
            done(Some(LayerOutcome::Unsupported { reason }), None)
        }
    }
}

/// Returns whether registries need not hold this layer.
pub(crate) fn is_foreign(layer: &Descriptor) -> bool {
    layer.media_type.contains("nondistributable") || layer.media_type.contains(".foreign.")
}

/// The zTOC that the source has, when it is sound and of this layer.
async fn reuse(
    existing: &Descriptor,
    layer: &Descriptor,
    compression: Compression,
    source: &SharedSource,
    prefetch: &Wanted,
) -> Option<LayerZtoc> {
    let blob = match source.bytes(existing).await {
        Ok(blob) => blob,
        Err(error) => {
            tracing::debug!(layer = %layer.digest, %error, "cannot read the listed zTOC; building it again");
            return None;
        }
    };
    let ztoc = match Ztoc::parse(&blob) {
        Ok(ztoc) => ztoc,
        Err(error) => {
            tracing::debug!(layer = %layer.digest, %error, "the listed zTOC is invalid; building it again");
            return None;
        }
    };
    if ztoc.compressed_archive_size != layer.size || ztoc.compression.algorithm != compression {
        return None;
    }
    Some(facts(&layer.digest, &ztoc, blob, prefetch))
}

/// Builds the zTOC; the inner error is the reason why the layer cannot have one. The flag says
/// whether the layer's bytes have gone to the destination on the way.
async fn build(
    layer: &Descriptor,
    compression: Compression,
    source: &SharedSource,
    sink: &dyn ImageSink,
    options: &ConvertOptions,
    prefetch: &Wanted,
    meter: &TransferMeter,
) -> Result<Result<(LayerZtoc, bool), String>, IndexError> {
    let reader = source.open(layer).await?;
    let writer: Option<Box<dyn BlobWriter>> = sink.tee(layer)?;
    let place = source.describe();
    let (layer, meter, prefetch) = (layer.clone(), meter.clone(), prefetch.clone());
    let build = options.build();
    let destination = sink.describe();
    soci_task::blocking(move || {
        let mut tee = Tee {
            reader,
            writer,
            meter: &meter,
            left: layer.size,
            write_failure: None,
        };
        let built = soci_ztoc::build(&mut tee, compression, build);
        if let Some(source) = tee.write_failure {
            return Err(IndexError::Io {
                action: "write",
                path: destination.into(),
                source,
            });
        }
        let built = match built {
            Ok(built) => built,
            Err(e) if e.is_unsupported() => return Ok(Err(e.to_string())),
            Err(soci_ztoc::BuildError::Read(source)) => {
                return Err(IndexError::Blob {
                    digest: layer.digest,
                    place,
                    source,
                });
            }
            Err(source) => {
                let digest = layer.digest;
                return Err(IndexError::Layer { digest, source });
            }
        };
        // The builder takes in everything; this makes sure of it.
        if tee.left > 0 || tee.read(&mut [0; 1]).is_ok_and(|more| more > 0) {
            return Err(IndexError::Size {
                digest: layer.digest,
                place,
                expected: layer.size,
                found: layer.size.saturating_sub(tee.left),
            });
        }
        if built.compressed_digest != layer.digest {
            return Err(IndexError::Digest {
                expected: layer.digest,
                found: built.compressed_digest,
                place,
            });
        }
        let copied = tee.writer.is_some();
        if let Some(writer) = tee.writer {
            writer.commit()?;
        }
        let blob = Bytes::from(built.ztoc.encode());
        Ok(Ok((
            facts(&layer.digest, &built.ztoc, blob, &prefetch),
            copied,
        )))
    })
    .await
}

fn facts(layer: &Digest, ztoc: &Ztoc, blob: Bytes, prefetch: &Wanted) -> LayerZtoc {
    let plain = !ztoc.toc.iter().any(|entry| {
        entry.name.ends_with(OPAQUE) || entry.xattrs.iter().any(|(key, _)| key.starts_with(XATTR))
    });
    let digest = Digest::of(&blob);
    LayerZtoc {
        prefetch: prefetch.within(layer, ztoc, &digest),
        digest,
        blob,
        plain,
    }
}

impl LayerZtoc {
    /// The zTOC's own descriptor, without annotations.
    pub(crate) fn descriptor(&self) -> Descriptor {
        Descriptor::new(media_types::ZTOC, self.digest, self.blob.len() as u64)
    }
}
