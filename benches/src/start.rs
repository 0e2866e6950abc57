//! Starts one image: pull, then the first container, with what went over the network.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use soci_testkit::{Containerd, ContainerdOptions, Proxy, Run, Stack};

/// The containerd namespace that everything is started in.
const NAMESPACE: &str = "demo";

/// What a start cost.
#[derive(Debug, Clone)]
pub struct Start {
    /// The time that the pull took.
    pub pull: Duration,
    /// From the start of the container to its first byte of output.
    pub first_output: Duration,
    /// From the start of the container to its end.
    pub run: Duration,
    /// Body bytes that the registry sent from the beginning of the pull to the end of the container.
    pub network: u64,
    /// How many of these bytes were layer data and other blobs.
    pub blobs: u64,
    /// What the pull printed.
    pub pull_output: String,
    /// What the container printed.
    pub output: String,
}

impl Start {
    /// From the beginning of the pull to the first output.
    #[must_use]
    pub fn until_output(&self) -> Duration {
        self.pull + self.first_output
    }

    /// From the beginning of the pull to the end of the container.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.pull + self.run
    }
}

/// Pulls with our CLI and runs with our snapshotter.
///
/// # Errors
/// When the pull fails or the container ends with another status than 0.
pub fn start_lazily(stack: &Stack, reference: &str, command: &[String]) -> Result<Start> {
    let soci = stack.soci(NAMESPACE)?;
    measure(
        &stack.proxy,
        || soci.output(["pull", "--plain-http", "--snapshotter", "soci", reference]),
        || {
            stack
                .containerd
                .ctr(NAMESPACE)
                .run(&Run::new(reference, "soci").command(command))
        },
    )
}

/// Pulls and runs with overlayfs, in a containerd of its own, so that nothing is there already.
///
/// # Errors
/// When the pull fails or the container ends with another status than 0.
pub fn start_with_overlayfs(proxy: &Proxy, reference: &str, command: &[String]) -> Result<Start> {
    let containerd = Containerd::start(&ContainerdOptions::default())?;
    let ctr = containerd.ctr(NAMESPACE);
    measure(
        proxy,
        || ctr.pull(reference, "overlayfs").map(|()| String::new()),
        || ctr.run(&Run::new(reference, "overlayfs").command(command)),
    )
}

fn measure(
    proxy: &Proxy,
    pull: impl FnOnce() -> Result<String>,
    run: impl FnOnce() -> Result<soci_testkit::RunOutput>,
) -> Result<Start> {
    proxy.reset_stats();
    let started = Instant::now();
    let pull_output = pull()?;
    let pulled = started.elapsed();
    let run = run()?;
    let stats = proxy.stats();
    ensure!(
        run.status.success(),
        "the container ended with {}:\n{}{}",
        run.status,
        run.stdout,
        run.stderr
    );
    Ok(Start {
        pull: pulled,
        first_output: run.first_output.unwrap_or(run.elapsed),
        run: run.elapsed,
        network: stats.total().bytes,
        blobs: stats.blobs().bytes,
        pull_output,
        output: run.stdout,
    })
}
