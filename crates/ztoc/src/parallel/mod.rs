//! Building a zTOC on several threads.
//!
//! [`pipeline`] connects the threads: one reads [`chunks`], some inflate them ahead ([`speculate`],
//! with the marker decoder of [`deflate`]), one assembles the results in order, two hash
//! ([`hashing`]). docs/inflate.md has the method and its figures.

mod ahead_memory;
mod chunk_permits;
mod chunks;
mod cuts;
mod deflate;
mod hashing;
mod inflating;
mod pieces;
mod pipeline;
mod speculate;

pub use ahead_memory::AheadMemory;
pub(crate) use chunks::Chunk;
pub(crate) use deflate::MARKER;
pub(crate) use hashing::{Digests, Hashing};
pub(crate) use pipeline::Pipeline;
pub(crate) use speculate::Piece;
