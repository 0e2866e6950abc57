//! An image with Python, NumPy and SymPy made from Debian packages: four layers, over 100 MB
//! compressed, about 5,000 files. It is what `make demo` starts by default.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::builder::{ImageBuilder, OciImage, OciLayer};
use super::cache::cached;
use super::diff;
use super::layer::Layer;
use super::sink::{LayerCompression, LayerSink};
use crate::cli::output_of;
use crate::process::{TestRoot, unmount_below};

/// The tag of the image in its layout.
pub const PYTHON_TAG: &str = "python";
/// A script in the image's top layer: prints a determinant and an integral.
pub const APP_SCRIPT: &str = "/app/compute.py";

/// The packages of the second and third layer.
const PACKAGES: [&[&str]; 2] = [
    &["python3"],
    &["python3-numpy", "python3-sympy", "python3-pandas"],
];
/// What package management leaves behind, and mount points.
const EXCLUDED: [&str; 12] = [
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
const SCRIPT: &str = "import numpy\nimport sympy\n\
    matrix = numpy.array([[2.0, 1.0], [1.0, 3.0]])\n\
    x = sympy.Symbol('x')\n\
    print('determinant', round(float(numpy.linalg.det(matrix))), flush=True)\n\
    print('integral', sympy.integrate(x**2, (x, 0, 3)), flush=True)\n";
/// What [`APP_SCRIPT`] prints.
pub const APP_OUTPUT: &str = "determinant 5\nintegral 9\n";

/// The image, built on first use and then kept in the cache. Packages come from where this
/// machine's apt gets them.
///
/// # Errors
/// When mmdebstrap is not installed, or packages cannot be fetched.
pub fn python_image() -> Result<OciImage> {
    let codename = codename()?;
    let recipe = format!("python image 3, {codename}, {PACKAGES:?}, {EXCLUDED:?}, {SCRIPT}");
    let dir = cached(&recipe, |dir| build(dir, &codename))?;
    OciImage::open(&dir, PYTHON_TAG)
}

fn build(layout: &Path, codename: &str) -> Result<()> {
    let work = TestRoot::new()?;
    let base = work.path().join("base");
    let sources = work.path().join("debian.sources");
    std::fs::write(&sources, own_sources(codename)?)?;
    debootstrap(&base, codename, &sources)?;
    std::thread::scope(|scope| {
        // Packing a layer and installing the next one overlap.
        let mut layers = vec![scope.spawn(|| pack(layout, &base))];
        let mut lowers = vec![base.clone()];
        for (number, packages) in PACKAGES.iter().enumerate() {
            let upper = install(&work, number, &lowers, packages)?;
            lowers.insert(0, upper.clone());
            layers.push(scope.spawn(move || pack(layout, &upper)));
        }
        let mut builder = ImageBuilder::new();
        for layer in layers {
            let layer = layer
                .join()
                .map_err(|_| anyhow::anyhow!("packing a layer panicked"))??;
            builder = builder.ready(layer);
        }
        let mount_points = ["dev", "proc", "sys", "run", "tmp"];
        let mut app = mount_points
            .iter()
            .fold(Layer::new(), |layer, folder| layer.dir(folder));
        app = app
            .dir("app")
            .text(APP_SCRIPT.trim_start_matches('/'), SCRIPT);
        builder
            .layer(app)
            .env("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("PYTHONDONTWRITEBYTECODE=1")
            .command(["/usr/bin/python3", APP_SCRIPT])
            .write(layout, PYTHON_TAG)?;
        Ok(())
    })
}

fn pack(layout: &Path, root: &Path) -> Result<OciLayer> {
    let mut sink = LayerSink::create(layout, LayerCompression::default())?;
    diff::write_tar(root, &EXCLUDED, &mut sink)?;
    sink.finish()
}

fn debootstrap(target: &Path, codename: &str, sources: &Path) -> Result<()> {
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
    command.arg(codename).arg(target).arg(sources);
    output_of(command)
        .context("make a Debian root with mmdebstrap")
        .map(drop)
}

/// Installs packages on top of `lowers` (nearest first); returns the overlay's upper directory.
fn install(
    work: &TestRoot,
    number: usize,
    lowers: &[PathBuf],
    packages: &[&str],
) -> Result<PathBuf> {
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
    let mut apt = Command::new("chroot");
    apt.arg(&merged)
        .args(["apt-get", "install", "--yes", "--no-install-recommends"]);
    apt.args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C");
    let installed = output_of(apt);
    unmount_below(&merged)?;
    installed.with_context(|| format!("install {packages:?}"))?;
    Ok(upper)
}

fn with(mut command: Command, argument: &Path) -> Command {
    command.arg(argument);
    command
}

fn codename() -> Result<String> {
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
fn own_sources(codename: &str) -> Result<String> {
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
