//! What comes after a lazy start: the time until the image is complete, what filling costs readers of
//! another image, the requests of a start of a stored image after a reboot, the memory of many layers, and the
//! time until the space of a removed layer is free.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use soci_testkit::image::large_file_image;
use soci_testkit::{
    Content, ImageBuilder, Layer, LayerCompression, OciImage, Run, SociCli, SociDaemonOptions,
    Stack, StackOptions, TestRoot, Throttle,
};

use crate::table::{Table, megabytes, seconds, times};

pub(crate) const NAMESPACE: &str = "keep";
/// Time for an image to become complete.
const PATIENCE: Duration = Duration::from_secs(900);
/// Time between two looks at the image that is filled.
const LOOK: Duration = Duration::from_millis(100);
/// Size of the file of the image that is read while another one is filled.
const READ: u64 = 512 << 20;
/// Distance of two reads: a span.
const STEP: u64 = 4 << 20;
/// Fewest reads.
const FEWEST: u64 = 30;
/// Pauses between reads, by turns: filling begins in the longest of them.
const PAUSES: [u64; 5] = [150, 1700, 400, 2500, 900];

/// Time after which what removed images took has been returned to the system.
const RETURN: Duration = Duration::from_secs(12);

/// Images of the row about memory, the layers of each, and the files of each layer.
const IMAGES: usize = 30;
const LAYERS: usize = 15;
const FILES: usize = 3000;
/// Files in a directory.
const FILES_IN_DIRECTORY: usize = 100;

/// A row of the table: what it is, its value, the target.
pub type Row = [String; 3];

/// Prepares the table to which rows are added.
#[must_use]
pub fn table(title: &str) -> Table {
    Table::new(&[title, "measured", "target"])
}

pub(crate) fn stack(
    program: Option<&Path>,
    config: &str,
    images: &[&OciImage],
) -> Result<(Stack, Vec<String>)> {
    let stack = Stack::start(StackOptions {
        daemon: SociDaemonOptions {
            log_level: "info".to_owned(),
            program: program.map(Path::to_owned),
            ..SociDaemonOptions::with_config(config)
        },
        ..StackOptions::default()
    })?;
    let mut references = Vec::new();
    for (number, image) in images.iter().enumerate() {
        let (name, source) = (format!("app{number}:soci"), image.dir.display().to_string());
        let target = format!("docker://{}", stack.registry.reference(&name));
        SociCli::standalone()?.output(["convert", "--standalone", &source, &target])?;
        references.push(stack.reference(&name));
    }
    Ok((stack, references))
}

pub(crate) fn pull(stack: &Stack, reference: &str) -> Result<()> {
    let soci = stack.soci(NAMESPACE)?;
    soci.output(["pull", "--plain-http", reference]).map(drop)
}

fn run(stack: &Stack, reference: &str) -> Result<()> {
    let run = Run::new(reference, "soci");
    stack.containerd.ctr(NAMESPACE).run_ok(&run).map(drop)
}

/// Compressed bytes of an image's lazy layers that are stored, and their sum.
fn stored(stack: &Stack, reference: &str) -> Result<(u64, u64)> {
    let socket = stack.daemon.socket().display().to_string();
    let arguments = ["status", "--snapshotter-address", &socket, "--json"];
    let status: Value = serde_json::from_str(&SociCli::standalone()?.output(arguments)?)?;
    let images = status["images"].as_array().context("no images")?.iter();
    let layers = images
        .filter(|image| image["reference"] == reference)
        .filter_map(|image| image["layers"].as_array())
        .flatten()
        .filter(|layer| layer["state"] == "lazy");
    let (mut stored, mut size) = (0, 0);
    for layer in layers {
        stored += layer["fetchedBytes"].as_u64().unwrap_or_default();
        size += layer["sizeBytes"].as_u64().unwrap_or_default();
    }
    Ok((stored, size))
}

/// Waits until an image is complete; returns its size in compressed bytes.
pub(crate) fn wait_complete(stack: &Stack, reference: &str) -> Result<u64> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (stored, size) = stored(stack, reference)?;
        if size > 0 && stored >= size {
            return Ok(size);
        }
        ensure!(
            Instant::now() < deadline,
            "{stored} of {size} bytes are stored after {PATIENCE:?}:\n{}",
            stack.log_tails()
        );
        std::thread::sleep(LOOK);
    }
}

