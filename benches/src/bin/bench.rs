//! `make bench`: prints what lazy loading costs, overlayfs beside it in the same run. Nothing is
//! asserted: seconds vary between machines, ratios in one run hold. Needs root; build for release.

#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for people"
)]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use soci_benches::table::{median, megabytes, rate, seconds, times};
use soci_benches::{Start, Table, start_lazily, start_with_overlayfs};
use soci_testkit::image::{large_file_image, layout, python_image, torch_image};
use soci_testkit::{
    Containerd, ContainerdOptions, OciImage, Proxy, Registry, Run, SociCli, Stack, StackOptions,
    TestRoot, Throttle,
};

/// Long enough that starting and stopping do not count.
const LARGE_FILE: u64 = 512 << 20;
/// The uncompressed size in bytes of the image that the command line tool works on.
const CLI_IMAGE: u64 = 1 << 30;
/// Makes a zTOC of some 36 MB of that image, for the windows in it: 32 KiB a span.
const SMALL_SPANS: &str = "950000";
const NAMESPACE: &str = "bench";

/// Prints benchmarks of building, reading and starting.
#[derive(Debug, Parser)]
struct Options {
    /// Which ones; by default all.
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// How often each start is repeated; medians are printed.
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// Start and index an image with PyTorch and CUDA instead: 4 GB, built from PyPI on first use.
    #[arg(long)]
    torch: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The proxy that the others measure through.
    Proxy,
    /// Building zTOCs.
    Ztoc,
    /// Reading a large file.
    Read,
    /// Starting the demo image.
    Start,
    /// The command line tool.
    Cli,
    /// Reading an image beside one whose registry misbehaves.
    Neighbours,
    /// Starting the daemon on what is there, and its memory when idle.
    Restart,
}

fn main() -> ExitCode {
    let options = Options::parse();
    soci_benches::run("bench", || bench(&options))
}

fn bench(options: &Options) -> Result<()> {
    if cfg!(debug_assertions) {
        eprintln!("bench: built for debugging: the figures say nothing, use --release");
    }
    let wanted = |part| options.parts.is_empty() || options.parts.contains(&part);
    if wanted(Part::Proxy) {
        proxy()?;
    }
    if wanted(Part::Ztoc) {
        ztoc()?;
    }
    if wanted(Part::Read) {
        read()?;
    }
    if wanted(Part::Start) {
        start(options)?;
    }
    if wanted(Part::Cli) {
        println!("{}", cli(options)?);
    }
    if wanted(Part::Neighbours) {
        println!("{}", soci_benches::neighbours::measure()?);
    }
    if wanted(Part::Restart) {
        println!("{}", soci_benches::restart::measure(options.runs)?);
    }
    Ok(())
}

/// Whether the instrument itself is fast and exact enough.
fn proxy() -> Result<()> {
    let root = TestRoot::new()?;
    let image = large_file_image(root.path(), "x", LARGE_FILE)?;
    let blob = image.layers.last().context("the image has no layer")?;
    let registry = Registry::start()?;
    registry.push_layout(root.path(), "x", "large")?;
    let proxy = Proxy::start(registry.address())?;
    let path = format!("/v2/large/blobs/{}", blob.digest);
    let get = |address, parallel: u64| -> Result<Duration> {
        let started = Instant::now();
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..parallel)
                .map(|_| scope.spawn(|| drained(address, &path, blob.size)))
                .collect();
            all.into_iter()
                .try_for_each(|one| one.join().map_err(|_| anyhow::anyhow!("panicked"))?)
        })?;
        Ok(started.elapsed())
    };
    let mut table = Table::new(&["proxy, one blob", "set", "measured"]);
    let direct = get(registry.address(), 1)?;
    table.row(["registry alone", "-", &rate(blob.size, direct)]);
    table.row(["unlimited", "-", &rate(blob.size, get(proxy.address(), 1)?)]);
    proxy.throttle(Throttle::cloud());
    table.row([
        "cloud, 1 response",
        "80 MB/s",
        &rate(blob.size, get(proxy.address(), 1)?),
    ]);
    table.row([
        "cloud, 6 responses",
        "250 MB/s",
        &rate(6 * blob.size, get(proxy.address(), 6)?),
    ]);
    println!("{table}");
    Ok(())
}

