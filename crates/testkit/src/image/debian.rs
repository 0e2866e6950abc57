//! Root folders made of Debian packages, one overlay on the other, for images.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::cached;
use crate::cli::output_of;
use crate::process::{TestRoot, unmount_below};

/// What package management leaves behind, and mount points.
pub(super) const EXCLUDED: [&str; 12] = [
    "dev",
    "proc",
    "sys",
    "run",
    "var/cache/apt",
    "var/cache/debconf",
    "var/cache/ldconfig",
    "var/lib/apt/lists",
    "var/log",
    "etc/resolv.conf",
    "etc/hostname",
    "tmp",
];
/// A root folder of Debian with systemd and rpm, in which packages are installed in tests. Copy it
/// before changing it. Built on first use and then kept in the cache.
///
/// # Errors
/// If mmdebstrap is not installed, or packages cannot be fetched.
pub fn debian_with_systemd() -> Result<PathBuf> {
    let codename = codename()?;
    let packages = ["systemd", "rpm"];
    let recipe = format!("root folder 1, {codename}, {packages:?}");
    let cache = cached(&recipe, |folder| {
        let sources = folder.join("debian.sources");
        std::fs::write(&sources, own_sources(&codename)?)?;
        let root = folder.join("root");
        debootstrap(&root, &codename, &sources, &packages)?;
        // Its own journal, device manager and consoles would only slow the tests down.
        let units = root.join("usr/lib/systemd/system");
        for entry in std::fs::read_dir(units)? {
            let path = entry?.path();
            if path.extension().is_some_and(|kind| kind == "wants") {
                std::fs::remove_dir_all(path)?;
            }
        }
        Ok(())
    })?;
    Ok(cache.join("root"))
}

/// Makes a root folder with the packages that Debian calls required, apt, and some more.
pub(super) fn debootstrap(
    target: &Path,
    codename: &str,
    sources: &Path,
    packages: &[&str],
) -> Result<()> {
    let mut command = Command::new("mmdebstrap");
    command.args([
        "--mode=root",
        "--variant=minbase",
        "--format=directory",
        "--quiet",
    ]);
    // The package lists stay for the next layers.
    command.args(["--skip=cleanup/apt", "--skip=check/empty"]);
    for option in [
        "path-exclude=/usr/share/doc/*",
        "path-exclude=/usr/share/man/*",
        "path-exclude=/usr/share/locale/*",
        "force-unsafe-io",
    ] {
        command.arg(format!("--dpkgopt={option}"));
    }
    for option in [
        "Acquire::Languages \"none\"",
        "Acquire::Check-Valid-Until \"false\"",
        "Acquire::Check-Date \"false\"",
    ] {
        command.arg(format!("--aptopt={option}"));
    }
    if !packages.is_empty() {
        command.arg(format!("--include={}", packages.join(",")));
    }
    command.arg(codename).arg(target).arg(sources);
    output_of(command)
        .context("make a Debian root with mmdebstrap")
        .map(drop)
}

/// Makes a layer: `change` is given a root folder, an overlay over `lowers` (nearest first) with
/// `/proc`, to change. Returns the overlay's upper folder.
pub(super) fn on_top(
    work: &TestRoot,
    lowers: &[PathBuf],
    change: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let number = lowers.len();
    let upper = work.dir(&format!("upper{number}"))?;
    let scratch = work.dir(&format!("work{number}"))?;
    let merged = work.dir(&format!("merged{number}"))?;
    let lower: Vec<_> = lowers
        .iter()
        .map(|lower| lower.display().to_string())
        .collect();
    let mut mount = Command::new("mount");
    mount.args(["-t", "overlay", "overlay", "-o"]);
    mount.arg(format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.join(":"),
        upper.display(),
        scratch.display()
    ));
    output_of(with(mount, &merged))?;
    let mut proc = Command::new("mount");
    proc.args(["-t", "proc", "proc"]);
    output_of(with(proc, &merged.join("proc")))?;
    let changed = change(&merged);
    unmount_below(&merged)?;
    changed.map(|()| upper)
}

/// Installs Debian packages into a root folder.
pub(super) fn apt_install(root: &Path, packages: &[&str]) -> Result<()> {
    let mut apt = Command::new("chroot");
    apt.arg(root)
        .args(["apt-get", "install", "--yes", "--no-install-recommends"]);
    apt.args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C");
    output_of(apt)
        .with_context(|| format!("install {packages:?}"))
        .map(drop)
}

fn with(mut command: Command, argument: &Path) -> Command {
    command.arg(argument);
    command
}

