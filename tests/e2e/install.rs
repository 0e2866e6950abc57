//! `make install` and `make uninstall`. Needs make, and for the second half root, FUSE, docker-registry,
//! systemd and a cgroup2 mount.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::systemd::{SERVICE, SystemdNode};
use crate::support::wait_until;
use soci_testkit::{TestRoot, binary};

const CONFIG: &str = "etc/soci-snapshotter-grpc/config.toml";
const UNIT: &str = "etc/systemd/system/soci-snapshotter.service";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn make(target: &str, destination: &Path) -> String {
    let programs = binary("soci").unwrap();
    let output = Command::new("make")
        .arg("-C")
        .arg(repository())
        .arg(target)
        .arg("PREFIX=/opt/soci")
        .arg(format!("DESTDIR={}", destination.display()))
        .arg(format!(
            "RELEASE_DIR={}",
            programs.parent().unwrap().display()
        ))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The files below a folder, with their modes.
fn files(root: &Path) -> BTreeMap<String, u32> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let mode = path.metadata().unwrap().permissions().mode() & 0o777;
            let name = path
                .strip_prefix(root)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            found.insert(name, mode);
        }
    }
    found
}

/// Where the pages go that the program says it has.
fn pages_of_soci() -> BTreeMap<String, u32> {
    let root = TestRoot::new().unwrap();
    let folder = root.dir("pages").unwrap();
    let soci = binary("soci").unwrap();
    let status = Command::new(soci).arg("man").arg(&folder).status().unwrap();
    assert!(status.success());
    let pages = files(&folder);
    assert!(pages.contains_key("soci.1") && pages.contains_key("soci-index-list.1"));
    let installed = |name: &String| (format!("opt/soci/share/man/man1/{name}"), 0o644);
    pages.keys().map(installed).collect()
}

#[test]
fn install_puts_everything_below_destdir_keeps_the_configuration_and_uninstall_removes_it() {
    let root = TestRoot::new().unwrap();
    let destination = root.dir("image").unwrap();
    make("install", &destination);
    let expected = [
        (CONFIG, 0o644),
        (UNIT, 0o644),
        ("etc/systemd/system/soci-snapshotter.socket", 0o644),
        ("opt/soci/bin/soci", 0o755),
        ("opt/soci/bin/soci-snapshotter-grpc", 0o755),
        ("opt/soci/share/bash-completion/completions/soci", 0o644),
        ("opt/soci/share/fish/vendor_completions.d/soci.fish", 0o644),
        ("opt/soci/share/zsh/site-functions/_soci", 0o644),
        (
            "opt/soci/share/man/man5/soci-snapshotter-grpc.toml.5",
            0o644,
        ),
        ("opt/soci/share/man/man8/soci-snapshotter-grpc.8", 0o644),
    ];
    let mut expected = BTreeMap::from(expected.map(|(name, mode)| (name.to_owned(), mode)));
    expected.extend(pages_of_soci());
    assert_eq!(files(&destination), expected);

    let unit = std::fs::read_to_string(destination.join(UNIT)).unwrap();
    let program = "/opt/soci/bin/soci-snapshotter-grpc";
    assert!(
        unit.contains(&format!("\nExecStart={program} --address fd://\n")),
        "{unit}"
    );
    assert!(
        unit.contains(&format!("\nExecReload={program} upgrade\n")),
        "{unit}"
    );
    for (name, _) in files(&destination)
        .iter()
        .filter(|(name, _)| name.contains("/share/") && !name.contains("/man/"))
    {
        let script = std::fs::read_to_string(destination.join(name)).unwrap();
        assert!(script.contains("abort-mounts"), "{name}");
    }

    let config = destination.join(CONFIG);
    std::fs::write(&config, "# mine\n").unwrap();
    let told = make("install", &destination);
    assert!(told.contains("kept "), "{told}");
    assert_eq!(std::fs::read_to_string(&config).unwrap(), "# mine\n");
    make("uninstall", &destination);
    let left = BTreeMap::from([(CONFIG.to_owned(), 0o644)]);
    assert_eq!(files(&destination), left);
    assert_eq!(std::fs::read_to_string(&config).unwrap(), "# mine\n");
}

#[test]
fn uninstall_stops_the_daemon_and_takes_the_mounts_down_although_they_are_in_use() {
    let node = SystemdNode::start_installed();
    let reader = node.start_reader();
    assert_eq!(
        node.systemd.property(SERVICE, "ActiveState").unwrap(),
        "active"
    );
    let told = node.make("uninstall");
    assert!(told.contains("unmounted 2"), "{told}");
    assert_eq!(node.lazy_mounts(), 0);
    reader.fails();
    assert!(
        !node
            .systemd
            .path("/etc/systemd/system")
            .join(SERVICE)
            .exists()
    );
    wait_until(
        "no process of ours is left",
        Duration::from_secs(60),
        || {
            let names = ["soci-holder", "soci-snapshotte"];
            let all = names.map(|name| node.systemd.processes(name).unwrap());
            let left: Vec<_> = all.into_iter().flatten().collect();
            left.is_empty().then_some(()).ok_or(format!("{left:?}"))
        },
    );
}
