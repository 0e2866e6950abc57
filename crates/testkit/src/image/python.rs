//! Images with Python: a small one made of Debian packages, and one with PyTorch and its CUDA
//! libraries.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::builder::{ImageBuilder, OciImage, OciLayer};
use super::cache::cached;
use super::debian::{EXCLUDED, apt_install, codename, debootstrap, on_top, own_sources};
use super::diff;
use super::layer::Layer;
use super::sink::{LayerCompression, LayerSink};
use crate::cli::output_of;
use crate::process::TestRoot;

/// The tag of the images in their layouts.
pub const PYTHON_TAG: &str = "python";
/// A script in the images' top layer: prints what it computes.
pub const APP_SCRIPT: &str = "/app/compute.py";

/// The packages of the second and third layer.
const PACKAGES: [&[&str]; 2] = [
    &["python3"],
    &["python3-numpy", "python3-sympy", "python3-pandas"],
];
const SCRIPT: &str = "import numpy\nimport sympy\n\
    matrix = numpy.array([[2.0, 1.0], [1.0, 3.0]])\n\
    x = sympy.Symbol('x')\n\
    print('determinant', round(float(numpy.linalg.det(matrix))), flush=True)\n\
    print('integral', sympy.integrate(x**2, (x, 0, 3)), flush=True)\n";
/// What [`APP_SCRIPT`] prints.
pub const APP_OUTPUT: &str = "determinant 5\nintegral 9\n";

/// The Python packages of the image with PyTorch; their dependencies come with them.
const TORCH: [&str; 1] = ["torch==2.10.0"];
const TORCH_SCRIPT: &str = "import torch\nprint('torch', torch.__version__, flush=True)\n";

/// An image with Python, NumPy and SymPy: four layers, over 100 MB compressed, about 5,000 files. It
/// is what `make demo` starts by default. Built on first use and then kept in the cache; packages
/// come from where this machine's apt gets them.
///
/// # Errors
/// When mmdebstrap is not installed, or packages cannot be fetched.
pub fn python_image() -> Result<OciImage> {
    let codename = codename()?;
    let recipe = format!("python image 3, {codename}, {PACKAGES:?}, {EXCLUDED:?}, {SCRIPT}");
    let dir = cached(&recipe, |dir| build(dir, &codename, &[], SCRIPT))?;
    OciImage::open(&dir, PYTHON_TAG)
}

/// The same with a layer of PyTorch and its CUDA libraries below the top one: 4 GB compressed, 7 GB
/// unpacked. The script imports torch. Building it takes some minutes, 4 GB from where this machine's
/// pip gets packages, and 20 GB of disk for that time.
///
/// # Errors
/// When mmdebstrap or pip is not installed, or packages cannot be fetched.
pub fn torch_image() -> Result<OciImage> {
    let codename = codename()?;
    let recipe =
        format!("torch image 1, {codename}, {PACKAGES:?}, {TORCH:?}, {EXCLUDED:?}, {TORCH_SCRIPT}");
    let dir = cached(&recipe, |dir| build(dir, &codename, &TORCH, TORCH_SCRIPT))?;
    OciImage::open(&dir, PYTHON_TAG)
}

/// Writes an image with Debian's [`PACKAGES`], then Python's `wheels` when there are any, then the
/// script.
fn build(layout: &Path, codename: &str, wheels: &[&str], script: &str) -> Result<()> {
    let work = TestRoot::new()?;
    let base = work.path().join("base");
    let sources = work.path().join("debian.sources");
    std::fs::write(&sources, own_sources(codename)?)?;
    debootstrap(&base, codename, &sources, &[])?;
    std::thread::scope(|scope| {
        // Packing a layer and installing the next one overlap.
        let mut layers = vec![scope.spawn(|| pack(layout, &base))];
        let mut lowers = vec![base.clone()];
        let mut add = |upper: PathBuf, lowers: &mut Vec<PathBuf>| {
            lowers.insert(0, upper.clone());
            layers.push(scope.spawn(move || pack(layout, &upper)));
        };
        for packages in PACKAGES {
            let upper = on_top(&work, &lowers, |root| apt_install(root, packages))?;
            add(upper, &mut lowers);
        }
        if !wheels.is_empty() {
            let upper = on_top(&work, &lowers, |root| pip_install(root, wheels))?;
            add(upper, &mut lowers);
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
            .text(APP_SCRIPT.trim_start_matches('/'), script);
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

/// Installs Python packages for the Python of a root folder, with this machine's pip, which knows
/// where packages come from here.
fn pip_install(root: &Path, packages: &[&str]) -> Result<()> {
    let mut asked = Command::new("chroot");
    asked.arg(root).args([
        "python3",
        "-c",
        "import sys; print('%d.%d' % sys.version_info[:2])",
    ]);
    let version = output_of(asked)?;
    let version = version.trim();
    let target = format!("usr/local/lib/python{version}/dist-packages");
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-cache-dir",
        "--no-compile",
    ])
    .args(["--only-binary=:all:", "--python-version", version])
    .args(
        [
            "manylinux_2_28_x86_64",
            "manylinux_2_27_x86_64",
            "manylinux2014_x86_64",
        ]
        .map(|platform| format!("--platform={platform}")),
    )
    .arg("--target")
    .arg(root.join(&target))
    .args(packages)
    // Next to where the packages go: they are moved there from here.
    .env("TMPDIR", root.parent().unwrap_or(root));
    output_of(pip).context("run pip (Debian: apt-get install python3-pip)")?;
    let mut compile = Command::new("chroot");
    compile
        .arg(root)
        .args(["python3", "-m", "compileall", "-q"])
        .arg(format!("/{target}"));
    // Some packages ship templates that are no Python: compileall's status counts them.
    compile
        .output()
        .context("compile Python packages")
        .map(drop)
}
