//! Programs that list the extended attributes of each file, in a lazy image and with overlayfs.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use soci_testkit::{
    Ctr, ImageBuilder, Layer, OciImage, SociCli, SociDaemonOptions, Stack, StackOptions, TestRoot,
    output_of,
};

use super::{NAMESPACE, ON_DEMAND};
use crate::table::{Table, median, times};

/// Directories, and the files of each: 28,500 in all.
const DIRECTORIES: u64 = 3_000;
const FILES: u64 = 9;
const SINGLE_FILES: u64 = 1_500;

/// A program, and its arguments before the folder.
const PROGRAMS: [(&str, &[&str]); 4] = [
    (
        "getfattr -R",
        &["getfattr", "-R", "-P", "-h", "-d", "-m", "-"],
    ),
    ("tar --xattrs", &["tar", "--xattrs", "--create", "--file=-"]),
    ("tar, without attributes", &["tar", "--create", "--file=-"]),
    ("find with stat", &["find", "-P"]),
];

/// Measures walks of a view of the image, without what the kernel keeps of it and with it.
///
/// # Errors
/// When a part does not start, a program fails, or its output differs between the two.
pub fn measure(runs: u32) -> Result<Table> {
    let root = TestRoot::new()?;
    let image = image(&root)?;
    let stack = Stack::start(StackOptions {
        daemon: SociDaemonOptions {
            log_level: "info".to_owned(),
            ..SociDaemonOptions::with_config(ON_DEMAND)
        },
        ..StackOptions::default()
    })?;
    stack.push(&image.dir, "plain", "files")?;
    let soci = SociCli::standalone()?;
    let plain = stack.registry.docker_reference("files:plain");
    let indexed = stack.registry.docker_reference("files:soci");
    soci.convert(&["--min-layer-size", "0"], &plain, &indexed)?;
    let reference = stack.reference("files:soci");
    let soci = stack.soci(NAMESPACE)?;
    soci.output(["pull", "--plain-http", &reference])?;
    super::lazy_data(&stack.daemon.root())?;
    let plain = stack.registry.reference("files:plain");
    let ctr = stack.containerd.ctr("plain");
    ctr.pull(&plain, "overlayfs")?;
    let lazy = View::mount(&root, stack.containerd.ctr(NAMESPACE), "soci")?;
    let local = View::mount(&root, ctr, "overlayfs")?;

    let files = DIRECTORIES * FILES + SINGLE_FILES;
    let title = format!("{files} files, medians of {runs}");
    let mut table = Table::new(&[&title, "lazy", "overlayfs", "lazy / overlayfs", "target"]);
    for (name, program) in PROGRAMS {
        let [ours, theirs] = [&lazy, &local].map(|view| output(program, &view.at));
        ensure!(ours? == theirs?, "{name}: the outputs differ");
        for cold in [true, false] {
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            for _ in 0..runs.max(1) {
                ours.push(timed(program, &lazy.at, cold)?);
                theirs.push(timed(program, &local.at, cold)?);
            }
            let [ours, theirs] = [ours, theirs].map(|all| median(all).unwrap_or_default());
            let state = if cold { "no dentries" } else { "again" };
            let target = if name.contains("attr") && !name.contains("without") {
                "1.3 x"
            } else {
                ""
            };
            table.row([
                format!("{name}, {state}"),
                format!("{ours:.3?}"),
                format!("{theirs:.3?}"),
                times(ours.as_secs_f64(), theirs.as_secs_f64()),
                target.to_owned(),
            ]);
        }
    }
    Ok(table)
}

/// Two layers with files of some bytes and without attributes, as most are.
fn image(root: &TestRoot) -> Result<OciImage> {
    let mut base = Layer::new().dir("data");
    for directory in 0..DIRECTORIES {
        let at = format!("data/d{}/d{directory}", directory / 60);
        for file in 0..FILES {
            base = base.text(&format!("{at}/file-{file}"), "some text\n");
        }
    }
    let mut above = Layer::new().dir("usr");
    for file in 0..SINGLE_FILES {
        above = above.text(&format!("usr/share/file-{file}"), "more text\n");
    }
    let layout = root.dir("files")?;
    let builder = ImageBuilder::new().layer(base).layer(above);
    builder.write(&layout, "plain")
}

/// A mounted view of the topmost layer.
struct View {
    at: PathBuf,
}

impl View {
    fn mount(root: &TestRoot, ctr: Ctr, snapshotter: &str) -> Result<Self> {
        let at = root.dir(snapshotter)?;
        let snapshots = ["snapshots", "--snapshotter", snapshotter];
        let listed = ctr.output(snapshots.iter().chain(&["ls"]))?;
        let columns = listed
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        // The one with a parent is the upper of the two.
        let top = columns
            .filter_map(|columns| match columns[..] {
                [name, _, "Committed"] => Some(name.to_owned()),
                _ => None,
            })
            .next()
            .context("no layer above another")?;
        let target = at.display().to_string();
        let view = ["view", "--target", &target, "walked", &top];
        let mount = ctr.output(snapshots.iter().chain(&view))?;
        output_of(Command::new("sh").args(["-c", &mount]))?;
        Ok(Self { at })
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // The folder that it is in unmounts it otherwise.
        let _ = rustix::mount::unmount(&self.at, rustix::mount::UnmountFlags::DETACH);
    }
}

fn command(program: &[&str], at: &Path) -> Command {
    let (name, arguments) = program.split_first().unwrap_or((&"true", &[]));
    let mut command = Command::new(name);
    command.args(arguments).current_dir(at);
    match *name {
        "find" => command.args([".", "-printf", "%p %m %U:%G\\n"]),
        _ => command.arg("."),
    };
    command
}

/// The lines of a program's output in order, or the length of an archive: directories without an entry are as old
/// as their unpacking.
fn output(program: &[&str], at: &Path) -> Result<Vec<String>> {
    let output = output_of(command(program, at))?;
    if program.first() == Some(&"tar") {
        return Ok(vec![output.len().to_string()]);
    }
    let mut lines: Vec<String> = output.lines().map(str::to_owned).collect();
    lines.sort_unstable();
    Ok(lines)
}

fn timed(program: &[&str], at: &Path, cold: bool) -> Result<Duration> {
    if cold {
        // Dentries and inodes only; data stays.
        soci_testkit::kernel_caches::forget_unused()?;
    }
    let mut command = command(program, at);
    let started = Instant::now();
    // To a pipe: tar reads nothing for /dev/null.
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {program:?}"))?;
    let mut output = child.stdout.take().context("no output")?;
    std::io::copy(&mut output, &mut std::io::sink())?;
    let status = child.wait()?;
    let took = started.elapsed();
    ensure!(status.success(), "{program:?} ended with {status}");
    Ok(took)
}
