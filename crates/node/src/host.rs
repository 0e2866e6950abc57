//! The node as a program reaches it: its mount namespace, and its programs.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::process::{self, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::NodeError;

/// Where programs of a node are looked for.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Longest output of a failed program in an error, in characters.
const MOST_OUTPUT: usize = 800;

/// Moves this process from a container into the mount namespace of process 1, so that every path is one of
/// the node. The container needs the node's process ids (`hostPID`) and `privileged`.
///
/// # Errors
/// Process 1 is not the node's, or this process may not join its namespace, for example because it
/// has more than one thread.
pub fn enter_host() -> Result<(), NodeError> {
    let path = "/proc/1/ns/mnt";
    let namespace = File::open(path).map_err(NodeError::file("open", path))?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))
        .map_err(|error| NodeError::file("enter the mount namespace", path)(error.into()))?;
    std::env::set_current_dir("/").map_err(NodeError::file("enter", "/"))
}

/// A program of the node with arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    program: String,
    arguments: Vec<String>,
}

impl Command {
    /// A program with arguments.
    pub fn new<S: Into<String>>(
        program: impl Into<String>,
        arguments: impl IntoIterator<Item = S>,
    ) -> Self {
        Self {
            program: program.into(),
            arguments: arguments.into_iter().map(Into::into).collect(),
        }
    }

    /// The words of the command, the program first.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.program)
            .chain(&self.arguments)
            .map(String::as_str)
    }

    fn text(&self) -> String {
        self.words().collect::<Vec<_>>().join(" ")
    }
}

/// What a node does for its installer.
pub trait Host {
    /// Runs a program to its end and returns what it printed on stdout.
    ///
    /// # Errors
    /// It cannot be run, or it fails.
    fn run(&self, command: &Command) -> Result<String, NodeError>;

    /// Prints a line about what is being done.
    fn note(&self, line: &str);
}

/// Runs a program of this machine.
pub(crate) fn run(command: &Command) -> Result<String, NodeError> {
    let output = process::Command::new(&command.program)
        .args(&command.arguments)
        .env_clear()
        .env("PATH", SEARCH_PATH)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|source| NodeError::Run {
            command: command.text(),
            source,
        })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8_lossy(&printed);
    let printed = printed.trim();
    let start = printed.chars().count().saturating_sub(MOST_OUTPUT);
    Err(NodeError::Failed {
        command: command.text(),
        outcome: output.status.to_string(),
        output: printed.chars().skip(start).collect(),
    })
}

/// This machine.
#[derive(Debug)]
pub struct ThisHost<F>(pub F);

impl<F: Fn(&str)> Host for ThisHost<F> {
    fn run(&self, command: &Command) -> Result<String, NodeError> {
        run(command)
    }

    fn note(&self, line: &str) {
        (self.0)(line);
    }
}
