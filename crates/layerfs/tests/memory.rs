//! What a layer's file tree takes of memory, counted by the allocator.
//!
//! A process of its own: the allocator that counts is that of the whole program.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

#[path = "support/large_ztoc.rs"]
mod large_ztoc;

use large_ztoc::{ATTRIBUTES, kinds, large_ztoc};
use soci_layerfs::{Tree, TreeError, TreeOptions};
use soci_meter::Measure;
use soci_ztoc::{FileMetadata, FileType, Ztoc};

/// What opening a zTOC took of memory, in bytes.
struct Opened {
    /// The zTOC, held in memory as it is read.
    blob: u64,
    /// At most at a time, the zTOC among it.
    peak: u64,
    /// Bytes at the end, when only the tree is left.
    held: u64,
    tree: Tree,
}

impl Opened {
    fn new(blob: &[u8]) -> Self {
        let mut tree = None;
        let counted = allocation_counter::measure(|| {
            let index = Ztoc::parse_index(blob.to_vec()).unwrap();
            tree = Some(Tree::of_index(&index, TreeOptions::default()).unwrap());
        });
        Self {
            blob: blob.len() as u64,
            peak: counted.bytes_max,
            held: u64::try_from(counted.bytes_current).unwrap(),
            tree: tree.unwrap(),
        }
    }

    /// Bytes of the names in the tree.
    fn names(&self) -> u64 {
        let inodes = 1..=self.tree.len();
        let listings = inodes.filter_map(|ino| self.tree.readdir(ino, 2));
        let names = listings.flatten();
        names.map(|entry| entry.name.len() as u64).sum()
    }
}

/// Sizes at which the vectors that grow are full and almost empty.
const FILES: [u64; 2] = [3_000, 5_000];

#[test]
fn opening_a_ztoc_takes_at_most_four_times_its_size_and_its_tree_one_and_a_half() {
    for (what, change) in kinds() {
        for files in FILES {
            let opened = Opened::new(&large_ztoc(files, change));
            let percent = |bytes: u64| bytes * 100 / opened.blob;
            let (peak, held) = (percent(opened.peak), percent(opened.held));
            println!("{files} {what}: peak {peak} %, held {held} %");
            assert!(peak <= 400, "{files} {what}: {peak} %");
            assert!(held <= 150, "{files} {what}: {held} %");
        }
    }
}

#[test]
fn a_tree_takes_at_most_60_bytes_per_file_beyond_its_name_and_counts_all_of_it() {
    for (what, change) in kinds() {
        for files in FILES {
            let opened = Opened::new(&large_ztoc(files, change));
            let counted = opened.tree.memory() as u64;
            // What is beside it does not grow with the layer.
            assert!(
                opened.held.abs_diff(counted) < 4096,
                "{} allocated, {counted} counted",
                opened.held
            );
            let inodes = opened.tree.len();
            let beyond = opened.held - opened.names();
            println!(
                "{files} {what}: {} bytes an inode beyond its name",
                beyond / inodes
            );
            if what != ATTRIBUTES {
                assert!(
                    beyond <= inodes * 60,
                    "{files} {what}: {beyond} for {inodes}"
                );
            }
        }
    }
}

/// A layer by what grows with its entries.
type Layer = (&'static str, fn(u64, &mut FileMetadata));

/// Layers whose entries share all but one thing, so that a single list of the tree grows.
const LAYERS: [Layer; 9] = [
    ("content of files", |at, entry| entry.name = name("f", at)),
    ("targets of links", |at, entry| {
        entry.name = name("l", at);
        entry.file_type = FileType::Symlink;
        entry.linkname = b"t".to_vec();
    }),
    ("implied directories", |at, entry| {
        entry.name = [&b"d/".repeat(7)[..], &name("e", at), b"/a/f"].concat();
    }),
    ("whiteouts", |at, entry| {
        entry.name = name(".wh.", at);
    }),
    ("names of one file", |at, entry| {
        entry.name = name("f", at);
        if at > 0 {
            entry.file_type = FileType::Hardlink;
            entry.linkname = name("f", 0);
        }
    }),
    ("metadata of one file", |at, entry| {
        entry.name = name("f", at);
        entry.uid = u32::try_from(at).unwrap();
        if at > 0 {
            entry.file_type = FileType::Hardlink;
            entry.linkname = name("f", 0);
        }
    }),
    ("files with several names", |at, entry| {
        entry.name = name("f", at);
        if at % 2 == 1 {
            entry.file_type = FileType::Hardlink;
            entry.linkname = name("f", at - 1);
        }
    }),
    ("values of one attribute", |at, entry| {
        entry.name = b"d".to_vec();
        entry.file_type = FileType::Dir;
        let key = b"SCHILY.xattr.user.n".to_vec();
        entry.xattrs = (0..5_u64)
            .map(|round| (key.clone(), (at + round).to_le_bytes().to_vec()))
            .collect();
    }),
    ("owners", |at, entry| {
        entry.name = b"d".to_vec();
        entry.file_type = FileType::Dir;
        entry.uid = u32::try_from(at).unwrap();
    }),
];

fn name(prefix: &str, at: u64) -> Vec<u8> {
    format!("{prefix}{at}").into_bytes()
}

/// What does not grow with the layer, in bytes.
const BESIDE: u64 = 64 << 10;

/// A limit is of what the allocator gives, whichever list of a tree it is that grows. A list that grows by
/// a half is copied, which an allocator may do in place: with both copies it is five thirds.
#[test]
fn no_tree_takes_more_than_its_limit_whichever_of_its_lists_grows() {
    for (what, change) in LAYERS {
        let index = Ztoc::parse_index(large_ztoc(5_000, change)).unwrap();
        let build = |memory| {
            let options = TreeOptions {
                memory,
                ..TreeOptions::default()
            };
            let mut built = None;
            let counted = allocation_counter::measure(|| {
                built = Some(Tree::of_index(&index, options).map(drop));
            });
            (counted.bytes_max, built.unwrap())
        };
        let (all, built) = build(u64::MAX);
        built.unwrap();
        let mut limits = (1..=10).map(|quarters| all * quarters / 4);
        let mut refused = 0;
        loop {
            let limit = limits.next().expect("a limit that suffices");
            let (peak, built) = build(limit);
            println!("{what}: {all} in all, {limit} allowed, {peak} taken");
            assert!(peak <= limit / 3 * 5 + BESIDE, "{what}: {peak} of {limit}");
            match built {
                Ok(()) => break,
                Err(TreeError::TooMuch(over)) => assert_eq!(over.measure, Measure::Bytes),
                Err(other) => panic!("{what}: {other}"),
            }
            refused += 1;
        }
        assert!(refused >= 2, "{what}: {refused} limits refused");
    }
}
