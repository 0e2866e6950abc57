//! `soci profile run`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use indicatif::BinaryBytes;
use rustix::mount::{MountFlags, UnmountFlags};
use soci_fetch::ReadLog;
use soci_oci::Reference;
use soci_profile::{BLOCK, Blocks, LayerReads, Profile, ProfiledLayer, Recording};
use soci_ztoc::SpanTable;
use tokio::time::Instant;

use crate::container::{Ended, Process, Runc, runtime_spec};
use crate::duration;
use crate::global::Global;
use crate::interrupt::{interrupted, limited};
use crate::output;
use crate::profiles;
use crate::remote::{MountedImage, RemoteArgs, RemoteImage};

/// Time between two looks at what was read.
const LOOK: Duration = Duration::from_millis(200);

/// Run a command in an image and record what it reads, without containerd and the daemon
///
/// The image at the registry is mounted and its command, or the one after --, is run in it by runc, in the network of
/// this machine; changes to its files are dropped. The recording ends with the command, or when it has read nothing new
/// for a while: then it is stopped. Needs root.
#[derive(Debug, Args)]
#[command(after_help = "\
As with other container engines, the command replaces the image's Cmd and follows its Entrypoint.

Examples:
  soci profile run -o app.profile registry.example/app:1-soci -- --version
  soci profile run -o app.profile --entrypoint python3 registry.example/app:1-soci -- -c 'import torch'
  soci convert --profile app.profile docker://registry.example/app:1 docker://registry.example/app:1-soci")]
pub(crate) struct Run {
    /// The image
    #[arg(value_name = "REF")]
    reference: Reference,

    /// The command, in place of the image's
    #[arg(value_name = "CMD", last = true)]
    command: Vec<String>,

    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,

    /// Run this in place of the image's Entrypoint (empty: only the command)
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,

    /// Set a variable (can be given several times)
    #[arg(short, long = "env", value_name = "NAME=VALUE")]
    environment: Vec<String>,

    /// Stop a command that has read nothing new for this long
    #[arg(long, value_name = "TIME", value_parser = duration::parse, default_value = "10s")]
    quiet: Duration,

    /// The container runtime
    #[arg(long, value_name = "PROGRAM", default_value = "runc")]
    runtime: PathBuf,

    /// Keep what is fetched in a new folder below this one (default: the system's temporary folder)
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
}

impl Run {
    pub(super) async fn run(self, global: &Global) -> anyhow::Result<()> {
        if !rustix::process::geteuid().is_root() {
            bail!("mounting needs root");
        }
        let (image, mut recorder) = limited(global.timeout, Box::pin(self.mount())).await?;
        let executed = Box::pin(self.execute(&image, &mut recorder));
        let ended = limited(global.timeout, executed).await;
        let recording = recorder.recording();
        let closed = recorder.close().await;
        let ended = ended?;
        closed?;
        if let Ended::Exited(status) = &ended
            && !status.success()
        {
            bail!("no profile is written: the command failed ({status})");
        }
        if recording.spans.is_empty() {
            bail!("no profile is written: the command has read nothing of the image");
        }
        let how = match ended {
            Ended::Exited(_) => "",
            Ended::Stopped => "; the command was stopped when it read nothing new",
        };
        let blocks: u64 = recording
            .blocks
            .iter()
            .map(|(_, blocks)| blocks.count())
            .sum();
        let spans = recording.spans.len();
        let mut profile = Profile::new(image.descriptor.digest, self.reference.to_string());
        profile.add(recording);
        profiles::write(&profile, &self.output)?;
        output::note(&format!(
            "recorded {spans} spans, {} of files read{how}",
            BinaryBytes(blocks.saturating_mul(BLOCK))
        ));
        Ok(())
    }

    async fn mount(&self) -> anyhow::Result<(RemoteImage, Recorder)> {
        let image = RemoteImage::open(&self.remote, &self.reference).await?;
        let index = image.any_index(self.remote.soci_index_digest).await;
        if index.is_none() {
            output::warning(&format!(
                "{} has no SOCI index: its layers are downloaded whole",
                self.reference
            ));
        }
        let mounted = MountedImage::open(&image, index.as_ref(), self.cache.as_deref()).await?;
        Ok((image, Recorder::new(mounted)?))
    }

