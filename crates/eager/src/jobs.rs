//! The images that are being pulled.

#[cfg(test)]
pub(crate) mod double;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use soci_layer::CommittedLayers;
use soci_oci::Digest;

use crate::error::EagerError;
use crate::image::{ImageToPull, PlannedLayer, WantedLayer, position};
use crate::job::ImageJob;
use crate::puller::Puller;
use crate::report::{EagerTotals, ImageProgress};
use crate::works::Works;

/// How long the layers of an image wait for their Prepares. A client prepares one layer after
/// another, so that longer pauses mean that it is gone.
const IDLE: Duration = Duration::from_secs(60);
/// How long the end of the daemon waits for work that is ended.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// Digest of an image's manifest, and the namespace of the content store that keeps its layers, if
/// one does.
type Key = (Option<String>, Digest);

/// The images that are being pulled.
pub(crate) struct Jobs {
    puller: Arc<dyn Puller>,
    /// Compressed layers are kept in containerd's content store, so that each namespace needs its own.
    by_namespace: bool,
    jobs: Mutex<HashMap<Key, Arc<ImageJob>>>,
    works: Arc<Works>,
    /// Locks of images that are being described.
    describing: soci_task::KeyedLocks<Key>,
}

/// A Prepare's interest in an image that is being pulled.
pub(crate) struct Client {
    jobs: Arc<Jobs>,
    pub(crate) job: Arc<ImageJob>,
}

impl Jobs {
    pub(crate) fn new(puller: Arc<dyn Puller>, by_namespace: bool) -> Self {
        Self {
            puller,
            by_namespace,
            jobs: Mutex::default(),
            works: Arc::default(),
            describing: soci_task::KeyedLocks::default(),
        }
    }

    /// Returns the layers of an image, lowest first.
    pub(crate) async fn describe(
        &self,
        image: &ImageToPull,
    ) -> Result<Vec<PlannedLayer>, EagerError> {
        self.puller.describe(image).await
    }

    /// Joins the work on an image, which is begun with the wanted layer and those above it, but for
    /// committed ones, unless it is under way.
    pub(crate) async fn join(
        self: &Arc<Self>,
        image: &ImageToPull,
        wanted: &WantedLayer,
        committed: Arc<dyn CommittedLayers>,
    ) -> Result<(Client, usize), EagerError> {
        if let Some(joined) = self.join_running(image, wanted)? {
            return Ok(joined);
        }
        let _one_at_a_time = self.describing.lock(self.key(image)).await;
        if let Some(joined) = self.join_running(image, wanted)? {
            return Ok(joined);
        }
        let layers = self.puller.describe(image).await?;
        let at = position(image.manifest, &layers, wanted)?;
        let chains: Vec<Digest> = layers.iter().map(|layer| layer.chain_id).collect();
        // What is committed after it was looked up, and whose job ends, would be pulled again.
        let _known = self.works.known(self.key(image).0.as_deref(), &layers);
        let missing = soci_task::run(move || {
            let missing = |at: &usize| {
                let chain = chains.get(*at).map(Digest::to_string);
                chain.is_some_and(|chain| !committed.contains(&chain))
            };
            (at..chains.len()).filter(missing).collect::<Vec<usize>>()
        });
        let missing = missing.await?;
        let job = Arc::new(ImageJob::new(
            image.clone(),
            layers,
            self.key(image).0,
            self.puller.begin(image),
            Arc::clone(&self.works),
        ));
        let client = self.client(&job);
        self.jobs.lock().insert(self.key(image), Arc::clone(&job));
        tracing::info!(
            image = %image.reference,
            manifest = %image.manifest,
            layers = missing.len(),
            "pulling the layers of an image in parallel"
        );
        job.start(missing.into_iter());
        Ok((client, at))
    }

    /// Joins the work on an image if it is under way.
    pub(crate) fn join_running(
        self: &Arc<Self>,
        image: &ImageToPull,
        wanted: &WantedLayer,
    ) -> Result<Option<(Client, usize)>, EagerError> {
        let jobs = self.jobs.lock();
        let running = jobs.get(&self.key(image));
        let Some(job) = running.filter(|job| job.end_reason().is_none()) else {
            return Ok(None);
        };
        let at = position(image.manifest, &job.layers, wanted)?;
        Ok(Some((self.client(job), at)))
    }

