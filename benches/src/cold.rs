//! Cold starts of one image through one throttled registry: with overlayfs, and lazily with what
//! the daemon knows of earlier starts.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use soci_oci::Digest;
use soci_testkit::process::processes_below;
use soci_testkit::proxy::PathStats;
use soci_testkit::{
    Containerd, ContainerdOptions, OciImage, Proxy, Registry, Run, SociCli, SociDaemon,
    SociDaemonOptions, TestRoot, Throttle, http_request,
};

/// The containerd namespace that everything is started in.
const NAMESPACE: &str = "cold";
const NAME: &str = "app:soci";
/// Background filling would be counted as fetched for the start.
const CONFIG: &str = "[background_fetch]\ndisable = true\n";
/// Time for a start to become quiet and be recorded.
const RECORDED_WITHIN: Duration = Duration::from_secs(120);
/// Requests in flight, and bytes of each, of downloads beside a start: as in a cold start of the PyTorch
/// image with nothing known.
const IN_FLIGHT: u32 = 7;
const RANGE: u64 = 2_250_000;
const RECORDED: &str = "recorded start-up profile";

/// A registry with one image, and the proxy that it is pulled through.
pub struct Lab {
    proxy: Proxy,
    registry: Registry,
    layers: Vec<(Digest, u64)>,
}

/// The files of the start-up profiles that a daemon has recorded.
#[derive(Debug, Clone, Default)]
pub struct Recorded(Vec<(PathBuf, Vec<u8>)>);

/// What a cold start cost.
#[derive(Debug, Clone, Default)]
pub struct ColdStart {
    /// Time of the pull.
    pub pull: Duration,
    /// Time from the start of the container to its end.
    pub run: Duration,
    /// Bytes of layers that were fetched.
    pub layers: u64,
    /// Bytes of everything else: indexes, manifests, zTOCs.
    pub rest: u64,
    /// Number of requests for layers.
    pub requests: u64,
    /// Largest number of requests in flight.
    pub in_flight: u64,
    /// Compressed bytes of spans by the priority with which they were fetched, if the daemon reports it.
    pub by_priority: Vec<(String, u64)>,
    /// Bytes of layers that were fetched and not read, if the daemon reports what was read.
    pub waste: Option<u64>,
    /// Processor time of the daemon.
    pub cpu: Option<Duration>,
    /// Peak memory of the daemon's processes in bytes.
    pub memory: Option<u64>,
    /// The same container again with all of it stored and the page cache dropped.
    pub again: Option<Duration>,
}

/// What the image of a lab does while another one starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beside {
    /// Nothing: it is not on the node.
    Nothing,
    /// Containers of it start, one after another, with all that they read stored: what they cost is
    /// what the programs themselves compute.
    StoredStarts,
    /// The same, and its layers are downloaded by plain requests, of this many bytes a second in all, that
    /// are thrown away: what link, registry and proxy take in addition.
    StoredStartsAndDownloads(u64),
    /// Its first container starts, with nothing stored.
    ColdStart,
}

impl ColdStart {
    /// Time from the beginning of the pull to the end of the container.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.pull + self.run
    }
}

impl Lab {
    /// Indexes an image into a registry of its own.
    ///
    /// # Errors
    /// When a program is missing or fails.
    pub fn new(image: &OciImage) -> Result<Self> {
        let registry = Registry::start()?;
        let proxy = Proxy::start(registry.address())?;
        let lab = Self {
            proxy,
            registry,
            layers: image
                .layers
                .iter()
                .map(|layer| (layer.digest, layer.size))
                .collect(),
        };
        lab.add(NAME, image)?;
        Ok(lab)
    }

    /// The registry behind the proxy.
    #[must_use]
    pub const fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Sets the speed of the registry.
    pub fn throttle(&self, throttle: Throttle) {
        self.proxy.throttle(throttle);
    }

    /// Starts the image with overlayfs, in a containerd of its own.
    ///
    /// # Errors
    /// When a program is missing or fails.
    pub fn overlayfs(&self, command: &[String], again: bool) -> Result<ColdStart> {
        let containerd = Containerd::start(&ContainerdOptions::default())?;
        let ctr = containerd.ctr(NAMESPACE);
        let reference = self.proxy.reference(NAME);
        let run = Run::new(&reference, "overlayfs").command(command);
        let mut start = self.measure(|| ctr.pull(&reference, "overlayfs"), || ctr.run(&run))?;
        if again {
            start.again = Some(run_again(&containerd, &run)?);
        }
        Ok(start)
    }

