//! The start-up profiles on disk, one file for each image, named by its manifest. Losing any of them
//! is harmless.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::time::SystemTime;

use soci_oci::Digest;

use crate::profile::{Profile, RecordedSpan};

/// Largest file that is read, in bytes.
const LARGEST: u64 = 4 << 20;

/// The profiles on disk. Every method blocks on the disk.
#[derive(Debug, Clone)]
pub(crate) struct ProfileFiles {
    directory: PathBuf,
    /// Limit of all files together, in bytes.
    budget: u64,
}

impl ProfileFiles {
    /// `directory` is for the profiles alone; it is created when needed.
    pub(crate) const fn new(directory: PathBuf, budget: u64) -> Self {
        Self { directory, budget }
    }

    /// Returns the profile of an image; an unreadable one counts as missing.
    pub(crate) fn load(&self, manifest: &Digest) -> Option<Profile> {
        let path = self.path(manifest);
        let size = fs::metadata(&path).ok()?.len();
        if size > LARGEST {
            return None;
        }
        Profile::parse(&fs::read(&path).ok()?)
    }

    /// Adds a recording to the profile of an image, and removes the profiles that are oldest if
    /// there is no room for all.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn add(&self, manifest: &Digest, spans: Vec<RecordedSpan>) -> io::Result<()> {
        let mut profile = self.load(manifest).unwrap_or_else(Profile::new);
        profile.add(spans);
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(&self.directory)?;
        let path = self.path(manifest);
        let new = path.with_extension("new");
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        io::Write::write_all(&mut options.open(&new)?, &profile.encode())?;
        fs::rename(&new, &path)?;
        self.make_room();
        Ok(())
    }

    fn make_room(&self) {
        let Ok(entries) = fs::read_dir(&self.directory) else {
            return;
        };
        let mut files: Vec<_> = entries
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let facts = entry.metadata().ok()?;
                let changed = facts.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                Some((changed, facts.len(), entry.path()))
            })
            .collect();
        files.sort_unstable();
        let mut used: u64 = files.iter().map(|(_, size, _)| size).sum();
        for (_, size, path) in files {
            if used <= self.budget {
                return;
            }
            if fs::remove_file(&path).is_ok() {
                used = used.saturating_sub(size);
            }
        }
    }

    fn path(&self, manifest: &Digest) -> PathBuf {
        self.directory.join(format!("{}.json", manifest.hex()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use soci_store::LayerKey;

    use super::*;

    fn spans(count: u32) -> Vec<RecordedSpan> {
        let layer = LayerKey {
            layer: Digest::of(b"l"),
            ztoc: Digest::of(b"z"),
        };
        let span = |span| RecordedSpan {
            layer,
            span,
            at: Duration::ZERO,
        };
        (0..count).map(span).collect()
    }

    #[test]
    fn profiles_are_kept_within_their_budget_and_the_oldest_go() {
        let dir = tempfile::tempdir().unwrap();
        let files = ProfileFiles::new(dir.path().join("profiles"), 3000);
        let images: Vec<_> = (0..5_u8).map(|image| Digest::of(&[image])).collect();
        for image in &images {
            files.add(image, spans(100)).unwrap();
            // Files of one tick of the clock have no order.
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(files.load(&images[0]).is_none());
        assert_eq!(files.load(&images[4]).unwrap().merged().len(), 100);
        let left = fs::read_dir(dir.path().join("profiles")).unwrap();
        let left: u64 = left
            .map(|file| file.unwrap().metadata().unwrap().len())
            .sum();
        assert!(left > 0 && left <= 3000, "{left}");

        fs::write(files.path(&images[4]), "{").unwrap();
        assert!(files.load(&images[4]).is_none());
        files.add(&images[4], spans(1)).unwrap();
        assert_eq!(files.load(&images[4]).unwrap().merged().len(), 1);
    }
}
