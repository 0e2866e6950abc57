//! What opening a zTOC takes: peak and resident memory as multiples of the zTOC's size, and time.
//!
//! `cargo bench -p soci-layerfs --bench open_ztoc`

#![allow(clippy::print_stdout, reason = "a benchmark prints its figures")]

#[path = "../tests/support/large_ztoc.rs"]
mod large_ztoc;

use std::hint::black_box;
use std::time::Instant;

use large_ztoc::{kinds, large_ztoc};
use soci_layerfs::{Tree, TreeOptions};
use soci_ztoc::Ztoc;

/// One of a process's memory figures in bytes.
fn memory(key: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(key));
    let figure = line.and_then(|line| line.split_whitespace().nth(1));
    figure.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
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
    for (what, change) in kinds() {
        let sizes: &[u64] = match what {
            "files" => &[10_000, 100_000, 500_000],
            _ => &[100_000],
        };
        for files in sizes {
            measure(&format!("{files} {what}"), large_ztoc(*files, change));
        }
    }
}
