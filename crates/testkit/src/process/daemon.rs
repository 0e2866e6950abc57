//! A process that runs until it is stopped, its output kept line by line.

use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::root::TestRoot;
use super::spawner;
use super::table::MARK;

/// The lines that a process wrote to stdout and stderr, in the order of arrival.
///
/// They include everything that was written: each look reads the pipes first, instead of relying on a thread that may
/// be behind.
#[derive(Debug, Default)]
pub struct LogLines {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<String>,
    pipes: Vec<Pipe>,
}

/// The end of a pipe from which a process's output is read, without waiting for more.
#[derive(Debug)]
struct Pipe {
    end: Arc<OwnedFd>,
    /// The beginning of a line whose end has not come.
    begun: Vec<u8>,
    ended: bool,
}

impl State {
    /// Reads what was written so far.
    fn read(&mut self) {
        let mut buffer = [0; 16 << 10];
        for pipe in &mut self.pipes {
            while !pipe.ended {
                match rustix::io::read(&pipe.end, &mut buffer) {
                    Ok(0) => pipe.ended = true,
                    Ok(count) => {
                        for &byte in buffer.get(..count).unwrap_or_default() {
                            match byte {
                                b'\n' => self.lines.push(text(&mut pipe.begun)),
                                byte => pipe.begun.push(byte),
                            }
                        }
                    }
                    Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => break,
                    Err(_) => pipe.ended = true,
                }
            }
            if pipe.ended && !pipe.begun.is_empty() {
                self.lines.push(text(&mut pipe.begun));
            }
        }
    }
}

fn text(line: &mut Vec<u8>) -> String {
    String::from_utf8_lossy(&std::mem::take(line)).into_owned()
}

impl LogLines {
    /// The state with everything that was written so far.
    fn now(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock();
        state.read();
        state
    }

    /// All lines so far.
    #[must_use]
    pub fn all(&self) -> Vec<String> {
        self.now().lines.clone()
    }

    /// How many lines there are so far: a place to search on from.
    #[must_use]
    pub fn mark(&self) -> usize {
        self.now().lines.len()
    }

    /// The last lines, joined, for an error message; long lines are cut.
    #[must_use]
    pub fn tail(&self, count: usize) -> String {
        const WIDTH: usize = 400;
        let state = self.now();
        let lines = &state.lines;
        let last = lines.iter().skip(lines.len().saturating_sub(count));
        let cut = last.map(|line| line.chars().take(WIDTH).collect::<String>());
        cut.collect::<Vec<_>>().join("\n")
    }

    /// Waits for a line at or after `from` that `wanted` accepts.
    #[must_use]
    pub fn wait_for(
        &self,
        from: usize,
        timeout: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Option<String> {
        let deadline = Instant::now() + timeout;
        let mut state = self.now();
        let mut seen = from;
        loop {
            if let Some(line) = state.lines.iter().skip(seen).find(|line| wanted(line)) {
                return Some(line.clone());
            }
            seen = seen.max(state.lines.len());
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                state.read();
                return state
                    .lines
                    .iter()
                    .skip(seen)
                    .find(|line| wanted(line))
                    .cloned();
            }
        }
    }

    /// Follows one more pipe, on a thread that empties it.
    fn follow(self: &Arc<Self>, source: impl Into<OwnedFd>) -> Result<()> {
        let end = Arc::new(source.into());
        fcntl_setfl(&end, OFlags::NONBLOCK).context("read a pipe without waiting")?;
        self.state.lock().pipes.push(Pipe {
            end: Arc::clone(&end),
            begun: Vec::new(),
            ended: false,
        });
        let log = Arc::clone(self);
        std::thread::spawn(move || {
            loop {
                let mut ready = [PollFd::new(&end, PollFlags::IN)];
                if poll(&mut ready, None).is_err_and(|error| error != Errno::INTR) {
                    return;
                }
                let state = log.now();
                log.changed.notify_all();
                let mut same = state
                    .pipes
                    .iter()
                    .filter(|pipe| Arc::ptr_eq(&pipe.end, &end));
                if same.any(|pipe| pipe.ended) {
                    return;
                }
            }
        });
        Ok(())
    }
}

