//! The digests of a layer and of its spans, computed in place or on a thread of their own.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use oci::{Digest, Hasher};

use crate::BuildError;
use crate::checkpoint::Checkpoint;

/// What came out.
#[derive(Debug)]
pub(crate) struct Digests {
    pub(crate) spans: Vec<Digest>,
    pub(crate) compressed: Digest,
    pub(crate) uncompressed: Option<Digest>,
}

/// Hashes that are being computed.
#[derive(Debug)]
struct State {
    whole: Hasher,
    /// The span that is being hashed, once the first has begun.
    span: Option<Hasher>,
    spans: Vec<Digest>,
    uncompressed: Option<Hasher>,
    /// How many compressed bytes were taken in.
    position: u64,
    /// The last of them.
    last: u8,
}

impl State {
    fn new(diff_id: bool) -> Self {
        Self {
            whole: Hasher::new(),
            span: None,
            spans: Vec::new(),
            uncompressed: diff_id.then(Hasher::new),
            position: 0,
            last: 0,
        }
    }

    /// Takes in compressed bytes with the checkpoints that lie in or right behind them.
    fn compressed(&mut self, mut data: &[u8], checkpoints: &[Checkpoint]) {
        self.whole.update(data);
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
            if let Some(done) = self.span.replace(next) {
                self.spans.push(done.finish());
            }
        }
        self.advance(data);
    }

    fn advance(&mut self, data: &[u8]) {
        if let Some(span) = &mut self.span {
            span.update(data);
        }
        self.position += data.len() as u64;
        self.last = data.last().copied().unwrap_or(self.last);
    }

    fn finish(mut self) -> Digests {
        self.spans.extend(self.span.map(Hasher::finish));
        Digests {
            spans: self.spans,
            compressed: self.whole.finish(),
            uncompressed: self.uncompressed.map(Hasher::finish),
        }
    }
}

/// What a hashing thread is sent.
enum Work {
    Compressed(Vec<u8>, Vec<Checkpoint>),
    Uncompressed(Vec<u8>),
}

/// How many pieces may wait for the hashing thread; bounds the memory that they take.
const QUEUE: usize = 8;

/// Computes digests here or elsewhere.
#[derive(Debug)]
pub(crate) struct Hashing {
    place: Place,
    diff_id: bool,
}

#[derive(Debug)]
enum Place {
    Here(Box<State>),
    Thread {
        work: SyncSender<Work>,
        used: Receiver<Vec<u8>>,
        thread: JoinHandle<State>,
    },
}

impl Hashing {
    /// Computes on the caller's thread.
    pub(crate) fn here(diff_id: bool) -> Self {
        Self {
            place: Place::Here(Box::new(State::new(diff_id))),
            diff_id,
        }
    }

    /// Computes on a thread of its own.
    pub(crate) fn on_thread(diff_id: bool) -> Result<Self, BuildError> {
        let (work, todo) = sync_channel(QUEUE);
        let (give_back, used) = sync_channel(2 * QUEUE);
        let run = move || {
            let mut state = State::new(diff_id);
            while let Ok(work) = todo.recv() {
                let buffer = match work {
                    Work::Compressed(data, checkpoints) => {
                        state.compressed(&data, &checkpoints);
                        data
                    }
                    Work::Uncompressed(data) => {
                        if let Some(hasher) = &mut state.uncompressed {
                            hasher.update(&data);
                        }
                        data
                    }
                };
                // Buffers go round; when nobody wants this one, it is freed.
                let _ = give_back.try_send(buffer);
            }
            state
        };
        let thread = std::thread::Builder::new()
            .name("ztoc-hash".to_owned())
            .spawn(run)?;
        Ok(Self {
            place: Place::Thread { work, used, thread },
            diff_id,
        })
    }

    /// Takes in compressed bytes with the checkpoints that lie in or right behind them.
    pub(crate) fn compressed(
        &mut self,
        data: &[u8],
        checkpoints: Vec<Checkpoint>,
    ) -> Result<(), BuildError> {
        match &mut self.place {
            Place::Here(state) => {
                state.compressed(data, &checkpoints);
                Ok(())
            }
            Place::Thread { work, used, .. } => {
                send(work, Work::Compressed(copy(used, data), checkpoints))
            }
        }
    }

    /// Takes in uncompressed bytes.
    pub(crate) fn uncompressed(&mut self, data: &[u8]) -> Result<(), BuildError> {
        if !self.diff_id || data.is_empty() {
            return Ok(());
        }
        match &mut self.place {
            Place::Here(state) => {
                if let Some(hasher) = &mut state.uncompressed {
                    hasher.update(data);
                }
                Ok(())
            }
            Place::Thread { work, used, .. } => send(work, Work::Uncompressed(copy(used, data))),
        }
    }

    /// The digests of all that was taken in.
    pub(crate) fn finish(self) -> Result<Digests, BuildError> {
        match self.place {
            Place::Here(state) => Ok(state.finish()),
            Place::Thread { work, thread, .. } => {
                drop(work);
                thread.join().map(State::finish).map_err(|_| gone())
            }
        }
    }
}

fn copy(used: &Receiver<Vec<u8>>, data: &[u8]) -> Vec<u8> {
    let mut buffer = used.try_recv().unwrap_or_default();
    buffer.clear();
    buffer.extend_from_slice(data);
    buffer
}

fn send(work: &SyncSender<Work>, piece: Work) -> Result<(), BuildError> {
    work.send(piece).map_err(|_| gone())
}

fn gone() -> BuildError {
    BuildError::Read(std::io::Error::other("the hashing thread is gone"))
}