/// Reads a response to its end, keeping nothing.
fn drained(address: std::net::SocketAddr, path: &str, size: u64) -> Result<()> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address)?;
    stream.write_all(
        format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes(),
    )?;
    let mut buffer = vec![0; 1 << 18];
    let mut seen = 0;
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            count => seen += count as u64,
        }
    }
    ensure!(seen > size, "{seen} bytes instead of {size} and a head");
    Ok(())
}

fn ztoc() -> Result<()> {
    let image = python_image()?;
    let mut table = Table::new(&[
        "zTOC building",
        "compressed",
        "tar",
        "1 thread",
        "of tar",
        "all cores",
        "of tar",
    ]);
    for layer in &image.layers {
        let blob = std::fs::read(layout::blob_path(&image.dir, layer.digest))?;
        let (gzip, options) = (
            soci_ztoc::Compression::Gzip,
            soci_ztoc::BuildOptions::default(),
        );
        let started = Instant::now();
        let mut builder = soci_ztoc::Builder::new(gzip, options.clone())?;
        builder.write(&blob)?;
        let built = builder.finish()?;
        let alone = started.elapsed();
        let started = Instant::now();
        let together = soci_ztoc::build(blob.as_slice(), gzip, options)?;
        let elapsed = started.elapsed();
        ensure!(together.ztoc == built.ztoc, "the two zTOCs differ");
        let tar = built.ztoc.uncompressed_archive_size;
        let name: String = layer.digest.hex().chars().take(12).collect();
        table.row([
            &name,
            &megabytes(layer.size),
            &megabytes(tar),
            &seconds(alone),
            &rate(tar, alone),
            &seconds(elapsed),
            &rate(tar, elapsed),
        ]);
    }
    println!("{table}");
    Ok(())
}

/// A large file read once from front to back, inside a container.
fn read() -> Result<()> {
    let root = TestRoot::new()?;
    let image = large_file_image(root.path(), "large", LARGE_FILE)?;
    let title = format!("cold read of {}", megabytes(LARGE_FILE));
    let mut table = Table::new(&[&title, "time", "rate", "daemon peak memory"]);
    for (name, throttle) in [
        ("cloud", Throttle::cloud()),
        ("unlimited", Throttle::unlimited()),
    ] {
        let stack = Stack::start(StackOptions::default())?;
        let reference = indexed(&stack, &image, "large")?;
        stack.proxy.throttle(throttle);
        let soci = stack.soci(NAMESPACE)?;
        soci.output(["pull", "--plain-http", &reference])?;
        let mut row = |name: String, time: Duration| -> Result<()> {
            let memory = megabytes(stack.daemon.peak_memory()?);
            table.row([name, seconds(time), rate(LARGE_FILE, time), memory]);
            Ok(())
        };
        let first =
            timed_read(&stack.containerd, &reference, "soci").with_context(|| stack.log_tails())?;
        row(format!("lazy, {name}"), first)?;
        soci_testkit::kernel_caches::forget_content()?;
        let again = timed_read(&stack.containerd, &reference, "soci")?;
        row("  again, page cache dropped".to_owned(), again)?;
    }
    let registry = Registry::start()?;
    registry.push_layout(root.path(), "large", "large")?;
    let containerd = Containerd::start(&ContainerdOptions::default())?;
    let reference = registry.reference("large:large");
    containerd.ctr(NAMESPACE).pull(&reference, "overlayfs")?;
    soci_testkit::kernel_caches::forget_content()?;
    let local = timed_read(&containerd, &reference, "overlayfs")?;
    table.row([
        "overlayfs, all local, page cache dropped",
        &seconds(local),
        &rate(LARGE_FILE, local),
        "-",
    ]);
    println!("{table}");
    Ok(())
}

