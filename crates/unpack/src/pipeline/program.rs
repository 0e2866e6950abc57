//! A program that decompresses a layer: compressed bytes on its standard input, plain ones from its
//! standard output. It is killed when the layer is cancelled, and when it makes no progress.

use std::io::{self, BufRead, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use super::block::BlockSender;
use super::decompressor::Decompressor;
use super::piece::PieceReader;

/// Time between two looks at the program.
const LOOK: Duration = Duration::from_millis(50);
/// Bytes that are written to the program at a time.
const STEP: usize = 64 << 10;
/// Bytes of its messages that are kept.
const MESSAGES: usize = 2048;

/// Why a program did not decompress a layer.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It cannot be started.
    #[error("cannot start it: {0}")]
    Start(io::Error),
    /// It failed.
    #[error("it failed: {status}{}", said(.messages))]
    Failed {
        /// How it ended.
        status: ExitStatus,
        /// What it wrote to its standard error.
        messages: String,
    },
    /// It neither read what waited for it nor wrote.
    #[error(
        "it made no progress for {} seconds and was killed{}", after.as_secs(), said(.messages)
    )]
    Stalled {
        /// The time that it was given.
        after: Duration,
        /// What it wrote to its standard error.
        messages: String,
    },
    /// Its output cannot be read.
    #[error("cannot read its output: {0}")]
    Output(io::Error),
    /// The caller needs no more of its output.
    #[error("its output is not needed any more")]
    Abandoned,
}

fn said(messages: &str) -> String {
    if messages.is_empty() {
        return String::new();
    }
    format!(": {messages:?}")
}

/// What the program and the threads beside it are doing.
#[derive(Debug, Default)]
struct Activity {
    /// Bytes that it has read, and written.
    bytes: AtomicU64,
    /// Bytes wait for it to read them, or there are no more.
    fed: AtomicBool,
    /// Its output is waited for.
    drained: AtomicBool,
}

/// Why it was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Killed {
    Stalled,
    Abandoned,
}

/// Decompresses all pieces. `stop` is asked while the program runs.
pub(crate) fn decompress(
    program: &Decompressor,
    stall: Duration,
    pieces: &mut PieceReader,
    blocks: &mut BlockSender,
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<(), ProgramError> {
    let mut child = start(program).map_err(ProgramError::Start)?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let group = Pid::from_child(&child);
    let activity = Activity::default();
    let outcome = std::thread::scope(|scope| {
        let (over, watched) = channel::<()>();
        let activity = &activity;
        let start = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let feeding = start("decompress-in").spawn_scoped(scope, move || {
            // A program that ends early reports why by its status.
            let _ = stdin.map(|stdin| feed(stdin, pieces, activity));
            activity.fed.store(true, Ordering::Release);
        });
        let listening = start("decompress-err").spawn_scoped(scope, move || stderr.map(messages));
        let watching = start("decompress-dog").spawn_scoped(scope, move || {
            let mut seen = (activity.bytes.load(Ordering::Acquire), Instant::now());
            while watched.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                let bytes = activity.bytes.load(Ordering::Acquire);
                let waits = activity.fed.load(Ordering::Acquire)
                    && activity.drained.load(Ordering::Acquire);
                if bytes != seen.0 || !waits {
                    seen = (bytes, Instant::now());
                }
                let why = if stop() {
                    Killed::Abandoned
                } else if seen.1.elapsed() >= stall {
                    Killed::Stalled
                } else {
                    continue;
                };
                let _ = kill_process_group(group, Signal::KILL);
                return Some(why);
            }
            None
        });
        let started = (feeding, listening, watching);
        let (Ok(feeding), Ok(listening), Ok(watching)) = started else {
            let _ = kill_process_group(group, Signal::KILL);
            return Err(ProgramError::Start(io::Error::other("no threads are left")));
        };
        let drained = stdout.map_or(Ok(()), |stdout| drain(stdout, blocks, activity));
        if drained.is_err() {
            let _ = kill_process_group(group, Signal::KILL);
        }
        // It is not reaped before nothing kills its group any more.
        activity.drained.store(true, Ordering::Release);
        let _ = waitid(
            WaitId::Pid(group),
            WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
        );
        drop(over);
        let killed = watching.join().unwrap_or_default();
        // What it has started does not outlive it, nor hold its pipes open.
        let _ = kill_process_group(group, Signal::KILL);
        let _ = feeding.join();
        let messages = listening.join().ok().flatten().unwrap_or_default();
        Ok((drained, killed, messages))
    });
    let status = child.wait().map_err(ProgramError::Output)?;
    let (drained, killed, messages) = outcome?;
    match killed {
        Some(Killed::Stalled) => Err(ProgramError::Stalled {
            after: stall,
            messages,
        }),
        Some(Killed::Abandoned) => Err(ProgramError::Abandoned),
        None => {
            drained?;
            if status.success() {
                return Ok(());
            }
            Err(ProgramError::Failed { status, messages })
        }
    }
}

fn start(program: &Decompressor) -> io::Result<Child> {
    let mut command = Command::new(&program.path);
    command
        .args(&program.args)
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    command.spawn()
}

fn feed(mut stdin: impl Write, pieces: &mut PieceReader, activity: &Activity) -> io::Result<()> {
    loop {
        let bytes = pieces.fill_buf()?;
        let Some(step) = bytes.get(..bytes.len().min(STEP)).filter(|s| !s.is_empty()) else {
            return Ok(());
        };
        activity.fed.store(true, Ordering::Release);
        stdin.write_all(step)?;
        activity.fed.store(false, Ordering::Release);
        let length = step.len();
        activity.bytes.fetch_add(length as u64, Ordering::AcqRel);
        pieces.consume(length);
    }
}

fn drain(
    mut stdout: impl Read,
    blocks: &mut BlockSender,
    activity: &Activity,
) -> Result<(), ProgramError> {
    loop {
        activity.drained.store(true, Ordering::Release);
        let read = stdout.read(blocks.room());
        activity.drained.store(false, Ordering::Release);
        match read {
            Ok(0) => break,
            Ok(length) => {
                activity.bytes.fetch_add(length as u64, Ordering::AcqRel);
                blocks.add(length).map_err(|_| ProgramError::Abandoned)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(ProgramError::Output(error)),
        }
    }
    blocks.flush().map_err(|_| ProgramError::Abandoned)
}

/// The beginning of what it writes; the rest is read and dropped.
fn messages(mut stderr: impl Read) -> String {
    let mut kept = Vec::new();
    let _ = stderr.by_ref().take(MESSAGES as u64).read_to_end(&mut kept);
    let _ = io::copy(&mut stderr, &mut io::sink());
    String::from_utf8_lossy(&kept).trim().to_owned()
}

impl ProgramError {
    /// Whether damaged input may be the cause.
    pub(crate) fn may_be_damage(&self) -> bool {
        match self {
            Self::Failed { status, .. } => status.signal().is_none(),
            _ => false,
        }
    }
}