    async fn execute(&self, image: &RemoteImage, recorder: &mut Recorder) -> anyhow::Result<Ended> {
        let (_, config) = image.config().await?;
        let process = Process {
            command: self.command.clone(),
            entrypoint: self.entrypoint.clone(),
            environment: self.environment.clone(),
        };
        let root = recorder.bundle.join("rootfs");
        let spec = runtime_spec(&config, &root, &process)?;
        let path = recorder.bundle.join("config.json");
        let written = std::fs::write(&path, serde_json::to_vec(&spec)?);
        written.with_context(|| format!("cannot write {}", path.display()))?;
        let mut container = Runc::start(&self.runtime, &recorder.bundle)?;
        let mut interrupted = std::pin::pin!(interrupted());
        loop {
            tokio::select! {
                ended = container.wait(LOOK) => {
                    if let Some(ended) = ended? {
                        return Ok(ended);
                    }
                }
                signal = &mut interrupted => {
                    container.stop().await?;
                    return Err(signal);
                }
            }
            if recorder.is_quiet(self.quiet) {
                return container.stop().await;
            }
        }
    }
}

/// A mounted image whose reads are recorded.
struct Recorder {
    /// The folder of the container. It is in a file system in memory: changes to files are kept there, and overlay
    /// cannot keep them in another overlay.
    bundle: PathBuf,
    layers: Vec<(ProfiledLayer, SpanTable, std::sync::Arc<ReadLog>)>,
    began: Instant,
    mounted: Option<MountedImage>,
}

impl Recorder {
    fn new(mut mounted: MountedImage) -> anyhow::Result<Self> {
        let bundle = mounted.state().join("container");
        let folder = |path: &Path| {
            let made = std::fs::create_dir(path);
            made.with_context(|| format!("cannot make {}", path.display()))
        };
        folder(&bundle)?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount("tmpfs", &bundle, "tmpfs", flags, None)
            .with_context(|| format!("cannot mount a tmpfs on {}", bundle.display()))?;
        let layers = mounted.data().map(|(key, data)| {
            let layer = ProfiledLayer {
                layer: key.layer,
                ztoc: key.ztoc,
            };
            (layer, data.stored().spans().clone(), data.log_reads())
        });
        let layers = layers.collect();
        let recorder = |mounted| Self {
            bundle: bundle.clone(),
            layers,
            began: Instant::now(),
            mounted: Some(mounted),
        };
        let prepared = (|| {
            for name in ["rootfs", "upper", "work"] {
                folder(&bundle.join(name))?;
            }
            mounted.overlay(&bundle.join("rootfs"), Some(&bundle))
        })();
        // Dropping it takes everything down.
        let recorder = recorder(mounted);
        prepared?;
        Ok(recorder)
    }

    /// Whether nothing new was read for a while, after something was.
    fn is_quiet(&self, time: Duration) -> bool {
        let reads = self.layers.iter().flat_map(|(_, _, log)| log.first_reads());
        let last = reads.map(|(_, at)| at).max();
        last.is_some_and(|last| Instant::now() >= last + time)
    }

    fn recording(&self) -> Recording {
        let reads = self.layers.iter().map(|(layer, table, log)| {
            let spans = log.first_reads().into_iter();
            LayerReads {
                layer: *layer,
                table: table.clone(),
                spans: spans
                    .map(|(span, at)| (span, at.saturating_duration_since(self.began)))
                    .collect(),
                blocks: Blocks::new(log.blocks()),
            }
        });
        Recording::of_reads(reads.collect())
    }

    async fn close(mut self) -> anyhow::Result<()> {
        let Some(mut mounted) = self.mounted.take() else {
            return Ok(());
        };
        let first = mounted.unmount_overlay();
        self.unmount();
        first.and(mounted.end().await)
    }

    fn unmount(&self) {
        if let Err(error) = rustix::mount::unmount(&self.bundle, UnmountFlags::DETACH) {
            tracing::debug!(%error, "cannot unmount the folder of the container");
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if let Some(mut mounted) = self.mounted.take() {
            if let Err(error) = mounted.unmount_overlay() {
                output::warning(&output::reason(&error));
            }
            self.unmount();
        }
    }
}
