//! A real systemd, as process 1 of namespaces of its own, with nothing running but what a test installs.
//!
//! It sees this machine's files, but `/run`, `/var/lib`, `/usr/local/bin` and the folder of units are
//! private to it, so that units and programs stand where they stand on a node. The network is shared with
//! the test. Needs root and a cgroup2 mount.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::cli::output_of;
use crate::process::{Daemon, TestRoot};
use crate::program::copy_program;

/// How long it may take to start on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(180);
const PREFIX: &str = "soci-tk-systemd.";
/// Where units are installed, inside.
const UNITS: &str = "/etc/systemd/system";

/// Arguments: the test's folder, the program. `/etc` is read-only, so that a systemd without machine id
/// writes none down.
const INIT: &str = r#"
set -eu
mount --make-rprivate /
umount -l /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system
mount --bind /etc /etc
mount -o remount,ro,bind /etc
mount --bind "$1/units" /etc/systemd/system
mount --bind "$1/var-lib" /var/lib
mount --bind "$1/bin" /usr/local/bin
exec env -i PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin container=other \
    SYSTEMD_UNIT_PATH=/etc/systemd/system:/run/systemd/transient \
    "$2" --system --unit=multi-user.target --log-target=null
"#;

/// The same in a root folder of its own. Arguments: the test's folder, the program inside, the root folder.
const INIT_IN_TREE: &str = r#"
set -eu
mount --make-rprivate /
mount --bind "$3" "$3"
cd "$3"
mkdir -p proc sys dev run tmp ".$1" .old
mount --rbind /dev dev
mount --rbind /sys sys
umount -l sys/fs/cgroup
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t proc proc proc
mount -t tmpfs tmpfs run
mount --bind "$1" ".$1"
pivot_root . .old
umount -l .old
rmdir .old
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin container=other \
    "$2" --system --unit=multi-user.target --log-target=null
"#;

/// Units that others refer to without being asked; none of them does anything.
const TARGETS: [&str; 7] = [
    "sysinit",
    "basic",
    "shutdown",
    "umount",
    "network",
    "sockets",
    "multi-user",
];

/// A systemd and everything below it. Dropping it ends all of that.
#[derive(Debug)]
pub struct Systemd {
    init: i32,
    outer: Daemon,
    control_group: PathBuf,
    /// `/etc/systemd/system` and `/usr/local/bin` inside.
    units: PathBuf,
    programs: PathBuf,
    root: TestRoot,
}

impl Systemd {
    /// Starts one and waits until it answers.
    ///
    /// # Errors
    /// What this machine lacks for it.
    pub fn start() -> Result<Self> {
        let root = TestRoot::new()?;
        for folder in ["units", "var-lib", "bin"] {
            root.dir(folder)?;
        }
        let folders = [root.path().join("units"), root.path().join("bin")];
        Self::start_with(root, folders, INIT, "/", None)
    }

    /// Starts one in a copy of a root folder, where packages can be installed.
    ///
    /// # Errors
    /// If there is no systemd in it, or this machine lacks something.
    pub fn start_in(tree: &Path) -> Result<Self> {
        let root = TestRoot::new()?;
        let own = root.path().join("tree");
        let mut copy = Command::new("cp");
        copy.args(["--archive", "--reflink=auto"])
            .arg(tree)
            .arg(&own);
        output_of(copy)?;
        let inside = |path: &str| own.join(path.trim_start_matches('/'));
        let folders = [inside(UNITS), inside("/usr/local/bin")];
        Self::start_with(root, folders, INIT_IN_TREE, &own, Some(&own))
    }

    fn start_with(
        root: TestRoot,
        [units, programs]: [PathBuf; 2],
        init: &str,
        system: impl AsRef<Path>,
        tree: Option<&Path>,
    ) -> Result<Self> {
        let program = ["/usr/lib/systemd/systemd", "/lib/systemd/systemd"]
            .into_iter()
            .find(|path| system.as_ref().join(&path[1..]).is_file())
            .context("there is no systemd on this machine: install the package systemd")?;
        for target in TARGETS {
            let path = units.join(format!("{target}.target"));
            std::fs::write(path, "[Unit]\nDefaultDependencies=no\n")?;
        }
        let control_group = new_control_group()?;
        let enter = r#"echo $$ > "$0/cgroup.procs"; exec unshare "$@""#;
        let outer = Daemon::spawn("systemd", &root, "sh", |command| {
            command.args(["-c", enter]).arg(&control_group);
            command.args(["-C", "-m", "-p", "-i", "-u", "--fork", "--kill-child"]);
            command.args(["--propagation", "private", "sh", "-c", init, "init"]);
            command.arg(root.path()).arg(program).args(tree);
        })?;
        let mut systemd = Self {
            init: 0,
            outer,
            control_group,
            units,
            programs,
            root,
        };
        systemd.wait_until_it_runs()?;
        Ok(systemd)
    }

