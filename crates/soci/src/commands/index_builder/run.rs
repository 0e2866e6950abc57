//! `soci index-builder run`: one event, or what waits in a queue, and then the end.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::Args;
use soci_index_builder::event::{self, Reported};
use soci_index_builder::{
    Decision, Job, JobState, PoolSettings, Push, PushPolicy, Queue, WorkerPool, poll,
};
use tokio_util::sync::CancellationToken;

use super::settings::{Settings, WorkerArgs};
use crate::global::Global;
use crate::interrupt::interrupted;
use crate::output;

/// Largest event in bytes.
const MAX_EVENT: u64 = 1 << 20;

/// Index what an event reports, or what a registry has, and end
///
/// The event is that of Amazon EventBridge (ECR Image Action), of a distribution registry, of
/// Harbor or of Quay. With --poll, the tags of the registries of --registry are looked at instead.
/// Without either, the jobs that wait in the folder of --queue are carried out.
#[derive(Debug, Args)]
#[command(after_help = "\
Exits with 1 if an image was given up. Events that are not about the push of an image, and images that no
filter is for, are ignored with a line on stderr.

Examples:
  soci index-builder run --event event.json
  aws events … | soci index-builder run --event - --index-version both
  soci index-builder run --poll --registry registry.example --filters 'prod/*:*'
  soci index-builder run --queue /var/lib/soci-index-builder")]
pub(crate) struct Run {
    /// The file with the event, or - for stdin
    #[arg(long, value_name = "FILE", required_unless_present_any = ["queue", "poll"])]
    event: Option<PathBuf>,

    /// List the repositories and tags of the registries of --registry, and index those without an index
    ///
    /// With --queue, images whose digest was seen before are not looked at again.
    #[arg(long, conflicts_with = "event", requires = "registries")]
    poll: bool,

    /// Work on the jobs of the queue in this folder, which other processes may share
    #[arg(long, value_name = "DIR")]
    queue: Option<PathBuf>,

    #[command(flatten)]
    pub(super) settings: Settings,

    #[command(flatten)]
    workers: WorkerArgs,
}

impl Run {
    pub(super) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let policy = self.settings.policy();
        let pushes = match &self.event {
            Some(path) => wanted(&policy, &read(path)?)?,
            None => Vec::new(),
        };
        let indexer = Arc::new(self.settings.indexer(global)?);
        let own;
        let folder = match &self.queue {
            Some(folder) => folder.as_path(),
            None => {
                own = tempfile::tempdir().context("cannot make a folder for the queue")?;
                own.path()
            }
        };
        let queue = Queue::open(folder)?;
        let before: BTreeSet<_> = queue
            .list(None, usize::MAX)?
            .iter()
            .filter(|job| has_ended(job))
            .map(|job| job.id)
            .collect();
        queue.add(&pushes)?;
        if self.poll {
            let client = self.settings.client()?;
            for registry in &policy.registries {
                let found = poll(&client, registry, &policy);
                let found = tokio::select! {
                    found = found => found?,
                    signal = interrupted() => return Err(signal),
                };
                queue.add_seen(&found)?;
            }
        }
        let settings = PoolSettings {
            until_empty: true,
            ..self.workers.pool()
        };
        let pool = Arc::new(WorkerPool::new(queue.clone(), indexer, settings).await?);
        let stop = CancellationToken::new();
        let mut work = tokio::spawn(pool.run(stop.clone()));
        let ended_by = tokio::select! {
            done = &mut work => { done??; None }
            signal = interrupted() => Some(signal),
        };
        if let Some(signal) = ended_by {
            stop.cancel();
            work.await??;
            return Err(signal);
        }
        let jobs = queue.list(None, usize::MAX)?;
        report(jobs.iter().filter(|job| !before.contains(&job.id)))
    }
}

fn has_ended(job: &Job) -> bool {
    matches!(
        job.state,
        JobState::Done | JobState::Skipped | JobState::Dead
    )
}

/// What came of the jobs, a line each.
fn report<'a>(jobs: impl Iterator<Item = &'a Job>) -> anyhow::Result<()> {
    let mut given_up = 0;
    let mut jobs: Vec<&Job> = jobs.collect();
    jobs.sort_by_key(|job| job.id);
    for job in jobs {
        let reason = job.reason.as_deref().unwrap_or_default();
        match (&job.state, &job.outcome) {
            (JobState::Done, Some(outcome)) => {
                if let (Some(image), Some(digest)) = (&outcome.image, outcome.image_digest) {
                    output::line(format!("{image} {digest}"));
                }
                for index in &outcome.indexes {
                    output::line(format!("{} {index}", job.push.tagged_name()));
                }
            }
            (JobState::Skipped, _) => output::note(&format!("{}: {reason}", job.push)),
            (JobState::Dead, _) => {
                given_up += 1;
                output::note(&format!("cannot index {}: {reason}", job.push));
            }
            _ => {}
        }
    }
    if given_up > 0 {
        bail!("{given_up} of the images could not be indexed");
    }
    Ok(())
}

/// The pushes of an event that are to be indexed; the others get a line.
pub(super) fn wanted(policy: &PushPolicy, event: &[u8]) -> anyhow::Result<Vec<Push>> {
    let mut pushes = Vec::new();
    for reported in event::parse(event)? {
        let ignored = match reported {
            Reported::Push(push) => match policy.decide(push) {
                Decision::Index(push) => {
                    pushes.push(push);
                    continue;
                }
                Decision::Ignore(why) => why,
            },
            Reported::Other(what) => what,
        };
        output::note(&format!("ignored: {ignored}"));
    }
    Ok(pushes)
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().take(MAX_EVENT + 1).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_EVENT + 1).read_to_end(&mut bytes))
    };
    read.with_context(|| format!("cannot read the event {}", path.display()))?;
    if bytes.len() as u64 > MAX_EVENT {
        bail!(
            "cannot read the event {}: it is larger than {MAX_EVENT} bytes",
            path.display()
        );
    }
    Ok(bytes)
}
