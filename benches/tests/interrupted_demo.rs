//! `make demo`, interrupted by a person. Needs root: it starts a containerd.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpListener;
use std::process::{Command, Stdio};

#[test]
fn a_demo_that_is_interrupted_leaves_nothing() {
    // A registry that never answers keeps the demo busy while everything is running.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let image = format!("{}/never:1", silent.local_addr().unwrap());
    let mut demo = Command::new(env!("CARGO_BIN_EXE_demo"))
        .args(["--image", &image])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(demo.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("==> indexing") {
        line.clear();
        assert_ne!(stderr.read_line(&mut line).unwrap(), 0, "it ended early");
    }
    let ours = format!("soci-tk.{}.", demo.id());
    let left = || {
        let folders: Vec<_> = std::fs::read_dir(std::env::temp_dir())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with(&ours))
            .collect();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        (folders, mounts.matches(&ours).count(), processes(&ours))
    };
    assert!(!left().0.is_empty() && left().2 > 0, "{:?}", left());
    let killed = Command::new("kill")
        .args(["-TERM", &demo.id().to_string()])
        .status();
    assert!(killed.unwrap().success());
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    assert_eq!(demo.wait().unwrap().code(), Some(1), "{rest}");
    assert!(rest.contains("interrupted"), "{rest}");
    assert_eq!(left(), (vec![], 0, 0), "{rest}");
}

/// How many processes have the text in their command line.
fn processes(text: &str) -> usize {
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .filter(|line| String::from_utf8_lossy(line).contains(text))
        .count()
}
