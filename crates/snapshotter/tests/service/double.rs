//! A provider that "mounts" a layer by bind-mounting a directory, and misbehaves on demand.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use rustix::mount::{MountFlags, UnmountFlags, mount_bind, mount_remount, unmount};
use soci_layer::{
    Announcement, ChainUse, Interest, LayerProvider, LayerRefusal, LayerRequest, MountedInfo,
    ProviderError, UnpackOutcome, UnpackRequest, UseRefusal,
};
use soci_snapshotter::labels::{LAYER_DIGEST, TARGET};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The target of the provider's events.
pub(crate) const PROVIDER: &str = "provider";

/// How a request to mount a layer ends.
#[derive(Clone)]
pub(crate) enum Behaviour {
    /// A bind mount of the directory, with this reported owner of its root.
    Lazy(PathBuf, MountedInfo),
    Refuse(LayerRefusal),
    /// Refuses, but leaves a half-written file behind.
    RefuseDirty,
    /// Refuses, but leaves the directory mounted.
    RefuseMounted(PathBuf),
    Panic,
    /// Signals the request, and waits for a signal to continue with another behaviour.
    Wait(Arc<Notify>, Arc<Notify>, Box<Behaviour>),
}

/// How a request to unpack a layer ends.
#[derive(Clone)]
pub(crate) enum Unpacking {
    /// One file with this name and content.
    File(&'static str, &'static str),
    /// Fails after writing half of the layer.
    HalfWay,
    Panic,
    /// Signals the request, and waits for a signal to continue or for the cancellation. It writes
    /// until it ends.
    Wait(Arc<Notify>, Arc<Notify>),
}

#[derive(Default)]
pub(crate) struct Layers {
    pub(crate) behaviours: Mutex<HashMap<String, Behaviour>>,
    pub(crate) requests: Mutex<Vec<LayerRequest>>,
    pub(crate) unpackings: Mutex<HashMap<String, Unpacking>>,
    pub(crate) unpack_requests: Mutex<Vec<UnpackRequest>>,
    /// The targets of the Prepares that have begun.
    pub(crate) announced: Mutex<Vec<String>>,
    /// That in the image of the next layer.
    pub(crate) interest: Mutex<Option<Interest>>,
    /// The labels of the committed snapshots that were removed.
    pub(crate) removed: Mutex<Vec<BTreeMap<String, String>>>,
    pub(crate) unmounted: Mutex<Vec<PathBuf>>,
    pub(crate) checked: Mutex<Vec<PathBuf>>,
    /// The error of every check, while set.
    pub(crate) broken: Mutex<Option<String>>,
    /// The uses that were to be decided.
    pub(crate) uses: Mutex<Vec<ChainUse>>,
    /// The answer to every use, while set.
    pub(crate) unusable: Mutex<Option<UseRefusal>>,
}

impl Layers {
    pub(crate) fn set(&self, layer: &str, behaviour: Behaviour) {
        self.behaviours.lock().insert(layer.to_owned(), behaviour);
    }

    /// A layer that is not lazy, but can be unpacked.
    pub(crate) fn set_unpacking(&self, layer: &str, refusal: LayerRefusal, unpacking: Unpacking) {
        self.set(layer, Behaviour::Refuse(refusal));
        self.unpackings.lock().insert(layer.to_owned(), unpacking);
    }
}

pub(crate) fn bind(source: &Path, target: &Path, read_only: bool) {
    mount_bind(source, target).unwrap();
    if read_only {
        mount_remount(target, MountFlags::BIND | MountFlags::RDONLY, c"").unwrap();
    }
}

