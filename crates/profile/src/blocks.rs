//! Sets of blocks of a layer's uncompressed tar.

use std::ops::Range;

/// Bytes of a block.
pub const BLOCK: u64 = 64 << 10;

/// Runs of a set; of a set with more the first are kept.
const MAX_RUNS: usize = 64 << 10;

/// A set of blocks of 64 KiB: block `n` is bytes `n * BLOCK` to `(n + 1) * BLOCK` of the tar. Runs
/// are sorted and do not touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Blocks(Vec<Range<u32>>);

impl Blocks {
    /// Makes a set of runs in any order; they may overlap.
    #[must_use]
    pub fn new(runs: impl IntoIterator<Item = Range<u32>>) -> Self {
        let mut runs: Vec<_> = runs.into_iter().filter(|run| !run.is_empty()).collect();
        runs.sort_unstable_by_key(|run| run.start);
        let mut merged: Vec<Range<u32>> = Vec::with_capacity(runs.len().min(MAX_RUNS));
        for run in runs {
            let full = merged.len() >= MAX_RUNS;
            match merged.last_mut() {
                Some(last) if run.start <= last.end => last.end = last.end.max(run.end),
                _ if full => break,
                _ => merged.push(run),
            }
        }
        Self(merged)
    }

    /// The blocks that a range of bytes touches.
    #[must_use]
    pub fn touched_by(bytes: &Range<u64>) -> Range<u32> {
        let number = |block: u64| u32::try_from(block).unwrap_or(u32::MAX);
        let end = bytes.end.div_ceil(BLOCK);
        number(bytes.start / BLOCK)..number(if bytes.is_empty() { 0 } else { end })
    }

    /// The runs, in order.
    #[must_use]
    pub fn runs(&self) -> &[Range<u32>] {
        &self.0
    }

    /// Whether there is no block in it.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of blocks.
    #[must_use]
    pub fn count(&self) -> u64 {
        let lengths = self.0.iter().map(|run| u64::from(run.end - run.start));
        lengths.sum()
    }

    /// The parts of a range of blocks that are in the set.
    pub fn within(&self, range: Range<u32>) -> impl Iterator<Item = Range<u32>> {
        let first = self.0.partition_point(|run| run.end <= range.start);
        let runs = self.0.iter().skip(first);
        runs.take_while(move |run| run.start < range.end)
            .map(move |run| run.start.max(range.start)..run.end.min(range.end))
    }

    /// The blocks that at least half of the sets have.
    #[must_use]
    pub(crate) fn majority(sets: &[&Self]) -> Self {
        let mut edges: Vec<(u32, i32)> = Vec::new();
        for run in sets.iter().flat_map(|set| set.0.iter()) {
            edges.extend([(run.start, 1), (run.end, -1)]);
        }
        edges.sort_unstable();
        let needed = i32::try_from(sets.len().div_ceil(2))
            .unwrap_or(i32::MAX)
            .max(1);
        let (mut depth, mut start, mut runs) = (0, None, Vec::new());
        let mut edges = edges.into_iter().peekable();
        while let Some((at, step)) = edges.next() {
            depth += step;
            if edges.peek().is_some_and(|(next, _)| *next == at) {
                continue;
            }
            match start {
                None if depth >= needed => start = Some(at),
                Some(from) if depth < needed => {
                    runs.push(from..at);
                    start = None;
                }
                _ => {}
            }
        }
        Self::new(runs)
    }

    /// The set as lengths of gaps and runs by turns.
    pub(crate) fn lengths(&self) -> Vec<u32> {
        let mut at = 0;
        let of = |run: &Range<u32>| {
            let pair = [run.start - at, run.end - run.start];
            at = run.end;
            pair
        };
        self.0.iter().flat_map(of).collect()
    }

    /// The set of lengths of gaps and runs; `None` if they leave the range of block numbers.
    pub(crate) fn of_lengths(lengths: &[u32]) -> Option<Self> {
        let (mut at, mut runs) = (0_u32, Vec::new());
        for pair in lengths.chunks(2) {
            let &[gap, take] = pair else {
                return None;
            };
            let start = at.checked_add(gap)?;
            at = start.checked_add(take)?;
            runs.push(start..at);
        }
        Some(Self::new(runs))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn set(blocks: &Blocks) -> BTreeSet<u32> {
        blocks.0.iter().flat_map(Clone::clone).collect()
    }

    #[test]
    fn a_range_touches_the_blocks_of_its_first_and_last_byte() {
        assert_eq!(Blocks::touched_by(&(0..1)), 0..1);
        assert_eq!(Blocks::touched_by(&(BLOCK - 1..BLOCK + 1)), 0..2);
        assert_eq!(Blocks::touched_by(&(BLOCK..2 * BLOCK)), 1..2);
        assert!(Blocks::touched_by(&(7..7)).is_empty());
        let far = Blocks::touched_by(&(u64::MAX - 1..u64::MAX));
        assert!(Blocks::new([far]).is_empty());
    }

    #[test]
    fn lengths_beyond_the_range_of_numbers_are_refused() {
        assert!(Blocks::of_lengths(&[1]).is_none());
        assert!(Blocks::of_lengths(&[u32::MAX, 1]).is_none());
        assert!(Blocks::of_lengths(&[1, u32::MAX]).is_none());
        assert!(Blocks::of_lengths(&[]).unwrap().is_empty());
    }

    proptest! {
        #[test]
        fn sets_behave_as_sets(
            lists in prop::collection::vec(prop::collection::vec((0..300_u32, 0..40_u32), 0..20), 1..5),
            part in (0..300_u32, 0..100_u32),
        ) {
            let sets: Vec<_> = lists
                .iter()
                .map(|list| Blocks::new(list.iter().map(|(at, len)| *at..at + len)))
                .collect();
            for (blocks, list) in sets.iter().zip(&lists) {
                let all: BTreeSet<_> = list.iter().flat_map(|(at, len)| *at..at + len).collect();
                prop_assert_eq!(&set(blocks), &all);
                prop_assert_eq!(blocks.count(), all.len() as u64);
                prop_assert_eq!(&Blocks::of_lengths(&blocks.lengths()).unwrap(), blocks);
                let range = part.0..part.0 + part.1;
                let within: BTreeSet<_> = blocks.within(range.clone()).flatten().collect();
                prop_assert_eq!(within, all.into_iter().filter(|n| range.contains(n)).collect());
            }
            let merged = set(&Blocks::majority(&sets.iter().collect::<Vec<_>>()));
            let sets: Vec<_> = sets.iter().map(set).collect();
            for block in 0..400 {
                let have = sets.iter().filter(|set| set.contains(&block)).count();
                prop_assert_eq!(merged.contains(&block), have > 0 && have * 2 >= sets.len());
            }
        }
    }
}
