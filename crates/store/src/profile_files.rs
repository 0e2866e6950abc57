//! The start-up profiles on disk, one file for each image, named by its manifest. Losing any of them
//! is harmless.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use soci_oci::Digest;
use soci_profile::{MAX_SIZE, Profile, ProfileError, Recording};

/// What the names of profiles end with.
const PROFILE: &str = "json";
/// What the names of the marks of starts end with.
const START: &str = "start";
/// The mark of a start that has read.
const READING: &[u8] = b"reading\n";

/// Why a stored profile cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileFileError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It does not hold a profile.
    #[error("{}: {source}", path.display())]
    Profile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ProfileError,
    },
}

/// A profile on disk.
#[derive(Debug)]
pub struct StoredProfile {
    /// The profile.
    pub profile: Profile,
    /// Its size on disk in bytes.
    pub size: u64,
    /// When it was changed last.
    pub changed: SystemTime,
}

/// The progress of an image's start that an earlier process followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartMark {
    /// No container has read yet.
    Waiting,
    /// A container reads.
    Reading,
}

/// The profiles on disk. Every method blocks on the disk.
#[derive(Debug, Clone)]
pub struct ProfileFiles {
    directory: PathBuf,
    /// Limit of all profiles together, in bytes.
    budget: u64,
}

impl ProfileFiles {
    /// `directory` is for the profiles alone; it is created when needed.
    #[must_use]
    pub const fn new(directory: PathBuf, budget: u64) -> Self {
        Self { directory, budget }
    }

    /// Returns the profile of an image, if there is one.
    ///
    /// # Errors
    /// It cannot be read, or is of another version.
    pub fn load(&self, manifest: &Digest) -> Result<Option<Profile>, ProfileFileError> {
        let stored = load(&self.path(manifest, PROFILE))?;
        Ok(stored.map(|stored| stored.profile))
    }

    /// Lists the profiles, the one that was changed last first, each with its manifest.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn list(&self) -> io::Result<Vec<(Digest, Result<StoredProfile, ProfileFileError>)>> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut found = Vec::new();
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let name = path.file_stem().and_then(|name| name.to_str());
            let manifest = name.and_then(|hex| format!("sha256:{hex}").parse().ok());
            if let Some(manifest) = manifest.filter(|_| has_extension(&path, PROFILE))
                && let Some(stored) = load(&path).transpose()
            {
                found.push((manifest, stored));
            }
        }
        let changed = |stored: &Result<StoredProfile, _>| match stored {
            Ok(stored) => Some(stored.changed),
            Err(_) => None,
        };
        found.sort_by_key(|(manifest, stored)| (std::cmp::Reverse(changed(stored)), *manifest));
        Ok(found)
    }

    /// Adds a recording to the profile of an image, and removes the profiles that are oldest if
    /// there is no space for all. A profile that cannot be read is replaced.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn add(&self, manifest: Digest, image: &str, recording: Recording) -> io::Result<()> {
        let stored = self.load(&manifest).ok().flatten();
        let mut profile = stored.unwrap_or_else(|| Profile::new(manifest, image));
        image.clone_into(&mut profile.image);
        profile.add(recording);
        self.replace(&profile)
    }

    /// Stores a profile in place of the one that its image has.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn replace(&self, profile: &Profile) -> io::Result<()> {
        let path = self.path(&profile.manifest, PROFILE);
        self.write(&path, &profile.encode())?;
        self.make_room(&path);
        Ok(())
    }

    /// Removes the profile of an image. Returns whether there was one.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn remove(&self, manifest: &Digest) -> io::Result<bool> {
        match fs::remove_file(self.path(manifest, PROFILE)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Returns the number of profiles, and their bytes.
    #[must_use]
    pub fn usage(&self) -> (u64, u64) {
        let files = self.files();
        (
            files.len() as u64,
            files.iter().map(|(_, size, _)| size).sum(),
        )
    }

    /// Notes how far the start of an image is; `None`: it has ended. For the next process.
    ///
    /// # Errors
    /// The note cannot be written.
    pub fn mark(&self, manifest: &Digest, mark: Option<StartMark>) -> io::Result<()> {
        let path = self.path(manifest, START);
        match mark {
            Some(StartMark::Waiting) => self.write(&path, b""),
            Some(StartMark::Reading) => self.write(&path, READING),
            None => match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
        }
    }

    /// Returns how far the start of an image was, if it had not ended.
    #[must_use]
    pub fn marked(&self, manifest: &Digest) -> Option<StartMark> {
        let size = fs::metadata(self.path(manifest, START)).ok()?.len();
        Some(match size {
            0 => StartMark::Waiting,
            _ => StartMark::Reading,
        })
    }

    /// Writes a file whole. Not synced: losing it is harmless.
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(&self.directory)?;
        let mut new = path.as_os_str().to_owned();
        new.push(".new");
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        options.open(&new)?.write_all(bytes)?;
        fs::rename(&new, path)
    }

    fn files(&self) -> Vec<(SystemTime, u64, PathBuf)> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten();
        let file = |entry: io::Result<fs::DirEntry>| {
            let entry = entry.ok()?;
            let facts = entry.metadata().ok()?;
            let changed = facts.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            Some((changed, facts.len(), entry.path()))
        };
        let files = entries.filter_map(file);
        files
            .filter(|(_, _, path)| has_extension(path, PROFILE))
            .collect()
    }

    /// Removes the oldest profiles, except one that was written now.
    fn make_room(&self, written: &Path) {
        let mut files = self.files();
        files.sort_unstable();
        let mut used: u64 = files.iter().map(|(_, size, _)| size).sum();
        for (_, size, path) in files {
            if used <= self.budget {
                return;
            }
            if path != written && fs::remove_file(&path).is_ok() {
                used = used.saturating_sub(size);
            }
        }
    }

    fn path(&self, manifest: &Digest, extension: &str) -> PathBuf {
        self.directory
            .join(format!("{}.{extension}", manifest.hex()))
    }
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

