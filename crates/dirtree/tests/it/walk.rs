//! The order of a walk.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::symlink;

use rustix::fs::{CWD, Mode, mkdirat, renameat};
use soci_dirtree::{Event, Walk};

use crate::tree::{in_memory, nest};

#[test]
fn each_entry_comes_once_and_a_folder_before_what_it_holds() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("a/b")).unwrap();
    fs::write(root.path().join("a/b/c"), "").unwrap();
    fs::write(root.path().join("a/d"), "").unwrap();
    for open in [Walk::live, Walk::still, Walk::listed] {
        let mut walk = open(root.path()).unwrap();
        let mut path: Vec<String> = Vec::new();
        let mut seen = Vec::new();
        while let Some(event) = walk.step().unwrap() {
            let name = walk.name().to_str().unwrap().to_owned();
            match event {
                Event::Entry(_) => seen.push([path.join("/"), name].join("/")),
                Event::Entered => path.push(name),
                Event::Leaving => {
                    seen.push(format!("end of {}", path.join("/")));
                    path.pop();
                }
            }
        }
        let at = |entry: &str| seen.iter().position(|other| other == entry).unwrap();
        assert!(at("/a") < at("a/b") && at("a/b") < at("a/b/c"), "{seen:?}");
        assert!(at("a/b/c") < at("end of a/b") && at("end of a/b") < at("end of a"));
        assert!(at("a/d") < at("end of a"));
        assert_eq!(seen.len(), 7, "{seen:?}");
    }
}

/// Below the levels that are kept open the way up is `..`, which leads out of the tree if the folder
/// was moved out.
#[test]
fn a_deep_folder_that_is_moved_out_leads_the_walk_to_nothing_outside() {
    let (root, outside) = (in_memory(), in_memory());
    let deep = nest(root.path(), 60);
    for name in ["a", "b"] {
        mkdirat(&deep, name, Mode::RWXU).unwrap();
        fs::create_dir(outside.path().join(name)).unwrap();
        fs::write(outside.path().join(name).join("outside"), "").unwrap();
    }
    let mut walk = Walk::live(root.path()).unwrap();
    let mut moved: Option<CString> = None;
    let mut seen = 0;
    while let Some(event) = walk.step().unwrap() {
        seen += u32::from(matches!(event, Event::Entry(_)));
        assert_ne!(walk.name(), c"outside", "{moved:?} was moved");
        if matches!(event, Event::Entered) && walk.depth() == 61 && moved.is_none() {
            let name = walk.name().to_owned();
            renameat(&deep, &name, CWD, outside.path().join("moved")).unwrap();
            moved = Some(name);
        }
    }
    assert!(moved.is_some() && seen >= 61, "{seen} entries");
}

#[test]
fn a_folder_that_becomes_a_link_before_it_is_entered_leads_to_nothing_outside() {
    let (root, outside) = (in_memory(), in_memory());
    fs::write(outside.path().join("outside"), "").unwrap();
    let folder = root.path().join("folder");
    fs::create_dir(&folder).unwrap();
    let mut walk = Walk::live(root.path()).unwrap();
    let mut seen = 0;
    while let Some(event) = walk.step().unwrap() {
        seen += 1;
        assert_ne!(walk.name(), c"outside");
        if matches!(event, Event::Entry(_)) {
            fs::remove_dir(&folder).unwrap();
            symlink(outside.path(), &folder).unwrap();
        }
    }
    assert!(seen > 0);
}
