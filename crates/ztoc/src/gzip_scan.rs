//! Inflating a gzip layer that arrives in pieces, and taking checkpoints on the way.

use crate::BuildError;
use crate::checkpoint::{Checkpoint, GzipCheckpoints, WINDOW_SIZE};
use crate::inflate::{Inflater, State, Stop, Wrapping};

/// How much is inflated at a time, besides the window that is kept before it.
const OUTPUT: usize = 256 << 10;

/// A gzip layer that is being inflated.
#[derive(Debug)]
pub(crate) struct GzipScanner {
    inflater: Inflater,
    /// The window, then the output since the buffer was last full. Zeros stand in front.
    buffer: Box<[u8]>,
    /// Where in `buffer` the next output goes; at least `WINDOW_SIZE`.
    at: usize,
    total_in: u64,
    total_out: u64,
    /// The output of the last checkpoint.
    last: u64,
    /// No member is open: at the start, or behind a member's trailer.
    between_members: bool,
    members: u64,
    checkpoints: GzipCheckpoints,
}

impl GzipScanner {
    pub(crate) fn new(span_size: u64) -> Result<Self, BuildError> {
        let inflater = Inflater::new(Wrapping::Gzip).map_err(|invalid| BuildError::Gzip {
            reason: invalid.0,
            at: 0,
        })?;
        Ok(Self {
            inflater,
            buffer: vec![0; WINDOW_SIZE + OUTPUT].into_boxed_slice(),
            at: WINDOW_SIZE,
            total_in: 0,
            total_out: 0,
            last: 0,
            between_members: true,
            members: 0,
            checkpoints: GzipCheckpoints::new(span_size),
        })
    }

    /// How many checkpoints were taken so far.
    pub(crate) const fn checkpoints(&self) -> usize {
        self.checkpoints.points.len()
    }

    /// The checkpoints after the first `known`.
    pub(crate) fn checkpoints_after(&self, known: usize) -> Vec<Checkpoint> {
        self.checkpoints
            .points
            .get(known..)
            .unwrap_or_default()
            .to_vec()
    }

    /// Takes in the next compressed bytes and hands all output to `sink`, piece by piece.
    pub(crate) fn write(
        &mut self,
        mut input: &[u8],
        mut sink: impl FnMut(&[u8]) -> Result<(), BuildError>,
    ) -> Result<(), BuildError> {
        loop {
            if self.between_members {
                if input.is_empty() {
                    return Ok(());
                }
                self.inflater
                    .reset(Wrapping::Gzip)
                    .map_err(|invalid| self.invalid(invalid.0))?;
                self.between_members = false;
            }
            if self.at == self.buffer.len() {
                self.buffer.copy_within(self.at - WINDOW_SIZE.., 0);
                self.at = WINDOW_SIZE;
            }
            let room = self.buffer.get_mut(self.at..).unwrap_or_default();
            let step = self.inflater.step(input, room, Stop::AtBlocks);
            let step = step.map_err(|invalid| self.invalid(invalid.0))?;
            input = input.get(step.consumed..).unwrap_or_default();
            self.total_in += step.consumed as u64;
            self.total_out += step.produced as u64;
            let start = self.at;
            self.at += step.produced;
            sink(self.buffer.get(start..self.at).unwrap_or_default())?;
            match step.state {
                State::End => {
                    self.between_members = true;
                    self.members += 1;
                }
                State::Boundary { bits } => self.boundary(bits),
                State::Inside if step.consumed == 0 && step.produced == 0 => {
                    // No progress with input there and room for output cannot be.
                    return if input.is_empty() {
                        Ok(())
                    } else {
                        Err(self.invalid("it is stuck"))
                    };
                }
                State::Inside => {}
            }
        }
    }

    /// At the end of a block, not a member's last, or behind a gzip header.
    fn boundary(&mut self, bits: u8) {
        if self.total_out == 0 || self.total_out - self.last > self.checkpoints.span_size {
            let window = self
                .buffer
                .get(self.at - WINDOW_SIZE..self.at)
                .unwrap_or_default();
            let point = Checkpoint {
                input: self.total_in,
                output: self.total_out,
                bits,
            };
            self.checkpoints.push(point, window);
            self.last = self.total_out;
        }
    }

    fn invalid(&self, reason: &'static str) -> BuildError {
        // zlib's word for a header that is not gzip's; padding is no gzip for Go's reader either.
        let reason = if self.members > 0 && reason == "incorrect header check" {
            "something follows its last member that is no gzip"
        } else {
            reason
        };
        BuildError::Gzip {
            reason,
            at: self.total_in,
        }
    }

    /// Ends the layer.
    pub(crate) fn finish(self) -> Result<GzipCheckpoints, BuildError> {
        if self.members > 0 && self.between_members {
            return Ok(self.checkpoints);
        }
        let reason = if self.total_in == 0 {
            "it is empty"
        } else {
            "in the middle of a gzip member"
        };
        Err(BuildError::Truncated {
            reason,
            at: self.total_in,
        })
    }
}