    /// Ends the work on images of which a layer that they committed was removed.
    pub(crate) fn removed(&self, manifest: Digest, layer: &WantedLayer) {
        let jobs: Vec<Arc<ImageJob>> = self.jobs.lock().values().cloned().collect();
        for job in jobs {
            if job.image.manifest == manifest && job.has_committed(layer) {
                self.end(&job, "the snapshot of a layer was removed");
            }
        }
    }

    /// Ends all work, and waits (a limited time) until nothing is written any more.
    pub(crate) async fn close(&self) {
        let jobs: Vec<Arc<ImageJob>> = self.jobs.lock().values().cloned().collect();
        for job in jobs {
            self.end(&job, "the snapshotter is shutting down");
        }
        self.works.tasks.close();
        let ended = tokio::time::timeout(CLOSE_PATIENCE, self.works.tasks.wait()).await;
        if ended.is_err() {
            tracing::warn!("ending although layers are still being unpacked");
        }
    }

    /// Reports the images that are being pulled.
    pub(crate) fn progress(&self) -> Vec<ImageProgress> {
        let jobs: Vec<Arc<ImageJob>> = self.jobs.lock().values().cloned().collect();
        let mut all: Vec<_> = jobs.iter().map(|job| job.progress()).collect();
        all.sort_by(|a, b| (&a.reference, a.manifest).cmp(&(&b.reference, b.manifest)));
        all
    }

    /// Returns what was done since the start.
    pub(crate) fn totals(&self) -> EagerTotals {
        EagerTotals {
            images_running: self.jobs.lock().len() as u64,
            ..self.works.totals()
        }
    }

    fn key(&self, image: &ImageToPull) -> Key {
        let namespace = self.by_namespace.then(|| image.namespace.clone());
        (namespace, image.manifest)
    }

    fn client(self: &Arc<Self>, job: &Arc<ImageJob>) -> Client {
        let mut clients = job.clients.lock();
        clients.number += 1;
        clients.arrived += 1;
        Client {
            jobs: Arc::clone(self),
            job: Arc::clone(job),
        }
    }

    fn end(&self, job: &Arc<ImageJob>, reason: &'static str) {
        let manifest = job.image.manifest;
        job.end(EagerError::Ended { manifest, reason });
        self.forget(job);
    }

    fn forget(&self, job: &Arc<ImageJob>) {
        let mut jobs = self.jobs.lock();
        let key = self.key(&job.image);
        if jobs.get(&key).is_some_and(|known| Arc::ptr_eq(known, job)) {
            jobs.remove(&key);
        }
    }

    /// The last client has left: the job ends with it if it is done or was given up, or later if no
    /// other comes.
    fn abandoned(self: &Arc<Self>, job: &Arc<ImageJob>, gave_up: bool, arrived: u64) {
        if job.end_reason().is_some() {
            return self.forget(job);
        }
        if job.is_done() {
            return self.end(job, "all layers are pulled");
        }
        if gave_up {
            tracing::info!(
                image = %job.image.reference,
                manifest = %job.image.manifest,
                "ending the pull of an image: its client gave up"
            );
            return self.end(job, "its client gave up");
        }
        // An image that is done in the meantime is dropped then, with the lease on its kept layers.
        let (jobs, job) = (Arc::downgrade(self), Arc::downgrade(job));
        let wait = async move {
            tokio::time::sleep(IDLE).await;
            let Some(job) = job.upgrade() else {
                return;
            };
            let still = {
                let clients = job.clients.lock();
                clients.number == 0 && clients.arrived == arrived
            };
            if still && let Some(jobs) = jobs.upgrade() {
                tracing::warn!(
                    image = %job.image.reference,
                    manifest = %job.image.manifest,
                    "ending the pull of an image: no client has prepared a layer of it for a while"
                );
                jobs.end(&job, "no client prepared its layers for a while");
            }
        };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(wait);
        }
    }
}

#[cfg(test)]
impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Client {
    /// The client does not want the image any more.
    pub(crate) fn give_up(&self) {
        self.job.clients.lock().gave_up = true;
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let (last, gave_up, arrived) = {
            let mut clients = self.job.clients.lock();
            clients.number -= 1;
            (clients.number == 0, clients.gave_up, clients.arrived)
        };
        if last {
            self.jobs.abandoned(&self.job, gave_up, arrived);
        }
    }
}
