//! Stacked layers against a plain directory: every change is made in a mounted snapshot and in one
//! flat directory. Both must be equal before and after, in a view of the whole, and in a new snapshot
//! on top. The cases are those of containerd's public conformance suite.

use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;

use crate::fixture::Machine;

type Change = Box<dyn Fn(&Path)>;

/// Describes `root` and everything below it: name, type, mode, owner, links of files, content.
fn look(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(path) = waiting.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let kind = metadata.file_type();
        let content = if kind.is_dir() {
            waiting.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
            "directory".to_owned()
        } else if kind.is_symlink() {
            format!("-> {}", fs::read_link(&path).unwrap().display())
        } else if kind.is_file() {
            let links = metadata.nlink();
            format!("{links} {:?}", fs::read_to_string(&path).unwrap())
        } else {
            assert!(
                kind.is_char_device() || kind.is_fifo(),
                "{}",
                path.display()
            );
            format!("device {}", metadata.rdev())
        };
        found.push(format!(
            "{} {:o} {}:{} {content}",
            path.strip_prefix(root).unwrap().display(),
            metadata.mode(),
            metadata.uid(),
            metadata.gid()
        ));
    }
    found.sort();
    found
}

/// Makes a layer of each change and compares at every step.
async fn compare(layers: Vec<Change>) {
    let machine = Machine::new();
    let daemon = machine.start().await;
    let flat = machine.folder("flat");
    fs::set_permissions(&flat, Permissions::from_mode(0o755)).unwrap();
    let mut parent = String::new();
    for (index, change) in layers.iter().enumerate() {
        let key = format!("layer-{index}");
        let mounts = daemon.prepare(&key, &parent).await.unwrap();
        {
            let (root, _mounted) = machine.mount(&mounts, &key);
            assert_eq!(look(&root), look(&flat), "before change {index}");
            change(&root);
            change(&flat);
            assert_eq!(look(&root), look(&flat), "after change {index}");
        }
        parent = format!("committed-{index}");
        daemon.commit(&parent, &key).await.unwrap();
    }
    let view = daemon.view("view", &parent).await.unwrap();
    let container = daemon.prepare("container", &parent).await.unwrap();
    for (name, mounts) in [("view", view), ("container", container)] {
        let (root, _mounted) = machine.mount(&mounts, name);
        assert_eq!(look(&root), look(&flat), "{name}");
    }
}

fn change(change: impl Fn(&Path) + 'static) -> Change {
    Box::new(change)
}

fn file(root: &Path, name: &str, content: &str, mode: u32) {
    let path = root.join(name);
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
}

fn directory(root: &Path, name: &str) {
    DirBuilder::new()
        .mode(0o700)
        .create(root.join(name))
        .unwrap();
}

fn owned(root: &Path, name: &str, owner: u32) {
    chown(root.join(name), Some(owner), Some(owner)).unwrap();
}

#[tokio::test]
async fn layer_file_update_content_and_mode_of_lower_files_change() {
    compare(vec![
        change(|root| {
            directory(root, "etc");
            file(root, "etc/hosts", "one 10.0.0.1", 0o644);
            file(root, "etc/profile", "PATH=/bin", 0o644);
        }),
        change(|root| {
            // Same length, within the same second.
            file(root, "etc/hosts", "one 10.0.0.2", 0o644);
            file(root, "etc/profile", "PATH=/bin", 0o666);
            directory(root, "root");
            file(root, "root/.bashrc", "PATH=/sbin:/bin", 0o644);
        }),
    ])
    .await;
}

#[tokio::test]
async fn remove_directory_in_lower_layer_and_make_it_again() {
    compare(vec![
        change(|root| {
            directory(root, "lib");
            file(root, "lib/hidden", "", 0o644);
        }),
        change(|root| {
            fs::remove_dir_all(root.join("lib")).unwrap();
            directory(root, "lib");
            file(root, "lib/seen", "", 0o644);
        }),
        change(|root| file(root, "lib/new", "", 0o644)),
    ])
    .await;
}

#[tokio::test]
async fn chown_of_lower_directories_and_files() {
    compare(vec![
        change(|root| {
            for name in ["opt", "opt/a", "opt/a/b"] {
                directory(root, name);
            }
            file(root, "opt/a/b/file", "hello", 0o644);
        }),
        change(|root| {
            for name in ["opt", "opt/a", "opt/a/b", "opt/a/b/file"] {
                owned(root, name, 1);
            }
        }),
    ])
    .await;
}

