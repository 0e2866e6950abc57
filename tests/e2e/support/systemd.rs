//! A node as operators have it: our programs in `/usr/local/bin`, units, default paths, under a systemd of
//! its own; and a reader of a container's root on it.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use soci_testkit::image::{ImageBuilder, busybox_layer};
use soci_testkit::kernel_caches;
use soci_testkit::{
    Content, Layer, Proxy, Registry, Systemd, TestRoot, binary, copy_program, write_program,
};
use tonic::Code;

use super::node::{Client, Image};
use super::wait_until;

pub(crate) const SERVICE: &str = "soci-snapshotter.service";
const SOCKET_UNIT: &str = "soci-snapshotter.socket";
const SOCKET: &str = "/run/soci-snapshotter-grpc/soci-snapshotter-grpc.sock";
const ROOT: &str = "/var/lib/soci-snapshotter-grpc";
const BOX: &str = "/run/box";
const PATIENCE: Duration = Duration::from_secs(90);

/// Service and socket.
pub(crate) type Units = [&'static str; 2];

/// As installations of v0.15 have them.
pub(crate) const V0_15_UNITS: Units = [
    "[Unit]\nDescription=soci snapshotter\nAfter=network.target\nBefore=containerd.service\n\
     [Service]\nType=notify\nExecStart=/usr/local/bin/soci-snapshotter-grpc --address fd://\n\
     Restart=always\nRestartSec=5\n\
     [Install]\nWantedBy=multi-user.target\n",
    "[Unit]\nDescription=socket of the soci snapshotter\n\
     [Socket]\nListenStream=/run/soci-snapshotter-grpc/soci-snapshotter-grpc.sock\nSocketMode=0660\n\
     [Install]\nWantedBy=sockets.target\n",
];

/// Those that `make install` installs.
pub(crate) const OUR_UNITS: Units = [
    include_str!("../../../systemd/soci-snapshotter.service"),
    include_str!("../../../systemd/soci-snapshotter.socket"),
];

/// The file that is read.
fn big() -> Content {
    Content::Noise {
        seed: 11,
        length: 24 << 20,
    }
}

/// Fields end in this order.
pub(crate) struct SystemdNode {
    pub(crate) systemd: Systemd,
    pub(crate) proxy: Proxy,
    pub(crate) registry: Registry,
}

impl SystemdNode {
    /// With the daemon running, a lazy image pulled, and a container's root made of it mounted.
    pub(crate) fn start(units: &Units) -> Self {
        let node = Self::bare();
        node.install_from_archive(units);
        node.pull();
        node
    }

    /// Programs in `/usr/local/bin`, units in `/etc`: as guides install v0.15; and starts it.
    pub(crate) fn install_from_archive(&self, units: &Units) {
        self.install_programs();
        let [service, socket] = *units;
        let units = [(SERVICE, service), (SOCKET_UNIT, socket)];
        self.systemd.install_units(&units).unwrap();
        self.systemctl(&["start", SOCKET_UNIT, SERVICE]);
    }

    /// The same, installed by the Makefile; `make` gives it the target.
    pub(crate) fn start_installed() -> Self {
        let node = Self::bare();
        node.make("install");
        node.systemctl(&["enable", "--now", SOCKET_UNIT, SERVICE]);
        node.pull();
        node
    }

    /// A Debian of its own with nothing of ours in it.
    pub(crate) fn start_in(tree: &Path) -> Self {
        Self::with(Systemd::start_in(tree).unwrap())
    }

    /// With nothing installed.
    pub(crate) fn bare() -> Self {
        Self::with(Systemd::start().unwrap())
    }

    fn with(systemd: Systemd) -> Self {
        let registry = Registry::start().unwrap();
        let proxy = Proxy::start(registry.address()).unwrap();
        let node = Self {
            systemd,
            proxy,
            registry,
        };
        // There is no journal inside.
        let to_file = format!(
            "[Service]\nStandardError=append:{}\n",
            node.log_path().display()
        );
        let drop_in = format!("{SERVICE}.d/log.conf");
        node.systemd.install_units(&[(&drop_in, &to_file)]).unwrap();
        node
    }

    /// Runs `make` inside, with a prefix that is not this machine's.
    pub(crate) fn make(&self, target: &str) -> String {
        let programs = binary("soci").unwrap();
        let prefix = self.systemd.shared().join("local");
        let arguments = [
            "-C".to_owned(),
            concat!(env!("CARGO_MANIFEST_DIR"), "/..").to_owned(),
            target.to_owned(),
            format!("PREFIX={}", prefix.display()),
            format!("SYSCONFDIR={}", prefix.join("etc").display()),
            format!("RELEASE_DIR={}", programs.parent().unwrap().display()),
        ];
        self.systemd.run("make", arguments).unwrap()
    }

    pub(crate) fn systemctl(&self, arguments: &[&str]) {
        let outcome = self.systemd.systemctl(arguments);
        assert!(outcome.is_ok(), "{outcome:?}\n{}", self.log());
    }

    pub(crate) fn install_programs(&self) {
        for name in ["soci-snapshotter-grpc", "soci"] {
            self.systemd
                .install_program(&binary(name).unwrap())
                .unwrap();
        }
    }

    /// A program that ends immediately, except when it is asked to have the running daemon hand over.
    pub(crate) fn install_broken_daemon(&self) {
        let good = self.systemd.shared().join("good");
        copy_program(&binary("soci-snapshotter-grpc").unwrap(), &good).unwrap();
        let script = format!(
            "#!/bin/sh\ntest \"$1\" = upgrade && exec {} upgrade\nexit 3\n",
            good.display()
        );
        let folder = self.systemd.shared().join("broken");
        std::fs::create_dir(&folder).unwrap();
        let program = folder.join("soci-snapshotter-grpc");
        write_program(&program, &script).unwrap();
        self.systemd.install_program(&program).unwrap();
    }

    fn log_path(&self) -> PathBuf {
        self.systemd.shared().join("daemon.log")
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Pulls a lazy image as containerd would and mounts a container's root.
    pub(crate) fn pull(&self) {
        let layout = TestRoot::new().unwrap();
        let data = Layer::new()
            .dir("data")
            .file("data/big", big())
            .text("data/hello", "hello\n");
        ImageBuilder::new()
            .layer(busybox_layer().unwrap())
            .layer(data)
            .write(layout.path(), "small")
            .unwrap();
        let image = Image::publish(&self.registry, &self.proxy, layout.path(), "box", true);
        let socket = self.systemd.path(SOCKET);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let mounts = runtime.block_on(async {
            let client = Client::at(&socket).await;
            for layer in 0..image.layers.len() {
                let answer = client.pull_layer(&image, layer).await;
                assert_eq!(
                    answer.unwrap_err().code(),
                    Code::AlreadyExists,
                    "{}",
                    self.log()
                );
            }
            client.prepare("box", &image.top()).await.unwrap()
        });
        assert_eq!(mounts.len(), 1);
        let mount = &mounts[0];
        assert_eq!(mount.r#type, "overlay");
        self.systemd.run("mkdir", ["-p", BOX]).unwrap();
        let options = mount.options.join(",");
        self.systemd
            .run("mount", ["-t", "overlay", "overlay", "-o", &options, BOX])
            .unwrap();
        assert_eq!(
            usize::try_from(self.lazy_mounts()).unwrap(),
            image.layers.len()
        );
    }

    /// The FUSE mounts of lazy layers.
    pub(crate) fn lazy_mounts(&self) -> u32 {
        u32::try_from(self.connections().len()).unwrap()
    }

    /// The FUSE connections of these mounts: the minor numbers of their devices.
    pub(crate) fn connections(&self) -> Vec<u32> {
        let table = self.systemd.run("cat", ["/proc/self/mountinfo"]).unwrap();
        let ours = |line: &&str| line.contains(ROOT) && line.contains(" - fuse.rawBridge soci ");
        let minor = |line: &str| line.split([' ', ':']).nth(3)?.parse().ok();
        let minors = table.lines().filter(ours).map(minor);
        minors.collect::<Option<_>>().unwrap()
    }

    /// The number of the process that serves, and zero when there is none.
    pub(crate) fn server(&self) -> u32 {
        let lock = self.systemd.path(ROOT).join("daemon.lock");
        let text = std::fs::read_to_string(lock).unwrap_or_default();
        let number = text.split_whitespace().nth(1);
        number.and_then(|n| n.parse().ok()).unwrap_or(0)
    }

    /// Waits until systemd has started a daemon with another server.
    pub(crate) fn wait_for_server_after(&self, before: u32) {
        wait_until("another server", PATIENCE, || {
            let state = self.systemd.property(SERVICE, "ActiveState").unwrap();
            let server = self.server();
            if state == "active" && server != before {
                return Ok(());
            }
            Err(format!(
                "{state}, server {server} after {before}:\n{}",
                self.log()
            ))
        });
    }

    /// The holder's number and control group. It is the only one.
    pub(crate) fn holder(&self) -> (u32, String) {
        let mut found = self.systemd.processes("soci-holder").unwrap();
        assert_eq!(found.len(), 1, "{found:?}\n{}", self.log());
        found.remove(0)
    }

    /// Starts to read in the container's root, until [`Reader::finish`].
    pub(crate) fn start_reader(&self) -> Reader {
        let root = self.systemd.path(BOX);
        let (stop, reads) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (stop_there, reads_there) = (Arc::clone(&stop), Arc::clone(&reads));
        // Opened before anything happens to the daemon.
        let file = std::fs::File::open(root.join("data/big")).unwrap();
        let thread = std::thread::spawn(move || {
            let mut x = 0x9e37_79b9_7f4a_7c15_u64;
            while !stop_there.load(Ordering::Relaxed) {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                read_at(&file, x % (big().len() - 65_536), &root)?;
                reads_there.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        let reader = Reader {
            stop,
            reads,
            thread,
        };
        reader.goes_on();
        reader
    }
}

/// Each call reads through the daemon: what the kernel remembers of the file is dropped first. The caches of the
/// whole machine are not: other programs would wait for the disk, and dropping them takes minutes on a busy machine.
fn read_at(file: &std::fs::File, offset: u64, root: &Path) -> Result<(), String> {
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).map_err(|e| e.to_string())?;
    let mut bytes = vec![0; 65_536];
    file.read_exact_at(&mut bytes, offset)
        .map_err(|e| format!("read at {offset}: {e}"))?;
    if bytes != big().range(offset, bytes.len()) {
        return Err(format!("wrong bytes at {offset}"));
    }
    let hello = std::fs::read_to_string(root.join("data/hello"));
    match hello {
        Ok(text) if text == "hello\n" => {}
        other => return Err(format!("data/hello: {other:?}")),
    }
    let entries = std::fs::read_dir(root.join("bin")).map_err(|e| format!("bin: {e}"))?;
    for entry in entries {
        let entry = entry.map_err(|e| format!("an entry of bin: {e}"))?;
        entry
            .metadata()
            .map_err(|e| format!("stat {:?}: {e}", entry.path()))?;
    }
    // Leaves the processors to others.
    std::thread::sleep(Duration::from_millis(20));
    Ok(())
}

/// A thread that reads.
pub(crate) struct Reader {
    stop: Arc<AtomicBool>,
    reads: Arc<AtomicU64>,
    thread: JoinHandle<Result<(), String>>,
}

impl Reader {
    /// Waits until it has read several times more.
    pub(crate) fn goes_on(&self) {
        // Names and attributes are requested again too.
        kernel_caches::forget_unused().unwrap();
        let before = self.reads.load(Ordering::Relaxed);
        wait_until("the reader reads again", PATIENCE, || {
            let now = self.reads.load(Ordering::Relaxed);
            if now >= before + 5 {
                return Ok(());
            }
            let ended = if self.thread.is_finished() {
                " and it has ended"
            } else {
                ""
            };
            Err(format!("{} reads{ended}", now - before))
        });
    }

    /// Waits until a call of it fails.
    pub(crate) fn fails(self) {
        wait_until("a call fails", PATIENCE, || {
            let ended = self.thread.is_finished();
            ended.then_some(()).ok_or_else(|| "it waits".to_owned())
        });
        assert!(self.thread.join().unwrap().is_err());
    }

    /// Ends it; no call of it has failed.
    pub(crate) fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        assert_eq!(self.thread.join().unwrap(), Ok(()));
    }
}
