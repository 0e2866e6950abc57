//! Installing, upgrading, and finding that nothing has to be done.

use std::path::Path;

use crate::config::{ConfigFiles, Snapshotter, below};
use crate::error::NodeError;
use crate::host::{Command, Host};
use crate::journal::Journal;
use crate::layout::{DAEMON_SOCKET, Layout, SERVICE, SOCKET};
use crate::payload::Payload;
use crate::service::Services;

/// What an installation has changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Installed {
    /// Programs, units or the daemon's configuration.
    pub daemon: bool,
    /// containerd's configuration.
    pub containerd: bool,
}

/// Installs the snapshotter on a node, or upgrades it, and has CRI use it.
///
/// The daemon is replaced by a hand-over; containerd is restarted only if its configuration changed. What
/// fails is rolled back: programs, units and configuration are as before, and containerd runs with them.
///
/// # Errors
/// [`NodeError::RolledBack`] with the cause; or what could not even be looked at.
pub fn install(
    host: &dyn Host,
    layout: &Layout,
    payload: &Payload,
    force: bool,
) -> Result<Installed, NodeError> {
    let services = Services::new(host, layout);
    let mut journal = Journal::open(&layout.root)?;
    if !force {
        refuse_other_daemon(services, layout)?;
    }
    let before = journal.state.clone();
    let run = Run {
        host,
        layout,
        services,
        first: !journal.is_installed(),
        was_active: services.is_active(SERVICE),
    };
    let mut restarted = false;
    match run.install(&mut journal, payload, &mut restarted) {
        Ok(installed) => Ok(installed),
        Err(error) => {
            host.note("installation failed: restoring what was there");
            let undone = run.undo(&mut journal, before, restarted);
            Err(NodeError::RolledBack {
                restored: match undone {
                    Ok(()) => "cannot install; the node is as it was before".to_owned(),
                    Err(error) => {
                        format!("cannot install, and cannot restore all of the node ({error})")
                    }
                },
                source: Box::new(error),
            })
        }
    }
}

/// Refuses to replace a daemon whose lazy layers end with it, while there are some.
fn refuse_other_daemon(services: Services<'_>, layout: &Layout) -> Result<(), NodeError> {
    let root = below(&layout.root, &layout.daemon_root);
    if root.join("daemon.lock").exists() || !services.is_active(SERVICE) {
        return Ok(());
    }
    let table =
        soci_mountinfo::Table::read().map_err(NodeError::file("read", "/proc/self/mountinfo"))?;
    let lazy = table
        .under(&root)
        .filter(|mount| mount.is("fuse.rawBridge", "soci"));
    match lazy.count() {
        0 => Ok(()),
        count => Err(NodeError::Refused(format!(
            "cannot replace the running soci-snapshotter-grpc: {count} lazy layers are mounted by another \
             version, and end with it: drain the node first, or use --force"
        ))),
    }
}

/// One run of the installer.
struct Run<'a> {
    host: &'a dyn Host,
    layout: &'a Layout,
    services: Services<'a>,
    /// Whether nothing was installed before.
    first: bool,
    /// Whether a daemon ran before.
    was_active: bool,
}

impl Run<'_> {
    fn install(
        &self,
        journal: &mut Journal,
        payload: &Payload,
        restarted: &mut bool,
    ) -> Result<Installed, NodeError> {
        let release = self.services.release()?;
        let files = self.config_files()?;
        let snapshotter = Snapshotter {
            socket: DAEMON_SOCKET.to_owned(),
            root: self.layout.daemon_root.display().to_string(),
        };
        let (targets, before) = files.plan(release, &snapshotter)?;

        let daemon = self.install_daemon(journal, payload)?;
        if before.snapshotter.as_deref() != Some("soci") {
            journal.state.before = before;
        }
        let mut containerd = false;
        for target in &targets {
            let written = journal.write_config(&target.path, &target.text)?;
            if written {
                self.host.note(&format!("wrote {}", target.path.display()));
            }
            containerd |= written;
        }
        let selected = self.services.selected(release)?;
        if selected.as_deref() != Some("soci") {
            return Err(NodeError::Refused(format!(
                "cannot configure containerd: with {} it still uses the snapshotter {}: another imported \
                 file overrides it",
                self.layout.containerd_config.display(),
                selected.as_deref().unwrap_or("of its default")
            )));
        }
        let unit = &self.layout.containerd_unit;
        if self.services.is_active(unit) && (containerd || !self.services.has_snapshotter()) {
            let plugins = self.services.plugins()?;
            *restarted = true;
            self.services.restart_containerd(&plugins, true)?;
            self.services.forget_incomplete_images()?;
        }
        journal.state.handed_back = false;
        journal.save()?;
        Ok(Installed { daemon, containerd })
    }

    fn config_files(&self) -> Result<ConfigFiles, NodeError> {
        let path = &self.layout.containerd_config;
        ConfigFiles::load(&self.layout.root, path).map_err(NodeError::file(
            "read the configuration of containerd at",
            path,
        ))
    }

    /// Installs programs, units and configuration, and has the daemon run with them.
    fn install_daemon(&self, journal: &mut Journal, payload: &Payload) -> Result<bool, NodeError> {
        let mut write = |file: crate::payload::File<'_>| {
            let written = journal.write(&file.path, &file.bytes, file.mode, false)?;
            if written {
                self.host.note(&format!("wrote {}", file.path.display()));
            }
            Ok::<_, NodeError>(written)
        };
        let mut programs = false;
        for file in payload.programs(self.layout) {
            programs |= write(file)?;
        }
        let program = self.layout.programs.join("soci-snapshotter-grpc");
        if programs {
            // Before anything depends on it: a program for another C library or processor ends here.
            self.host
                .run(&Command::new(program.display().to_string(), ["--version"]))?;
        }
        for file in payload.account(self.layout)? {
            write(file)?;
        }
        let config = payload.config(self.layout).map(&mut write).transpose()?;
        let mut units = false;
        for file in payload.units(self.layout) {
            units |= write(file)?;
        }
        if units {
            self.services.systemctl(&["daemon-reload"])?;
        }
        self.services.systemctl(&["enable", SOCKET, SERVICE])?;
        let changed = programs || config == Some(true);
        match self.was_active {
            false => self.services.systemctl(&["start", SOCKET, SERVICE])?,
            // Containers notice neither: their reads wait.
            true if units => self.services.systemctl(&["restart", SERVICE])?,
            true if changed => self.services.systemctl(&["reload", SERVICE])?,
            true => {}
        }
        Ok(changed || units)
    }

    /// Restores what was there before this run.
    fn undo(
        &self,
        journal: &mut Journal,
        before: crate::journal::State,
        restarted: bool,
    ) -> Result<(), NodeError> {
        let new_daemon = self.first && !self.was_active;
        let ended = if new_daemon {
            self.services.end_daemon()
        } else {
            Ok(())
        };
        let restored = journal.roll_back(before);
        let reloaded = self.services.systemctl(&["daemon-reload"]);
        let containerd = if restarted {
            self.services.restart_containerd(&[], false)
        } else {
            Ok(())
        };
        let daemon = if new_daemon {
            Ok(())
        } else {
            self.services.systemctl(&["reload-or-restart", SERVICE])
        };
        restored
            .and(containerd)
            .and(reloaded)
            .and(ended)
            .and(daemon)
    }
}

/// Whether a file of the node exists.
pub(crate) fn exists(layout: &Layout, path: &Path) -> bool {
    below(&layout.root, path).exists()
}
