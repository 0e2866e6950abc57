//! Cold sequential reads of 128 KiB through a lazy layer: how fast, and how much memory.
//!
//! `cargo bench -p soci-fetch`. The profile "cloud" waits 30 ms for the first byte of a response and gives 80 MB/s per
//! response, 250 MB/s in all; "memory" gives everything at once.

use std::io::Write as _;
use std::ops::Range;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use parking_lot::Mutex;
use soci_fetch::{FetchConfig, LayerData as _, SpanFetcher};
use soci_oci::Digest;
use soci_registry::{BlobSource, ByteStream, Deadline, RegistryError};
use soci_store::{LayerStore, LayerStoreConfig};
use tokio::time::sleep_until;

const READ: usize = 128 << 10;
const PIECE: usize = 64 << 10;
/// Bytes per second.
const PER_RESPONSE: u64 = 80_000_000;
const IN_ALL: u64 = 250_000_000;
const FIRST_BYTE: Duration = Duration::from_millis(30);

struct Source {
    blob: Bytes,
    throttled: bool,
    /// When the link is free again.
    link: Arc<Mutex<tokio::time::Instant>>,
}

fn time_for(bytes: usize, rate: u64) -> Duration {
    Duration::from_nanos(bytes as u64 * 1_000_000_000 / rate)
}

#[async_trait]
impl BlobSource for Source {
    fn size(&self) -> u64 {
        self.blob.len() as u64
    }

    async fn stream_range(
        &self,
        range: Range<u64>,
        _: Deadline,
    ) -> Result<ByteStream, RegistryError> {
        let at = |offset| usize::try_from(offset).unwrap_or(usize::MAX);
        let mut left = self.blob.slice(at(range.start)..at(range.end));
        let mut pieces = Vec::new();
        while !left.is_empty() {
            pieces.push(left.split_to(left.len().min(PIECE)));
        }
        if !self.throttled {
            return Ok(futures::stream::iter(pieces.into_iter().map(Ok)).boxed());
        }
        tokio::time::sleep(FIRST_BYTE).await;
        let link = self.link.clone();
        let started = tokio::time::Instant::now();
        let paced = futures::stream::iter(pieces).scan(started, move |own, piece| {
            let now = tokio::time::Instant::now();
            *own =
                (*own).max(now - Duration::from_millis(20)) + time_for(piece.len(), PER_RESPONSE);
            let shared = {
                let mut link = link.lock();
                *link = (*link).max(now) + time_for(piece.len(), IN_ALL);
                *link
            };
            let until = (*own).max(shared);
            async move {
                sleep_until(until).await;
                Some(Ok(piece))
            }
        });
        Ok(paced.boxed())
    }

    fn describe(&self) -> String {
        "bench".to_owned()
    }
}

/// A tar of one file whose content is half random, half repeated, and its gzip form.
fn layer(megabytes: usize) -> (usize, Bytes) {
    let mut header = vec![0; 512];
    header[..4].copy_from_slice(b"file");
    header[100..107].copy_from_slice(b"0000644");
    header[124..135].copy_from_slice(format!("{:011o}", megabytes << 20).as_bytes());
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    header[148..156].copy_from_slice(b"        ");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&header).expect("memory");
    let mut seed = 1_u64;
    let mut line = [0_u8; 64];
    for _ in 0..megabytes << 14 {
        for chunk in line[..32].chunks_exact_mut(8) {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            chunk.copy_from_slice(&(seed >> 7).to_le_bytes());
        }
        encoder.write_all(&line).expect("memory");
    }
    encoder.write_all(&[0; 1024]).expect("memory");
    (
        (megabytes << 20) + 1536,
        encoder.finish().expect("memory").into(),
    )
}

fn status_kib(key: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text
        .lines()
        .find(|line| line.starts_with(key))
        .unwrap_or_default();
    line.split_whitespace()
        .nth(1)
        .and_then(|kib| kib.parse().ok())
        .unwrap_or(0)
}

#[expect(clippy::print_stdout, reason = "a benchmark prints")]
fn main() {
    let megabytes = std::env::var("BENCH_MIB")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(512);
    let (size, blob) = layer(megabytes);
    let built = soci_ztoc::build(
        &blob[..],
        soci_ztoc::Compression::Gzip,
        soci_ztoc::BuildOptions::default(),
    )
    .expect("a zTOC");
    let ztoc = built.ztoc.encode();
    println!(
        "layer: {} MB, {} MB compressed",
        size / 1_000_000,
        blob.len() / 1_000_000
    );
    for (name, throttled) in [("cloud", true), ("memory", false)] {
        let dir = tempfile::tempdir().expect("a folder");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let store = LayerStore::open(dir.path(), LayerStoreConfig::default()).expect("a store");
        let fetcher = SpanFetcher::new(FetchConfig::default(), runtime.handle().clone());
        let stored = store
            .create_or_open(built.compressed_digest, Digest::of(&ztoc), Some(&ztoc))
            .expect("a layer");
        let source = Source {
            blob: blob.clone(),
            throttled,
            link: Arc::new(Mutex::new(
                runtime.block_on(async { tokio::time::Instant::now() }),
            )),
        };
        let layer = fetcher.add_layer(stored, Arc::new(source));
        // 5: reset the peak of the resident memory (proc(5), clear_refs).
        let _ = std::fs::write("/proc/self/clear_refs", "5");
        let before = status_kib("VmRSS");
        let start = Instant::now();
        let mut buf = vec![0; READ];
        let mut at = 0;
        while at < size {
            let len = READ.min(size - at);
            if !layer.try_read(at as u64, &mut buf[..len]).expect("a read") {
                let (send, answers) = mpsc::channel();
                layer.read(
                    at as u64,
                    len,
                    Box::new(move |answer| send.send(answer).unwrap_or_default()),
                );
                answers.recv().expect("an answer").expect("bytes");
            }
            at += len;
        }
        let seconds = start.elapsed().as_secs_f64();
        let stats = fetcher.stats();
        println!(
            "{name}: {:.2} s, {:.0} MB/s uncompressed, {:.0} MB/s compressed; requests {} + {} ahead, limit {}; budget peak {} MB, resident +{} MB",
            seconds,
            size as f64 / 1e6 / seconds,
            blob.len() as f64 / 1e6 / seconds,
            stats.demand.requests,
            stats.readahead.requests,
            stats.request_limit,
            stats.memory_peak / 1_000_000,
            status_kib("VmHWM").saturating_sub(before) / 1000,
        );
    }
}
