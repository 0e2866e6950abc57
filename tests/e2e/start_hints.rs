//! What a start will read is fetched, and read into the page cache, before it is read.
//! Needs root, FUSE, containerd, runc, docker-registry and the two programs.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::{
    self, NAMESPACE, PATIENCE, is_durable, lazy_mounts, left_behind, pull, run, stack, status,
    wait_until, wait_until_durable,
};
use soci_testkit::image::busybox_layer;
use soci_testkit::kernel_caches;
use soci_testkit::process::Signal;
use soci_testkit::{Content, Fault, ImageBuilder, Layer, Rule, Run, Stack, TestRoot};
use soci_ztoc::{FileMetadata, Ztoc};

/// Without the hint that small layers are fetched whole: nothing may be fetched in vain but what
/// the structure of files says.
const STRUCTURE: &str = "[background_fetch]\ndisable = true\n\
    [start_hints]\nmax_unread_bytes = 8000000\nmax_unread_percent = 0\n\
    min_link_bytes_per_sec = 0\n";
const NOISE: u64 = 24 << 20;
const PAGE: u64 = 4096;

/// The shared library of this name that this very program has loaded.
fn loaded(name: &str) -> PathBuf {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let paths = maps
        .lines()
        .filter_map(|line| line.split_whitespace().nth(5));
    let found = paths
        .into_iter()
        .find(|path| path.rsplit('/').next().unwrap().starts_with(name));
    PathBuf::from(found.unwrap_or_else(|| panic!("no {name} in {maps}")))
}

/// An image with a program, noise, and the library that the program needs; one span for each 64 KiB.
fn image(stack: &Stack) -> String {
    let root = TestRoot::new().unwrap();
    let layer = busybox_layer()
        .unwrap()
        .dir("app")
        .program("app/program", Path::new("/bin/dash"))
        .unwrap()
        .file(
            "data/noise",
            Content::Noise {
                seed: 1,
                length: NOISE,
            },
        )
        .dir("usr/lib/x86_64-linux-gnu")
        .program("usr/lib/x86_64-linux-gnu/libc.so.6", &loaded("libc.so"))
        .unwrap();
    ImageBuilder::new()
        .layer(layer)
        .command(["/bin/sh"])
        .write(root.path(), "hinted")
        .unwrap();
    let options = ["--min-layer-size", "0", "--span-size", "65536"];
    support::indexed_with(stack, root.path(), "hinted", &options)
}

/// A file of the lazy layer.
fn file(stack: &Stack, path: &str) -> PathBuf {
    let snapshots = stack.daemon.root().join("snapshotter/snapshots");
    let folders = std::fs::read_dir(snapshots).unwrap();
    let mut files = folders.map(|folder| folder.unwrap().path().join("fs").join(path));
    files.find(|path| path.exists()).unwrap()
}

const LIBRARY: &str = "usr/lib/x86_64-linux-gnu/libc.so.6";

fn read_page(path: &Path, at: u64) -> std::io::Result<[u8; 4096]> {
    let mut page = [0; 4096];
    File::open(path)?.read_exact_at(&mut page, at)?;
    Ok(page)
}

/// Pages of a file in the page cache.
fn cached(path: &Path) -> u64 {
    let mut command = Command::new("fincore");
    command
        .args(["--noheadings", "--output", "PAGES"])
        .arg(path);
    let output = command.output().unwrap();
    String::from_utf8_lossy(&output.stdout)
        .trim()
        .parse()
        .unwrap()
}

