//! The flags about what is indexed and how.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use soci_index::{ConvertOptions, Platforms};
use soci_oci::Platform;

use crate::global::Global;
use crate::profiles::ProfileArgs;
use crate::registry_args::RegistryArgs;

/// Which platforms are meant.
#[derive(Debug, Args)]
#[command(next_help_heading = "Platform options")]
pub(crate) struct PlatformArgs {
    /// The images of these platforms (default: this machine's, or the only one)
    #[arg(
        short,
        long = "platform",
        value_name = "OS/ARCH",
        value_delimiter = ','
    )]
    platforms: Vec<Platform>,

    /// The images of all platforms
    #[arg(long)]
    all_platforms: bool,
}

impl PlatformArgs {
    pub(crate) fn chosen(&self) -> Platforms {
        if self.all_platforms {
            Platforms::All
        } else if self.platforms.is_empty() {
            Platforms::Default
        } else {
            Platforms::These(self.platforms.clone())
        }
    }
}

/// What `soci convert` and `soci create` have in common.
#[derive(Debug, Args)]
pub(crate) struct IndexingArgs {
    /// Print neither progress nor a line per layer
    #[arg(short, long)]
    pub(crate) quiet: bool,

    #[command(flatten)]
    platforms: PlatformArgs,

    #[command(flatten)]
    ztoc: ZtocArgs,

    #[command(flatten)]
    profile: ProfileArgs,

    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
}

impl IndexingArgs {
    pub(crate) fn options(&self, global: &Global) -> anyhow::Result<ConvertOptions> {
        Ok(ConvertOptions {
            profile: self.profile.merged(global)?,
            ..self.ztoc.options(self.platforms.chosen())?
        })
    }
}

/// How zTOCs are built.
#[derive(Debug, Args)]
#[command(next_help_heading = "Index options")]
pub(crate) struct ZtocArgs {
    /// Bytes of uncompressed data between two points that reading can start from (0: as near to each other
    /// as the layer allows)
    #[arg(long, value_name = "BYTES", value_parser = span_size, allow_negative_numbers = true,
        default_value_t = ConvertOptions::default().span_size)]
    span_size: u64,

    /// Build no zTOC for layers with fewer compressed bytes
    #[arg(long, value_name = "BYTES", value_parser = min_layer_size, allow_negative_numbers = true,
        default_value_t = soci_index::DEFAULT_MIN_LAYER_SIZE)]
    min_layer_size: u64,

    /// Optional optimizations: xattr marks layers that have no extended attributes
    #[arg(long, value_enum, value_delimiter = ',')]
    optimizations: Vec<Optimization>,

    /// Build zTOCs again even if there are some already
    #[arg(short, long)]
    force: bool,

    /// A file in the image to prefetch when it is mounted (can be given several times)
    #[arg(long = "prefetch-file", value_name = "PATH", value_delimiter = ',')]
    prefetch_files: Vec<String>,

    /// A JSON file with an array of paths to prefetch
    #[arg(long, value_name = "FILE")]
    prefetch_files_json: Option<PathBuf>,

    /// What zTOCs and indexes name as their builder ("AWS SOCI CLI v0.2" makes the bytes that v0.15 makes)
    #[arg(long, value_name = "TEXT", default_value_t = ConvertOptions::default().build_tool_identifier,
        hide_default_value = true)]
    build_tool_identifier: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Optimization {
    /// Layers without extended attributes and opaque directories answer none
    Xattr,
}

impl ZtocArgs {
    pub(crate) fn options(&self, platforms: Platforms) -> anyhow::Result<ConvertOptions> {
        let mut prefetch_files = self.prefetch_files.clone();
        if let Some(path) = &self.prefetch_files_json {
            prefetch_files.extend(read_list(path)?);
        }
        let prefetch_files = prefetch_files
            .iter()
            .map(|path| path.trim().to_owned())
            .filter(|path| !path.is_empty())
            .collect();
        Ok(ConvertOptions {
            span_size: self.span_size,
            min_layer_size: self.min_layer_size,
            optimize_xattrs: self.optimizations.contains(&Optimization::Xattr),
            force: self.force,
            platforms,
            prefetch_files,
            build_tool_identifier: self.build_tool_identifier.clone(),
            ..ConvertOptions::default()
        })
    }
}

fn span_size(text: &str) -> Result<u64, String> {
    bytes(text, "span-size")
}

fn min_layer_size(text: &str) -> Result<u64, String> {
    bytes(text, "min-layer-size")
}

/// A number of bytes that fits into 64 bits with a sign, as zTOCs have it; refused in v0.15's words.
fn bytes(text: &str, flag: &str) -> Result<u64, String> {
    match text.parse::<i128>() {
        Ok(number) if number < 0 => Err(format!("{} must be >= 0", flag.replace('-', " "))),
        Ok(number) => i64::try_from(number)
            .map(i64::cast_unsigned)
            .map_err(|_| format!("invalid value {text:?} for flag -{flag}: value out of range")),
        Err(_) => Err("expected a number of bytes, such as 4194304".to_owned()),
    }
}

/// The paths in a JSON array of strings.
fn read_list(path: &Path) -> anyhow::Result<Vec<String>> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&bytes)
        .with_context(|| format!("{} is not a JSON array of paths", path.display()))
}
