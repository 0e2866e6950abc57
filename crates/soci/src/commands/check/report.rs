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
        let config = machine.config();
        let mut layers = Vec::new();
        for layer in &image.manifest.layers {
            let lazy = mountable(image, layer, lookup, refusal.as_ref(), config).await;
            let refusal = eagerly(lazy.err(), config);
            layers.push(Layer::new(layer, lookup, refusal.as_ref()));
        }
        let refusal = eagerly(refusal, config);
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
        Some(refusal)
            if parallel.experimental_parallel_pull_as_fallback
                && refusal.falls_back_to_parallel() =>
        {
            let reason = soci_errors::chain(&refusal);
            Some(LayerRefusal::Eager { reason })
        }
        refusal => refusal,
    }
}

/// Fails as the daemon refuses to mount a layer lazily, in the order in which it decides; `refusal`
/// is that of the whole image.
async fn mountable(
    image: &RemoteImage,
    layer: &Descriptor,
    lookup: &Lookup,
    refusal: Option<&LayerRefusal>,
    config: &soci_config::Config,
) -> Result<(), LayerRefusal> {
    use LayerRefusal::{BelowMinSize, Disabled, UntrustedRegistry};
    let minimum = config.snapshotter.min_layer_size;
    match refusal {
        Some(refusal @ (Disabled { .. } | UntrustedRegistry { .. })) => Err(refusal.clone()),
        _ if layer.size < minimum => Err(BelowMinSize {
            size: layer.size,
            minimum,
        }),
        Some(refusal) => Err(refusal.clone()),
        None => {
            let ztoc = lookup.ztoc_for(layer);
            let without = || LayerRefusal::no_ztoc(reason_without_ztoc(layer));
            super::ztoc::mountable(image, layer.digest, ztoc.ok_or_else(without)?, config).await
        }
    }
}

impl Layer {
    fn new(layer: &Descriptor, lookup: &Lookup, refusal: Option<&LayerRefusal>) -> Self {
        Self {
            digest: layer.digest,
            size: layer.size,
            compression: match layer_compression(&layer.media_type) {
                LayerCompression::None => "none",
                LayerCompression::Gzip => "gzip",
                LayerCompression::Zstd => "zstd",
                LayerCompression::Unknown => "unknown",
            },
            lazy: refusal.is_none(),
            ztoc: lookup.ztoc_for(layer).map(|ztoc| ztoc.digest),
            code: refusal.map(LayerRefusal::code),
            reason: refusal.map(|refusal| short_reason(lookup, refusal)),
        }
    }
}

/// Explains why a layer is not lazy; the report has the whole reason of what concerns all layers.
fn short_reason(lookup: &Lookup, refusal: &LayerRefusal) -> String {
    use LayerRefusal::{
        BelowMinSize, Disabled, Eager, Failed, IndexUnavailable, NoZtoc, NotIndexed,
        UntrustedRegistry,
    };
    match refusal {
        Eager { .. } => "pulled and unpacked in parallel with the image's other layers".to_owned(),
        IndexUnavailable { .. } => "the image's index cannot be looked up".to_owned(),
        UntrustedRegistry { .. } => "[trust] lazy_registries does not list the registry".to_owned(),
        Disabled { .. } | NotIndexed { .. } => match lookup.unused {
            Some(_) => "the image's index is not used on this machine".to_owned(),
            None => "the image has no index".to_owned(),
        },
        BelowMinSize { minimum, .. } => {
            format!("smaller than min_layer_size = {minimum} of the snapshotter's configuration")
        }
        NoZtoc { reason } => format!("no zTOC: {reason}"),
        Failed { source } => soci_errors::chain(source),
        other => soci_errors::chain(other),
    }
}