/// Waits until the daemon has stored these pages of a file.
fn wait_until_stored(stack: &Stack, file: &str, pages: &[u64]) {
    let mut layers = std::fs::read_dir(stack.daemon.root().join("soci/layers")).unwrap();
    let found = layers.find_map(|layer| {
        let layer = layer.unwrap().path();
        let ztoc = Ztoc::parse(&std::fs::read(layer.join("ztoc")).ok()?).unwrap();
        let is_it = |entry: &&FileMetadata| entry.name == file.as_bytes();
        let start = ztoc.toc.iter().find(is_it)?.uncompressed_offset;
        Some((layer, ztoc.span_table(), start))
    });
    let (layer, table, start) = found.unwrap();
    let spans = pages.iter().map(|page| start + page);
    let spans = spans.flat_map(|page| table.covering(page..page + PAGE));
    let spans: Vec<_> = spans.collect();
    wait_until("the file is stored", PATIENCE, || {
        let missing = spans.iter().filter(|span| !is_durable(&layer, **span));
        match missing.count() {
            0 => Ok(()),
            missing => Err(format!("{missing} of {spans:?} are missing")),
        }
    });
}

#[test]
fn what_an_elf_file_needs_is_fetched_before_it_is_read() {
    let stack = stack(STRUCTURE);
    let reference = image(&stack);
    pull(&stack, &reference);
    let library = file(&stack, LIBRARY);
    let length = std::fs::metadata(&library).unwrap().len();
    read_page(&file(&stack, "app/program"), 0).unwrap();
    // Everything is fetched that loading the library touches: its first pages hold the tables.
    stack.proxy.reset_stats();
    let touched = [0, 16 * PAGE, length / 2 / PAGE * PAGE];
    wait_until_stored(&stack, LIBRARY, &touched);
    stack.proxy.inject(Rule::always(Fault::status(403)));
    for at in touched {
        read_page(&library, at).unwrap_or_else(|error| panic!("at {at}: {error}"));
    }
    // And nothing else.
    let noise = file(&stack, "data/noise");
    read_page(&noise, NOISE / 2).unwrap_err();
    let fetched = stack.proxy.stats().total().bytes;
    assert!(fetched < NOISE / 2, "{fetched}");
}

/// Length of the ELF files that [`elf`] makes.
const ELF: u64 = 4 << 20;
/// Where their code is.
const CODE: std::ops::Range<u64> = (1 << 20)..(2 << 20);

/// An ELF file with code and a needed library; the rest is noise. With `lies`, what its dynamic
/// section names is behind the end of the file, and so is its code.
fn elf(seed: u64, needed: &str, lies: bool) -> Content {
    let noise = Content::Noise { seed, length: ELF };
    let mut file = noise.to_vec();
    let mut put = |at: u64, bytes: &[u8]| {
        let at = usize::try_from(at).unwrap();
        file[at..at + bytes.len()].copy_from_slice(bytes);
    };
    let (dynamic, strings, far) = (4096, 8192, 1_u64 << 62);
    put(0, &[0; 512]);
    put(0, b"\x7fELF\x02\x01");
    for (at, value) in [(32, 64), (54, 56), (56, 3)] {
        put(at, &[value]);
    }
    let code = CODE.end - CODE.start;
    let start = if lies { far } else { CODE.start };
    let segments = [(1, 0, ELF), (1 | 1 << 32, start, code), (2, dynamic, 160)];
    for (number, (kind, start, length)) in (0..).zip(segments) {
        for (field, value) in [(0, kind), (8, start), (16, start), (32, length)] {
            put(64 + 56 * number + field, &u64::to_le_bytes(value));
        }
    }
    let entries = match lies {
        false => [(1, 1), (5, strings), (10, 100), (0, 0), (0, 0)],
        true => [(1, far), (5, strings), (10, 100), (6, far), (7, far)],
    };
    put(dynamic, &[0; 160]);
    for (number, (tag, value)) in (0..).zip(entries) {
        put(dynamic + 16 * number, &u64::to_le_bytes(tag));
        put(dynamic + 16 * number + 8, &u64::to_le_bytes(value));
    }
    put(
        strings,
        &[&b"\0"[..], needed.as_bytes(), &[0; 100]].concat(),
    );
    Content::Bytes(file)
}

