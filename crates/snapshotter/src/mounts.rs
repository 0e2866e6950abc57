//! The mounts with which a client sees a snapshot: a bind mount if one directory is enough,
//! overlayfs otherwise. Options and their order are those of containerd's overlayfs snapshotter.

use std::fs;
use std::path::Path;

use rustix::fs::statfs;

use crate::api::types::Mount;
use crate::api::v1::Kind;
use crate::directories::Directories;
use crate::snapshot_dir::SnapshotDir;

/// `f_type` of tmpfs (linux/magic.h).
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// Options of every overlay mount.
#[derive(Debug, Clone, Default)]
pub(crate) struct OverlayOptions {
    pub(crate) extra: Vec<String>,
}

impl OverlayOptions {
    /// Finds out the options that the kernel needs.
    pub(crate) fn detect(userxattr: bool) -> Self {
        let mut extra = Vec::new();
        if userxattr {
            extra.push("userxattr".to_owned());
        }
        // With an index, a work directory refuses other lower directories than its first ones, such as
        // a layer that was mounted again.
        if Path::new("/sys/module/overlay/parameters/index").exists() {
            extra.push("index=off".to_owned());
        }
        Self { extra }
    }
}

/// Whether overlays on the directory `root` must be mounted with `userxattr`.
///
/// Inside a user namespace overlayfs cannot use `trusted.*` attributes. Linux 5.11 and newer use
/// `user.*` instead, which tmpfs does not have.
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

/// Whether the kernel of this release has the option. A malformed release counts as a new one.
fn knows_userxattr(release: &str) -> bool {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|number| number.parse::<u32>().ok());
    let version = numbers.next().zip(numbers.next());
    version.is_none_or(|version| version >= (5, 11))
}

/// Returns the mounts of a snapshot with these lower directories, nearest parent first.
pub(crate) fn mounts(
    directories: &Directories,
    overlay: &OverlayOptions,
    kind: Kind,
    id: u64,
    lower: &[SnapshotDir],
) -> Vec<Mount> {
    let active = kind == Kind::Active;
    let mount = match lower {
        [] => bind(&directories.fs(id), active),
        [parent] if !active => bind(&directories.fs(*parent), false),
        _ => {
            let mut options = Vec::new();
            if active {
                options.push(format!("workdir={}", directories.work(id).display()));
                options.push(format!("upperdir={}", directories.fs(id).display()));
            }
            let lower: Vec<String> = lower
                .iter()
                .map(|dir| directories.fs(*dir).display().to_string())
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

/// Returns the mounts with which containerd's applier unpacks an upper layer that is prepared
/// without the layers below it.
///
/// The applier converts whiteouts where the mount is an overlay, and then writes into its upper
/// directory (containerd, `core/diff/apply/apply_linux.go`). In a bind mount it would remove the
/// files of the whiteouts instead, of which there are none: what a layer deletes would show again.
/// containerd does the same for its own overlayfs (issue 13030 there).
pub(crate) fn detached(mounts: Vec<Mount>) -> Vec<Mount> {
    let overlay = |mount: Mount| match mount.r#type.as_str() {
        "bind" => Mount {
            r#type: "overlay".to_owned(),
            source: "overlay".to_owned(),
            options: vec![format!("upperdir={}", mount.source)],
            ..mount
        },
        _ => mount,
    };
    mounts.into_iter().map(overlay).collect()
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
        let get = |kind, parents: &[u64]| {
            let lower: Vec<_> = parents.iter().copied().map(SnapshotDir::Snapshot).collect();
            let mut mounts = mounts(&directories, &overlay, kind, 9, &lower);
            assert_eq!(mounts.len(), 1);
            let mount = mounts.remove(0);
            (mount.r#type, mount.source, mount.options.join(","))
        };
        let bind = |source, options: &str| ("bind".to_owned(), source, options.to_owned());
        let overlay = |options| ("overlay".to_owned(), "overlay".to_owned(), options);

        assert_eq!(get(Kind::Active, &[]), bind(at(9, "fs"), "rw,rbind"));
        assert_eq!(get(Kind::View, &[]), bind(at(9, "fs"), "ro,rbind"));
        assert_eq!(get(Kind::View, &[4]), bind(at(4, "fs"), "ro,rbind"));
        assert_eq!(
            get(Kind::View, &[5, 4]),
            overlay(format!(
                "lowerdir={}:{},userxattr,index=off",
                at(5, "fs"),
                at(4, "fs")
            ))
        );
        assert_eq!(
            get(Kind::Active, &[5, 4]),
            overlay(format!(
                "workdir={},upperdir={},lowerdir={}:{},userxattr,index=off",
                at(9, "work"),
                at(9, "fs"),
                at(5, "fs"),
                at(4, "fs")
            ))
        );
        let (snapshot, [near, far]) = (9, [5, 4]);
        let lower = [near, far].map(|layer| SnapshotDir::IdMapped { layer, snapshot });
        let id_mapped = mounts(
            &directories,
            &OverlayOptions::default(),
            Kind::Active,
            snapshot,
            &lower,
        );
        assert_eq!(
            id_mapped[0].options[2],
            format!("lowerdir={}:{}", at_name("5_9"), at_name("4_9"))
        );
        assert!(matches!(get(Kind::Active, &[4]), (kind, ..) if kind == "overlay"));
    }
}
