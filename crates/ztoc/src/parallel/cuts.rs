//! Where a layer is cut into chunks if it can be entered at checkpoints.

use crate::Checkpoint;
use crate::entry_points::EntryPoints;

/// Most output of a chunk, in bytes, as far as its checkpoints are right: a span of the usual size,
/// which ends with the block that is longer than 4 MiB.
pub(super) const CHUNK_OUTPUT: usize = 6 << 20;

/// What is needed to inflate a chunk before those in front of it.
#[derive(Debug)]
pub(crate) struct Entry {
    /// How many high bits of the byte before come first, 0 to 7.
    pub(super) bits: u8,
    /// The byte before.
    pub(super) before: u8,
    /// The output before, as the zTOC has it.
    pub(super) window: Vec<u8>,
}

/// A chunk to read.
#[derive(Debug, Default)]
pub(super) struct Cut {
    /// Its bytes; fewer at the end of the layer.
    pub(super) size: usize,
    /// Without the byte before.
    pub(super) entry: Option<Entry>,
    /// How many high bits of the last byte belong to the next chunk, if that begins at a checkpoint.
    pub(super) spare_bits: Option<u8>,
}

/// Cuts a layer at checkpoints, into chunks of half of `size` or more, but of no more than twice `size`
/// and [`CHUNK_OUTPUT`]. Between checkpoints that are too far apart, chunks have `size` and no entry.
#[derive(Debug)]
pub(super) struct Cuts<'e> {
    entries: &'e EntryPoints,
    size: usize,
    /// Number of checkpoints before the next chunk.
    passed: usize,
}

impl<'e> Cuts<'e> {
    pub(super) const fn new(entries: &'e EntryPoints, size: usize) -> Self {
        Self {
            entries,
            size,
            passed: 0,
        }
    }

    /// The chunk that begins at `offset` of the layer. One that is longer than `longest` is cut off, and
    /// has no entry.
    pub(super) fn next(&mut self, offset: u64, longest: usize) -> Cut {
        let points = self.entries.points();
        let ahead = points.get(self.passed..).unwrap_or_default();
        self.passed += ahead
            .iter()
            .take_while(|point| point.input < offset)
            .count();
        let here = points
            .get(self.passed)
            .filter(|point| point.input == offset);
        let most = (self.size as u64).saturating_mul(2);
        let fits = |point: &&Checkpoint| {
            let output = here.map(|here| point.output.saturating_sub(here.output));
            point.input - offset <= most
                && output.is_none_or(|length| length <= CHUNK_OUTPUT as u64)
        };
        let behind = self.passed + usize::from(here.is_some());
        let behind = points.get(behind..).unwrap_or_default();
        let mut end = None;
        for (number, point) in behind.iter().enumerate() {
            // One at least, which may have more output than it should.
            if !fits(&point) && (number > 0 || point.input - offset > most) {
                break;
            }
            end = Some(*point);
            if point.input - offset >= most / 4 {
                break;
            }
        }
        let size = end.map_or(self.size as u64, |end| end.input - offset);
        let size = usize::try_from(size).unwrap_or(self.size);
        if size > longest {
            return Cut {
                size: longest,
                ..Cut::default()
            };
        }
        let entry = here.and_then(|here| {
            Some(Entry {
                bits: here.bits,
                before: 0,
                window: self.entries.window(self.passed)?,
            })
        });
        Cut {
            size,
            entry,
            spare_bits: end.map(|end| end.bits),
        }
    }
}
