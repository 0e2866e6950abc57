//! `soci create`: a SOCI index of version 1 beside an image that stays as it is.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use clap::Args;
use soci_containerd::labels::gc;
use soci_containerd::{ImageRecord, Images};
use soci_index::{ConvertOptions, CreatedIndex, IndexError, RegistrySink, SharedSource, Source};
use soci_store::artifacts::{ArtifactDb, ArtifactKind};

use crate::artifact_records::{add_index, known_ztocs, list};
use crate::containerd::{self, ContainerdSink, ContainerdSource};
use crate::global::Global;
use crate::index_args::IndexingArgs;
use crate::interrupt::{committing, limited};
use crate::output;
use crate::progress::{ClearAtEnd, ConvertProgress};

/// Create a SOCI index (version 1) of an image
///
/// The image stays as it is; the index refers to it and is found through the registry's
/// referrers once `soci push` has put it there. `soci convert` makes version 2, which snapshotters
/// use by default.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  soci create registry.example/app:1 && soci push registry.example/app:1
  soci create docker://registry.example/app:1    (made and pushed without containerd)")]
pub(crate) struct Create {
    /// The image in containerd, or docker://REFERENCE
    #[arg(value_name = "REF")]
    reference: String,

    #[command(flatten)]
    pub(crate) indexing: IndexingArgs,
}

impl Create {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let options = self.indexing.options(global)?;
        if self.reference.starts_with("docker://") {
            return limited(global.timeout, Box::pin(self.at_registry(&options))).await;
        }
        let db = global.artifacts();
        let layout = global.layout()?;
        let known = known_ztocs(&db).await?;
        let (reference, quiet) = (self.reference.as_str(), self.indexing.quiet);
        global
            .leased(async |containerd| {
                let image = containerd::image(&containerd, reference).await?;
                let source: SharedSource = Arc::new(ContainerdSource::new(
                    &containerd,
                    image.clone(),
                    known,
                    layout.clone(),
                ));
                let sink = ContainerdSink::artifacts(&containerd, layout);
                let progress = Arc::new(ConvertProgress::new(quiet));
                let _clear = ClearAtEnd(Arc::clone(&progress));
                let created =
                    soci_index::create(&source, &sink, &options, Arc::clone(&progress) as Arc<_>)
                        .await?;
                let labels = index_labels(&db, &image, &created).await?;
                committing();
                for created in &created {
                    add_index(
                        &db,
                        &created.written,
                        created.manifest.digest,
                        image.target.digest,
                        &created.platform,
                    )
                    .await?;
                }
                Ok(Images::new(&containerd).set_labels(&image, labels).await?)
            })
            .await
    }

    /// Reads the image at its registry and puts the index there.
    async fn at_registry(&self, options: &ConvertOptions) -> anyhow::Result<()> {
        let source: Source = self.reference.parse()?;
        let reference = source
            .reference()
            .ok_or_else(|| IndexError::Options("docker://REFERENCE is expected".to_owned()))?;
        let client = self
            .indexing
            .registry
            .client(reference, self.indexing.registry.user.as_ref())?;
        let image = source.open(|| Ok(client.clone()))?;
        let pusher = self
            .indexing
            .registry
            .push_client(reference, self.indexing.registry.user.as_ref())?;
        let sink = RegistrySink::beside(pusher, reference.clone());
        let progress = Arc::new(ConvertProgress::new(self.indexing.quiet));
        let clear = ClearAtEnd(Arc::clone(&progress));
        let created =
            soci_index::create(&image, &sink, options, Arc::clone(&progress) as Arc<_>).await?;
        drop(clear);
        if !self.indexing.quiet {
            for created in created {
                output::line(format!(
                    "{} {} {}",
                    self.reference, created.platform, created.written.descriptor.digest
                ));
            }
        }
        Ok(())
    }
}

/// The labels by which the image keeps its indexes: those made now, and earlier ones of its other
/// platforms.
async fn index_labels(
    db: &ArtifactDb,
    image: &ImageRecord,
    created: &[CreatedIndex],
) -> anyhow::Result<HashMap<String, String>> {
    let manifest_of: BTreeMap<String, soci_oci::Digest> = list(db, Some(ArtifactKind::Index))
        .await?
        .into_iter()
        .map(|index| (index.digest.to_string(), index.original_digest))
        .collect();
    let earlier = image
        .labels
        .iter()
        .filter(|(key, _)| key.starts_with(gc::SOCI_INDEX));
    let mut kept: Vec<&String> = earlier
        .clone()
        .map(|(_, index)| index)
        .filter(|index| {
            manifest_of
                .get(*index)
                .is_some_and(|manifest| created.iter().all(|new| new.manifest.digest != *manifest))
        })
        .collect();
    kept.sort();
    kept.dedup();
    let new = created
        .iter()
        .map(|created| created.written.descriptor.digest.to_string());
    let mut labels: HashMap<String, String> = earlier
        .map(|(key, _)| (key.clone(), String::new()))
        .collect();
    for (at, index) in new.chain(kept.into_iter().cloned()).enumerate() {
        let key = match at {
            0 => gc::SOCI_INDEX.to_owned(),
            at => format!("{}.{at}", gc::SOCI_INDEX),
        };
        labels.insert(key, index);
    }
    Ok(labels)
}
