//! zTOCs: the positions of files in a compressed layer, and checkpoints to inflate any part of it.
//!
//! The crate has the other SOCI formats as well: the index ([`soci_index`]) and the prefetch artifact
//! ([`prefetch`]). The crate has codecs and algorithms only: it opens no file and no socket.

#![deny(unsafe_code)]

mod allocation;
mod build;
mod checkpoint;
mod decode;
mod encode;
mod entry;
mod entry_points;
mod error;
mod extract;
mod file_lookup;
mod flatbuffer_read;
mod flatbuffer_write;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzz;
mod gzip_scan;
mod gzip_stream;
mod inflate;
mod layer_index;
mod parallel;
pub mod path_walk;
mod pax;
pub mod prefetch;
pub mod soci_index;
mod span;
mod span_id;
mod tar_header;
pub mod tar_path;
mod tar_scan;
mod tar_stream;
mod toc;
mod verify;
mod ztoc;

pub use build::{BuildOptions, Builder, Built, DEFAULT_SPAN_SIZE, build};
pub use checkpoint::{Checkpoint, Checkpoints, GzipCheckpoints, TarZinfo, WINDOW_SIZE};
pub use entry::Entry;
pub use entry_points::EntryPoints;
pub use error::{BuildError, SpanError, ZtocError};
pub use file_lookup::{FindError, find_file};
pub use gzip_stream::{GzipStream, InflatedAhead, inflate_ahead};
pub use layer_index::LayerIndex;
pub use parallel::AheadMemory;
pub use span::{Span, SpanTable};
pub use span_id::SpanId;
pub use tar_stream::{TarPart, TarStream};
pub use toc::{FileMetadata, FileType};
pub use verify::{VerifyError, entry_of_header, verify_entries};
pub use ztoc::{Compression, CompressionInfo, Ztoc};
