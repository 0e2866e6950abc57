//! The threads of one layer, connected by bounded channels:
//!
//! ```text
//! download ─► verify ─► decompress ─┬─► hash (diff ID)
//!                │                  └─► write ─► small files
//!                └─► store
//! ```
//!
//! Each byte is hashed once compressed and once uncompressed. What is written was not verified yet:
//! the caller uses it only if all of this succeeds.

use std::io::{self, BufRead, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, Scope, ScopedJoinHandle};
use std::time::Instant;

use bytes::Bytes;
use soci_oci::{Digest, Hasher};
use soci_registry::RegistryError;
use soci_ztoc::{AheadMemory, BuildError, EntryPoints, GzipStream, inflate_ahead};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::block::{BlockSender, QUEUE};
use super::config::PipelineConfig;
use super::download::Download;
use super::piece::{Piece, PieceReader};
use super::program::{self, ProgramError};
use super::progress::LayerProgress;
use super::request::CompressedSink;
use super::shares::{Claim, Shares};
use crate::apply::Application;
use crate::decompress::{Compression, HEAD, window_log, zstd_reader};
use crate::error::ApplyError;
use crate::flush::Flusher;
use crate::{ApplyOptions, Decompressor};

/// Pieces that wait for a thread.
const PIECES: usize = 4;
/// Bytes that are read from a local layer at a time.
const LOCAL: usize = 128 << 10;
/// Time that a program is given if the configuration says nothing.
const STALL: std::time::Duration = std::time::Duration::from_secs(60);

/// Where compressed bytes come from.
pub(crate) enum Input {
    /// A registry.
    Download(Download),
    /// This machine.
    Local(Box<dyn Read + Send>),
}

/// What all threads of a layer share.
pub(crate) struct Layer<'l> {
    pub(crate) config: &'l PipelineConfig,
    pub(crate) directory: &'l Path,
    pub(crate) options: &'l ApplyOptions,
    pub(crate) progress: &'l LayerProgress,
    pub(crate) cancel: &'l CancellationToken,
    pub(crate) claim: Claim,
    /// Memory for windows of zstd.
    pub(crate) windows: &'l Arc<Shares>,
    /// Number of threads that inflate ahead, and whether a core is free for one now.
    pub(crate) inflate_threads: usize,
    /// What these threads inflate into.
    pub(crate) ahead: &'l AheadMemory,
    /// Where they enter the layer.
    pub(crate) entries: Option<EntryPoints>,
    pub(crate) has_spare_core: &'l (dyn Fn() -> bool + Sync),
    pub(crate) runtime: Handle,
}

/// Why the compressed bytes did not come to their end.
#[derive(Debug)]
pub(crate) enum InputError {
    Registry(RegistryError),
    Local(io::Error),
    Store(io::Error),
    /// Another thread failed, or the layer was cancelled.
    Stopped,
}

/// Why the layer was not decompressed.
#[derive(Debug)]
pub(crate) enum DecompressError {
    /// It is damaged.
    Damaged(io::Error),
    /// It needs more memory than it may.
    OverLimit(soci_meter::OverLimit),
    Program(Decompressor, ProgramError),
    Thread(io::Error),
    /// Another thread failed.
    Stopped,
}

/// What the threads of a layer have come to.
pub(crate) struct Outcome<'l> {
    /// The digest of the compressed bytes, their number, and when they had come.
    pub(crate) compressed: Result<(Digest, u64, Instant), InputError>,
    pub(crate) decompressed: Result<(), DecompressError>,
    /// The digest of the uncompressed bytes; `None`: that of the compressed ones.
    pub(crate) uncompressed: Option<Digest>,
    pub(crate) written: Result<Application<'l>, ApplyError>,
}

/// Whether the threads shall continue.
struct Control<'l> {
    state: AtomicU8,
    cancel: &'l CancellationToken,
}

const RUN: u8 = 0;
/// The content cannot be used: only the digest of the rest is of interest, because it shows whose
/// fault that is.
const DRAIN: u8 = 1;
const STOP: u8 = 2;

