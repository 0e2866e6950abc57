//! How fast layers are indexed and spans are extracted, per core.
//!
//! `cargo bench -p soci-ztoc [-- LAYER.tar.gz]`; without a layer it packs this machine's /usr/bin and
//! /usr/lib with `tar` and `gzip -6`. docs/inflate.md holds the figures.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a program for developers"
)]

use std::hint::black_box;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Instant;

use soci_ztoc::{BuildOptions, Builder, Compression, SpanId, Ztoc, build};

const ROUNDS: usize = 3;

fn packed_usr() -> Vec<u8> {
    let command = "tar --create --file=- --directory=/ usr/bin usr/lib 2>/dev/null \
                   | gzip -6 --no-name";
    println!("packing: {command}");
    let packed = Command::new("sh")
        .args(["-c", command])
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    packed.stdout
}

/// The seconds that the calling thread has had a core for; other work on the machine does not count.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}

/// The best of some rounds, in MB of output per second: of the clock, and of this thread's core.
fn measure(what: &str, bytes: u64, mut run: impl FnMut()) {
    let (mut clock, mut core) = (f64::MAX, f64::MAX);
    for _ in 0..ROUNDS {
        let (start, cpu) = (Instant::now(), cpu_seconds());
        run();
        clock = clock.min(start.elapsed().as_secs_f64());
        core = core.min(cpu_seconds() - cpu);
    }
    #[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^52")]
    let megabytes = bytes as f64 / 1e6;
    println!(
        "{what:<48} {:>5.0} MB/s {:>5.0} MB/s of core",
        megabytes / clock,
        megabytes / core
    );
    std::io::stdout().flush().unwrap();
}

fn main() {
    let layer = match std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with("--"))
    {
        Some(path) => std::fs::read(path).unwrap(),
        None => packed_usr(),
    };
    let options = |diff_id| BuildOptions {
        diff_id,
        ..BuildOptions::default()
    };
    let Ok(built) = build(&layer[..], Compression::Gzip, options(true)) else {
        println!("that is no whole gzip layer");
        return;
    };
    let blob = built.ztoc.encode();
    let size = built.ztoc.uncompressed_archive_size;
    println!(
        "layer {} MB, uncompressed {} MB, {} files, zTOC {} KB",
        layer.len() / 1_000_000,
        size / 1_000_000,
        built.ztoc.toc.len(),
        blob.len() / 1000
    );

    measure("build, one thread", size, || {
        let mut builder = Builder::new(Compression::Gzip, options(false)).unwrap();
        layer
            .chunks(1 << 20)
            .for_each(|piece| builder.write(piece).unwrap());
        black_box(builder.finish().unwrap());
    });
    measure("build, all cores (of core: what reads)", size, || {
        black_box(build(&layer[..], Compression::Gzip, options(false)).unwrap());
    });
    let parts = Ztoc::parse_index(blob.clone()).unwrap();
    let at = |range: std::ops::Range<u64>| {
        usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()
    };
    let mut out = Vec::new();
    measure("extract every span, digest checked", size, || {
        for id in (0..parts.spans.len()).map(SpanId) {
            let window = parts
                .spans
                .window_at(id)
                .map_or(&[][..], |window| &blob[at(window)]);
            let compressed = &layer[at(parts.spans.span(id).compressed)];
            parts
                .spans
                .extract(id, compressed, window, &mut out)
                .unwrap();
            black_box(&out);
        }
    });
    measure("check every span's digest, per MB of output", size, || {
        for id in (0..parts.spans.len()).map(SpanId) {
            parts
                .spans
                .verify(id, &layer[at(parts.spans.span(id).compressed)])
                .unwrap();
        }
    });
    many_files(built.ztoc);
}

/// A zTOC of 100,000 entries and a thousand windows.
fn many_files(mut ztoc: Ztoc) {
    let entries = std::mem::take(&mut ztoc.toc);
    let step = ztoc.uncompressed_archive_size / 100_001 / 512 * 512;
    ztoc.toc = (0..100_000_u64)
        .zip(entries.iter().cycle())
        .map(|(number, entry)| {
            let mut entry = entry.clone();
            entry.uncompressed_offset = 512 + number * step;
            entry.uncompressed_size = 0;
            entry
        })
        .collect();
    let blob = ztoc.encode();
    for (what, parse) in [
        (
            "parse",
            (|blob| drop(black_box(Ztoc::parse(blob).unwrap()))) as fn(&[u8]),
        ),
        ("parse for a mount", |blob| {
            drop(black_box(Ztoc::parse_index(blob.to_vec()).unwrap()))
        }),
    ] {
        let times = (0..5).map(|_| {
            let start = Instant::now();
            parse(&blob);
            start.elapsed()
        });
        let best = times.min().unwrap_or_default();
        println!(
            "{what}: 100,000 entries, {} MB: {best:.1?}",
            blob.len() / 1_000_000
        );
    }
    let start = Instant::now();
    black_box(ztoc.encode());
    println!("encode: {:.1?}", start.elapsed());
}
