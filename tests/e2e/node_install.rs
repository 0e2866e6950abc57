//! `soci node install` as a DaemonSet runs it, on a node with a real systemd, containerd with CRI, and pods.
//! Needs root, FUSE, containerd, runc, docker-registry, systemd and a cgroup2 mount.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::support::releases::on_each_containerd;
use crate::support::systemd::{SERVICE, SystemdNode};
use crate::support::{PATIENCE, wait_until};
use soci_testkit::image::{busybox_layer, pause_image, small_image};
use soci_testkit::{
    ContainerdOptions, Cri, CriOptions, CriPull, ImageBuilder, Layer, Pod, PodContainer, Release,
    SociCli, TestRoot, binary,
};

const UNIT: &str = "containerd.service";
/// The unit that waits for containers after `uninstall --detach`.
const WAITING: &str = "soci-snapshotter-uninstall.service";
const CONFIG: &str = "/etc/containerd/config.toml";
/// A file with which containerd does not start once its configuration names the snapshotter.
const BROKEN: &str = "/run/containerd-is-broken";

/// A node whose containerd uses overlayfs, with a pod that runs.
struct Node {
    // Before the node itself: pods end with it.
    cri: Cri,
    node: SystemdNode,
    release: Release,
    socket: PathBuf,
    original: String,
}

impl Node {
    fn start(release: Release) -> Self {
        let node = SystemdNode::bare();
        node.systemd.writable_etc().unwrap();
        let layout = TestRoot::new().unwrap();
        pause_image(layout.path(), "pause").unwrap();
        node.registry
            .push_layout(layout.path(), "pause", "pause")
            .unwrap();
        // Of other layers than the lazy one, which containerd shall not have.
        let layout = TestRoot::new().unwrap();
        ImageBuilder::new()
            .layer(busybox_layer().unwrap())
            .layer(Layer::new().dir("data").text("data/hello", "hello\n"))
            .write(layout.path(), "small")
            .unwrap();
        node.registry
            .push_layout(layout.path(), "small", "plain")
            .unwrap();
        let layout = TestRoot::new().unwrap();
        small_image(layout.path(), "small").unwrap();
        let source = layout.path().display().to_string();
        let target = format!("docker://{}", node.registry.reference("lazy:soci"));
        let convert = [
            "convert",
            "--standalone",
            "--min-layer-size",
            "0",
            &source,
            &target,
        ];
        SociCli::standalone().unwrap().output(convert).unwrap();

        let root = node.systemd.shared().join("containerd");
        std::fs::create_dir(&root).unwrap();
        let socket = root.join("c.sock");
        let options = ContainerdOptions {
            release,
            cri: Some(CriOptions {
                snapshotter: "overlayfs".to_owned(),
                // What is not configured must be found by the installer.
                pull: CriPull::Transfer,
                ..CriOptions::with_soci(&node.registry.reference("pause:pause"))
            }),
            ..ContainerdOptions::default()
        };
        let config = options.write(&root, &socket).unwrap();
        let mut original = String::new();
        if release.is_2().unwrap() {
            original.push_str("imports = [\"/etc/containerd/conf.d/*.toml\"]\n");
        }
        original.push_str("# The operator's.\n");
        original.push_str(&std::fs::read_to_string(config).unwrap());
        let etc = node.systemd.path("/etc/containerd");
        std::fs::create_dir_all(&etc).unwrap();
        std::fs::write(etc.join("config.toml"), &original).unwrap();

        Self {
            cri: start_containerd(&node, release, &root, &socket),
            node,
            release,
            socket,
            original,
        }
    }

    /// Runs `soci node …` as in a container: in a mount namespace of its own, in which the programs are where
    /// the node does not see them.
    fn soci_node(&self, arguments: &[&str]) -> Output {
        self.soci_node_command(arguments).output().unwrap()
    }

    fn soci_node_command(&self, arguments: &[&str]) -> Command {
        let soci = binary("soci").unwrap();
        let programs = soci.parent().unwrap().display().to_string();
        let script = r#"
            set -eu
            mount --make-rprivate /
            mount -t tmpfs tmpfs /mnt
            cp "$1/soci" "$1/soci-snapshotter-grpc" /mnt
            socket=$2; containerd=$3; shift 3
            command=$1; shift
            exec /mnt/soci --address="$socket" node "$command" --enter-host --containerd="$containerd" "$@"
        "#;
        let mut command = self.node.systemd.command("unshare");
        command
            .args(["--mount", "sh", "-c", script, "sh", &programs])
            .arg(&self.socket)
            .arg(self.release.program("containerd").unwrap())
            .args(arguments);
        command
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.soci_node(arguments);
        assert!(output.status.success(), "{output:?}\n{}", self.logs());
        String::from_utf8(output.stdout).unwrap()
    }

