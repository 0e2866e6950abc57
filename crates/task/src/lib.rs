//! Blocking work on tokio's thread pool, with one error for work that did not finish.

#![forbid(unsafe_code)]

mod keyed_locks;

pub use keyed_locks::KeyedLocks;

use std::io;

/// Runs work that blocks (on the disk, on `/proc`) on tokio's pool for such work, and returns its
/// result. The work runs to its end even if the caller is dropped, within the spans of the caller.
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

/// Runs blocking work that has no error of its own, as [`blocking`] does. Its log lines carry the
/// fields of the caller's spans.
///
/// # Errors
/// The work panicked, or the runtime shut down before it started.
pub async fn run<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Interrupted> {
    let span = tracing::Span::current();
    tokio::task::spawn_blocking(move || span.in_scope(work))
        .await
        .map_err(Interrupted)
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
    use std::sync::Arc;
    use std::thread::ThreadId;

    use parking_lot::Mutex;
    use tracing::Instrument as _;
    use tracing_subscriber::Layer;
    use tracing_subscriber::layer::{Context, SubscriberExt as _};

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

    /// The threads on which spans were entered.
    #[derive(Clone, Default)]
    struct Entered(Arc<Mutex<Vec<ThreadId>>>);

    impl<S: tracing::Subscriber> Layer<S> for Entered {
        fn on_enter(&self, _: &tracing::span::Id, _: Context<'_, S>) {
            self.0.lock().push(std::thread::current().id());
        }
    }

    #[tokio::test]
    async fn the_work_runs_within_the_spans_of_the_caller() {
        let entered = Entered::default();
        let subscriber = tracing_subscriber::registry().with(entered.clone());
        let _logging = tracing::subscriber::set_default(subscriber);
        let span = tracing::error_span!("prepare");
        let thread = run(|| std::thread::current().id()).instrument(span).await;
        assert!(entered.0.lock().contains(&thread.unwrap()));
    }
}
