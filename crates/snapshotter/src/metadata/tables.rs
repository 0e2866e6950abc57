//! The tables of the database, and the transactions on them.

use redb::{
    ReadOnlyTable, ReadTransaction, ReadableTable, Table, TableDefinition, TableError,
    WriteTransaction,
};

use prost::Message;

use super::error::MetadataError;
use super::record::{Link, Record};
use crate::labels;

/// Changes with the tables or the meaning of their entries. Fields can be added to the entries
/// without a new version: they are protobuf messages.
pub(super) const SCHEMA: u64 = 1;
pub(super) const SCHEMA_KEY: &str = "schema";
/// The lowest id that was never used.
pub(super) const NEXT_ID_KEY: &str = "next_id";
/// The first id of this database: directories below it belong to another program.
pub(super) const FIRST_ID_KEY: &str = "first_id";
/// The last transaction of v0.15's database that was imported.
pub(super) const IMPORTED_KEY: &str = "taken_over";

/// Numbers that describe the database.
pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Name → `record::Record`.
const SNAPSHOTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshots");
/// (Parent's id, child's id) → child's name.
const CHILDREN: TableDefinition<'_, (u64, u64), &str> = TableDefinition::new("children");
/// (Value of the label `containerd.io/snapshot.ref`, name): containerd looks snapshots up by it.
const TARGETS: TableDefinition<'_, (&str, &str), ()> = TableDefinition::new("targets");
/// Id of a lazy snapshot → what is needed to mount it again.
const LAZY: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("lazy");

/// The result of work inside a transaction.
pub(super) type Attempt<T> = Result<T, Failure>;

/// A failure inside a transaction, before the path of the database is added.
pub(super) enum Failure {
    Refused(MetadataError),
    Database(redb::Error),
}

impl From<MetadataError> for Failure {
    fn from(error: MetadataError) -> Self {
        Self::Refused(error)
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
pub(super) struct Writer<'t> {
    pub(super) meta: Table<'t, &'static str, u64>,
    pub(super) snapshots: Table<'t, &'static str, &'static [u8]>,
    pub(super) children: Table<'t, (u64, u64), &'static str>,
    pub(super) targets: Table<'t, (&'static str, &'static str), ()>,
    pub(super) lazy: Table<'t, u64, &'static [u8]>,
}

/// The tables as they were when the transaction began.
pub(super) struct Reader {
    pub(super) meta: ReadOnlyTable<&'static str, u64>,
    pub(super) snapshots: ReadOnlyTable<&'static str, &'static [u8]>,
    pub(super) children: ReadOnlyTable<(u64, u64), &'static str>,
    pub(super) targets: ReadOnlyTable<(&'static str, &'static str), ()>,
    pub(super) lazy: ReadOnlyTable<u64, &'static [u8]>,
}

macro_rules! open_tables {
    ($transaction:expr) => {
        Ok(Self {
            meta: $transaction.open_table(META)?,
            snapshots: $transaction.open_table(SNAPSHOTS)?,
            children: $transaction.open_table(CHILDREN)?,
            targets: $transaction.open_table(TARGETS)?,
            lazy: $transaction.open_table(LAZY)?,
        })
    };
}

impl Reader {
    pub(super) fn new(transaction: &ReadTransaction) -> Result<Self, TableError> {
        open_tables!(transaction)
    }
}

impl<'t> Writer<'t> {
    pub(super) fn new(transaction: &'t WriteTransaction) -> Result<Self, TableError> {
        open_tables!(transaction)
    }

    /// Marks an id as used for good.
    pub(super) fn use_id(&mut self, id: u64) -> Attempt<()> {
        let next = self.meta.get(NEXT_ID_KEY)?.map_or(1, |next| next.value());
        self.meta
            .insert(NEXT_ID_KEY, next.max(id.saturating_add(1)))?;
        Ok(())
    }

    /// Writes a record and its entries in the indexes.
    pub(super) fn put(&mut self, record: &Record, parents: &[Link]) -> Attempt<()> {
        let name = record.info.name.as_str();
        self.snapshots
            .insert(name, record.encode_to_vec().as_slice())?;
        if let Some(parent) = parents.first() {
            self.children.insert((parent.id, record.id), name)?;
        }
        if let Some(target) = record.label(labels::TARGET) {
            self.targets.insert((target, name), ())?;
        }
        Ok(())
    }

    /// Removes a record and its entries in the indexes.
    pub(super) fn delete(&mut self, record: &Record, parents: &[Link]) -> Attempt<()> {
        let name = record.info.name.as_str();
        self.snapshots.remove(name)?;
        if let Some(parent) = parents.first() {
            self.children.remove((parent.id, record.id))?;
        }
        if let Some(target) = record.label(labels::TARGET) {
            self.targets.remove((target, name))?;
        }
        Ok(())
    }

    /// Returns the name of a snapshot on top of the one with this id, if there is any.
    pub(super) fn first_child(&self, id: u64) -> Attempt<Option<String>> {
        let mut children = self.children.range((id, 0)..=(id, u64::MAX))?;
        match children.next() {
            Some(child) => Ok(Some(child?.1.value().to_owned())),
            None => Ok(None),
        }
    }
}