    /// Starts the image lazily with a new daemon, which knows `recorded` of earlier starts. Returns
    /// also what it has recorded of this one.
    ///
    /// # Errors
    /// When a program is missing or fails.
    pub fn lazily(
        &self,
        program: Option<&Path>,
        config: &str,
        recorded: &Recorded,
        command: &[String],
        again: bool,
    ) -> Result<(ColdStart, Recorded)> {
        let lazily = Lazily::start(program, config, recorded)?;
        let (daemon, containerd) = (&lazily.daemon, &lazily.containerd);
        let profiles = lazily.profiles();
        let reference = self.proxy.reference(NAME);
        let run = Run::new(&reference, "soci").command(command);
        let pull = || lazily.pull(&reference);
        let measured = self.measure(pull, || containerd.ctr(NAMESPACE).run(&run));
        let mut start = measured.with_context(|| daemon.log().tail(40))?;
        (start.cpu, start.memory) = costs(daemon);
        start.by_priority = by_priority(&soci_testkit::metrics(&lazily.metrics)?);
        let read = read_bytes(daemon);
        start.waste = read.map(|read| start.layers.saturating_sub(read));
        let mut new = Recorded::default();
        for entry in std::fs::read_dir(&profiles).into_iter().flatten().flatten() {
            let name = PathBuf::from(entry.file_name());
            if entry.path().is_file() {
                new.0.push((name, std::fs::read(entry.path())?));
            }
        }
        if again {
            start.again = Some(run_again(containerd, &run)?);
        }
        Ok((start, new))
    }

    /// Adds another image to the registry.
    ///
    /// # Errors
    /// When a program is missing or fails.
    pub fn add(&self, name: &str, image: &OciImage) -> Result<()> {
        let source = image.dir.display().to_string();
        let target = self.registry.docker_reference(name);
        SociCli::standalone()?.convert(&[], &source, &target)?;
        Ok(())
    }

    /// Starts an image that was added, with a new daemon, while the image of the lab does what is
    /// said. Returns the time from the beginning of the pull to the end of the container, and how many
    /// bytes of layers of the image of the lab came in a second of it.
    ///
    /// # Errors
    /// When a program is missing or fails, or the image of the lab has started before the other.
    pub fn neighbour(&self, name: &str, config: &str, beside: Beside) -> Result<(Duration, u64)> {
        let lazily = Lazily::start(None, config, &Recorded::default())?;
        let start = |reference: &str| {
            let ran = lazily
                .containerd
                .ctr(NAMESPACE)
                .run(&Run::new(reference, "soci"))?;
            ensure!(ran.status.success(), "the container failed: {}", ran.stderr);
            anyhow::Ok(Instant::now())
        };
        let own = self.proxy.reference(NAME);
        if beside != Beside::Nothing {
            lazily.pull(&own)?;
        }
        let rate = match beside {
            Beside::StoredStartsAndDownloads(rate) => rate,
            _ => 0,
        };
        if !matches!(beside, Beside::Nothing | Beside::ColdStart) {
            start(&own)?;
        }
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let others = || loop {
                let ended = start(&own)?;
                if beside == Beside::ColdStart || over.load(Ordering::Relaxed) {
                    return anyhow::Ok(ended);
                }
            };
            let other = (beside != Beside::Nothing).then(|| scope.spawn(others));
            let over = &over;
            let downloads: Vec<_> = (0..if rate > 0 { IN_FLIGHT } else { 0 })
                .map(|first| scope.spawn(move || self.download(first, rate, over)))
                .collect();
            self.proxy.reset_stats();
            let reference = self.proxy.reference(name);
            let began = Instant::now();
            let ended = lazily.pull(&reference).and_then(|()| start(&reference));
            over.store(true, Ordering::Relaxed);
            let took = ended? - began;
            let milliseconds = u64::try_from(took.as_millis())?.max(1);
            let rate = self.layers_fetched().bytes * 1000 / milliseconds;
            for download in downloads {
                let result = download.join();
                result.map_err(|_| anyhow::anyhow!("a thread panicked"))??;
            }
            if let Some(other) = other {
                let other = other
                    .join()
                    .map_err(|_| anyhow::anyhow!("a thread panicked"))??;
                ensure!(other > began + took, "the other image had started before");
            }
            Ok((took, rate))
        })
    }

    /// Downloads ranges of the largest layer until it is over: every one of [`IN_FLIGHT`], from `first` on, at
    /// a share of `rate` bytes a second.
    fn download(&self, first: u32, rate: u64, over: &AtomicBool) -> Result<()> {
        let largest = self.layers.iter().max_by_key(|(_, size)| *size);
        let (digest, size) = largest.context("the image has no layers")?;
        let name = NAME.split(':').next().unwrap_or(NAME);
        let path = format!("/v2/{name}/blobs/{digest}");
        let together = u64::from(IN_FLIGHT) * RANGE;
        let round = Duration::from_secs(1) * u32::try_from(together)? / u32::try_from(rate)?;
        let mut at = u64::from(first) * RANGE;
        let mut next = Instant::now() + round * first / IN_FLIGHT;
        while !over.load(Ordering::Relaxed) {
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
            let range = format!("bytes={}-{}", at % size, (at % size + RANGE).min(*size) - 1);
            let fields = [("Range", range.as_str())];
            let response = http_request(self.proxy.address(), "GET", &path, &fields, &[])?;
            ensure!(response.status == 206, "{path}: {}", response.status);
            (at, next) = (at + together, next + round);
        }
        Ok(())
    }

    /// What was requested of the image's layers.
    fn layers_fetched(&self) -> PathStats {
        let ends = self.layers.iter();
        let ends: Vec<_> = ends.map(|(digest, _)| format!("/blobs/{digest}")).collect();
        let of_layer = |path: &str| ends.iter().any(|end| path.ends_with(end));
        self.proxy.stats().of(|record| of_layer(&record.path))
    }

    fn measure(
        &self,
        pull: impl FnOnce() -> Result<()>,
        run: impl FnOnce() -> Result<soci_testkit::RunOutput>,
    ) -> Result<ColdStart> {
        self.proxy.reset_stats();
        let started = Instant::now();
        pull()?;
        let pulled = started.elapsed();
        let run = run()?;
        ensure!(
            run.status.success(),
            "the container ended with {}:\n{}{}",
            run.status,
            run.stdout,
            run.stderr
        );
        let stats = self.proxy.stats();
        let layers = self.layers_fetched();
        Ok(ColdStart {
            pull: pulled,
            run: run.elapsed,
            layers: layers.bytes,
            rest: stats.total().bytes.saturating_sub(layers.bytes),
            requests: layers.requests,
            in_flight: stats.peak_in_flight,
            ..ColdStart::default()
        })
    }
}

