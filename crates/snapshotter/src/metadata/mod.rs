//! What is known of each snapshot, in a transactional database on disk (redb: copy on write, one
//! fsync per commit). A call of the service is one transaction here; a crash leaves it done or not
//! done.
//!
//! Every commit waits for the disk. Postponing that for active snapshots would be faster, but
//! after a power cut containerd would hold names that we have forgotten, and ids would be used
//! twice.

mod change;
mod import;
mod list;
mod lookup;
mod record;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use redb::{
    Database, ReadOnlyTable, ReadTransaction, ReadableDatabase, Table, TableDefinition, TableError,
    WriteTransaction,
};

pub(crate) use change::{Commit, LayerCommit, LayerOutcome, MadeLayer, NewSnapshot};
pub(crate) use import::TakenOver;
pub(crate) use lookup::{Link, Snapshot};
pub(crate) use record::{Fallback, LazyRecord, Record, Usage};

use crate::error::SnapshotterError;

/// Changes when the tables or the meaning of their entries do. Fields may be added to the entries
/// without that: they are protobuf messages.
const SCHEMA: u64 = 1;
const SCHEMA_KEY: &str = "schema";
/// The lowest id that was never given away.
const NEXT_ID_KEY: &str = "next_id";
/// The first id of this database: directories below it belong to another program.
const FIRST_ID_KEY: &str = "first_id";

/// Numbers of the database itself.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Name → `record::Record`.
const SNAPSHOTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshots");
/// (Parent's id, child's id) → child's name.
const CHILDREN: TableDefinition<'_, (u64, u64), &str> = TableDefinition::new("children");
/// (Value of the label `containerd.io/snapshot.ref`, name): containerd looks snapshots up by it.
const TARGETS: TableDefinition<'_, (&str, &str), ()> = TableDefinition::new("targets");
/// Id of a lazy snapshot → what is needed to mount it again.
const LAZY: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("lazy");

/// redb's page cache in bytes. It fills to this even when little is used again.
const CACHE: usize = 4 << 20;

/// The open database. All calls block on the disk.
pub(crate) struct Metadata {
    database: Database,
    path: PathBuf,
    changes: AtomicU64,
}

/// The result of work inside a transaction.
type Attempt<T> = Result<T, Failure>;

/// Failures inside a transaction, before the path of the database is added.
enum Failure {
    Snapshotter(SnapshotterError),
    Database(redb::Error),
}

impl From<SnapshotterError> for Failure {
    fn from(error: SnapshotterError) -> Self {
        Self::Snapshotter(error)
    }
}

macro_rules! from_database {
    ($($error:ty),*) => {$(
        impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::Database(error.into())
            }
        }
    )*};
}
from_database!(
    redb::DatabaseError,
    redb::TransactionError,
    TableError,
    redb::StorageError,
    redb::CommitError
);

/// The tables of a transaction that may change them.
struct Writer<'t> {
    meta: Table<'t, &'static str, u64>,
    snapshots: Table<'t, &'static str, &'static [u8]>,
    children: Table<'t, (u64, u64), &'static str>,
    targets: Table<'t, (&'static str, &'static str), ()>,
    lazy: Table<'t, u64, &'static [u8]>,
}

/// The tables as they were when the transaction began.
struct Reader {
    meta: ReadOnlyTable<&'static str, u64>,
    snapshots: ReadOnlyTable<&'static str, &'static [u8]>,
    children: ReadOnlyTable<(u64, u64), &'static str>,
    targets: ReadOnlyTable<(&'static str, &'static str), ()>,
    lazy: ReadOnlyTable<u64, &'static [u8]>,
}

impl<'t> Writer<'t> {
    fn new(transaction: &'t WriteTransaction) -> Result<Self, TableError> {
        Ok(Self {
            meta: transaction.open_table(META)?,
            snapshots: transaction.open_table(SNAPSHOTS)?,
            children: transaction.open_table(CHILDREN)?,
            targets: transaction.open_table(TARGETS)?,
            lazy: transaction.open_table(LAZY)?,
        })
    }
}

impl Reader {
    fn new(transaction: &ReadTransaction) -> Result<Self, TableError> {
        Ok(Self {
            meta: transaction.open_table(META)?,
            snapshots: transaction.open_table(SNAPSHOTS)?,
            children: transaction.open_table(CHILDREN)?,
            targets: transaction.open_table(TARGETS)?,
            lazy: transaction.open_table(LAZY)?,
        })
    }
}

impl Metadata {
    /// Opens the database, or makes an empty one if there is no such file, for [`Metadata::begin`] or
    /// [`Metadata::import`]. A file that cannot be read, or has another schema, is left as it is.
    pub(crate) fn open(path: &Path) -> Result<Self, SnapshotterError> {
        let database = Database::builder()
            .set_cache_size(CACHE)
            .create(path)
            .map_err(|error| at(path)(error.into()))?;
        let metadata = Self {
            database,
            path: path.to_owned(),
            changes: AtomicU64::new(0),
        };
        metadata.check_schema()?;
        Ok(metadata)
    }

    /// Grows with every change since the database was opened.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    fn check_schema(&self) -> Result<(), SnapshotterError> {
        let found = self
            .found_schema()
            .map_err(|failure| self.located(failure))?;
        match found {
            Some(SCHEMA) => Ok(()),
            Some(found) => Err(SnapshotterError::Schema {
                path: self.path.clone(),
                found,
                known: SCHEMA,
            }),
            None => Ok(()),
        }
    }

    /// Whether neither [`Metadata::begin`] nor [`Metadata::import`] has been done.
    fn is_new(&self) -> Result<bool, SnapshotterError> {
        let found = self.found_schema();
        Ok(found.map_err(|failure| self.located(failure))?.is_none())
    }

    /// Makes the tables of a database without snapshots.
    pub(crate) fn begin(&self) -> Result<(), SnapshotterError> {
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
    ) -> Result<R, SnapshotterError> {
        let attempt = || {
            let transaction = self.database.begin_write()?;
            let result = work(&mut Writer::new(&transaction)?)?;
            soci_faults::point("metadata-changed");
            transaction.commit()?;
            self.changes.fetch_add(1, Ordering::Release);
            Ok(result)
        };
        attempt().map_err(|failure| self.located(failure))
    }

    /// Runs `work` on one consistent state, without waiting for writers.
    fn read<R>(&self, work: impl FnOnce(&Reader) -> Attempt<R>) -> Result<R, SnapshotterError> {
        let attempt = || work(&Reader::new(&self.database.begin_read()?)?);
        attempt().map_err(|failure| self.located(failure))
    }

    fn located(&self, failure: Failure) -> SnapshotterError {
        match failure {
            Failure::Snapshotter(error) => error,
            Failure::Database(error) => at(&self.path)(error),
        }
    }
}

fn at(path: &Path) -> impl FnOnce(redb::Error) -> SnapshotterError {
    |source| SnapshotterError::Database {
        path: path.to_owned(),
        source: Box::new(source),
    }
}

#[cfg(test)]
mod tests;
