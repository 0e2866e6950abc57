//! A container that `ctr` runs, and its output.
//!
//! `ctr` itself loses all output of a container that ends before `ctr` has opened its pipes, which
//! happens on a busy machine: its Delete cancels the opening. So the shim gives the output to a
//! logger, which it starts with the container and waits for.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::program::write_program;

/// How a container ended.
#[derive(Debug, Clone)]
pub struct RunOutput {
    /// How `ctr run` ended: the status of the container's first process.
    pub status: ExitStatus,
    /// What the container wrote to stdout.
    pub stdout: String,
    /// What it, and then `ctr`, wrote to stderr.
    pub stderr: String,
    /// From the start of `ctr run` to the first byte on stdout, if one came.
    pub first_output: Option<Duration>,
    /// From the start of `ctr run` to its end.
    pub elapsed: Duration,
}

/// Where a container's output is written to. The logger is named by a URI (`binary://`): it gets
/// stdout and stderr as descriptors 3 and 4, and reports by closing 5 that it is ready.
#[derive(Debug)]
pub(super) struct Logged {
    folder: PathBuf,
    id: String,
}

/// SIGTERM means that the container has ended: what it wrote last is still in the pipes.
const LOGGER: &str = "#!/bin/sh\n\
    trap '' TERM\n\
    to=${0%/*}/$CONTAINER_ID\n\
    : >\"$to.started\"\n\
    cat <&3 >\"$to.stdout\" 5>&- &\n\
    cat <&4 >\"$to.stderr\" 5>&- &\n\
    exec 3<&- 4<&- 5>&-\n\
    wait\n\
    : >\"$to.ended\"\n";

impl Logged {
    pub(super) fn new(folder: &Path, id: &str) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        let logged = Self {
            folder: folder.to_owned(),
            id: id.to_owned(),
        };
        for kind in ["started", "stdout", "stderr", "ended"] {
            // Of an earlier process of the same container, if there was one.
            let _ = fs::remove_file(logged.file(kind));
        }
        // Not in its place: another thread may be running the one that is there.
        let logger = logged.logger();
        if !logger.exists() {
            let new = logged.file("logger");
            write_program(&new, LOGGER)?;
            fs::rename(&new, &logger).context("write a logger")?;
        }
        Ok(logged)
    }

    pub(super) fn options(&self) -> [String; 2] {
        let logger = self.logger();
        [
            "--log-uri".to_owned(),
            format!("binary://{}", logger.display()),
        ]
    }

    fn logger(&self) -> PathBuf {
        self.folder.join("logger")
    }

    fn file(&self, kind: &str) -> PathBuf {
        self.folder.join(format!("{}.{kind}", self.id))
    }

    /// Waits until all output is written, if any ever is.
    fn wait(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.file("started").exists() && !self.file("ended").exists() {
            ensure!(
                Instant::now() < deadline,
                "the output of container {} does not end although it has ended",
                self.id
            );
            sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    fn text(&self, kind: &str) -> String {
        let bytes = fs::read(self.file(kind)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// A container that runs.
#[derive(Debug)]
pub struct Running {
    logged: Logged,
    started: Instant,
    child: Child,
    first_output: JoinHandle<Option<Duration>>,
    of_ctr: JoinHandle<String>,
    watched: Watched,
}

/// Ends the watch for the first output when it is dropped.
#[derive(Debug)]
struct Watched(Arc<AtomicBool>);

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Running {
    pub(super) fn start(mut command: Command, logged: Logged) -> Result<Self> {
        let started = Instant::now();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("start ctr run")?;
        let mut stderr = child.stderr.take().context("no stderr")?;
        let of_ctr = spawn(move || {
            let mut all = Vec::new();
            // What was read before a failure counts.
            let _ = stderr.read_to_end(&mut all);
            String::from_utf8_lossy(&all).into_owned()
        });
        let watched = Watched(Arc::default());
        let over = Arc::clone(&watched.0);
        let stdout = logged.file("stdout");
        let first_output = spawn(move || watch(&stdout, started, &over));
        Ok(Self {
            logged,
            started,
            child,
            first_output,
            of_ctr,
            watched,
        })
    }

    /// The container's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.logged.id
    }

    /// Waits for the container's end.
    ///
    /// # Errors
    /// When the kernel cannot tell, or the container's output does not end.
    pub fn wait(mut self) -> Result<RunOutput> {
        let status = self.child.wait().context("wait for ctr run")?;
        let elapsed = self.started.elapsed();
        self.logged.wait()?;
        let lost = |_| anyhow::anyhow!("the reader of a container's output panicked");
        drop(self.watched);
        let stdout = self.logged.text("stdout");
        let first_output = self.first_output.join().map_err(lost)?;
        Ok(RunOutput {
            status,
            first_output: first_output.or((!stdout.is_empty()).then_some(elapsed)),
            stderr: self.logged.text("stderr") + &self.of_ctr.join().map_err(lost)?,
            stdout,
            elapsed,
        })
    }
}

/// When the first byte of a file came, unless it is over before.
fn watch(file: &Path, started: Instant, over: &AtomicBool) -> Option<Duration> {
    loop {
        if fs::metadata(file).is_ok_and(|about| about.len() > 0) {
            return Some(started.elapsed());
        }
        if over.load(Ordering::Relaxed) {
            return None;
        }
        let long = started.elapsed() > Duration::from_secs(10);
        sleep(Duration::from_millis(if long { 50 } else { 1 }));
    }
}