impl Control<'_> {
    fn raise(&self, to: u8) {
        self.state.fetch_max(to, Ordering::AcqRel);
    }

    fn stops(&self) -> bool {
        self.state.load(Ordering::Acquire) == STOP || self.cancel.is_cancelled()
    }

    fn drains(&self) -> bool {
        self.state.load(Ordering::Acquire) != STOP && !self.cancel.is_cancelled()
    }
}

/// Runs all threads; the caller's writes.
pub(crate) fn run<'l>(
    layer: &'l Layer<'l>,
    input: Input,
    store: Option<&mut (dyn CompressedSink + 'static)>,
    cancelled: &'l dyn Fn() -> bool,
) -> Result<Outcome<'l>, io::Error> {
    let control = Control {
        state: AtomicU8::new(RUN),
        cancel: layer.cancel,
    };
    let control = &control;
    std::thread::scope(|scope| {
        // Whatever ends this thread ends the others.
        let _stop = StopOnDrop(control);
        let (to_decompress, pieces) = sync_channel(PIECES);
        let (to_write, blocks) = sync_channel(QUEUE);
        let (to_hash, hashed) = sync_channel(QUEUE);
        let mut to_store = None;
        let mut storing = None;
        if let Some(store) = store {
            let (sender, stored) = sync_channel::<Arc<Piece>>(PIECES);
            to_store = Some(sender);
            storing = Some(spawn(scope, "unpack-store", move || {
                let stored = keep(&stored, store);
                if stored.is_err() {
                    control.raise(STOP);
                }
                stored
            })?);
        }
        let progress = layer.progress;
        let verifying = spawn(scope, "unpack-verify", move || {
            let to = [Some(to_decompress), to_store];
            verify(input, to, control, progress)
        })?;
        let hashing = spawn(scope, "unpack-hash", move || hash(&hashed))?;
        let decompressing = spawn(scope, "unpack-inflate", move || {
            decompress(
                layer,
                PieceReader::new(pieces),
                [to_write, to_hash],
                control,
            )
        })?;
        let written = write(layer, &blocks, control, cancelled);
        drop(blocks);
        let decompressed = join(decompressing);
        let mut compressed = join(verifying);
        if let Some(storing) = storing
            && let Err(error) = join(storing)
        {
            compressed = Err(InputError::Store(error));
        }
        let uncompressed = join(hashing);
        let plain = matches!(decompressed, Ok(true));
        Ok(Outcome {
            compressed,
            decompressed: decompressed.map(drop),
            uncompressed: (!plain).then_some(uncompressed),
            written,
        })
    })
}

struct StopOnDrop<'c, 'l>(&'c Control<'l>);

impl Drop for StopOnDrop<'_, '_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.raise(STOP);
        }
    }
}

fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    Builder::new()
        .name(name.to_owned())
        .spawn_scoped(scope, work)
}

fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Takes in all compressed bytes in order, hashes them, and passes them on: to be decompressed, and to
/// be stored.
fn verify(
    mut input: Input,
    [mut decompress, store]: [Option<SyncSender<Arc<Piece>>>; 2],
    control: &Control<'_>,
    progress: &LayerProgress,
) -> Result<(Digest, u64, Instant), InputError> {
    let mut hasher = Hasher::new();
    let mut size = 0;
    loop {
        if control.stops() {
            return Err(InputError::Stopped);
        }
        let piece = match next(&mut input, progress) {
            Ok(Some(piece)) => Arc::new(piece),
            Ok(None) => return Ok((hasher.finish(), size, Instant::now())),
            Err(error) => {
                control.raise(STOP);
                return Err(error);
            }
        };
        size += piece.bytes.len() as u64;
        if let Some(store) = &store
            && store.send(Arc::clone(&piece)).is_err()
        {
            return Err(InputError::Stopped);
        }
        if let Some(to) = &decompress
            && to.send(Arc::clone(&piece)).is_err()
        {
            if !control.drains() {
                return Err(InputError::Stopped);
            }
            decompress = None;
        }
        hasher.update(&piece.bytes);
    }
}

