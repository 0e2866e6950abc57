//! Small images that are built in a moment.

use std::path::Path;

use anyhow::Result;

use super::builder::{ImageBuilder, OciImage};
use super::content::Content;
use super::layer::Layer;

/// Where Debian's package `busybox-static` has it.
pub(super) const BUSYBOX: &str = "/bin/busybox";
const APPLETS: [&str; 24] = [
    "sh",
    "cat",
    "ls",
    "echo",
    "sha256sum",
    "sleep",
    "find",
    "stat",
    "dd",
    "wc",
    "mkdir",
    "rm",
    "touch",
    "ln",
    "id",
    "mount",
    "head",
    "tail",
    "grep",
    "true",
    "false",
    "cp",
    "mv",
    "readlink",
];

/// A layer with `/bin/busybox` and `/bin/sh`.
///
/// # Errors
/// When Debian's package `busybox-static` is not installed.
pub fn shell_layer() -> Result<Layer> {
    let layer = Layer::new().dir("bin");
    let layer = layer.program("bin/busybox", Path::new(BUSYBOX))?;
    Ok(layer.symlink("bin/sh", "busybox"))
}

/// A layer that containers can start from: busybox and links to it.
///
/// # Errors
/// When Debian's package `busybox-static` is not installed.
pub fn busybox_layer() -> Result<Layer> {
    let mut layer = Layer::new();
    for folder in ["bin", "dev", "etc", "proc", "sys", "tmp", "data"] {
        layer = layer.dir(folder);
    }
    layer = layer.program("bin/busybox", Path::new(BUSYBOX))?;
    for applet in APPLETS {
        layer = layer.symlink(&format!("bin/{applet}"), "busybox");
    }
    Ok(layer.text("etc/passwd", "root:x:0:0:root:/:/bin/sh\n"))
}

/// One busybox layer.
///
/// # Errors
/// When it cannot be built.
pub fn busybox_image(dir: &Path, tag: &str) -> Result<OciImage> {
    ImageBuilder::new()
        .layer(busybox_layer()?)
        .command(["/bin/sh"])
        .write(dir, tag)
}

/// What holds the namespaces of a pod: it does nothing, for 68 years.
///
/// # Errors
/// When it cannot be built.
pub fn pause_image(dir: &Path, tag: &str) -> Result<OciImage> {
    ImageBuilder::new()
        .layer(busybox_layer()?)
        .command(["/bin/sleep", "2147483647"])
        .write(dir, tag)
}

/// Three layers, a few MiB: busybox; data of several kinds; changes of that data. What
/// [`small_image_data`] says is in `/data/noise`, `hello` in `/data/hello`; `/data/gone` is deleted
/// by the third layer, `/data/old` made opaque with only `new` in it.
///
/// # Errors
/// When it cannot be built.
pub fn small_image(dir: &Path, tag: &str) -> Result<OciImage> {
    let data = Layer::new()
        .dir("data")
        .file("data/noise", small_image_data())
        .file(
            "data/words",
            Content::Text {
                seed: 8,
                length: 3 << 20,
            },
        )
        .hardlink("data/words.link", "data/words")
        .text("data/gone", "deleted above")
        .dir("data/old")
        .text("data/old/hidden", "hidden above");
    let changes = Layer::new()
        .dir("data")
        .text("data/hello", "hello\n")
        .whiteout("data/gone")
        .dir("data/old")
        .opaque("data/old")
        .text("data/old/new", "new\n");
    ImageBuilder::new()
        .layer(busybox_layer()?)
        .layer(data)
        .layer(changes)
        .command(["/bin/cat", "/data/hello"])
        .write(dir, tag)
}

/// An image for the command line tool, to be written: 1 MB of programs, 3 MB of noise at `/data/noise`, and
/// `/etc/motd`, which says "lazily" and is what the command prints.
///
/// # Errors
/// When Debian's package `busybox-static` is not installed.
pub fn three_layers() -> Result<ImageBuilder> {
    let programs = shell_layer()?
        .symlink("bin/cat", "busybox")
        .symlink("bin/sha256sum", "busybox");
    let noise = Content::Noise {
        seed: 1,
        length: 3_000_000,
    };
    Ok(ImageBuilder::new()
        .layer(programs)
        .layer(Layer::new().file("data/noise", noise))
        .layer(Layer::new().text("etc/motd", "lazily\n"))
        .command(["cat", "/etc/motd"]))
}

/// The contents of `/data/noise` in [`small_image`].
#[must_use]
pub fn small_image_data() -> Content {
    Content::Noise {
        seed: 7,
        length: 5 << 20,
    }
}

/// A busybox layer and a layer with `/data/large` of this many bytes, half of them compressible.
///
/// # Errors
/// When it cannot be built.
pub fn large_file_image(dir: &Path, tag: &str, bytes: u64) -> Result<OciImage> {
    // Blocks of both kinds alternate within the file, so that no part is all noise.
    let layer = Layer::new().dir("data").file(
        "data/large",
        Content::Mixed {
            seed: 9,
            length: bytes,
        },
    );
    ImageBuilder::new()
        .layer(busybox_layer()?)
        .layer(layer)
        .command(["/bin/cat", "/data/large"])
        .write(dir, tag)
}
