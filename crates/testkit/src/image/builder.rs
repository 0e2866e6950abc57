//! Puts layers together into an image in an OCI layout folder.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;
use soci_oci::{Descriptor, Digest, Index, Manifest, annotations, media_types};

use super::layer::Layer;
use super::sink::{LayerCompression, LayerSink, put_blob};

/// A layer blob in a layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OciLayer {
    /// The blob.
    pub descriptor: Descriptor,
    /// The digest of the uncompressed tar.
    pub diff_id: Digest,
    /// The length of the uncompressed tar.
    pub tar_size: u64,
}

/// An image in an OCI layout folder.
#[derive(Debug, Clone)]
pub struct OciImage {
    /// The folder.
    pub dir: PathBuf,
    /// The tag that `index.json` lists it under.
    pub tag: String,
    /// Its manifest.
    pub manifest: Descriptor,
    /// Its layers, lowest first.
    pub layers: Vec<Descriptor>,
}

impl OciImage {
    /// Reads an image back from a layout that holds exactly one manifest under `tag`.
    ///
    /// # Errors
    /// When the layout is broken or lists no such tag.
    pub fn open(dir: &Path, tag: &str) -> Result<Self> {
        let index: Index = super::layout::read_json(&dir.join("index.json"))?;
        let manifest = index
            .manifests
            .into_iter()
            .find(|entry| entry.annotation(annotations::REF_NAME) == Some(tag))
            .with_context(|| format!("{} lists no {tag}", dir.display()))?;
        let parsed: Manifest =
            super::layout::read_json(&super::layout::blob_path(dir, manifest.digest))?;
        Ok(Self {
            dir: dir.to_owned(),
            tag: tag.to_owned(),
            manifest,
            layers: parsed.layers,
        })
    }

    /// The compressed size of all layers together.
    #[must_use]
    pub fn compressed_size(&self) -> u64 {
        self.layers.iter().map(|layer| layer.size).sum()
    }
}

enum Source {
    Declared(Layer, LayerCompression),
    Ready(Box<OciLayer>),
}

/// Builds an image, lowest layer first.
#[derive(Default)]
pub struct ImageBuilder {
    layers: Vec<Source>,
    command: Vec<String>,
    environment: Vec<String>,
}

impl ImageBuilder {
    /// An image without layers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a layer, gzip at level 6.
    #[must_use]
    pub fn layer(self, layer: Layer) -> Self {
        self.layer_with(layer, LayerCompression::default())
    }

    /// Adds a layer, compressed in this way.
    #[must_use]
    pub fn layer_with(mut self, layer: Layer, compression: LayerCompression) -> Self {
        self.layers.push(Source::Declared(layer, compression));
        self
    }

    /// Adds a layer whose blob is in the layout already.
    #[must_use]
    pub fn ready(mut self, layer: OciLayer) -> Self {
        self.layers.push(Source::Ready(Box::new(layer)));
        self
    }

    /// Sets the default command.
    #[must_use]
    pub fn command<S: Into<String>>(mut self, command: impl IntoIterator<Item = S>) -> Self {
        self.command = command.into_iter().map(Into::into).collect();
        self
    }

    /// Adds an environment variable (`NAME=value`).
    #[must_use]
    pub fn env(mut self, variable: &str) -> Self {
        self.environment.push(variable.to_owned());
        self
    }

    /// Writes the image for linux and this machine's architecture into the layout `dir`, under `tag`.
    ///
    /// # Errors
    /// When a layer cannot be made or a file not be written.
    pub fn write(self, dir: &Path, tag: &str) -> Result<OciImage> {
        std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        let mut layers = Vec::new();
        for source in self.layers {
            layers.push(match source {
                Source::Ready(layer) => *layer,
                Source::Declared(layer, compression) => {
                    let mut sink = LayerSink::create(dir, compression)?;
                    layer.write_tar(&mut sink)?;
                    sink.finish()?
                }
            });
        }
        let platform = soci_oci::Platform::host();
        let environment = if self.environment.is_empty() {
            vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()]
        } else {
            self.environment
        };
        let config = json!({
            "architecture": platform.architecture,
            "os": platform.os,
            "config": { "Cmd": self.command, "Env": environment },
            "rootfs": {
                "type": "layers",
                "diff_ids": layers.iter().map(|layer| layer.diff_id).collect::<Vec<_>>(),
            },
            "history": layers.iter().map(|_| json!({ "created_by": "testkit" })).collect::<Vec<_>>(),
        });
        let config = serde_json::to_vec(&config)?;
        let config_digest = put_blob(dir, &config)?;
        let descriptors: Vec<_> = layers.into_iter().map(|layer| layer.descriptor).collect();
        let manifest = soci_oci::json::to_vec(&Manifest {
            schema_version: 2,
            media_type: media_types::OCI_MANIFEST.to_owned(),
            artifact_type: None,
            config: Descriptor::new(media_types::OCI_CONFIG, config_digest, config.len() as u64),
            layers: descriptors.clone(),
            subject: None,
            annotations: Default::default(),
        })?;
        put_blob(dir, &manifest)?;
        let manifest = Descriptor::of(media_types::OCI_MANIFEST, &manifest);
        super::layout::list(dir, tag, &manifest)?;
        Ok(OciImage {
            dir: dir.to_owned(),
            tag: tag.to_owned(),
            manifest,
            layers: descriptors,
        })
    }
}
