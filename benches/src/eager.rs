//! Whole pulls of images without an index: with overlayfs, with the program that we replace where its
//! binary is given, and with ours in the configuration of EKS AMIs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use soci_testkit::image::torch_image;
use soci_testkit::{
    Containerd, ContainerdOptions, Content, ImageBuilder, Layer, OciImage, Proxy, Registry,
    SociCli, SociDaemon, SociDaemonOptions, TestRoot, Throttle,
};

use crate::Table;
use crate::table::{megabytes, seconds, times};

const NAMESPACE: &str = "bench";
/// Bytes per second of the profile cloud.
const LINK: f64 = 250_000_000.0;
/// What EKS AMIs ship, but for the keychain.
const CONFIG: &str = "[pull_modes.soci_v1]\nenable = false\n[pull_modes.soci_v2]\nenable = false\n\
     [pull_modes.parallel_pull_unpack]\nenable = true\nmax_concurrent_downloads_per_image = 20\n\
     concurrent_download_chunk_size = \"16mb\"\nmax_concurrent_unpacks_per_image = 12\n\
     discard_unpacked_layers = true\n";

/// An image that is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// 20 layers of 50 MB each.
    Layers,
    /// A layer of 100,000 files of 4 KiB.
    Files,
    /// The PyTorch image, built from PyPI on first use.
    Torch,
}

/// What a pull has cost.
struct Cost {
    time: Duration,
    cpu: Duration,
    peak: u64,
    bytes: u64,
}

impl Work {
    /// All that need nothing from the internet.
    pub const LOCAL: [Self; 2] = [Self::Layers, Self::Files];

    fn image(self, root: &TestRoot) -> Result<OciImage> {
        let dir = root.dir("layout")?;
        match self {
            Self::Layers => {
                let mut image = ImageBuilder::new();
                for seed in 0..20 {
                    // Compresses to half.
                    let length = 90_000_000;
                    let content = Content::Mixed { seed, length };
                    image = image.layer(Layer::new().file(&format!("data/{seed}"), content));
                }
                image.write(&dir, "layers")
            }
            Self::Files => {
                let mut layer = Layer::new();
                for seed in 0..100_000_u64 {
                    let length = 4096;
                    let path = format!("data/{}/{}/{seed}", seed % 50, seed % 400);
                    layer = layer.file(&path, Content::Mixed { seed, length });
                }
                ImageBuilder::new().layer(layer).write(&dir, "files")
            }
            Self::Torch => torch_image(),
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Layers => "20 layers of 50 MB",
            Self::Files => "100,000 files of 4 KiB",
            Self::Torch => "the PyTorch image",
        }
    }
}

/// Returns the table of one image. `replaced` is the daemon of soci-snapshotter v0.15.
///
/// # Errors
/// When a part does not start, or a pull fails.
pub fn table(work: Work, replaced: Option<&Path>) -> Result<Table> {
    let root = TestRoot::new()?;
    let image = work.image(&root)?;
    let compressed: u64 = image.layers.iter().map(|layer| layer.size).sum();
    let title = format!("{}, {} packed", work.name(), megabytes(compressed));
    let heads = [
        "time",
        "of overlayfs",
        "CPU of it",
        "peak memory",
        "from the registry",
    ];
    let heads: Vec<&str> = std::iter::once(title.as_str()).chain(heads).collect();
    let mut table = Table::new(&heads);
    #[expect(clippy::cast_precision_loss, reason = "a table for people")]
    let link = compressed as f64 / LINK;
    table.row(["bound: the link (250 MB/s)", &format!("{link:.2} s")]);
    table.row(["bound: gzip -dc on one core", &seconds(inflate(&image)?)]);

    let overlayfs = pull(&image, None)?;
    let mut row = |what: &str, cost: &Cost| {
        table.row([
            what.to_owned(),
            seconds(cost.time),
            times(cost.time.as_secs_f64(), overlayfs.time.as_secs_f64()),
            seconds(cost.cpu),
            megabytes(cost.peak),
            megabytes(cost.bytes),
        ]);
    };
    row("overlayfs (containerd)", &overlayfs);
    if let Some(program) = replaced {
        row(
            "soci-snapshotter v0.15",
            &pull(&image, Some(Some(program)))?,
        );
    }
    row("ours", &pull(&image, Some(None))?);
    Ok(table)
}

/// How long gzip takes for the layers, one after another.
fn inflate(image: &OciImage) -> Result<Duration> {
    let started = Instant::now();
    for layer in &image.layers {
        let path = soci_testkit::image::layout::blob_path(&image.dir, layer.digest);
        let output = std::fs::File::options().write(true).open("/dev/null")?;
        let ended = Command::new("gzip")
            .args(["-d", "-c"])
            .arg(path)
            .stdout(output)
            .status()?;
        ensure!(ended.success(), "gzip ended with {ended}");
    }
    Ok(started.elapsed())
}

/// Pulls an image, with a snapshotter (`Some(None)`: ours) or with overlayfs.
fn pull(image: &OciImage, snapshotter: Option<Option<&Path>>) -> Result<Cost> {
    let registry = Registry::start()?;
    registry.push_layout(&image.dir, &image.tag, "eager")?;
    let proxy = Proxy::start(registry.address())?;
    proxy.throttle(Throttle::cloud());
    let reference = proxy.reference(&format!("eager:{}", image.tag));
    let folder = TestRoot::new()?;
    let Some(program) = snapshotter else {
        let containerd = Containerd::start_in(folder, &ContainerdOptions::default())?;
        let pid = containerd.daemon().pid();
        let (before, started) = (cpu(pid)?, Instant::now());
        containerd.ctr(NAMESPACE).pull(&reference, "overlayfs")?;
        return Ok(Cost {
            time: started.elapsed(),
            cpu: cpu(pid)?.saturating_sub(before),
            peak: containerd.daemon().peak_memory()?,
            bytes: proxy.stats().blobs().bytes,
        });
    };
    let socket = Containerd::address_in(&folder);
    let store = format!(
        "{CONFIG}[content_store]\ntype = \"containerd\"\ncontainerd_address = {:?}\n",
        socket.display().to_string()
    );
    let daemon = SociDaemon::start(SociDaemonOptions {
        containerd: Some(socket),
        program: program.map(PathBuf::from),
        log_level: "info".to_owned(),
        ..SociDaemonOptions::with_config(&store)
    })?;
    let containerd = Containerd::start_in(folder, &ContainerdOptions::with_soci(daemon.socket()))?;
    let pid = match program {
        Some(_) => daemon.daemon().pid(),
        None => daemon.server_pid()?,
    };
    let soci = SociCli::against(containerd.address(), NAMESPACE)?;
    let (before, started) = (cpu(pid)?, Instant::now());
    soci.output(["pull", "--plain-http", &reference])?;
    let time = started.elapsed();
    let log = daemon.log().all().join("\n");
    ensure!(
        log.matches("local-snapshot-prepared").count() >= image.layers.len(),
        "the layers were not pulled by the snapshotter:\n{log}"
    );
    Ok(Cost {
        time,
        cpu: cpu(pid)?.saturating_sub(before),
        peak: match program {
            Some(_) => daemon.daemon().peak_memory()?,
            None => daemon.peak_memory()?,
        },
        bytes: proxy.stats().blobs().bytes,
    })
}

/// The processor time of a process and of its children that have ended.
fn cpu(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("no name in stat")?;
    // utime, stime, cutime and cstime are the fields 14 to 17 (proc_pid_stat(5)), in ticks.
    let ticks = fields.split(' ').skip(11).take(4);
    let ticks: u64 = ticks.filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks.saturating_mul(10)))
}
