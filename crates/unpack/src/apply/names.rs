//! The names that were made in a layer. One that was not made needs no look before it is made.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

/// Limit of names that are remembered, 9 to 18 bytes each. After that every name is looked at.
const MOST: usize = 1 << 20;

/// Names in directories, by their hashes.
#[derive(Debug, Default)]
pub(super) struct Names {
    made: HashSet<u64>,
    hasher: RandomState,
    /// Not all names are known.
    incomplete: bool,
}

impl Names {
    /// Records that not all names are known: the directory was not empty.
    pub(super) fn incomplete(&mut self) {
        self.incomplete = true;
        self.made = HashSet::new();
    }

    /// Records a name that is about to be made, and returns whether it is certain that there is none.
    pub(super) fn is_new(&mut self, directory: u64, name: &[u8]) -> bool {
        if self.incomplete {
            return false;
        }
        let new = self.made.insert(self.hasher.hash_one((directory, name)));
        if self.made.len() >= MOST {
            self.incomplete();
        }
        new
    }
}
