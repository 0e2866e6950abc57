//! Which process has a listening Unix socket open: proc_pid_fd(5), proc_net(5).

use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// The process that listens on a socket, as far as it can be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Owner {
    /// A holder, which keeps the socket of a daemon that has ended.
    Holder(u32),
    /// Another process, and its name.
    Process(u32, String),
    Unknown,
}

impl Owner {
    /// Finds the process that has the socket with this path open.
    pub(crate) fn of(path: &Path) -> Self {
        let sockets = fs::read("/proc/net/unix").unwrap_or_default();
        let inodes = inodes(&sockets, path);
        let mut found = Self::Unknown;
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let pid = entry.file_name().to_str().and_then(|n| n.parse().ok());
            let Some(pid) = pid else { continue };
            if pid == std::process::id() || !has_open(&entry.path(), &inodes) {
                continue;
            }
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            // A server has it as well, and is then the one to stop.
            found = match name.trim() {
                soci_holder::PROCESS_NAME if found != Self::Unknown => found,
                soci_holder::PROCESS_NAME => Self::Holder(pid),
                other => Self::Process(pid, other.to_owned()),
            };
        }
        found
    }
}

/// The inodes of the sockets with this path in the text of `/proc/net/unix`:
/// `Num: RefCount Protocol Flags Type St Inode Path`.
fn inodes(text: &[u8], path: &Path) -> Vec<String> {
    let lines = text.split(|byte| *byte == b'\n');
    lines
        .filter(|line| {
            line.strip_suffix(path.as_os_str().as_bytes())
                .is_some_and(|before| before.ends_with(b" "))
        })
        .filter_map(|line| {
            let line = String::from_utf8_lossy(line);
            line.split_whitespace().nth(6).map(str::to_owned)
        })
        .collect()
}

fn has_open(process: &Path, inodes: &[String]) -> bool {
    let files = fs::read_dir(process.join("fd"));
    files.into_iter().flatten().flatten().any(|file| {
        let target = fs::read_link(file.path()).unwrap_or_default();
        let inode = target
            .to_str()
            .and_then(|target| target.strip_prefix("socket:[")?.strip_suffix(']'));
        inode.is_some_and(|inode| inodes.iter().any(|one| one == inode))
    })
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Holder(pid) => write!(
                f,
                "the holder (process {pid}), which keeps it for a daemon whose root folder is another one, or is \
                 hidden by a mount over it (findmnt): start with that root folder, or end the holder with soci \
                 abort-mounts"
            ),
            Self::Process(pid, name) => write!(
                f,
                "process {pid} ({name}): stop it, or choose another --address"
            ),
            Self::Unknown => f.write_str("stop it, or choose another --address"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_that_listens_is_found() {
        let text = b"Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 21 /run/a.sock\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 22 /run/b/run/a.sock\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 23 /run/a.sock\n";
        assert_eq!(inodes(text, Path::new("/run/a.sock")), ["21", "23"]);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        assert_eq!(Owner::of(&path), Owner::Unknown);
        let mut child = std::process::Command::new("systemd-socket-activate")
            .arg("-l")
            .arg(&path)
            .arg("cat")
            .spawn()
            .unwrap();
        let owner = loop {
            match Owner::of(&path) {
                Owner::Unknown => std::thread::sleep(std::time::Duration::from_millis(20)),
                owner => break owner,
            }
        };
        child.kill().unwrap();
        child.wait().unwrap();
        // The kernel keeps 15 bytes of the name.
        assert_eq!(
            owner,
            Owner::Process(child.id(), "systemd-socket-".to_owned())
        );
    }
}
