//! What a conversion owes its destination.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use soci_index::{
    BlobWriter, ConvertOptions, DirSink, ImageSink, IndexError, LayoutSource, SharedSource, Silent,
    TransferMeter, convert,
};
use soci_oci::Descriptor;
use soci_testkit::{Content, ImageBuilder, Layer};
use tokio::sync::Mutex;

/// A destination that does one thing at a time, as a registry does that waits for a token.
struct OneAtATime {
    inner: DirSink,
    turn: Mutex<()>,
}

#[async_trait]
impl ImageSink for OneAtATime {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn plan(&self, blobs: &[Descriptor]) -> Result<(), IndexError> {
        self.inner.plan(blobs)
    }

    fn tee(&self, _: &Descriptor) -> Result<Option<Box<dyn BlobWriter>>, IndexError> {
        Ok(None)
    }

    async fn copy(
        &self,
        blob: &Descriptor,
        source: &SharedSource,
        meter: &TransferMeter,
    ) -> Result<(), IndexError> {
        let _turn = self.turn.lock().await;
        // Long enough for others to wait for their turn.
        tokio::time::sleep(Duration::from_millis(20)).await;
        self.inner.copy(blob, source, meter).await
    }

    async fn put_blob(&self, blob: &Descriptor, bytes: Bytes) -> Result<(), IndexError> {
        let _turn = self.turn.lock().await;
        self.inner.put_blob(blob, bytes).await
    }

    async fn put_manifest(&self, manifest: &Descriptor, bytes: Bytes) -> Result<(), IndexError> {
        self.inner.put_manifest(manifest, bytes).await
    }

    async fn finish(self: Box<Self>, index: &Descriptor, bytes: Bytes) -> Result<(), IndexError> {
        let inner: Box<dyn ImageSink> = Box::new(self.inner);
        inner.finish(index, bytes).await
    }
}

#[tokio::test]
async fn a_destination_that_makes_its_callers_wait_for_each_other_is_no_deadlock() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("image");
    let mut image = ImageBuilder::new();
    for seed in 0..6 {
        let content = Content::Noise {
            seed,
            length: 100_000,
        };
        image = image.layer(Layer::new().file("file", content));
    }
    image.write(&from, "image").unwrap();
    let source: SharedSource = Arc::new(LayoutSource::open(&from).unwrap());
    let sink = OneAtATime {
        inner: DirSink::create(&dir.path().join("indexed")).unwrap(),
        turn: Mutex::default(),
    };
    let options = ConvertOptions {
        min_layer_size: 0,
        parallelism: 3.try_into().unwrap(),
        ..ConvertOptions::default()
    };
    let converted = convert(&source, Box::new(sink), &options, Arc::new(Silent));
    let converted = tokio::time::timeout(Duration::from_secs(60), converted).await;
    converted.expect("it waits for itself").unwrap();
}
