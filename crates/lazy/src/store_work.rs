//! Work on the layer store, off the threads of the runtime.

use soci_store::StoreError;
use soci_task::Interrupted;

/// Work on the layer store failed, or did not finish.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreWorkError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// Runs work on the store as [`soci_task::run`] does.
pub(crate) async fn store_work<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreWorkError> {
    Ok(soci_task::run(work).await??)
}
