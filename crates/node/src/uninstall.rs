//! The way back: CRI gets its snapshotter back, and once no container needs ours, everything goes.

use crate::config::Edit;
use crate::error::NodeError;
use crate::host::Host;
use crate::journal::{Journal, Written};
use crate::layout::Layout;
use crate::service::Services;

/// What an uninstallation has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HandedBack {
    /// Nothing was installed.
    NothingInstalled,
    /// CRI has its snapshotter back. These containers, as `namespace/id`, still use ours, so that
    /// programs and daemon stay.
    InUse(Vec<String>),
    /// Everything is removed, and containerd's files have the bytes that they had.
    Removed,
}

/// Restores CRI's snapshotter; then, unless containers use snapshots of ours, stops the daemon and removes
/// what was installed. Running it again continues. With `force` containers on our snapshots lose them.
///
/// # Errors
/// [`NodeError::RolledBack`] if containerd does not come back, and then its configuration is restored.
pub fn uninstall(host: &dyn Host, layout: &Layout, force: bool) -> Result<HandedBack, NodeError> {
    let services = Services::new(host, layout);
    let mut journal = Journal::open(&layout.root)?;
    if !journal.is_installed() {
        return Ok(HandedBack::NothingInstalled);
    }
    if !journal.state.handed_back {
        changed(host, services, &mut journal, layout, hand_back)?;
        journal.state.handed_back = true;
        journal.save()?;
        if services.is_active(&layout.containerd_unit) {
            services.forget_incomplete_images()?;
        }
    }
    if !force && services.is_active(&layout.containerd_unit) {
        let users = services.users()?;
        if !users.is_empty() {
            return Ok(HandedBack::InUse(users));
        }
    }
    changed(host, services, &mut journal, layout, remove_configuration)?;
    services.end_daemon()?;
    let files = journal.state.files.clone();
    for written in files.iter().filter(|written| !written.containerd) {
        if !journal.restore(written, |_| Ok(None))? && crate::install::exists(layout, &written.path)
        {
            host.note(&format!(
                "kept {}, which was changed since",
                written.path.display()
            ));
        }
    }
    services.systemctl(&["daemon-reload"])?;
    journal.forget()?;
    Ok(HandedBack::Removed)
}

/// Changes containerd's files, restarts it, and restores them if it does not come back.
fn changed(
    host: &dyn Host,
    services: Services<'_>,
    journal: &mut Journal,
    layout: &Layout,
    change: impl FnOnce(Services<'_>, &mut Journal, &Layout) -> Result<bool, NodeError>,
) -> Result<(), NodeError> {
    let before = journal.state.clone();
    let active = services.is_active(&layout.containerd_unit);
    let plugins = if active {
        services.plugins()?
    } else {
        Vec::new()
    };
    let outcome = change(services, journal, layout).and_then(|changed| {
        if changed && active {
            services.restart_containerd(&plugins, false)?;
        }
        Ok(())
    });
    let Err(error) = outcome else {
        journal.settle();
        return Ok(());
    };
    host.note("containerd does not work without the snapshotter: restoring its configuration");
    let restored = journal.roll_back(before).and_then(|()| match active {
        true => services.restart_containerd(&plugins, false),
        false => Ok(()),
    });
    Err(NodeError::RolledBack {
        restored: match restored {
            Ok(()) => "cannot uninstall; the node is as it was before".to_owned(),
            Err(error) => format!("cannot uninstall, and cannot restore containerd ({error})"),
        },
        source: Box::new(error),
    })
}

/// Selects CRI's own snapshotter again; ours stays known to containerd.
fn hand_back(
    services: Services<'_>,
    journal: &mut Journal,
    layout: &Layout,
) -> Result<bool, NodeError> {
    let release = services.release()?;
    let before = journal.state.before.clone();
    let mut changed = false;
    for written in containerd_files(journal) {
        let at = crate::config::below(&layout.root, &written.path);
        let Ok(text) = std::fs::read_to_string(&at) else {
            continue;
        };
        let mut edit = Edit::of(&written.path.display().to_string(), &text, release)?;
        edit.hand_back(&before)?;
        let new = edit.text();
        changed |= new != text && journal.write_config(&written.path, &new)?;
    }
    let selected = services.selected(release)?;
    if selected.as_deref() == Some("soci") {
        return Err(NodeError::Refused(
            "cannot hand CRI back: containerd still uses the snapshotter soci, which a file selects that \
             was not written by `soci node install`"
                .to_owned(),
        ));
    }
    Ok(changed)
}

/// Restores the bytes of containerd's files, or removes what is ours from those that were changed since.
fn remove_configuration(
    services: Services<'_>,
    journal: &mut Journal,
    _layout: &Layout,
) -> Result<bool, NodeError> {
    let release = services.release()?;
    let before = journal.state.before.clone();
    let mut changed = false;
    for written in containerd_files(journal) {
        let path = written.path.display().to_string();
        changed |= journal.restore(&written, |text| {
            let mut edit = Edit::of(&path, text, release)?;
            edit.remove(&before)?;
            Ok(Some(edit.text()))
        })?;
    }
    Ok(changed)
}

fn containerd_files(journal: &Journal) -> Vec<Written> {
    let files = journal.state.files.iter();
    files
        .filter(|written| written.containerd)
        .cloned()
        .collect()
}
