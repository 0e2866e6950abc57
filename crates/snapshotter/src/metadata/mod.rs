//! The metadata of the snapshots, in a transactional database on disk (redb: copy on write, one
//! fsync per commit). Each call of the service is one transaction: a crash leaves it done or not
//! done.
//!
//! Every commit waits for the disk. Postponing that for active snapshots would be faster, but
//! after a power cut containerd would hold names that the database lost, and ids would be used
//! twice.

mod change;
mod error;
mod import;
mod list;
mod lookup;
mod record;
mod search;
mod tables;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use redb::{Database, ReadableDatabase, TableError};
use tokio::sync::Notify;

pub(crate) use change::{Commit, LayerCommit, LayerOutcome, NewLayer, NewSnapshot};
pub use error::MetadataError;
pub(crate) use import::OldSnapshot;
pub(crate) use lookup::{ImportState, Snapshot};
pub(crate) use record::{Fallback, LazyRecord, Link, Record, Usage};

use tables::{Attempt, Failure, META, NEXT_ID_KEY, Reader, SCHEMA, SCHEMA_KEY, Writer};

/// Size of redb's page cache in bytes. redb fills it even if few pages are used again.
const CACHE: usize = 4 << 20;

/// The open database. All calls block on the disk.
pub(crate) struct Metadata {
    database: Database,
    path: PathBuf,
    changes: AtomicU64,
    /// Notified after each change.
    pub(crate) changed: Notify,
}

impl Metadata {
    /// Opens the database, or creates an empty one for [`Metadata::begin`] or [`Metadata::import`].
    ///
    /// A file that cannot be read, or has another schema, is left as it is.
    pub(crate) fn open(path: &Path) -> Result<Self, MetadataError> {
        let database = Database::builder()
            .set_cache_size(CACHE)
            .create(path)
            .map_err(|error| at(path)(error.into()))?;
        // An earlier version made it readable to all.
        std::fs::set_permissions(path, Permissions::from_mode(0o600))
            .map_err(|error| at(path)(redb::StorageError::Io(error).into()))?;
        let metadata = Self {
            database,
            path: path.to_owned(),
            changes: AtomicU64::new(0),
            changed: Notify::new(),
        };
        metadata.check_schema()?;
        Ok(metadata)
    }

    /// Returns the number of changes since the database was opened.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    fn check_schema(&self) -> Result<(), MetadataError> {
        let found = self
            .found_schema()
            .map_err(|failure| self.located(failure))?;
        match found {
            Some(SCHEMA) => Ok(()),
            Some(found) => Err(MetadataError::Schema {
                path: self.path.clone(),
                found,
                known: SCHEMA,
            }),
            None => Ok(()),
        }
    }

    /// Whether neither [`Metadata::begin`] nor [`Metadata::import`] has run.
    fn is_new(&self) -> Result<bool, MetadataError> {
        let found = self.found_schema();
        Ok(found.map_err(|failure| self.located(failure))?.is_none())
    }

    /// Creates the tables of a database without snapshots.
    pub(crate) fn begin(&self) -> Result<(), MetadataError> {
        self.write(|tables| {
            tables.meta.insert(SCHEMA_KEY, SCHEMA)?;
            tables.meta.insert(NEXT_ID_KEY, 1)?;
            Ok(())
        })
    }

    fn found_schema(&self) -> Attempt<Option<u64>> {
        match self.database.begin_read()?.open_table(META) {
            Ok(meta) => Ok(meta.get(SCHEMA_KEY)?.map(|version| version.value())),
            Err(TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Runs `work` in a transaction that is durable when this returns `Ok`, and without effect
    /// when it returns an error.
    fn write<R>(
        &self,
        work: impl FnOnce(&mut Writer<'_>) -> Attempt<R>,
    ) -> Result<R, MetadataError> {
        let attempt = || {
            let transaction = self.database.begin_write()?;
            let result = work(&mut Writer::new(&transaction)?)?;
            soci_faults::point("metadata-changed");
            transaction.commit()?;
            self.changes.fetch_add(1, Ordering::Release);
            self.changed.notify_one();
            Ok(result)
        };
        attempt().map_err(|failure| self.located(failure))
    }

    /// Runs `work` on one consistent state. Does not wait for writers.
    fn read<R>(&self, work: impl FnOnce(&Reader) -> Attempt<R>) -> Result<R, MetadataError> {
        let attempt = || work(&Reader::new(&self.database.begin_read()?)?);
        attempt().map_err(|failure| self.located(failure))
    }

    fn located(&self, failure: Failure) -> MetadataError {
        match failure {
            Failure::Refused(error) => error,
            Failure::Database(error) => at(&self.path)(error),
        }
    }
}

fn at(path: &Path) -> impl FnOnce(redb::Error) -> MetadataError {
    |source| MetadataError::Database {
        path: path.to_owned(),
        source: Box::new(source),
    }
}

#[cfg(test)]
mod tests;
