//! The report of `soci check` about an image and its layers.

use serde::Serialize;
use soci_discovery::{NoIndex, reason_without_ztoc};
use soci_layer::LayerRefusal;
use soci_oci::media_types::{LayerCompression, layer_compression};
use soci_oci::{Descriptor, Digest};

use super::Lookup;
use super::machine::Machine;
use super::startup::Startup;
use crate::output::Page;
use crate::remote::{self, RemoteImage};
use crate::style::Style;
use crate::table::table;

/// The report about one image.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    image: String,
    platform: String,
    manifest: Digest,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<Index>,
    /// Code of the reason why no layer is lazy ([`LayerRefusal::code`]).
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
    /// Why no layer is lazy, if that does not depend on the layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Problems of this machine.
    obstacles: Vec<String>,
    layers: Vec<Layer>,
    lazy_layers: usize,
    lazy_bytes: u64,
    total_bytes: u64,
    /// The estimate of what a start needs.
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
    /// Code of the reason why it is not lazy ([`LayerRefusal::code`]).
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl Report {
    pub(super) async fn new(
        image: &RemoteImage,
        lookup: &Lookup,
        machine: &Machine,
    ) -> anyhow::Result<Self> {
        let refusal = match lookup.used.as_ref().err().cloned() {
            Some(NoIndex::Disabled) => Some(NoIndex::Disabled.into()),
            // No index is looked up then.
            none => match machine.lazy_registries().check(&image.reference) {
                Err(refusal) => Some(refusal),
                Ok(()) => none.map(LayerRefusal::from),
            },
        };
        let refusal = eagerly(refusal, machine.config());
        let mut layers = Vec::new();
        for layer in &image.manifest.layers {
            let config = machine.config();
            layers.push(Layer::new(image, layer, lookup, refusal.as_ref(), config).await?);
        }
        let lazy = layers.iter().filter(|layer| layer.lazy);
        Ok(Self {
            image: image.reference.to_string(),
            platform: image.platform.to_string(),
            manifest: image.descriptor.digest,
            index: lookup.shown().map(|found| Index {
                digest: found.digest,
                found: found.by.to_string(),
            }),
            code: refusal.as_ref().map(LayerRefusal::code),
            reason: refusal.as_ref().map(remote::reason),
            obstacles: machine.obstacles.clone(),
            lazy_layers: lazy.clone().count(),
            lazy_bytes: lazy.map(|layer| layer.size).sum(),
            total_bytes: layers.iter().map(|layer| layer.size).sum(),
            layers,
            startup: None,
        })
    }

    /// Formats the report as lines.
    pub(super) fn page(&self, style: Style) -> Page {
        let mut page = Page::default();
        page.line(format!("image     {} ({})", self.image, self.platform));
        page.line(format!("manifest  {}", self.manifest));
        page.line(match &self.index {
            Some(index) => format!("index     {} ({})", index.digest, index.found),
            None => "index     none".to_owned(),
        });
        for reason in self.reason.iter().chain(&self.obstacles) {
            page.line(format!("problem   {reason}"));
        }
        page.line("");
        let rows: Vec<[String; 5]> = self
            .layers
            .iter()
            .map(|layer| {
                [
                    style.digest(&layer.digest.to_string()),
                    style.size(layer.size),
                    layer.compression.to_owned(),
                    if layer.lazy { "yes" } else { "no" }.to_owned(),
                    layer.reason.clone().unwrap_or_default(),
                ]
            })
            .collect();
        page.append(&table(
            ["LAYER DIGEST", "SIZE", "COMPRESSION", "LAZY", "REASON"],
            &rows,
        ));
        page.line("");
        page.line(format!(
            "{} of {} layers are lazy, {} of {}",
            self.lazy_layers,
            self.layers.len(),
            style.size(self.lazy_bytes),
            style.size_with_unit(self.total_bytes)
        ));
        if let Some(startup) = &self.startup {
            page.line(format!(
                "starting {} needs at least {}, {:.1} % of the image",
                startup.command,
                style.size_with_unit(startup.bytes),
                startup.percent
            ));
        }
        page
    }
}

/// Returns the refusal of a daemon that pulls all images in parallel, or those without an index.
fn eagerly(refusal: Option<LayerRefusal>, config: &soci_config::Config) -> Option<LayerRefusal> {
    let parallel = &config.pull_modes.parallel_pull_unpack;
    if parallel.enable {
        let reason = "pull_modes.parallel_pull_unpack.enable = true".to_owned();
        return Some(LayerRefusal::Eager { reason });
    }
    match refusal {
        Some(refusal @ (LayerRefusal::Disabled { .. } | LayerRefusal::NotIndexed { .. }))
            if parallel.experimental_parallel_pull_as_fallback =>
        {
            let reason = soci_errors::chain(&refusal);
            Some(LayerRefusal::Eager { reason })
        }
        refusal => refusal,
    }
}

impl Layer {
    async fn new(
        image: &RemoteImage,
        layer: &Descriptor,
        lookup: &Lookup,
        refusal: Option<&LayerRefusal>,
        config: &soci_config::Config,
    ) -> anyhow::Result<Self> {
        let minimum = config.snapshotter.min_layer_size;
        let ztoc = lookup.shown();
        let ztoc = ztoc.and_then(|found| found.index.ztoc_for(&layer.digest));
        // In the order in which the daemon decides.
        let not_allowed = refusal.filter(|refusal| {
            use LayerRefusal::{Disabled, Eager, UntrustedRegistry};
            matches!(
                refusal,
                Disabled { .. } | Eager { .. } | UntrustedRegistry { .. }
            )
        });
        let why_not = if let Some(refusal) = not_allowed {
            Some((refusal.code(), without_index(lookup, refusal).to_owned()))
        } else if layer.size < minimum {
            let reason = format!(
                "smaller than min_layer_size = {minimum} of the snapshotter's configuration"
            );
            Some(("below-min-size", reason))
        } else if let Some(refusal) = refusal {
            Some((refusal.code(), without_index(lookup, refusal).to_owned()))
        } else if let Some(ztoc) = ztoc {
            let ztoc = &ztoc.descriptor;
            let reason = super::ztoc::refusal(image, layer.digest, ztoc, &config.limits).await?;
            reason.map(|reason| ("failed", reason))
        } else {
            Some((
                "no-ztoc",
                format!("no zTOC: {}", reason_without_ztoc(layer)),
            ))
        };
        let (code, reason) = why_not.unzip();
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
            code,
            reason,
        })
    }
}

/// Explains why the image has no index for its layers.
fn without_index(lookup: &Lookup, refusal: &LayerRefusal) -> &'static str {
    match refusal {
        LayerRefusal::IndexUnavailable { .. } => "the image's index cannot be looked up",
        LayerRefusal::UntrustedRegistry { .. } => {
            "[trust] lazy_registries does not list the registry"
        }
        _ if lookup.unused.is_some() => "the image's index is not used on this machine",
        _ => "the image has no index",
    }
}
