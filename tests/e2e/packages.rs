//! The release files, made from the programs under test: archives, and the packages in a Debian of their own under
//! systemd. Needs root, FUSE, docker-registry, mmdebstrap, systemd, rpm and a cgroup2 mount.

use std::path::{Path, PathBuf};
use std::process::Command;

use soci_testkit::image::debian_with_systemd;
use soci_testkit::{TestRoot, binary, output_of};

use crate::support::systemd::{SERVICE, SystemdNode, V0_15_UNITS};
use crate::support::wait_until;

const OLD: &str = "98.0.0";
const NEW: &str = "99.0.0";
const ROOT: &str = "/var/lib/soci-snapshotter-grpc";
const CONFIG: &str = "/etc/soci-snapshotter-grpc/config.toml";

/// Runs the packaging script for one kind of file.
fn package(kind: &str, version: &str, output: &Path) {
    let programs = binary("soci").unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/package.sh");
    let mut command = Command::new(script);
    command.arg("--programs").arg(programs.parent().unwrap());
    command.args(["--fast", "--only", kind, "--version", version]);
    command.arg("--output").arg(output);
    output_of(command).unwrap();
}

/// The one file below a folder whose name ends like this.
fn only_file(folder: &Path, end: &str) -> PathBuf {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut found: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_str().unwrap().ends_with(end))
        .collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

fn sh(directory: &Path, script: &str) -> String {
    let mut command = Command::new("sh");
    command.args(["-ec", script]).current_dir(directory);
    output_of(command).unwrap()
}

#[test]
fn an_archive_is_what_guides_extract_and_the_same_programs_give_the_same_bytes() {
    let root = TestRoot::new().unwrap();
    let (first, again) = (root.dir("first").unwrap(), root.dir("again").unwrap());
    package("archive", NEW, &first);
    package("archive", NEW, &again);
    let archive = only_file(&first, ".tar.gz");
    let name = archive.file_name().unwrap().to_str().unwrap();
    let machine = if cfg!(target_arch = "x86_64") {
        "amd64"
    } else {
        "arm64"
    };
    assert_eq!(
        name,
        format!("soci-snapshotter-{NEW}-linux-{machine}.tar.gz")
    );
    assert!(std::fs::read(&archive).unwrap() == std::fs::read(again.join(name)).unwrap());

    // The command of the guides, with a checksum of the kind that v0.15 has beside it.
    let target = root.dir("bin").unwrap();
    sh(&first, &format!("sha256sum --check {name}.sha256sum"));
    let extract = format!(
        "tar -C {} -xvf {name} soci soci-snapshotter-grpc",
        target.display()
    );
    assert_eq!(sh(&first, &extract), "soci\nsoci-snapshotter-grpc\n");
    for program in ["soci", "soci-snapshotter-grpc"] {
        let mut version = Command::new(target.join(program));
        version.arg("--version");
        assert!(!output_of(version).unwrap().is_empty());
    }
    let listed = sh(&first, &format!("tar -tf {name}"));
    let files: Vec<_> = listed.lines().filter(|name| !name.ends_with('/')).collect();
    for expected in [
        "LICENSE",
        "THIRD_PARTY_LICENSES",
        "completions/soci.bash",
        "completions/_soci",
        "completions/soci.fish",
        "config/config.toml",
        "man/man1/soci-pull.1",
        "man/man5/soci-snapshotter-grpc.toml.5",
        "man/man8/soci-snapshotter-grpc.8",
        "systemd/soci-snapshotter.service",
        "systemd/soci-snapshotter.socket",
    ] {
        assert!(files.contains(&expected), "{expected}: {listed}");
    }
    let licences = sh(&first, &format!("tar -xOf {name} THIRD_PARTY_LICENSES"));
    for crate_name in ["\ntokio ", "\nring ", "\nzlib-rs "] {
        assert!(licences.contains(crate_name), "{crate_name}");
    }
}

/// A machine and the packages of two versions, where it sees them.
struct Scene {
    node: SystemdNode,
    old: String,
    new: String,
}

impl Scene {
    fn new(kind: &str) -> Self {
        let node = SystemdNode::start_in(&debian_with_systemd().unwrap());
        let [old, new] = [OLD, NEW].map(|version| {
            let folder = node.systemd.shared().join(version);
            package(kind, version, &folder);
            let file = only_file(&folder, &format!(".{kind}"));
            file.to_str().unwrap().to_owned()
        });
        Self { node, old, new }
    }

    /// Runs a command of the shell inside; gives what it printed, errors too.
    fn sh(&self, script: &str) -> String {
        // The paths that dpkg insists on.
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let merged = format!("exec 2>&1; export PATH={path} LC_ALL=C; {script}");
        let outcome = self.node.systemd.run("sh", ["-ec", &merged]);
        outcome.unwrap_or_else(|error| panic!("{error:#}\n{}", self.node.log()))
    }

    fn property(&self, name: &str) -> String {
        self.node.systemd.property(SERVICE, name).unwrap()
    }

    fn program(&self) -> String {
        self.sh(&format!("readlink /proc/{}/exe", self.inner_server()))
    }

    /// The server's number as processes inside see it.
    fn inner_server(&self) -> u32 {
        self.node.server()
    }

