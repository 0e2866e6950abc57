//! The files of a queue: a database that processes open in turn, and a locked file for each process
//! that works on its jobs.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use redb::{
    Database, ReadOnlyDatabase, ReadTransaction, ReadableDatabase, TableDefinition, TableError,
    WriteTransaction,
};

/// Job number → job in JSON: jobs that wait or run.
pub(crate) const OPEN: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("open");
/// The same for jobs that have ended.
pub(crate) const ENDED: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("ended");
/// Event (digest of its name) → job number.
pub(crate) const EVENTS: TableDefinition<'_, &str, u64> = TableDefinition::new("events");
/// `registry/repository:tag` → number of the newest job that was carried out.
pub(crate) const TAGS: TableDefinition<'_, &str, u64> = TableDefinition::new("tags");
/// `registry/repository:tag` → digest that polling saw last.
pub(crate) const SEEN: TableDefinition<'_, &str, &str> = TableDefinition::new("seen");
/// Numbers: the schema, the next job.
pub(crate) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const SCHEMA_KEY: &str = "schema";
const SCHEMA: u64 = 1;
/// redb's page cache in bytes.
const CACHE: usize = 1 << 20;

/// Why the queue cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueueError {
    /// A file or folder of the queue.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The database.
    #[error("cannot use the queue {}: {source}", path.display())]
    Database {
        /// The database's file.
        path: PathBuf,
        /// The cause.
        source: Box<redb::Error>,
    },
    /// An entry that cannot be read.
    #[error("cannot use the queue {}: {reason}; use the program that wrote it, or remove the folder", path.display())]
    Content {
        /// The database's file.
        path: PathBuf,
        /// The defect.
        reason: String,
    },
    /// Too many jobs wait.
    #[error(
        "cannot take more events: {0} jobs wait already; add workers, or send the event again later"
    )]
    Full(usize),
    /// No such job.
    #[error("cannot find job {0}: see `soci index-builder list`")]
    NoSuchJob(u64),
    /// The work on the disk did not finish.
    #[error(transparent)]
    Interrupted(#[from] soci_task::Interrupted),
}

/// The folder of a queue. Every use opens the database and closes it again, so that several
/// processes can share it. The file `lock` holds the number of changes so far, from which a process
/// sees without opening the database that there is nothing new in it.
#[derive(Debug)]
pub(crate) struct QueueFolder {
    folder: PathBuf,
    /// Held by the thread of this process whose turn it is.
    turn: Mutex<()>,
}

