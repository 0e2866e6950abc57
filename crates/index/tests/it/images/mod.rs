//! Images for the tests, and what is asked of converted ones.

#![allow(dead_code, unreachable_pub, reason = "each test program uses its part")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use soci_index::{
    ArchiveSource, ConvertOptions, Converted, DirSink, ImageSink, IndexError, LayerOutcome,
    LayoutSource, Progress, SharedSource, Step, convert,
};
use soci_oci::{Descriptor, Digest, Index, Manifest};

/// The folder of a golden case.
pub fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden")
        .join(case)
}

/// Options that give every layer a zTOC with small spans.
pub fn every_layer() -> ConvertOptions {
    ConvertOptions {
        span_size: 131_072,
        min_layer_size: 0,
        ..ConvertOptions::default()
    }
}

/// Records all reports.
#[derive(Debug, Default)]
pub struct Told {
    pub lines: Mutex<Vec<String>>,
    pub bytes: Mutex<u64>,
}

impl Told {
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().clone()
    }
}

impl Progress for Told {
    fn begin(&self, _: &Descriptor, _: Step) {}
    fn advance(&self, _: Digest, bytes: u64) {
        *self.bytes.lock() += bytes;
    }
    fn layer(&self, layer: &Descriptor, outcome: &LayerOutcome) {
        self.lines.lock().push(outcome.line(layer));
    }
    fn prefetch(&self, layer: Digest, artifact: Digest) {
        self.lines
            .lock()
            .push(format!("prefetch {layer} {artifact}"));
    }
    fn warn(&self, message: &str) {
        self.lines.lock().push(format!("warning: {message}"));
    }
}

/// Runs a conversion to its end.
pub fn run(
    source: SharedSource,
    sink: Box<dyn ImageSink>,
    options: &ConvertOptions,
) -> Result<(Converted, Vec<String>), IndexError> {
    let told = Arc::new(Told::default());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let converted =
        runtime.block_on(convert(&source, sink, options, Arc::clone(&told) as Arc<_>))?;
    Ok((converted, told.lines()))
}

/// From an OCI layout directory to another one.
pub fn dir_to_dir(
    source: &Path,
    destination: &Path,
    options: &ConvertOptions,
) -> Result<(Converted, Vec<String>), IndexError> {
    let source = Arc::new(LayoutSource::open(source)?);
    run(source, Box::new(DirSink::create(destination)?), options)
}

/// A layout's archive as a source.
pub fn archive(path: &Path) -> Result<SharedSource, IndexError> {
    Ok(Arc::new(ArchiveSource::open(path)?))
}

/// A blob of a layout directory.
pub fn blob(layout: &Path, digest: Digest) -> Vec<u8> {
    std::fs::read(layout.join("blobs/sha256").join(digest.hex())).unwrap()
}

/// The one descriptor that a layout lists.
pub fn top(layout: &Path) -> Descriptor {
    let bytes = std::fs::read(layout.join("index.json")).unwrap();
    let index: Index = serde_json::from_slice(&bytes).unwrap();
    let [only] = &index.manifests[..] else {
        panic!("{} lists several", layout.display())
    };
    only.clone()
}

/// The image index of a converted layout.
pub fn image_index(layout: &Path) -> Index {
    serde_json::from_slice(&blob(layout, top(layout).digest)).unwrap()
}

pub fn manifest(layout: &Path, digest: Digest) -> Manifest {
    serde_json::from_slice(&blob(layout, digest)).unwrap()
}

/// Every blob of the layout has the digest that its name says.
pub fn assert_intact(layout: &Path) {
    for entry in std::fs::read_dir(layout.join("blobs/sha256")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(Digest::of(&std::fs::read(&path).unwrap()).hex(), name);
    }
}

/// The names in a folder.
pub fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
