//! `make bench-keep` and `make bench-keep-torch`: what comes after a lazy start. Nothing is asserted.
//! Needs root; build for release.

#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for people"
)]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use soci_benches::{keep, verify};
use soci_testkit::image::{python_image, torch_image};

/// Prints what filling and keeping images costs.
#[derive(Debug, Parser)]
struct Options {
    /// Fill an image with PyTorch and CUDA: 4 GB, built from PyPI on first use.
    #[arg(long)]
    torch: bool,
    /// The rows.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Part::ALL)]
    parts: Vec<Part>,
    /// Another build of soci-snapshotter-grpc to measure instead of ours.
    #[arg(long, env = "PREVIOUS", default_value = "")]
    previous: String,
    /// Size in GiB of the layer that is removed; three times as much is needed on the disk.
    #[arg(long, default_value_t = 4)]
    removed: u64,
    /// More configuration of the daemon, before the section `[background_fetch]`.
    #[arg(long, default_value = "")]
    config: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The time until an image is complete, and a start after a reboot.
    Fill,
    /// Cold reads of another image while one is filled.
    Neighbour,
    /// The memory of 450 layers.
    Memory,
    /// The time until the space of a removed layer is free.
    Removal,
    /// The cost of verifying layers, and of checking the headers of their files.
    Verify,
}

impl Part {
    /// Those of the table of filling and keeping.
    const ALL: [Self; 4] = [Self::Fill, Self::Neighbour, Self::Memory, Self::Removal];
}

fn main() -> ExitCode {
    let options = Options::parse();
    soci_benches::run("bench-keep", || bench(&options))
}

fn bench(options: &Options) -> Result<()> {
    if cfg!(debug_assertions) {
        eprintln!("bench-keep: built for debugging: the figures say nothing, use --release");
    }
    let name = match options.torch {
        true => "PyTorch image, cloud",
        false => "demo image, cloud",
    };
    // Some rows need none of them.
    let image = || match options.torch {
        true => torch_image(),
        false => python_image(),
    };
    let program = (!options.previous.is_empty()).then(|| PathBuf::from(&options.previous));
    let program = program.as_deref();
    let mut table = keep::table(name);
    for part in &options.parts {
        eprintln!("==> {part:?}");
        let rows = match part {
            Part::Fill => keep::fill(&image()?, program, &options.config)?,
            Part::Neighbour => keep::neighbour(&image()?, program, &options.config)?,
            Part::Memory => keep::memory(program, &options.config)?,
            Part::Removal => keep::removal(options.removed << 30, program, &options.config)?,
            Part::Verify => verify::verify(program, &options.config)?,
        };
        for row in rows {
            table.row(row);
        }
    }
    println!("{table}");
    Ok(())
}
