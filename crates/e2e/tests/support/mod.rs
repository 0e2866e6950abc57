//! What the end-to-end tests share: a stack of real parts, and the steps of using it.

#![allow(dead_code, reason = "each test program uses a part of this")]

pub(crate) mod survival;

use testkit::{Run, SociCli, SociDaemonOptions, Stack, StackOptions};

pub(crate) const NAMESPACE: &str = "e2e";
/// Everything else is measured while the background fetcher rests.
pub(crate) const NO_BACKGROUND: &str = "[background_fetch]\ndisable = true\n";

pub(crate) fn stack(config: &str) -> Stack {
    let daemon = SociDaemonOptions::with_config(config);
    Stack::start(StackOptions {
        daemon,
        ..StackOptions::default()
    })
    .unwrap()
}

/// Indexes the image of a layout into the registry; returns its name seen through the proxy.
pub(crate) fn indexed(stack: &Stack, layout: &std::path::Path, name: &str) -> String {
    let target = format!(
        "docker://{}",
        stack.registry.reference(&format!("{name}:soci"))
    );
    let arguments = [
        "convert",
        "--standalone",
        "--min-layer-size",
        "0",
        &layout.display().to_string(),
        &target,
    ];
    SociCli::standalone().unwrap().output(arguments).unwrap();
    stack.reference(&format!("{name}:soci"))
}

/// Pulls with our CLI; returns what it prints.
pub(crate) fn pull(stack: &Stack, reference: &str) -> String {
    let soci = stack.soci(NAMESPACE).unwrap();
    soci.output(["pull", "--plain-http", reference]).unwrap()
}

pub(crate) fn run(stack: &Stack, reference: &str, command: &[&str]) -> String {
    let run = Run::new(reference, "soci").command(command.iter().copied());
    stack.containerd.ctr(NAMESPACE).run_ok(&run).unwrap()
}

/// The FUSE mounts of the daemon's layers.
pub(crate) fn lazy_mounts(stack: &Stack) -> usize {
    let root = stack.daemon.root();
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table
        .lines()
        .filter(|line| {
            line.contains(root.to_str().unwrap()) && line.contains(" - fuse.rawBridge soci ")
        })
        .count()
}
