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
use soci_layerfs::{Tree, TreeOptions};
use soci_ztoc::Ztoc;

/// What opening a zTOC took of memory, in bytes.
struct Opened {
    /// The zTOC, held in memory as it is read.
    blob: u64,
    /// At most at a time, the zTOC among it.
    peak: u64,
    /// In the end, when only the tree is left.
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
