//! Images that come and go under a limit of memory. Needs root, FUSE, containerd, runc, docker-registry, the two
//! programs, and a memory controller of control groups. `SOAK_SECONDS` is twice how long (without it: each image
//! once); it prints the memory as it goes.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::memory_group::{MemoryGroup, supervisor_pid};
use crate::support::{
    NAMESPACE, PATIENCE, indexed, lazy_mounts, left_behind, pull, run, stack, wait_until,
};
use soci_testkit::image::{ImageBuilder, Layer, busybox_layer};
use soci_testkit::process::mounts_below;
use soci_testkit::{Content, Stack, TestRoot};

/// Memory of all processes of the daemon, page cache included.
const LIMIT: u64 = 256 << 20;
/// Layers of an image, one of which all images have.
const LAYERS: u64 = 15;
const FILES: u64 = 40;
/// How much more anonymous memory the server may have in the end than after the first round: what its allocator
/// keeps of pulls at the same time.
const SLACK: u64 = 24 << 20;
/// Time between two lines of the memory curve.
const LINE: Duration = Duration::from_secs(10);

struct Soak {
    images: u64,
    time: Duration,
}

impl Soak {
    fn of_environment() -> Self {
        match std::env::var("SOAK_SECONDS") {
            Ok(text) => Self {
                images: 30,
                time: Duration::from_secs(text.parse::<u64>().unwrap() / 2),
            },
            Err(_) => Self {
                images: 3,
                time: Duration::ZERO,
            },
        }
    }
}

/// An image of fifteen small layers, whose command counts the files of its own.
fn image(stack: &Stack, number: u64) -> String {
    let layout = TestRoot::new().unwrap();
    let mut builder = ImageBuilder::new().layer(busybox_layer().unwrap());
    for layer in 1..LAYERS {
        let folder = format!("srv/{layer}");
        let mut files = Layer::new().dir("srv").dir(&folder);
        for file in 0..FILES {
            let seed = (number * LAYERS + layer) * FILES + file;
            let content = Content::Noise {
                seed,
                length: 2048 + seed % 4096,
            };
            files = files.file(&format!("{folder}/file-{number}-{file}"), content);
        }
        builder = builder.layer(files);
    }
    let count = "cat /srv/*/* | wc -c; ls /srv/* | grep -c file";
    builder
        .command(["/bin/sh", "-c", count])
        .write(layout.path(), "image")
        .unwrap();
    indexed(stack, layout.path(), &format!("soak{number}"))
}

/// A file of a layer that stays as long as this runs is read past the page cache, over and over.
fn read_on(file: PathBuf, stop: &Arc<AtomicBool>) -> std::thread::JoinHandle<u64> {
    let stop = stop.clone();
    std::thread::spawn(move || {
        let mut whole = Vec::new();
        File::open(&file).unwrap().read_to_end(&mut whole).unwrap();
        let mut reads = 0;
        while !stop.load(Ordering::Relaxed) {
            let mut again = Vec::new();
            File::open(&file).unwrap().read_to_end(&mut again).unwrap();
            assert_eq!(again, whole);
            reads += 1;
            // Leaves the processors to others.
            std::thread::sleep(Duration::from_millis(5));
        }
        reads
    })
}

#[test]
fn images_come_and_go_within_a_limit_of_memory_and_nothing_grows() {
    let Soak { images, time } = Soak::of_environment();
    let stack = stack("");
    let references: Vec<_> = (0..images).map(|number| image(&stack, number)).collect();
    let (supervisor, server) = (
        supervisor_pid(&stack.daemon),
        stack.daemon.server_pid().unwrap(),
    );
    let holder = stack.daemon.holder_pid().unwrap();
    let group = MemoryGroup::new(LIMIT);
    for pid in [supervisor, server, holder] {
        group.add(pid);
    }
    let begun = Instant::now();
    let anonymous = || stack.daemon.anonymous_memory().unwrap();
    let line = |what: &str| {
        println!(
            "{:>5} s, {what}: {} KiB anonymous, {} KiB with page cache; {} mounts",
            begun.elapsed().as_secs(),
            anonymous() >> 10,
            group.usage() >> 10,
            lazy_mounts(&stack),
        );
    };
    line("nothing pulled");
    for reference in &references {
        pull(&stack, reference);
    }
    let layers = usize::try_from(images * (LAYERS - 1) + 1).unwrap();
    assert_eq!(
        lazy_mounts(&stack),
        layers,
        "every layer is lazy, each once"
    );
    line("all pulled");

    let mounts = mounts_below(&stack.daemon.root()).unwrap().into_iter();
    let files = mounts.map(|mount| mount.join("srv/7/file-0-0"));
    let file = files.into_iter().find(|path| path.exists()).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let reader = read_on(file, &stop);

    let ctr = stack.containerd.ctr(NAMESPACE);
    let remove = |reference: &String| {
        ctr.output(["images", "rm", "--sync", reference]).unwrap();
    };
    // The first image stays: it is read all the time.
    let (mut first_round, mut most, mut last_line, mut turns) = (0, 0, Instant::now(), 0_u64);
    let others = &references[1..];
    loop {
        for (at, reference) in others.iter().enumerate() {
            if turns > 0 && begun.elapsed() > time {
                break;
            }
            let printed = run(&stack, reference, &[]);
            let files = printed.lines().nth(1);
            assert_eq!(files, Some((FILES * (LAYERS - 1)).to_string().as_str()));
            remove(reference);
            // Its neighbour comes and goes while it does, from another client.
            let next = &others[(at + 1) % others.len()];
            std::thread::scope(|scope| {
                if at % 3 == 0 && others.len() > 1 {
                    scope.spawn(|| {
                        remove(next);
                        pull(&stack, next);
                    });
                }
                pull(&stack, reference);
            });
            most = anonymous().max(most);
            if last_line.elapsed() > LINE {
                last_line = Instant::now();
                line("images come and go");
            }
        }
        turns += 1;
        if turns == 1 {
            first_round = most;
            line("first round");
        }
        if begun.elapsed() >= time {
            break;
        }
    }
    assert_eq!(lazy_mounts(&stack), layers, "all are back");
    stop.store(true, Ordering::Relaxed);
    assert!(reader.join().unwrap() > 0);
    line("end of the rounds");
    println!("{turns} rounds of {images} images");
    assert!(
        most <= first_round + SLACK,
        "{most} bytes of anonymous memory, {first_round} in the first round"
    );

    references.iter().for_each(remove);
    wait_until("nothing is left", PATIENCE, || match left_behind(&stack) {
        left if left.is_empty() => Ok(()),
        left => Err(left.join(", ")),
    });
    line("all removed");
    assert_eq!(
        stack.daemon.server_pid().unwrap(),
        server,
        "the limit was never reached"
    );
}
