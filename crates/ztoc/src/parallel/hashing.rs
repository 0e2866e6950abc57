//! The digests of a layer and of its spans, computed in place or on threads of their own.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use soci_oci::{Digest, Hasher};

use super::chunks::Chunk;
use crate::BuildError;
use crate::checkpoint::Checkpoint;

/// The digests of a layer's compressed bytes.
#[derive(Debug)]
pub(crate) struct Digests {
    pub(crate) whole: Digest,
    pub(crate) spans: Vec<Digest>,
}

/// Computes the digests of spans.
#[derive(Debug, Default)]
struct Spans {
    /// The span that is being hashed, once the first has begun.
    open: Option<Hasher>,
    done: Vec<Digest>,
    /// How many compressed bytes were taken in.
    position: u64,
    /// The last of them.
    last: u8,
}

impl Spans {
    /// Takes in compressed bytes with the checkpoints that lie in or right behind them.
    fn update(&mut self, mut data: &[u8], checkpoints: &[Checkpoint]) {
        for checkpoint in checkpoints {
            let ahead = checkpoint.input.saturating_sub(self.position);
            let ahead = usize::try_from(ahead).unwrap_or(data.len()).min(data.len());
            let (head, tail) = data.split_at(ahead);
            self.advance(head);
            data = tail;
            let mut next = Hasher::new();
            if checkpoint.bits != 0 {
                next.update(&[self.last]);
            }
            if let Some(done) = self.open.replace(next) {
                self.done.push(done.finish());
            }
        }
        self.advance(data);
    }

    fn advance(&mut self, data: &[u8]) {
        if let Some(span) = &mut self.open {
            span.update(data);
        }
        self.position += data.len() as u64;
        self.last = data.last().copied().unwrap_or(self.last);
    }

    fn finish(mut self) -> Vec<Digest> {
        self.done.extend(self.open.map(Hasher::finish));
        self.done
    }
}

/// Hashes on the caller's thread.
#[derive(Debug)]
pub(crate) struct Hashing {
    whole: Hasher,
    spans: Spans,
}

impl Hashing {
    pub(crate) fn new() -> Self {
        Self {
            whole: Hasher::new(),
            spans: Spans::default(),
        }
    }

    /// Takes in compressed bytes with the checkpoints that lie in or right behind them.
    pub(crate) fn update(&mut self, data: &[u8], checkpoints: &[Checkpoint]) {
        self.whole.update(data);
        self.spans.update(data, checkpoints);
    }

    pub(crate) fn finish(self) -> Digests {
        Digests {
            whole: self.whole.finish(),
            spans: self.spans.finish(),
        }
    }
}

/// Hashes on two threads: each byte is hashed twice.
#[derive(Debug)]
pub(crate) struct HashThreads {
    whole: Background<Hasher, Arc<Chunk>>,
    spans: Background<Spans, (Arc<Chunk>, Vec<Checkpoint>)>,
}

impl HashThreads {
    pub(crate) fn start() -> Result<Self, BuildError> {
        let whole = |hasher: &mut Hasher, chunk: Arc<Chunk>| hasher.update(chunk.data());
        let spans = |spans: &mut Spans, (chunk, checkpoints): (Arc<Chunk>, Vec<Checkpoint>)| {
            spans.update(chunk.data(), &checkpoints);
        };
        Ok(Self {
            whole: Background::start("ztoc-hash", Hasher::new(), whole)?,
            spans: Background::start("ztoc-hash-spans", Spans::default(), spans)?,
        })
    }

    /// Takes in a chunk with the checkpoints that lie in or right behind it.
    pub(crate) fn update(
        &self,
        chunk: Arc<Chunk>,
        checkpoints: Vec<Checkpoint>,
    ) -> Result<(), BuildError> {
        self.whole.send(Arc::clone(&chunk))?;
        self.spans.send((chunk, checkpoints))
    }

    pub(crate) fn finish(self) -> Result<Digests, BuildError> {
        Ok(Digests {
            whole: self.whole.finish()?.finish(),
            spans: self.spans.finish()?.finish(),
        })
    }
}

/// A state that a thread of its own changes.
#[derive(Debug)]
struct Background<S, W> {
    work: SyncSender<W>,
    thread: JoinHandle<S>,
}

impl<S: Send + 'static, W: Send + 'static> Background<S, W> {
    fn start(
        name: &str,
        mut state: S,
        update: impl Fn(&mut S, W) + Send + 'static,
    ) -> Result<Self, BuildError> {
        // What would wait here takes memory.
        let (work, todo) = sync_channel(0);
        let run = move || {
            while let Ok(work) = todo.recv() {
                update(&mut state, work);
            }
            state
        };
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(run)?;
        Ok(Self { work, thread })
    }

    fn send(&self, work: W) -> Result<(), BuildError> {
        self.work.send(work).map_err(|_| gone())
    }

    fn finish(self) -> Result<S, BuildError> {
        drop(self.work);
        self.thread.join().map_err(|_| gone())
    }
}

fn gone() -> BuildError {
    BuildError::Read(std::io::Error::other("the hashing thread is gone"))
}
