//! The cost of verifying layers: starts of a stored image whose layers are not verified yet, for which
//! containerd's image store is asked, beside one whose layers are; the verification itself; and reads of a
//! stored layer with and without the check of each file's tar header at its first read.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use soci_testkit::image::busybox_layer;
use soci_testkit::{
    Content, ImageBuilder, Layer, OciImage, Run, Stack, TestRoot, kernel_caches, metrics,
};

use crate::keep::{NAMESPACE, Row, large_file, pull, stack, wait_complete};
use crate::processor_time::processor_time;
use crate::table::{median, megabytes, seconds, times};

/// Size of the large file of each image.
const SIZE: u64 = 256 << 20;
/// Number of small files of the image that is read, and the size of each.
const FILES: usize = 20_000;
const FILE_SIZE: u64 = 4 << 10;
/// Files in a directory.
const FILES_IN_DIRECTORY: usize = 200;
/// Pairs of starts that are compared.
const STARTS: usize = 25;
/// Reads through each daemon.
const READS: usize = 5;
/// The daemons that are read through, and whether they check headers: two of each kind, so that neither
/// kind is the first, and that it shows how much two alike differ.
const CHECKING: [bool; 4] = [true, false, false, true];
/// Time for a layer to be verified.
const PATIENCE: Duration = Duration::from_secs(300);
/// Size of a read.
const BLOCK: usize = 128 << 10;
/// No other work beside what is measured.
const QUIET: &str = "[start_hints]\nenable = false\n[background_fetch]\ndisable = true\n";

/// Measurements of one thing.
#[derive(Default)]
struct Costs {
    times: Vec<Duration>,
    /// Processor time of the server.
    processor: Duration,
}

impl Costs {
    /// All measurements of several.
    fn of<'a>(all: impl Iterator<Item = &'a Self>) -> Self {
        let mut sum = Self::default();
        for costs in all {
            sum.times.extend(&costs.times);
            sum.processor += costs.processor;
        }
        sum
    }

    /// Measures `work` once.
    fn add<T>(&mut self, stack: &Stack, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let (before, began) = (server_time(stack)?, Instant::now());
        let result = work()?;
        self.times.push(began.elapsed());
        self.processor += server_time(stack)?.saturating_sub(before);
        Ok(result)
    }

    fn median(&self) -> Duration {
        median(self.times.iter().copied()).unwrap_or_default()
    }

    fn processor(&self) -> Duration {
        let count = u32::try_from(self.times.len()).unwrap_or(1);
        self.processor.checked_div(count).unwrap_or_default()
    }
}

/// What verifying costs, and what checking headers costs.
///
/// # Errors
/// When a part does not start, or a layer is not verified.
pub fn verify(program: Option<&Path>, config: &str) -> Result<Vec<Row>> {
    let mut rows = starts(program, config)?;
    rows.extend(reads(program, config)?);
    Ok(rows)
}

/// Starts of two images of one kind by turns, after one of them was completed and verified.
fn starts(program: Option<&Path>, config: &str) -> Result<Vec<Row>> {
    let layouts = TestRoot::new()?;
    let [first, second] = [1, 2].map(|seed| {
        let layer = Layer::new().dir("data").file("data/large", large(seed));
        image(&layouts, seed, layer)
    });
    let socket = layouts.path().join("metrics.sock");
    let config = format!("{}{config}{QUIET}", metrics_at(&socket));
    let (stack, references) = stack(program, &config, &[&first?, &second?])?;
    let [unverified, verified] = references.as_slice() else {
        return Ok(Vec::new());
    };
    for reference in &references {
        pull(&stack, reference)?;
        start(&stack, reference)?;
    }
    let (mut filling, mut verifying) = (Costs::default(), Costs::default());
    filling.add(&stack, || fill(&stack, verified))?;
    // The large layer of the other image is not complete.
    verifying.add(&stack, || wait_verified(&stack, &socket, 1))?;

    let (mut asked, mut not_asked) = (Costs::default(), Costs::default());
    // The first of each warms caches.
    for reference in &references {
        start(&stack, reference)?;
    }
    for _ in 0..STARTS {
        asked.add(&stack, || start(&stack, unverified))?;
        not_asked.add(&stack, || start(&stack, verified))?;
    }
    ensure!(
        unverified_layers(&socket)? == 1,
        "both images were verified"
    );
    let title = format!("start of a stored image, not verified / verified, of {STARTS}");
    let once = format!("{} of a layer, once: filling / verifying", megabytes(SIZE));
    let both = |filling: Duration, verifying: Duration| {
        format!("{} / {}", seconds(filling), seconds(verifying))
    };
    let mut rows = Vec::from(compared(&title, &asked, &not_asked));
    rows.extend([
        row(
            &format!("{once}, time"),
            both(filling.median(), verifying.median()),
            "-",
        ),
        row(
            &format!("{once}, processor time of the daemon"),
            both(filling.processor(), verifying.processor()),
            "-",
        ),
    ]);
    Ok(rows)
}

