//! Reads of a healthy image alone, and beside an image whose registry misbehaves in each of the ways
//! that one can.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use soci_testkit::image::large_file_image;
use soci_testkit::proxy::{Fault, Rule};
use soci_testkit::{
    OciImage, Proxy, Registry, SociCli, SociDaemonOptions, Stack, StackOptions, TestRoot, Throttle,
};

use crate::table::{Table, times};

const NAMESPACE: &str = "neighbours";
const CONFIG: &str = "[background_fetch]\ndisable = true\n";
/// Size of the file of the healthy image.
const HEALTHY: u64 = 512 << 20;
/// Size of the file of its neighbour.
const BAD: u64 = 256 << 20;
/// Memory budgets of the daemon: the default, and half of it. With a quarter, layers of such spans are not
/// lazy: a span needs more than a quarter of that.
const BUDGETS: [u64; 2] = [64 << 20, 32 << 20];
/// Distance of two reads: a span.
const STEP: u64 = 4 << 20;
/// Readers of the neighbour's file.
const BAD_READERS: u64 = 32;
/// Readers of the healthy file.
const READERS: u64 = 4;
/// Time for the neighbour's readers to take what they can get.
const HEAD_START: Duration = Duration::from_secs(3);

/// How the neighbour's registry behaves.
#[derive(Debug, Clone, Copy)]
enum Neighbour {
    None,
    Healthy,
    Silent,
    Trickling,
    Throttling,
    Resetting,
    Late,
}

const ALL: [(Neighbour, &str); 7] = [
    (Neighbour::None, "alone"),
    (
        Neighbour::Healthy,
        "beside a healthy one (shares link and cores)",
    ),
    (Neighbour::Silent, "silent: takes requests, never responds"),
    (Neighbour::Trickling, "trickling: 100 bytes a second"),
    (Neighbour::Throttling, "429 to each request"),
    (Neighbour::Resetting, "resets each response after 100 kB"),
    (Neighbour::Late, "first byte after 10 s"),
];

impl Neighbour {
    fn apply(self, proxy: &Proxy) {
        match self {
            Self::None | Self::Healthy => {}
            Self::Silent => proxy.inject(Rule::always(Fault::Hang)),
            Self::Trickling => proxy.throttle(Throttle {
                per_response: Some(100),
                ..Throttle::cloud()
            }),
            Self::Throttling => proxy.inject(Rule::always(Fault::status(429))),
            Self::Resetting => proxy.inject(Rule::always(Fault::ResetAfter(100_000))),
            Self::Late => proxy.throttle(Throttle {
                first_byte: Duration::from_secs(10),
                ..Throttle::cloud()
            }),
        }
    }
}

/// Measures the latency of cold reads of 4 KiB, each of another span.
///
/// # Errors
/// When a part does not start, or a read of the healthy image fails.
pub fn measure() -> Result<Table> {
    let root = TestRoot::new()?;
    let healthy = large_file_image(&root.dir("healthy")?, "healthy", HEALTHY)?;
    let bad = large_file_image(&root.dir("bad")?, "bad", BAD)?;
    let mut table = Table::new(&[
        "cold reads of a healthy image",
        "median",
        "p99",
        "slowest",
        "p99 / alone",
        "target",
    ]);
    for budget in BUDGETS {
        rows(&mut table, budget, &healthy, &bad)?;
    }
    Ok(table)
}

/// Adds a row for each behaviour of the neighbour.
fn rows(table: &mut Table, budget: u64, healthy: &OciImage, bad: &OciImage) -> Result<()> {
    let mut alone = None;
    for (neighbour, name) in ALL {
        let reads = round(healthy, bad, neighbour, budget).with_context(|| name.to_owned())?;
        let at = |part: usize| reads.get(reads.len() * part / 100).or(reads.last());
        let p99 = *at(99).context("no read")?;
        let of = p99.as_secs_f64();
        let first = *alone.get_or_insert(of);
        let milliseconds = |time: Option<&Duration>| {
            time.map_or_else(String::new, |time| format!("{} ms", time.as_millis()))
        };
        table.row([
            format!("budget of {} MiB, {name}", budget >> 20),
            milliseconds(at(50)),
            milliseconds(Some(&p99)),
            milliseconds(reads.last()),
            times(of, first),
            "2 x".to_owned(),
        ]);
    }
    Ok(())
}

