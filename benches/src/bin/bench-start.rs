//! `make bench-start` and `make bench-start-torch`: cold starts of an image over several links,
//! with overlayfs and with each state of knowledge of earlier starts, interleaved. Nothing is
//! asserted. Needs root; build for release.

#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for people"
)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use soci_benches::Table;
use soci_benches::cold::{Beside, ColdStart, Lab, Recorded};
use soci_benches::table::{median, megabytes, seconds, times};
use soci_testkit::Throttle;
use soci_testkit::image::{python_image, torch_image};

/// Another program of the demo image than its own.
const OTHER: &str = "import pandas, json; print(pandas.Series([1, 2]).sum(), flush=True)";
/// Another program of the PyTorch image than its own.
const OTHER_TORCH: &str = "import torch, torch._dynamo\n\
    layer = torch.nn.TransformerEncoderLayer(64, 4)\n\
    torch.optim.AdamW(layer.parameters())\n\
    print(layer(torch.rand(2, 8, 64)).shape, flush=True)\n";

/// Prints what cold starts cost.
#[derive(Debug, Parser)]
struct Options {
    /// Start an image with PyTorch and CUDA: 4 GB, built from PyPI on first use.
    #[arg(long)]
    torch: bool,
    /// The links.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Link::ALL)]
    links: Vec<Link>,
    /// The kinds of starts.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Kind::ALL)]
    kinds: Vec<Kind>,
    /// How often each is measured; medians are printed.
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// Measure overlayfs this often instead: it takes minutes for a large image.
    #[arg(long)]
    overlayfs_runs: Option<u32>,
    /// Start again after the last run of each kind, with the page cache dropped.
    #[arg(long)]
    again: bool,
    /// Measure instead how long the demo image takes to start alone, and while the PyTorch image
    /// starts.
    #[arg(long, conflicts_with_all = ["torch", "kinds", "again"])]
    neighbour: bool,
    /// Another build of soci-snapshotter-grpc to measure beside ours.
    #[arg(long, env = "PREVIOUS", default_value = "")]
    previous: String,
    /// The soci-snapshotter-grpc that ours replaces, to measure beside ours.
    #[arg(long, env = "REFERENCE", default_value = "")]
    reference: String,
    /// More configuration of our daemon.
    #[arg(long, default_value = "")]
    config: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Link {
    /// 30 ms to the first byte, 80 MB/s per response, 250 MB/s in all.
    Cloud,
    /// 1 ms to the first byte, no limits.
    Fast,
    /// 120 ms to the first byte, 20 MB/s in all.
    Far,
    /// 50 ms to the first byte, 60 MB/s per response, 1.2 GB/s in all.
    Ecr,
}

impl Link {
    const ALL: [Self; 4] = [Self::Cloud, Self::Fast, Self::Far, Self::Ecr];