fn next(input: &mut Input, progress: &LayerProgress) -> Result<Option<Piece>, InputError> {
    match input {
        Input::Download(download) => download.next().transpose().map_err(InputError::Registry),
        Input::Local(file) => {
            let mut bytes = vec![0; LOCAL];
            let mut length = 0;
            while let Some(room) = bytes.get_mut(length..).filter(|room| !room.is_empty()) {
                match file.read(room) {
                    Ok(0) => break,
                    Ok(read) => length += read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(InputError::Local(error)),
                }
            }
            if length == 0 {
                return Ok(None);
            }
            bytes.truncate(length);
            progress
                .downloaded
                .fetch_add(length as u64, Ordering::Relaxed);
            Ok(Some(Piece {
                bytes: Bytes::from(bytes),
                _memory: None,
            }))
        }
    }
}

/// Stores compressed bytes.
fn keep(
    pieces: &Receiver<Arc<Piece>>,
    store: &mut (dyn CompressedSink + 'static),
) -> io::Result<()> {
    while let Ok(piece) = pieces.recv() {
        store.write(&piece.bytes)?;
    }
    Ok(())
}

fn hash(blocks: &Receiver<Bytes>) -> Digest {
    let mut hasher = Hasher::new();
    while let Ok(block) = blocks.recv() {
        hasher.update(&block);
    }
    hasher.finish()
}

/// Applies uncompressed bytes.
fn write<'l>(
    layer: &'l Layer<'l>,
    blocks: &Receiver<Bytes>,
    control: &Control<'_>,
    cancelled: &'l dyn Fn() -> bool,
) -> Result<Application<'l>, ApplyError> {
    let written = write_all(layer, blocks, cancelled);
    if let Err(error) = &written {
        let damaged = matches!(error, ApplyError::Tar(_));
        control.raise(if damaged { DRAIN } else { STOP });
    }
    written
}

fn write_all<'l>(
    layer: &'l Layer<'l>,
    blocks: &Receiver<Bytes>,
    cancelled: &'l dyn Fn() -> bool,
) -> Result<Application<'l>, ApplyError> {
    let mut application = Application::begin(layer.directory, layer.options, cancelled)?;
    let mut flusher = Flusher::new();
    while let Ok(block) = blocks.recv() {
        application.write(&block)?;
        let length = block.len() as u64;
        layer.progress.unpacked.fetch_add(length, Ordering::Relaxed);
        if layer.config.durable {
            flusher.wrote(length, application.root());
        }
    }
    application.flushing = flusher;
    Ok(application)
}

/// Decompresses, and returns whether the layer was not compressed.
fn decompress(
    layer: &Layer<'_>,
    mut pieces: PieceReader,
    [write, hash]: [SyncSender<Bytes>; 2],
    control: &Control<'_>,
) -> Result<bool, DecompressError> {
    let done = decompress_as(layer, &mut pieces, [write, hash], control);
    match &done {
        Err(DecompressError::Damaged(_)) => control.raise(DRAIN),
        Err(DecompressError::Program(_, error)) if error.may_be_damage() => control.raise(DRAIN),
        Err(DecompressError::Stopped) | Ok(_) => {}
        Err(_) => control.raise(STOP),
    }
    // The pieces are dropped after that is known.
    drop(pieces);
    done
}

