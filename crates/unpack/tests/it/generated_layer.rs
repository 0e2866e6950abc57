//! Layers out of a seed: entries with names out of a small alphabet, so that they meet each other, as no
//! build tool would write them.

use fastrand::Rng;
use soci_testkit::Layer;

/// Names of directories, and of what lies in them.
const NAMES: [[&str; 3]; 2] = [["a", "b", "c"], ["f", "g", "h"]];
/// Modes, of which some let a program gain rights.
const MODES: [u32; 7] = [0o644, 0o600, 0o755, 0o4755, 0o2711, 0o1777, 0o6700];
/// Entries of one layer.
const ENTRIES: usize = 16;

/// Returns a layer of up to `ENTRIES` entries; whiteouts only where there is a layer below.
pub(crate) fn layer(random: &mut Rng, is_lowest: bool) -> Layer {
    let mut layer = Layer::new();
    let (mut files, mut directories) = (Vec::new(), Vec::new());
    for _ in 0..ENTRIES {
        let what = random.u8(0..if is_lowest { 16 } else { 20 });
        let at = match what {
            6..=9 | 19 => directory(random),
            _ => path(random),
        };
        // containerd gives what replaces a directory of the same layer the directory's time.
        let is_directory = |other: &String| *other == at || other.starts_with(&format!("{at}/"));
        if !matches!(what, 6..=9 | 19) && directories.iter().any(is_directory) {
            continue;
        }
        layer = match what {
            0..=5 => {
                files.push(at.clone());
                layer.text(&at, &"x".repeat(random.usize(0..9)))
            }
            6..=9 => {
                directories.push(at.clone());
                layer.dir(&at)
            }
            10 | 11 => layer.symlink(&at, &target(random)),
            12 | 13 => match random.choice(&files) {
                // Mostly what is there: a link without its file refuses the whole layer.
                Some(file) if random.u8(0..10) > 0 => layer.hardlink(&at, file),
                _ => continue,
            },
            14 => layer.fifo(&at),
            15 => layer.char_device(&at, 1, random.u32(1..4)),
            16..=18 => {
                layer = layer.whiteout(&at);
                continue;
            }
            // With an entry: containerd gives a directory without one the time that it has below.
            _ => {
                directories.push(at.clone());
                layer = with_metadata(layer.dir(&at), &at, random).opaque(&at);
                continue;
            }
        };
        layer = with_metadata(layer, &at, random);
    }
    layer
}

/// Up to two directories and a name, which seldom is a directory's: a file below a file refuses the layer.
fn path(random: &mut Rng) -> String {
    let mut parts: Vec<&str> = (0..random.usize(0..3)).map(|_| name(random, 0)).collect();
    let kind = usize::from(random.u8(0..20) > 0);
    parts.push(name(random, kind));
    parts.join("/")
}

fn directory(random: &mut Rng) -> String {
    let parts: Vec<&str> = (0..random.usize(1..4)).map(|_| name(random, 0)).collect();
    parts.join("/")
}

fn name(random: &mut Rng, kind: usize) -> &'static str {
    NAMES[kind][random.usize(..NAMES[kind].len())]
}

/// The target of a symbolic link: beside it, below the root, or above everything.
fn target(random: &mut Rng) -> String {
    let prefix = ["", "/", "../", "../../../../"][random.usize(..4)];
    format!("{prefix}{}", [path, directory][random.usize(..2)](random))
}

/// Changes mode, owner, time, attributes and the way that the name of the last entry is written.
fn with_metadata(layer: Layer, at: &str, random: &mut Rng) -> Layer {
    let mut layer = layer
        .mode(MODES[random.usize(..MODES.len())])
        .owner(random.u64(0..4), random.u64(0..4))
        .mtime(random.u64(1..1_700_000_000));
    match random.u8(0..12) {
        0 => layer = layer.pax("mtime", b"1600000000.123456789"),
        1 => layer = layer.pax("path", format!("/{at}").as_bytes()),
        2 => layer = layer.pax("path", format!("./{at}").as_bytes()),
        3 => layer = layer.pax("path", format!("../../{at}").as_bytes()),
        4 => layer = layer.pax("path", format!("{at}/../{at}").as_bytes()),
        5 => layer = layer.xattr("trusted.note", b"dropped"),
        _ => {}
    }
    layer
}
