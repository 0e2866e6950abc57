//! A [`LayerData`] in memory with scripted answers, for tests of its users.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use soci_oci::Digest;

use crate::{LayerData, LayerFailure, LayerStatus, ReadDone, ReadError};

/// How a [`MemoryLayer`] answers.
#[derive(Debug, Clone, Default)]
pub enum Answer {
    /// All spans are stored: `try_read` fills the buffer.
    #[default]
    Stored,
    /// All spans are missing: `try_read` returns `false`, `read` answers on the caller's thread.
    Fetched,
    /// As [`Answer::Fetched`], but on another thread.
    FetchedElsewhere,
    /// `read` holds its answer until [`MemoryLayer::release`].
    Held,
    /// `try_read` and `read` fail with this error.
    Fail(ReadError),
}

/// A layer in memory. Clones are the same layer.
#[derive(Clone)]
pub struct MemoryLayer {
    data: Bytes,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    answer: Answer,
    error: Option<LayerFailure>,
    reads: Vec<(u64, usize)>,
    held: Vec<(u64, usize, ReadDone)>,
}

impl MemoryLayer {
    /// Returns a layer of these uncompressed tar bytes, all of them stored.
    #[must_use]
    pub fn new(tar: impl Into<Bytes>) -> Self {
        Self {
            data: tar.into(),
            state: Arc::default(),
        }
    }

    /// Sets how later reads are answered. Held answers stay held.
    pub fn script(&self, answer: Answer) {
        let mut state = self.state.lock();
        if let Answer::Fail(error) = &answer {
            state.error = Some(LayerFailure::of(error));
        }
        state.answer = answer;
    }

    /// Answers the held reads; returns their number.
    pub fn release(&self) -> usize {
        let held = std::mem::take(&mut self.state.lock().held);
        let count = held.len();
        for (offset, len, done) in held {
            done(self.part(offset, len));
        }
        count
    }

    /// Answers the held reads with [`ReadError::Closed`], as closing the layer does; returns their
    /// number.
    pub fn close(&self) -> usize {
        let held = std::mem::take(&mut self.state.lock().held);
        let count = held.len();
        for (_, _, done) in held {
            done(Err(ReadError::Closed));
        }
        count
    }

    /// Number of held reads.
    #[must_use]
    pub fn held(&self) -> usize {
        self.state.lock().held.len()
    }

    /// Offset and length of each `read` so far (not of `try_read`).
    #[must_use]
    pub fn reads(&self) -> Vec<(u64, usize)> {
        self.state.lock().reads.clone()
    }

    fn part(&self, offset: u64, len: usize) -> Result<Bytes, ReadError> {
        let outside = || ReadError::OutOfRange {
            offset,
            len: len as u64,
            size: self.data.len() as u64,
        };
        let start = usize::try_from(offset).map_err(|_| outside())?;
        let end = start
            .checked_add(len)
            .filter(|end| *end <= self.data.len())
            .ok_or_else(outside)?;
        Ok(self.data.slice(start..end))
    }
}

impl LayerData for MemoryLayer {
    fn try_read(&self, offset: u64, buf: &mut [u8]) -> Result<bool, ReadError> {
        let part = self.part(offset, buf.len())?;
        let answer = self.state.lock().answer.clone();
        match answer {
            Answer::Stored => {
                buf.copy_from_slice(&part);
                Ok(true)
            }
            Answer::Fail(error) => Err(error),
            Answer::Fetched | Answer::FetchedElsewhere | Answer::Held => Ok(false),
        }
    }

    fn read(&self, offset: u64, len: usize, done: ReadDone) {
        let answer = {
            let mut state = self.state.lock();
            state.reads.push((offset, len));
            state.answer.clone()
        };
        match answer {
            Answer::Stored | Answer::Fetched => done(self.part(offset, len)),
            Answer::FetchedElsewhere => {
                let part = self.part(offset, len);
                std::thread::spawn(move || done(part));
            }
            Answer::Held => self.state.lock().held.push((offset, len, done)),
            Answer::Fail(error) => done(Err(error)),
        }
    }

    fn status(&self) -> LayerStatus {
        let size = self.data.len() as u64;
        LayerStatus {
            digest: Digest::of(&self.data),
            size,
            fetched_size: size,
            error: self.state.lock().error.clone(),
        }
    }
}
