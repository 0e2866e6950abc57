//! A puller whose layers are complete when the test says so.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use soci_layer::{CommittedLayers, UnpackedSize};
use soci_oci::{Descriptor, Digest};
use soci_unpack::{ImpliedDirectories, LayerProgress};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::error::EagerError;
use crate::folder::Folder;
use crate::image::{ImageToPull, PlannedLayer, WantedLayer, plan};
use crate::puller::{ImagePull, PulledLayer, Puller};

/// A pull of a layer that has begun.
pub(crate) struct Begun {
    pub(crate) layer: PlannedLayer,
    end: oneshot::Sender<Result<(), EagerError>>,
}

impl Begun {
    pub(crate) fn succeed(self) {
        let _ = self.end.send(Ok(()));
    }

    pub(crate) fn fail(self) {
        let manifest = self.layer.chain_id;
        let reason = "it failed";
        let _ = self.end.send(Err(EagerError::Ended { manifest, reason }));
    }
}

/// The world of a test: images, a scratch folder, and the pulls that have begun.
pub(crate) struct World {
    pub(crate) root: tempfile::TempDir,
    pub(crate) puller: Arc<Double>,
    begun: mpsc::UnboundedReceiver<Begun>,
    pub(crate) ended: mpsc::UnboundedReceiver<Digest>,
}

pub(crate) struct Double {
    scratch: PathBuf,
    /// Names of the layers of each image.
    images: Mutex<Vec<(Digest, Vec<PlannedLayer>)>>,
    begun: mpsc::UnboundedSender<Begun>,
    /// Chain IDs of the layers whose pull was cancelled.
    ended: mpsc::UnboundedSender<Digest>,
}

impl World {
    pub(crate) fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let scratch = root.path().join("unpack");
        fs::create_dir(&scratch).unwrap();
        let (begun, begun_receiver) = mpsc::unbounded_channel();
        let (ended, ended_receiver) = mpsc::unbounded_channel();
        Self {
            root,
            puller: Arc::new(Double {
                scratch,
                images: Mutex::default(),
                begun,
                ended,
            }),
            begun: begun_receiver,
            ended: ended_receiver,
        }
    }

    /// Adds an image with these layers.
    pub(crate) fn image(&self, name: &str, layers: &[&str]) -> ImageToPull {
        let manifest = Digest::of(name.as_bytes());
        let layers = layers.iter().map(|layer| {
            let blob = Descriptor::of("layer", layer.as_bytes());
            (blob, Digest::of(format!("diff {layer}").as_bytes()))
        });
        self.puller.images.lock().push((manifest, plan(layers)));
        ImageToPull {
            namespace: "default".to_owned(),
            reference: format!("registry.example/{name}:1").parse().unwrap(),
            manifest,
        }
    }

    pub(crate) fn wanted(&self, image: &ImageToPull, at: usize) -> WantedLayer {
        let layer = &self.puller.layers(image.manifest)[at];
        WantedLayer {
            layer: layer.descriptor.digest,
            chain_id: Some(layer.chain_id),
            upwards: 0,
        }
    }

    pub(crate) fn chain(&self, image: &ImageToPull, at: usize) -> Digest {
        self.puller.layers(image.manifest)[at].chain_id
    }

    /// The next pulls that begin, sorted from the lowest layer.
    pub(crate) async fn begun(&mut self, number: usize) -> Vec<Begun> {
        let mut begun = Vec::new();
        for _ in 0..number {
            begun.push(self.begun.recv().await.unwrap());
        }
        begun.sort_by_key(|begun| begun.layer.order);
        begun
    }

    pub(crate) fn nothing_begins(&mut self) {
        assert!(self.begun.try_recv().is_err());
    }

    /// An empty directory of a snapshot.
    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        let path = self.root.path().join(name).join("fs");
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// Waits until no folder of a layer is left.
    pub(crate) async fn scratch_is_empty(&self) {
        let scratch = self.root.path().join("unpack");
        while fs::read_dir(&scratch).unwrap().next().is_some() {
            // Real time: folders are removed on threads of their own.
            let pause = || std::thread::sleep(Duration::from_millis(5));
            tokio::task::spawn_blocking(pause).await.unwrap();
        }
    }
}

/// The name of the layer in a directory.
pub(crate) fn content(directory: &Path) -> String {
    fs::read_to_string(directory.join("layer")).unwrap()
}

impl Double {
    fn layers(&self, manifest: Digest) -> Vec<PlannedLayer> {
        let images = self.images.lock();
        let image = images.iter().find(|(known, _)| *known == manifest);
        image.unwrap().1.clone()
    }
}

#[async_trait]
impl Puller for Double {
    async fn describe(&self, image: &ImageToPull) -> Result<Vec<PlannedLayer>, EagerError> {
        Ok(self.layers(image.manifest))
    }

    fn begin(&self, _image: &ImageToPull) -> Arc<dyn ImagePull> {
        Arc::new(Double {
            scratch: self.scratch.clone(),
            images: Mutex::default(),
            begun: self.begun.clone(),
            ended: self.ended.clone(),
        })
    }
}

#[async_trait]
impl ImagePull for Double {
    async fn pull(
        &self,
        layer: &PlannedLayer,
        _progress: &Arc<LayerProgress>,
        cancel: &CancellationToken,
    ) -> Result<PulledLayer, EagerError> {
        let folder = Folder::new(&self.scratch)?;
        let digest = layer.descriptor.digest.to_string();
        fs::write(folder.fs().join("layer"), digest).unwrap();
        let (end, ended) = oneshot::channel();
        let layer = layer.clone();
        let chain_id = layer.chain_id;
        self.begun.send(Begun { layer, end }).unwrap();
        tokio::select! {
            () = cancel.cancelled() => {
                let _ = self.ended.send(chain_id);
                Err(EagerError::Cancelled)
            }
            ended = ended => {
                ended.unwrap()?;
                Ok(PulledLayer {
                    folder,
                    implied: ImpliedDirectories::default(),
                    unpacked_for: Duration::ZERO,
                    size: UnpackedSize { inodes: 2, bytes: 4096 },
                })
            }
        }
    }
}

/// The layers that exist, by the value of their target.
#[derive(Debug, Default)]
pub(crate) struct Committed(pub(crate) Vec<Digest>);

impl CommittedLayers for Committed {
    fn contains(&self, target: &str) -> bool {
        self.0.iter().any(|chain| chain.to_string() == target)
    }
}
