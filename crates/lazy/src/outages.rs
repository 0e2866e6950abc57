//! Images whose registry does not work: remembered for a while, so that a pull of several layers waits
//! for it once.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use soci_layer::{Cause, LayerRefusal};
use soci_oci::{Digest, Reference};
use tokio::time::Instant;

/// Time for which a failure is remembered: a client may unpack a layer before it prepares the next.
const REMEMBERED: Duration = Duration::from_secs(30);
/// Most images that are remembered.
const MAX_IMAGES: usize = 512;

/// The images whose registry did not work lately.
#[derive(Default)]
pub(crate) struct Outages(Mutex<HashMap<Image, Outage>>);

/// Repository and manifest: another repository may be at a registry that works.
type Image = (String, Digest);

struct Outage {
    cause: Cause,
    until: Instant,
}

impl Outages {
    /// Notes that the registry of an image does not work.
    pub(crate) fn note(&self, reference: &Reference, manifest: Digest, cause: Cause) {
        let (now, mut images) = (Instant::now(), self.0.lock());
        if images.len() >= MAX_IMAGES {
            images.retain(|_, outage| outage.until > now);
        }
        if images.len() < MAX_IMAGES {
            let until = now + REMEMBERED;
            let outage = Outage { cause, until };
            images.insert((reference.name(), manifest), outage);
        }
    }

    /// Notes that the registry of an image has answered.
    pub(crate) fn over(&self, reference: &Reference, manifest: Digest) {
        let mut images = self.0.lock();
        if !images.is_empty() {
            images.remove(&(reference.name(), manifest));
        }
    }

    /// Fails if the registry of an image did not work lately.
    ///
    /// # Errors
    /// [`LayerRefusal::RegistryUnavailable`].
    pub(crate) fn check(
        &self,
        reference: &Reference,
        manifest: Digest,
    ) -> Result<(), LayerRefusal> {
        let images = self.0.lock();
        if images.is_empty() {
            return Ok(());
        }
        match images.get(&(reference.name(), manifest)) {
            Some(outage) if outage.until > Instant::now() => {
                let source = outage.cause.clone();
                Err(LayerRefusal::RegistryUnavailable { source })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_outage_is_one_images_and_forgotten_after_a_while() {
        let outages = Outages::default();
        let (a, b): (Reference, Reference) = ("r/a:1".parse().unwrap(), "r/b:1".parse().unwrap());
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        let cause = || Arc::new(std::io::Error::other("refused")) as Cause;
        outages.note(&a, one, cause());
        let refusal = outages.check(&a, one).unwrap_err();
        assert!(refusal.leaves_to_client(), "{refusal}");
        outages.check(&a, two).unwrap();
        outages.check(&b, one).unwrap();
        tokio::time::advance(REMEMBERED).await;
        outages.check(&a, one).unwrap();
        outages.note(&a, one, cause());
        outages.over(&a, one);
        outages.check(&a, one).unwrap();
        for image in 0..2 * MAX_IMAGES {
            outages.note(&a, Digest::of(&image.to_le_bytes()), cause());
        }
        assert!(outages.0.lock().len() <= MAX_IMAGES);
    }
}
