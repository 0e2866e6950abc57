//! `soci index-builder status|list|retry`: the jobs of a queue.

use std::path::PathBuf;

use anyhow::bail;
use clap::{Args, ValueEnum};
use jiff::Timestamp;
use soci_index_builder::{Job, Queue};

use crate::output;
use crate::table::table;

/// The folder of a queue.
#[derive(Debug, Args)]
pub(super) struct QueueArgs {
    /// The folder of the queue
    #[arg(
        long = "queue",
        value_name = "DIR",
        env = "SOCI_INDEX_BUILDER_QUEUE",
        hide_env_values = true,
        default_value = "/var/lib/soci-index-builder"
    )]
    pub(super) folder: PathBuf,
}

impl QueueArgs {
    /// Opens a queue that is there.
    fn existing(&self) -> anyhow::Result<Queue> {
        if !self.folder.join("queue.redb").exists() {
            bail!(
                "cannot find a queue in {}: name its folder with --queue",
                self.folder.display()
            );
        }
        Ok(Queue::open(&self.folder)?)
    }
}

/// Show how many images wait, were indexed and were given up
#[derive(Debug, Args)]
pub(crate) struct Status {
    #[command(flatten)]
    queue: QueueArgs,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// List images that wait, were indexed or were given up, the newest first
#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    queue: QueueArgs,

    /// Those in this state only
    #[arg(long, value_enum)]
    state: Option<State>,

    /// At most this many
    #[arg(long, value_name = "NUMBER", default_value_t = 100)]
    limit: usize,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Try images again that were given up
#[derive(Debug, Args)]
pub(crate) struct Retry {
    #[command(flatten)]
    queue: QueueArgs,

    /// The numbers of the jobs, as `list` shows them
    #[arg(value_name = "JOB", required_unless_present = "all")]
    jobs: Vec<u64>,

    /// All that were given up
    #[arg(long, conflicts_with = "jobs")]
    all: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum State {
    /// It waits for a worker
    Waiting,
    /// A worker has it
    Running,
    /// It is indexed
    Done,
    /// It is not to be indexed
    Skipped,
    /// It was given up
    Dead,
}

impl State {
    const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Done => "done",
            Self::Skipped => "skipped",
            Self::Dead => "dead",
        }
    }
}

impl Status {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let counts = self.queue.existing()?.counts()?;
        if self.json {
            return output::json(&counts);
        }
        output::page(&table(
            ["STATE", "IMAGES"],
            &counts
                .by_state()
                .map(|(state, count)| [state.to_owned(), count.to_string()]),
        ));
        Ok(())
    }
}

impl List {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let queue = self.queue.existing()?;
        let jobs = queue.list(self.state.map(State::name), self.limit)?;
        if self.json {
            return output::json(&jobs);
        }
        let rows: Vec<_> = jobs.iter().map(row).collect();
        output::page(&table(
            [
                "JOB", "STATE", "IMAGE", "RECEIVED", "TIME", "BYTES", "REMARK",
            ],
            &rows,
        ));
        Ok(())
    }
}

fn row(job: &Job) -> [String; 7] {
    let received = i64::try_from(job.received_ms).unwrap_or(i64::MAX);
    let received = Timestamp::from_millisecond(received).unwrap_or(Timestamp::MAX);
    let remark = match (&job.reason, &job.outcome) {
        (Some(reason), _) => reason.clone(),
        (None, Some(outcome)) => match (&outcome.image, outcome.indexes.first()) {
            (Some(image), _) => image.clone(),
            (None, Some(index)) => index.to_string(),
            (None, None) => String::new(),
        },
        (None, None) => String::new(),
    };
    [
        job.id.to_string(),
        job.state.name().to_owned(),
        job.push.tagged_name(),
        received.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        job.duration_ms().map_or_else(String::new, |ms| {
            format!("{}.{:03} s", ms / 1000, ms % 1000)
        }),
        job.outcome
            .as_ref()
            .map_or_else(String::new, |outcome| outcome.bytes.to_string()),
        remark,
    ]
}

impl Retry {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let ids = (!self.all).then_some(self.jobs.as_slice());
        let again = self.queue.existing()?.retry(ids)?;
        output::line(format!("{} jobs wait again", again.len()));
        Ok(())
    }
}
