//! Slots for downloads, shared between registries by rule, and how long a download may take.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use soci_oci::Reference;
use soci_registry::Deadline;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::keys::FIRST_BYTE_KEY;
use crate::{SpeedLimits, UnpackError};

/// How layers are downloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DownloadConfig {
    /// Limit of concurrent downloads; each makes several requests.
    pub slots: usize,
    /// Limit of concurrent downloads from one registry.
    pub slots_per_registry: usize,
    /// Limit of concurrent downloads of layers that were not requested yet.
    pub ahead: usize,
    /// Time until the first byte of a layer, waiting for a slot and for what the registry asks to
    /// wait included. After it the layer is the client's.
    pub first_byte: Duration,
    /// Fewest bytes per second after that.
    pub floor: u64,
    /// Time over which those are counted.
    pub period: Duration,
}

impl Default for DownloadConfig {
    fn default() -> Self {
        Self {
            slots: 8,
            slots_per_registry: 4,
            ahead: 3,
            first_byte: Duration::from_secs(20),
            floor: 64 << 10,
            period: Duration::from_secs(15),
        }
    }
}

impl DownloadConfig {
    /// When a download is too slow.
    pub(crate) const fn speed(&self) -> SpeedLimits {
        SpeedLimits {
            first_byte: self.first_byte,
            floor: self.floor,
            period: self.period,
        }
    }
}

/// The slots for downloads.
pub(crate) struct Downloads {
    config: DownloadConfig,
    all: Arc<Semaphore>,
    ahead: Arc<Semaphore>,
    registries: Mutex<HashMap<String, Weak<Semaphore>>>,
}

/// A slot. It is free again when this is dropped.
pub(crate) struct Slot {
    /// Permits of its registry, and of all.
    _permits: [Option<OwnedSemaphorePermit>; 2],
    /// Keeps the registry's slots known.
    _registry: Arc<Semaphore>,
    /// The permit of a layer that was not requested yet.
    pub(crate) ahead: Option<OwnedSemaphorePermit>,
}

/// A download that has to start soon.
#[derive(Clone, Copy)]
pub(crate) struct Patience {
    deadline: Deadline,
    first_byte: Duration,
}

impl Patience {
    /// When the first byte must have come.
    pub(crate) const fn deadline(&self) -> Deadline {
        self.deadline
    }

    /// Drives the look-up of what is downloaded.
    pub(crate) async fn describe<T>(
        &self,
        look_up: impl Future<Output = Result<T, UnpackError>>,
    ) -> Result<T, UnpackError> {
        let waited = self.first_byte;
        let found = self.deadline.limit(look_up).await;
        found.unwrap_or(Err(UnpackError::Slow { waited }))
    }
}

impl Downloads {
    pub(crate) fn new(config: DownloadConfig) -> Self {
        let slots = |number: usize| Arc::new(Semaphore::new(number.max(1)));
        Self {
            config,
            all: slots(config.slots),
            ahead: slots(config.ahead),
            registries: Mutex::default(),
        }
    }

    /// Begins to count the time of a download.
    pub(crate) fn patience(&self) -> Patience {
        Patience {
            deadline: Deadline::after(self.config.first_byte),
            first_byte: self.config.first_byte,
        }
    }

    /// Waits until a layer that was not requested yet may be downloaded.
    pub(crate) async fn turn_ahead(&self) -> Option<OwnedSemaphorePermit> {
        // Never closed.
        Arc::clone(&self.ahead).acquire_owned().await.ok()
    }

    /// Waits for a slot.
    pub(crate) async fn slot(
        &self,
        reference: &Reference,
        patience: Patience,
    ) -> Result<Slot, UnpackError> {
        let registry = self.registry(reference.registry());
        let slot = async {
            // The registry's first, so that no waiter of a slow registry holds one of all. Never closed.
            let own = Arc::clone(&registry).acquire_owned().await.ok();
            let of_all = Arc::clone(&self.all).acquire_owned().await.ok();
            [own, of_all]
        };
        match patience.deadline.limit(slot).await {
            Ok(permits) => Ok(Slot {
                _permits: permits,
                _registry: registry,
                ahead: None,
            }),
            Err(_) => Err(UnpackError::Slot {
                what: "download the layer",
                waited: patience.first_byte,
                key: Some(FIRST_BYTE_KEY),
            }),
        }
    }

    fn registry(&self, name: &str) -> Arc<Semaphore> {
        let mut registries = self.registries.lock();
        registries.retain(|_, slots| slots.strong_count() > 0);
        if let Some(slots) = registries.get(name).and_then(Weak::upgrade) {
            return slots;
        }
        let slots = Arc::new(Semaphore::new(self.config.slots_per_registry.max(1)));
        registries.insert(name.to_owned(), Arc::downgrade(&slots));
        slots
    }
}
