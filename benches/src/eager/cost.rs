//! One pull, and what it has cost.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use soci_testkit::{
    Containerd, ContainerdOptions, OciImage, Proxy, Registry, SociCli, SociDaemon,
    SociDaemonOptions, TestRoot, Throttle, daemon_program,
};

use crate::processor_time::processor_time;

const NAMESPACE: &str = "bench";
/// What EKS AMIs ship, but for the keychain.
const CONFIG: &str = "[pull_modes.soci_v1]\nenable = false\n[pull_modes.soci_v2]\nenable = false\n\
     [pull_modes.parallel_pull_unpack]\nenable = true\nmax_concurrent_downloads_per_image = 20\n\
     concurrent_download_chunk_size = \"16mb\"\nmax_concurrent_unpacks_per_image = 12\n\
     discard_unpacked_layers = true\n";

/// What unpacks the image.
#[derive(Debug, Clone, Copy)]
pub(super) enum With<'p> {
    /// containerd; at the end the files are on disk, or not.
    Overlayfs { sync: bool },
    /// The daemon of v0.15.
    Replaced(&'p Path),
    /// Our daemon on so many cores, with this `[layer_store] sync_unpacked`.
    Ours { cores: usize, sync: bool },
}

/// What a pull has cost.
pub(super) struct Cost {
    pub(super) time: Duration,
    /// Processor time of the daemon that unpacks, with its children.
    pub(super) cpu: Duration,
    /// Processor time of the registry and of the throttling proxy, which is in this process.
    pub(super) serving: Duration,
    pub(super) peak: u64,
    /// Bytes of layers that the registry sent.
    pub(super) bytes: u64,
    /// The longest that a layer waited until it was on disk.
    pub(super) disk: Option<Duration>,
}

/// Pulls an image with nothing stored before.
pub(super) fn pull(image: &OciImage, registry: &Registry, with: With<'_>) -> Result<Cost> {
    let proxy = Proxy::start(registry.address())?;
    proxy.throttle(Throttle::cloud());
    let reference = proxy.reference(&format!("eager:{}", image.tag));
    let link = Link {
        proxy: &proxy,
        registry,
        reference: &reference,
    };
    match with {
        With::Overlayfs { sync } => with_overlayfs(&link, sync),
        With::Replaced(program) => with_daemon(
            image,
            &link,
            Daemon {
                program: Some(program.to_owned()),
                more: "",
                pid: |daemon| Ok(daemon.daemon().pid()),
                peak: |daemon| daemon.daemon().peak_memory(),
            },
        ),
        With::Ours { cores, sync } => {
            let scripts = TestRoot::new()?;
            let program = on_cores(&scripts, cores)?;
            let daemon = Daemon {
                program: Some(program),
                more: match sync {
                    true => "",
                    false => "[layer_store]\nsync_unpacked = false\n",
                },
                pid: SociDaemon::server_pid,
                peak: SociDaemon::peak_memory,
            };
            with_daemon(image, &link, daemon)
        }
    }
}

/// The way to an image.
struct Link<'a> {
    proxy: &'a Proxy,
    registry: &'a Registry,
    reference: &'a str,
}

impl Link<'_> {
    /// Processor time that was taken for serving so far.
    fn cpu(&self) -> Result<Duration> {
        let proxy = processor_time(std::process::id())?;
        Ok(proxy.own + cpu(self.registry.daemon().pid())?)
    }
}

/// A script that runs our daemon on some cores.
fn on_cores(folder: &TestRoot, cores: usize) -> Result<PathBuf> {
    let (script, program) = (folder.path().join("daemon"), daemon_program()?);
    let last = cores.saturating_sub(1);
    let text = format!(
        "#!/bin/sh\nexec taskset --cpu-list 0-{last} {} \"$@\"\n",
        program.display()
    );
    std::fs::write(&script, text)?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
    Ok(script)
}