#[tokio::test]
async fn directory_permission_on_commit_owners_change_back_and_forth() {
    compare(vec![
        change(|root| {
            for name in ["d1", "d2", "d3", "d4", "d5"] {
                directory(root, name);
            }
            file(root, "d4/f", "...", 0o644);
            file(root, "d5/f", "...", 0o644);
            for name in ["d1", "d2", "d3", "d5", "d5/f"] {
                owned(root, name, 1);
            }
        }),
        change(|root| {
            owned(root, "d2", 0);
            fs::remove_dir_all(root.join("d3")).unwrap();
            owned(root, "d4", 1);
            owned(root, "d4/f", 1);
        }),
        change(|root| {
            fs::remove_dir_all(root.join("d5")).unwrap();
            for name in ["d3", "d5"] {
                directory(root, name);
                owned(root, name, 1);
            }
        }),
    ])
    .await;
}

#[tokio::test]
async fn deleted_files_in_child_snapshot_stay_deleted_in_its_children() {
    compare(vec![
        change(|root| {
            file(root, "foo", "foo\n", 0o777);
            file(root, "foobar", "foobar\n", 0o777);
        }),
        change(|root| fs::remove_file(root.join("foobar")).unwrap()),
        change(|_| ()),
    ])
    .await;
}

#[tokio::test]
async fn move_file_from_lower_layer_to_another_directory() {
    compare(vec![
        change(|root| {
            directory(root, "dir1");
            file(root, "dir1/f1", "Hello", 0o644);
            directory(root, "dir2");
            file(root, "dir2/f2", "..", 0o644);
        }),
        change(|root| {
            directory(root, "dir3");
            fs::rename(root.join("dir1/f1"), root.join("dir3/f1")).unwrap();
            fs::rename(root.join("dir2/f2"), root.join("dir3/f2")).unwrap();
        }),
    ])
    .await;
}

#[tokio::test]
async fn rename_over_a_lower_file_and_of_a_lower_file() {
    compare(vec![
        change(|root| {
            directory(root, "files");
            file(root, "files/f1", "was here first", 0o644);
            file(root, "files/f2", "nothing of interest", 0o644);
        }),
        change(|root| {
            file(root, "files/new", "new content", 0o600);
            fs::rename(root.join("files/new"), root.join("files/f1")).unwrap();
            fs::rename(root.join("files/f2"), root.join("files/f3")).unwrap();
            // A directory of this layer; one of a lower layer overlayfs refuses with EXDEV.
            directory(root, "dir1");
            fs::rename(root.join("dir1"), root.join("dir2")).unwrap();
        }),
    ])
    .await;
}

#[tokio::test]
async fn links_and_fifos_of_lower_layers_are_kept_and_replaced() {
    compare(vec![
        change(|root| {
            file(root, "file", "x", 0o4755);
            std::os::unix::fs::symlink("file", root.join("link")).unwrap();
            file(root, "other", "y", 0o644);
        }),
        change(|root| {
            fs::remove_file(root.join("link")).unwrap();
            std::os::unix::fs::symlink("other", root.join("link")).unwrap();
            fs::remove_file(root.join("other")).unwrap();
            directory(root, "other");
            rustix::fs::mknodat(
                rustix::fs::CWD,
                root.join("other/fifo"),
                rustix::fs::FileType::Fifo,
                rustix::fs::Mode::from(0o600),
                0,
            )
            .unwrap();
        }),
    ])
    .await;
}

#[tokio::test]
async fn mounts_of_128_layers_each_of_which_overwrites_adds_and_replaces() {
    let mut layers = vec![change(|root| {
        file(root, "bottom", "way down\n", 0o777);
        file(root, "overwritten", "first\n", 0o777);
        directory(root, "added");
        directory(root, "replaced");
        file(root, "replaced/bottom", "bye\n", 0o777);
    })];
    for index in 1..128 {
        layers.push(change(move |root| {
            file(root, "overwritten", &format!("{index}\n"), 0o777);
            file(root, &format!("added/{index}"), "same\n", 0o755);
            fs::remove_dir_all(root.join("replaced")).unwrap();
            directory(root, "replaced");
            file(root, &format!("replaced/{index}"), "only me\n", 0o777);
        }));
    }
    compare(layers).await;
}