    fn throttle(self) -> Throttle {
        let limited = |first_byte, per_response: u64, total: u64| Throttle {
            first_byte: Duration::from_millis(first_byte),
            per_response: (per_response > 0).then_some(per_response * 1_000_000),
            total: (total > 0).then_some(total * 1_000_000),
        };
        match self {
            Self::Cloud => Throttle::cloud(),
            Self::Fast => limited(1, 0, 0),
            Self::Far => limited(120, 20, 20),
            Self::Ecr => limited(50, 60, 1200),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// With overlayfs.
    Overlayfs,
    /// Lazily, nothing known of earlier starts.
    Nothing,
    /// Lazily, with the profile of another program of the image.
    Other,
    /// Lazily, with the profile of this program.
    Own,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Overlayfs, Self::Nothing, Self::Other, Self::Own];
}

/// A daemon under test.
struct Tested<'a> {
    name: &'a str,
    program: Option<&'a Path>,
    config: &'a str,
    /// Whether it records starts.
    records: bool,
    own: Recorded,
    other: Recorded,
}

/// The starts of one row.
struct Row {
    name: String,
    starts: Vec<ColdStart>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    soci_benches::run("bench-start", || bench(&options))
}

fn bench(options: &Options) -> Result<()> {
    if cfg!(debug_assertions) {
        eprintln!("bench-start: built for debugging: the figures say nothing, use --release");
    }
    if options.neighbour {
        return neighbours(options);
    }
    let (name, image, other) = if options.torch {
        ("PyTorch image", torch_image()?, OTHER_TORCH)
    } else {
        ("demo image", python_image()?, OTHER)
    };
    eprintln!("==> {name} in {}: indexing it", image.dir.display());
    let lab = Lab::new(&image)?;
    let other = ["/usr/bin/python3", "-c", other].map(str::to_owned);
    let path = |path: &String| (!path.is_empty()).then(|| PathBuf::from(path));
    let (previous, reference) = (path(&options.previous), path(&options.reference));
    let tested = |name, program, config, records| Tested {
        name,
        program,
        config,
        records,
        own: Recorded::default(),
        other: Recorded::default(),
    };
    let mut all = vec![tested("", None, options.config.as_str(), true)];
    all.extend(
        previous
            .as_deref()
            .map(|path| tested("previous, ", Some(path), "", true)),
    );
    all.extend(
        reference
            .as_deref()
            .map(|path| tested("reference, ", Some(path), "", false)),
    );
    for tested in all.iter_mut().filter(|tested| tested.records) {
        for (kind, command) in [(Kind::Own, &[][..]), (Kind::Other, &other[..])] {
            if !options.kinds.contains(&kind) {
                continue;
            }
            eprintln!("==> {}recording the profile of {kind:?}", tested.name);
            let nothing = Recorded::default();
            lab.throttle(Throttle::unlimited());
            let recorded = lab
                .lazily(tested.program, tested.config, &nothing, command, false)?
                .1;
            match kind {
                Kind::Own => tested.own = recorded,
                _ => tested.other = recorded,
            }
        }
    }
    for link in &options.links {
        lab.throttle(link.throttle());
        let rows = measure(options, &lab, *link, &all)?;
        println!("{}", table(name, *link, options.runs, &rows));
    }
    Ok(())
}

/// Prints how long the demo image takes alone, and beside starts of the PyTorch image.
fn neighbours(options: &Options) -> Result<()> {
    const NAME: &str = "neighbour:soci";
    const NAMES: [&str; 4] = [
        "alone",
        "while the pytorch image starts",
        "while the stored pytorch image starts",
        "the same, beside plain downloads",
    ];
    eprintln!("==> indexing both images");
    let lab = Lab::new(&torch_image()?)?;
    lab.add(NAME, &python_image()?)?;
    for link in &options.links {
        lab.throttle(link.throttle());
        let mut times_of = NAMES.map(|_| Vec::new());
        for _ in 0..options.runs.max(1) {
            let mut rate = 0;
            for (case, (name, times)) in NAMES.iter().zip(&mut times_of).enumerate() {
                let beside = match case {
                    0 => Beside::Nothing,
                    1 => Beside::ColdStart,
                    2 => Beside::StoredStarts,
                    _ => Beside::StoredStartsAndDownloads(rate),
                };
                let (took, fetched) = lab.neighbour(NAME, &options.config, beside)?;
                let each = megabytes(fetched);
                eprintln!("    {link:?}, {name}: {}, {each} a second", seconds(took));
                times.push(took);
                rate = rate.max(fetched);
            }
        }
        let medians = times_of.map(|times| median(times).unwrap_or_default());
        let title = format!("demo image, {link:?}, median of {}", options.runs).to_lowercase();
        let mut table = Table::new(&[&title, "pull and run", "of alone"]);
        for (name, time) in NAMES.iter().zip(medians) {
            let ratio = times(time.as_secs_f64(), medians[0].as_secs_f64());
            table.row([(*name).to_owned(), seconds(time), ratio]);
        }
        println!("{table}");
    }
    Ok(())
}

/// Measures all kinds of starts over one link, one after another, `runs` times.
fn measure(options: &Options, lab: &Lab, link: Link, all: &[Tested<'_>]) -> Result<Vec<Row>> {
    let mut rows: Vec<Row> = Vec::new();
    let mut enter = |name: String, start: ColdStart| {
        let by_priority = start.by_priority.iter();
        let by_priority: Vec<_> = by_priority
            .map(|(priority, bytes)| format!("{priority} {}", megabytes(*bytes)))
            .collect();
        eprintln!(
            "    {link:?}, {name}: {} + {}, layers {} ({})",
            seconds(start.pull),
            seconds(start.run),
            megabytes(start.layers),
            by_priority.join(", ")
        );
        match rows.iter_mut().find(|row| row.name == name) {
            Some(row) => row.starts.push(start),
            None => rows.push(Row {
                name,
                starts: vec![start],
            }),
        }
    };
    for run in 0..options.runs.max(1) {
        let again = options.again && run == 0;
        for kind in &options.kinds {
            if *kind == Kind::Overlayfs {
                if run < options.overlayfs_runs.unwrap_or(options.runs) {
                    enter("overlayfs".to_owned(), lab.overlayfs(&[], again)?);
                }
                continue;
            }
            for tested in all {
                let nothing = Recorded::default();
                let (what, recorded) = match kind {
                    Kind::Own => ("own profile", &tested.own),
                    Kind::Other => ("profile of another program", &tested.other),
                    _ => ("nothing known", &nothing),
                };
                if *kind != Kind::Nothing && !tested.records {
                    continue;
                }
                let start = lab
                    .lazily(tested.program, tested.config, recorded, &[], again)
                    .with_context(|| format!("{}{what}", tested.name))?
                    .0;
                enter(format!("{}{what}", tested.name), start);
            }
        }
    }
    Ok(rows)
}

fn table(image: &str, link: Link, runs: u32, rows: &[Row]) -> Table {
    let title = format!("{image}, {link:?}, median of {runs}").to_lowercase();
    let mut table = Table::new(&[
        &title,
        "pull",
        "run",
        "both",
        "of overlayfs",
        "of nothing known",
        "layers",
        "other bytes",
        "requests",
        "in flight",
        "not read",
        "CPU",
        "peak memory",
        "again",
    ]);
    let total = |row: &Row| median(row.starts.iter().map(ColdStart::total)).unwrap_or_default();
    let of = |name: &str, time: Duration| {
        let found = rows.iter().find(|row| row.name == name);
        found.map_or_else(
            || "-".to_owned(),
            |row| times(time.as_secs_f64(), total(row).as_secs_f64()),
        )
    };
    for row in rows {
        let number = |part: fn(&ColdStart) -> u64| median(row.starts.iter().map(part)).unwrap_or(0);
        let time = |part: fn(&ColdStart) -> Duration| {
            median(row.starts.iter().map(part)).unwrap_or_default()
        };
        let some = |part: fn(&ColdStart) -> Option<u64>| {
            median(row.starts.iter().filter_map(part)).map_or_else(|| "-".to_owned(), megabytes)
        };
        let some_time = |part: fn(&ColdStart) -> Option<Duration>| {
            median(row.starts.iter().filter_map(part)).map_or_else(|| "-".to_owned(), seconds)
        };
        table.row([
            row.name.clone(),
            seconds(time(|start| start.pull)),
            seconds(time(|start| start.run)),
            seconds(total(row)),
            of("overlayfs", total(row)),
            of("nothing known", total(row)),
            megabytes(number(|start| start.layers)),
            megabytes(number(|start| start.rest)),
            number(|start| start.requests).to_string(),
            number(|start| start.in_flight).to_string(),
            some(|start| start.waste),
            some_time(|start| start.cpu),
            some(|start| start.memory),
            some_time(|start| start.again),
        ]);
    }
    table
}
