//! The release files, made from the programs under test: archives, and the packages in a Debian of their own under
//! systemd. Needs root, FUSE, docker-registry, mmdebstrap, systemd, rpm and a cgroup2 mount.

use std::path::{Path, PathBuf};
use std::process::Command;

use soci_testkit::image::debian_with_systemd;
use soci_testkit::{TestRoot, binary, copy_program, output_of};

use crate::support::systemd::{SERVICE, SystemdNode, V0_15_UNITS};
use crate::support::wait_until;

const OLD: &str = "98.0.0";
const NEW: &str = "99.0.0";
const ROOT: &str = "/var/lib/soci-snapshotter-grpc";
const CONFIG: &str = "/etc/soci-snapshotter-grpc/config.toml";

/// The processor, as release files and images name it.
const MACHINE: &str = if cfg!(target_arch = "x86_64") {
    "amd64"
} else {
    "arm64"
};
const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Runs the packaging script for one kind of file.
fn package(kind: &str, version: &str, output: &Path) {
    package_of("--programs", kind, version, output);
}

/// The same. With `--static`, the script makes of the programs under test what it makes of static ones.
fn package_of(flag: &str, kind: &str, version: &str, output: &Path) {
    let programs = binary("soci").unwrap();
    let mut command = Command::new(format!("{REPOSITORY}/scripts/package.sh"));
    command.arg(flag).arg(programs.parent().unwrap());
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
    assert_eq!(
        name,
        format!("soci-snapshotter-{NEW}-linux-{MACHINE}.tar.gz")
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

#[test]
fn the_static_archive_has_its_own_name_and_the_licence_of_the_c_library() {
    let root = TestRoot::new().unwrap();
    let output = root.dir("output").unwrap();
    package_of("--static", "archive deb rpm", NEW, &output);
    // There is no other package of static programs.
    let name = format!("soci-snapshotter-{NEW}-linux-{MACHINE}-static.tar.gz");
    assert_eq!(sh(&output, "ls"), format!("{name}\n{name}.sha256sum\n"));
    sh(&output, &format!("sha256sum --check {name}.sha256sum"));
    let listed = sh(&output, &format!("tar -tf {name}"));
    assert!(
        listed.starts_with("soci\nsoci-snapshotter-grpc\n"),
        "{listed}"
    );
    let licences = sh(&output, &format!("tar -xOf {name} THIRD_PARTY_LICENSES"));
    for part in [
        "\ntokio ",
        "The GNU C library: LGPL-2.1-or-later",
        "GNU LESSER GENERAL PUBLIC LICENSE",
    ] {
        assert!(licences.contains(part), "{part}");
    }
}

/// The files and folders of a folder: modes, owners and names.
fn tree(folder: &Path) -> String {
    sh(
        folder,
        "find . -mindepth 1 -printf '%M %U:%G %P\\n' | sort -k 3",
    )
}

#[test]
fn the_container_image_has_programs_and_certificates_and_runs_the_commands_of_the_manifests() {
    let root = TestRoot::new().unwrap();
    let certificates = root.path().join("authorities.pem");
    let pem = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    std::fs::write(&certificates, pem).unwrap();
    package("archive", NEW, &root.dir("release").unwrap());
    let archive = only_file(&root.path().join("release"), ".tar.gz");
    let image = |certificates: &Path, layout: &str| {
        let mut command = Command::new(format!("{REPOSITORY}/scripts/package-image.sh"));
        command.arg("--certificates").arg(certificates);
        command.arg(&archive).arg(format!("{layout}:{NEW}"));
        // Nothing of the caller's umask ends in the image.
        let mut shell = Command::new("sh");
        shell.args(["-c", "umask 0077 && exec \"$@\"", "sh"]);
        shell.arg(command.get_program()).args(command.get_args());
        output_of(shell.current_dir(root.path()))
    };
    image(&certificates, "first").unwrap();
    image(&certificates, "again").unwrap();
    sh(root.path(), "diff -r first again");
    let secret = root.path().join("secret.pem");
    let key = format!("{pem}-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n");
    std::fs::write(&secret, key).unwrap();
    let refused = image(&secret, "third").unwrap_err().to_string();
    assert!(refused.contains("has a private key"), "{refused}");

    // Other programs read the layout.
    let copy = format!("skopeo copy -q oci:first:{NEW} dir:copied");
    sh(root.path(), &copy);
    let config = sh(
        root.path(),
        &format!("skopeo inspect --config oci:first:{NEW}"),
    );
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["architecture"], MACHINE);
    assert_eq!(config["config"]["Entrypoint"], serde_json::json!(["/soci"]));
    let command = serde_json::json!(["node", "install", "--enter-host", "--stay"]);
    assert_eq!(config["config"]["Cmd"], command);
    let manifest = sh(
        root.path(),
        &format!("skopeo inspect --raw oci:first:{NEW}"),
    );
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    let digest = manifest["layers"][0]["digest"].as_str().unwrap();
    let layer = format!("copied/{}", digest.trim_start_matches("sha256:"));
    sh(
        root.path(),
        &format!("mkdir -m 755 rootfs && tar -C rootfs --same-owner -xzf {layer}"),
    );
    let rootfs = root.path().join("rootfs");
    assert_eq!(
        tree(&rootfs),
        "drwxr-xr-x 0:0 etc\n\
         drwxr-xr-x 0:0 etc/ssl\n\
         drwxr-xr-x 0:0 etc/ssl/certs\n\
         -rw-r--r-- 0:0 etc/ssl/certs/ca-certificates.crt\n\
         -rwxr-xr-x 0:0 soci\n\
         -rwxr-xr-x 0:0 soci-snapshotter-grpc\n"
    );
    let trusted = rootfs.join("etc/ssl/certs/ca-certificates.crt");
    assert_eq!(std::fs::read_to_string(trusted).unwrap(), pem);

    // The programs under test are linked with the C library, which static ones bring along.
    sh(
        &rootfs,
        "ldd ./soci | grep -o '/[^ ]*' | xargs cp -L --parents -t .",
    );
    let deploy = format!("{REPOSITORY}/deploy");
    let manifests = format!("grep -rhoP '^ *command: \\[\\K.*(?=\\])' {deploy}/index-builder");
    let commands = sh(root.path(), &manifests);
    assert_eq!(commands.lines().count(), 2, "{commands}");
    for program in commands.lines() {
        let run = format!("chroot --userspec=65532:65532 . {program} index-builder serve --help");
        assert!(sh(&rootfs, &run).contains("--listen"));
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
fn the_debian_package_takes_over_v0_15s_layout_of_a_distribution() {
    let scene = Scene::new("deb");
    let node = &scene.node;

    // Programs in `/usr/bin` and units of a distribution's package, and a container.
    for name in ["soci", "soci-snapshotter-grpc"] {
        let target = node.systemd.path("/usr/bin").join(name);
        copy_program(&binary(name).unwrap(), &target).unwrap();
    }
    let units = V0_15_UNITS.map(|unit| unit.replace("/usr/local/bin", "/usr/bin"));
    let names = ["soci-snapshotter.service", "soci-snapshotter.socket"];
    for (name, unit) in names.iter().zip(&units) {
        let folder = node.systemd.path("/usr/lib/systemd/system");
        std::fs::write(folder.join(name), unit).unwrap();
    }
    node.systemctl(&["daemon-reload"]);
    node.systemctl(&["enable", "--now", names[1], names[0]]);
    assert_eq!(scene.property("CanReload"), "no");
    node.pull();

    // The package's unit has replaced it, and its daemon hands over.
    scene.upgrade(&format!("dpkg -i {}", scene.old));
    assert_eq!(scene.property("CanReload"), "yes");
    assert_eq!(scene.program().trim(), "/usr/bin/soci-snapshotter-grpc");

    // An operator's copy of the unit in `/etc` hides the package's, and cannot be reloaded.
    let copies: Vec<(&str, &str)> = names
        .into_iter()
        .zip(units.iter().map(String::as_str))
        .collect();
    node.systemd.install_units(&copies).unwrap();
    assert_eq!(scene.property("CanReload"), "no");
    let reader = node.start_reader();
    let server = node.server();
    let told = scene.sh(&format!("dpkg -i {}", scene.new));
    assert_eq!(node.server(), server, "what runs was left as it is");
    assert!(told.contains("has no ExecReload"), "{told}");
    assert!(!told.contains("Job type reload"), "{told}");
    let advice = told
        .lines()
        .find_map(|line| line.split_once("soci-snapshotter:     "));
    let advice = advice.unwrap_or_else(|| panic!("no advice: {told}")).1;
    let removed = "rm /etc/systemd/system/soci-snapshotter.service \
                   /etc/systemd/system/soci-snapshotter.socket && ";
    assert!(advice.starts_with(removed), "{advice}");
    scene.sh(advice);
    node.wait_for_server_after(server);
    reader.goes_on();
    reader.finish();
    assert_eq!(scene.property("CanReload"), "yes");
    scene.remove("dpkg --remove soci-snapshotter");
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