/// From the end of a container to the image being complete, and the start after a reboot.
///
/// # Errors
/// When a part does not start, or the image does not become complete.
pub fn fill(image: &OciImage, program: Option<&Path>, config: &str) -> Result<Vec<Row>> {
    let (mut stack, references) = stack(program, config, &[image])?;
    let [reference] = references.as_slice() else {
        return Ok(Vec::new());
    };
    stack.proxy.throttle(Throttle::cloud());
    pull(&stack, reference)?;
    run(&stack, reference)?;
    let (read, _) = stored(&stack, reference)?;
    let ended = Instant::now();
    let size = wait_complete(&stack, reference)?;
    let took = ended.elapsed();
    let link =
        Duration::from_secs_f64(crate::table::approximate(size.saturating_sub(read)) / 250e6);
    let title = format!(
        "last demand read -> complete, {} of {} missing (link alone {})",
        megabytes(size.saturating_sub(read)),
        megabytes(size),
        seconds(link)
    );
    let mut rows = vec![[title, seconds(took), "45 s for 4.2 GB".to_owned()]];
    // Spans become durable within a second or two.
    std::thread::sleep(Duration::from_secs(3));
    ensure!(
        stack.daemon.interrupt()?.success(),
        "the daemon did not end well"
    );
    stack.proxy.reset_stats();
    stack.daemon.start_again()?;
    stack.wait_for_snapshotter()?;
    run(&stack, reference)?;
    let requests = stack.proxy.stats().total().requests;
    rows.push([
        "requests when the stored image starts after a reboot".to_owned(),
        requests.to_string(),
        "0".to_owned(),
    ]);
    Ok(rows)
}

/// Cold reads of another image alone and while an image is filled.
///
/// # Errors
/// When a part does not start, or a read fails.
pub fn neighbour(image: &OciImage, program: Option<&Path>, config: &str) -> Result<Vec<Row>> {
    let root = TestRoot::new()?;
    let other = large_file_image(&root.dir("other")?, "other", READ)?;
    let off = format!("{config}[background_fetch]\ndisable = true\n");
    let alone = round(None, &other, program, &off, FEWEST)?;
    let beside = round(Some(image), &other, program, config, FEWEST)?;
    let at = |reads: &[Duration], part: usize| -> Result<Duration> {
        let read = reads.get(reads.len() * part / 100).or(reads.last());
        read.copied().context("no read")
    };
    let milliseconds = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1e3);
    let mut rows = Vec::new();
    for (name, part, target) in [("median", 50, "-"), ("p99", 99, "1.2 x")] {
        let (first, second) = (at(&alone, part)?, at(&beside, part)?);
        let ratio = times(second.as_secs_f64(), first.as_secs_f64());
        rows.push([
            format!(
                "demand {name} of another container while filling ({} reads)",
                beside.len()
            ),
            format!(
                "{} / {} = {ratio}",
                milliseconds(second),
                milliseconds(first)
            ),
            target.to_owned(),
        ]);
    }
    Ok(rows)
}

/// Reads a page of another span of `other` from time to time, at least so often and as long as
/// `filled`, if there is one, is being filled.
fn round(
    filled: Option<&OciImage>,
    other: &OciImage,
    program: Option<&Path>,
    config: &str,
    fewest: u64,
) -> Result<Vec<Duration>> {
    let images: Vec<_> = [other].into_iter().chain(filled).collect();
    let (stack, references) = stack(program, config, &images)?;
    stack.proxy.throttle(Throttle::cloud());
    let (first, rest) = references.split_first().context("no image")?;
    pull(&stack, first)?;
    let file = File::open(large_file(&stack)?)?;
    for reference in rest {
        pull(&stack, reference)?;
        run(&stack, reference)?;
    }
    let mut page = [0; 4096];
    let mut took = Vec::new();
    let spans = READ / STEP;
    for number in 0..spans {
        let pause = PAUSES.get(usize::try_from(number)? % PAUSES.len());
        std::thread::sleep(Duration::from_millis(pause.copied().unwrap_or_default()));
        let complete = rest
            .iter()
            .all(|reference| stored(&stack, reference).is_ok_and(|(stored, size)| stored >= size));
        if number >= fewest && complete {
            break;
        }
        // An odd multiplier visits each once.
        let span = number * 13 % spans;
        let started = Instant::now();
        file.read_exact_at(&mut page, span * STEP + STEP / 2)?;
        took.push(started.elapsed());
    }
    took.sort_unstable();
    Ok(took)
}

/// The file `data/large` of a mounted layer.
pub(crate) fn large_file(stack: &Stack) -> Result<PathBuf> {
    let snapshots = stack.daemon.root().join("snapshotter/snapshots");
    let mut found = std::fs::read_dir(&snapshots)?
        .filter_map(|entry| Some(entry.ok()?.path().join("fs/data/large")))
        .filter(|path| path.exists());
    found.next().context("no layer with data/large")
}

