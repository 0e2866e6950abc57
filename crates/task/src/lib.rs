//! Blocking work on tokio's thread pool, with one error for work that did not finish.

#![forbid(unsafe_code)]

mod keyed_locks;

pub use keyed_locks::KeyedLocks;

use std::io;

/// Runs work that blocks (on the disk, on `/proc`) on tokio's pool for such work, and returns its
/// result. The work runs to its end even if the caller is dropped.
///
/// # Errors
/// The error of the work, or [`Interrupted`] converted to it if the work panicked or the runtime
/// shut down before it started.
pub async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: From<Interrupted> + Send + 'static,
{
    run(work).await?
}

/// Runs blocking work that has no error of its own, as [`blocking`] does.
///
/// # Errors
/// The work panicked, or the runtime shut down before it started.
pub async fn run<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Interrupted> {
    tokio::task::spawn_blocking(work).await.map_err(Interrupted)
}

/// Blocking work that did not run to its end: it panicked, or the runtime shut down.
#[derive(Debug, thiserror::Error)]
#[error("blocking work did not finish: {0}")]
pub struct Interrupted(tokio::task::JoinError);

impl From<Interrupted> for io::Error {
    fn from(error: Interrupted) -> Self {
        Self::other(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_result_of_the_work_is_returned() {
        let done = blocking(|| Ok::<_, io::Error>(42)).await;
        assert_eq!(done.unwrap(), 42);
        let failed = blocking(|| Err::<(), _>(io::Error::from(io::ErrorKind::NotFound))).await;
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn a_panic_becomes_an_error_of_the_caller() {
        let done = blocking(|| -> io::Result<()> { panic!("broken") }).await;
        let error = done.unwrap_err();
        assert!(error.to_string().contains("broken"), "{error}");
    }
}
