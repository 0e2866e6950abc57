//! `soci node`: installs the snapshotter on a node, and removes it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use soci_node::{HandedBack, Host, Layout, NodeError, Payload, ServiceAccount, ThisHost};

use crate::global::Global;
use crate::interrupt::interrupted;
use crate::output;

/// Time between two looks at what `install --stay` installed.
const LOOK_AGAIN: Duration = Duration::from_secs(300);
/// Time between two looks at the containers that `uninstall --wait` waits for.
const WAIT: Duration = Duration::from_secs(10);

/// Install the snapshotter on this node, and have Kubernetes use it
#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    Install(Box<Install>),
    Uninstall(Uninstall),
    Status(Status),
}

/// Install or upgrade the snapshotter on this node
///
/// Copies both programs and the systemd units, starts the daemon or hands over to the new one, and
/// makes containerd's CRI plugin use it: with a drop-in where containerd 2.x imports a folder, else in
/// its configuration file, of which a copy is kept. containerd is restarted only if its
/// configuration changed. If a step fails, or containerd does not come up, everything is as before. A
/// second run changes nothing.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  soci node install                               # from the folder of this program
  soci node install --enter-host --stay           # in a privileged pod with hostPID")]
pub(crate) struct Install {
    #[command(flatten)]
    place: NodeOptions,

    /// The folder with the programs soci and soci-snapshotter-grpc [default: that of this program]
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,

    /// Replace the daemon's configuration by this file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Give the daemon the token of this service account of a pod, in a kubeconfig beside its
    /// configuration
    #[arg(long, value_name = "DIR")]
    service_account: Option<PathBuf>,

    /// Replace a daemon of v0.15 although its lazy layers end with it
    #[arg(long)]
    force: bool,

    /// Continue to run, and install again what changes, until SIGTERM
    #[arg(long)]
    stay: bool,
}

/// Hand CRI back to its own snapshotter and remove what was installed
///
/// New containers use containerd's own snapshotter from then on; images whose layers containerd has
/// not kept are pulled again. While containers still use lazy layers the daemon and the programs stay,
/// and the command prints these containers: run it again when they have ended, or use --wait. At the
/// end containerd's configuration has the bytes that it had.
#[derive(Debug, Args)]
pub(crate) struct Uninstall {
    #[command(flatten)]
    place: NodeOptions,

    /// Wait until no container uses lazy layers, and then remove everything
    #[arg(long, conflicts_with = "force")]
    wait: bool,

    /// Remove everything although containers use lazy layers, which fail from then on
    #[arg(long)]
    force: bool,

    /// Leave the waiting to a unit of systemd (soci-snapshotter-uninstall.service), which outlives this
    /// process and its container
    #[arg(long, conflicts_with_all = ["force", "wait"])]
    detach: bool,

    /// Continue to run, and uninstall again what was installed since, until SIGTERM
    #[arg(long, requires = "detach")]
    stay: bool,
}

/// Show whether this node uses the snapshotter; fails if it does not
#[derive(Debug, Args)]
pub(crate) struct Status {
    #[command(flatten)]
    place: NodeOptions,
}

/// The node, and where its files are.
#[derive(Debug, Args)]
struct NodeOptions {
    /// Work on the node that runs this container: enter the mount namespace of process 1
    #[arg(long)]
    enter_host: bool,

    /// The folder on the node for the programs
    #[arg(long, value_name = "DIR", default_value = "/usr/local/bin")]
    bindir: PathBuf,

    /// containerd's configuration file
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/containerd/config.toml"
    )]
    containerd_config: PathBuf,

    /// containerd's program
    #[arg(long, value_name = "PROGRAM", default_value = "containerd")]
    containerd: String,

    /// containerd's unit
    #[arg(long, value_name = "UNIT", default_value = "containerd.service")]
    containerd_unit: String,
}

impl NodeOptions {
    /// The flags for another process on the node.
    fn flags(&self) -> Vec<String> {
        vec![
            format!("--bindir={}", self.bindir.display()),
            format!("--containerd-config={}", self.containerd_config.display()),
            format!("--containerd={}", self.containerd),
            format!("--containerd-unit={}", self.containerd_unit),
        ]
    }

    fn layout(&self, global: &Global) -> Layout {
        Layout {
            programs: self.bindir.clone(),
            daemon_root: global.root.clone(),
            containerd_config: self.containerd_config.clone(),
            containerd: self.containerd.clone(),
            containerd_unit: self.containerd_unit.clone(),
            containerd_socket: global
                .address
                .strip_prefix("unix://")
                .unwrap_or(&global.address)
                .into(),
            ..Layout::default()
        }
    }

