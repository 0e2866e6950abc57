//! `make bench-index-builder`: a burst of pushes, indexed by the index builder, and by `soci convert` one after
//! the other.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a program for people")]

use std::process::ExitCode;

use clap::Parser;
use soci_benches::index_builder::{Burst, table};

/// Pushes an image under many tags and prints what indexing them costs.
#[derive(Debug, Parser)]
struct Options {
    /// Tags that are pushed in one burst.
    #[arg(long, default_value_t = 100)]
    pushes: usize,
    /// Bytes of the image, uncompressed; about three fifths of it compressed.
    #[arg(long, default_value_t = 170_000_000)]
    bytes: u64,
    /// Workers of the index builder.
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// Conversions with `soci convert`; the time of all pushes follows from theirs.
    #[arg(long, default_value_t = 10)]
    conversions: usize,
}

fn main() -> ExitCode {
    let options = Options::parse();
    soci_benches::run("bench-index-builder", || {
        let burst = Burst {
            pushes: options.pushes,
            bytes: options.bytes,
            workers: options.workers,
            conversions: options.conversions.min(options.pushes),
        };
        println!("{}", table(&burst)?);
        Ok(())
    })
}