/// The readers of the neighbour, ended with it.
struct Readers(Vec<Child>);

impl Drop for Readers {
    fn drop(&mut self) {
        for reader in &mut self.0 {
            // Gone, or waiting for a page: SIGKILL ends both.
            let _ = reader.kill();
            let _ = reader.wait();
        }
    }
}

fn round(
    healthy: &OciImage,
    bad: &OciImage,
    neighbour: Neighbour,
    budget: u64,
) -> Result<Vec<Duration>> {
    let config = format!("{CONFIG}[fetch]\nmemory_budget_bytes = {budget}\n");
    let stack = Stack::start(StackOptions {
        daemon: SociDaemonOptions {
            log_level: "info".to_owned(),
            ..SociDaemonOptions::with_config(&config)
        },
        ..StackOptions::default()
    })?;
    let bad_registry = Registry::start()?;
    let bad_proxy = Proxy::start(bad_registry.address())?;
    let reference = indexed(&stack.registry, &stack.proxy, healthy)?;
    let soci = stack.soci(NAMESPACE)?;
    let beside = !matches!(neighbour, Neighbour::None);
    let mut known = Vec::new();
    let mut readers = Readers(Vec::new());
    if beside {
        let bad_reference = indexed(&bad_registry, &bad_proxy, bad)?;
        soci.output(["pull", "--plain-http", &bad_reference])?;
        let file = large_file(&stack, &known)?;
        bad_proxy.throttle(Throttle::cloud());
        neighbour.apply(&bad_proxy);
        for number in 0..BAD_READERS {
            let reader = Command::new("dd")
                .arg(format!("if={}", file.display()))
                .args(["of=/dev/null", "bs=4096"])
                .arg(format!("skip={}", number * (BAD / BAD_READERS) / 4096))
                .stderr(Stdio::null())
                .spawn()?;
            readers.0.push(reader);
        }
        known.push(file);
    }
    soci.output(["pull", "--plain-http", &reference])?;
    let file = large_file(&stack, &known)?;
    stack.proxy.throttle(Throttle::cloud());
    std::thread::sleep(HEAD_START);
    let mut reads = std::thread::scope(|scope| {
        let all: Vec<_> = (0..READERS)
            .map(|number| {
                scope.spawn({
                    let file = &file;
                    move || scattered_reads(file, number)
                })
            })
            .collect();
        let all = all.into_iter().map(|one| one.join());
        let all = all.map(|one| one.map_err(|_| anyhow::anyhow!("panicked"))?);
        all.collect::<Result<Vec<_>>>()
    })?
    .concat();
    drop(readers);
    reads.sort_unstable();
    Ok(reads)
}

/// Reads one page of each span whose number leaves this rest, in an order that is not sequential.
fn scattered_reads(path: &Path, rest: u64) -> Result<Vec<Duration>> {
    let file = File::open(path)?;
    let mut page = [0; 4096];
    let spans = HEALTHY / STEP / READERS;
    let mut took = Vec::new();
    for number in 0..spans {
        // An odd multiplier visits each once.
        let span = (number * 13 % spans) * READERS + rest;
        let started = Instant::now();
        file.read_exact_at(&mut page, span * STEP + STEP / 2)?;
        took.push(started.elapsed());
    }
    Ok(took)
}

/// The file `data/large` of the lazy layer that was mounted last.
fn large_file(stack: &Stack, known: &[PathBuf]) -> Result<PathBuf> {
    let snapshots = stack.daemon.root().join("snapshotter/snapshots");
    let mut found = std::fs::read_dir(&snapshots)?
        .filter_map(|entry| Some(entry.ok()?.path().join("fs/data/large")))
        .filter(|path| !known.contains(path) && path.exists());
    let file = found.next().context("no layer with data/large")?;
    ensure!(
        found.next().is_none(),
        "more than one layer with data/large"
    );
    Ok(file)
}

fn indexed(registry: &Registry, proxy: &Proxy, image: &OciImage) -> Result<String> {
    let source = image.dir.display().to_string();
    let target = format!("docker://{}", registry.reference("large:soci"));
    SociCli::standalone()?.convert(&[], &source, &target)?;
    Ok(proxy.reference("large:soci"))
}
