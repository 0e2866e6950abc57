//! Removal.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use soci_dirtree::{remove_path, remove_tree};

use crate::tree::{DEEP, confined, in_memory, nest};

fn left(folder: &std::path::Path) -> usize {
    fs::read_dir(folder).unwrap().count()
}

#[test]
fn a_folder_a_hundred_thousand_levels_deep_goes() {
    let root = in_memory();
    let top = root.path().join("top");
    fs::create_dir(&top).unwrap();
    drop(nest(&top, DEEP));
    confined(move || remove_path(&top).unwrap());
    assert_eq!(left(root.path()), 0);
}

#[test]
fn many_deep_folders_beside_each_other_go() {
    let root = in_memory();
    let top = root.path().join("top");
    fs::create_dir(&top).unwrap();
    for number in 0..20 {
        // Names that the removal itself would use are nothing special.
        for name in [".soci-removed-", ""] {
            let branch = top.join(format!("{name}{number}"));
            fs::create_dir(&branch).unwrap();
            let deep = nest(&branch, 100);
            rustix::fs::mkdirat(&deep, ".soci-removed-0", rustix::fs::Mode::RWXU).unwrap();
        }
    }
    remove_path(&top).unwrap();
    assert_eq!(left(root.path()), 0);
}

#[test]
fn a_wide_folder_and_files_of_all_kinds_go() {
    let root = in_memory();
    let top = root.path().join("top");
    fs::create_dir(&top).unwrap();
    for number in 0..3000 {
        fs::write(top.join(format!("file-{number}")), "x").unwrap();
        fs::create_dir(top.join(format!("folder-{number}"))).unwrap();
    }
    let kept = root.path().join("kept");
    fs::create_dir(&kept).unwrap();
    fs::write(kept.join("file"), "x").unwrap();
    symlink(&kept, top.join("link")).unwrap();
    symlink(&kept, top.join("folder-1/link")).unwrap();
    let odd = std::ffi::OsStr::from_bytes(b"\xff\n");
    fs::write(top.join(odd), "x").unwrap();
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(
        rustix::fs::CWD,
        top.join("fifo"),
        fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    remove_path(&top).unwrap();
    assert_eq!(left(root.path()), 1);
    assert!(kept.join("file").exists());
}

#[test]
fn a_link_goes_and_not_what_it_names() {
    let root = in_memory();
    let kept = root.path().join("kept");
    fs::create_dir(&kept).unwrap();
    fs::write(kept.join("file"), "x").unwrap();
    symlink(&kept, root.path().join("link")).unwrap();
    let parent = fs::File::open(root.path()).unwrap();
    remove_tree(parent.as_fd(), "link".as_ref()).unwrap();
    assert!(kept.join("file").exists());
    let missing = remove_path(&root.path().join("link")).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
}

#[test]
fn what_is_mounted_stays_and_the_rest_goes() {
    let root = in_memory();
    let top = root.path().join("top");
    for folder in ["a/mounted", "b/c"] {
        fs::create_dir_all(top.join(folder)).unwrap();
    }
    let mounted = top.join("a/mounted");
    mount("none", &mounted, "tmpfs", MountFlags::empty(), None).unwrap();
    fs::write(mounted.join("file"), "x").unwrap();
    let error = remove_path(&top).unwrap_err();
    let intact = mounted.join("file").exists();
    let gone = !top.join("b").exists();
    let itself = remove_path(&mounted).unwrap_err();
    let still_intact = mounted.join("file").exists();
    unmount(&mounted, UnmountFlags::DETACH).unwrap();
    assert!(intact && gone && still_intact, "{error}, {itself}");
    assert!(error.to_string().contains("mounted"), "{error}");
    remove_path(&top).unwrap();
    assert_eq!(left(root.path()), 0);
}
