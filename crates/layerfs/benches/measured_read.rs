//! What measuring reads costs: reads of 4 KiB from memory through [`LayerFs`], without FUSE, with and
//! without timers, on one thread and on two. A read through FUSE takes some microseconds more.
//!
//! `cargo bench -p soci-layerfs --bench measured_read`

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a benchmark fails by panicking, and prints"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::IoSlice;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prometheus::{Histogram, HistogramOpts};
use soci_fetch::testing::MemoryLayer;
use soci_fuse::{FileSystem as _, Operation, Reply, ReplySink, Request};
use soci_layerfs::{CacheTimes, LayerFs, Timer, Timers, Tree, TreeOptions};
use support::direct::NEGOTIATED;
use support::{Layer, noise, tree_of, ztoc_of};

const READS: u32 = 300_000;
const ROUNDS: u32 = 9;
const SIZE: u32 = 4096;

struct Nowhere;

impl ReplySink for Nowhere {
    fn send(&self, _unique: u64, message: &[IoSlice<'_>]) {
        std::hint::black_box(message);
    }
}

/// Processor time of this process: unlike the clock on the wall it does not mind a busy machine.
fn processor_time() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap(),
        u32::try_from(time.tv_nsec).unwrap(),
    )
    .as_secs_f64()
}

/// Nanoseconds of processor time for one read.
fn per_read(fs: &LayerFs, file: u64, threads: u32) -> f64 {
    let sink = Arc::new(Nowhere);
    let start = processor_time();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                for n in 0..READS {
                    let request = Request {
                        unique: 7,
                        node: file,
                        pid: 1,
                        operation: Operation::Read {
                            offset: u64::from(n % 256 * SIZE),
                            size: SIZE,
                        },
                        bytes: &[],
                    };
                    fs.handle(&request, Reply::new(7, sink.clone()));
                }
            });
        }
    });
    (processor_time() - start) * 1e9 / f64::from(READS) / f64::from(threads)
}

fn main() {
    let tar = Layer::new().file("file", &noise(1 << 20)).tar();
    let tree: Arc<Tree> = Arc::new(tree_of(&ztoc_of(&tar), TreeOptions::default()).unwrap());
    let file = tree.find(b"file").unwrap();
    let fs = |timers: Timers| {
        LayerFs::new(
            tree.clone(),
            Arc::new(MemoryLayer::new(tar.clone())),
            CacheTimes::FOREVER,
            PathBuf::from("/"),
            &NEGOTIATED,
        )
        .with_timers(timers)
    };
    let buckets = (0..=10).map(|power| f64::from(1 << power)).collect();
    let opts = HistogramOpts::new("reads", "reads").buckets(buckets);
    let histogram = Histogram::with_opts(opts).unwrap();
    let plain = fs(Timers::default());
    let measured = fs(Timers {
        read: Some(Timer::new(move |duration| {
            histogram.observe(duration.as_secs_f64() * 1e6);
        })),
        readdir: None,
    });
    for threads in [1, 2] {
        // By turns, so that both see the same machine; the best round counts.
        let (mut without, mut with) = (f64::MAX, f64::MAX);
        for _ in 0..ROUNDS {
            without = without.min(per_read(&plain, file, threads));
            with = with.min(per_read(&measured, file, threads));
        }
        println!(
            "{threads} thread(s): {without:.0} ns a read unmeasured, {with:.0} ns measured: {:+.0} ns",
            with - without
        );
    }
}