    fn wait_until_it_runs(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.outer.ended()? {
                bail!("systemd ended ({status}):\n{}", self.outer.log().tail(20));
            }
            let children = format!("/proc/{0}/task/{0}/children", self.outer.pid());
            let children = std::fs::read_to_string(children).unwrap_or_default();
            self.init = children.trim().parse().unwrap_or(0);
            let is_systemd = std::fs::read_to_string(format!("/proc/{}/comm", self.init))
                .is_ok_and(|name| name.trim() == "systemd");
            if is_systemd {
                let state = self
                    .command("systemctl")
                    .arg("is-system-running")
                    .output()?;
                if ["running", "degraded"].contains(&String::from_utf8_lossy(&state.stdout).trim())
                {
                    return Ok(());
                }
            }
            ensure!(
                Instant::now() < deadline,
                "systemd does not run after {PATIENCE:?}:\n{}",
                self.outer.log().tail(20)
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A command that will run beside what systemd runs, in none of its units.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args([
                "-m",
                "-p",
                "-C",
                "-i",
                "-u",
                "-t",
                &self.init.to_string(),
                "--",
            ])
            .arg(program);
        command
    }

    /// Runs a command inside; gives its stdout.
    ///
    /// # Errors
    /// When it fails; the message holds its output.
    pub fn run<S: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<String> {
        let mut command = self.command(program);
        command.args(arguments);
        output_of(command)
    }

    /// `systemctl` inside.
    ///
    /// # Errors
    /// When it fails.
    pub fn systemctl(&self, arguments: &[&str]) -> Result<String> {
        self.run("systemctl", arguments)
    }

    /// A property of a unit.
    ///
    /// # Errors
    /// When there is no such unit.
    pub fn property(&self, unit: &str, name: &str) -> Result<String> {
        let shown = self.systemctl(&["show", "--value", "--property", name, unit])?;
        Ok(shown.trim().to_owned())
    }

    /// Installs units (file names and texts, drop-ins too) and has them read.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn install_units(&self, units: &[(&str, &str)]) -> Result<()> {
        for (name, text) in units {
            let path = self.units.join(name);
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            std::fs::write(&path, text).with_context(|| format!("install {name} in {UNITS}"))?;
        }
        self.systemctl(&["daemon-reload"]).map(drop)
    }

    /// Puts a copy of a program into `/usr/local/bin`, in place of one that may be running.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn install_program(&self, program: &Path) -> Result<()> {
        let name = program.file_name().context("a program has a name")?;
        let folder = &self.programs;
        let unfinished = folder.join(".new");
        copy_program(program, &unfinished)?;
        std::fs::rename(unfinished, folder.join(name))?;
        Ok(())
    }

    /// Makes `/etc` inside writable: changes go to a private layer above this machine's files. Units are
    /// where they were.
    ///
    /// # Errors
    /// The layer cannot be mounted.
    pub fn writable_etc(&self) -> Result<()> {
        let upper = self.root.dir("etc")?;
        let work = self.root.dir("etc-work")?;
        let options = format!(
            "lowerdir=/etc,upperdir={},workdir={}",
            upper.display(),
            work.display()
        );
        self.run(
            "mount",
            ["-t", "overlay", "overlay", "-o", &options, "/etc"],
        )?;
        let units = self.root.path().join("units").display().to_string();
        self.run("mount", ["--bind", &units, UNITS]).map(drop)
    }

    /// A path inside, as the test reaches it.
    #[must_use]
    pub fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.init))
    }

    /// A folder that is the same inside and outside.
    #[must_use]
    pub fn shared(&self) -> &Path {
        self.root.path()
    }

    /// Numbers (inside) and control groups of the processes of this name.
    ///
    /// # Errors
    /// When the processes cannot be seen.
    pub fn processes(&self, name: &str) -> Result<Vec<(u32, String)>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(self.path("/proc"))?.flatten() {
            let number = entry.file_name().to_str().and_then(|n| n.parse().ok());
            let comm = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            let Some(number) = number.filter(|_| comm.trim() == name) else {
                continue;
            };
            // `0::/…` is that of cgroup2, as seen from outside.
            let groups = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
            let group = groups.lines().find_map(|line| line.strip_prefix("0::"));
            found.push((number, group.unwrap_or_default().to_owned()));
        }
        Ok(found)
    }

    fn end(&mut self) -> Result<()> {
        if let Some(init) = Pid::from_raw(self.init) {
            // Everything else in its namespace ends with it.
            let _ = kill_process(init, Signal::KILL);
        }
        self.outer.kill()?;
        remove_control_group(&self.control_group)
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            // The next one sweeps what is left.
            let _ = std::io::Write::write_all(
                &mut std::io::stderr(),
                format!("a test's systemd is not gone: {error:#}\n").as_bytes(),
            );
        }
    }
}

/// Where cgroup2 is mounted: `/sys/fs/cgroup`, or beside the hierarchies of version 1.
fn cgroup2() -> Result<PathBuf> {
    let table = soci_mountinfo::Table::read()?;
    let found = table
        .mounts()
        .find(|mount| mount.kind == OsStr::new("cgroup2"));
    found.map(|mount| mount.point.into_owned()).context(
        "no cgroup2 file system is mounted here, without which systemd does not run: mount -t cgroup2 \
         cgroup2 /sys/fs/cgroup (or /sys/fs/cgroup/unified)",
    )
}

fn new_control_group() -> Result<PathBuf> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let base = cgroup2()?;
    for entry in std::fs::read_dir(&base)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('.').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // That of a test run that was killed.
            let _ = remove_control_group(&entry.path());
        }
    }
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = base.join(format!("{PREFIX}{}.{number}", std::process::id()));
    std::fs::create_dir(&path)
        .with_context(|| format!("make the control group {} (as root?)", path.display()))?;
    Ok(path)
}

/// Ends what runs in a control group and removes it with all below it.
fn remove_control_group(path: &Path) -> Result<()> {
    // Linux 5.14 and later.
    let _ = std::fs::write(path.join("cgroup.kill"), "1");
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = remove_tree(path) {
        if Instant::now() > deadline {
            return Err(error).with_context(|| format!("remove {}", path.display()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn remove_tree(path: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(path)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    std::fs::remove_dir(path)
}