fn with_overlayfs(link: &Link<'_>, sync: bool) -> Result<Cost> {
    let containerd = Containerd::start_in(TestRoot::new()?, &ContainerdOptions::default())?;
    let pid = containerd.daemon().pid();
    settle(containerd.root(), link.registry)?;
    let (before, serving, started) = (cpu(pid)?, link.cpu()?, Instant::now());
    containerd
        .ctr(NAMESPACE)
        .pull(link.reference, "overlayfs")?;
    let pulled = Instant::now();
    if sync {
        write_out(containerd.root())?;
    }
    Ok(Cost {
        time: started.elapsed(),
        cpu: cpu(pid)?.saturating_sub(before),
        serving: link.cpu()?.saturating_sub(serving),
        peak: containerd.daemon().peak_memory()?,
        bytes: link.proxy.stats().blobs().bytes,
        disk: sync.then(|| pulled.elapsed()),
    })
}

struct Daemon {
    program: Option<PathBuf>,
    /// More configuration.
    more: &'static str,
    pid: fn(&SociDaemon) -> Result<u32>,
    peak: fn(&SociDaemon) -> Result<u64>,
}

fn with_daemon(image: &OciImage, link: &Link<'_>, kind: Daemon) -> Result<Cost> {
    let folder = TestRoot::new()?;
    let socket = Containerd::address_in(&folder);
    let config = format!(
        "{CONFIG}{}[content_store]\ntype = \"containerd\"\ncontainerd_address = {:?}\n",
        kind.more,
        socket.display().to_string()
    );
    let daemon = SociDaemon::start(SociDaemonOptions {
        containerd: Some(socket),
        program: kind.program,
        log_level: "info".to_owned(),
        ..SociDaemonOptions::with_config(&config)
    })?;
    let containerd = Containerd::start_in(folder, &ContainerdOptions::with_soci(daemon.socket()))?;
    let pid = (kind.pid)(&daemon)?;
    let soci = SociCli::against(containerd.address(), NAMESPACE)?;
    settle(&daemon.root(), link.registry)?;
    let (before, serving, started) = (cpu(pid)?, link.cpu()?, Instant::now());
    soci.output(["pull", "--plain-http", link.reference])?;
    let time = started.elapsed();
    let log = daemon.log().all().join("\n");
    ensure!(
        log.matches("local-snapshot-prepared").count() >= image.layers.len(),
        "the layers were not pulled by the snapshotter:\n{log}"
    );
    let waits = daemon.json_log();
    let waits = waits.iter().filter_map(|line| line["sync_ms"].as_u64());
    Ok(Cost {
        time,
        cpu: cpu(pid)?.saturating_sub(before),
        serving: link.cpu()?.saturating_sub(serving),
        peak: (kind.peak)(&daemon)?,
        bytes: link.proxy.stats().blobs().bytes,
        disk: waits.max().map(Duration::from_millis),
    })
}

/// Waits until nothing of earlier work is left to be written, and has the kernel forget what it has read, but for
/// the registry's blobs. As long as ext4 finds the inodes of files that were removed within the last minutes in
/// memory, it looks at them one by one for each file that is created (`recently_deleted` in fs/ext4/ialloc.c):
/// the removal of what one pull had made took a fifth of the processor time of the next.
fn settle(folder: &Path, registry: &Registry) -> Result<()> {
    write_out(folder)?;
    soci_testkit::kernel_caches::forget_content()?;
    read_all(&registry.storage())
}

/// Waits until nothing is left to be written to this file system.
fn write_out(folder: &Path) -> Result<()> {
    let synced = std::process::Command::new("sync")
        .arg("--file-system")
        .arg(folder)
        .status()?;
    ensure!(synced.success(), "sync ended with {synced}");
    Ok(())
}

/// Reads all files of a folder.
fn read_all(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            read_all(&entry.path())?;
        } else {
            std::io::copy(
                &mut std::fs::File::open(entry.path())?,
                &mut std::io::sink(),
            )?;
        }
    }
    Ok(())
}

fn cpu(pid: u32) -> Result<Duration> {
    let time = processor_time(pid)?;
    Ok(time.own + time.children)
}