    fn fails(&self, arguments: &[&str]) -> String {
        let output = self.soci_node(arguments);
        assert!(!output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn config(&self) -> String {
        std::fs::read_to_string(self.node.systemd.path(CONFIG)).unwrap()
    }

    fn main_process(&self, unit: &str) -> String {
        self.node.systemd.property(unit, "MainPID").unwrap()
    }

    fn state(&self, unit: &str) -> String {
        self.node.systemd.property(unit, "ActiveState").unwrap()
    }

    fn exists(&self, path: &str) -> bool {
        self.node.systemd.path(path).exists()
    }

    fn logs(&self) -> String {
        let containerd = self.node.systemd.shared().join("containerd.log");
        let containerd = std::fs::read_to_string(containerd).unwrap_or_default();
        format!("{}\n--- containerd ---\n{containerd}", self.node.log())
    }

    /// Pulls an image of the registry through CRI.
    fn pull(&self, name: &str) -> String {
        let reference = format!("{}/{name}", self.node.proxy.address());
        match self.cri.pull(&reference) {
            Ok(name) => name,
            Err(error) => panic!("{error:#}\n{}", self.logs()),
        }
    }

    fn run(&self, image: &str) -> (Pod, PodContainer) {
        let pod = match self.cri.run_pod(self.node.systemd.shared()) {
            Ok(pod) => pod,
            Err(error) => panic!("{error:#}\n{}", self.logs()),
        };
        let command = ["/bin/sleep", "100000"];
        let container = self.cri.start_container(&pod, image, &command).unwrap();
        (pod, container)
    }

    fn reads(&self, container: &PodContainer) {
        let read = ["/bin/cat", "/data/hello"];
        let read = self.cri.exec(container, &read).unwrap();
        assert_eq!(read.stdout, "hello\n", "{read:?}\n{}", self.logs());
    }

    /// Nothing of an installation is on the node, and its containerd runs with its own configuration.
    fn is_as_before(&self) {
        assert_eq!(self.config(), self.original);
        for path in [
            "/usr/local/bin/soci",
            "/usr/local/bin/soci-snapshotter-grpc",
            "/etc/systemd/system/soci-snapshotter.service",
            "/etc/systemd/system/soci-snapshotter.socket",
            "/etc/containerd/conf.d/zz-soci-snapshotter.toml",
            "/var/lib/soci-snapshotter-install",
        ] {
            assert!(!self.exists(path), "{path} is left");
        }
        assert_eq!(self.node.lazy_mounts(), 0);
        assert_eq!(self.state(UNIT), "active");
        assert_eq!(self.state(SERVICE), "inactive");
    }
}

/// Starts containerd. Where the machine's cgroup controllers are in hierarchies of version 1, runc needs those,
/// while systemd has that of version 2: containerd sees them in a mount namespace of its own, into which the
/// node's mounts propagate.
const START: &str = r#"#!/bin/sh
if test -e BROKEN && grep -rq proxy_plugins.soci /etc/containerd; then exit 1; fi
if grep -qw cpu /sys/fs/cgroup/cgroup.controllers; then exec containerd --config CONFIG; fi
exec unshare --mount --propagation slave sh -c '
    umount /sys/fs/cgroup
    mount -t tmpfs tmpfs /sys/fs/cgroup
    for kind in $(sed -n "s/^[1-9][0-9]*:\([a-z_,]*\):.*/\1/p" /proc/self/cgroup); do
        mkdir "/sys/fs/cgroup/$kind"
        mount -t cgroup -o "$kind" cgroup "/sys/fs/cgroup/$kind"
    done
    exec containerd --config CONFIG'
"#;

/// Installs containerd's unit, starts it and connects to its CRI plugin.
fn start_containerd(node: &SystemdNode, release: Release, root: &Path, socket: &Path) -> Cri {
    let path = match release.programs().unwrap() {
        Some(folder) => format!("{}:", folder.display()),
        None => String::new(),
    };
    let starts = root.join("start");
    let script = START.replace("BROKEN", BROKEN).replace("CONFIG", CONFIG);
    soci_testkit::write_program(&starts, &script).unwrap();
    let unit = format!(
        "[Unit]\nStartLimitIntervalSec=0\n\
         [Service]\nType=notify\nNotifyAccess=all\nKillMode=process\nDelegate=yes\n\
         Environment=PATH={path}/usr/sbin:/usr/bin:/sbin:/bin\n\
         ExecStart={}\nStandardError=append:{}\n",
        starts.display(),
        node.systemd.shared().join("containerd.log").display()
    );
    node.systemd.install_units(&[(UNIT, &unit)]).unwrap();
    node.systemd.run("mount", ["--make-rshared", "/"]).unwrap();
    node.systemctl(&["start", UNIT]);
    Cri::connect(socket).unwrap()
}

on_each_containerd! {
    a_node_is_installed_under_running_pods_rolled_back_and_handed_back,
}

fn a_node_is_installed_under_running_pods_rolled_back_and_handed_back(release: Release) {
    let node = Node::start(release);
    let plain = node.pull("plain:small");
    let (_pod, before) = node.run(&plain);
    node.reads(&before);

    // containerd does not come up with the new configuration.
    std::fs::write(node.node.systemd.path(BROKEN), "").unwrap();
    let error = node.fails(&["install"]);
    assert!(error.contains("the node is as it was before"), "{error}");
    node.is_as_before();
    node.reads(&before);
    std::fs::remove_file(node.node.systemd.path(BROKEN)).unwrap();

    let done = node.ok(&["install"]);
    assert!(done.contains("CRI uses it"), "{done}");
    node.reads(&before);
    let lazy = node.pull("lazy:soci");
    assert_ne!(node.node.lazy_mounts(), 0, "{}", node.logs());
    let (pod, container) = node.run(&lazy);
    node.reads(&container);
    assert_eq!(
        node.config() == node.original,
        release.is_2().unwrap(),
        "2.x has a drop-in, 1.x none"
    );

    let processes = || [node.main_process(UNIT), node.main_process(SERVICE)];
    let running = processes();
    let done = node.ok(&["install"]);
    assert!(done.contains("nothing to do"), "{done}");
    assert_eq!(processes(), running);
    let shown = node.ok(&["status"]);
    assert!(shown.contains("snapshotter of CRI:     soci"), "{shown}");

    // A container on lazy layers keeps them; new ones do not get any.
    let error = node.fails(&["uninstall"]);
    assert!(
        error.contains("k8s.io/") && error.contains("drain the node"),
        "{error}"
    );
    node.reads(&container);
    assert!(
        node.fails(&["status"])
            .contains("do not use the snapshotter")
    );
    // containerd's events tell its CRI plugin.
    wait_until("the image is forgotten", PATIENCE, || {
        let reference = format!("{}/lazy:soci", node.node.proxy.address());
        let image = node.cri.image(&reference).unwrap();
        image.is_none().then_some(()).ok_or(format!("{image:?}"))
    });
    let mounts = node.node.lazy_mounts();
    let again = node.pull("lazy:soci");
    let (_pod, unpacked) = node.run(&again);
    node.reads(&unpacked);
    assert_eq!(node.node.lazy_mounts(), mounts);

    // The pod of the chart's mode `uninstall`, which may end before the containers that it waits for.
    let mut installer = node.soci_node_command(&["uninstall", "--detach", "--stay"]);
    let mut installer = installer.stdout(Stdio::null()).spawn().unwrap();
    wait_until("the waiting is left to systemd", PATIENCE, || {
        let ended = installer.try_wait().unwrap();
        assert!(ended.is_none(), "{ended:?}\n{}", node.logs());
        match node.state(WAITING).as_str() {
            "active" => Ok(()),
            state => Err(state.to_owned()),
        }
    });
    let waiting = node.main_process(WAITING);
    for (process, _) in node.node.systemd.processes("soci").unwrap() {
        let process = process.to_string();
        if process != waiting {
            node.node.systemd.run("kill", [process]).unwrap();
        }
    }
    installer.wait().unwrap();
    // The next pod finds it.
    node.ok(&["uninstall", "--detach"]);
    assert_eq!(node.main_process(WAITING), waiting);
    assert_eq!(node.state(WAITING), "active");
    node.reads(&container);

    node.cri.stop_container(&container).unwrap();
    node.cri.remove_container(&container).unwrap();
    node.cri.remove_pod(&pod).unwrap();
    wait_until("the node is handed back", PATIENCE, || {
        let state = node.state(WAITING);
        (state == "inactive").then_some(()).ok_or(state)
    });
    node.is_as_before();
    node.reads(&before);
    node.reads(&unpacked);
}