fn load(path: &Path) -> Result<Option<StoredProfile>, ProfileFileError> {
    let failed = |source| ProfileFileError::Read {
        path: path.to_owned(),
        source,
    };
    let file = match fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(failed)?,
    };
    let facts = file.metadata().map_err(failed)?;
    let mut bytes = Vec::new();
    // One byte more than allowed: a larger file is refused for its size.
    let read = file
        .take(MAX_SIZE.saturating_add(1))
        .read_to_end(&mut bytes);
    read.map_err(failed)?;
    let profile = Profile::parse(&bytes).map_err(|source| ProfileFileError::Profile {
        path: path.to_owned(),
        source,
    })?;
    Ok(Some(StoredProfile {
        profile,
        size: facts.len(),
        changed: facts.modified().unwrap_or(SystemTime::UNIX_EPOCH),
    }))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use soci_profile::{ProfiledLayer, RecordedSpan};

    use super::*;

    fn recording(count: u32) -> Recording {
        let layer = ProfiledLayer {
            layer: Digest::of(b"l"),
            ztoc: Digest::of(b"z"),
        };
        let span = |span| RecordedSpan {
            layer,
            span,
            millis: 0,
            extent: 0..65,
        };
        Recording {
            spans: (0..count).map(span).collect(),
            blocks: Vec::new(),
        }
    }

    fn spans(files: &ProfileFiles, manifest: &Digest) -> usize {
        let profile = files.load(manifest).unwrap();
        profile.map_or(0, |profile| profile.merged().spans().len())
    }

    /// Waits until a file is newer than those that exist: files of one tick of the clock have no order.
    fn await_tick(folder: &Path) {
        let now = || {
            let file = tempfile::NamedTempFile::new_in(folder).unwrap();
            file.as_file().metadata().unwrap().modified().unwrap()
        };
        let before = now();
        while now() <= before {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn profiles_are_kept_within_their_budget_and_the_oldest_go() {
        let dir = tempfile::tempdir().unwrap();
        let files = ProfileFiles::new(dir.path().join("profiles"), 5000);
        assert!(files.list().unwrap().is_empty());
        let images: Vec<_> = (0..5_u8).map(|image| Digest::of(&[image])).collect();
        for image in &images {
            files.mark(image, Some(StartMark::Reading)).unwrap();
            files
                .add(*image, "registry.example/app:1", recording(100))
                .unwrap();
            await_tick(dir.path());
        }
        assert_eq!(spans(&files, &images[0]), 0);
        assert_eq!(spans(&files, &images[4]), 100);
        let (count, size) = files.usage();
        assert!(count > 0 && count < 5 && size <= 5000, "{count} {size}");
        let list = files.list().unwrap();
        assert_eq!(list.len() as u64, count);
        assert_eq!(list[0].0, images[4]);
        assert_eq!(
            list[0].1.as_ref().unwrap().profile.image,
            "registry.example/app:1"
        );
        assert_eq!(
            files.marked(&images[0]),
            Some(StartMark::Reading),
            "not a profile"
        );
    }

    #[test]
    fn a_file_that_is_not_a_profile_is_reported_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let files = ProfileFiles::new(dir.path().to_owned(), 5000);
        let image = Digest::of(b"m");
        for (bad, reason) in [
            ("{".to_owned(), "EOF"),
            ("{\"version\":9}".to_owned(), "version 9"),
            (" ".repeat(2 << 20), "more than the limit"),
        ] {
            fs::write(files.path(&image, PROFILE), bad).unwrap();
            let error = files.load(&image).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
            assert!(files.list().unwrap()[0].1.is_err());
            files.add(image, "a", recording(1)).unwrap();
            assert_eq!(spans(&files, &image), 1);
            assert!(files.remove(&image).unwrap());
            assert!(!files.remove(&image).unwrap());
        }
    }

    #[test]
    fn a_start_that_has_not_ended_is_found_by_the_next_process() {
        let dir = tempfile::tempdir().unwrap();
        let files = ProfileFiles::new(dir.path().join("profiles"), 5000);
        let image = Digest::of(b"m");
        assert_eq!(files.marked(&image), None);
        files.mark(&image, None).unwrap();
        for mark in [StartMark::Waiting, StartMark::Reading, StartMark::Waiting] {
            files.mark(&image, Some(mark)).unwrap();
            assert_eq!(files.marked(&image), Some(mark));
        }
        files.mark(&image, None).unwrap();
        assert_eq!(files.marked(&image), None);
    }
}
