//! Starts the daemon on a root folder with snapshots and lazy layers, in order and after a crash.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use soci_testkit::process::Signal;
use soci_testkit::{Content, ImageBuilder, Layer, SociCli, Stack, StackOptions, TestRoot};

use crate::table::{Table, median, megabytes};

/// How many layers the image has.
pub const LAYERS: usize = 40;
/// How many snapshots there are in all.
pub const SNAPSHOTS: usize = 200;
const FILES_IN_A_LAYER: usize = 250;
const NAMESPACE: &str = "restart";
const CONFIG: &str = "[background_fetch]\ndisable = true\n";
/// After this long nothing of a start is going on any more.
const SETTLED: Duration = Duration::from_secs(3);

/// Measures starts, and the memory of a daemon that has nothing to do.
///
/// # Errors
/// When a part does not start, or the image is not lazy.
pub fn measure(runs: u32) -> Result<Table> {
    let mut stack = Stack::start(StackOptions {
        daemon: soci_testkit::SociDaemonOptions {
            log_level: "info".to_owned(),
            ..soci_testkit::SociDaemonOptions::with_config(CONFIG)
        },
        ..StackOptions::default()
    })?;
    std::thread::sleep(SETTLED);
    let idle_empty = stack.daemon.memory()?;
    fill(&stack)?;
    // What is younger than the sync interval of the layer store may get lost.
    std::thread::sleep(SETTLED);

    let mut in_order = Vec::new();
    let mut crashed = Vec::new();
    for _ in 0..runs {
        stack.daemon.terminate()?;
        in_order.push(start(&mut stack)?);
        stack.daemon.kill()?;
        crashed.push(start(&mut stack)?);
    }
    std::thread::sleep(SETTLED);
    let gaps = gaps(&stack, runs)?;
    let what = format!("{SNAPSHOTS} snapshots, {LAYERS} lazy layers");
    let mut table = Table::new(&["daemon", "median", "target"]);
    for (how, times) in [("SIGTERM", in_order), ("SIGKILL", crashed)] {
        let time = median(times).context("no run")?;
        let cells = [format!("start after {how}, {what}"), format!("{time:.3?}")];
        table.row(cells.into_iter().chain(["1 s".to_owned()]));
    }
    for (what, times, target) in [
        (
            "SIGKILL of the server until a request is answered",
            gaps.first,
            "200 ms",
        ),
        ("the same, until every layer has answered one", gaps.all, ""),
    ] {
        let time = median(times).context("no run")?;
        let what = format!("{what}, {LAYERS} lazy layers");
        table.row([what, format!("{time:.3?}"), target.to_owned()]);
    }
    for (how, bytes) in [
        ("idle, nothing pulled".to_owned(), idle_empty),
        (format!("idle, {what}"), stack.daemon.memory()?),
        (
            format!("peak of that start, {what}"),
            stack.daemon.peak_memory()?,
        ),
    ] {
        let target = if how.contains("nothing") { "15 MB" } else { "" };
        table.row([how, megabytes(bytes), target.to_owned()]);
    }
    Ok(table)
}

/// For how long requests wait when the server is killed.
struct Gaps {
    /// Until the first of all layers answers.
    first: Vec<Duration>,
    /// Until each has.
    all: Vec<Duration>,
}

/// Kills the server and asks every layer something that the kernel does not know.
fn gaps(stack: &Stack, runs: u32) -> Result<Gaps> {
    let snapshots = stack.daemon.root().join("snapshotter/snapshots");
    let mut layers = Vec::new();
    for entry in std::fs::read_dir(&snapshots).context("list the snapshots")? {
        let root = entry?.path().join("fs");
        if read_noise(&root)? {
            layers.push(root);
        }
    }
    let mut gaps = Gaps {
        first: Vec::new(),
        all: Vec::new(),
    };
    for run in 0..runs {
        let server = stack.daemon.signal_server(Signal::KILL)?;
        let began = Instant::now();
        // A name that is looked up for the first time, so that the kernel has no answer.
        let name = format!("missing-{run}");
        let waited: Vec<Duration> = std::thread::scope(|scope| {
            let ask = |root: &std::path::PathBuf| {
                let path = root.join(&name);
                move || {
                    let missing = std::fs::symlink_metadata(path).is_err();
                    (missing, began.elapsed())
                }
            };
            let asked: Vec<_> = layers.iter().map(|root| scope.spawn(ask(root))).collect();
            let waited = asked.into_iter().map(|thread| match thread.join() {
                Ok((true, waited)) => Ok(waited),
                _ => anyhow::bail!("found a snapshot that does not exist"),
            });
            waited.collect::<Result<_>>()
        })?;
        gaps.first.extend(waited.iter().min());
        gaps.all.extend(waited.iter().max());
        stack.daemon.wait_for_successor(server)?;
        std::thread::sleep(SETTLED);
    }
    Ok(gaps)
}

fn start(stack: &mut Stack) -> Result<Duration> {
    let began = Instant::now();
    stack.daemon.start_again()?;
    Ok(began.elapsed())
}

/// Pulls the image, reads all of it, and makes the other snapshots.
fn fill(stack: &Stack) -> Result<()> {
    let layout = TestRoot::new()?;
    let mut builder = ImageBuilder::new();
    for index in 0..LAYERS {
        let folder = format!("layer-{index}");
        let mut layer = Layer::new().dir(&folder);
        for file in 0..FILES_IN_A_LAYER {
            layer = layer.text(&format!("{folder}/{file}"), "some text\n");
        }
        let noise = Content::Noise {
            seed: index as u64,
            length: 1 << 20,
        };
        builder = builder.layer(layer.file(&format!("{folder}/noise"), noise));
    }
    builder.write(layout.path(), "many")?;
    let target = stack.registry.docker_reference("many:soci");
    let source = layout.path().display().to_string();
    SociCli::standalone()?.convert(&["--min-layer-size", "0"], &source, &target)?;
    let reference = stack.reference("many:soci");
    stack
        .soci(NAMESPACE)?
        .output(["pull", "--plain-http", &reference])?;

    let snapshots = stack.daemon.root().join("snapshotter/snapshots");
    let mut lazy = 0;
    for entry in std::fs::read_dir(&snapshots).context("list the snapshots")? {
        lazy += usize::from(read_noise(&entry?.path().join("fs"))?);
    }
    ensure!(lazy == LAYERS, "{lazy} of {LAYERS} layers are lazy");
    let ctr = stack.containerd.ctr(NAMESPACE);
    for index in lazy..SNAPSHOTS {
        let key = format!("container-{index}");
        ctr.output(["snapshots", "--snapshotter", "soci", "prepare", &key])?;
    }
    Ok(())
}

/// Reads the file of noise of a layer; false if there is none.
fn read_noise(root: &Path) -> Result<bool> {
    for entry in std::fs::read_dir(root).with_context(|| format!("list {}", root.display()))? {
        let file = entry?.path().join("noise");
        if file.exists() {
            std::fs::read(&file).with_context(|| format!("read {}", file.display()))?;
            return Ok(true);
        }
    }
    Ok(false)
}
