//! Opening the database file: patiently, and with v0.15's entries at the first time.

use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use redb::{Database, DatabaseError, Table, TableDefinition, TableError};

use super::{ArtifactDb, entry, old};
use crate::{StoreError, private};

/// Digest → [`entry`].
pub(super) const ARTIFACTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("artifacts");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const SCHEMA_KEY: &str = "schema";
/// Changes when the tables or the meaning of their entries do; entries may get new fields
/// without that.
const SCHEMA: u64 = 1;
/// redb's page cache in bytes.
const CACHE: usize = 1 << 20;
/// Between two attempts to open a file that is in use.
const PAUSE: Duration = Duration::from_millis(20);

impl ArtifactDb {
    /// Opens the database; makes it, with what v0.15 left, if there is none.
    pub(super) fn open(&self) -> Result<Database, StoreError> {
        let database = self.open_file()?;
        if self.has_schema(&database)? {
            return Ok(database);
        }
        let old = if self.old.exists() {
            let bolt = self.patiently(|| match soci_bolt::Database::open(&self.old) {
                Err(soci_bolt::BoltError::InUse { .. }) => Ok(None),
                opened => opened.map(Some).map_err(|source| self.old_failed(source)),
            })?;
            old::read(&bolt).map_err(|source| self.old_failed(source))?
        } else {
            Vec::new()
        };
        self.create(&database, &old)?;
        if !old.is_empty() {
            tracing::info!(
                path = %self.old.display(),
                entries = old.len(),
                "took over the artifact database of soci v0.15; its file is kept and not used any more"
            );
        }
        Ok(database)
    }

    /// The same, whatever v0.15 left.
    pub(super) fn open_without_old(&self) -> Result<Database, StoreError> {
        let database = self.open_file()?;
        if !self.has_schema(&database)? {
            self.create(&database, &[])?;
        }
        Ok(database)
    }

    /// Runs `work` in a transaction that is durable when this returns `Ok`, and without effect
    /// when it returns an error.
    pub(super) fn write<R>(
        &self,
        work: impl FnOnce(&mut Table<'_, &'static str, &'static [u8]>) -> Result<R, redb::Error>,
    ) -> Result<R, StoreError> {
        self.change(&self.open()?, work)
    }

    pub(super) fn change<R>(
        &self,
        database: &Database,
        work: impl FnOnce(&mut Table<'_, &'static str, &'static [u8]>) -> Result<R, redb::Error>,
    ) -> Result<R, StoreError> {
        let attempt = || {
            let transaction = database.begin_write()?;
            let result = work(&mut transaction.open_table(ARTIFACTS)?)?;
            transaction.commit()?;
            Ok(result)
        };
        attempt().map_err(|error| self.failed(error))
    }

    pub(super) fn failed(&self, source: redb::Error) -> StoreError {
        StoreError::ArtifactDb {
            path: self.path.clone(),
            source: Box::new(source),
        }
    }

    fn old_failed(&self, source: soci_bolt::BoltError) -> StoreError {
        StoreError::OldArtifacts {
            path: self.old.clone(),
            source: Box::new(source),
        }
    }

    fn open_file(&self) -> Result<Database, StoreError> {
        use std::os::unix::fs::DirBuilderExt as _;
        if let Some(root) = self.path.parent() {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o711)
                .create(root)
                .map_err(|error| StoreError::io("create", root, error))?;
        }
        self.patiently(
            || match Database::builder().set_cache_size(CACHE).create(&self.path) {
                Ok(database) => {
                    private::restrict(&self.path, private::FILE)
                        .map_err(|error| StoreError::io("set the mode of", &self.path, error))?;
                    Ok(Some(database))
                }
                Err(DatabaseError::DatabaseAlreadyOpen) => Ok(None),
                Err(error) => Err(self.failed(error.into())),
            },
        )
    }

    /// Tries until the file is free.
    fn patiently<T>(
        &self,
        mut attempt: impl FnMut() -> Result<Option<T>, StoreError>,
    ) -> Result<T, StoreError> {
        let end = Instant::now().checked_add(self.patience);
        loop {
            if let Some(done) = attempt()? {
                return Ok(done);
            }
            if end.is_none_or(|end| Instant::now() >= end) {
                return Err(StoreError::ArtifactDbInUse {
                    path: PathBuf::clone(&self.path),
                    waited: self.patience,
                });
            }
            sleep(PAUSE);
        }
    }

    fn has_schema(&self, database: &Database) -> Result<bool, StoreError> {
        use redb::ReadableDatabase as _;
        let attempt = || -> Result<Option<u64>, redb::Error> {
            match database.begin_read()?.open_table(META) {
                Ok(meta) => Ok(meta.get(SCHEMA_KEY)?.map(|version| version.value())),
                Err(TableError::TableDoesNotExist(_)) => Ok(None),
                Err(error) => Err(error.into()),
            }
        };
        match attempt().map_err(|error| self.failed(error))? {
            None => Ok(false),
            Some(SCHEMA) => Ok(true),
            Some(found) => Err(StoreError::ArtifactEntry {
                path: self.path.clone(),
                reason: format!(
                    "its schema has version {found}, this program reads {SCHEMA}; use the program that wrote it"
                ),
            }),
        }
    }

    fn create(&self, database: &Database, old: &[super::Artifact]) -> Result<(), StoreError> {
        let attempt = || -> Result<(), redb::Error> {
            let transaction = database.begin_write()?;
            {
                let mut artifacts = transaction.open_table(ARTIFACTS)?;
                for artifact in old {
                    let digest = artifact.digest.to_string();
                    artifacts.insert(digest.as_str(), entry::encode(artifact).as_slice())?;
                }
                transaction.open_table(META)?.insert(SCHEMA_KEY, SCHEMA)?;
            }
            transaction.commit()?;
            Ok(())
        };
        attempt().map_err(|error| self.failed(error))
    }
}