fn decompress_as(
    layer: &Layer<'_>,
    pieces: &mut PieceReader,
    [write, hash]: [SyncSender<Bytes>; 2],
    control: &Control<'_>,
) -> Result<bool, DecompressError> {
    let head = pieces
        .peek(HEAD)
        .map_err(DecompressError::Damaged)?
        .to_vec();
    let compression = Compression::detect(&head);
    if compression == Compression::None {
        let mut blocks = BlockSender::new(vec![write]);
        drop(hash);
        pass_through(pieces, &mut blocks).map_err(stopped_or_damaged)?;
        return Ok(true);
    }
    let mut blocks = BlockSender::new(vec![write, hash]);
    let blocks = &mut blocks;
    let programs = &layer.config.decompressors;
    let program = match compression {
        Compression::Gzip => &programs.gzip,
        Compression::Zstd => &programs.zstd,
        Compression::None => &None,
    };
    if let Some(program) = program {
        let stall = programs.stall.unwrap_or(STALL);
        program::decompress(program, stall, pieces, blocks, &|| control.stops()).map_err(
            |error| match error {
                ProgramError::Abandoned => DecompressError::Stopped,
                error => DecompressError::Program(program.clone(), error),
            },
        )?;
        return Ok(false);
    }
    match compression {
        Compression::Zstd => zstd(layer, &head, pieces, blocks)?,
        _ => gzip(layer, pieces, blocks).map_err(|error| match error {
            BuildError::Read(error) => stopped_or_damaged(error),
            error => DecompressError::Damaged(io::Error::new(io::ErrorKind::InvalidData, error)),
        })?,
    }
    blocks.flush().map_err(stopped_or_damaged)?;
    Ok(false)
}

/// A broken pipe is that of a thread which reads no more.
fn stopped_or_damaged(error: io::Error) -> DecompressError {
    match error.kind() {
        io::ErrorKind::BrokenPipe => DecompressError::Stopped,
        io::ErrorKind::OutOfMemory | io::ErrorKind::WouldBlock => DecompressError::Thread(error),
        _ => DecompressError::Damaged(error),
    }
}

fn pass_through(pieces: &mut PieceReader, blocks: &mut BlockSender) -> io::Result<()> {
    loop {
        let bytes = pieces.fill_buf()?;
        if bytes.is_empty() {
            return blocks.flush();
        }
        let length = bytes.len();
        blocks.write(bytes)?;
        pieces.consume(length);
    }
}

fn gzip(
    layer: &Layer<'_>,
    pieces: &mut PieceReader,
    blocks: &mut BlockSender,
) -> Result<(), BuildError> {
    if layer.inflate_threads > 0 {
        let (threads, memory) = (layer.inflate_threads, layer.ahead);
        let (ahead, entries) = (layer.has_spare_core, layer.entries.as_ref());
        let inflated = inflate_ahead(pieces, threads, memory, entries, ahead, |output| {
            blocks.write(output)
        })?;
        let (entered, guessed) = (inflated.from_checkpoints, inflated.guessed);
        layer.progress.entered.store(entered, Ordering::Relaxed);
        layer.progress.guessed.store(guessed, Ordering::Relaxed);
        return Ok(());
    }
    let mut stream = GzipStream::new()?;
    loop {
        let bytes = pieces.fill_buf()?;
        if bytes.is_empty() {
            return stream.finish();
        }
        let length = bytes.len();
        stream.write(bytes, |output| blocks.write(output))?;
        pieces.consume(length);
    }
}

fn zstd(
    layer: &Layer<'_>,
    head: &[u8],
    pieces: &mut PieceReader,
    blocks: &mut BlockSender,
) -> Result<(), DecompressError> {
    let log = window_log(head);
    let bytes = 1_u64.checked_shl(log).unwrap_or(u64::MAX);
    let mut meter = layer.options.limits.meter();
    meter.charge(bytes).map_err(DecompressError::OverLimit)?;
    let window = layer.runtime.block_on(async {
        tokio::select! {
            window = layer.windows.acquire(layer.claim, bytes) => Some(window),
            () = layer.cancel.cancelled() => None,
        }
    });
    let Some(_window) = window else {
        return Err(DecompressError::Stopped);
    };
    let mut reader = zstd_reader(pieces, log).map_err(DecompressError::Damaged)?;
    loop {
        match reader.read(blocks.room()) {
            Ok(0) => return Ok(()),
            Ok(length) => blocks.add(length).map_err(stopped_or_damaged)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(DecompressError::Damaged(error)),
        }
    }
}
