//! Tree building, walking with stat beside overlayfs on plain directories, and sequential reads.
//! Needs root, /dev/fuse and overlayfs: `cargo bench -p soci-layerfs`.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a benchmark"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use soci_layerfs::{LayerMountOptions, Tree, TreeOptions};
use support::{Layer, Mount, noise, run, ztoc_of};

const FILES: u32 = 100_000;

fn timed<T>(action: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let value = action();
    (value, start.elapsed())
}

/// `find` with stat, its output thrown away.
fn walk(directory: &Path) -> Duration {
    let mut find = Command::new("find");
    find.arg(directory)
        .args(["-xdev", "-printf", "%s %m %U %T@\n"]);
    let (status, time) = timed(|| find.stdout(Stdio::null()).status().unwrap());
    assert!(status.success());
    time
}

fn overlay(lower: &Path, at: &Path) {
    let empty = at.join("empty");
    let merged = at.join("merged");
    std::fs::create_dir_all(&empty).unwrap();
    std::fs::create_dir_all(&merged).unwrap();
    let layers = format!("lowerdir={}:{}", lower.display(), empty.display());
    run(
        "mount",
        &[
            "-t",
            "overlay",
            "overlay",
            "-o",
            &layers,
            merged.to_str().unwrap(),
        ],
    );
}

fn show(what: &str, lower: &Path, at: &Path) {
    overlay(lower, at);
    // Dentries and inodes only; data stays.
    std::fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    let merged = at.join("merged");
    let times: Vec<_> = (0..3).map(|_| walk(&merged)).collect();
    run("umount", &[merged.to_str().unwrap()]);
    println!(
        "find with stat, {what}: first {:?}, then {:?}, {:?}",
        times[0], times[1], times[2]
    );
}

/// A tree as an image has it: 28,500 files in 3,000 directories, and a program.
fn image() -> Vec<u8> {
    let mut layer = Layer::new();
    for directory in 0..3_000 {
        for file in 0..9 {
            let name = format!("usr/share/d{}/d{directory}/file-{file}", directory / 60);
            layer = layer.file(&name, b"");
        }
    }
    let program = std::fs::read("/bin/busybox").unwrap();
    layer.program("bin/busybox", &program).tar()
}

/// How often each program runs.
const RUNS: u64 = 3;

/// The best of several runs, after dentries and inodes were dropped or not.
fn best_of(cold: bool, action: &dyn Fn()) -> Duration {
    let run = || {
        if cold {
            std::fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        }
        timed(action).1
    };
    (0..RUNS).map(|_| run()).min().unwrap()
}

/// What `getfattr -R` requests: the names of the attributes of each file.
fn list_attributes(directory: &Path) {
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let stat = entry.metadata().unwrap();
            let _ = rustix::fs::llistxattr(entry.path(), &mut [0; 256][..]);
            if stat.is_dir() {
                open.push(entry.path());
            }
        }
    }
}

fn quietly(command: &[&str]) {
    let mut program = Command::new(command[0]);
    program
        .args(&command[1..])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    program.status().unwrap();
}

