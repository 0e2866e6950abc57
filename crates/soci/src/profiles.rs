//! The start-up profiles that a command line names: those of this node, and files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::Args;
use soci_oci::{Digest, Reference};
use soci_profile::{MAX_SIZE, Merged, Profile};
use soci_store::{ProfileFiles, StoredProfile};

use crate::global::Global;
use crate::output;

/// An image of which a start was recorded: its name, or the digest of its manifest.
#[derive(Debug, Clone)]
pub(crate) enum ProfileName {
    Manifest(Digest),
    Image(Reference),
}

impl std::str::FromStr for ProfileName {
    type Err = soci_oci::ReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(manifest) = text.parse() {
            return Ok(Self::Manifest(manifest));
        }
        Ok(Self::Image(
            text.strip_prefix("docker://").unwrap_or(text).parse()?,
        ))
    }
}

impl std::fmt::Display for ProfileName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Manifest(digest) => digest.fmt(f),
            Self::Image(reference) => reference.fmt(f),
        }
    }
}

impl ProfileName {
    fn is_of(&self, manifest: &Digest, stored: &StoredProfile) -> bool {
        match self {
            Self::Manifest(wanted) => wanted == manifest,
            Self::Image(wanted) => {
                let image = stored.profile.image.parse::<Reference>();
                image.is_ok_and(|image| image.to_string() == wanted.to_string())
            }
        }
    }
}

/// The profiles of this node, where the daemon keeps them.
pub(crate) fn of_node(global: &Global) -> ProfileFiles {
    // The daemon keeps to its limit when it adds the next one.
    ProfileFiles::new(global.root.join("soci/profiles"), u64::MAX)
}

/// Finds the newest profile of an image on this node.
pub(crate) fn find(global: &Global, name: &ProfileName) -> anyhow::Result<Option<StoredProfile>> {
    for (manifest, stored) in list(global)? {
        match stored {
            Ok(stored) if name.is_of(&manifest, &stored) => return Ok(Some(stored)),
            Err(error) if matches!(name, ProfileName::Manifest(wanted) if *wanted == manifest) => {
                return Err(error.into());
            }
            Ok(_) | Err(_) => {}
        }
    }
    Ok(None)
}

/// The newest profile of an image on this node.
pub(crate) fn known(global: &Global, name: &ProfileName) -> anyhow::Result<StoredProfile> {
    find(global, name)?.with_context(|| {
        format!(
            "no start of {name} is recorded below {} (see `soci profile list`)",
            global.root.display()
        )
    })
}

/// All profiles of this node, the newest first.
pub(crate) fn list(
    global: &Global,
) -> anyhow::Result<Vec<(Digest, Result<StoredProfile, soci_store::ProfileFileError>)>> {
    let list = of_node(global).list();
    list.with_context(|| {
        format!(
            "cannot list the start-up profiles below {}",
            global.root.display()
        )
    })
}

/// Reads a profile from a file.
pub(crate) fn read(path: &Path) -> anyhow::Result<Profile> {
    let what = || format!("cannot read {}", path.display());
    let size = std::fs::metadata(path).with_context(what)?.len();
    if size > MAX_SIZE {
        bail!(
            "{} is not a start-up profile: it has {size} bytes, more than the limit of {MAX_SIZE}",
            path.display()
        );
    }
    let bytes = std::fs::read(path).with_context(what)?;
    Profile::parse(&bytes).with_context(|| path.display().to_string())
}

/// Writes a profile to a file, or to stdout if that is `-`.
pub(crate) fn write(profile: &Profile, path: &Path) -> anyhow::Result<()> {
    let mut bytes = profile.encode();
    bytes.push(b'\n');
    if path == Path::new("-") {
        return Ok(std::io::Write::write_all(&mut output::contents(), &bytes)?);
    }
    std::fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// The flags that name a recorded start for an index.
#[derive(Debug, Args)]
#[command(next_help_heading = "Index options")]
pub(crate) struct ProfileArgs {
    /// List what a recorded start read for prefetching, in its order (see `soci profile`)
    #[arg(long, value_name = "FILE", conflicts_with = "profile_from_daemon")]
    profile: Option<PathBuf>,

    /// As --profile, with what the daemon of this machine recorded of an image
    #[arg(long, value_name = "REF")]
    profile_from_daemon: Option<ProfileName>,
}

impl ProfileArgs {
    /// What the recorded starts have in common, if there are any.
    pub(crate) fn merged(&self, global: &Global) -> anyhow::Result<Option<Arc<Merged>>> {
        let profile = match (&self.profile, &self.profile_from_daemon) {
            (Some(path), _) => read(path)?,
            (None, Some(name)) => known(global, name)?.profile,
            (None, None) => return Ok(None),
        };
        Ok(Some(Arc::new(profile.merged())))
    }
}
