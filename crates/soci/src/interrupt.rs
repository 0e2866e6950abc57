//! The ends of a command's work from outside: signals and `--timeout`.
//!
//! Work that is dropped leaves nothing visible. From [`committing`] on it is not dropped, because an image
//! record, a tag or an entry may be visible already: the command succeeds, although it was interrupted.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use anyhow::bail;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How long work that is committing is waited for.
const GRACE: Duration = Duration::from_secs(10);

tokio::task_local! {
    /// Whether the work of the innermost [`limited`] is committing.
    static COMMITTING: Rc<Cell<bool>>;
}

/// Marks the step at which the work of the innermost [`limited`] begins to be visible to others.
pub(crate) fn committing() {
    keep_on();
    signal_point("interrupted-commit");
}

/// Keeps the work of the innermost [`limited`] from being dropped: its result would be lost.
pub(crate) fn keep_on() {
    let _ = COMMITTING.try_with(|committing| committing.set(true));
}

/// Sends this process SIGINT, if this fault point is selected.
pub(crate) fn signal_point(name: &str) {
    if soci_faults::fails(name) {
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::INT);
    }
}

/// Runs work. Drops it and fails when the time is up or a signal arrives, unless the work is committing.
pub(crate) async fn limited<T>(
    timeout: Option<Duration>,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    limited_with(Interrupts::listen(), timeout, work).await
}

/// As [`limited`], also for a signal that has arrived since `interrupts` began to listen.
pub(crate) async fn limited_with<T>(
    mut interrupts: Interrupts,
    timeout: Option<Duration>,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let committing = Rc::new(Cell::new(false));
    let mut work = std::pin::pin!(COMMITTING.scope(Rc::clone(&committing), work));
    let time_is_up = async {
        match timeout {
            Some(limit) => {
                tokio::time::sleep(limit).await;
                limit
            }
            None => std::future::pending().await,
        }
    };
    let reason = tokio::select! {
        result = &mut work => return result,
        limit = time_is_up => anyhow::anyhow!("not done within --timeout {limit:?}"),
        signal = interrupts.next() => signal,
    };
    if !committing.get() {
        return Err(reason);
    }
    tokio::select! {
        result = work => result,
        () = tokio::time::sleep(GRACE) => bail!("{reason}; the result may be visible already"),
        signal = interrupts.next() => bail!("{signal}; the result may be visible already"),
    }
}

/// Resolves when the user (SIGINT) or the system (SIGTERM) requests the end of the program.
pub(crate) async fn interrupted() -> anyhow::Error {
    Interrupts::listen().next().await
}

/// Requests of the user (SIGINT) and the system (SIGTERM) to end the program.
pub(crate) struct Interrupts {
    /// Without a handler the signal ends the program by itself.
    interrupt: Option<Signal>,
    terminate: Option<Signal>,
}

impl Interrupts {
    /// From now on a signal does not end the program, and is kept for [`Interrupts::next`].
    pub(crate) fn listen() -> Self {
        Self {
            interrupt: signal(SignalKind::interrupt()).ok(),
            terminate: signal(SignalKind::terminate()).ok(),
        }
    }

    /// Resolves when there is a signal.
    async fn next(&mut self) -> anyhow::Error {
        async fn arrival(signals: &mut Option<Signal>) {
            match signals {
                Some(signals) => {
                    signals.recv().await;
                }
                None => std::future::pending().await,
            }
        }
        tokio::select! {
            () = arrival(&mut self.interrupt) => anyhow::anyhow!("interrupted"),
            () = arrival(&mut self.terminate) => anyhow::anyhow!("terminated"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn work_is_dropped_when_the_time_is_up_unless_it_is_committing() {
        let limit = Some(Duration::from_secs(1));
        let work = |commits: bool, seconds: u64| async move {
            if commits {
                committing();
            }
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            anyhow::Ok(seconds)
        };
        let error = limited(limit, work(false, 5)).await.unwrap_err();
        assert_eq!(error.to_string(), "not done within --timeout 1s");
        assert_eq!(limited(limit, work(true, 5)).await.unwrap(), 5);
        let error = limited(limit, work(true, 3600)).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "not done within --timeout 1s; the result may be visible already"
        );
        // Only the innermost work is committing.
        let outer = async {
            limited(None, work(true, 0)).await?;
            work(false, 5).await
        };
        assert!(limited(limit, outer).await.is_err());
    }
}