    fn exists(&self, path: &str) -> bool {
        self.node.systemd.path(path).exists()
    }

    /// The package of the next version is installed under a reader, who notices nothing.
    fn upgrade(&self, install: &str) {
        let reader = self.node.start_reader();
        let (server, main) = (self.node.server(), self.property("MainPID"));
        self.sh(install);
        assert_ne!(self.node.server(), server, "another server serves");
        assert_eq!(self.property("MainPID"), main, "by a hand-over");
        reader.goes_on();
        reader.finish();
    }

    /// The package is removed under a reader.
    fn remove(&self, remove: &str) {
        let reader = self.node.start_reader();
        self.sh(remove);
        assert_eq!(self.node.lazy_mounts(), 0);
        reader.fails();
        assert!(!self.exists("/usr/bin/soci"));
        assert!(!self.exists("/usr/lib/systemd/system/soci-snapshotter.service"));
        wait_until(
            "no process of ours is left",
            std::time::Duration::from_secs(60),
            || {
                let names = ["soci-holder", "soci-snapshotte"];
                let all = names.map(|name| self.node.systemd.processes(name).unwrap());
                let left: Vec<_> = all.into_iter().flatten().collect();
                left.is_empty().then_some(()).ok_or(format!("{left:?}"))
            },
        );
    }
}

#[test]
fn the_debian_package_takes_over_v0_15s_layout_hands_over_unmounts_and_purges() {
    let scene = Scene::new("deb");
    let node = &scene.node;

    // Programs and units where guides put those of v0.15, and a container.
    node.install_from_archive(&V0_15_UNITS);
    node.pull();
    let reader = node.start_reader();
    let server = node.server();
    let told = scene.sh(&format!("dpkg -i {}", scene.old));
    assert_eq!(node.server(), server, "what runs was left as it is");
    reader.goes_on();
    let advice = told
        .lines()
        .find_map(|line| line.split_once("soci-snapshotter:     "))
        .unwrap_or_else(|| panic!("no advice: {told}"));
    let removed = "rm /etc/systemd/system/soci-snapshotter.service /etc/systemd/system/soci-snapshotter.socket \
                   /usr/local/bin/soci-snapshotter-grpc /usr/local/bin/soci";
    assert!(advice.1.starts_with(removed), "{}", advice.1);
    scene.sh(advice.1);
    node.wait_for_server_after(server);
    assert_eq!(scene.program().trim(), "/usr/bin/soci-snapshotter-grpc");
    reader.goes_on();
    reader.finish();
    assert_eq!(scene.property("UnitFileState"), "enabled");

    // The operator's configuration stays.
    scene.sh(&format!("echo '# mine' >>{CONFIG}"));
    scene.upgrade(&format!("dpkg -i {}", scene.new));
    assert!(scene.sh(&format!("cat {CONFIG}")).ends_with("# mine\n"));
    assert!(
        scene
            .sh("dpkg -s soci-snapshotter")
            .contains(&format!("Version: {NEW}"))
    );

    scene.remove("dpkg --remove soci-snapshotter");
    assert!(scene.exists(ROOT) && scene.exists(CONFIG));
    scene.sh("dpkg --purge soci-snapshotter");
    assert!(!scene.exists(ROOT));
    assert!(!scene.exists("/etc/soci-snapshotter-grpc"));
    let links = scene.sh(
        "find /etc/systemd /var/lib/systemd/deb-systemd-helper-enabled -name '*soci*.s*' || true",
    );
    assert!(!links.contains("soci-snapshotter.socket"), "{links}");

    // On a machine without anything it is enabled and started, as Debian's services are.
    scene.sh(&format!("dpkg -i {}", scene.new));
    assert_eq!(scene.property("ActiveState"), "active");
    assert_eq!(scene.property("UnitFileState"), "enabled");
    scene.sh("dpkg --purge soci-snapshotter");
    assert!(!scene.exists(ROOT));
}

#[test]
fn the_rpm_package_installs_hands_over_and_unmounts() {
    let scene = Scene::new("rpm");
    let node = &scene.node;
    let needs = scene.sh(&format!("rpm -qp --requires {}", scene.old));
    assert!(needs.contains("libc.so.6(GLIBC_"), "{needs}");
    // No package of this Debian is known to rpm.
    scene.sh(&format!("rpm --nodeps -i {}", scene.old));
    // Presets decide about enabling, as distributions with rpm have it.
    scene.sh("systemctl enable --now soci-snapshotter.socket soci-snapshotter.service");
    node.pull();
    scene.sh(&format!("echo '# mine' >>{CONFIG}"));
    scene.upgrade(&format!("rpm --nodeps -U {}", scene.new));
    assert!(scene.sh(&format!("cat {CONFIG}")).ends_with("# mine\n"));
    assert_eq!(scene.sh("rpm -q --qf '%{VERSION}' soci-snapshotter"), NEW);
    scene.remove("rpm --nodeps -e soci-snapshotter");
    assert!(scene.exists(ROOT), "rpm knows no purge");
    assert!(!scene.exists("/etc/systemd/system/multi-user.target.wants/soci-snapshotter.service"));
}
