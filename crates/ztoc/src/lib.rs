//! zTOCs: what lies where in a compressed layer, and how to inflate any part of it alone.
//!
//! Also the other SOCI formats, the index ([`soci_index`]) and the prefetch artifact
//! ([`prefetch`]). Codecs and algorithms only: nothing here opens a file or a socket.

#![deny(unsafe_code)]

mod build;
mod checkpoint;
mod chunks;
mod decode;
mod deflate;
mod encode;
mod error;
mod extract;
mod file_lookup;
mod flatbuffer_read;
mod flatbuffer_write;
#[doc(hidden)]
pub mod fuzz;
mod gzip_scan;
mod hashing;
mod inflate;
pub mod path_walk;
mod pax;
mod pipeline;
pub mod prefetch;
pub mod soci_index;
mod span;
mod speculate;
mod tar_header;
pub mod tar_path;
mod tar_scan;
mod tar_stream;
mod toc;
mod ztoc;

pub use build::{BuildOptions, Builder, Built, DEFAULT_SPAN_SIZE, build};
pub use checkpoint::{Checkpoint, Checkpoints, GzipCheckpoints, TarZinfo, WINDOW_SIZE};
pub use error::{BuildError, SpanError, ZtocError};
pub use file_lookup::{FindError, find_file};
pub use span::{Span, SpanId, SpanTable};
pub use tar_stream::{TarPart, TarStream};
pub use toc::{FileMetadata, FileType};
pub use ztoc::{Compression, CompressionInfo, Parts, Ztoc};
