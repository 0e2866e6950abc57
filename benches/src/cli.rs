//! Costs of the command line tool: indexing an image with and without containerd, showing a large zTOC,
//! starting up. Each beside a program that does part of the same work.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use soci_testkit::image::layout::blob_path;
use soci_testkit::{Containerd, ContainerdOptions, OciImage, Registry, TestRoot, binary};

use crate::Table;
use crate::table::{megabytes, seconds, times};

const NAMESPACE: &str = "bench";
/// Starts of a program that are averaged.
const STARTS: u32 = 50;

/// How long a command took, and the most memory that it had resident.
struct Cost {
    time: Duration,
    peak: u64,
}

fn cost(mut command: Command) -> Result<Cost> {
    let started = Instant::now();
    let mut child = command
        .stdout(Stdio::null())
        .spawn()
        .context("start the command")?;
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        let ended = child.try_wait().context("wait for the command")?;
        let now = std::fs::read_to_string(&status).unwrap_or_default();
        let line = now.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        if let Some(kib) = line.and_then(|text| text.trim().strip_suffix(" kB")) {
            peak = u64::max(peak, kib.trim().parse::<u64>().unwrap_or(0) << 10);
        }
        if let Some(ended) = ended {
            ensure!(ended.success(), "{command:?} ended with {ended}");
            let time = started.elapsed();
            return Ok(Cost { time, peak });
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

/// The table, for an image in a layout of its own. `spans` are the flags that give a large zTOC.
///
/// # Errors
/// When a program is missing or fails.
pub fn table(image: &OciImage, spans: &[&str]) -> Result<Table> {
    let root = TestRoot::new()?;
    let soci = binary("soci")?;
    let compressed = image.layers.iter().map(|layer| layer.size).sum();
    let title = format!("command, image of {}", megabytes(compressed));
    let mut table = Table::new(&[&title, "time", "of the baseline", "peak memory"]);
    let mut rows = |what: &str, baseline: Option<&Cost>, cost: &Cost| {
        let ratio = baseline.map_or_else(
            || "-".to_owned(),
            |of| times(cost.time.as_secs_f64(), of.time.as_secs_f64()),
        );
        table.row([what, &seconds(cost.time), &ratio, &megabytes(cost.peak)]);
    };

    let layers = image.layers.iter();
    let layers: Vec<String> = layers
        .map(|layer| blob_path(&image.dir, layer.digest).display().to_string())
        .collect();
    let unpack = cost(shell(&format!(
        "sha256sum {0} >/dev/null & gzip -dc {0} | sha256sum >/dev/null; wait",
        layers.join(" ")
    )))?;
    rows(
        "baseline: sha256sum and gzip | sha256sum of the layers",
        None,
        &unpack,
    );
    let mut standalone = Command::new(&soci);
    standalone
        .args(["convert", "--standalone", "--format", "oci-dir"])
        .arg(&image.dir)
        .arg(root.path().join("converted"));
    rows(
        "soci convert --standalone",
        Some(&unpack),
        &cost(standalone)?,
    );

    let registry = Registry::start()?;
    registry.push_layout(&image.dir, &image.tag, "large")?;
    let containerd = Containerd::start(&ContainerdOptions::default())?;
    let reference = registry.reference(&format!("large:{}", image.tag));
    containerd
        .ctr(NAMESPACE)
        .output(["content", "fetch", "--plain-http", &reference])?;
    let against = |arguments: &[&str]| {
        let mut command = Command::new(&soci);
        command.arg("--address").arg(containerd.address());
        command.args(["--namespace", NAMESPACE, "--root"]);
        command.arg(root.path().join("soci")).args(arguments);
        command
    };
    let converted = registry.reference("large:soci");
    let convert = against(&["convert", "--force", &reference, &converted]);
    rows(
        "soci convert, in containerd",
        Some(&unpack),
        &cost(convert)?,
    );
    let create = against(&["create", "--force", &reference]);
    rows("soci create, in containerd", Some(&unpack), &cost(create)?);

    let store = ["--content-store", "soci"];
    cost(against(
        &[&store[..], &["create"], spans, &[&reference]].concat(),
    ))?;
    let ztoc = largest(&root.path().join("soci/content/blobs/sha256"))?;
    let read = cost(shell(&format!("sha256sum {} >/dev/null", ztoc.0)))?;
    let size = megabytes(ztoc.1);
    rows(
        &format!("baseline: sha256sum of a zTOC of {size}"),
        None,
        &read,
    );
    let digest = format!("sha256:{}", ztoc.0.rsplit('/').next().unwrap_or_default());
    let info = against(&[&store[..], &["ztoc", "info", &digest]].concat());
    rows("soci ztoc info", Some(&read), &cost(info)?);

    let starts = |program: &Path, argument: &str| -> Result<Cost> {
        let started = Instant::now();
        for _ in 0..STARTS {
            let status = Command::new(program)
                .arg(argument)
                .stdout(Stdio::null())
                .status()
                .context("start a program")?;
            ensure!(
                status.success(),
                "{} ended with {status}",
                program.display()
            );
        }
        let time = started.elapsed() / STARTS;
        Ok(Cost { time, peak: 0 })
    };
    let nothing = starts(Path::new("/bin/true"), "x")?;
    let version = starts(&soci, "--version")?;
    table.row([
        "soci --version (baseline: /bin/true)",
        &format!("{:.1} ms", version.time.as_secs_f64() * 1e3),
        &times(version.time.as_secs_f64(), nothing.time.as_secs_f64()),
        "-",
    ]);
    Ok(table)
}

/// The largest file in a folder, and its size in bytes.
fn largest(folder: &Path) -> Result<(String, u64)> {
    let mut found = None;
    for entry in std::fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let entry = entry?;
        let size = entry.metadata()?.len();
        if found.as_ref().is_none_or(|(_, most)| size > *most) {
            found = Some((entry.path().display().to_string(), size));
        }
    }
    found.context("the content store is empty")
}