    /// Enters the node, if requested. What the container has is no longer visible then.
    fn enter(&self) -> anyhow::Result<()> {
        if self.enter_host {
            soci_node::enter_host().context("cannot reach the node")?;
        }
        let systemd = Path::new("/run/systemd/system");
        if !rustix::process::geteuid().is_root() {
            bail!("cannot change the node: run this as root");
        }
        if !systemd.is_dir() {
            bail!(
                "cannot change the node: it does not run systemd ({})",
                systemd.display()
            );
        }
        Ok(())
    }
}

/// How the waiting for containers is left to systemd.
pub(crate) struct Detached {
    /// The command that waits.
    command: soci_node::Command,
    /// Whether this process stays.
    stay: bool,
}

impl Detached {
    fn of(uninstall: &Uninstall, global: &Global) -> Option<Self> {
        let Uninstall {
            place,
            detach,
            stay,
            ..
        } = uninstall;
        let words = [
            "--quiet".to_owned(),
            "--collect".to_owned(),
            "--unit=soci-snapshotter-uninstall".to_owned(),
            place.bindir.join("soci").display().to_string(),
            format!("--address={}", global.address),
            format!("--root={}", global.root.display()),
            "node".to_owned(),
            "uninstall".to_owned(),
            "--wait".to_owned(),
        ];
        detach.then(|| Self {
            command: soci_node::Command::new("systemd-run", words.into_iter().chain(place.flags())),
            stay: *stay,
        })
    }
}

/// A command that has read what it needs, and is on the node.
pub(crate) enum OnNode {
    Install {
        payload: Box<Payload>,
        force: bool,
        stay: bool,
        layout: Layout,
    },
    Uninstall {
        wait: bool,
        force: bool,
        detached: Option<Detached>,
        layout: Layout,
    },
    Status {
        layout: Layout,
    },
}

impl NodeCommand {
    /// Reads what the flags name, and enters the node. Only one thread may run until then.
    pub(crate) fn prepare(self, global: &Global) -> anyhow::Result<OnNode> {
        Ok(match self {
            Self::Install(install) => {
                let layout = install.place.layout(global);
                let payload = Box::new(install.payload()?);
                install.place.enter()?;
                let Install { force, stay, .. } = *install;
                OnNode::Install {
                    payload,
                    force,
                    stay,
                    layout,
                }
            }
            Self::Uninstall(uninstall) => {
                let layout = uninstall.place.layout(global);
                let detached = Detached::of(&uninstall, global);
                uninstall.place.enter()?;
                let Uninstall { wait, force, .. } = uninstall;
                OnNode::Uninstall {
                    wait,
                    force,
                    detached,
                    layout,
                }
            }
            Self::Status(status) => {
                let layout = status.place.layout(global);
                status.place.enter()?;
                OnNode::Status { layout }
            }
        })
    }
}

impl Install {
    fn payload(&self) -> anyhow::Result<Payload> {
        let own = std::env::current_exe().context("cannot find this program")?;
        let folder = own.parent().unwrap_or(Path::new("/"));
        let programs = self.programs.as_deref().unwrap_or(folder);
        let account = match &self.service_account {
            Some(folder) => {
                let variable = |name: &str| {
                    std::env::var(name).with_context(|| {
                        format!("cannot find the Kubernetes API: {name} is not set")
                    })
                };
                let host = variable("KUBERNETES_SERVICE_HOST")?;
                let port = variable("KUBERNETES_SERVICE_PORT")?;
                let host = if host.contains(':') {
                    format!("[{host}]")
                } else {
                    host
                };
                Some(ServiceAccount::open(
                    folder,
                    format!("https://{host}:{port}"),
                )?)
            }
            None => None,
        };
        let payload = Payload::read(programs, self.config.as_deref())?;
        Ok(payload.with_account(account))
    }
}