/// The anonymous memory of the daemon with 450 lazy layers of 3,000 files, each of another content.
///
/// # Errors
/// When a part does not start, or not all layers are lazy.
pub fn memory(program: Option<&Path>, config: &str) -> Result<Vec<Row>> {
    let off = format!("{config}[background_fetch]\ndisable = true\n");
    let (stack, _) = stack(program, &off, &[])?;
    let alone = stack.daemon.anonymous_memory()?;
    let mut names = 0;
    for image in 0..IMAGES {
        let layout = TestRoot::new()?;
        let mut builder = ImageBuilder::new();
        for layer in 0..LAYERS {
            let (layer, bytes) = many_files(image * LAYERS + layer);
            names += bytes;
            builder = builder.layer(layer);
        }
        builder.write(layout.path(), "image")?;
        let name = format!("layers{image}:soci");
        let source = layout.path().display().to_string();
        let target = stack.registry.docker_reference(&name);
        SociCli::standalone()?.convert(&["--min-layer-size", "0"], &source, &target)?;
        pull(&stack, &stack.reference(&name))?;
    }
    let layers = soci_testkit::process::lazy_mounts_below(&stack.daemon.root())?;
    ensure!(layers == IMAGES * LAYERS, "{layers} lazy layers");
    let pulled = stack.daemon.anonymous_memory()?;
    std::thread::sleep(RETURN);
    let returned = stack.daemon.anonymous_memory()?;
    stack.daemon.upgrade()?;
    stack.wait_for_snapshotter()?;
    std::thread::sleep(RETURN);
    let adopted = stack.daemon.anonymous_memory()?;
    let ctr = stack.containerd.ctr(NAMESPACE);
    for image in 0..IMAGES {
        let reference = stack.reference(&format!("layers{image}:soci"));
        ctr.output(["images", "rm", "--sync", &reference])?;
    }
    let left = || soci_testkit::process::lazy_mounts_below(&stack.daemon.root());
    let deadline = Instant::now() + PATIENCE;
    while left()? > 0 {
        ensure!(
            Instant::now() < deadline,
            "{} lazy layers are left",
            left()?
        );
        std::thread::sleep(LOOK);
    }
    std::thread::sleep(RETURN);
    let removed = stack.daemon.anonymous_memory()?;
    let row = |what: &str, bytes: u64| {
        let what = format!(
            "{layers} lazy layers of {FILES} files ({} of names), {what}: anonymous memory",
            megabytes(names)
        );
        [what, megabytes(bytes), "120 MB".to_owned()]
    };
    let alone = [
        "nothing pulled: anonymous memory".to_owned(),
        megabytes(alone),
        "-".to_owned(),
    ];
    Ok(vec![
        alone,
        row("pulled", pulled),
        row("a few seconds later", returned),
        row("adopted by the next server", adopted),
        [
            "all removed: anonymous memory".to_owned(),
            megabytes(removed),
            "-".to_owned(),
        ],
    ])
}

/// From the removal of an image in containerd, whose one large layer is stored, until its space is free,
/// by the blocks of the layer store and by the free space of the disk.
///
/// # Errors
/// When a part does not start, the layer is not filled, or its space does not become free.
pub fn removal(bytes: u64, program: Option<&Path>, config: &str) -> Result<Vec<Row>> {
    let layout = TestRoot::new()?;
    let data = Layer::new().file(
        "data",
        Content::Noise {
            seed: 7,
            length: bytes,
        },
    );
    let image = ImageBuilder::new()
        .layer_with(data, LayerCompression::Plain)
        .write(layout.path(), "image")?;
    let (stack, references) = stack(program, config, &[&image])?;
    drop(layout);
    let [reference] = references.as_slice() else {
        return Ok(Vec::new());
    };
    pull(&stack, reference)?;
    wait_complete(&stack, reference)?;
    let layers = stack.daemon.root().join("soci/layers");
    let free = || rustix::fs::statvfs(&layers).map(|disk| disk.f_bfree * disk.f_frsize);
    let (stored, before) = (allocated(&layers), free()?);
    ensure!(stored >= bytes, "only {stored} bytes are stored");
    let ctr = stack.containerd.ctr(NAMESPACE);
    let started = Instant::now();
    ctr.output(["images", "rm", "--sync", reference])?;
    let answered = started.elapsed();
    // Other programs write to the disk as well.
    while allocated(&layers) > bytes / 100 || free()? < before + bytes / 100 * 95 {
        ensure!(
            started.elapsed() < PATIENCE,
            "{} of {stored} bytes are left:\n{}",
            allocated(&layers),
            stack.log_tails()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    let free = started.elapsed();
    let title = format!("layer of {} removed", megabytes(bytes));
    Ok(vec![
        [
            format!("{title}: containerd's answer"),
            seconds(answered),
            "-".to_owned(),
        ],
        [
            format!("{title}: space free, from the request on"),
            seconds(free),
            "2 s for 4 GB".to_owned(),
        ],
    ])
}

/// Allocated bytes below a directory; 0 for what is being removed.
fn allocated(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let below: u64 = entries.map(|entry| allocated(&entry.path())).sum();
    below + std::fs::symlink_metadata(path).map_or(0, |file| file.blocks() * 512)
}

/// A layer of many files, and the bytes of their names.
fn many_files(number: usize) -> (Layer, u64) {
    let packages = "usr/lib/python3/dist-packages";
    let (mut layer, mut bytes) = (Layer::new(), 0);
    for file in 0..FILES {
        let folder = format!("{packages}/package-{number}-{}", file / FILES_IN_DIRECTORY);
        if file % FILES_IN_DIRECTORY == 0 {
            layer = layer.dir(&folder);
        }
        let name = format!("module_{number}_{file}.py");
        bytes += name.len() as u64;
        let content = Content::Bytes(Vec::new());
        layer = layer.file(&format!("{folder}/{name}"), content);
    }
    (layer, bytes)
}
