//! What opening a zTOC takes: peak and resident memory as multiples of the zTOC's size, and time.
//!
//! `cargo bench -p soci-layerfs --bench open_ztoc`

#![allow(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::hint::black_box;
use std::time::Instant;

use soci_layerfs::{Tree, TreeOptions};
use soci_ztoc::{BuildOptions, Checkpoints, Compression, FileMetadata, TarZinfo, Ztoc, build};

const SPAN: u64 = 4 << 20;

/// One of a process's memory figures in bytes.
fn memory(key: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(key));
    let figure = line.and_then(|line| line.split_whitespace().nth(1));
    figure.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn ztoc(files: u64, change: impl Fn(u64, &mut FileMetadata)) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    let append = builder.append_data(&mut header, "file", &b""[..]);
    let tar = append.and_then(|()| builder.into_inner());
    let options = BuildOptions::default();
    let Ok(built) = build(
        &tar.unwrap_or_default()[..],
        Compression::Uncompressed,
        options,
    ) else {
        return Vec::new();
    };
    let mut ztoc: Ztoc = built.ztoc;
    let Some(entry) = ztoc.toc.pop() else {
        return Vec::new();
    };
    ztoc.toc = (0..files)
        .map(|at| {
            let mut entry = entry.clone();
            entry.uncompressed_offset = (at + 1) * 512;
            entry.mod_time = format!("2024-01-01T00:00:{:02}Z", at / 7 % 60);
            change(at, &mut entry);
            entry
        })
        .collect();
    let size = (files + 2) * 512;
    (ztoc.uncompressed_archive_size, ztoc.compressed_archive_size) = (size, size);
    let digest = soci_oci::Digest::of(b"span");
    ztoc.compression.span_digests = (0..size.div_ceil(SPAN)).map(|_| digest).collect();
    ztoc.compression.checkpoints = Checkpoints::Tar(TarZinfo {
        version: 2,
        span_size: SPAN,
        size,
    });
    ztoc.encode()
}

fn measure(what: &str, blob: Vec<u8>) {
    let path = std::env::temp_dir().join(format!("open-ztoc-{}", std::process::id()));
    let size = blob.len() as u64;
    if std::fs::write(&path, &blob).is_err() {
        return;
    }
    drop(blob);
    // A process of its own: what an allocator keeps of the one before would count.
    let program = std::env::current_exe().unwrap_or_default();
    let child = std::process::Command::new(program)
        .arg("--open")
        .arg(&path)
        .output();
    let output = child.map(|child| child.stdout).unwrap_or_default();
    let output = String::from_utf8_lossy(&output).into_owned();
    let figures: Vec<u64> = output
        .split_whitespace()
        .filter_map(|figure| figure.parse().ok())
        .collect();
    let _ = std::fs::remove_file(&path);
    if let [peak, resident, tree, micros] = figures[..] {
        let times = |bytes: u64| bytes * 100 / size.max(1);
        println!(
            "{what:<44} zTOC {:>6} KiB: peak {:>4} %, resident {:>4} % (tree {:>4} %), {:>5} ms per MiB",
            size >> 10,
            times(peak),
            times(resident),
            times(tree),
            micros.saturating_mul(1 << 20) / size.max(1) / 1000,
        );
    }
}

fn open(path: &str) {
    let before = memory("VmRSS");
    let start = Instant::now();
    let blob = std::fs::read(path).unwrap_or_default();
    let Ok(index) = Ztoc::parse_index(blob) else {
        return;
    };
    let Ok(tree) = Tree::of_index(&index, TreeOptions::default()) else {
        return;
    };
    drop(index);
    let micros = start.elapsed().as_micros();
    let peak = memory("VmHWM").saturating_sub(before);
    let resident = memory("VmRSS").saturating_sub(before);
    println!("{peak} {resident} {} {micros}", tree.memory());
    black_box(tree);
}

fn main() {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--open");
    if let Some(path) = arguments.nth(1) {
        return open(&path);
    }
    for files in [10_000, 100_000, 500_000] {
        let name = |at: u64, entry: &mut FileMetadata| {
            entry.name = format!("usr/share/folder{}/file-{at}", at % 1000).into_bytes();
        };
        measure(&format!("{files} files"), ztoc(files, name));
    }
    let files = 100_000;
    measure(
        "100000 files in folders of their own",
        ztoc(files, |at, entry| {
            entry.name = format!("{at}/a/b/c/f").into_bytes();
        }),
    );
    measure(
        "100000 files with attributes of their own",
        ztoc(files, |at, entry| {
            entry.name = format!("f{at}").into_bytes();
            let key = b"SCHILY.xattr.user.number".to_vec();
            entry.xattrs = vec![(key, at.to_le_bytes().to_vec())];
        }),
    );
    measure(
        "100000 files with owners of their own",
        ztoc(files, |at, entry| {
            entry.name = format!("f{at}").into_bytes();
            entry.uid = u32::try_from(at).unwrap_or(0);
        }),
    );
}