/// Reads of a stored and verified layer through daemons by turns, of which some check headers.
fn reads(program: Option<&Path>, config: &str) -> Result<Vec<Row>> {
    let layouts = TestRoot::new()?;
    let image = image(&layouts, 3, many_files())?;
    let prepare = |(number, checks): (usize, &bool)| -> Result<(Stack, PathBuf)> {
        let socket = layouts.path().join(format!("metrics-{number}.sock"));
        let config = format!(
            "disable_verification = {}\n{}{config}{QUIET}",
            !checks,
            metrics_at(&socket)
        );
        let (stack, references) = stack(program, &config, &[&image])?;
        for reference in &references {
            pull(&stack, reference)?;
            fill(&stack, reference)?;
        }
        wait_verified(&stack, &socket, 0)?;
        let large = large_file(&stack)?;
        Ok((stack, large))
    };
    let stacks = CHECKING.iter().enumerate().map(prepare);
    let stacks: Vec<_> = stacks.collect::<Result<_>>()?;
    let mut costs: [[Costs; CHECKING.len()]; 3] = Default::default();
    let [first, again, whole] = &mut costs;
    for _ in 0..READS {
        let of_daemon = first.iter_mut().zip(again.iter_mut()).zip(whole.iter_mut());
        for (((first, again), whole), (stack, large)) in of_daemon.zip(&stacks) {
            // The next server has not checked any file.
            stack.daemon.upgrade()?;
            stack.wait_for_snapshotter()?;
            let folder = large.parent().context("no folder")?;
            for costs in [first, again] {
                // Also what the daemons have of their files, since that differs: where a header ends
                // with a page, its check drops this page, which reads of content alone keep.
                kernel_caches::forget_content()?;
                let read = costs.add(stack, || each_small(folder, read_file))?;
                ensure!(read == FILES as u64 * FILE_SIZE, "{read} bytes were read");
            }
            kernel_caches::forget_content()?;
            let read = whole.add(stack, || read_file(large))?;
            ensure!(read == SIZE, "{read} bytes were read");
        }
    }
    let reads = READS * CHECKING.len() / 2;
    let titles = [
        format!("first read of {FILES} stored files, headers checked / not, of {reads}"),
        format!("second read of them, from the disk, headers checked / not, of {reads}"),
        format!(
            "read of a stored file of {}, from the disk, headers checked / not, of {reads}",
            megabytes(SIZE)
        ),
    ];
    let mut rows = Vec::new();
    for (title, costs) in titles.iter().zip(&costs) {
        let of_kind = |checks| {
            let daemons = costs.iter().zip(CHECKING);
            Costs::of(daemons.filter_map(|(costs, kind)| (kind == checks).then_some(costs)))
        };
        rows.extend(compared(title, &of_kind(true), &of_kind(false)));
        let each = costs.each_ref().map(|costs| milliseconds(costs.median()));
        rows.push(row(
            "the same of each daemon: checks, does not, does not, checks",
            each.join(", "),
            "-",
        ));
    }
    Ok(rows)
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

/// The rows of two measurements of which the first has more to do.
fn compared(title: &str, more: &Costs, less: &Costs) -> [Row; 2] {
    let of = |more: Duration, less: Duration| {
        let ratio = times(more.as_secs_f64(), less.as_secs_f64());
        format!("{} / {} = {ratio}", milliseconds(more), milliseconds(less))
    };
    [
        row(
            &format!("{title}: median time"),
            of(more.median(), less.median()),
            "1.02 x",
        ),
        row(
            &format!("{title}: processor time of the daemon for each"),
            of(more.processor(), less.processor()),
            "-",
        ),
    ]
}

fn row(title: &str, value: String, target: &str) -> Row {
    [title.to_owned(), value, target.to_owned()]
}

fn large(seed: u64) -> Content {
    Content::Mixed { seed, length: SIZE }
}

/// A layer of many small files and a large one.
fn many_files() -> Layer {
    let mut layer = Layer::new().dir("data").file("data/large", large(3));
    for file in 0..FILES {
        let folder = format!("data/d{}", file / FILES_IN_DIRECTORY);
        if file % FILES_IN_DIRECTORY == 0 {
            layer = layer.dir(&folder);
        }
        let content = Content::Mixed {
            seed: file as u64,
            length: FILE_SIZE,
        };
        layer = layer.file(&format!("{folder}/f{file}"), content);
    }
    layer
}

fn image(layouts: &TestRoot, number: u64, layer: Layer) -> Result<OciImage> {
    ImageBuilder::new()
        .layer(busybox_layer()?)
        .layer(layer)
        .write(&layouts.dir(&format!("image-{number}"))?, "image")
}

/// Starts a container that reads a sixteenth of the large file.
fn start(stack: &Stack, reference: &str) -> Result<()> {
    let read = [
        "/bin/dd",
        "if=/data/large",
        "of=/dev/null",
        "bs=1M",
        "count=16",
    ];
    let run = Run::new(reference, "soci").command(read);
    stack.containerd.ctr(NAMESPACE).run_ok(&run).map(drop)
}

/// Fills an image and waits until all of it is stored.
fn fill(stack: &Stack, reference: &str) -> Result<()> {
    let soci = stack.soci(NAMESPACE)?;
    let daemon = stack.daemon.socket().display().to_string();
    soci.output(["wait", "--snapshotter-address", &daemon, reference])?;
    wait_complete(stack, reference).map(drop)
}

/// Configuration of the daemon's metrics.
fn metrics_at(socket: &Path) -> String {
    let socket = socket.display().to_string();
    format!("metrics_network = \"unix\"\nmetrics_address = {socket:?}\n")
}

/// Waits until so many layers are not verified.
fn wait_verified(stack: &Stack, socket: &Path, left: u64) -> Result<()> {
    let began = Instant::now();
    while unverified_layers(socket)? > left {
        ensure!(began.elapsed() < PATIENCE, "{}", stack.log_tails());
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn unverified_layers(socket: &Path) -> Result<u64> {
    let text = metrics(socket)?;
    let line = text
        .lines()
        .find(|line| line.starts_with("soci_snapshot_unverified_layers "));
    let number = line.and_then(|line| line.rsplit(' ').next());
    Ok(number.context("no metric of unverified layers")?.parse()?)
}

fn server_time(stack: &Stack) -> Result<Duration> {
    Ok(processor_time(stack.daemon.server_pid()?)?.own)
}

/// Does something with each file in the directories of a directory; returns the sum.
fn each_small(folder: &Path, work: impl Fn(&Path) -> Result<u64>) -> Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            for file in std::fs::read_dir(entry.path())? {
                sum += work(&file?.path())?;
            }
        }
    }
    Ok(sum)
}

fn read_file(path: &Path) -> Result<u64> {
    let (mut file, mut block, mut read) = (File::open(path)?, vec![0; BLOCK], 0);
    loop {
        match file.read(&mut block)? {
            0 => return Ok(read),
            bytes => read += bytes as u64,
        }
    }
}
