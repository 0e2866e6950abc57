//! Reads through a mirror that drops one connection while the registry itself cannot be reached.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use soci_testkit::{Content, Fault, OciImage, Rule, TestRoot};

use super::{Mirrored, ON_DEMAND, image_of_files};
use crate::table::{Table, median, seconds};

/// Files of the layer; each read is of another span.
const FILES: u64 = 200;
/// Bytes of each.
const LENGTH: u64 = 150_000;
const SPAN_SIZE: &str = "262144";
/// Reads of each kind.
const READS: u64 = 8;
/// Distance of the files that are read.
const STEP: u64 = 5;

/// Measures reads whose first request meets each kind of end, and pulls of which one request does.
///
/// # Errors
/// When a part does not start, or a read fails or is wrong.
pub fn measure() -> Result<Table> {
    let root = TestRoot::new()?;
    let image = image_of_files(&root, FILES, content)?;
    let mut table = Table::new(&[
        "mirror drops one connection, registry unreachable",
        "median",
        "slowest",
        "target",
    ]);
    let mirrored = start(&image)?;
    let started = Instant::now();
    let data = mirrored.pull()?;
    let pull = started.elapsed();
    let proxy = &mirrored.stack.proxy;
    let mut number = 0;
    for (name, fault) in [
        ("cold read, none", None),
        ("cold read, reset before the response", Some(Fault::Reset)),
        (
            "cold read, reset after 10 kB",
            Some(Fault::ResetAfter(10_000)),
        ),
        (
            "cold read, closed after 10 kB",
            Some(Fault::Truncate(10_000)),
        ),
        ("cold read, 503", Some(Fault::status(503))),
    ] {
        let mut took = Vec::new();
        for _ in 0..READS {
            let injected = proxy.faults_injected();
            if let Some(fault) = &fault {
                proxy.inject(Rule::always(fault.clone()).path("/blobs/")?.times(1));
            }
            let started = Instant::now();
            let bytes = std::fs::read(data.join(number.to_string()))
                .with_context(|| format!("{name}: {}", mirrored.stack.log_tails()))?;
            took.push(started.elapsed());
            ensure!(bytes == content(number).to_vec(), "{name}: wrong bytes");
            let met = proxy.faults_injected() - injected;
            ensure!(
                met == u64::from(fault.is_some()),
                "{name}: met {met} faults"
            );
            number += STEP;
        }
        row(&mut table, name, &took);
    }
    row(&mut table, "pull, none", &[pull]);
    drop(mirrored);
    for (name, path) in [
        ("pull, reset of a manifest", "/manifests/"),
        ("pull, reset of a blob: index, zTOC", "/blobs/"),
    ] {
        let mirrored = start(&image)?;
        let proxy = &mirrored.stack.proxy;
        proxy.inject(Rule::always(Fault::Reset).path(path)?.times(1));
        let started = Instant::now();
        mirrored.pull().with_context(|| name.to_owned())?;
        row(&mut table, name, &[started.elapsed()]);
        ensure!(proxy.faults_injected() == 1, "{name}: no fault was met");
    }
    Ok(table)
}

fn start(image: &OciImage) -> Result<Mirrored> {
    let options = ["--min-layer-size", "0", "--span-size", SPAN_SIZE];
    let mirrored = Mirrored::start(image, ON_DEMAND, &options)?;
    mirrored.mirror(&Mirrored::plain_host(mirrored.stack.proxy.address()))?;
    Ok(mirrored)
}

fn row(table: &mut Table, name: &str, took: &[Duration]) {
    let middle = median(took.iter().copied()).unwrap_or_default();
    let slowest = took.iter().max().copied().unwrap_or_default();
    let target = match name.starts_with("cold") {
        true => "1 s",
        false => "",
    };
    table.row([name, &seconds(middle), &seconds(slowest), target]);
}

fn content(number: u64) -> Content {
    Content::Noise {
        seed: number,
        length: LENGTH,
    }
}
