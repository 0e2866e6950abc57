//! `make demo`: indexes an image, starts it lazily and with overlayfs through the same throttled
//! registry, and prints what both cost. Needs root.

#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for people"
)]

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use soci_benches::table::{megabytes, percent, seconds, times};
use soci_benches::{Start, Table, start_lazily, start_with_overlayfs};
use soci_oci::{Index, Manifest, media_types};
use soci_testkit::image::{PYTHON_TAG, python_image};
use soci_testkit::{SociCli, Stack, StackOptions, Throttle, http_request};

/// Starts an image lazily and with overlayfs and prints what both cost.
#[derive(Debug, Parser)]
struct Options {
    /// An image of any registry; by default one with Python is built from Debian packages.
    #[arg(long, env = "IMAGE", default_value = "")]
    image: String,
    /// What runs in it, split as a shell does; by default the image's own command.
    #[arg(long, env = "DEMO_COMMAND", default_value = "")]
    command: String,
    /// `cloud` (30 ms to the first byte, 80 MB/s per response, 250 MB/s in all) or `unlimited`.
    #[arg(long, env = "DEMO_NETWORK", default_value = "cloud")]
    network: String,
}

fn main() -> ExitCode {
    let options = Options::parse();
    soci_benches::run("demo", || demo(&options))
}

fn demo(options: &Options) -> Result<()> {
    let throttle = match options.network.as_str() {
        "cloud" => Throttle::cloud(),
        "unlimited" => Throttle::unlimited(),
        other => anyhow::bail!("--network {other}: there is cloud and unlimited"),
    };
    step("starting a registry, containerd and soci-snapshotter-grpc, all private");
    let stack = Stack::start(StackOptions::default())?;
    let shown = show(&stack, options, throttle);
    if shown.is_err() {
        eprintln!("{}", stack.log_tails());
    }
    shown
}

fn show(stack: &Stack, options: &Options, throttle: Throttle) -> Result<()> {
    let source = if options.image.is_empty() {
        step("building an image with Python from Debian packages (kept for the next time)");
        python_image()?.dir.display().to_string()
    } else {
        format!("docker://{}", options.image)
    };
    step(&format!(
        "indexing {} into the private registry",
        shown_source(&source)
    ));
    let target = format!(
        "docker://{}",
        stack.registry.reference(&format!("demo:{PYTHON_TAG}"))
    );
    let converted = SociCli::standalone()?.convert(&[], &source, &target)?;
    eprint!("{}", indented(&converted));
    let size = image_size(stack)?;

    stack.proxy.throttle(throttle);
    let reference = stack.reference(&format!("demo:{PYTHON_TAG}"));
    let command =
        shlex::split(&options.command).context("DEMO_COMMAND has a quote that does not end")?;
    step(&format!(
        "lazily: soci pull, then a container (network: {})",
        options.network
    ));
    let lazy = start_lazily(stack, &reference, &command)?;
    eprint!("{}{}", indented(&lazy.pull_output), indented(&lazy.output));
    step("with overlayfs: ctr images pull, then a container");
    let eager = start_with_overlayfs(&stack.proxy, &reference, &command)?;
    eprint!("{}", indented(&eager.output));
    println!("{}", comparison(&lazy, &eager, size));
    Ok(())
}

fn comparison(lazy: &Start, eager: &Start, size: u64) -> Table {
    let mut table = Table::new(&["", "lazy", "overlayfs", "overlayfs / lazy"]);
    type Part = fn(&Start) -> std::time::Duration;
    let parts: [(&str, Part); 4] = [
        ("pull", |start| start.pull),
        ("container to first output", |start| start.first_output),
        ("pull to first output", Start::until_output),
        ("pull to end of container", Start::total),
    ];
    for (name, part) in parts {
        let (a, b) = (part(lazy), part(eager));
        table.row([
            name,
            &seconds(a),
            &seconds(b),
            &times(b.as_secs_f64(), a.as_secs_f64()),
        ]);
    }
    let ratio = f64::from(u32::try_from(eager.network / 1000).unwrap_or(u32::MAX))
        / f64::from(u32::try_from(lazy.network / 1000).unwrap_or(u32::MAX));
    table.row([
        "over the network",
        &megabytes(lazy.network),
        &megabytes(eager.network),
        &times(ratio, 1.0),
    ]);
    let name = format!("share of the image ({})", megabytes(size));
    table.row([
        name.as_str(),
        &percent(lazy.network, size),
        &percent(eager.network, size),
        "",
    ]);
    table
}

/// The compressed size of this machine's image, layers and configuration.
fn image_size(stack: &Stack) -> Result<u64> {
    let get = |key: &str| -> Result<Vec<u8>> {
        let kinds = [media_types::OCI_INDEX, media_types::OCI_MANIFEST].join(", ");
        let target = format!("/v2/demo/manifests/{key}");
        let address = stack.registry.address();
        Ok(http_request(address, "GET", &target, &[("Accept", &kinds)], b"")?.body)
    };
    let index: Index =
        serde_json::from_slice(&get(PYTHON_TAG)?).context("parse the image index")?;
    let host = soci_oci::Platform::host();
    let entry = index
        .manifests
        .iter()
        .filter(|entry| entry.artifact_type.is_none())
        .find(|entry| {
            entry
                .platform
                .as_ref()
                .is_none_or(|platform| host.matches(platform))
        })
        .context("the image is not for this machine")?;
    let manifest: Manifest =
        serde_json::from_slice(&get(&entry.digest.to_string())?).context("parse the manifest")?;
    Ok(manifest.layers.iter().map(|layer| layer.size).sum::<u64>() + manifest.config.size)
}

fn shown_source(source: &str) -> String {
    if source.starts_with("docker://") {
        return source.to_owned();
    }
    format!("the image in {}", Path::new(source).display())
}

fn step(text: &str) {
    eprintln!("==> {text}");
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}