#[async_trait]
impl LayerProvider for Layers {
    async fn mount(&self, request: LayerRequest) -> Result<MountedInfo, LayerRefusal> {
        tracing::warn!(target: PROVIDER, "mount requested");
        let layer = request.labels.get(LAYER_DIGEST).cloned();
        let mountpoint = request.mountpoint.clone();
        assert_eq!(fs::read_dir(&mountpoint).unwrap().count(), 0, "not empty");
        self.requests.lock().push(request);
        let layer = layer.ok_or_else(|| LayerRefusal::missing_label(LAYER_DIGEST))?;
        let mut behaviour = self
            .behaviours
            .lock()
            .get(&layer)
            .cloned()
            .ok_or_else(|| LayerRefusal::not_indexed(format!("none knows {layer}")))?;
        loop {
            match behaviour {
                Behaviour::Lazy(source, root) => {
                    bind(&source, &mountpoint, true);
                    return Ok(root);
                }
                Behaviour::Refuse(refusal) => return Err(refusal),
                Behaviour::RefuseDirty => {
                    fs::write(mountpoint.join("half"), "written").unwrap();
                    return Err(LayerRefusal::failed("disk full"));
                }
                Behaviour::RefuseMounted(source) => {
                    bind(&source, &mountpoint, true);
                    return Err(LayerRefusal::failed("died half-way"));
                }
                Behaviour::Panic => panic!("a provider that panics"),
                Behaviour::Wait(asked, go_on, next) => {
                    asked.notify_one();
                    go_on.notified().await;
                    behaviour = *next;
                }
            }
        }
    }

    async fn unpack(
        &self,
        request: UnpackRequest,
        cancel: CancellationToken,
    ) -> Result<UnpackOutcome, LayerRefusal> {
        tracing::warn!(target: PROVIDER, "unpacking requested");
        let layer = request.layer.labels.get(LAYER_DIGEST).cloned();
        let folder = request.layer.mountpoint.clone();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "not empty");
        self.unpack_requests.lock().push(request);
        let layer = layer.ok_or_else(|| LayerRefusal::missing_label(LAYER_DIGEST))?;
        let unpacking = self.unpackings.lock().get(&layer).cloned();
        match unpacking.ok_or_else(|| LayerRefusal::unpack_failed("none unpacks it"))? {
            Unpacking::File(name, content) => {
                fs::write(folder.join(name), content).unwrap();
                Ok(UnpackOutcome {
                    size: None,
                    interest: self.interest.lock().take(),
                })
            }
            Unpacking::HalfWay => {
                fs::create_dir(folder.join("half")).unwrap();
                fs::write(folder.join("half/file"), "half").unwrap();
                Err(LayerRefusal::unpack_failed("disk full"))
            }
            Unpacking::Panic => panic!("a provider that panics"),
            Unpacking::Wait(asked, go_on) => {
                fs::write(folder.join("first"), "1").unwrap();
                asked.notify_one();
                tokio::select! {
                    () = go_on.notified() => {}
                    () = cancel.cancelled() => {}
                }
                // A writing thread does not stop immediately.
                tokio::time::sleep(Duration::from_millis(50)).await;
                fs::write(folder.join("second"), "2").unwrap();
                if cancel.is_cancelled() {
                    return Err(LayerRefusal::failed("cancelled"));
                }
                Ok(UnpackOutcome::default())
            }
        }
    }

    async fn announce(&self, announcement: Announcement) -> Option<Interest> {
        let target = announcement.labels[TARGET].clone();
        self.announced.lock().push(target);
        None
    }

    fn removed(&self, labels: &BTreeMap<String, String>) {
        self.removed.lock().push(labels.clone());
    }

    async fn unmount(&self, mountpoint: &Path) -> Result<(), ProviderError> {
        self.unmounted.lock().push(mountpoint.to_owned());
        // EINVAL: nothing is mounted there. ENOENT: there is no such directory.
        match unmount(mountpoint, UnmountFlags::DETACH) {
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(ProviderError::new(mountpoint, error)),
        }
    }

    async fn check(
        &self,
        mountpoint: &Path,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), ProviderError> {
        assert!(labels.contains_key(LAYER_DIGEST));
        self.checked.lock().push(mountpoint.to_owned());
        match &*self.broken.lock() {
            Some(reason) => Err(ProviderError::new(mountpoint, reason.clone())),
            None => Ok(()),
        }
    }

    async fn admit(&self, use_of: ChainUse) -> Result<(), UseRefusal> {
        self.uses.lock().push(use_of);
        self.unusable.lock().clone().map_or(Ok(()), Err)
    }
}
