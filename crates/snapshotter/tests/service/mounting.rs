//! Makes the mounts that the service returns, as containerd does, and builds layers in them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use soci_snapshotter::api::types::Mount;

use crate::double::bind;
use crate::fixture::{Daemon, Machine};

/// A mount that is removed when this is dropped.
pub(crate) struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let mut unmounted = unmount(&self.0, UnmountFlags::empty());
        // A program that another test starts has our files open until its exec, which a busy machine puts off.
        for _ in 0..6000 {
            if unmounted != Err(Errno::BUSY) {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
            unmounted = unmount(&self.0, UnmountFlags::empty());
        }
        if !std::thread::panicking() {
            unmounted.unwrap();
        }
    }
}

impl Machine {
    /// Mounts `mounts` on an empty directory `name`.
    pub(crate) fn mount(&self, mounts: &[Mount], name: &str) -> (PathBuf, Mounted) {
        let target = self.folder(name);
        let [mount] = mounts else {
            panic!("expected one mount, got {mounts:?}");
        };
        match mount.r#type.as_str() {
            "bind" => {
                assert!(mount.options.contains(&"rbind".to_owned()));
                let read_only = mount.options.contains(&"ro".to_owned());
                bind(Path::new(&mount.source), &target, read_only);
            }
            "overlay" => self.mount_overlay(mount, &target),
            other => panic!("cannot mount {other}"),
        }
        (target.clone(), Mounted(target))
    }

    /// Makes lower directories relative to `snapshots/`: mount(2) accepts one page of options.
    fn mount_overlay(&self, mount: &Mount, target: &Path) {
        let prefix = format!("{}/", self.snapshots().display());
        let options: Vec<String> = mount
            .options
            .iter()
            .map(|option| match option.starts_with("lowerdir=") {
                true => option.replace(&prefix, ""),
                false => option.clone(),
            })
            .collect();
        let status = Command::new("mount")
            .current_dir(self.snapshots())
            .env("LIBMOUNT_FORCE_MOUNT2", "always")
            .args(["-t", "overlay", "overlay", "-o", &options.join(",")])
            .arg(target)
            .status()
            .unwrap();
        assert!(status.success(), "cannot mount {options:?}");
    }

    /// Prepares a snapshot on `parent`, lets `fill` change it, and commits it as `name`.
    pub(crate) async fn layer(
        &self,
        daemon: &Daemon,
        name: &str,
        parent: &str,
        fill: impl FnOnce(&Path),
    ) {
        let key = format!("{name}-active");
        let mounts = daemon.prepare(&key, parent).await.unwrap();
        {
            let (path, _mounted) = self.mount(&mounts, &key);
            fill(&path);
        }
        daemon.commit(name, &key).await.unwrap();
    }

    /// Describes the contents of a view of `name`.
    pub(crate) async fn contents(&self, daemon: &Daemon, name: &str) -> Vec<String> {
        let key = format!("{name}-view");
        let mounts = daemon.view(&key, name).await.unwrap();
        let contents = {
            let (path, _mounted) = self.mount(&mounts, &key);
            tree(&path)
        };
        daemon.remove(&key).await.unwrap();
        contents
    }
}

/// Lists everything below `root` in order: `a/` for directories, `a=content` for files.
pub(crate) fn tree(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().display().to_string();
            if path.is_dir() {
                found.push(format!("{name}/"));
                directories.push(path);
            } else {
                found.push(format!("{name}={}", fs::read_to_string(path).unwrap()));
            }
        }
    }
    found.sort();
    found
}
