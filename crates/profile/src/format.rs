//! The file of a profile: compact JSON with a version.

use serde::{Deserialize, Serialize};
use soci_oci::Digest;

use crate::blocks::Blocks;
use crate::profile::{KEPT, Profile};
use crate::recording::{MAX_LAYERS, ProfiledLayer, RecordedSpan, Recording, tidy};

/// Version of the format. 1 had neither blocks nor the name of the image.
const VERSION: u32 = 2;
/// Largest profile in bytes; recordings of a large image take a tenth of it.
pub const MAX_SIZE: u64 = 1 << 20;
/// Greatest number of blocks of a span: 1 GiB.
const MAX_EXTENT: u32 = 16 << 10;
/// Longest name of an image.
const MAX_NAME: usize = 512;

/// Why bytes are not a profile.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// Not JSON of the right shape.
    #[error("cannot read the start-up profile: {0}")]
    Json(#[from] serde_json::Error),
    /// It is of another version of this program.
    #[error(
        "cannot use the start-up profile: it has version {found}, and this program reads version \
         {VERSION}; record it again"
    )]
    Version {
        /// Its version.
        found: u64,
    },
    /// Larger than a profile can be.
    #[error(
        "cannot use the start-up profile: it has {size} bytes, more than the limit of {MAX_SIZE}"
    )]
    TooLarge {
        /// Its size.
        size: u64,
    },
    /// Contradictory.
    #[error("cannot use the start-up profile: {0}")]
    Invalid(String),
}

#[derive(Deserialize)]
struct Head {
    version: u64,
}

#[derive(Serialize, Deserialize)]
struct Document {
    version: u32,
    manifest: Digest,
    image: String,
    layers: Vec<Layer>,
    recordings: Vec<Start>,
}

#[derive(Serialize, Deserialize)]
struct Layer {
    layer: Digest,
    ztoc: Digest,
}

/// One start.
#[derive(Serialize, Deserialize)]
struct Start {
    /// Number of the layer, span, milliseconds, first block and number of blocks of the span, in the
    /// order of the first reads.
    spans: Vec<(u32, u32, u64, u32, u32)>,
    /// Number of the layer, and the lengths of gaps and runs of its blocks.
    #[serde(default)]
    blocks: Vec<(u32, Vec<u32>)>,
}

pub(crate) fn parse(bytes: &[u8]) -> Result<Profile, ProfileError> {
    let size = bytes.len() as u64;
    if size > MAX_SIZE {
        return Err(ProfileError::TooLarge { size });
    }
    let head: Head = serde_json::from_slice(bytes)?;
    if head.version != u64::from(VERSION) {
        let found = head.version;
        return Err(ProfileError::Version { found });
    }
    let document: Document = serde_json::from_slice(bytes)?;
    let invalid = |reason: String| Err(ProfileError::Invalid(reason));
    if document.layers.len() > MAX_LAYERS {
        return invalid(format!(
            "it lists {} layers, more than the limit of {MAX_LAYERS}",
            document.layers.len()
        ));
    }
    if document.image.len() > MAX_NAME {
        return invalid(format!(
            "its image has a name of more than {MAX_NAME} bytes"
        ));
    }
    let layers: Vec<_> = document
        .layers
        .iter()
        .map(|layer| ProfiledLayer {
            layer: layer.layer,
            ztoc: layer.ztoc,
        })
        .collect();
    let layer = |number: u32| {
        let layer = usize::try_from(number).ok().and_then(|at| layers.get(at));
        let unlisted = || ProfileError::Invalid(format!("it does not list its layer {number}"));
        layer.copied().ok_or_else(unlisted)
    };
    let surplus = document.recordings.len().saturating_sub(KEPT);
    let mut recordings = Vec::new();
    for start in document.recordings.into_iter().skip(surplus) {
        let mut recording = Recording::default();
        for (number, span, millis, first, count) in start.spans {
            recording.spans.push(RecordedSpan {
                layer: layer(number)?,
                span,
                millis,
                extent: first..first.saturating_add(count.min(MAX_EXTENT)),
            });
        }
        for (number, lengths) in start.blocks {
            let layer = layer(number)?;
            let Some(blocks) = Blocks::of_lengths(&lengths) else {
                return invalid("its blocks leave the range of a layer".to_owned());
            };
            recording.blocks.push((layer, blocks));
        }
        tidy(&mut recording);
        recordings.push(recording);
    }
    Ok(Profile {
        manifest: document.manifest,
        image: document.image,
        recordings,
    })
}

pub(crate) fn encode(profile: &Profile) -> Vec<u8> {
    let mut layers: Vec<ProfiledLayer> = Vec::new();
    let mut number = |layer: &ProfiledLayer| {
        let known = layers.iter().position(|known| known == layer);
        let at = known.unwrap_or_else(|| {
            layers.push(*layer);
            layers.len() - 1
        });
        u32::try_from(at).unwrap_or(u32::MAX)
    };
    let mut recordings = Vec::new();
    for recording in &profile.recordings {
        let spans = recording.spans.iter().map(|span| {
            let extent = &span.extent;
            let count = extent.end.saturating_sub(extent.start).min(MAX_EXTENT);
            (
                number(&span.layer),
                span.span,
                span.millis,
                extent.start,
                count,
            )
        });
        let spans = spans.collect();
        let blocks = recording.blocks.iter();
        let blocks = blocks.map(|(layer, blocks)| (number(layer), blocks.lengths()));
        recordings.push(Start {
            spans,
            blocks: blocks.collect(),
        });
    }
    let document = Document {
        version: VERSION,
        manifest: profile.manifest,
        image: profile.image.chars().take(MAX_NAME / 4).collect(),
        layers: layers
            .into_iter()
            .map(|ProfiledLayer { layer, ztoc }| Layer { layer, ztoc })
            .collect(),
        recordings,
    };
    // Writing numbers and strings to memory cannot fail.
    serde_json::to_vec(&document).unwrap_or_default()
}