#[test]
fn libraries_that_need_each_other_are_fetched_once_and_headers_that_lie_cost_little() {
    let stack = stack(STRUCTURE);
    let root = TestRoot::new().unwrap();
    let layer = busybox_layer()
        .unwrap()
        .dir("usr/lib")
        .file("usr/lib/libone.so", elf(1, "libtwo.so", false))
        .dir("opt")
        .file("opt/liar.so", elf(2, "libone.so", true));
    // In a layer of its own.
    let second = Layer::new()
        .dir("usr/lib")
        .file("usr/lib/libtwo.so", elf(3, "libone.so", false))
        .file("usr/lib/libunused.so", elf(4, "libone.so", false));
    let image = ImageBuilder::new()
        .layer(layer)
        .layer(second)
        .write(root.path(), "cycle")
        .unwrap();
    let options = ["--min-layer-size", "0", "--span-size", "65536"];
    let reference = support::indexed_with(&stack, root.path(), "cycle", &options);
    pull(&stack, &reference);
    let bytes = || {
        let stats = stack.proxy.stats();
        let layers = image.layers.iter();
        layers
            .map(|layer| stats.blob(layer.digest).bytes)
            .sum::<u64>()
    };
    let [one, two, liar] =
        ["usr/lib/libone.so", "usr/lib/libtwo.so", "opt/liar.so"].map(|path| file(&stack, path));
    stack.proxy.reset_stats();
    read_page(&liar, 0).unwrap();
    read_page(&one, 0).unwrap();
    // What follows is stored: nothing of it is requested any more.
    let code: Vec<u64> = CODE.step_by(PAGE.try_into().unwrap()).collect();
    for library in ["usr/lib/libone.so", "usr/lib/libtwo.so"] {
        wait_until_stored(&stack, library, &code);
    }
    stack.proxy.inject(Rule::always(Fault::status(403)));
    for library in [&one, &two] {
        for at in [CODE.start, (CODE.start + CODE.end) / 2, CODE.end - PAGE] {
            read_page(library, at).unwrap_or_else(|error| panic!("{library:?} at {at}: {error}"));
        }
    }
    // Nothing twice, and within the limit of what is fetched in vain.
    support::fetched_once(&stack, &image);
    let fetched = bytes();
    assert!(fetched < 9_000_000, "{fetched} bytes of 17 MB");
}

#[test]
fn hints_can_be_turned_off() {
    let stack = stack("[background_fetch]\ndisable = true\n[start_hints]\nenable = false\n");
    let reference = image(&stack);
    pull(&stack, &reference);
    read_page(&file(&stack, "app/program"), 0).unwrap();
    wait_until_durable(&stack.daemon, false);
    stack.proxy.inject(Rule::always(Fault::status(403)));
    read_page(&file(&stack, LIBRARY), 16 * PAGE).unwrap_err();
}

#[test]
fn what_a_start_will_read_is_in_the_page_cache_before_it_is_read() {
    let stack = stack(STRUCTURE);
    let reference = image(&stack);
    pull(&stack, &reference);
    let library = file(&stack, LIBRARY);
    let kept = kernel_caches::keep().unwrap();
    assert_eq!(cached(&library), 0);
    read_page(&library, 0).unwrap();
    // Far more than the kernel's own readahead of the first page.
    let most = std::fs::metadata(&library).unwrap().len().div_ceil(PAGE);
    wait_until("its code is in the page cache", PATIENCE, || {
        let pages = cached(&library);
        (pages > most / 2)
            .then_some(())
            .ok_or(format!("{pages} of {most} pages"))
    });
    drop(kept);
    let original = std::fs::read(loaded("libc.so")).unwrap();
    assert_eq!(std::fs::read(&library).unwrap(), original);
    assert_eq!(cached(&file(&stack, "app/program")), 0);
}

/// What is read ahead counts as the daemon's: it neither takes the container's memory nor stops at it.
/// The file that a container waits for. Written at the end, also if the test fails: the container
/// would wait for ever, and the test for it.
struct Proceed(PathBuf);

impl Drop for Proceed {
    fn drop(&mut self) {
        std::fs::write(&self.0, b"").unwrap();
    }
}

