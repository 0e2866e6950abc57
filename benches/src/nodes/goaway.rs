//! Readers of many small files through an nginx that ends each connection after a few requests, as its setting
//! `keepalive_requests` says, by GOAWAY of HTTP/2.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use soci_testkit::{Content, Nginx, OciImage, TestRoot};

use super::{Mirrored, ON_DEMAND, image_of_files};
use crate::table::{Table, seconds, times};

/// Files of the layer.
const FILES: u64 = 12_424;
/// Bytes of each.
const LENGTH: u64 = 8_192;
const READERS: u64 = 16;
/// Small, so that there are many requests.
const SPAN_SIZE: &str = "131072";
const AS_IT_IS: &str = "";
const THREE: &str = "keepalive_requests 3;\nkeepalive_time 2s;\nhttp2_max_concurrent_streams 4;\n";

/// What the readers of a round got.
#[derive(Debug, Default)]
struct Reads {
    right: AtomicU64,
    wrong: AtomicU64,
    failed: AtomicU64,
}

/// Reads all files by 16 readers with the mirror as it is, and with one that ends its connections.
///
/// # Errors
/// When a part does not start; a read that fails is counted.
pub fn measure() -> Result<Table> {
    let root = TestRoot::new()?;
    let image = image_of_files(&root, FILES, content)?;
    let title = format!("{FILES} files, {READERS} readers, registry unreachable");
    let mut table = Table::new(&[
        &title,
        "right",
        "EIO",
        "wrong",
        "time",
        "of the first",
        "slowest",
        "requests",
        "target",
    ]);
    let mut first = None;
    for (name, settings, config) in [
        ("nginx as it is", AS_IT_IS, ON_DEMAND),
        ("GOAWAY after every third request", THREE, ON_DEMAND),
        ("the same while the layer is filled", THREE, FILLING),
    ] {
        let row = round(&image, settings, config).with_context(|| name.to_owned())?;
        let took = row.took.as_secs_f64();
        let of = *first.get_or_insert(took);
        table.row([
            name.to_owned(),
            row.reads.right.load(Ordering::Relaxed).to_string(),
            row.reads.failed.load(Ordering::Relaxed).to_string(),
            row.reads.wrong.load(Ordering::Relaxed).to_string(),
            seconds(row.took),
            times(took, of),
            seconds(row.slowest),
            row.requests.to_string(),
            "0 EIO".to_owned(),
        ]);
    }
    Ok(table)
}

/// Filling begins immediately and does not rest.
const FILLING: &str = "[fetch]\nmax_readahead_bytes = 0\n[start_hints]\nenable = false\n\
    [background_fetch]\nsilence_period_msec = 0\n";

fn content(number: u64) -> Content {
    Content::Mixed {
        seed: number,
        length: LENGTH,
    }
}

struct Round {
    reads: Reads,
    took: Duration,
    slowest: Duration,
    requests: usize,
}

fn round(image: &OciImage, settings: &str, config: &str) -> Result<Round> {
    let mirrored = Mirrored::start(
        image,
        config,
        &["--min-layer-size", "0", "--span-size", SPAN_SIZE],
    )?;
    let nginx = Nginx::in_front_of(mirrored.stack.registry.address(), settings)?;
    mirrored.mirror(&nginx.tls_host())?;
    let data = mirrored.pull()?;
    let before = nginx.requests()?.len();
    let reads = Reads::default();
    let started = Instant::now();
    let slowest = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|reader| {
                let (data, reads) = (&data, &reads);
                scope.spawn(move || read(data, reader, reads))
            })
            .collect();
        let slowest = readers
            .into_iter()
            .map(|one| one.join().unwrap_or_default());
        slowest.max().unwrap_or_default()
    });
    let took = started.elapsed();
    Ok(Round {
        reads,
        took,
        slowest,
        requests: nginx.requests()?.len() - before,
    })
}

/// Reads each sixteenth file, not in order; returns the slowest read.
fn read(data: &Path, reader: u64, reads: &Reads) -> Duration {
    let mut slowest = Duration::ZERO;
    let share = FILES.div_ceil(READERS);
    for step in 0..share {
        // An odd multiplier that divides no share visits each once.
        let number = (step * 59 % share) * READERS + reader;
        if number >= FILES {
            continue;
        }
        let started = Instant::now();
        let count = match fs::read(data.join(number.to_string())) {
            Ok(bytes) if bytes == content(number).to_vec() => &reads.right,
            Ok(_) => &reads.wrong,
            Err(_) => &reads.failed,
        };
        slowest = slowest.max(started.elapsed());
        count.fetch_add(1, Ordering::Relaxed);
    }
    slowest
}