/// The name of this machine's distribution, as package sources know it.
pub(super) fn codename() -> Result<String> {
    let release = std::fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
    let codename = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(codename
        .context("/etc/os-release names no VERSION_CODENAME")?
        .trim_matches('"')
        .to_owned())
}

/// This machine's own apt sources, those of the distribution only, in apt's deb822 or one-line form
/// (sources.list(5)); mmdebstrap takes either, but not both in one file.
pub(super) fn own_sources(codename: &str) -> Result<String> {
    let (mut stanzas, mut lines) = (Vec::new(), Vec::new());
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    for entry in std::fs::read_dir("/etc/apt/sources.list.d")
        .into_iter()
        .flatten()
    {
        files.push(entry?.path());
    }
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        if file
            .extension()
            .is_some_and(|extension| extension == "sources")
        {
            stanzas.extend(
                text.split("\n\n")
                    .filter(|text| is_own_stanza(text, codename))
                    .map(str::to_owned),
            );
        } else {
            lines.extend(
                text.lines()
                    .filter(|line| is_own_line(line, codename))
                    .map(str::to_owned),
            );
        }
    }
    ensure!(
        !(stanzas.is_empty() && lines.is_empty()),
        "apt has no source of packages for {codename} in /etc/apt"
    );
    Ok(if stanzas.is_empty() {
        lines.join("\n") + "\n"
    } else {
        stanzas.join("\n\n") + "\n"
    })
}

/// The mirror of Debian that this machine's apt uses, or the official one.
pub(crate) fn debian_mirror() -> String {
    let sources = codename()
        .and_then(|codename| own_sources(&codename))
        .unwrap_or_default();
    mirror_in(&sources).unwrap_or_else(|| "http://deb.debian.org/debian".to_owned())
}

/// The first address in apt's sources that is a mirror of Debian itself, not of its security
/// updates.
fn mirror_in(sources: &str) -> Option<String> {
    let addresses = sources
        .lines()
        .filter(|line| !line.starts_with('#'))
        .flat_map(str::split_whitespace)
        .filter(|word| word.contains("://"))
        .map(|word| word.trim_end_matches('/'));
    addresses
        .filter(|address| address.ends_with("/debian"))
        .map(str::to_owned)
        .next()
}

fn is_own_stanza(stanza: &str, codename: &str) -> bool {
    let field = |name: &str| {
        stanza
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap_or_default()
            .split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    field("Types:").iter().any(|kind| kind == "deb")
        && field("Suites:")
            .iter()
            .any(|suite| is_own_suite(suite, codename))
        && field("Components:")
            .iter()
            .any(|component| component == "main")
}

fn is_own_line(line: &str, codename: &str) -> bool {
    let mut words = line.split_whitespace();
    words.next() == Some("deb")
        && words.clone().any(|word| is_own_suite(word, codename))
        && words.any(|word| word == "main")
}

fn is_own_suite(suite: &str, codename: &str) -> bool {
    suite
        .strip_prefix(codename)
        .is_some_and(|rest| matches!(rest, "" | "-updates" | "-security"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_that_of_debian_itself() {
        let stanzas = "Types: deb\n# http://old/debian\nURIs: http://m/debian/\nSuites: bookworm\n";
        assert_eq!(mirror_in(stanzas).as_deref(), Some("http://m/debian"));
        let line = "deb [signed-by=/k] http://security/debian-security bookworm-security main\n\
            deb https://n/debian bookworm main\n";
        assert_eq!(mirror_in(line).as_deref(), Some("https://n/debian"));
        assert_eq!(mirror_in("deb http://u/ubuntu noble main"), None);
    }

    #[test]
    fn foreign_package_sources_are_left_out() {
        assert!(is_own_line(
            "deb [signed-by=/k] http://mirror/debian bookworm main",
            "bookworm"
        ));
        assert!(is_own_line(
            "deb http://mirror/s bookworm-security main contrib",
            "bookworm"
        ));
        assert!(!is_own_line(
            "deb http://other/apt cloud-bookworm main",
            "bookworm"
        ));
        assert!(!is_own_line(
            "deb-src http://mirror/debian bookworm main",
            "bookworm"
        ));
        let own = "Types: deb\nURIs: http://m\nSuites: bookworm bookworm-updates\nComponents: main";
        assert!(is_own_stanza(own, "bookworm"));
        assert!(!is_own_stanza(
            &own.replace("bookworm", "nodistro"),
            "bookworm"
        ));
    }
}
