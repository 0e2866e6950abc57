//! Packages of other Debian suites, fetched with apt (which verifies the suite's signature and the
//! packages' digests) and unpacked into a folder.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::bin;
use crate::cli::output_of;
use crate::image::debian_mirror;

const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Debian's archive on a day on which its suites had what is wanted, for the time after that.
const ARCHIVE: &str = "http://snapshot.debian.org/archive/debian/20261129T000000Z";

/// A version of containerd, and the suites that may have it.
#[derive(Debug)]
pub(super) struct Wanted {
    /// How the version begins.
    pub version: &'static str,
    /// Suites in order of preference.
    pub suites: &'static [&'static str],
}

impl Wanted {
    /// A text that changes whenever what is unpacked would.
    pub(super) fn recipe(&self) -> String {
        format!("containerd {} of {:?}, layout 1", self.version, self.suites)
    }
}

/// Fetches what is wanted and puts `containerd`, `ctr`, the shim and `runc` into `folder`/bin.
pub(super) fn unpack(wanted: &Wanted, folder: &Path) -> Result<()> {
    ensure!(
        Path::new(KEYS).exists(),
        "containerd {}x comes from Debian's later suites, whose keys ({KEYS}) are missing: \
         install debian-archive-keyring",
        wanted.version
    );
    let mut failures = Vec::new();
    for mirror in [debian_mirror(), ARCHIVE.to_owned()] {
        for suite in wanted.suites {
            match fetch(&mirror, suite, wanted, folder) {
                Ok(()) => return install(folder),
                Err(error) => failures.push(format!("{mirror} {suite}: {error:#}")),
            }
        }
    }
    bail!(
        "no Debian suite has containerd {}x for the tests that run under it:\n  {}\nThe mirror is \
         taken from /etc/apt. Without one that has it, put the programs containerd, ctr, \
         containerd-shim-runc-v2 and runc into {}",
        wanted.version,
        failures.join("\n  "),
        bin(&folder.with_extension("")).display()
    )
}

/// Downloads and unpacks the packages of one suite, if it has the wanted version.
fn fetch(mirror: &str, suite: &str, wanted: &Wanted, folder: &Path) -> Result<()> {
    let apt = Apt::new(mirror, suite, &folder.join("apt"))?;
    output_of(apt.command("apt-get", &["update", "--quiet", "--quiet"]))
        .context("read its index")?;
    let policy = output_of(apt.command("apt-cache", &["policy", "containerd"]))?;
    let candidate = policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate: "))
        .unwrap_or("no containerd");
    ensure!(candidate.starts_with(wanted.version), "it has {candidate}");
    let debs = folder.join("debs");
    std::fs::create_dir_all(&debs)?;
    let mut download = apt.command("apt-get", &["download", "--quiet", "--quiet"]);
    download.args(["containerd", "runc", "libc6"]);
    download.current_dir(&debs);
    output_of(download)?;
    for deb in std::fs::read_dir(&debs)? {
        let mut unpack = Command::new("dpkg-deb");
        unpack
            .arg("--extract")
            .arg(deb?.path())
            .arg(folder.join("root"));
        output_of(unpack)?;
    }
    std::fs::remove_dir_all(&debs)?;
    std::fs::remove_dir_all(folder.join("apt"))?;
    Ok(())
}

/// apt with state and sources of its own, beside this machine's.
struct Apt {
    config: PathBuf,
}

