//! The mounts that a client makes to see a snapshot: a bind mount where one directory is enough,
//! overlayfs otherwise. Options and their order are those of containerd's overlayfs snapshotter.

use std::fs;
use std::path::Path;

use rustix::fs::statfs;

use crate::api::types::Mount;
use crate::api::v1::Kind;
use crate::directories::Directories;
use crate::lowers::Lowers;
use crate::metadata::Link;

/// `f_type` of tmpfs (linux/magic.h).
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// Options of every overlay mount, found out once.
#[derive(Debug, Clone, Default)]
pub(crate) struct OverlayOptions {
    pub(crate) extra: Vec<String>,
}

impl OverlayOptions {
    /// What the kernel needs for overlays.
    pub(crate) fn detect(userxattr: bool) -> Self {
        let mut extra = Vec::new();
        if userxattr {
            extra.push("userxattr".to_owned());
        }
        // With the index a work directory remembers its lower directories and refuses others,
        // such as a layer that was mounted again.
        if Path::new("/sys/module/overlay/parameters/index").exists() {
            extra.push("index=off".to_owned());
        }
        Self { extra }
    }
}

/// Whether overlays on the directory `root` must be mounted with `userxattr`: inside a user namespace
/// overlayfs may not use `trusted.*` attributes. Linux 5.11 and newer take `user.*` instead; tmpfs
/// has none.
#[must_use]
pub fn needs_userxattr(root: &Path) -> bool {
    let Ok(map) = fs::read_to_string("/proc/self/uid_map") else {
        return false;
    };
    let release = rustix::system::uname();
    let tmpfs = statfs(root).is_ok_and(|stat| stat.f_type == TMPFS_MAGIC);
    !is_initial(&map) && knows_userxattr(&release.release().to_string_lossy()) && !tmpfs
}

/// Whether a `uid_map` is that of the initial user namespace (user_namespaces(7)).
fn is_initial(uid_map: &str) -> bool {
    uid_map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Whether the kernel of this release has the option. An unreadable release counts as a new one.
fn knows_userxattr(release: &str) -> bool {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|number| number.parse::<u32>().ok());
    let version = numbers.next().zip(numbers.next());
    version.is_none_or(|version| version >= (5, 11))
}

/// The mounts of a snapshot with these parents, nearest first.
pub(crate) fn mounts(
    directories: &Directories,
    overlay: &OverlayOptions,
    kind: Kind,
    id: u64,
    parents: &[Link],
    lowers: &Lowers,
) -> Vec<Mount> {
    let active = kind == Kind::Active;
    let mount = match parents {
        [] => bind(&directories.fs(id), active),
        [parent] if !active => bind(&directories.fs(lowers.place(parent)), false),
        _ => {
            let mut options = Vec::new();
            if active {
                options.push(format!("workdir={}", directories.work(id).display()));
                options.push(format!("upperdir={}", directories.fs(id).display()));
            }
            let lower: Vec<String> = parents
                .iter()
                .map(|parent| directories.fs(lowers.place(parent)).display().to_string())
                .collect();
            options.push(format!("lowerdir={}", lower.join(":")));
            options.extend_from_slice(&overlay.extra);
            Mount {
                r#type: "overlay".to_owned(),
                source: "overlay".to_owned(),
                target: String::new(),
                options,
            }
        }
    };
    vec![mount]
}

fn bind(source: &Path, writable: bool) -> Mount {
    Mount {
        r#type: "bind".to_owned(),
        source: source.display().to_string(),
        target: String::new(),
        options: vec![
            if writable { "rw" } else { "ro" }.to_owned(),
            "rbind".to_owned(),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use soci_layer::IdMaps;

    fn link(id: u64) -> Link {
        Link {
            id,
            name: id.to_string(),
            lazy: None,
        }
    }

    #[test]
    fn userxattr_is_for_user_namespaces_of_kernels_that_know_it() {
        assert!(is_initial("         0          0 4294967295\n"));
        assert!(!is_initial("         0     100000      65536\n"));
        assert!(!is_initial("0 0 1000\n1000 1000 4294966295\n"));
        for (release, knows) in [
            ("5.10.0-30-amd64", false),
            ("5.11.0", true),
            ("6.1", true),
            ("4.19.1", false),
            ("strange", true),
        ] {
            assert_eq!(knows_userxattr(release), knows, "{release}");
        }
    }

    #[test]
    fn options_and_their_order_are_containerds() {
        let root = tempfile::tempdir().unwrap();
        let directories = Directories::open(root.path()).unwrap();
        let overlay = OverlayOptions {
            extra: vec!["userxattr".to_owned(), "index=off".to_owned()],
        };
        let at = |id: u64, leaf: &str| format!("{}/snapshots/{id}/{leaf}", root.path().display());
        let at_name = |name: &str| format!("{}/snapshots/{name}/fs", root.path().display());
        let get = |kind, parents: &[Link]| {
            let mut mounts = mounts(&directories, &overlay, kind, 9, parents, &Lowers::Shared);
            assert_eq!(mounts.len(), 1);
            let mount = mounts.remove(0);
            (mount.r#type, mount.source, mount.options.join(","))
        };
        let bind = |source, options: &str| ("bind".to_owned(), source, options.to_owned());
        let overlay = |options| ("overlay".to_owned(), "overlay".to_owned(), options);

        assert_eq!(get(Kind::Active, &[]), bind(at(9, "fs"), "rw,rbind"));
        assert_eq!(get(Kind::View, &[]), bind(at(9, "fs"), "ro,rbind"));
        assert_eq!(get(Kind::View, &[link(4)]), bind(at(4, "fs"), "ro,rbind"));
        assert_eq!(
            get(Kind::View, &[link(5), link(4)]),
            overlay(format!(
                "lowerdir={}:{},userxattr,index=off",
                at(5, "fs"),
                at(4, "fs")
            ))
        );
        assert_eq!(
            get(Kind::Active, &[link(5), link(4)]),
            overlay(format!(
                "workdir={},upperdir={},lowerdir={}:{},userxattr,index=off",
                at(9, "work"),
                at(9, "fs"),
                at(5, "fs"),
                at(4, "fs")
            ))
        );
        let parents = [link(5), link(4)];
        let remapped = mounts(
            &directories,
            &OverlayOptions::default(),
            Kind::Active,
            9,
            &parents,
            &Lowers::Remapped {
                snapshot: 9,
                maps: IdMaps {
                    uid: Vec::new(),
                    gid: Vec::new(),
                },
            },
        );
        assert_eq!(
            remapped[0].options[2],
            format!("lowerdir={}:{}", at_name("5_9"), at_name("4_9"))
        );
        assert!(matches!(get(Kind::Active, &[link(4)]), (kind, ..) if kind == "overlay"));
    }
}
