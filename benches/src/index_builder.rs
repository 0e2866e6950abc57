//! A burst of pushes to a registry that notifies the index builder, and the same conversions one after the other.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use soci_testkit::image::large_file_image;
use soci_testkit::process::{Daemon, LogLines};
use soci_testkit::{Notify, Registry, SociCli, TestRoot, binary, http_request};

use crate::Table;

const SECRET: &str = "0123456789abcdef0123";

/// What is pushed and how it is worked on.
#[derive(Debug, Clone)]
pub struct Burst {
    /// Tags that are pushed at once.
    pub pushes: usize,
    /// Bytes of the image before compression.
    pub bytes: u64,
    /// Workers of the index builder.
    pub workers: usize,
    /// Conversions that are measured for comparison.
    pub conversions: usize,
}

/// Measures, and writes what came out.
///
/// # Errors
/// A part does not start, or not each image is indexed once.
pub fn table(burst: &Burst) -> Result<Table> {
    let root = TestRoot::new()?;
    let secret = root.path().join("secret");
    std::fs::write(&secret, SECRET)?;
    let workers = burst.workers.to_string();
    let mut builder = Daemon::spawn("index-builder", &root, binary("soci")?, |command| {
        command
            .args(["index-builder", "serve", "--listen", "127.0.0.1:0"])
            .args(["--filters", "burst:*", "--workers", &workers])
            .arg("--secret-file")
            .arg(&secret)
            .arg("--queue")
            .arg(root.path().join("queue"))
            .env("HOME", root.path());
    })?;
    let listens = |log: &LogLines| address(log).is_some();
    builder.wait_ready(Duration::from_secs(60), listens)?;
    let at = address(builder.log()).context("the builder has no address")?;
    let registry = Registry::start_notifying(Notify {
        url: format!("http://{at}/events"),
        header: ("Authorization".to_owned(), format!("Bearer {SECRET}")),
    })?;
    let layout = root.path().join("image");
    let image = large_file_image(&layout, "image", burst.bytes)?;

    // One after the other, with as many cores as there are.
    let soci = SociCli::standalone()?;
    registry.push_layout(&layout, "image", "turn")?;
    let begin = Instant::now();
    for number in 0..burst.conversions {
        let source = format!("docker://{}", registry.reference("turn:image"));
        let target = format!(
            "docker://{}",
            registry.reference(&format!("turn:{number}-soci"))
        );
        soci.output([
            "convert",
            "--standalone",
            "--all-platforms",
            &source,
            &target,
        ])?;
    }
    let each = begin.elapsed().div_f64(burst.conversions as f64);

    let begin = Instant::now();
    for number in 0..burst.pushes {
        registry.push_layout(&layout, &number.to_string(), "burst")?;
    }
    let pushed = begin.elapsed();
    let limit = begin + Duration::from_secs(3600);
    loop {
        let status = http_request(at, "GET", "/status.json", &[], b"")?;
        let status: Value = serde_json::from_slice(&status.body)?;
        let count = |state: &str| status["counts"][state].as_u64().unwrap_or(0);
        let jobs = status["jobs"].as_array().into_iter().flatten();
        let dead: Vec<&Value> = jobs.filter(|job| job["state"]["name"] == "dead").collect();
        ensure!(dead.is_empty(), "images were given up: {dead:?}");
        if count("done") == burst.pushes as u64 {
            break;
        }
        ensure!(
            Instant::now() < limit,
            "not done in an hour: {}",
            status["counts"]
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    let indexed = begin.elapsed();
    let in_turn = each.mul_f64(burst.pushes as f64);
    let peak = builder.peak_memory()?;
    let ratio = indexed.as_secs_f64() / in_turn.as_secs_f64();

    let mut table = Table::new(&["burst of pushes", ""]);
    let mut row = |name: &str, value: String| table.row([name.to_owned(), value]);
    row(
        "layers of the image, compressed",
        format!("{} bytes", image.compressed_size()),
    );
    row("pushes", burst.pushes.to_string());
    row("workers", burst.workers.to_string());
    row(
        "time to push them all",
        format!("{:.1} s", pushed.as_secs_f64()),
    );
    row(
        "time until all are indexed",
        format!("{:.1} s", indexed.as_secs_f64()),
    );
    row(
        "`soci convert` of one",
        format!("{:.2} s", each.as_secs_f64()),
    );
    row(
        "`soci convert` of each in turn",
        format!("{:.1} s", in_turn.as_secs_f64()),
    );
    row("ratio", format!("{ratio:.2}"));
    row("peak memory of the builder", format!("{} MiB", peak >> 20));
    Ok(table)
}

fn address(log: &LogLines) -> Option<SocketAddr> {
    log.all().iter().find_map(|line| {
        let line: Value = serde_json::from_str(line).ok()?;
        line.get("address")?.as_str()?.parse().ok()
    })
}