/// Programs that look for extended attributes of files that have none, and others.
fn extended_attributes() {
    let tar = image();
    let ztoc = ztoc_of(&tar);
    let plain = tempfile::tempdir().unwrap();
    let archive = plain.path().join("a.tar");
    std::fs::write(&archive, &tar).unwrap();
    let unpacked = plain.path().join("unpacked");
    std::fs::create_dir(&unpacked).unwrap();
    let [from, to] = [&archive, &unpacked].map(|path| path.to_str().unwrap());
    run("tar", &["-xf", from, "-C", to]);
    let measure = |what: &str, lower: &Path, at: &Path, requests: &dyn Fn() -> [u64; 2]| {
        overlay(lower, at);
        let merged = at.join("merged");
        let merged = merged.to_str().unwrap();
        let execs =
            format!("i=0; while [ $i -lt 2000 ]; do {merged}/bin/busybox true; i=$((i+1)); done");
        let tar = format!("tar --xattrs -cf - {merged}/usr | cat");
        let programs: [(&str, &dyn Fn()); 5] = [
            ("listxattr of each", &|| list_attributes(Path::new(merged))),
            ("tar --xattrs", &|| quietly(&["sh", "-c", &tar])),
            ("find with stat", &|| {
                quietly(&["find", merged, "-printf", "%s"])
            }),
            ("ls -lR", &|| quietly(&["ls", "-lR", merged])),
            ("2000 times exec", &|| quietly(&["sh", "-c", &execs])),
        ];
        for (name, program) in programs {
            let before = requests();
            let (cold, warm) = (best_of(true, program), best_of(false, program));
            let [get, list] = requests();
            let runs = 2 * RUNS;
            println!(
                "{what:<18} {name:<18} cold {cold:>10.2?}, warm {warm:>10.2?}, a run: \
                 getxattr {}, listxattr {}",
                (get - before[0]) / runs,
                (list - before[1]) / runs,
            );
        }
        run("umount", &[merged]);
    };
    measure("plain directories", &unpacked, plain.path(), &|| [0, 0]);
    for answer_xattrs in [false, true] {
        let options = LayerMountOptions {
            answer_xattrs,
            ..LayerMountOptions::default()
        };
        let mount = Mount::new(&ztoc, tar.clone(), options);
        let what = if answer_xattrs { "answered" } else { "ENOSYS" };
        let requests = || {
            let counts = mount.layer.counters();
            [counts.getxattr, counts.listxattr]
        };
        measure(what, &mount.path(""), mount.beside(), &requests);
    }
}

fn main() {
    if std::env::args().any(|argument| argument == "xattrs") {
        return extended_attributes();
    }
    let mut layer = Layer::new();
    for n in 0..FILES {
        let name = format!(
            "usr/lib/python3/site-packages/p{}/s{}/file-{n}.py",
            n / 1000,
            n / 50 % 20
        );
        layer = layer.file(&name, b"");
    }
    let tar = layer.tar();
    let ztoc = ztoc_of(&tar);
    let build = || {
        Tree::build(
            &ztoc.toc,
            ztoc.uncompressed_archive_size,
            TreeOptions::default(),
        )
        .unwrap()
    };
    let tree = build();
    let best = (0..5).map(|_| timed(build).1).min().unwrap();
    println!(
        "tree of {} inodes: {best:?}, {} KiB, {} bytes an inode",
        tree.len(),
        tree.memory() / 1024,
        tree.memory() as u64 / tree.len(),
    );

    let plain = tempfile::tempdir().unwrap();
    let archive = plain.path().join("a.tar");
    std::fs::write(&archive, &tar).unwrap();
    let unpacked = plain.path().join("unpacked");
    std::fs::create_dir(&unpacked).unwrap();
    run(
        "tar",
        &[
            "-xf",
            archive.to_str().unwrap(),
            "-C",
            unpacked.to_str().unwrap(),
        ],
    );
    show("overlay over plain directories", &unpacked, plain.path());
    let mount = Mount::new(&ztoc, tar, LayerMountOptions::default());
    let root = mount.path("");
    show("overlay over the layer's mount", &root, mount.beside());
    std::fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    println!(
        "find with stat, the mount itself: first {:?}, then {:?}",
        walk(&root),
        walk(&root)
    );
    println!("requests: {:?}", mount.layer.counters());

    extended_attributes();

    let length = 512 << 20;
    let mount = Mount::of_tar(Layer::new().file("big", &noise(length)).tar());
    let path = mount.path("big");
    let argument = format!("if={}", path.display());
    let dd = || run("dd", &[&argument, "of=/dev/null", "bs=1M", "status=none"]);
    for what in ["first", "second (page cache)"] {
        let ((), time) = timed(|| drop(dd()));
        let rate = (length >> 20) as f64 / time.as_secs_f64();
        println!("sequential read, {what}: {rate:.0} MiB/s");
    }
    println!("requests: {:?}", mount.layer.counters());
}