#[test]
fn what_is_read_ahead_of_a_container_does_not_count_against_its_memory_limit() {
    const LIMIT: u64 = 12 << 20;
    let stack =
        stack("[background_fetch]\ndisable = true\n[start_hints]\nmin_link_bytes_per_sec = 0\n");
    let reference = image(&stack);
    pull(&stack, &reference);
    let sum = run(&stack, &reference, &["/bin/sha256sum", "/data/noise"]);
    wait_until("the start is recorded", PATIENCE, || {
        let profiles = status(&stack.daemon)["profiles"].clone();
        let recorded = profiles["recorded"] == 1;
        recorded.then_some(()).ok_or_else(|| profiles.to_string())
    });
    let ctr = stack.containerd.ctr(NAMESPACE);
    ctr.output(["images", "rm", "--sync", &reference]).unwrap();
    wait_until("the image is gone", PATIENCE, || {
        let left = left_behind(&stack);
        left.is_empty().then_some(()).ok_or_else(|| left.join(", "))
    });

    pull(&stack, &reference);
    let noise = file(&stack, "data/noise");
    let kept = kernel_caches::keep().unwrap();
    assert_eq!(cached(&noise), 0);
    let signal = TestRoot::new().unwrap();
    let mount = format!(
        "type=bind,src={},dst=/app,options=rbind:ro",
        signal.path().display()
    );
    let command = "dd if=/data/noise of=/dev/null bs=4096 count=1 2>/dev/null; \
        until test -e /app/go; do sleep 0.1; done; sha256sum /data/noise";
    let limited = Run::new(&reference, "soci")
        .command(["/bin/sh", "-c", command])
        .option(&format!("--memory-limit={LIMIT}"))
        .option(&format!("--mount={mount}"));
    std::thread::scope(|scope| {
        let container = scope.spawn(|| stack.containerd.ctr(NAMESPACE).run_ok(&limited));
        let proceed = Proceed(signal.path().join("go"));
        wait_until("the file is in the page cache", PATIENCE, || {
            let pages = cached(&noise);
            let enough = pages * PAGE > LIMIT * 3 / 2 || container.is_finished();
            enough.then_some(()).ok_or(format!("{pages} pages"))
        });
        drop(kept);
        assert!(!container.is_finished(), "it waits for the signal");
        drop(proceed);
        assert_eq!(container.join().unwrap().unwrap(), sum);
    });
}

#[test]
fn a_daemon_that_is_killed_replaced_or_unmounts_while_the_page_cache_is_filled_leaves_right_bytes()
{
    let mut stack = stack(STRUCTURE);
    let reference = image(&stack);
    let original = std::fs::read(loaded("libc.so")).unwrap();
    for round in 0..6_u64 {
        pull(&stack, &reference);
        let library = file(&stack, LIBRARY);
        let server = stack.daemon.server_pid().unwrap();
        read_page(&library, 0).unwrap();
        // Another moment of the filling each time: which one does not matter.
        std::thread::sleep(Duration::from_millis(round * 15));
        if round % 2 == 0 {
            stack.daemon.signal_server(Signal::KILL).unwrap();
            stack.daemon.wait_for_successor(server).unwrap();
        } else {
            stack.daemon.upgrade().unwrap();
        }
        stack.wait_for_snapshotter().unwrap();
        assert!(
            std::fs::read(&library).unwrap() == original,
            "round {round}"
        );
        assert_eq!(run(&stack, &reference, &["/bin/echo", "well"]), "well\n");
        let ctr = stack.containerd.ctr(NAMESPACE);
        let remove = ["images", "rm", "--sync", &reference];
        ctr.output(remove).unwrap();
        wait_until("no layer is mounted", PATIENCE, || {
            match lazy_mounts(&stack) {
                0 => Ok(()),
                mounts => Err(format!("{mounts} mounts")),
            }
        });
    }
    assert!(stack.daemon.interrupt().unwrap().success());
}
