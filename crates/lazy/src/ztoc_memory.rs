//! Limits the memory of zTOCs that are being fetched and parsed, whatever their number and size.

use std::sync::Arc;

use soci_layer::LayerRefusal;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes per permit of the semaphore.
const UNIT: u64 = 1024;

/// A number of bytes that zTOCs share. A zTOC that needs more is handled alone.
#[derive(Debug)]
pub(crate) struct ZtocMemory {
    units: Arc<Semaphore>,
    most: u32,
    /// Size of the largest zTOC that is used, in bytes: it is read as a whole.
    largest: u64,
}

impl ZtocMemory {
    pub(crate) fn new(bytes: u64, largest: u64) -> Self {
        let most = u32::try_from((bytes / UNIT).max(1)).unwrap_or(u32::MAX);
        let units = usize::try_from(most).unwrap_or(Semaphore::MAX_PERMITS);
        Self {
            units: Arc::new(Semaphore::new(units)),
            most,
            largest,
        }
    }

    /// Waits until there is memory for a zTOC of `size` bytes. The permit is held as long as the zTOC
    /// is in memory, also if no caller waits for it any more.
    ///
    /// # Errors
    /// The zTOC is too large.
    pub(crate) async fn acquire(&self, size: u64) -> Result<OwnedSemaphorePermit, LayerRefusal> {
        if size > self.largest {
            return Err(LayerRefusal::ztoc_too_large(size, self.largest));
        }
        let units = u32::try_from(size.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let permit = self.units.clone();
        let permit = permit.acquire_many_owned(units.min(self.most)).await;
        permit.map_err(LayerRefusal::failed)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    const LARGEST: u64 = 512 << 20;

    #[test]
    fn ztocs_at_once_take_no_more_than_the_limit_and_a_large_one_comes_alone() {
        let memory = ZtocMemory::new(10 << 20, LARGEST);
        let at_once = |size| memory.acquire(size).now_or_never();
        let first = at_once(6 << 20).unwrap().unwrap();
        assert!(at_once(6 << 20).is_none());
        let second = at_once(4 << 20).unwrap().unwrap();
        drop(first);
        assert!(at_once(100 << 20).is_none());
        drop(second);
        let alone = at_once(100 << 20).unwrap().unwrap();
        assert!(at_once(1).is_none());
        drop(alone);
    }

    #[test]
    fn a_ztoc_that_claims_to_be_huge_is_refused_before_it_is_requested() {
        let memory = ZtocMemory::new(10 << 20, LARGEST);
        for size in [LARGEST + 1, u64::MAX] {
            let refusal = memory.acquire(size).now_or_never().unwrap().unwrap_err();
            assert!(
                soci_errors::chain(&refusal).contains("larger span size"),
                "{refusal}"
            );
        }
    }
}
