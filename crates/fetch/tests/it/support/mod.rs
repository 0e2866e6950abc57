//! Layers to read, stores to keep them in, and sources that can be held up.

#![allow(dead_code, reason = "each test file uses its own part")]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed step fails the test"
)]

use std::io::Write as _;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use soci_fetch::{FetchConfig, LayerData as _, LazyLayer, ReadError, SpanFetcher};
use soci_oci::Digest;
use soci_registry::testing::MemoryBlob;
use soci_registry::{BlobSource, ByteStream, Deadline, RegistryError};
use soci_store::{LayerStore, LayerStoreConfig};

/// A layer and the truth about it.
pub(crate) struct Sample {
    pub(crate) tar: Vec<u8>,
    pub(crate) blob: Bytes,
    pub(crate) ztoc: Vec<u8>,
}

impl Sample {
    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.blob)
    }

    pub(crate) fn ztoc_digest(&self) -> Digest {
        Digest::of(&self.ztoc)
    }

    /// A gzip layer of `files` files of 100,000 bytes that compress to about a half.
    pub(crate) fn gzip(files: u32, span_size: u64) -> Self {
        let mut seed = 1_u64;
        let mut builder = tar::Builder::new(Vec::new());
        for number in 0..files {
            let content: Vec<u8> = (0..100_000)
                .map(|_| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    b'a' + u8::try_from(seed >> 60).unwrap()
                })
                .collect();
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            builder
                .append_data(&mut header, format!("file-{number}"), &content[..])
                .unwrap();
        }
        let tar = builder.into_inner().unwrap();
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        // A flush ends a deflate block, and only between blocks can a span begin: some compressors would
        // make one block of it all.
        for part in tar.chunks(20_000) {
            encoder.write_all(part).unwrap();
            encoder.flush().unwrap();
        }
        let blob: Bytes = encoder.finish().unwrap().into();
        let options = soci_ztoc::BuildOptions {
            span_size,
            ..Default::default()
        };
        let built = soci_ztoc::build(&blob[..], soci_ztoc::Compression::Gzip, options).unwrap();
        Self {
            tar,
            blob,
            ztoc: built.ztoc.encode(),
        }
    }
}

/// A blob whose reads are retried as the registry client does it: a range is requested up to three
/// times, and a body that broke is resumed where it ended.
#[derive(Clone)]
pub(crate) struct Retrying(pub(crate) MemoryBlob);

/// Longest time for one request of [`Retrying`].
const ONE_REQUEST: Duration = Duration::from_millis(100);

/// What is left of a range, and how.
struct Rest {
    blob: MemoryBlob,
    range: std::ops::Range<u64>,
    deadline: Deadline,
    left: u32,
    stream: Option<ByteStream>,
}

impl Rest {
    async fn open(&mut self) -> Result<(), RegistryError> {
        while self.stream.is_none() {
            self.left -= 1;
            let request = self.blob.stream_range(self.range.clone(), self.deadline);
            let opened = match tokio::time::timeout(ONE_REQUEST, request).await {
                Ok(opened) => opened,
                Err(_) => Err(MemoryBlob::unreachable()),
            };
            match opened {
                Ok(stream) => self.stream = Some(stream),
                Err(error) if self.left == 0 || !error.is_transient() => return Err(error),
                Err(_) => {}
            }
        }
        Ok(())
    }

    async fn next(&mut self) -> Option<Result<Bytes, RegistryError>> {
        loop {
            if let Err(error) = self.open().await {
                return Some(Err(error));
            }
            match self.stream.as_mut()?.next().await? {
                Ok(bytes) => {
                    self.range.start += bytes.len() as u64;
                    return Some(Ok(bytes));
                }
                Err(error) if self.left == 0 => return Some(Err(error)),
                Err(_) => self.stream = None,
            }
        }
    }
}

#[async_trait::async_trait]
impl BlobSource for Retrying {
    fn size(&self) -> u64 {
        self.0.size()
    }

    async fn stream_range(
        &self,
        range: std::ops::Range<u64>,
        deadline: Deadline,
    ) -> Result<ByteStream, RegistryError> {
        let mut rest = Rest {
            blob: self.0.clone(),
            range,
            deadline,
            left: 3,
            stream: None,
        };
        rest.open().await?;
        let stream = futures::stream::unfold(rest, |mut rest| async {
            let item = rest.next().await?;
            Some((item, rest))
        });
        Ok(stream.boxed())
    }

    fn describe(&self) -> String {
        self.0.describe()
    }
}

/// A store, a fetcher, and the runtime that it runs on.
pub(crate) struct Rig {
    pub(crate) fetcher: Arc<SpanFetcher>,
    pub(crate) store: LayerStore,
    pub(crate) dir: Arc<tempfile::TempDir>,
    pub(crate) runtime: Option<tokio::runtime::Runtime>,
}

pub(crate) fn quick() -> FetchConfig {
    FetchConfig {
        negative_backoff: Duration::ZERO,
        ..FetchConfig::default()
    }
}

/// As [`quick`], without readahead.
pub(crate) fn no_readahead() -> FetchConfig {
    FetchConfig {
        max_readahead: 0,
        ..quick()
    }
}

impl Rig {
    pub(crate) fn new(config: FetchConfig) -> Self {
        Self::at(
            Arc::new(tempfile::tempdir().unwrap()),
            config,
            LayerStoreConfig::default(),
        )
    }

