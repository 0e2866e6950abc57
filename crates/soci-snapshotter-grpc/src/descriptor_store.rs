//! systemd's descriptor store (`FileDescriptorStoreMax=`): a second store of the mounts, for the case that
//! holder and server both die. Used where the unit requests it ([`SWITCH`], or systemd from version 254 on).
//!
//! Each descriptor is stored together with a memfd that contains its key and note, under one name.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use rustix::fs::{FileType, MemfdFlags, fstat, memfd_create};
use sd_notify::NotifyState;
use serde::{Deserialize, Serialize};
use soci_holder::{BackupStore, HolderClient};

use crate::args::HOLDER_ARGUMENT;
use crate::holder_keys;

/// Prefix of the names under which descriptors are stored.
pub(crate) const NAME: &str = "soci-fuse-";

/// Set in our unit: the service manager stores descriptors, also from the server process.
const SWITCH: &str = "SOCI_DESCRIPTOR_STORE";
/// Set by systemd 254 and later.
const SYSTEMDS: &str = "FDSTORE";

/// Largest note in bytes.
const LARGEST: u64 = 128 << 10;

#[derive(Serialize, Deserialize)]
struct Label {
    key: String,
    note: String,
}

#[derive(Debug)]
struct Store;

/// Returns the store, if the service manager offers one.
pub(crate) fn find() -> Option<Arc<dyn BackupStore>> {
    let offered = [SWITCH, SYSTEMDS]
        .iter()
        .any(|name| std::env::var_os(name).is_some());
    (offered && std::env::var_os("NOTIFY_SOCKET").is_some()).then(|| Arc::new(Store) as _)
}

/// The name of a key in the store: colons and control characters are not allowed.
fn name_of(key: &str) -> String {
    format!(
        "{NAME}{}",
        key.replace(|c: char| !c.is_ascii_alphanumeric(), "-")
    )
}

impl BackupStore for Store {
    fn put(&self, key: &str, note: &str, descriptor: BorrowedFd<'_>) {
        // The service manager has the listening socket, or a new one is made; secrets are not passed on.
        if [holder_keys::SOCKET, holder_keys::CREDENTIALS].contains(&key) {
            return;
        }
        if let Err(error) = store(key, note, descriptor) {
            tracing::warn!(key, error = %error, "cannot store a descriptor with systemd");
        }
    }

    fn remove(&self, key: &str) {
        let name = name_of(key);
        let state = [NotifyState::FdStoreRemove, NotifyState::FdName(&name)];
        if let Err(error) = sd_notify::notify(&state) {
            tracing::warn!(key, error = %error, "cannot remove a descriptor from systemd");
        }
    }
}

fn store(key: &str, note: &str, descriptor: BorrowedFd<'_>) -> std::io::Result<()> {
    let label = Label {
        key: key.to_owned(),
        note: note.to_owned(),
    };
    let mut file = File::from(memfd_create("soci-note", MemfdFlags::CLOEXEC)?);
    file.write_all(&serde_json::to_vec(&label)?)?;
    let name = name_of(key);
    let state = [NotifyState::FdStore, NotifyState::FdName(&name)];
    sd_notify::notify_with_fds(&state, &[descriptor, file.as_fd()])
}

/// Passes what systemd stored to the holder of `root`, unless it has it; returns how many that were.
pub(crate) fn restore(root: &Path, stored: Vec<(String, OwnedFd)>) -> anyhow::Result<usize> {
    if stored.is_empty() {
        return Ok(0);
    }
    let mut pairs: HashMap<String, (Option<OwnedFd>, Option<Label>)> = HashMap::new();
    for (name, descriptor) in stored {
        let pair = pairs.entry(name).or_default();
        match label_in(&descriptor) {
            Some(label) => pair.1 = Some(label),
            None => pair.0 = Some(descriptor),
        }
    }
    let holder =
        HolderClient::look_or_start(root, HOLDER_ARGUMENT).context("cannot reach a holder")?;
    let has: Vec<_> = holder.list()?.into_iter().map(|held| held.key).collect();
    let mut restored = 0;
    for pair in pairs.into_values() {
        if let (Some(descriptor), Some(Label { key, note })) = pair
            && !has.contains(&key)
        {
            holder.put(&key, &note, descriptor.as_fd())?;
            restored += 1;
        }
    }
    Ok(restored)
}

/// Reads the label if the descriptor is that of one: the journal is a memfd, too.
fn label_in(descriptor: &OwnedFd) -> Option<Label> {
    let kind = FileType::from_raw_mode(fstat(descriptor).ok()?.st_mode);
    if kind != FileType::RegularFile {
        return None;
    }
    let name = std::fs::read_link(format!("/proc/self/fd/{}", descriptor.as_raw_fd())).ok()?;
    if !name.to_string_lossy().contains("memfd:soci-note") {
        return None;
    }
    let mut file = File::from(descriptor.try_clone().ok()?);
    file.rewind().ok()?;
    let mut text = Vec::new();
    file.take(LARGEST).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::process::Command;

    use super::*;

    /// Set in the process that stores.
    const STORING: &str = "SOCI_TEST_DESCRIPTOR_STORE";

    /// Runs in a process of its own: the service manager's socket is in the environment.
    #[test]
    fn the_service_manager_gets_mounts_and_never_credentials() {
        if std::env::var_os(STORING).is_some() {
            let store = find().unwrap();
            let secret = memfd_create("secret", MemfdFlags::CLOEXEC).unwrap();
            for key in [holder_keys::CREDENTIALS, holder_keys::SOCKET, "fuse/1"] {
                store.put(key, "note", secret.as_fd());
            }
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify.sock");
        let manager = UnixDatagram::bind(&path).unwrap();
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture"])
            .arg("descriptor_store::tests::the_service_manager_gets_mounts_and_never_credentials")
            .env(STORING, "1")
            .env(SWITCH, "1")
            .env("NOTIFY_SOCKET", &path)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}{output:?}");
        assert!(text.contains("1 passed"), "{text}");
        manager.set_nonblocking(true).unwrap();
        let mut stored = Vec::new();
        let mut message = [0; 4096];
        while let Ok(length) = manager.recv(&mut message) {
            let message = String::from_utf8_lossy(&message[..length]);
            stored.push(message.trim().to_owned());
        }
        assert_eq!(stored, ["FDSTORE=1\nFDNAME=soci-fuse-fuse-1"]);
    }
}
