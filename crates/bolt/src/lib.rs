//! A read-only reader of bbolt databases, and of the encodings of Go's standard library that stand
//! in them. soci-snapshotter v0.15 keeps its snapshots and its artifacts in such files; taking
//! them over is all that this is for, so there is no writing, and a file is read whole.
//!
//! Every byte is data from outside: a damaged file gives errors that name the page, never a panic,
//! an endless loop or memory beyond the size of the file.
//!
//! The format (bbolt's `internal/common` is its only specification): pages of one size; pages 0 and 1
//! are *meta* pages, of which the valid one with the higher transaction id counts; it names the
//! root of a tree of *branch* and *leaf* pages. A leaf holds keys with values or with buckets; a
//! bucket names the root of a tree of its own, or holds one small leaf *inline*. All numbers
//! are little-endian, as on every machine that this project supports.

#![forbid(unsafe_code)]

mod bucket;
mod database;
mod error;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzz;
mod page;
pub mod values;

pub use bucket::{Bucket, Entries, Entry};
pub use database::Database;
pub use error::BoltError;
