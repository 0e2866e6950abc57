//! What no pull of an image can be faster than, measured part by part in the same run.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use soci_oci::Hasher;
use soci_testkit::image::layout::blob_path;
use soci_testkit::{OciImage, TestRoot};
use soci_ztoc::GzipStream;

use super::cost::Cost;
use crate::Table;
use crate::processor_time::{ProcessorTime, processor_time};
use crate::table::{approximate, seconds, times};

/// Bytes per second of the profile cloud.
const LINK: f64 = 250_000_000.0;
/// Bytes that are read of a layer at a time.
const PIECE: usize = 1 << 20;

/// The time of each part of a pull, of all layers together, alone on one core.
pub(super) struct Bounds {
    link: Duration,
    inflate: Duration,
    hash: Duration,
    /// Processor time of GNU tar.
    files: Duration,
    /// Inflating the layer that takes longest.
    longest: Duration,
}

impl Bounds {
    /// Measures the parts. The layers are gzip.
    pub(super) fn of(image: &OciImage) -> Result<Self> {
        let mut bounds = Self {
            link: Duration::from_secs_f64(approximate(image.compressed_size()) / LINK),
            inflate: Duration::ZERO,
            hash: Duration::ZERO,
            files: Duration::ZERO,
            longest: Duration::ZERO,
        };
        for layer in &image.layers {
            let inflated = bounds.inflate(image, layer.digest)?;
            bounds.inflate += inflated;
            bounds.longest = bounds.longest.max(inflated);
            bounds.files += write(image, layer.digest)?;
        }
        Ok(bounds)
    }

    /// Inflates and hashes a layer; returns the time for inflating.
    fn inflate(&mut self, image: &OciImage, layer: soci_oci::Digest) -> Result<Duration> {
        let (mut packed, mut tar) = (Hasher::new(), Hasher::new());
        let mut hashing = Duration::ZERO;
        let mut inflating = Duration::ZERO;
        let mut output = Vec::new();
        let mut stream = GzipStream::new()?;
        each_piece(image, layer, |piece| {
            let started = Instant::now();
            stream.write(piece, |bytes| {
                output.extend_from_slice(bytes);
                Ok(())
            })?;
            let inflated = Instant::now();
            inflating += inflated - started;
            packed.update(piece);
            tar.update(&output);
            hashing += inflated.elapsed();
            output.clear();
            Ok(())
        })?;
        stream.finish()?;
        self.hash += hashing;
        Ok(inflating)
    }

    /// Adds a row for each part, and what of the time of a pull the largest explains. The registry
    /// and the proxy take the same cores.
    pub(super) fn rows(&self, table: &mut Table, cores: usize, pull: &Cost) {
        let all = self.inflate + self.hash + self.files + pull.serving;
        let shared = all / u32::try_from(cores).unwrap_or(u32::MAX);
        let mut bounds = vec![
            ("the link, 250 MB/s".to_owned(), self.link),
            (
                "inflating the largest layer on one core".to_owned(),
                self.longest,
            ),
            (format!("the four above on {cores} cores"), shared),
        ];
        for (what, time) in [
            ("inflating on one core", self.inflate),
            ("SHA-256 of layers and tars on one core", self.hash),
            ("creating the files on one core (GNU tar)", self.files),
            ("registry and proxy, as they were", pull.serving),
        ] {
            table.row([format!("– {what}"), seconds(time)]);
        }
        bounds.rotate_right(1);
        for (what, time) in &bounds {
            table.row([format!("bound: {what}"), seconds(*time)]);
        }
        if let Some((what, time)) = bounds.iter().max_by_key(|(_, time)| *time) {
            let ratio = times(pull.time.as_secs_f64(), time.as_secs_f64());
            table.row([format!("ours without sync / {what}"), ratio]);
        }
    }
}

/// Reads a layer piece by piece.
fn each_piece(
    image: &OciImage,
    layer: soci_oci::Digest,
    mut take: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut blob = std::fs::File::open(blob_path(&image.dir, layer))?;
    let mut piece = vec![0; PIECE];
    loop {
        let read = blob.read(&mut piece)?;
        match piece.get(..read) {
            Some(piece) if !piece.is_empty() => take(piece)?,
            _ => return Ok(()),
        }
    }
}

/// Extracts a layer with GNU tar; returns its processor time.
fn write(image: &OciImage, layer: soci_oci::Digest) -> Result<Duration> {
    let folder = TestRoot::new()?;
    let mut tar = Command::new("tar")
        .args(["--extract", "--file=-", "--directory"])
        .arg(folder.path())
        .stdin(Stdio::piped())
        .spawn()?;
    let mut input = tar.stdin.take().context("tar has no input")?;
    let mut stream = GzipStream::new()?;
    each_piece(image, layer, |piece| {
        stream.write(piece, |bytes| input.write_all(bytes))?;
        Ok(())
    })?;
    // The time is that of its children that have been waited for.
    let before = processor_time(std::process::id())?;
    drop(input);
    let ended = tar.wait()?;
    let took = children(&before)?;
    ensure!(ended.success(), "tar ended with {ended}");
    Ok(took)
}

fn children(before: &ProcessorTime) -> Result<Duration> {
    let after = processor_time(std::process::id())?;
    Ok(after.children.saturating_sub(before.children))
}
