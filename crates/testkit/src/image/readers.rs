//! An image whose programs read it in every way and know what has to come: the Python image and a layer of
//! data, with a script that compares each byte.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use soci_oci::{Digest, Manifest};

use super::builder::{ImageBuilder, OciImage, OciLayer};
use super::cache::cached;
use super::content::Content;
use super::layer::Layer;
use super::layout;
use super::python::python_image;
use super::samples::BUSYBOX;

/// The script: `python3 READER_SCRIPT END MODE…` reads until the file END exists.
pub const READER_SCRIPT: &str = "/app/reader.py";
/// Its modes.
pub const READER_MODES: [&str; 7] = [
    "sequential",
    "random",
    "mmap",
    "exec",
    "find",
    "small",
    "held",
];

const BLOCK: usize = 64 << 10;
const BIG: u64 = 32 << 20;
const SMALL_FILES: u64 = 1500;
const PROGRAMS: usize = 40;

/// What the script compares with.
#[derive(Serialize)]
struct Truth {
    /// Digest of each block of `/data/big`.
    big: Vec<String>,
    /// Digest of each file in `/data/small`.
    small: Vec<String>,
    /// How many programs there are in `/data/bin`; each prints its number.
    programs: usize,
}

/// The layers of the Python image that Python itself is in; the others are large.
const PYTHON_LAYERS: usize = 2;
/// Changes when the image does for another reason than what its recipe names.
const RECIPE: u32 = 1;

/// Writes the image into a layout. It is built on first use and then kept in the cache.
///
/// # Errors
/// As [`python_image`], and when files cannot be written.
pub fn readers_image(dir: &Path, tag: &str) -> Result<OciImage> {
    let python = python_image()?;
    let script = include_str!("readers.py");
    let recipe = format!(
        "readers image {RECIPE}, {tag}, {}, {BLOCK}, {BIG}, {SMALL_FILES}, {PROGRAMS}, {script}",
        python.manifest.digest
    );
    let ready = cached(&recipe, |dir| build(&python, dir, tag))?;
    copy(&ready, dir)?;
    OciImage::open(dir, tag)
}

/// Copies a folder with all that is in it.
fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("make {}", to.display()))?;
    for entry in std::fs::read_dir(from).with_context(|| format!("list {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), &target)
                .with_context(|| format!("write {}", target.display()))?;
        }
    }
    Ok(())
}

fn build(python: &OciImage, dir: &Path, tag: &str) -> Result<()> {
    let mut builder = ImageBuilder::new();
    for (from, to) in layers_of(python)?.into_iter().take(PYTHON_LAYERS) {
        let target = layout::blob_path(dir, to.descriptor.digest);
        if let Some(folder) = target.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::copy(&from, &target).with_context(|| format!("copy {}", from.display()))?;
        builder = builder.ready(to);
    }
    builder
        .layer(data()?)
        .env("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("PYTHONDONTWRITEBYTECODE=1")
        .command(["/usr/bin/python3", READER_SCRIPT])
        .write(dir, tag)
        .map(drop)
}

/// The layers of an image, each with the file that it is in.
fn layers_of(image: &OciImage) -> Result<Vec<(std::path::PathBuf, OciLayer)>> {
    let blob = |digest| layout::blob_path(&image.dir, digest);
    let manifest: Manifest = layout::read_json(&blob(image.manifest.digest))?;
    let config: serde_json::Value = layout::read_json(&blob(manifest.config.digest))?;
    let diff_ids = config
        .pointer("/rootfs/diff_ids")
        .and_then(|ids| ids.as_array())
        .context("the image's configuration has no diff_ids")?;
    image
        .layers
        .iter()
        .zip(diff_ids)
        .map(|(layer, diff_id)| {
            let diff_id: Digest = diff_id.as_str().context("a diff_id is not text")?.parse()?;
            let ready = OciLayer {
                descriptor: layer.clone(),
                diff_id,
                // A builder does not add it.
                tar_size: 0,
            };
            Ok((blob(layer.digest), ready))
        })
        .collect()
}

fn data() -> Result<Layer> {
    let big = Content::Mixed {
        seed: 21,
        length: BIG,
    };
    let hash = |bytes: &[u8]| Digest::of(bytes).hex();
    let mut truth = Truth {
        big: big.to_vec().chunks(BLOCK).map(hash).collect(),
        small: Vec::new(),
        programs: PROGRAMS,
    };
    let mut layer = Layer::new().dir("app").dir("data").file("data/big", big);
    layer = layer.dir("data/small");
    for number in 0..SMALL_FILES {
        let content = Content::Mixed {
            seed: 100 + number,
            length: 500 + number * 7 % 6000,
        };
        truth.small.push(hash(&content.to_vec()));
        layer = layer.file(&format!("data/small/{number}"), content);
    }
    layer = layer.dir("data/bin");
    let busybox = std::fs::read(BUSYBOX).with_context(|| format!("read {BUSYBOX}"))?;
    for number in 0..PROGRAMS {
        // Different at its end, so that no two share their content.
        let mut program = busybox.clone();
        program.extend_from_slice(format!("program {number}").as_bytes());
        layer = layer
            .file(&format!("data/bin/{number}"), Content::Bytes(program))
            .mode(0o755);
    }
    Ok(layer
        .text("app/truth.json", &serde_json::to_string(&truth)?)
        .text(
            READER_SCRIPT.trim_start_matches('/'),
            include_str!("readers.py"),
        ))
}