impl OnNode {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Install {
                payload,
                force,
                stay,
                layout,
            } => {
                let (payload, layout) = (Arc::new(*payload), Arc::new(layout));
                loop {
                    install(Arc::clone(&payload), Arc::clone(&layout), force).await?;
                    if !stay {
                        return Ok(());
                    }
                    tokio::select! {
                        _ = interrupted() => return Ok(()),
                        () = tokio::time::sleep(LOOK_AGAIN) => {}
                    }
                }
            }
            Self::Uninstall {
                wait,
                force,
                detached,
                layout,
            } => {
                let layout = Arc::new(layout);
                let Some(detached) = detached else {
                    return uninstall(layout, wait, force, None).await;
                };
                loop {
                    uninstall(Arc::clone(&layout), false, false, Some(&detached.command)).await?;
                    if !detached.stay {
                        return Ok(());
                    }
                    tokio::select! {
                        _ = interrupted() => return Ok(()),
                        () = tokio::time::sleep(LOOK_AGAIN) => {}
                    }
                }
            }
            Self::Status { layout } => status(layout).await,
        }
    }
}

/// This machine, which says what it does on stderr.
fn this_host() -> ThisHost<impl Fn(&str)> {
    ThisHost(output::note)
}

/// Runs a step that blocks.
async fn step<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NodeError> + Send + 'static,
) -> anyhow::Result<T> {
    Ok(soci_task::run(work).await??)
}

async fn install(payload: Arc<Payload>, layout: Arc<Layout>, force: bool) -> anyhow::Result<()> {
    let installed = step(move || soci_node::install(&this_host(), &layout, &payload, force));
    let installed = installed.await?;
    let version = env!("CARGO_PKG_VERSION");
    output::line(match (installed.daemon, installed.containerd) {
        (false, false) => format!("soci-snapshotter {version} is installed: nothing to do"),
        (_, true) => format!("installed soci-snapshotter {version}; CRI uses it"),
        (true, false) => format!("upgraded soci-snapshotter to {version}"),
    });
    Ok(())
}

async fn uninstall(
    layout: Arc<Layout>,
    wait: bool,
    force: bool,
    detached: Option<&soci_node::Command>,
) -> anyhow::Result<()> {
    let mut reported = 0;
    loop {
        let on = Arc::clone(&layout);
        let outcome = step(move || soci_node::uninstall(&this_host(), &on, force)).await?;
        match outcome {
            HandedBack::NothingInstalled => {
                output::line("nothing is installed by soci node install");
                return Ok(());
            }
            HandedBack::Removed => {
                output::line(format!(
                    "removed soci-snapshotter; {} is left, and may be deleted",
                    layout.daemon_root.display()
                ));
                return Ok(());
            }
            HandedBack::InUse(containers) => {
                if reported != containers.len() {
                    reported = containers.len();
                    output::note(&format!(
                        "CRI has its own snapshotter again; these containers still use lazy layers: {}",
                        containers.join(", ")
                    ));
                }
                if let Some(command) = detached {
                    let command = command.clone();
                    return step(move || leave_to_systemd(&this_host(), &command)).await;
                }
                if !wait {
                    bail!(
                        "cannot remove soci-snapshotter yet: containers use it; drain the node and run this \
                         again, or use --wait"
                    );
                }
            }
        }
        tokio::select! {
            signal = interrupted() => return Err(signal),
            () = tokio::time::sleep(WAIT) => {}
        }
    }
}

/// Runs a command as a service of systemd, unless it runs already.
fn leave_to_systemd(host: &dyn Host, command: &soci_node::Command) -> Result<(), NodeError> {
    let unit = "soci-snapshotter-uninstall.service";
    let running = soci_node::Command::new("systemctl", ["is-active", "--quiet", unit]);
    if host.run(&running).is_err() {
        host.run(command)?;
    }
    host.note(&format!("{unit} waits for them on the node"));
    Ok(())
}

async fn status(layout: Layout) -> anyhow::Result<()> {
    let status = step(move || soci_node::status(&this_host(), &layout)).await?;
    let is = |yes: bool| if yes { "yes" } else { "no" };
    let mut page = output::Page::default();
    page.line(format!("installed:              {}", is(status.installed)));
    page.line(format!("daemon runs:            {}", is(status.daemon)));
    page.line(format!("containerd runs:        {}", is(status.containerd)));
    page.line(format!("containerd knows it:    {}", is(status.loaded)));
    page.line(format!(
        "snapshotter of CRI:     {}",
        status
            .snapshotter
            .as_deref()
            .unwrap_or("containerd's default")
    ));
    if status.handed_back {
        page.line("being removed:          waits for containers on lazy layers");
    }
    output::page(&page);
    if !status.works() {
        bail!("pods of this node do not use the snapshotter");
    }
    Ok(())
}
