//! systemd's units and containerd on a node.

use std::time::{Duration, Instant};

use soci_containerd::{Containerd, ContainerdError, Plugin, within};

use crate::config::{ContainerdRelease, Edit};
use crate::error::NodeError;
use crate::host::{Command, Host};
use crate::images;
use crate::layout::{Layout, SERVICE, SOCKET};

/// How long a restarted containerd may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long one call may take.
const CALL: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(200);
const SNAPSHOTTERS: &str = "io.containerd.snapshotter.v1";

/// The services of a node.
#[derive(Clone, Copy)]
pub(crate) struct Services<'a> {
    host: &'a dyn Host,
    layout: &'a Layout,
}

impl<'a> Services<'a> {
    pub(crate) fn new(host: &'a dyn Host, layout: &'a Layout) -> Self {
        Self { host, layout }
    }

    /// Runs `systemctl`.
    pub(crate) fn systemctl(&self, arguments: &[&str]) -> Result<(), NodeError> {
        let arguments = arguments.iter().copied();
        self.host
            .run(&Command::new("systemctl", arguments))
            .map(drop)
    }

    pub(crate) fn is_active(&self, unit: &str) -> bool {
        self.systemctl(&["is-active", "--quiet", unit]).is_ok()
    }

    /// Stops the daemon for good and unmounts its layers.
    pub(crate) fn end_daemon(&self) -> Result<(), NodeError> {
        self.systemctl(&["disable", "--now", SOCKET, SERVICE])?;
        let root = self.layout.daemon_root.display().to_string();
        if !crate::config::below(&self.layout.root, &self.layout.daemon_root).is_dir() {
            return Ok(());
        }
        let soci = self.layout.programs.join("soci").display().to_string();
        let arguments = ["--root", &root, "abort-mounts", "--unmount"];
        self.host.run(&Command::new(soci, arguments)).map(drop)
    }

    /// The release of containerd.
    pub(crate) fn release(&self) -> Result<ContainerdRelease, NodeError> {
        let command = Command::new(self.layout.containerd.as_str(), ["--version"]);
        Ok(ContainerdRelease::parse(&self.host.run(&command)?)?)
    }

    /// The snapshotter of CRI in the configuration that containerd makes of its files.
    pub(crate) fn selected(&self, release: ContainerdRelease) -> Result<Option<String>, NodeError> {
        let config = self.layout.containerd_config.display().to_string();
        let arguments = ["--config", &config, "config", "dump"];
        let dumped = self
            .host
            .run(&Command::new(self.layout.containerd.as_str(), arguments))?;
        let edit = Edit::of("the output of containerd config dump", &dumped, release)?;
        Ok(edit.before().snapshotter)
    }

    /// The plugins of the running containerd that work, by type and name.
    pub(crate) fn plugins(&self) -> Result<Vec<(String, String)>, NodeError> {
        self.ask(async |containerd| {
            let plugins = containerd.plugins().await?.into_iter();
            let works = |plugin: &Plugin| plugin.error.is_none();
            Ok(plugins.filter(works).map(|p| (p.kind, p.id)).collect())
        })
    }

    /// Whether the running containerd knows the snapshotter.
    pub(crate) fn has_snapshotter(&self) -> bool {
        let plugins = self.plugins().unwrap_or_default();
        plugins
            .iter()
            .any(|(kind, id)| kind == SNAPSHOTTERS && id == "soci")
    }

    /// Restarts containerd and waits until it answers, with every plugin that worked before and, if requested,
    /// the snapshotter.
    pub(crate) fn restart_containerd(
        &self,
        needed: &[(String, String)],
        with_snapshotter: bool,
    ) -> Result<(), NodeError> {
        let unit = &self.layout.containerd_unit;
        self.host.note(&format!("restarting {unit}"));
        self.systemctl(&["restart", unit])?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.plugins();
            let missing = found.as_ref().ok().map(|found| {
                let ours = (SNAPSHOTTERS.to_owned(), "soci".to_owned());
                let ours = with_snapshotter.then_some(&ours).into_iter().cloned();
                let wanted = needed
                    .iter()
                    .filter(|(_, id)| id != "soci")
                    .cloned()
                    .chain(ours);
                let missing = wanted.filter(|plugin| !found.contains(plugin));
                missing
                    .map(|(kind, id)| format!("{kind}.{id}"))
                    .collect::<Vec<_>>()
            });
            match (found, missing) {
                (Ok(_), Some(missing)) if missing.is_empty() => return Ok(()),
                (Err(error), _) if Instant::now() > deadline => return Err(error),
                (_, Some(missing)) if Instant::now() > deadline => {
                    return Err(NodeError::Refused(format!(
                        "{unit} runs again without the plugins {}: its log says why",
                        missing.join(", ")
                    )));
                }
                _ => std::thread::sleep(PAUSE),
            }
        }
    }

    /// Removes the records of images that the snapshotter of CRI cannot start, and says so.
    pub(crate) fn forget_incomplete_images(&self) -> Result<(), NodeError> {
        let outcome = self.ask(async |containerd| images::forget_incomplete(containerd).await)?;
        for name in outcome.forgotten {
            self.host.note(&format!(
                "forgot image {name}, whose layers containerd has not kept: it is pulled again"
            ));
        }
        for name in outcome.kept {
            self.host.note(&format!(
                "image {name} has no layers in containerd and cannot be pulled: import it again \
                 (ctr -n k8s.io images import)"
            ));
        }
        Ok(())
    }

    /// Containers on snapshots of ours.
    pub(crate) fn users(&self) -> Result<Vec<String>, NodeError> {
        self.ask(async |containerd| images::users(containerd).await)
    }

    fn ask<T>(
        &self,
        question: impl AsyncFnOnce(&Containerd) -> Result<T, ContainerdError>,
    ) -> Result<T, NodeError> {
        let socket = crate::config::below(&self.layout.root, &self.layout.containerd_socket);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(NodeError::file("ask containerd at", &socket))?;
        let answer = runtime.block_on(within(CALL, async {
            let containerd = Containerd::connect(&socket.display().to_string()).await?;
            question(&containerd).await
        }));
        Ok(answer?)
    }
}