impl QueueFolder {
    /// Opens a folder, which is made if there is none.
    pub(crate) fn open(folder: &Path) -> Result<Self, QueueError> {
        let workers = folder.join("workers");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&workers)
            .map_err(io_error("create", &workers))?;
        let queue = Self {
            folder: folder.to_owned(),
            turn: Mutex::new(()),
        };
        queue.write(|_| Ok(()))?;
        Ok(queue)
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.join("queue.redb")
    }

    /// Runs `work` in a transaction that is durable when this returns `Ok`, and without effect when it
    /// returns an error.
    pub(crate) fn write<T>(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<T, WorkError>,
    ) -> Result<T, QueueError> {
        self.write_unless(|_| None, |transaction| Ok((work(transaction)?, true)))
            .map(|(done, _)| done)
    }

    /// Runs `work` in a transaction, unless `known` has the result already, given the number of changes
    /// so far. The transaction is committed if `work` returns true. Returns the number of changes too.
    pub(crate) fn write_unless<T>(
        &self,
        known: impl FnOnce(u64) -> Option<T>,
        work: impl FnOnce(&WriteTransaction) -> Result<(T, bool), WorkError>,
    ) -> Result<(T, u64), QueueError> {
        let _turn = self.turn.lock();
        let lock = self.lock()?;
        let changes = lock.changes()?;
        if let Some(known) = known(changes) {
            return Ok((known, changes));
        }
        let database = self.database()?;
        let begin = || database.begin_write().map_err(redb::Error::from);
        let transaction = begin().map_err(|error| self.explain(error.into()))?;
        let (done, changed) = work(&transaction).map_err(|error| self.explain(error))?;
        if !changed {
            let aborted = transaction.abort().map_err(redb::Error::from);
            aborted.map_err(|error| self.explain(error.into()))?;
            return Ok((done, changes));
        }
        // Before the change: after a crash in between, the others look in vain.
        let changes = changes.wrapping_add(1);
        lock.set_changes(changes)?;
        let committed = transaction.commit().map_err(redb::Error::from);
        committed.map_err(|error| self.explain(error.into()))?;
        Ok((done, changes))
    }

    /// Runs `work` in a transaction that changes nothing.
    pub(crate) fn read<T>(
        &self,
        work: impl FnOnce(&ReadTransaction) -> Result<T, WorkError>,
    ) -> Result<T, QueueError> {
        let _turn = self.turn.lock();
        let _lock = self.lock()?;
        let run = |begun: Result<ReadTransaction, redb::TransactionError>| {
            let begun = begun.map_err(redb::Error::from);
            work(&begun.map_err(|error| self.explain(error.into()))?)
                .map_err(|error| self.explain(error))
        };
        // Opened for reading, the file is not written at all. That fails when it is new or was left by a
        // process that was killed; opening it for writing repairs it.
        match Database::builder()
            .set_cache_size(CACHE)
            .open_read_only(self.path())
        {
            Ok(database) if matches!(schema(&database), Ok(Some(SCHEMA))) => {
                run(ReadOnlyDatabase::begin_read(&database))
            }
            opened => {
                drop(opened);
                run(self.database()?.begin_read())
            }
        }
    }

    /// Waits for the turn of this process; the system ends it with the process.
    fn lock(&self) -> Result<Lock, QueueError> {
        let path = self.folder.join("lock");
        let file = private(&path)?;
        file.lock().map_err(io_error("lock", &path))?;
        Ok(Lock { file, path })
    }

    fn database(&self) -> Result<Database, QueueError> {
        let path = self.path();
        // Made before redb does: it holds the names of private repositories.
        drop(private(&path)?);
        let opened = Database::builder().set_cache_size(CACHE).create(&path);
        let database =
            opened.map_err(|error| self.explain(WorkError::from(redb::Error::from(error))))?;
        match schema(&database).map_err(|error| self.explain(error.into()))? {
            Some(SCHEMA) => {}
            None => create(&database).map_err(|error| self.explain(error.into()))?,
            Some(found) => {
                return Err(QueueError::Content {
                    path,
                    reason: format!("its schema has version {found}, this program reads {SCHEMA}"),
                });
            }
        }
        Ok(database)
    }

    fn explain(&self, error: WorkError) -> QueueError {
        match error {
            WorkError::Database(source) => QueueError::Database {
                path: self.path(),
                source: Box::new(source),
            },
            WorkError::Content(reason) => QueueError::Content {
                path: self.path(),
                reason,
            },
            WorkError::Refused(error) => *error,
        }
    }

    /// Enters this process among those that work.
    pub(crate) fn enter(&self) -> Result<(String, File), QueueError> {
        let _turn = self.turn.lock();
        let _lock = self.lock()?;
        let name = format!("{}-{:08x}", std::process::id(), fastrand::u32(..));
        let path = self.worker(&name);
        let file = private(&path)?;
        file.lock().map_err(io_error("lock", &path))?;
        Ok((name, file))
    }

    /// Removes what [`QueueFolder::enter`] made.
    pub(crate) fn leave(&self, name: &str) {
        // What remains is removed by the next look at it.
        let _ = std::fs::remove_file(self.worker(name));
    }

    /// Whether the process of a worker lives. To be asked within a transaction.
    pub(crate) fn lives(&self, name: &str) -> bool {
        let path = self.worker(name);
        let Ok(file) = File::open(&path) else {
            return false;
        };
        match file.try_lock() {
            Ok(()) => {
                let _ = std::fs::remove_file(&path);
                false
            }
            Err(TryLockError::WouldBlock) => true,
            // It cannot be known: its jobs are left alone.
            Err(TryLockError::Error(_)) => true,
        }
    }

    fn worker(&self, name: &str) -> PathBuf {
        self.folder.join("workers").join(name)
    }
}

/// Why work in a transaction failed.
#[derive(Debug)]
pub(crate) enum WorkError {
    Database(redb::Error),
    Content(String),
    Refused(Box<QueueError>),
}

impl<E: Into<redb::Error>> From<E> for WorkError {
    fn from(error: E) -> Self {
        Self::Database(error.into())
    }
}

/// The lock on the folder, and in its file the number of changes to the database.
struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    fn changes(&self) -> Result<u64, QueueError> {
        let mut bytes = [0; 8];
        match self.file.read_exact_at(&mut bytes, 0) {
            Ok(()) => Ok(u64::from_le_bytes(bytes)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
            Err(error) => Err(io_error("read", &self.path)(error)),
        }
    }

    fn set_changes(&self, changes: u64) -> Result<(), QueueError> {
        let bytes = changes.to_le_bytes();
        let written = self.file.write_all_at(&bytes, 0);
        written.map_err(io_error("write", &self.path))
    }
}

/// The version of the schema, unless the database is new.
fn schema(database: &impl ReadableDatabase) -> Result<Option<u64>, redb::Error> {
    match database.begin_read()?.open_table(META) {
        Ok(meta) => Ok(meta.get(SCHEMA_KEY)?.map(|version| version.value())),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn create(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(OPEN)?;
    transaction.open_table(ENDED)?;
    transaction.open_table(EVENTS)?;
    transaction.open_table(TAGS)?;
    transaction.open_table(SEEN)?;
    transaction.open_table(META)?.insert(SCHEMA_KEY, SCHEMA)?;
    transaction.commit()?;
    Ok(())
}

fn private(path: &Path) -> Result<File, QueueError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(io_error("open", path))
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> QueueError {
    let path = path.to_owned();
    move |source| QueueError::Io {
        action,
        path,
        source,
    }
}
