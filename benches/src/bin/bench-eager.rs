//! `make bench-eager`: whole pulls of images without an index, beside overlayfs and, where its binary is
//! given, soci-snapshotter v0.15. Needs root.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a program for people")]

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use soci_benches::eager::{Work, table};

/// Pulls images without an index and prints what that costs.
#[derive(Debug, Parser)]
struct Options {
    /// What is pulled: `layers`, `files`, `large` (those without any), `torch`, or `FOLDER@TAG`, an image in an
    /// OCI layout.
    work: Vec<Work>,
    /// The daemon of soci-snapshotter v0.15; empty: it is left out.
    #[arg(long, env = "REFERENCE", default_value = "")]
    reference: String,
    /// Number of pulls of each kind; the fastest counts.
    #[arg(long, default_value_t = 1)]
    runs: usize,
}

fn main() -> ExitCode {
    let options = Options::parse();
    soci_benches::run("bench-eager", || bench(&options))
}

fn bench(options: &Options) -> Result<()> {
    let mut wanted = options.work.clone();
    if wanted.is_empty() {
        wanted.extend(Work::LOCAL);
    }
    let reference = (!options.reference.is_empty()).then_some(Path::new(&options.reference));
    for work in &wanted {
        println!("{}", table(work, reference, options.runs)?);
    }
    Ok(())
}
