//! Whole pulls of images without an index: with overlayfs, with the program that we replace where its
//! binary is given, and with ours in the configuration of EKS AMIs.

mod bounds;
mod cost;

use std::num::NonZero;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use soci_testkit::image::torch_image;
use soci_testkit::{Content, ImageBuilder, Layer, OciImage, Registry, TestRoot};

use crate::Table;
use crate::table::{megabytes, seconds, times};
use bounds::Bounds;
use cost::{Cost, With, pull};

/// An image that is pulled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// 20 layers of 50 MB each.
    Layers,
    /// A layer of 100,000 files of 4 KiB.
    Files,
    /// One layer of 500 MB, in 20 files.
    Large,
    /// The PyTorch image, built from PyPI on first use.
    Torch,
    /// The image with a tag in an OCI layout.
    Layout(PathBuf, String),
}

impl std::str::FromStr for Work {
    type Err = anyhow::Error;

    /// A name, or `FOLDER@TAG`.
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "layers" => Ok(Self::Layers),
            "files" => Ok(Self::Files),
            "large" => Ok(Self::Large),
            "torch" => Ok(Self::Torch),
            other => {
                let (folder, tag) = other.rsplit_once('@').with_context(|| {
                    format!("{other}: there are layers, files, large, torch and FOLDER@TAG")
                })?;
                Ok(Self::Layout(folder.into(), tag.to_owned()))
            }
        }
    }
}

impl Work {
    /// All that need nothing from the internet.
    pub const LOCAL: [Self; 3] = [Self::Layers, Self::Files, Self::Large];

    fn image(&self, root: &TestRoot) -> Result<OciImage> {
        let dir = root.dir("layout")?;
        match self {
            Self::Layers => {
                let mut image = ImageBuilder::new();
                for seed in 0..20 {
                    // Compresses to half.
                    let length = 90_000_000;
                    let content = Content::Mixed { seed, length };
                    image = image.layer(Layer::new().file(&format!("data/{seed}"), content));
                }
                image.write(&dir, "layers")
            }
            Self::Files => {
                let mut layer = Layer::new();
                for seed in 0..100_000_u64 {
                    let length = 4096;
                    let path = format!("data/{}/{}/{seed}", seed % 50, seed % 400);
                    layer = layer.file(&path, Content::Mixed { seed, length });
                }
                ImageBuilder::new().layer(layer).write(&dir, "files")
            }
            Self::Large => {
                let mut layer = Layer::new();
                for seed in 0..20 {
                    let length = 45_000_000;
                    layer = layer.file(&format!("data/{seed}"), Content::Mixed { seed, length });
                }
                ImageBuilder::new().layer(layer).write(&dir, "large")
            }
            Self::Torch => torch_image(),
            Self::Layout(folder, tag) => OciImage::open(folder, tag),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Layers => "20 layers of 50 MB".to_owned(),
            Self::Files => "100,000 files of 4 KiB".to_owned(),
            Self::Large => "one layer of 500 MB".to_owned(),
            Self::Torch => "the PyTorch image".to_owned(),
            Self::Layout(folder, tag) => format!("{}@{tag}", folder.display()),
        }
    }
}

/// Returns the table of one image, each pull the best of `runs`. `replaced` is the daemon of
/// soci-snapshotter v0.15.
///
/// # Errors
/// When a part does not start, or a pull fails.
pub fn table(work: &Work, replaced: Option<&Path>, runs: usize) -> Result<Table> {
    let root = TestRoot::new()?;
    let image = work.image(&root)?;
    let compressed = image.compressed_size();
    let title = format!("{}, {} packed", work.name(), megabytes(compressed));
    let heads = [
        "time",
        "of overlayfs",
        "CPU of it",
        "of the registry",
        "peak memory",
        "from the registry",
        "waits for disk",
    ];
    let heads: Vec<&str> = std::iter::once(title.as_str()).chain(heads).collect();
    let mut table = Table::new(&heads);
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);

    let registry = Registry::start()?;
    registry.push_layout(&image.dir, &image.tag, "eager")?;
    let best = |with: With<'_>| -> Result<Cost> {
        let mut best: Option<Cost> = None;
        for _ in 0..runs.max(1) {
            let cost = pull(&image, &registry, with)?;
            if best.as_ref().is_none_or(|best| cost.time < best.time) {
                best = Some(cost);
            }
        }
        best.context("no run")
    };
    let overlayfs = best(With::Overlayfs { sync: false })?;
    let mut row = |what: &str, cost: &Cost| {
        table.row([
            what.to_owned(),
            seconds(cost.time),
            times(cost.time.as_secs_f64(), overlayfs.time.as_secs_f64()),
            seconds(cost.cpu),
            seconds(cost.serving),
            megabytes(cost.peak),
            megabytes(cost.bytes),
            cost.disk.map_or_else(String::new, seconds),
        ]);
    };
    row("overlayfs (containerd)", &overlayfs);
    let synced = best(With::Overlayfs { sync: true })?;
    row("overlayfs, then syncfs", &synced);
    if let Some(program) = replaced {
        row("soci-snapshotter v0.15", &best(With::Replaced(program))?);
    }
    let ours = best(With::Ours { cores, sync: true })?;
    row("ours", &ours);
    let unsynced = best(With::Ours { cores, sync: false })?;
    row("ours, sync_unpacked = false", &unsynced);
    let mut fewer = cores / 2;
    while fewer > 0 {
        let cost = best(With::Ours {
            cores: fewer,
            sync: false,
        })?;
        row(&format!("the same on {fewer} of {cores} cores"), &cost);
        fewer /= 2;
    }
    Bounds::of(&image)?.rows(&mut table, cores, &unsynced);
    Ok(table)
}
