//! `make bench-nodes`: what mirrors that end connections, and programs that list extended attributes, cost.
//! Nothing is asserted. Needs root; build for release.

#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for people"
)]

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use soci_benches::nodes::{attributes, dropped, goaway};

/// Prints what registries and programs as they are cost a node.
#[derive(Debug, Parser)]
struct Options {
    /// Which tables; by default all.
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// How often each walk is repeated; medians are printed.
    #[arg(long, default_value_t = 5)]
    runs: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// A mirror that ends each connection after three requests.
    Goaway,
    /// A mirror that drops one connection.
    Dropped,
    /// Walks that list extended attributes.
    Attributes,
}

fn main() -> ExitCode {
    let options = Options::parse();
    soci_benches::run("bench-nodes", || bench(&options))
}

fn bench(options: &Options) -> Result<()> {
    if cfg!(debug_assertions) {
        eprintln!("bench-nodes: built for debugging: the figures say nothing, use --release");
    }
    let wanted = |part| options.parts.is_empty() || options.parts.contains(&part);
    if wanted(Part::Goaway) {
        println!("{}", goaway::measure()?);
    }
    if wanted(Part::Dropped) {
        println!("{}", dropped::measure()?);
    }
    if wanted(Part::Attributes) {
        println!("{}", attributes::measure(options.runs)?);
    }
    Ok(())
}
