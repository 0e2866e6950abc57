//! What containerd itself makes of the changed files: 1.6, 1.7 and 2.1, `containerd config dump`.

use std::path::Path;
use std::process::Command;

use soci_node::config::{Before, ConfigFiles, ContainerdRelease, Edit, Snapshotter};
use soci_testkit::{Release, TestRoot};

fn snapshotter() -> Snapshotter {
    Snapshotter {
        socket: "/run/s.sock".to_owned(),
        root: "/var/lib/s".to_owned(),
    }
}

fn containerd(release: Release, arguments: &[&str]) -> String {
    let output = Command::new(release.program("containerd").unwrap())
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn number(release: Release) -> ContainerdRelease {
    ContainerdRelease::parse(&containerd(release, &["--version"])).unwrap()
}

/// The effective configuration, one line for each key: `table.key = value` is searched by its end.
fn dump(release: Release, main: &Path) -> String {
    containerd(
        release,
        &["--config", &main.display().to_string(), "config", "dump"],
    )
    .replace('\'', "\"")
}

/// Plans and writes; the second plan must find nothing to change.
fn enable(release: Release, main: &Path) -> Before {
    let root = Path::new("/");
    let plan = || {
        let files = ConfigFiles::load(root, main).unwrap();
        files.plan(number(release), &snapshotter()).unwrap()
    };
    let (targets, before) = plan();
    assert!(!targets.is_empty());
    for target in &targets {
        std::fs::create_dir_all(target.path.parent().unwrap()).unwrap();
        std::fs::write(&target.path, &target.text).unwrap();
    }
    let (again, _) = plan();
    for target in again {
        let there = std::fs::read_to_string(&target.path).unwrap();
        assert_eq!(there, target.text, "a second plan changes nothing");
    }
    before
}

const V2: &str = "\
# mine
version = 2
[grpc]
  address = \"/run/mine.sock\" # a comment
[plugins.\"io.containerd.grpc.v1.cri\"]
  SANDBOX_OR_NOTHING
[plugins.\"io.containerd.grpc.v1.cri\".containerd]
  default_runtime_name = \"runc\"
  snapshotter = \"native\"
[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]
  runtime_type = \"io.containerd.runc.v2\"
[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]
  SystemdCgroup = true
";

fn v2() -> String {
    V2.replace("SANDBOX_OR_NOTHING", "sandbox_image = \"mine/pause:1\"")
}

const V3: &str = "\
# mine
version = 3
[plugins.\"io.containerd.cri.v1.images\".pinned_images]
  sandbox = \"mine/pause:1\"
[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]
  platform = \"linux\"
  snapshotter = \"native\"
[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.runc]
  runtime_type = \"io.containerd.runc.v2\"
[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.runc.options]
  SystemdCgroup = true
";

/// What the configuration of the node said and says still.
fn keeps_the_rest(dumped: &str) {
    for kept in ["\"mine/pause:1\"", "SystemdCgroup = true"] {
        assert!(dumped.contains(kept), "{kept} in {dumped}");
    }
}

fn uses_soci(dumped: &str) {
    for wanted in [
        "snapshotter = \"soci\"",
        "disable_snapshot_annotations = false",
        "proxy_plugins.soci]",
        "address = \"/run/s.sock\"",
    ] {
        assert!(dumped.contains(wanted), "{wanted} in {dumped}");
    }
}

#[test]
fn a_file_of_version_2_is_changed_in_place_and_everything_else_in_it_counts_still() {
    for release in Release::ALL {
        let root = TestRoot::new().unwrap();
        let main = root.path().join("config.toml");
        std::fs::write(&main, v2()).unwrap();
        let before = enable(release, &main);
        assert_eq!(before.snapshotter.as_deref(), Some("native"));
        let dumped = dump(release, &main);
        uses_soci(&dumped);
        keeps_the_rest(&dumped);
        let text = std::fs::read_to_string(&main).unwrap();
        assert!(text.starts_with("# mine\n"), "{text}");
        assert!(text.contains("\"/run/mine.sock\" # a comment"), "{text}");
        // And the way back without the original bytes.
        let mut edit = Edit::of("it", &text, number(release)).unwrap();
        edit.remove(&before).unwrap();
        std::fs::write(&main, edit.text()).unwrap();
        let dumped = dump(release, &main);
        let left = dumped.contains("\"soci\"") || dumped.contains("proxy_plugins.soci");
        assert!(!left, "{dumped}");
        assert!(dumped.contains("snapshotter = \"native\""), "{dumped}");
        keeps_the_rest(&dumped);
    }
}

#[test]
fn a_node_without_a_file_or_without_tables_of_cri_gets_them() {
    for release in Release::ALL {
        for text in [None, Some(""), Some("version = 2\n")] {
            let root = TestRoot::new().unwrap();
            let main = root.path().join("config.toml");
            if let Some(text) = text {
                std::fs::write(&main, text).unwrap();
            }
            let before = enable(release, &main);
            assert_eq!(before, Before::default());
            uses_soci(&dump(release, &main));
        }
    }
}

#[test]
fn containerd_2_gets_a_drop_in_where_it_imports_a_folder_and_the_main_file_stays() {
    let release = Release::V2_1;
    for (text, unpacks) in [(V3.to_owned(), "native"), (v2(), "overlayfs")] {
        let root = TestRoot::new().unwrap();
        let main = root.path().join("config.toml");
        let imports = format!("imports = [\"{}/conf.d/*.toml\"]\n", root.path().display());
        let text = imports + &text;
        std::fs::write(&main, &text).unwrap();
        enable(release, &main);
        assert_eq!(std::fs::read_to_string(&main).unwrap(), text);
        let dumped = dump(release, &main);
        uses_soci(&dumped);
        keeps_the_rest(&dumped);
        for wanted in [
            "enable_remote_snapshot_annotations = \"true\"",
            "root = \"/var/lib/s\"",
            "capabilities = [\"remap-ids\", \"multi-remap-ids\"]",
            &format!("snapshotter = \"{unpacks}\""),
        ] {
            assert!(dumped.contains(wanted), "{wanted} in {dumped}");
        }
        let entries = dumped.matches(".unpack_config]]").count();
        assert_eq!(
            entries, 2,
            "the transfer service unpacks with both: {dumped}"
        );
    }
}

#[test]
fn containerd_1_gets_no_drop_in_because_it_would_replace_the_whole_plugin() {
    for release in [Release::Installed, Release::V1_7] {
        let root = TestRoot::new().unwrap();
        let main = root.path().join("config.toml");
        let folder = root.dir("conf.d").unwrap();
        let imports = format!("imports = [\"{}/*.toml\"]\n", folder.display());
        // The section of the imported file is the one that counts.
        std::fs::write(&main, imports + "version = 2\n").unwrap();
        std::fs::write(folder.join("cri.toml"), v2()).unwrap();
        std::fs::write(folder.join("empty.toml"), "").unwrap();
        enable(release, &main);
        let dumped = dump(release, &main);
        uses_soci(&dumped);
        keeps_the_rest(&dumped);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 2);
        let empty = std::fs::read_to_string(folder.join("empty.toml")).unwrap();
        assert_eq!(empty, "");
    }
}

#[test]
fn files_that_cannot_be_changed_are_refused_with_their_name() {
    let release = ContainerdRelease { major: 2, minor: 1 };
    for (text, reason) in [
        ("version = 1\n", "/c.toml has version 1 of the format"),
        ("root = \"/x\"\n", "/c.toml has version 1 of the format"),
        ("version = 9\n", "/c.toml has version 9 of the format"),
        ("version = [\n", "cannot read /c.toml: it is not valid TOML"),
        (
            "version = 3\nproxy_plugins = 3\n",
            "proxy_plugins in /c.toml is not a table",
        ),
        (
            "version = 3\n[proxy_plugins]\nsoci = \"x\"\n",
            "proxy_plugins.soci in /c.toml is not a table",
        ),
    ] {
        let edited = Edit::of("/c.toml", text, release)
            .and_then(|mut edit| edit.add_plugin(&snapshotter(), release));
        let error = edited.unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    let old = ContainerdRelease { major: 1, minor: 7 };
    let error = Edit::of("/c.toml", "version = 3\n", old).unwrap_err();
    assert!(error.to_string().contains("version 3"), "{error}");
}