/// A process that is killed with its group when this is dropped. When that happens during a panic,
/// the end of its log is printed.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    log: Arc<LogLines>,
    ended: Option<ExitStatus>,
}

impl Daemon {
    /// Starts `program` as a process that belongs to `root`; `configure` adds arguments and
    /// environment.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn spawn(
        name: &str,
        root: &TestRoot,
        program: impl AsRef<std::ffi::OsStr>,
        configure: impl FnOnce(&mut Command),
    ) -> Result<Self> {
        let mut command = spawner::mortal(program);
        configure(&mut command);
        command.env(MARK, root.path());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = spawner::spawn(command).with_context(|| format!("start {name}"))?;
        let log = Arc::new(LogLines::default());
        if let Some(stdout) = child.stdout.take() {
            log.follow(stdout)?;
        }
        if let Some(stderr) = child.stderr.take() {
            log.follow(stderr)?;
        }
        Ok(Self {
            name: name.to_owned(),
            child,
            log,
            ended: None,
        })
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote.
    #[must_use]
    pub fn log(&self) -> &Arc<LogLines> {
        &self.log
    }

    /// How it ended, when it has.
    ///
    /// # Errors
    /// When the kernel cannot tell.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait()?;
        }
        Ok(self.ended)
    }

    /// Waits until `ready` holds; fails when the process ends before.
    ///
    /// # Errors
    /// When it ends or the time is over; the message holds the end of its log.
    pub fn wait_ready(
        &mut self,
        timeout: Duration,
        ready: impl Fn(&LogLines) -> bool,
    ) -> Result<()> {
        let deadline = Instant::now() + timeout;
        loop {
            if ready(&self.log) {
                return Ok(());
            }
            if let Some(status) = self.ended()? {
                bail!(
                    "{} ended ({status}) instead of starting:\n{}",
                    self.name,
                    self.log.tail(40)
                );
            }
            if Instant::now() > deadline {
                bail!(
                    "{} was not ready after {timeout:?}:\n{}",
                    self.name,
                    self.log.tail(40)
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends a signal to the process, not to its group.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.raw_pid()?, signal).with_context(|| format!("signal {}", self.name))
    }

    /// Waits for the end of the process.
    ///
    /// # Errors
    /// When it still runs after `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!(
                    "{} still runs after {timeout:?}:\n{}",
                    self.name,
                    self.log.tail(40)
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Kills the whole process group and waits for the end.
    ///
    /// # Errors
    /// When the process does not end even so.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.ended()? {
            return Ok(status);
        }
        // The process itself may have left the group that it was started in.
        let _ = kill_process_group(self.raw_pid()?, Signal::KILL);
        let _ = kill_process(self.raw_pid()?, Signal::KILL);
        self.wait(Duration::from_secs(60))
    }

    /// Peak resident memory of the process in bytes (`VmHWM` of proc_pid_status(5)).
    ///
    /// # Errors
    /// When the process is gone.
    pub fn peak_memory(&self) -> Result<u64> {
        status_bytes(self.pid(), "VmHWM:")
    }

    /// Resident memory of the process in bytes (`VmRSS`).
    ///
    /// # Errors
    /// When the process is gone.
    pub fn memory(&self) -> Result<u64> {
        status_bytes(self.pid(), "VmRSS:")
    }

    fn raw_pid(&self) -> Result<Pid> {
        i32::try_from(self.child.id())
            .ok()
            .and_then(Pid::from_raw)
            .context("bad process id")
    }
}

/// A line of proc_pid_status(5) that is in KiB, in bytes.
pub(crate) fn status_bytes(pid: u32, key: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let kib: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix(key))
        .and_then(|rest| rest.split_whitespace().next())
        .with_context(|| format!("{path} has no {key}"))?
        .parse()?;
    Ok(kib * 1024)
}

impl Drop for Daemon {
    #[expect(
        clippy::print_stderr,
        reason = "a failed test shows what its daemons said"
    )]
    fn drop(&mut self) {
        // An error cannot be returned here; the root's sweep follows.
        let _ = self.kill();
        if std::thread::panicking() {
            eprintln!(
                "--- end of the log of {} ---\n{}",
                self.name,
                self.log.tail(30)
            );
        }
    }
}