impl Apt {
    fn new(mirror: &str, suite: &str, folder: &Path) -> Result<Self> {
        for inner in ["lists/partial", "archives/partial"] {
            std::fs::create_dir_all(folder.join(inner))?;
        }
        let at = |name: &str| folder.join(name);
        std::fs::write(at("status"), "")?;
        std::fs::write(
            at("sources.list"),
            format!("deb [signed-by={KEYS}] {mirror} {suite} main\n"),
        )?;
        // Proxies and the like are configured in this machine's own files, which are read as well.
        let settings = [
            ("Dir::State", folder.to_owned()),
            ("Dir::State::status", at("status")),
            ("Dir::Cache", folder.to_owned()),
            ("Dir::Etc::sourcelist", at("sources.list")),
            ("Dir::Etc::sourceparts", PathBuf::from("/dev/null")),
            ("Dir::Etc::preferences", PathBuf::from("/dev/null")),
            ("Dir::Etc::preferencesparts", PathBuf::from("/dev/null")),
        ];
        let mut text: String = settings
            .iter()
            .map(|(key, value)| format!("{key} {:?};\n", value.display().to_string()))
            .collect();
        text.push_str(
            "Acquire::Languages \"none\";\nAcquire::Retries \"3\";\n\
             Acquire::Check-Valid-Until \"false\";\nAcquire::Check-Date \"false\";\n\
             Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
             Acquire::IndexTargets::deb::DEP-11-icons-small::DefaultEnabled \"false\";\n\
             Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled \"false\";\n\
             APT::Sandbox::User \"root\";\nAPT::Update::Error-Mode \"any\";\n",
        );
        let config = at("apt.conf");
        std::fs::write(&config, text)?;
        Ok(Self { config })
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("APT_CONFIG", &self.config)
            .env("LC_ALL", "C");
        command
    }
}

/// Links the programs of the unpacked packages into `bin`. containerd's run with this machine's C
/// library. One that runc needs is newer on an older Debian: then it is shown to runc's processes
/// alone, in a mount namespace of theirs. (Not by running it through its own ld.so: runc starts
/// itself again by `/proc/self/exe`.)
fn install(folder: &Path) -> Result<()> {
    let (root, bin) = (folder.join("root"), bin(folder));
    std::fs::create_dir_all(&bin)?;
    // The folder is renamed when it is complete.
    for program in ["containerd", "ctr", "containerd-shim-runc-v2"] {
        std::fs::rename(root.join("usr/bin").join(program), bin.join(program))
            .with_context(|| format!("{program} is not in the package"))?;
    }
    let runc = bin.join("runc");
    std::fs::rename(root.join("usr/sbin/runc"), &runc).context("runc is not in the package")?;
    let mut version = Command::new(&runc);
    version.arg("--version");
    if output_of(version).is_err() {
        with_its_c_library(folder, &root, &bin)?;
    }
    std::fs::remove_dir_all(&root)?;
    for program in ["containerd", "ctr", "runc"] {
        let mut version = Command::new(bin.join(program));
        version.arg("--version");
        output_of(version).with_context(|| format!("{program} of the package does not run"))?;
    }
    Ok(())
}

/// Puts runc's C library and a script that shows it to runc beside it.
fn with_its_c_library(folder: &Path, root: &Path, bin: &Path) -> Result<()> {
    let library = folder.join("lib");
    std::fs::create_dir_all(&library)?;
    let mut table = String::new();
    for triplet in std::fs::read_dir(root.join("usr/lib"))? {
        let triplet = triplet?;
        for file in std::fs::read_dir(triplet.path()).into_iter().flatten() {
            let file = file?;
            let here = Path::new("/usr/lib")
                .join(triplet.file_name())
                .join(file.file_name());
            let is_file = |path: &Path| path.symlink_metadata().is_ok_and(|about| about.is_file());
            if !(is_file(&file.path()) && is_file(&here)) {
                continue;
            }
            std::fs::rename(file.path(), library.join(file.file_name()))?;
            let name = file.file_name().to_string_lossy().into_owned();
            table.push_str(&format!("lib/{name} {} none bind 0 0\n", here.display()));
        }
    }
    ensure!(
        !table.is_empty(),
        "the package of the C library has no library"
    );
    std::fs::write(folder.join("libraries"), table)?;
    let hidden = folder.join("runc");
    std::fs::rename(bin.join("runc"), &hidden)?;
    // `mount` makes all mounts in one process, so that no program starts with half of them.
    let script = "#!/bin/sh\n\
        # runc of another Debian, with the C library of that Debian, which its processes alone see.\n\
        here=$(dirname \"$(dirname \"$(readlink -f \"$0\")\")\")\n\
        exec unshare --mount --propagation slave sh -c '\n\
        here=$1; shift\n\
        (cd \"$here\" && exec mount --all --fstab libraries) && exec \"$here/runc\" \"$@\"\n\
        ' runc \"$here\" \"$@\"\n";
    crate::program::write_program(&bin.join("runc"), script)
}