    pub(crate) fn at(
        dir: Arc<tempfile::TempDir>,
        config: FetchConfig,
        store: LayerStoreConfig,
    ) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        Self::on(runtime, dir, config, store)
    }

    /// A rig whose time stands still except in [`Rig::pass`]. Reads are started within
    /// [`Rig::enter`], so that they see the same time.
    pub(crate) fn paused(config: FetchConfig, store: LayerStoreConfig) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        Self::on(Self::still(), dir, config, store)
    }

    /// A paused rig whose store is in a directory that a later rig opens.
    pub(crate) fn paused_in(
        dir: Arc<tempfile::TempDir>,
        config: FetchConfig,
        store: LayerStoreConfig,
    ) -> Self {
        Self::on(Self::still(), dir, config, store)
    }

    fn still() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap()
    }

    fn on(
        runtime: tokio::runtime::Runtime,
        dir: Arc<tempfile::TempDir>,
        config: FetchConfig,
        store: LayerStoreConfig,
    ) -> Self {
        let entered = runtime.enter();
        let fetcher = SpanFetcher::new(config, runtime.handle().clone());
        drop(entered);
        Self {
            fetcher,
            store: LayerStore::open(&dir.path().join("layers"), store).unwrap(),
            dir,
            runtime: Some(runtime),
        }
    }

    pub(crate) fn open(&self, sample: &Sample, source: impl BlobSource) -> Arc<LazyLayer> {
        let stored = self
            .store
            .create_or_open(sample.digest(), sample.ztoc_digest(), Some(&sample.ztoc))
            .unwrap();
        self.fetcher.add_layer(stored, Arc::new(source))
    }

    pub(crate) fn enter(&self) -> tokio::runtime::EnterGuard<'_> {
        self.runtime.as_ref().unwrap().enter()
    }

    /// Advances the time of a paused rig.
    pub(crate) fn pass(&self, time: Duration) {
        let runtime = self.runtime.as_ref().unwrap();
        runtime.block_on(tokio::time::sleep(time));
    }

    /// Advances the paused time until `so`.
    pub(crate) fn passes_until(&self, what: &str, so: impl Fn() -> bool) {
        eventually(what, || {
            self.pass(Duration::from_millis(10));
            so()
        });
    }

    /// Ends the fetcher in order.
    pub(crate) fn shut_down(&self) {
        let runtime = self.runtime.as_ref().unwrap();
        runtime.block_on(self.fetcher.shutdown());
    }

    /// Ends the fetcher of a paused rig, which must wait for `done`: it does not end in a second.
    pub(crate) fn shut_down_after(&self, done: impl FnOnce()) {
        let runtime = self.runtime.as_ref().unwrap();
        runtime.block_on(async {
            let mut ends = std::pin::pin!(self.fetcher.shutdown());
            let early = tokio::time::timeout(Duration::from_secs(1), &mut ends).await;
            assert!(early.is_err(), "it has ended before");
            done();
            ends.await;
        });
    }

    /// A layer that is fetched whole and then left by its fetcher; where it is stored.
    pub(crate) fn left_behind(sample: &Sample) -> Arc<tempfile::TempDir> {
        let rig = Self::new(quick());
        let layer = rig.open(sample, MemoryBlob::new(sample.blob.clone()));
        check_all(&layer, &sample.tar, 100_000);
        eventually("complete", || layer.stored().is_complete());
        rig.shut_down();
        rig.dir.clone()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}

/// Starts a read.
pub(crate) fn start(
    layer: &LazyLayer,
    offset: u64,
    len: usize,
) -> mpsc::Receiver<Result<Bytes, ReadError>> {
    let (send, answers) = mpsc::channel();
    layer.read(
        offset,
        len,
        Box::new(move |answer| send.send(answer).unwrap_or_default()),
    );
    answers
}

/// Waits for the answer to a read: a hang fails the test instead of stopping it.
pub(crate) fn finish(
    answers: &mpsc::Receiver<Result<Bytes, ReadError>>,
) -> Result<Bytes, ReadError> {
    let answer = answers
        .recv_timeout(Duration::from_secs(60))
        .expect("an answer");
    assert!(
        answers.recv_timeout(Duration::ZERO).is_err(),
        "a second answer"
    );
    answer
}

/// Reads as the file system does: from the store, else by fetching.
pub(crate) fn read(layer: &LazyLayer, offset: u64, len: usize) -> Result<Bytes, ReadError> {
    let mut buf = vec![0; len];
    if layer.try_read(offset, &mut buf)? {
        return Ok(buf.into());
    }
    finish(&start(layer, offset, len))
}

/// Reads everything in pieces of `step` bytes and compares it with the truth.
pub(crate) fn check_all(layer: &LazyLayer, tar: &[u8], step: usize) {
    let mut at = 0;
    while at < tar.len() {
        let len = step.min(tar.len() - at);
        let got = read(layer, at as u64, len).unwrap();
        assert!(got == tar[at..at + len], "bytes {at}..{} differ", at + len);
        at += len;
    }
}

/// Waits until something is so.
pub(crate) fn eventually(what: &str, so: impl Fn() -> bool) {
    for _ in 0..6000 {
        if so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("never: {what}");
}