/// The time from before the first read to after the last, as the container's shell takes it.
fn timed_read(containerd: &Containerd, reference: &str, snapshotter: &str) -> Result<Duration> {
    let script = "time dd if=/data/large of=/dev/null bs=1M";
    let script = format!("{{ {script}; }} 2>&1");
    let run = Run::new(reference, snapshotter).command(["/bin/sh", "-c", &script]);
    let output = containerd.ctr(NAMESPACE).run_ok(&run)?;
    let all = format!("{}+0 records in", LARGE_FILE >> 20);
    ensure!(output.contains(&all), "dd read too little: {output}");
    // busybox: `real    0m 6.51s`
    let time = output
        .lines()
        .find_map(|line| line.strip_prefix("real"))
        .and_then(|text| text.trim().strip_suffix('s')?.split_once("m "))
        .with_context(|| format!("no time in: {output}"))?;
    let (minutes, seconds): (f64, f64) = (time.0.parse()?, time.1.trim().parse()?);
    Ok(Duration::from_secs_f64(minutes * 60.0 + seconds))
}

fn cli(options: &Options) -> Result<Table> {
    if options.torch {
        return soci_benches::cli::table(&torch_image()?, &[]);
    }
    let root = TestRoot::new()?;
    let image = large_file_image(root.path(), "x", CLI_IMAGE)?;
    soci_benches::cli::table(&image, &["--span-size", SMALL_SPANS])
}

/// An image from nothing to its end.
fn start(options: &Options) -> Result<()> {
    let (name, image) = if options.torch {
        ("PyTorch image", torch_image()?)
    } else {
        ("demo image", python_image()?)
    };
    let (mut lazy, mut eager, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    let mut idle = 0;
    for _ in 0..options.runs.max(1) {
        let stack = Stack::start(StackOptions::default())?;
        idle = stack.daemon.peak_memory()?;
        let reference = indexed(&stack, &image, "python")?;
        stack.proxy.throttle(Throttle::cloud());
        lazy.push(start_lazily(&stack, &reference, &[]).with_context(|| stack.log_tails())?);
        memory.push(stack.daemon.peak_memory()?);
        eager.push(start_with_overlayfs(&stack.proxy, &reference, &[])?);
    }
    let title = format!("{name}, cloud, median of {}", lazy.len());
    let mut table = Table::new(&[&title, "lazy", "overlayfs", "overlayfs / lazy"]);
    type Part = fn(&Start) -> Duration;
    let parts: [(&str, Part); 4] = [
        ("pull", |start| start.pull),
        ("container to first output", |start| start.first_output),
        ("pull to first output", Start::until_output),
        ("pull to end of container", Start::total),
    ];
    for (name, part) in parts {
        let a = median(lazy.iter().map(part)).unwrap_or_default();
        let b = median(eager.iter().map(part)).unwrap_or_default();
        table.row([
            name,
            &seconds(a),
            &seconds(b),
            &times(b.as_secs_f64(), a.as_secs_f64()),
        ]);
    }
    let network = |starts: &[Start]| median(starts.iter().map(|start| start.network)).unwrap_or(0);
    table.row([
        "over the network",
        &megabytes(network(&lazy)),
        &megabytes(network(&eager)),
        "",
    ]);
    let peak = median(memory).unwrap_or(0);
    table.row(["daemon: peak memory", &megabytes(peak), "-", ""]);
    table.row([
        "daemon: peak memory before the pull",
        &megabytes(idle),
        "-",
        "",
    ]);
    println!("{table}");
    Ok(())
}

/// Indexes an image into the stack's registry; returns its name seen through the proxy.
fn indexed(stack: &Stack, image: &OciImage, name: &str) -> Result<String> {
    let source = image.dir.display().to_string();
    let target = format!(
        "docker://{}",
        stack.registry.reference(&format!("{name}:soci"))
    );
    SociCli::standalone()?.convert(&[], &source, &target)?;
    Ok(stack.reference(&format!("{name}:soci")))
}
