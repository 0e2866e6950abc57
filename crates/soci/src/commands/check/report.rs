//! What is said about an image and its layers.

use serde::Serialize;
use soci_oci::media_types::{LayerCompression, layer_compression};
use soci_oci::{Descriptor, Digest};

use super::here::Here;
use super::startup::Startup;
use crate::remote::{Found, RemoteImage};
use crate::table::table;

/// The whole of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    image: String,
    platform: String,
    manifest: Digest,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<Index>,
    /// Why no layer is lazy, whatever it is like.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// What is wrong on this machine.
    obstacles: Vec<String>,
    layers: Vec<Layer>,
    lazy_layers: usize,
    lazy_bytes: u64,
    total_bytes: u64,
    /// What a start is estimated to need.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) startup: Option<Startup>,
}

#[derive(Debug, Serialize)]
struct Index {
    digest: Digest,
    found: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    digest: Digest,
    size: u64,
    compression: &'static str,
    lazy: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    ztoc: Option<Digest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl Report {
    pub(super) async fn new(
        image: &RemoteImage,
        index: &Result<Found, String>,
        here: &Here,
    ) -> anyhow::Result<Self> {
        let reason = match index {
            Err(reason) => Some(reason.clone()),
            Ok(found) => here.refuses(found.how),
        };
        let mut layers = Vec::new();
        for layer in &image.manifest.layers {
            layers
                .push(Layer::new(image, layer, index.as_ref().ok(), reason.is_some(), here).await?);
        }
        let lazy = layers.iter().filter(|layer| layer.lazy);
        Ok(Self {
            image: image.reference.to_string(),
            platform: image.platform.to_string(),
            manifest: image.descriptor.digest,
            index: index.as_ref().ok().map(|found| Index {
                digest: found.digest,
                found: found.how.to_string(),
            }),
            reason,
            obstacles: here.obstacles.clone(),
            lazy_layers: lazy.clone().count(),
            lazy_bytes: lazy.map(|layer| layer.size).sum(),
            total_bytes: layers.iter().map(|layer| layer.size).sum(),
            layers,
            startup: None,
        })
    }

    /// The report for people.
    pub(super) fn text(&self) -> String {
        let mut text = format!("image     {} ({})\n", self.image, self.platform);
        text.push_str(&format!("manifest  {}\n", self.manifest));
        match &self.index {
            Some(index) => {
                text.push_str(&format!("index     {} ({})\n", index.digest, index.found))
            }
            None => text.push_str("index     none\n"),
        }
        for reason in self.reason.iter().chain(&self.obstacles) {
            text.push_str(&format!("problem   {reason}\n"));
        }
        text.push('\n');
        let rows: Vec<[String; 5]> = self
            .layers
            .iter()
            .map(|layer| {
                [
                    layer.digest.to_string(),
                    layer.size.to_string(),
                    layer.compression.to_owned(),
                    if layer.lazy { "yes" } else { "no" }.to_owned(),
                    layer.reason.clone().unwrap_or_default(),
                ]
            })
            .collect();
        text.push_str(&table(
            ["LAYER DIGEST", "SIZE", "COMPRESSION", "LAZY", "REASON"],
            &rows,
        ));
        text.push_str(&format!(
            "\n{} of {} layers are lazy, {} of {} bytes\n",
            self.lazy_layers,
            self.layers.len(),
            self.lazy_bytes,
            self.total_bytes
        ));
        if let Some(startup) = &self.startup {
            text.push_str(&format!(
                "starting {} needs at least {} bytes, {:.1} % of the image\n",
                startup.command, startup.bytes, startup.percent
            ));
        }
        text
    }
}

impl Layer {
    async fn new(
        image: &RemoteImage,
        layer: &Descriptor,
        index: Option<&Found>,
        refused: bool,
        here: &Here,
    ) -> anyhow::Result<Self> {
        let ztoc = index.and_then(|found| found.index.ztoc_for(&layer.digest));
        let least = here.min_layer_size();
        let reason = match ztoc {
            None => Some(without_ztoc(layer, index.is_some())),
            Some(_) if refused => Some("the image's index is not used here".to_owned()),
            Some(_) if layer.size < least => Some(format!(
                "smaller than min_layer_size = {least} of the snapshotter's configuration"
            )),
            Some(ztoc) => {
                let there = image
                    .client
                    .blob_exists(&image.reference, &ztoc.descriptor)
                    .await?;
                (!there).then(|| format!("the registry lacks its zTOC {}", ztoc.descriptor.digest))
            }
        };
        Ok(Self {
            digest: layer.digest,
            size: layer.size,
            compression: match layer_compression(&layer.media_type) {
                LayerCompression::None => "none",
                LayerCompression::Gzip => "gzip",
                LayerCompression::Zstd => "zstd",
                LayerCompression::Unknown => "unknown",
            },
            lazy: reason.is_none(),
            ztoc: ztoc.map(|ztoc| ztoc.descriptor.digest),
            reason,
        })
    }
}

/// Why a layer has no zTOC, as far as can be told.
fn without_ztoc(layer: &Descriptor, indexed: bool) -> String {
    match layer_compression(&layer.media_type) {
        _ if !indexed => "the image has no index".to_owned(),
        LayerCompression::Zstd => "zstd layers cannot be indexed".to_owned(),
        LayerCompression::Unknown => {
            format!("layers of type {} cannot be indexed", layer.media_type)
        }
        LayerCompression::None | LayerCompression::Gzip => {
            "no zTOC: below --min-layer-size when the image was indexed".to_owned()
        }
    }
}