/// A daemon, and a containerd that uses it.
struct Lazily {
    daemon: SociDaemon,
    containerd: Containerd,
    /// The socket of its metrics.
    metrics: PathBuf,
}

impl Lazily {
    fn start(program: Option<&Path>, config: &str, recorded: &Recorded) -> Result<Self> {
        let folder = TestRoot::new()?;
        let metrics = folder.path().join("metrics");
        let address = format!(
            "metrics_network = 'unix'\nmetrics_address = '{}'\n",
            metrics.display()
        );
        let daemon = SociDaemon::start(SociDaemonOptions {
            config: format!("{address}{CONFIG}{config}"),
            containerd: Some(Containerd::address_in(&folder)),
            log_level: "info".to_owned(),
            program: program.map(Path::to_owned),
            ..SociDaemonOptions::default()
        })?;
        let options = ContainerdOptions::with_soci(daemon.socket());
        let lazily = Self {
            containerd: Containerd::start_in(folder, &options)?,
            daemon,
            metrics,
        };
        let profiles = lazily.profiles();
        for (name, content) in &recorded.0 {
            std::fs::create_dir_all(&profiles).context("make the folder of profiles")?;
            std::fs::write(profiles.join(name), content).context("write a profile")?;
        }
        Ok(lazily)
    }

    /// The folder of the profiles of starts.
    fn profiles(&self) -> PathBuf {
        self.daemon.root().join("soci/profiles")
    }

    fn pull(&self, reference: &str) -> Result<()> {
        let soci = SociCli::against(self.containerd.address(), NAMESPACE)?;
        soci.output(["pull", "--plain-http", "--snapshotter", "soci", reference])
            .map(drop)
    }
}

fn run_again(containerd: &Containerd, run: &Run) -> Result<Duration> {
    soci_testkit::kernel_caches::forget_content()?;
    let output = containerd.ctr(NAMESPACE).run(run)?;
    ensure!(
        output.status.success(),
        "the container failed when started again"
    );
    Ok(output.elapsed)
}

/// Waits until the start was recorded; returns the compressed size of the spans that were read. Not
/// every daemon records.
fn read_bytes(daemon: &SociDaemon) -> Option<u64> {
    let deadline = Instant::now() + RECORDED_WITHIN;
    let started = Instant::now();
    loop {
        for line in daemon.json_log() {
            let message = line.get("msg").or_else(|| line.get("message"));
            if message.and_then(|text| text.as_str()) == Some(RECORDED) {
                return line.get("read_bytes").and_then(serde_json::Value::as_u64);
            }
        }
        let records = daemon.root().join("soci/profiles").exists();
        if Instant::now() > deadline || (!records && started.elapsed().as_secs() > 15) {
            return None;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The values of `soci_fetch_bytes_total`, by priority.
fn by_priority(metrics: &str) -> Vec<(String, u64)> {
    let series = |line: &str| {
        let rest = line.strip_prefix("soci_fetch_bytes_total{priority=\"")?;
        let (priority, value) = rest.split_once("\"} ")?;
        Some((priority.to_owned(), value.trim().parse().ok()?))
    };
    metrics.lines().filter_map(series).collect()
}

/// Processor time and peak memory of all processes of a daemon.
fn costs(daemon: &SociDaemon) -> (Option<Duration>, Option<u64>) {
    let root = daemon.root();
    let processes = processes_below(root.parent().unwrap_or(&root));
    let sum = |of: fn(i32) -> Option<u64>| -> Option<u64> {
        let values = processes.iter().filter_map(|pid| of(*pid));
        values.reduce(u64::saturating_add)
    };
    let milliseconds = sum(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // After the name: state, then utime and stime as the 12th and 13th field, in 1/100 s.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = |at: usize| fields.get(at)?.parse::<u64>().ok();
        Some((ticks(11)? + ticks(12)?) * 10)
    });
    let memory = sum(|pid| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))?;
        let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
        Some(kib << 10)
    });
    (milliseconds.map(Duration::from_millis), memory)
}
