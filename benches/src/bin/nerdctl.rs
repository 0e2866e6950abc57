//! Takes a real nerdctl, or a program with its arguments such as finch, through everything that it
//! does with `soci` and the snapshotter. Needs root. Not part of `make test`: Debian 12 has no
//! nerdctl; the tests run its argument lists instead.

#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for people"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use soci_benches::Table;
use soci_benches::table::seconds;
use soci_testkit::image::small_image;
use soci_testkit::{
    Containerd, ContainerdOptions, Registry, Release, SociDaemon, SociDaemonOptions, TestRoot,
    binary, output_of, process,
};

const NAMESPACE: &str = "nerdctl";
/// The daemon finds indexes of both versions.
const DAEMON: &str = "[pull_modes.soci_v1]\nenable = true\n";
/// Small enough that the layers of the image get several spans.
const SPANS: [&str; 4] = [
    "--soci-span-size",
    "262144",
    "--soci-min-layer-size",
    "100000",
];

/// Runs nerdctl (or finch) against our two programs and prints what worked.
#[derive(Debug, Parser)]
struct Options {
    /// The program. It gets its configuration through `NERDCTL_TOML`.
    program: PathBuf,
    /// The containerd that it talks to: the installed one, or one that the test kit unpacks.
    #[arg(long, value_name = "RELEASE", value_parser = release, default_value = "installed")]
    containerd: Release,
}

fn release(name: &str) -> Result<Release, String> {
    match name {
        "installed" => Ok(Release::Installed),
        "1.7" => Ok(Release::V1_7),
        "2.1" => Ok(Release::V2_1),
        _ => Err("expected installed, 1.7 or 2.1".to_owned()),
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let ended = soci_testkit::clean_up_at_signals(|| {
        eprintln!("nerdctl: interrupted; everything it started is ended and removed");
        std::process::exit(1);
    });
    match ended.and_then(|()| tour(&options.program, options.containerd)) {
        Ok(table) => {
            println!("{table}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("nerdctl: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The parts that the program works with. Fields end in this order.
struct Parts {
    containerd: Containerd,
    daemon: SociDaemon,
    registry: Registry,
    root: TestRoot,
    program: PathBuf,
    /// Ours is the first `soci` there.
    path: String,
    table: Table,
}

fn tour(program: &Path, release: Release) -> Result<Table> {
    let registry = Registry::start()?;
    let folder = TestRoot::new()?;
    let daemon = SociDaemon::start(SociDaemonOptions {
        containerd: Some(Containerd::address_in(&folder)),
        ..SociDaemonOptions::with_config(DAEMON)
    })?;
    let soci = ContainerdOptions {
        release,
        ..ContainerdOptions::with_soci(daemon.socket())
    };
    let containerd = Containerd::start_in(folder, &soci)?;
    let ours = binary("soci")?;
    let ours = ours.parent().context("our programs are in no folder")?;
    let mut parts = Parts {
        containerd,
        daemon,
        registry,
        root: TestRoot::new()?,
        program: program.to_owned(),
        path: format!(
            "{}:{}",
            ours.display(),
            std::env::var("PATH").unwrap_or_default()
        ),
        table: Table::new(&["command", "time"]),
    };
    if let Err(error) = parts.all() {
        eprintln!("{}\n{}", parts.table, parts.daemon.log().tail(30));
        return Err(error);
    }
    Ok(parts.table)
}

impl Parts {
    fn all(&mut self) -> Result<()> {
        let image = small_image(&self.root.dir("image")?, "v1")?;
        self.registry.push_layout(&image.dir, "v1", "app")?;
        let source = self.registry.reference("app:v1");
        let converted = self.registry.reference("app:v2");
        let overlayfs = self.configuration("overlayfs")?;
        let soci = self.configuration("soci")?;

        self.run(&overlayfs, &["pull", "--quiet", &source])?;
        let expected = self.run(&overlayfs, &["run", "--rm", "--net", "host", &source])?;
        let convert = [
            &["image", "convert", "--soci"],
            &SPANS[..],
            &[&source, &converted],
        ];
        self.run(&overlayfs, &convert.concat())?;
        self.run(&overlayfs, &["push", &converted])?;
        // With the snapshotter soci, nerdctl makes and pushes an index of version 1 too.
        let push = [&["push"], &SPANS[..], &[&source]];
        self.run(&soci, &push.concat())?;
        self.run(&overlayfs, &["rmi", "--force", &source, &converted])?;
        ensure!(self.content()?.is_empty(), "content stayed after rmi");

        for reference in [&converted, &source] {
            self.run(&soci, &["pull", "--quiet", reference])?;
            let lazy = process::mounts_below(&self.daemon.root())?.len();
            ensure!(lazy > 0, "no layer of {reference} is lazy");
            let said = self.run(&soci, &["run", "--rm", "--net", "host", reference])?;
            ensure!(said == expected, "{reference} said {said:?}");
            let start = [
                "run", "--detach", "--name", "app", "--net", "host", reference,
            ];
            self.run(&soci, &[&start[..], &["sleep", "600"]].concat())?;
            let read = self.run(&soci, &["exec", "app", "ls", "/"])?;
            ensure!(read.contains("bin"), "ls / said {read:?}");
            self.run(&soci, &["commit", "app", "changed:v1"])?;
            self.run(&soci, &["rm", "--force", "app"])?;
            self.run(&soci, &["rmi", "--force", "changed:v1", reference])?;
            ensure!(self.content()?.is_empty(), "content stayed after rmi");
            let mounts = process::mounts_below(&self.daemon.root())?;
            ensure!(mounts.is_empty(), "mounts stayed after rmi: {mounts:?}");
        }
        Ok(())
    }

    /// A configuration (nerdctl's docs/config.md) for one snapshotter.
    fn configuration(&self, snapshotter: &str) -> Result<PathBuf> {
        let path = self.root.path().join(format!("{snapshotter}.toml"));
        let text = format!(
            "address = {:?}\nnamespace = {NAMESPACE:?}\nsnapshotter = {snapshotter:?}\n\
             data_root = {:?}\ncgroup_manager = \"cgroupfs\"\ninsecure_registry = true\n",
            self.containerd.address(),
            self.root.path().join("data"),
        );
        std::fs::write(&path, text).context("write a configuration")?;
        Ok(path)
    }

    fn run(&mut self, configuration: &Path, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .env("NERDCTL_TOML", configuration)
            .env("PATH", &self.path)
            .env("HOME", self.root.path());
        let started = Instant::now();
        let output = output_of(command)?;
        let snapshotter = configuration.file_stem().unwrap_or_default();
        self.table.row([
            &format!("{}: {}", snapshotter.display(), arguments.join(" ")),
            &seconds(started.elapsed()),
        ]);
        Ok(output)
    }

    /// Everything in containerd's content store, once the collector has been there.
    fn content(&self) -> Result<String> {
        let ctr = self.containerd.ctr(NAMESPACE);
        let images = ctr.output(["images", "ls", "-q"])?;
        if !images.is_empty() {
            bail!("images stayed: {images}");
        }
        ctr.output(["content", "prune", "references"])?;
        ctr.output(["content", "ls", "-q"])
    }
}
