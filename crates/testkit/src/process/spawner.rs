//! Starts processes that die with this one, whatever kills it.
//!
//! The parent-death signal of prctl(2) fires when the *thread* that forked ends, and each test has
//! a thread of its own; so one thread that never ends starts them all.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};

use parking_lot::Mutex;

type Job = (Command, Sender<io::Result<Child>>);

static SPAWNER: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();

/// A command that is killed when this process ends, in a process group of its own.
pub(crate) fn mortal(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--"])
        .arg(program)
        .process_group(0);
    command
}

/// Starts a command on the thread that never ends.
pub(crate) fn spawn(command: Command) -> io::Result<Child> {
    let gone = || io::Error::other("the thread that starts processes is gone");
    let (answer, result) = channel();
    SPAWNER
        .get_or_init(|| {
            let (sender, jobs) = channel::<Job>();
            std::thread::spawn(move || {
                for (mut command, answer) in jobs {
                    // The asker waits for the answer; if it is gone, the child's handle is dropped.
                    let _ = answer.send(command.spawn());
                }
            });
            Mutex::new(sender)
        })
        .lock()
        .send((command, answer))
        .map_err(|_| gone())?;
    result.recv().map_err(|_| gone())?
}
