//! The order of a walk.

use std::fs;

use soci_dirtree::{Event, Walk};

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
